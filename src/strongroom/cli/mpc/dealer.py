"""The dealer of `strongroom mpc` in an enclave: how it is measured and launched, and how servers appraise it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.endorsements import bundle, endorsements_for
from strongroom.attest.evidence import Evidence
from strongroom.cas.policy.version import parse_reference
from strongroom.channel import TlsStream
from strongroom.cli import output
from strongroom.cli.mpc.lifeline import die_with
from strongroom.cli.remembered import compiled_code, compiling_boot, known_digests
from strongroom.cli.run.verb import program_of
from strongroom.cli.workspace import Home
from strongroom.enclave.config import DEALER_ENTRY, BootConfig
from strongroom.enclave.dealer_evidence import appraise_dealer
from strongroom.enclave.launch import Isolation, launch
from strongroom.enclave.measure import measure
from strongroom.errors import ChannelError, PolicyError, StrongroomError
from strongroom.mpc.peer import NAMES

if TYPE_CHECKING:
    from strongroom.mpc.ring import Settings

_SERVERS: Final = NAMES[:2]
_RANK: Final = 2
_WAIT: Final = 300.0  # seconds for the servers to come
_RETRY: Final = 0.1
_PATIENCE: Final = 10.0
_MOST_POLICY: Final = 1 << 18

Connect = Callable[[], socket.socket]


def appraiser(policy: Path, rank: int, endorsements: Path | None = None) -> Callable[[TlsStream], object]:
    """What a server does with whoever says that it is the dealer.

    Args:
        endorsements: a bundle that completes the dealer's evidence; None leaves it with what the dealer brings.

    Raises:
        PolicyError, FormatError: the one file is no policy, or the other no bundle.
    """
    reference = read_dealer_policy(policy)
    complete = None if endorsements is None else partial(_complete, bundle.read(endorsements))

    def appraise(stream: TlsStream) -> None:
        try:
            result = appraise_dealer(stream, rank, reference, now=lambda: int(time.time()), complete=complete)
        except StrongroomError as error:
            output.note(f"{NAMES[rank]} refused a dealer: {error.message}")
            raise
        if result.tee == "simulated":
            output.note(f"{NAMES[rank]}: the dealer is a {output.SIMULATED_BANNER}")
        output.note(f"{NAMES[rank]} appraised the dealer: {result.tee}, measurement {result.measurement[:16]}...")

    return appraise


def _complete(endorsements: bundle.Bundle, evidence: Evidence, now: int) -> Evidence:
    return endorsements_for(evidence, now=now, bundle=endorsements)


def read_dealer_policy(path: Path) -> ReferenceValues:
    """The reference values that a file holds, `[reference]` as in any policy. Raises PolicyError if it does not."""
    with path.open("rb") as file:
        data = file.read(_MOST_POLICY)
    try:
        return parse_reference(data.decode())
    except UnicodeDecodeError:
        raise PolicyError(f"policy: {path} is not UTF-8 text") from None


def dealer_policy(measurement: str, vendor_root: str) -> str:
    """The text of a policy that accepts this measurement in this vendor's simulated enclaves."""
    return (
        "# Whom servers take for a dealer; made by strongroom mpc measure.\n"
        "# It accepts simulated enclaves, which protect nothing against the owner of the dealer's machine.\n"
        "[reference]\n"
        'tees = ["simulated"]\n'
        f'measurements = ["{measurement}"]\n'
        f'allow_simulated = "{vendor_root}"\n'
    )


def dealer_enclave(
    words: Sequence[str], settings: Settings, *, module: bool, include: Sequence[str]
) -> tuple[BootConfig, dict[str, Path]]:
    """What a dealer's enclave is launched with for a program's words, and the program's files."""
    command, files = program_of(["python", *(["-m"] if module else []), *words], list(include))
    config = BootConfig(
        entry=DEALER_ENTRY,
        policy="",
        cas_root="",
        role="dealer",
        command=(_words_of(settings), *command[1:]),
        isolation=Isolation.here().measured,
    )
    return config, files


def _words_of(settings: Settings) -> str:
    """What the parties must agree on; how patient one of them is, is its own affair."""
    return f"frac={settings.frac},bound={settings.bound},exact={str(settings.exact).lower()}"


def settings_here(args: argparse.Namespace) -> Settings:
    """Those that the command line and the peers' file name."""
    from strongroom.mpc.peers import Peers, make_settings, settings_of  # which needs torch

    layers = [Peers.load(args.peers).settings] if args.peers is not None else []
    patience = {} if getattr(args, "timeout", None) is None else {"seconds": args.timeout}
    return make_settings(*layers, settings_of(args.settings) | patience)


def run_dealer(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Launch the dealer's enclave, connect it to both servers, and return its program's exit status."""
    isolation = Isolation.here()
    settings = settings_here(args)
    config, files = dealer_enclave(words, settings, module=args.module, include=args.include)
    output.note(output.SIMULATED_BANNER)
    for line in isolation.notes[:1] if isolation.sandbox == "process" else ():
        output.note(line)
    home = Home.open()
    vendor = home.vendor()
    with known_digests(home), compiling_boot(home, config) as keep:
        measured = measure(config, files)
        keep(measured)
    enclave = launch(
        config,
        files,
        cas=None,
        vendor=vendor,
        platform=measured.platform,
        compiled=compiled_code(home),
        vaults={},
        dials=dealer_dials(sockets=args.sockets, peers=args.peers, wait=args.wait or _WAIT),
        knobs={"threads": args.threads, "seconds": settings.seconds},
        on_event=_tell,
    )
    if args.write_dealer_policy is None:
        output.note(f"the dealer's measurement is {enclave.measurement.value}")
    else:
        _write_whole(args.write_dealer_policy, dealer_policy(enclave.measurement.value, vendor.root_digest))

    def stop(number: int, frame: FrameType | None) -> None:
        enclave.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if args.lifeline is not None:
        die_with(args.lifeline)
    return enclave.wait()


def _tell(event: str, detail: Mapping[str, Any]) -> None:
    if event == "notice":
        output.note(str(detail["text"]))


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    draft.replace(path)


def dealer_dials(*, sockets: Path | None, peers: Path | None, wait: float) -> dict[str, Connect]:
    """How the host connects the enclave to each server, as `launch` takes it: patiently, since it may not be there yet.

    Args:
        sockets: the directory in which the servers listen, or
        peers: the file that says where they do.
        wait: seconds.
    """
    deadline = time.monotonic() + wait
    attempts: dict[str, Connect]
    if sockets is not None:
        attempts = {name: partial(_dial_unix, sockets / f"{name}.sock") for name in _SERVERS}
    else:
        from strongroom.mpc.peers import Peers

        assert peers is not None  # noqa: S101  # one or the other, as the command line was checked
        addresses = Peers.load(peers).addresses
        attempts = {
            name: partial(socket.create_connection, addresses[rank], _PATIENCE) for rank, name in enumerate(_SERVERS)
        }
    return {name: partial(_patiently, name, attempt, deadline) for name, attempt in attempts.items()}


def _dial_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(path))
        sock.sendall(bytes([_RANK]))
    except OSError:
        sock.close()
        raise
    return sock


def _patiently(name: str, attempt: Connect, deadline: float) -> socket.socket:
    while True:
        try:
            return attempt()
        except OSError as error:
            if time.monotonic() > deadline:
                reason = (error.strerror or str(error)).lower()
                raise ChannelError(
                    f"{name}: not reached: {reason}", hint="start all three parties; is its address right?"
                ) from None
        time.sleep(_RETRY)
