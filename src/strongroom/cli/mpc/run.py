"""`strongroom mpc run`: a program on secrets, as three processes here or as one party of three hosts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from strongroom.cli.mpc.verb import require_torch
from strongroom.errors import UsageError
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import Policy
from strongroom.mpc.script import Script


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "strongroom mpc run [OPTIONS] SCRIPT [ARGUMENTS]\n"
        "       strongroom mpc run [OPTIONS] -m MODULE [ARGUMENTS]\n"
        "       strongroom mpc run --rank R --peers FILE [OPTIONS] SCRIPT [ARGUMENTS]"
    )
    parser.epilog = (
        "In the program mpc.share, mpc.own and mpc.reveal work at once, and STRONGROOM_MPC_RANK is 0 at P0, 1 at P1, 2 "
        "at the dealer. Without --rank all three run here, as this user: one trust domain, for trying things out. "
        "Example: strongroom mpc run predict.py --images test.npz"
    )
    one = parser.add_argument_group("one party of three")
    one.add_argument("--rank", metavar="R", help="which one runs here: P0, P1 or D (or 0, 1, 2)")
    one.add_argument("--peers", type=Path, metavar="FILE", help="where the parties are (TOML), over mutual TLS 1.3")
    one.add_argument("--certificates", type=Path, metavar="DIR", help="this party's, instead of those the file names")
    one.add_argument("--owner", type=Path, metavar="FILE", help="where a CAS gives certificates: the key for that")
    one.add_argument("--sockets", type=Path, metavar="DIR", help="instead of --peers: meet on this machine, in DIR")
    one.add_argument("--wait", type=float, metavar="S", help="seconds for the others to come (default: 300, here 60)")
    one.add_argument("--enclave", action="store_true", help="with --rank D: deal in an enclave, which servers appraise")
    one.add_argument(
        "--dealer-policy",
        type=Path,
        metavar="FILE",
        help="at a server: take a dealer in an enclave that it accepts, and no other",
    )
    one.add_argument(
        "--endorsements", type=Path, metavar="BUNDLE", help="with --dealer-policy: what the enclave's vendor signed"
    )
    all_here = parser.add_argument_group("three processes here")
    all_here.add_argument("--show", metavar="PARTIES", help="whose output: P0,P1,D or all (default: P0)")
    all_here.add_argument("--dealer-enclave", action="store_true", help="the dealer in an enclave, which both appraise")
    parser.add_argument(
        "--include", action="append", default=[], metavar="FILE", help="another file of the program in the enclave"
    )
    parser.add_argument("--write-dealer-policy", type=Path, help=argparse.SUPPRESS)  # once measured, before it starts
    parser.add_argument("--settings", default="", metavar="WORDS", help="some of frac=16,bound=15,exact,seconds=60")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds to wait for another's bytes (default: 60)")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="what the owners of secrets allow to be revealed")
    parser.add_argument("--audit", type=Path, metavar="FILE", help="log every reveal there (here: FILE.P0 and FILE.P1)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write bytes, rounds, time and reveals as JSON")
    parser.add_argument("--threads", type=int, metavar="N", help="for each party (default: here a third of the cores)")
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)  # a pipe that closes when the launcher is gone
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise UsageError("program: none was given", hint="strongroom mpc run predict.py")
    _check(args)
    _check_files(args)
    require_torch()
    script = Script.find(words, module=args.module)
    if args.rank is None:
        from strongroom.cli.mpc.dealer import settings_here

        settings_here(args)  # one error of ours, not one of each party's
        if args.policy is not None:
            Policy.load(args.policy)
        from strongroom.cli.mpc.three import run_three

        return run_three(args, words)
    rank = rank_of(args.rank)
    _check_dealer(args, rank)
    if args.enclave:
        from strongroom.cli.mpc.dealer import run_dealer

        return run_dealer(args, words)
    from strongroom.cli.mpc.party import run_party

    return run_party(args, rank, script)


def _check(args: argparse.Namespace) -> None:
    if args.rank is None:
        for name in ("peers", "sockets", "certificates", "owner", "wait", "dealer_policy", "endorsements"):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')}: is for one party of three", hint="--rank says which one runs here"
                )
        if args.enclave:
            raise UsageError("--enclave: is for the dealer alone", hint="--dealer-enclave, where all three run here")
    elif (args.peers is None) == (args.sockets is None):
        raise UsageError(
            "--rank: wanted either --peers FILE or --sockets DIR", hint="without --rank all three run here"
        )
    elif args.show is not None:
        raise UsageError("--show: is for three processes here, and one party's output is its own")
    elif (args.certificates or args.owner) is not None and args.peers is None:
        which = "certificates" if args.certificates else "owner"
        raise UsageError(f"--{which}: is for --peers: Unix sockets use no certificates")
    if args.dealer_enclave and args.rank is not None:
        raise UsageError("--dealer-enclave: is for three processes here", hint="--rank D --enclave")
    if args.include and not (args.enclave or args.dealer_enclave):
        raise UsageError("--include: is for a dealer in an enclave: elsewhere the program finds its files itself")
    for name in ("wait", "timeout", "threads"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 10**9:
            raise UsageError(f"--{name}: got {value:g}, wanted more than 0")


def _check_files(args: argparse.Namespace) -> None:
    """What is written only later can be written."""
    for name in ("audit", "report"):
        path = getattr(args, name)
        if path is None:
            continue
        place = path.absolute().parent
        if not place.is_dir():
            raise UsageError(f"--{name}: {place} is no directory", hint=f"mkdir -p {place}")
        if path.is_dir() or not os.access(path if path.exists() else place, os.W_OK):
            raise UsageError(f"--{name}: {path} cannot be written")


def _check_dealer(args: argparse.Namespace, rank: int) -> None:
    if args.enclave and rank != NAMES.index("D"):
        raise UsageError("--enclave: is for the dealer: a server in one would not make the other need it less")
    if args.endorsements is not None and args.dealer_policy is None:
        raise UsageError("--endorsements: are for appraising a dealer", hint="add --dealer-policy FILE")
    if args.dealer_policy is not None and rank == NAMES.index("D"):
        raise UsageError("--dealer-policy: is for the servers, which appraise the dealer")
    if args.enclave and (args.certificates or args.owner or args.report):
        which = "certificates" if args.certificates else "owner" if args.owner else "report"
        raise UsageError(f"--{which}: a dealer in an enclave has none: it makes its key, and writes no file")


def rank_of(text: str) -> int:
    """A party's rank, of its name or number. Raises UsageError."""
    for rank, name in enumerate(NAMES):
        if text.upper() in (name, str(rank)):
            return rank
    raise UsageError(f"--rank: got {text[:20]!r}, wanted P0, P1 or D")
