"""Several replicas of one policy on this machine: each an enclave with its own address, their output told apart."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from strongroom.cas.client.address import CasAddress, split_address
from strongroom.cas.policy.version import Policy
from strongroom.cli import output
from strongroom.enclave.launch import Enclave
from strongroom.errors import EnclaveError, InstanceLimitError, StrongroomError, UsageError

MOST_RESTARTS: Final = 100
_LIMIT_SECONDS = 2.0

Launch = Callable[[int, int | None, int | None], Enclave]
"""Launches the replica of that number, with these descriptors for its output and its errors."""


def check_count(policy: Policy, count: int, first: int) -> None:
    """Raises UsageError unless the policy has so many replicas, from that number on."""
    if policy.mesh is None:
        raise UsageError(
            f"--replicas: policy {policy.name} has no table [mesh], so they could not talk to each other",
            hint="[mesh] in the policy, and instances in [policy]",
        )
    if policy.instances is None:
        raise UsageError(
            f"--replicas: policy {policy.name} does not say how many there are",
            hint=f"instances = {first + count} in [policy]",
        )
    if first + count > policy.instances:
        raise UsageError(
            f"--replicas: got {count}, from number {first} on, and policy {policy.name} has {policy.instances}",
            hint="start fewer, or raise policy.instances in its next version",
        )


def listener_of(place: str | None, cas: CasAddress, *, wired: bool = False) -> tuple[socket.socket, str]:
    """A socket for an enclave's proxy, and where peers reach it: the address of this machine that the CAS sees.

    Args:
        place: ``ADDRESS`` or ``ADDRESS:PORT``, IPv6 in brackets; None for what leads to the CAS.
        wired: it is for a WireGuard device: a socket of UDP, which keeps the port until that is made.

    Raises:
        UsageError: it is not an address of this machine, or the port is taken.
    """
    host, port = _parted(place or "")
    if host in ("0.0.0.0", "::"):  # noqa: S104  # is refused
        raise UsageError(f"--mesh-address: {host} is no address that peers can reach", hint="one of this machine's")
    if not host:
        host = _towards(*split_address(cas.url))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if wired and family == socket.AF_INET6:
        raise UsageError(f"--mesh-address: {host}: WireGuard's peers are reached by IPv4", hint="such an address")
    try:
        if wired:
            listener = _kept(host, int(port or 0))
        else:
            listener = socket.create_server((host, int(port or 0)), family=family, backlog=1024)
    except OSError as error:
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        raise UsageError(
            f"--mesh-address: {shown}{f':{port}' if port else ''}: {refused(error)}",
            hint="another port, or none to have one chosen; the address is one of this machine's",
        ) from None
    at = listener.getsockname()[:2]
    return listener, ("[{}]:{}" if family == socket.AF_INET6 else "{}:{}").format(*at)


def refused(error: OSError) -> str:
    """Why nothing can listen there, without what Python adds of the address."""
    known = error.errno is not None and error.errno > 0  # those of getaddrinfo are below
    return (os.strerror(error.errno or 0) if known else error.strerror or str(error)).lower()


def _parted(place: str) -> tuple[str, str]:
    """Address and port, either of which may be empty. Raises UsageError."""
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        wrong = not bracket or (rest and not rest.startswith(":"))
        port = rest[1:]
    else:
        host, _, port = place.partition(":")
        wrong = False
    if wrong or (place and not host) or (port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16)):
        raise UsageError(f"--mesh-address: got {place[:80]!r}, wanted ADDRESS or ADDRESS:PORT", hint="IPv6 in brackets")
    return host, port


def _kept(host: str, port: int) -> socket.socket:
    kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        kept.bind((host, port))
    except OSError:
        kept.close()
        raise
    return kept


def _towards(host: str, port: int) -> str:
    """The address of this machine from which it reaches another. Nothing is sent."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"CAS: {host}: {(error.strerror or str(error)).lower()}", hint="--mesh-address says where peers reach this"
        ) from None


@dataclass
class _Replica:
    number: int
    enclave: Enclave
    readers: Sequence[threading.Thread]
    status: int | None = None
    failure: StrongroomError | None = None


