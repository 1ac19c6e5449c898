"""One party of `strongroom mpc run`, in this process."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strongroom import mpc
from strongroom.channel import bind
from strongroom.cli import output
from strongroom.cli.mpc.lifeline import die_with
from strongroom.errors import StrongroomError, UsageError
from strongroom.mpc.audit import AuditLog
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import Policy
from strongroom.mpc.script import RANK, Script, run_program

if TYPE_CHECKING:
    from strongroom.mpc.certificates import Credentials
    from strongroom.mpc.party import Party
    from strongroom.mpc.peers import Peers
    from strongroom.mpc.tensor.world import World

_DEALER = NAMES.index("D")
_WAIT = 300.0  # seconds: three people start three hosts


def run_party(args: argparse.Namespace, rank: int, script: Script) -> int:
    """Meet the others, run the program in this party's world, and return its exit status."""
    if args.lifeline is not None:
        die_with(args.lifeline)
    os.environ[RANK] = str(rank)
    if args.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # PyTorch, not imported yet, reads it
    with contextlib.ExitStack() as unmet:
        # What is wrong here is said before the others are kept waiting.
        policy, log = None, None
        if rank != _DEALER:
            policy = None if args.policy is None else Policy.load(args.policy)
            log = None if args.audit is None else unmet.enter_context(AuditLog.open(args.audit))
        party = _join(args, rank, script)
        unmet.pop_all()
    started = time.monotonic()
    world = mpc.World(party, policy=policy, audit=log)
    status = 1
    try:
        status = _run(party, world, script)
    finally:
        if args.report is not None:
            _write(args.report, _facts(party, world, status, time.monotonic() - started))
    return status


def _join(args: argparse.Namespace, rank: int, script: Script) -> Party:
    from strongroom.mpc.peers import Peers, make_settings, settings_of  # which needs torch

    given = settings_of(args.settings) | ({} if args.timeout is None else {"seconds": args.timeout})
    appraise = None
    if args.dealer_policy is not None:
        from strongroom.cli.mpc.dealer import appraiser

        appraise = appraiser(args.dealer_policy, rank, args.endorsements)
    if args.sockets is not None:
        return mpc.join_unix(
            rank, args.sockets, make_settings(given), wait=args.wait, program=script.digest, appraise=appraise
        )
    peers = Peers.load(args.peers)
    return mpc.join_tcp(
        rank,
        peers.addresses,
        _credentials(args, peers, rank),
        make_settings(peers.settings, given),
        listen=bind(*peers.listen[rank]) if rank in peers.listen else None,
        wait=args.wait or _WAIT,
        program=script.digest,
        appraise=appraise,
    )


def _credentials(args: argparse.Namespace, peers: Peers, rank: int) -> Path | Credentials:
    from strongroom.mpc.peers import party_directory

    if peers.cas is not None:
        if args.certificates is not None:
            raise UsageError(f"--certificates: {args.peers} has them from a CAS", hint="leave [cas] out of it")
        from strongroom.cli.mpc.cas import credentials

        return credentials(peers.cas, rank, args.owner)
    if args.owner is not None:
        raise UsageError(f"--owner: {args.peers} names no CAS", hint="[cas] says where certificates come from")
    certificates = args.certificates or peers.certificates
    if certificates is None:
        raise UsageError(
            f"certificates: {args.peers} names none",
            hint="`strongroom mpc certificates` makes them; --certificates DIR",
        )
    return party_directory(certificates, rank)


def _run(party: Party, world: World, script: Script) -> int:
    try:
        return run_program(party, world, script)
    except StrongroomError as error:
        if line := script.line(error):
            output.note(f"{NAMES[party.rank]} was at {script.name}:{line}")
        raise


def _facts(party: Party, world: World, status: int, seconds: float) -> dict[str, Any]:
    return {
        "party": NAMES[party.rank],
        "status": status,
        "seconds": round(seconds, 6),
        "rounds": party.rounds,
        "sent": {peer.name: peer.sent for peer in party.peers.values()},
        "received": {peer.name: peer.received for peer in party.peers.values()},
        "operations": party.transcript.count,
        "settings": party.settings.describe(),
        "reveals": [
            {
                "shape": list(each.shape),
                "owners": sorted(each.owners),
                "to": list(each.to),
                "file": each.file,
                "line": each.line,
            }
            for each in world.reveals
        ],
    }


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n")
