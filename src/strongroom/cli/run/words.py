"""The words of `strongroom run` that say what runs, shared with the verbs that measure the same.

Those of `add_measured` enter the measurement, by the boot configuration or the policy's name; those of `add_unmeasured`
do not: the host may choose them freely.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from strongroom.cas.policy.network import TASK, TASKS
from strongroom.cas.policy.places import MAX_INSTANCES
from strongroom.cas.policy.version import VaultRule
from strongroom.cli.run.vaults import vaults_of
from strongroom.cli.workspace import SealedVault, policy_name
from strongroom.enclave.image import Unpacked
from strongroom.enclave.limits import Limits
from strongroom.enclave.mirrored import check_command
from strongroom.errors import UsageError

MIRROR, LOG = "run-mirror", "run-log"  # no vault's name, which come from mounts, and none is in /run
OUT: Final = "out.vault"
_LEAST_MEMORY: Final = 64 << 20


def add_measured(parser: argparse.ArgumentParser) -> None:
    """What of a command's words is measured."""
    parser.add_argument("--data", action="append", default=[], metavar="VAULT[:MOUNT]", help="read-only (at /data)")
    parser.add_argument(
        "--out", metavar="VAULT[:MOUNT]", help=f"read-write (at /out); made if it does not exist (default: {OUT})"
    )
    parser.add_argument(
        "--mirror",
        type=Path,
        metavar="DIR",
        help="keep a mirror of what the script trains, so that the same command goes on with it after a kill",
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATH", help="a file of the program, or all below a directory"
    )
    parser.add_argument(
        "--tool",
        action="append",
        default=[],
        metavar="NAME",
        help="a program of the system that the program starts: measured with it, and no other can be started then",
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="measured, so not for secrets")
    parser.add_argument("--log", type=Path, metavar="VAULT", help="seal what the program prints into a vault, too")
    parser.add_argument("--quiet", action="store_true", help="with --log: print none of it here")


def add_unmeasured(parser: argparse.ArgumentParser) -> None:
    """What the host may choose."""
    parser.add_argument("--every", metavar="N", help="steps between two commits of the mirror (default: auto)")
    parser.add_argument(
        "--vault",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="with --policy: where a vault or a sealed file of it lies",
    )
    parser.add_argument(
        "--host-path",
        action="append",
        default=[],
        metavar="PATH=DIR",
        help="with --policy: the directory that its rule `host` shows at PATH, unprotected",
    )
    parser.add_argument(
        "--replica", type=int, metavar="N", help="with --policy: which one of its instances this is, from 0 on"
    )
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="start N replicas here, each an enclave with an address of its own in the mesh; the output of each begins "
        "with its number. With --policy: from --replica on, which is 0 then",
    )
    parser.add_argument(
        "--tasks",
        metavar="KIND=N,...",
        help="with --replicas: what TF_CONFIG says of them, in this order: chief=1,worker=2,ps=1 (default: worker all)",
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="with --replicas: when one fails, the others go on, and it is launched again",
    )
    parser.add_argument(
        "--mesh-address",
        metavar="ADDRESS[:PORT]",
        help="where peers reach this enclave (default: this machine's address as the CAS sees it, any port)",
    )
    parser.add_argument(
        "--publish",
        action="append",
        default=[],
        metavar="NAME=[ADDRESS:]PORT",
        help="outsiders reach the program's port PORT, here at that port; with --policy: where they reach a service of "
        "it (default: as peers reach this, at the service's own port). Of several replicas each has the next port",
    )
    parser.add_argument(
        "--egress",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a host that the program may reach, by TLS that the enclave makes; ,ca=FILE: under this root alone (PEM); "
        ",tls=program: the program makes TLS itself",
    )
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="fail if there is no room for results, instead of waiting until there is",
    )
    parser.add_argument("--memory", metavar="SIZE", help="at most so much memory: 512M, 4G (default: all there is)")
    parser.add_argument("--cpus", metavar="N", help="at most so many processors' worth of time: 2, 0.5 (default: all)")