class Replicas:
    """All of them, as one thing to wait for and to send signals to.

    Args:
        shown: given, their output goes where errors go.
        elastic: go on with those that are left when one has failed, and launch that again, as the same replica: once
            the CAS counts its lease no more. When one has ended well, none is launched again.
    """

    def __init__(
        self, numbers: Sequence[int], launch: Launch, *, elastic: bool = False, shown: int | None = None
    ) -> None:
        self._elastic = elastic
        self._to_errors = shown is not None
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._ending = False
        self._failed: _Replica | None = None  # the first that did
        self._launch = launch
        self._restarts = MOST_RESTARTS if elastic else 0
        self._replicas: list[_Replica] = []
        try:
            for number in numbers:
                self._replicas.append(self._start(number, launch))
        except BaseException:
            for each in self._replicas:
                with suppress(StrongroomError):  # one's own failure keeps none of the others running
                    each.enclave.stop()
            raise
        for each in self._replicas:
            threading.Thread(target=self._await, args=(each,), name=f"replica-{each.number}", daemon=True).start()

    @property
    def first(self) -> Enclave:
        return self._replicas[0].enclave

    def signal(self, number: int) -> None:
        """Pass a signal to every program; after one that ends them none is launched again."""
        if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._restarts = 0
        for each in self._replicas:
            if each.status is None and each.failure is None:
                each.enclave.signal(number)

    def wait(self) -> int:
        """Until all have ended: 0, or the status of the first that failed.

        Raises:
            StrongroomError: the first that failed did before its program did.
        """
        with self._ended:
            while any(each.status is None and each.failure is None for each in self._replicas):
                self._ended.wait(1.0)  # so that signals get their turn
                if self._failed is not None and not self._ending and not self._elastic:
                    self._end_others(self._failed)
        failed = self._failed
        for each in self._replicas:
            for reader in each.readers:
                reader.join()
        if failed is None:
            return 0
        if failed.failure is not None:
            raise failed.failure
        return failed.status or 0

    def _end_others(self, failed: _Replica) -> None:
        self._ending = True
        left = [each for each in self._replicas if each.status is None and each.failure is None]
        if left:
            which, s = ", ".join(str(each.number) for each in left), "s" * (len(left) > 1)
            output.note(f"{_ended(failed.number, failed.status, failed.failure)}; ending replica{s} {which}")
        for each in left:
            threading.Thread(target=each.enclave.end, daemon=True).start()

    def _start(self, number: int, launch: Launch) -> _Replica:
        pipes = [os.pipe() for _ in range(2)]
        try:
            enclave = launch(number, pipes[0][1], pipes[1][1])
        except BaseException:
            for descriptor in (each[0] for each in pipes):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (each[1] for each in pipes):
                os.close(descriptor)
        targets = (sys.stderr.buffer if self._to_errors else sys.stdout.buffer, sys.stderr.buffer)
        readers = [
            threading.Thread(target=self._copy, args=(pipe[0], target, number), daemon=True)
            for pipe, target in zip(pipes, targets, strict=True)
        ]
        for reader in readers:
            reader.start()
        return _Replica(number, enclave, readers)

    def _copy(self, descriptor: int, target: BinaryIO, number: int) -> None:
        """Line by line, with the replica's number before each."""
        prefix = f"[{number}] ".encode()
        with os.fdopen(descriptor, "rb") as stream:
            for line in stream:
                with self._lock, suppress(OSError, ValueError):
                    target.write(prefix + line + (b"" if line.endswith(b"\n") else b"\n"))
                    target.flush()

    def _await(self, replica: _Replica) -> None:
        while True:
            status, failure = self._outcome(replica)
            if not self._again(replica, status, failure):
                break
        with self._ended:
            replica.status, replica.failure = status, failure
            if self._failed is None and status != 0:
                self._failed = replica
            self._ended.notify_all()

    def _again(self, replica: _Replica, status: int | None, failure: StrongroomError | None) -> bool:
        """Whether a replica that has ended was launched once more."""
        with self._lock:
            over = self._ending or any(each.status == 0 for each in self._replicas)
            if status == 0 or over or not self._restarts:
                return False
            self._restarts -= 0 if isinstance(failure, InstanceLimitError) else 1
        if isinstance(failure, InstanceLimitError):
            time.sleep(_LIMIT_SECONDS)  # its lease counts yet
        else:
            output.note(f"{_ended(replica.number, status, failure)}; launching it again")
        try:
            fresh = self._start(replica.number, self._launch)
        except StrongroomError as error:
            output.note(f"replica {replica.number}: not launched again: {error.message}")
            return False
        replica.enclave, replica.readers = fresh.enclave, [*replica.readers, *fresh.readers]
        return True

    def _outcome(self, replica: _Replica) -> tuple[int | None, StrongroomError | None]:
        status: int | None = None
        failure: StrongroomError | None = None
        try:
            status = replica.enclave.wait()
        except StrongroomError as error:
            failure = error
        except Exception as error:  # whoever waits is to hear of it
            failure = EnclaveError(f"replica {replica.number}: {error}")
        if failure is not None and not failure.message.startswith("replica "):
            failure.message = f"replica {replica.number}: {failure.message}"
        return status, failure


def _ended(number: int, status: int | None, failure: StrongroomError | None) -> str:
    """How a replica ended; the message of its failure begins with its number."""
    return failure.message if failure is not None else f"replica {number} ended with exit status {status}"


def numbered(tell: Callable[[str, dict[str, Any]], None], number: int | None) -> Callable[[str, dict[str, Any]], None]:
    """The same, told which replica it is that something is told of."""
    if number is None:
        return tell

    def told(name: str, detail: Mapping[str, Any]) -> None:
        tell(name, {**detail, "replica": number})

    return told
