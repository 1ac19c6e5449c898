"""The wire between an enclave and the host that launched it.

One Unix socket of type SEQPACKET; each message is one JSON object, descriptors ride along. The enclave asks, the host
answers, and the enclave believes nothing of it: the configuration is measured, connections end in TLS inside the
enclave, and evidence is judged by the CAS. What the host can do is refuse.

- ``config`` -> the boot configuration and the host's layout (where things lie)
- ``evidence`` {report_data} -> evidence: by a host that stands for a simulated enclave's hardware, or by the machine
- ``dial`` {peer} -> a connection to the CAS, to a server of a computation on shares, P0 or P1, or to a part of a model
- ``listener`` -> the socket that a service accepts on, or the proxy of a mesh
- ``sockets`` -> a wire of its own for a mesh's proxy, on which nothing else is waited for. It takes one request:
  ``socket`` {family} -> an unconnected TCP socket in the host's network
- ``outside`` {host} -> a wire of its own for a host that the program may reach. It takes ``resolve`` -> the addresses
  of that name, and ``socket`` as above
- ``device`` with a descriptor of the enclave's network -> the name of a WireGuard device that is there now, and a
  connection to the program that makes it, if the kernel does not
- ``published`` {name} -> the socket on which outsiders reach that service
- ``unchanged`` -> nothing, if the files that were measured are what they were; a host that stands for hardware says so
- ``event`` {event, ...}, ``failed`` {error}, ``exited`` {status}: reports, without an answer
"""

from __future__ import annotations

import array
import base64
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from strongroom.attest.attester import Attester
from strongroom.attest.evidence import Evidence
from strongroom.errors import EnclaveError, StrongroomError, from_wire
from strongroom.shield.network.links import NAME_SIZE

GiveDevice = Callable[[int], tuple[str, socket.socket | None]]
"""Moves a new device into the network of that descriptor: its name, and a connection to its program, if it has one."""
CAS = "cas"  # the name that it is dialled by
_MAX_MESSAGE = 1 << 18
_SEND_BUFFER = 1 << 20
_MOST, _LONGEST, _NAME = 50, 4000, 255  # of a report that is too long otherwise; a character takes twelve bytes at most


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The host's end and the enclave's."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return pair


def _send(sock: socket.socket, message: Mapping[str, Any], descriptor: int | None = None) -> None:
    raw = json.dumps(message, separators=(",", ":")).encode()
    if len(raw) > _MAX_MESSAGE:
        raise EnclaveError(f"control message: {len(raw)} bytes, the limit is {_MAX_MESSAGE}")
    ancillary = []
    if descriptor is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    sock.sendmsg([raw], ancillary)


def _receive(sock: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """A message and the descriptor that came with it; None when the other side is gone."""
    raw, ancillary, _flags, _ = sock.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    descriptor = None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) == 4:
            descriptor = array.array("i", data)[0]
    if not raw:
        return None, descriptor
    message = json.loads(raw)
    if not isinstance(message, dict):
        raise EnclaveError("control message: not a JSON object")
    return message, descriptor