def check(args: argparse.Namespace, command: list[str]) -> None:
    """Raises UsageError where words do not go together."""
    if args.replica is not None and (args.replica < 0 or not args.policy):
        raise UsageError("--replica: numbers the instances of a policy, from 0 on: give --policy FILE")
    if args.replicas is not None and not 0 < args.replicas <= MAX_INSTANCES:
        raise UsageError(f"--replicas: got {args.replicas}, wanted 1 to {MAX_INSTANCES:,}")
    if args.tasks is not None and args.policy:
        raise UsageError("--tasks: the policy says that", hint="tasks in its table [mesh]")
    if args.tasks is not None and args.replicas is None:
        raise UsageError("--tasks: is for several replicas", hint="--replicas N")
    tasks(args)
    if args.elastic and args.replicas is None:
        raise UsageError("--elastic: is for several replicas", hint="--replicas N")
    if args.mesh_address and ":" in args.mesh_address.rpartition("]")[2] and (args.replicas or 1) > 1:
        raise UsageError("--mesh-address: one port does not do for several replicas", hint="give the address alone")
    if args.egress and args.policy:
        raise UsageError("--egress: a policy of your own says that", hint="[[egress]] in it")
    if args.replicas and args.mirror:
        raise UsageError(
            "--mirror: is one program's", hint="write a policy, and commit in the program (docs/how-to/mirror.md)"
        )
    if args.replicas and args.log:
        raise UsageError("--log: seals one program's output", hint="leave it out, or --replicas")
    if args.host_path and not args.policy:
        raise UsageError(
            "--host-path: a policy of your own has to say so", hint='rule = "host" in it, and --policy FILE'
        )
    if args.quiet and not args.log:
        raise UsageError("--quiet: what the program prints would be lost", hint="--log VAULT seals it")
    if args.policy and args.log:
        raise UsageError("--log: a policy of your own gives no vault for it", hint="let the program write to a vault")
    if args.policy and args.mirror:
        raise UsageError("--mirror: the policy says that", hint='access = "mirror" in it, and --vault NAME=DIR here')
    _check_every(args)
    limits(args)
    if args.tool and args.policy:
        raise UsageError("--tool: a policy of your own says that", hint="tools = [...] in its table [program]")
    if args.tool and args.image:
        raise UsageError("--tool: an image is measured as a whole, with its programs", hint="leave it out")
    if args.mirror and args.image:
        raise UsageError(
            "--mirror: an image has no Strongroom in it, which a mirror takes", hint="run it without --image"
        )
    if args.mirror:
        check_command(command)


def tasks(args: argparse.Namespace) -> tuple[str, ...]:
    """The kinds of tasks of `--tasks`, one for each replica. Raises UsageError."""
    if args.tasks is None:
        return ()
    found: list[str] = []
    for word in args.tasks.split(","):
        kind, _, count = word.partition("=")
        if not TASK.fullmatch(kind) or not (count.isascii() and count.isdigit() and int(count[:6]) <= MAX_INSTANCES):
            raise UsageError(f"--tasks: got {word[:40]!r}, wanted {TASKS}, each with a number: chief=1,worker=2,ps=1")
        found += [kind] * int(count)
    if len(found) != args.replicas:
        raise UsageError(f"--tasks: {len(found)} of them, and --replicas is {args.replicas}")
    return tuple(found)


def limits(args: argparse.Namespace) -> Limits:
    """What `--memory` and `--cpus` say. Raises UsageError."""
    memory = cpus = None
    if args.memory is not None:
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([KMGT]?)(?:i?B)?", args.memory, re.ASCII)
        memory = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0
        if memory < _LEAST_MEMORY:
            raise UsageError(f"--memory: got {args.memory[:20]!r}, wanted a size of 64M or more, such as 512M or 4G")
    if args.cpus is not None:
        found = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", args.cpus, re.ASCII)
        cpus = float(args.cpus) if found else 0.0
        if cpus < 0.01:
            raise UsageError(f"--cpus: got {args.cpus[:20]!r}, wanted a number of processors, such as 2 or 0.5")
    return Limits(memory, cpus)


def _check_every(args: argparse.Namespace) -> None:
    every = args.every
    if every is None:
        return
    if every != "auto" and not (every.isascii() and every.isdigit() and 0 < int(every[:9]) < 10**9):
        raise UsageError(f"--every: got {every[:20]!r}, wanted a number of steps from 1 on, or auto")
    if not args.policy and not args.mirror:
        raise UsageError("--every: says how often to commit, and there is no mirror", hint="--mirror DIR keeps one")


def vaults(args: argparse.Namespace) -> tuple[dict[str, SealedVault], tuple[VaultRule, ...]]:
    """A command's vaults by their names, and the rules that its development policy has for them; none is made.

    Raises:
        UsageError: one is used twice.
    """
    sealed, rules = vaults_of(args.data, [args.out or OUT])
    if args.mirror:
        if any(args.mirror.resolve() == vault.path.resolve() for vault in sealed.values()):
            raise UsageError(f"mirror: {args.mirror} is a vault", hint="give --mirror a directory of its own")
        sealed[MIRROR] = SealedVault.at(args.mirror)
        rules = (*rules, VaultRule(MIRROR, "", "mirror"))
    if args.log:
        if any(args.log.resolve() == vault.path.resolve() for vault in sealed.values()):
            raise UsageError(f"--log: {args.log} is used for something else", hint="give --log a vault of its own")
        sealed[LOG] = SealedVault.at(args.log)
        rules = (*rules, VaultRule(LOG, "", "read-write"))
    return sealed, rules


def name(command: Sequence[str], image: Unpacked | None, keys: Sequence[bytes]) -> str:
    """The name of a command's development policy.

    Args:
        keys: of its vaults and its mirror, in their order.
    """
    said = [*(image.image.command if image is not None else ()), *command] or ["image"]
    label = next((Path(word).stem for word in said if word.endswith(".py")), Path(said[0]).name)
    return policy_name(label, keys)
