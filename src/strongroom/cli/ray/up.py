"""`strongroom ray up`: a Ray cluster of enclaves for one script, from its start to its end."""

from __future__ import annotations

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.parser import Parser
from strongroom.cli.run import verb as run_verb
from strongroom.cli.workspace import read_policy
from strongroom.cluster.node import PATIENCE, STORE_BYTES
from strongroom.errors import MissingDependencyError, UsageError

NODE: Final = "strongroom.cluster.node"
_MB: Final = 1 << 20
_LEAST_STORE: Final = 80  # MB; Ray refuses less
_MOST_SECONDS: Final = 3600.0
_PASSED_ON: Final = ("data", "include", "env", "vault")
_PASSED_ON_ONCE: Final = ("out", "policy", "replica", "mesh_address", "memory", "cpus", "cas", "cas_root")


def configure(parser: Parser) -> None:
    parser.usage = (
        "strongroom ray up --nodes N [OPTIONS] -- python SCRIPT ...\n"
        "       strongroom ray up --nodes N [OPTIONS] --policy FILE"
    )
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="how many enclaves to start here")
    parser.add_argument(
        "--slots",
        type=int,
        metavar="N",
        help="processors that Ray may give to tasks on each (default: as many as it has)",
    )
    parser.add_argument(
        "--store",
        type=int,
        metavar="MB",
        help=f"shared memory for objects on each (default: {STORE_BYTES // _MB})",
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help=f"for the cluster to come about, then it is an error (default: {PATIENCE:g})",
    )
    parser.add_argument("--data", action="append", default=[], metavar="VAULT[:MOUNT]", help="read-only (at /data)")
    parser.add_argument(
        "--out",
        metavar="VAULT[:MOUNT]",
        help="read-write (at /out) on the head, where the script runs; made if it does not exist (default: out.vault)",
    )
    parser.add_argument("--include", action="append", default=[], metavar="PATH", help="a file of the program")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="measured, not for secrets")
    parser.add_argument("--memory", metavar="SIZE", help="at most so much memory on each node: 512M, 4G")
    parser.add_argument("--cpus", metavar="N", help="at most so many processors' worth of time on each: 2, 0.5")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help=f"run what this policy says instead: python -m {NODE} -- SCRIPT ...",
    )
    parser.add_argument(
        "--vault", action="append", default=[], metavar="NAME=PATH", help="with --policy: where it lies"
    )
    parser.add_argument(
        "--replica", type=int, metavar="N", help="with --policy: the first node that starts here (default: 0, the head)"
    )
    parser.add_argument("--mesh-address", metavar="ADDRESS", help="where the nodes of other machines reach these")
    cas_address.add(parser)
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the script and its arguments")


def run(args: argparse.Namespace) -> int:
    script = args.command[1:] if args.command[:1] == ["--"] else args.command
    check(args, script)
    if find_spec("ray") is None:
        raise MissingDependencyError("ray is not installed", hint="pip install 'strongroom[ray]'")
    parser = Parser(prog="strongroom run")
    run_verb.configure(parser)
    return run_verb.run(parser.parse_args(words(args, script)))


def check(args: argparse.Namespace, script: list[str]) -> None:
    """Raises UsageError where words make no sense, or do not go together."""
    if bool(script) == bool(args.policy):
        raise UsageError("command: give a script after --, or --policy FILE", hint="strongroom ray up --help")
    if args.nodes < 1:
        raise UsageError(f"--nodes: got {args.nodes}, wanted 1 or more")
    if args.slots is not None and args.slots < 1:
        raise UsageError(f"--slots: got {args.slots}, wanted 1 or more")
    if args.store is not None and args.store < _LEAST_STORE:
        raise UsageError(f"--store: got {args.store} MB, wanted {_LEAST_STORE} or more, as Ray does")
    if args.patience is not None and not (math.isfinite(args.patience) and 1 <= args.patience <= _MOST_SECONDS):
        raise UsageError(f"--patience: got {args.patience:g} s, wanted 1 to {_MOST_SECONDS:g}")
    if args.policy:
        _check_policy(args)
        return
    if script[0] not in ("python", "python3"):
        raise UsageError(f"command: got {script[0]}, wanted python", hint="the nodes run what is measured, in Python")
    named = next((word for word in script[1:] if word.endswith(".py")), None)
    if named and (not Path(named).is_file() or not Path(named).resolve().is_relative_to(Path.cwd())):
        raise UsageError(f"program: {named} is no file below this directory", hint="cd to where the script is")


def _check_policy(args: argparse.Namespace) -> None:
    for name in ("slots", "store", "patience"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name}: is part of a policy's command", hint=f"program.command has -m {NODE}")
    policy = read_policy(args.policy)
    command = list(policy.program.command) if policy.program else []
    if command[1:3] != ["-m", NODE]:
        raise UsageError(
            f"policy {policy.name}: program.command: starts no Ray node",
            hint=f'command = ["python", "-m", "{NODE}", "--", "python", "train.py"]',
        )


def words(args: argparse.Namespace, script: list[str]) -> list[str]:
    """The words of `strongroom run` that start the cluster."""
    given = ["--replicas", str(args.nodes)]
    for name in _PASSED_ON:
        given += [word for value in getattr(args, name) for word in (f"--{name}", value)]
    for name in _PASSED_ON_ONCE:
        value = getattr(args, name)
        given += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    given += ["--json"] if args.json else []
    if args.policy:
        return given
    node = ["python", "-m", NODE]
    node += ["--slots", str(args.slots)] if args.slots else []
    node += ["--store", str(args.store * _MB)] if args.store else []
    node += ["--patience", f"{args.patience:g}"] if args.patience else []
    return [*given, "--", *node, "--", *script]
