"""`strongroom cas namespace`: whose a namespace is, and who else makes policies in it."""

from __future__ import annotations

import argparse

from strongroom.cas.client.owner import OwnerClient
from strongroom.cli import output
from strongroom.cli.policy.files import show
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the words between `namespace` and the options that all dealings with a CAS have."""
    parser.add_argument(
        "what",
        choices=("show", "allow", "remove", "allot"),
        help="show it; let a key make policies in it, or no more; or give it to a key, as its owner or an operator",
    )
    parser.add_argument("namespace", metavar="NAMESPACE")
    parser.add_argument("key", nargs="?", metavar="sha256:...", help="the key's fingerprint: allow, remove")
    parser.add_argument("--to", metavar="sha256:...", help="allot: the fingerprint of its owner's key")


def run(args: argparse.Namespace, client: OwnerClient) -> None:
    if (args.key is not None) != (args.what in ("allow", "remove")) or (args.to is not None) != (args.what == "allot"):
        raise UsageError(
            f"namespace {args.what}: has a key too many, or none",
            hint="show NS; allow NS sha256:...; remove NS sha256:...; allot NS --to sha256:...",
        )
    match args.what:
        case "allow":
            told = client.allow_in_namespace(args.namespace, args.key)
        case "remove":
            told = client.remove_from_namespace(args.namespace, args.key)
        case "allot":
            told = client.allot_namespace(args.namespace, args.to)
        case _:
            told = client.namespace(args.namespace)
    if args.json:
        output.result(told)
    else:
        show(told)