def _shortened(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
    if isinstance(value, list):
        return [each[:_NAME] if isinstance(each, str) else each for each in value[:_MOST]]
    return value


@dataclass
class HostSide:
    """Answers one enclave from a thread of the launcher's process.

    Attributes:
        config: the boot configuration's bytes.
        layout: where the host has put things; nothing in it is measured, so nothing in it may matter for security.
        attester: stands for the hardware of a simulated enclave, or is that of the machine.
        dials: what connects to each peer that the enclave may ask for, by its name.
        listener: what a service, or the proxy of a mesh, accepts on.
        meshed: whether it may ask for sockets of the host's network; it gets one wire for them.
        outside: hosts that it may ask for; it gets one wire for each.
        published: what outsiders connect to, by the service's name.
        device: moves a WireGuard device into the network of a descriptor, once.
        on_event: called with each event, from that thread.
        unchanged: raises MeasurementError if what was measured is not what it was.
    """

    sock: socket.socket
    config: bytes
    layout: Mapping[str, Any]
    attester: Attester
    dials: Mapping[str, Callable[[], socket.socket]]
    listener: socket.socket | None
    on_event: Callable[[str, dict[str, Any]], None]
    meshed: bool = False
    outside: frozenset[str] = frozenset()
    published: Mapping[str, socket.socket] = field(default_factory=dict)
    device: GiveDevice | None = None
    unchanged: Callable[[], None] | None = None
    failure: StrongroomError | None = None
    status: int | None = None
    _thread: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="enclave-control", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the enclave has closed its end."""
        if self._thread is not None:
            self._thread.join()
        self.sock.close()

    def _serve(self) -> None:
        while True:
            try:
                message, descriptor = _receive(self.sock)
            except (OSError, ValueError, EnclaveError):
                return
            if message is None:
                return
            message.pop("descriptor", None)  # the message itself has nothing to say of one
            if descriptor is not None:
                message["descriptor"] = descriptor
            try:
                self._answer(message)
            except StrongroomError as error:
                _send(self.sock, {"failed": error.to_wire()})
            except (OSError, ValueError, KeyError, TypeError) as error:
                _send(self.sock, {"failed": EnclaveError(f"host: {error}").to_wire()})
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _answer(self, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "config":
                _send(self.sock, {"config": base64.b64encode(self.config).decode(), "layout": self.layout})
            case "evidence":
                evidence = self.attester.evidence(bytes.fromhex(message["report_data"]))
                _send(self.sock, {"evidence": evidence.to_wire()})
            case "dial" if message.get("peer") in self.dials:
                with self.dials[message["peer"]]() as connection:
                    _send(self.sock, {}, connection.fileno())
            case "listener" if self.listener is not None:
                _send(self.sock, {}, self.listener.fileno())
            case "sockets" if self.meshed:
                self.meshed = False
                self._give_wire(_give_sockets)
            case "outside" if message.get("host") in self.outside:
                self.outside -= {message["host"]}
                self._give_wire(partial(_give_sockets, host=message["host"]))
            case "device" if self.device is not None and "descriptor" in message:
                give, self.device = self.device, None
                name, program = give(message["descriptor"])
                _send(self.sock, {"name": name}, None if program is None else program.fileno())
            case "published" if message.get("name") in self.published:
                _send(self.sock, {}, self.published[message["name"]].fileno())
            case "unchanged" if self.unchanged is not None:
                self.unchanged()
                _send(self.sock, {})
            case "event":
                self.on_event(str(message.get("event")), message)
            case "failed":
                self.failure = from_wire(message["error"])
            case "exited":
                self.status = int(message["status"])
            case other:
                raise EnclaveError(f"host: nothing to answer to {other!r} with")

    def _give_wire(self, answer: Callable[[socket.socket], None]) -> None:
        """Answer on a wire of its own, from a thread of its own: it may take its time."""
        ours, theirs = socket_pair()
        with theirs:
            threading.Thread(target=answer, args=(ours,), name="enclave-sockets", daemon=True).start()
            _send(self.sock, {}, theirs.fileno())


def _give_sockets(sock: socket.socket, host: str = "") -> None:
    """Answer ``socket``, and ``resolve`` where there is a host to look up, until the other side is gone."""
    with sock, suppress(OSError, ValueError, EnclaveError):
        while (message := _receive(sock)[0]) is not None:
            try:
                if host and message.get("op") == "resolve":
                    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                    _send(sock, {"addresses": list(dict.fromkeys(str(each[4][0]) for each in found))[:_MOST]})
                    continue
                family = socket.AF_INET6 if message.get("family") == socket.AF_INET6 else socket.AF_INET
                with socket.socket(family, socket.SOCK_STREAM) as unconnected:
                    _send(sock, {}, unconnected.fileno())
            except OSError as error:
                _send(sock, {"failed": EnclaveError(f"host: {error}").to_wire()})


class Control:
    """The enclave's end. Calls may come from several threads."""

    def __init__(self, descriptor: int) -> None:
        self._sock = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()

    def ask(self, op: str, **arguments: object) -> tuple[dict[str, Any], int | None]:
        """Raises EnclaveError, or what the host reports, unless there is an answer."""
        return self._ask(op, arguments)

    def _ask(
        self, op: str, arguments: Mapping[str, object], sent: int | None = None
    ) -> tuple[dict[str, Any], int | None]:
        """The same; this descriptor goes along."""
        with self._lock:
            try:
                _send(self._sock, {"op": op, **arguments}, sent)
                answer, descriptor = _receive(self._sock)
            except (OSError, ValueError, RecursionError) as error:
                raise EnclaveError(f"host: {error}") from None
        if answer is None:
            raise EnclaveError("host: has gone away")
        if "failed" in answer:
            raise from_wire(answer["failed"])
        return answer, descriptor

    def ask_socket(self, op: str, **arguments: object) -> socket.socket:
        """A socket of the host's making."""
        _, descriptor = self.ask(op, **arguments)
        if descriptor is None:
            raise EnclaveError(f"host: sent no socket for {op}")
        try:
            return socket.socket(fileno=descriptor)
        except OSError as error:
            os.close(descriptor)
            raise EnclaveError(f"host: sent something else than a socket for {op}: {error}") from None

    def sockets(self) -> Control:
        """A wire of its own for sockets of the host's network."""
        return Control(self.ask_socket("sockets").detach())

    def ask_device(self, namespace: int) -> tuple[str, socket.socket | None]:
        """The name of a WireGuard device, now in the network of that descriptor, and what its program listens on."""
        answer, descriptor = self._ask("device", {}, namespace)
        name = answer.get("name")
        connection = None if descriptor is None else socket.socket(fileno=descriptor)
        if not isinstance(name, str) or not name.isascii() or not 0 < len(name) <= NAME_SIZE:
            raise EnclaveError("host: gave no device")
        return name, connection

    def outside(self, host: str) -> Control:
        """A wire of its own for connections to a host outside."""
        return Control(self.ask_socket("outside", host=host).detach())

    def resolve(self) -> list[str]:
        """The addresses of the host that this wire is for: as its owner says. Raises EnclaveError."""
        found = self.ask("resolve")[0].get("addresses")
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise EnclaveError("host: sent no addresses")
        return found

    def tell(self, op: str, **arguments: object) -> None:
        """Report something. A host that has gone away misses it."""
        with self._lock:
            try:
                _send(self._sock, {"op": op, **arguments})
            except OSError:
                return

    def event(self, event: str, **detail: object) -> None:
        """Report what happens. Of what does not fit, as a program may name its files, the beginning."""
        if len(json.dumps(detail, separators=(",", ":"))) > _MAX_MESSAGE - _LONGEST:
            detail = {name: _shortened(value) for name, value in detail.items()}
        self.tell("event", event=event, **detail)

    def check_unchanged(self) -> None:
        """Raises MeasurementError if a file that was measured is another by now."""
        self.ask("unchanged")

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence of this enclave over `report_data`."""
        answer, _ = self.ask("evidence", report_data=report_data.hex())
        return Evidence.from_wire(answer.get("evidence") or {})

    def close(self) -> None:
        self._sock.close()
