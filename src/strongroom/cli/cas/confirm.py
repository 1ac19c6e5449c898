"""`strongroom cas confirm`: as an operator, confirm after a start of a CAS that its database is the latest."""

from __future__ import annotations

import argparse

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.log.head import NO_ENTRIES, Head
from strongroom.cli import output
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.workspace import Home
from strongroom.crypto import Signer
from strongroom.errors import RollbackError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--head",
        metavar="SIZE:HASH",
        help="the highest head that you have seen (default: the one that this machine remembers)",
    )
    parser.add_argument(
        "--older",
        action="store_true",
        help="with --head: after a restore from a backup, when a higher one that this machine remembers is given up",
    )


def run(args: argparse.Namespace, address: CasAddress, operator: Signer, home: Home) -> int:
    remembered = home.heads(address.cas_root).read()
    head = Head.parse(args.head) if args.head else remembered
    if args.older and not args.head:
        raise UsageError("--older: belongs to --head", hint="name the head of the backup: --head SIZE:HASH")
    if head == NO_ENTRIES and not args.head:
        raise UsageError(
            "head: this machine has seen none of this CAS's log, and would confirm any",
            hint="give the head that you know of, --head SIZE:HASH, from another machine or an audit",
        )
    if head.size < remembered.size or (head.size == remembered.size and head != remembered):
        _older(args, head, remembered)
    # This client remembers no head: one that does would refuse a CAS that was put back, which would not hear of it.
    reference = cas_reference.of(args)
    with OwnerClient(address.url, cas_root=address.cas_root, owner=operator, reference=reference) as client:
        try:
            state = client.confirm_head(head, named=head != remembered)
        except RollbackError as error:
            error.hint = (
                "the CAS serves nothing any more: it must have its latest database back, and start anew; if its "
                "operators restored a backup, because all later is lost, each confirms the backup's head after a new "
                "start: `strongroom cas confirm --head SIZE:HASH --older`"
            )
            raise
    if args.json:
        output.result({"head": str(head), "ready": state["ready"], "awaited": state["awaited"]})
        return 0
    told = "the CAS is ready" if state["ready"] else state["awaited"]
    output.stdout.print(f"confirmed {head}\n{told}", markup=False, soft_wrap=True)
    return 0


def _older(args: argparse.Namespace, head: Head, remembered: Head) -> None:
    """An operator who was told a head may be told an older one by who wants it confirmed."""
    told = f"--head: {head} does not reach {remembered}, which this machine has seen"
    if not args.older:
        raise UsageError(
            told, hint="confirm without --head; --older if all after it is lost, and a backup is what you agreed on"
        )
    output.warn(f"{told}: what came after it is given up")
