"""`strongroom cas start`: run a CAS until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strongroom.attest.tee.simulated import BANNER
from strongroom.cas.client.address import ADDRESS_FILE
from strongroom.cas.log.note import WitnessKey
from strongroom.cas.service.server import Service, Settings, prepare
from strongroom.cas.start.mode import MODES, Mode, Restart
from strongroom.cas.start.tpm_head import DEFAULT_INDEX
from strongroom.cas.state.root_secret import read_record
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cli import output
from strongroom.cli.cas import attester as cas_attester
from strongroom.cli.cas import config as cas_config
from strongroom.cli.cas import endorsements as cas_endorsements
from strongroom.cli.cas import operation as cas_operation
from strongroom.cli.cas import unseal as cas_unseal
from strongroom.cli.parser import add_debug
from strongroom.cli.serve import local_url
from strongroom.cli.workspace import Home
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    cas_config.configure(parser)
    options(parser)
    add_debug(parser)
    output.add_json(parser)


def options(parser: argparse.ArgumentParser) -> None:
    """What may stand in a file for --config too."""
    parser.add_argument("--state", type=Path, metavar="DIR", help="its state (default: this user's development CAS)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="the port (default: any free one)")
    parser.add_argument(
        "--database", metavar="URL", help="a PostgreSQL that several instances share (default: SQLite in its state)"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="URL",
        help="another instance of this CAS over the same database; may be given again",
    )
    cas_attester.add(parser)
    cas_unseal.add_ways(parser)
    group = parser.add_argument_group("start mode: who confirms that its database is the latest")
    group.add_argument(
        "--restart",
        choices=MODES,
        help="of a new CAS, part of its state from then on (default: trust-disk, where nobody confirms it)",
    )
    restart_options(group)
    cas_endorsements.configure(parser)
    cas_operation.options(parser)


def restart_options(group: argparse._ActionsContainer) -> None:
    """What belongs to a start mode."""
    group.add_argument(
        "--operator",
        action="append",
        default=[],
        metavar="sha256:...",
        help="a key that decides about the CAS as a whole, and confirms it with `owner`; may be given again",
    )
    group.add_argument("--operators-needed", type=int, metavar="K", help="how many of them (default: more than half)")
    group.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="VKEY",
        help="keep this witness's cosignatures of the log's head, and show them; with `witness` wait for them at a "
        "start; may be given again",
    )
    group.add_argument(
        "--witness-quorum", type=int, metavar="Q", help="with `witness`: for how many (default: more than half)"
    )
    group.add_argument(
        "--tpm-index",
        type=lambda text: int(text, 0),
        metavar="N",
        help=f"with `tpm`: the NV index that remembers the log's head (default: {DEFAULT_INDEX:#x})",
    )


def run(args: argparse.Namespace, home: Home) -> int:
    args = cas_config.read(args, options)
    directory = args.state or home.path / "cas"
    chosen = settings(args, home, directory)
    with cas_operation.told(args, chosen.operation) as end_metrics:
        service = prepare(directory, chosen)
        service.at_end.callback(end_metrics)  # which ask the database
        return _serve(args, directory, service)


def _serve(args: argparse.Namespace, directory: Path, service: Service) -> int:
    # A CAS that listens everywhere is shown as this machine reaches it.
    url = local_url(args.host, service.port)
    if args.json:
        told = {"url": url, "cas_root": service.address.cas_root, "state": str(directory)}
        output.result(told | {"ready": service.gate.ready, "restart": service.gate.restart.mode})
    else:
        output.stdout.print(f"CAS at {url}\nroot {service.address.cas_root}", markup=False, soft_wrap=True)
    output.note(f"address written to {directory / ADDRESS_FILE}; Ctrl-C ends it")
    if not service.gate.ready:
        output.note(f"not ready: {service.gate.awaited}")
    if (read_record(directory) or {}).get("unseal") == TrustDisk.way:
        output.warn("its keys lie in files on this machine: run it where its owner trusts the machine")
    if service.gate.restart.mode == "trust-disk":
        output.warn("nobody confirms that its database is the latest: whoever has its disk can put back an older one")
    if args.namespaces == "allotted" and not service.gate.operators().keys:
        output.warn("namespaces are allotted, and it has no operators: nobody can allot one; start it with --operator")
    if args.evidence == "simulated":
        output.warn(BANNER)
    sys.stdout.flush()
    with _ended_by_signals(service):
        service.run()
    return 0


def settings(args: argparse.Namespace, home: Home, directory: Path) -> Settings:
    """What the arguments say."""
    attester = cas_attester.cas_attester(args, home)
    return Settings(
        host=args.host,
        port=args.port,
        database=args.database,
        unsealer=cas_unseal.unsealer(args, directory, attester=attester, peer=args.peer[0] if args.peer else None),
        restart=restart_of(args),
        witnesses=[WitnessKey.parse(vkey) for vkey in args.witness],
        peers=tuple(args.peer),
        attester=attester,
        complete=cas_endorsements.completer(args, directory),
        operation=cas_operation.operation(args),
    )


def restart_of(args: argparse.Namespace) -> Restart | None:
    """The start mode that the arguments ask for; None if they ask for none.

    Raises:
        UsageError: something is missing, or belongs to another mode.
    """
    mode: Mode | None = args.restart or ("trust-disk" if args.operator else None)
    for option, given, wanted in (
        ("--operators-needed", args.operators_needed, bool(args.operator)),
        ("--witness-quorum", args.witness_quorum, mode == "witness"),
        ("--tpm-index", args.tpm_index, mode == "tpm"),
    ):
        if given is not None and not wanted:
            raise UsageError(f"{option}: belongs to --operator, --restart witness and --restart tpm, in this order")
    if mode is None:
        return None
    witnesses = tuple(args.witness) if mode == "witness" else ()
    return Restart(
        mode,
        tuple(args.operator),
        _more_than_half(args.operator) if args.operators_needed is None else args.operators_needed,
        witnesses,
        _more_than_half(witnesses) if args.witness_quorum is None else args.witness_quorum,
        (DEFAULT_INDEX if args.tpm_index is None else args.tpm_index) if mode == "tpm" else 0,
    )


def _more_than_half(voters: tuple[str, ...] | list[str]) -> int:
    return len(voters) // 2 + 1 if voters else 0


@contextmanager
def _ended_by_signals(service: Service) -> Iterator[None]:
    """SIGINT and SIGTERM end the service in order, which is no failure; also before it has begun to serve."""
    before = {number: signal.signal(number, lambda *_: service.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
