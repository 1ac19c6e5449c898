"""`strongroom cas restart-mode`: show a CAS's start mode, or vote for another as one of its operators."""

from __future__ import annotations

import argparse

from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.start.mode import MODES, Restart
from strongroom.cli import output
from strongroom.cli.cas import start as cas_start
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mode", nargs="?", choices=MODES, help="the new mode (default: show the one that it has)")
    cas_start.restart_options(parser)


def run(args: argparse.Namespace, client: OwnerClient) -> int:
    current = Restart.from_wire(client.gate()["restart"])
    if args.mode is None:
        _tell(args, {"restart": current.to_wire()}, current.told)
        return 0
    if args.mode == "witness" and not args.witness:
        raise UsageError("--witness: missing", hint="say whose cosignatures are to be waited for")
    args.restart = args.mode
    if not args.operator:  # they stay who they are
        args.operator, args.operators_needed = list(current.operators), current.needed or None
    new = cas_start.restart_of(args)
    assert new is not None  # noqa: S101  # a mode was given
    answer = client.vote_restart(new)
    told = f"the start mode is now: {new.told}" if answer["changed"] else "noted; other operators have to say the same"
    _tell(args, {"restart": new.to_wire(), "changed": answer["changed"]}, told)
    return 0


def _tell(args: argparse.Namespace, wire: dict[str, object], text: str) -> None:
    if args.json:
        output.result(wire)
    else:
        output.stdout.print(text, markup=False, soft_wrap=True)
