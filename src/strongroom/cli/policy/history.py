"""`strongroom policy history`: a policy's versions, each checked to follow the one before."""

from __future__ import annotations

import argparse

from strongroom.cas.policy.difference import differences
from strongroom.cas.policy.succession import SignedPolicy
from strongroom.cas.policy.table import FINGERPRINT
from strongroom.cas.policy.version import Policy
from strongroom.cli import output
from strongroom.cli.policy.files import add_cas, cas_client, check_name, shown, signers
from strongroom.errors import UsageError


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
        versions = client.policy_versions(name, pinned=args.pinned)
    told: list[dict[str, object]] = []
    before: Policy | None = None
    for each in versions:
        # Of the pinned version nobody checked who signed it: it is trusted for its digest.
        pinned = args.pinned is not None and before is None
        names = None if pinned else _signers(each, before)
        by = None if pinned else _administrator(each)
        told.append(_wire(each.policy) | {"signed": names, "by": by})
        if not args.json:
            who = "pinned" if names is None else f"signed by {', '.join(names) or by or 'its administrator'}"
            who += f", applied by {by}" if by and names else ""
            text = f"version {each.policy.version}  {each.policy.digest}  {who}"
            output.stdout.print(text, markup=False, soft_wrap=True)
            for change in [] if before is None else differences(before, each.policy):
                output.stdout.print(f"    {shown(change)}", markup=False, soft_wrap=True)
        before = each.policy
    if args.json:
        output.result({"policy": name, "pinned": args.pinned, "versions": told})
        return 0
    if args.pinned is None:
        output.note("the first version is trusted as it is: compare its digest with what the owners say")
    return 0


def _signers(signed: SignedPolicy, before: Policy | None) -> list[str]:
    """The owners who signed a version: its own, then those of the version before who are owners no more."""
    mine = signers(signed.policy.owners, signed.signatures)[0]
    others = signers(None if before is None else before.owners, signed.signatures)[0]
    return mine + [name for name in others if name not in mine]


def _administrator(signed: SignedPolicy) -> str | None:
    """The administrator who signed a version in its owner's place, or None."""
    if signed.by_owner:
        return None
    return next((each.name for each in signed.policy.administrators if each.key == signed.owner.fingerprint), None)


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
