"""`strongroom policy withdraw`: end a grant at once."""

from __future__ import annotations

import argparse

from strongroom.cli import output
from strongroom.cli.policy.files import add_cas, cas_client, check_name
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="NAMESPACE/NAME", help="the policy that granted it")
    parser.add_argument("grant", metavar="ID", help="the grant's id or how it begins, or the policy it was granted to")
    add_cas(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    name = check_name(args.policy)
    with cas_client(args) as client:
        found = [
            signed.grant
            for signed, _ in client.grants(name)
            if signed.grant.importer == args.grant or (len(args.grant) >= 8 and signed.grant.id.startswith(args.grant))
        ]
        if len(found) != 1:
            raise UsageError(
                f"grant: {len(found)} of policy {name} match {args.grant[:100]!r}",
                hint=f"`strongroom policy grants {name}` lists them",
            )
        client.withdraw_grant(name, found[0].id)
    if args.json:
        output.result({"policy": name, "withdrawn": found[0].id, "to": found[0].importer})
    else:
        output.note(f"withdrawn from {found[0].importer}; what its enclaves have read already, they have read")
    return 0
