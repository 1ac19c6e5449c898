"""`strongroom policy apply`: store a document and its owners' signatures in a CAS."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.client.owner import OwnerClient
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.policy.files import add_cas, add_signatures, cas_and_client, show, signatures_of, warn_of_zeros
from strongroom.cli.workspace import read_policy


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, metavar="FILE")
    add_signatures(parser)
    add_cas(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with cas_and_client(args) as (cas, client):
        told = apply(client, args.policy, args.signatures)
    if args.json:
        output.result(told | {"cas": cas.url, "cas_root": cas.cas_root})
    else:
        show(told | {"cas": cas_address.shown(args, cas)})
    return 0


def apply(client: OwnerClient, document: Path, signatures: Path | None = None) -> dict[str, object]:
    """Store that document with the signatures beside it, and say what was stored."""
    policy = read_policy(document)
    warn_of_zeros(policy, document)
    client.apply(policy.text, signatures_of(policy, document, signatures))
    return {"policy": policy.name, "version": policy.version, "digest": policy.digest}
