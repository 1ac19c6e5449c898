"""`strongroom policy history`: a policy's versions, each checked to follow the one before."""

from __future__ import annotations

import argparse

from strongroom.cas.difference import differences
from strongroom.cas.document import FINGERPRINT
from strongroom.cas.policy import Policy
from strongroom.cli import output
from strongroom.cli.policy_files import add_cas, cas_client, check_name, short
from strongroom.errors import UsageError, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="NAMESPACE/NAME")
    parser.add_argument(
        "--pinned", metavar="sha256:...", help="the digest of a version that you trust: it and what follows is checked"
    )
    add_cas(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    name = check_name(args.policy)
    if args.pinned is not None and not FINGERPRINT.fullmatch(args.pinned):
        raise UsageError(f"--pinned: got {args.pinned[:80]!r}, wanted a digest, sha256:<64 hex>")
    with cas_client(args) as client:
        versions = client.policy_history(name, pinned=args.pinned)
    if args.json:
        output.result({"policy": name, "pinned": args.pinned, "versions": [_wire(each) for each in versions]})
        return 0
    before: Policy | None = None
    for each in versions:
        who = (
            "its administrator" if each.owners is None else f"{each.owners.threshold} of {len(each.owners.keys)} owners"
        )
        output.stdout.print(f"version {each.version}  {each.digest}  signed by {who}", markup=False, soft_wrap=True)
        for change in [] if before is None else differences(before, each):
            output.stdout.print(printable(f"    {change.key}: {short(change.text)}"), markup=False, soft_wrap=True)
        before = each
    if args.pinned is None:
        output.note("the first version is trusted as it is: compare its digest with what the owners say")
    return 0


def _wire(policy: Policy) -> dict[str, object]:
    owners = policy.owners
    return {
        "version": policy.version,
        "digest": policy.digest,
        "previous": policy.previous or None,
        "administrator": policy.owner,
        "threshold": None if owners is None else owners.threshold,
        "owners": {} if owners is None else {name: key.fingerprint for name, key in owners.keys.items()},
    }
