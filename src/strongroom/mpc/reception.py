"""Where a server takes requests of clients. Each connection is heard in a thread of its own, until the program asks.

- A client is who its certificate says; over a Unix socket, who it says it is.
- What a connection may send is known before it is read, and so is how many may be open at once: of those that have not
  said who they are, where the oldest makes room, and of each client.
- Clients take turns, whatever one of them asks for.
- A number is good for one of a client's requests in an epoch.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Self

from strongroom.channel import Channel, TlsChannel, accept, bind
from strongroom.crypto import STREAM_KEY_SIZE
from strongroom.errors import ChannelError, MpcError, PeerIdentityError, StrongroomError, UsageError
from strongroom.mpc import request as wire
from strongroom.mpc.certificates import Credentials, named_client
from strongroom.mpc.client import socket_path
from strongroom.mpc.door import dismiss
from strongroom.mpc.party import DEALER, P1
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import checked_name

Greet = Callable[[socket.socket], tuple[str, Channel]]
_IDLE = 600.0  # seconds that a connection may stay without a request
_GLANCE = 0.25  # seconds after which a connection sees that the service has ended
_GREETING = 10.0
_MOST_STRANGERS = 64  # connections that have not said whose they are
_MOST_OPEN = 128  # connections that have
_MOST_EACH = 8  # of them one client's; each has one request at a time
_MOST_REQUESTS = 1 << 20  # numbers of a client to remember in an epoch
_AGAIN = 0.1  # seconds after which requests that P1 did not have are proposed again
_MOST_BYTES = 1 << 28  # of one request


@dataclass
class Arrival:
    """A request that waits for the program, and the reply that its connection waits for."""

    client: str
    request: wire.Request
    reply: wire.Answer | StrongroomError | None = None
    taken: bool = False
    tries: int = 0
    came: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> tuple[str, bytes]:
        return self.client, self.request.id

    def finish(self, reply: wire.Answer | StrongroomError) -> None:
        self.reply = reply
        self.done.set()


class Reception:
    """A server's listener for clients; a context. The dealer has one too, at which nobody arrives.

    Made by `unix` or `tcp`, and given to `serve` or `requests`.

    Attributes:
        rank: the party's.
    """

    def __init__(
        self, rank: int, listener: socket.socket | None, greet: Greet, *, clients: Collection[str] | None
    ) -> None:
        self.rank = rank
        self._listener, self._greet = listener, greet
        self._clients = None if clients is None else frozenset(clients)
        self._changed = threading.Condition()
        self._arrivals: dict[tuple[str, bytes], Arrival] = {}  # in the order of their coming
        self._numbers: dict[str, set[bytes]] = {}  # by client
        self._turns: dict[str, int] = {}  # when each client was served last
        self._turn = 0
        self._strangers: dict[socket.socket, threading.Thread] = {}  # oldest first
        self._open: Counter[str] = Counter()  # connections by client
        self._path: Path | None = None  # of its socket
        self._welcome: dict[str, Any] | None = None
        self._shape: tuple[int | None, ...] = ()
        self._most, self._patience, self._limit = 1, 60.0, 0
        self._stopped = self._closed = False
        self._threads: list[threading.Thread] = []
        self._process = os.getpid()

    @classmethod
    def unix(cls, rank: int, directory: Path, *, clients: Collection[str] | None = None) -> Self:
        """Listen in a directory that only this user can enter: one trust domain.

        Args:
            clients: the names that are served; any by default.
        """
        if rank == DEALER:
            return cls(rank, None, _nobody, clients=clients)
        if directory.stat().st_mode & 0o077:
            raise UsageError(f"directory: {directory} is open to others", hint=f"chmod 700 {directory}")
        path = socket_path(directory, rank)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen()
        except OSError as error:
            listener.close()
            raise UsageError(f"socket: {path}: {(error.strerror or str(error)).lower()}") from None

        def greet(sock: socket.socket) -> tuple[str, Channel]:
            channel = Channel(sock, "client", seconds=_GREETING)
            return checked_name(wire.receive(channel, "client", wire.NAME, 256).decode("utf-8", "replace")), channel

        reception = cls(rank, listener, greet, clients=clients)
        reception._path = path
        return reception

    @classmethod
    def tcp(
        cls,
        rank: int,
        address: tuple[str, int] | socket.socket,
        certificates: Path,
        *,
        clients: Collection[str] | None = None,
    ) -> Self:
        """Listen at an address, or a bound socket, for clients with certificates of this party's authority."""
        if rank == DEALER:
            return cls(rank, None, _nobody, clients=clients)
        credentials = Credentials.load(certificates)

        def greet(sock: socket.socket) -> tuple[str, Channel]:
            expect = credentials.expect_client(lambda: dt.datetime.now(dt.UTC))
            stream = accept(sock, expect=expect, identity=credentials.identity)
            name = named_client(stream.peer)
            assert name is not None  # noqa: S101  # the expectation looked
            return checked_name(name), TlsChannel(stream, f"client {name}", seconds=_GREETING)

        listener = address if isinstance(address, socket.socket) else bind(*address)
        return cls(rank, listener, greet, clients=clients)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def begin(self, welcome: Mapping[str, Any], shape: Sequence[int | None], most: int, *, patience: float) -> None:
        """Let clients in. Raises UsageError if it was begun before, or a request would be too large."""
        if self._welcome is not None:
            raise UsageError("reception: serves one model, once", hint="make another one")
        elements = prod(most if size is None else size for size in shape)
        if 8 * elements > _MOST_BYTES:
            raise UsageError(f"shape: a request would have {8 * elements} bytes, wanted at most {_MOST_BYTES}")
        self._shape, self._most, self._patience = tuple(shape), most, patience
        self._limit = wire.HEAD + (STREAM_KEY_SIZE if self.rank == P1 else 8 * elements)
        self._welcome = dict(welcome)
        if self._listener is not None:
            self._listener.listen()
            self._start(self._listen, self._listener)

    def stop(self) -> None:
        """End the serving after the request under way; from any thread of P0, which says so to the others."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def waiting(self, seconds: float, most: int) -> list[Arrival]:
        """At P0, requests to propose to P1, fairest first; none if none comes in time, or it is stopped."""

        def fresh() -> bool:
            return self._stopped or any(not each.tries for each in self._untaken())

        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._untaken(), seconds)
            self._changed.wait_for(fresh, _AGAIN)
            if self._stopped:
                return []
            return sorted(self._untaken(), key=lambda each: (each.tries, self._turns.get(each.client, 0)))[:most]

    def take(self, arrival: Arrival) -> None:
        """At P0, work on a request; its client has had its turn."""
        with self._changed:
            arrival.taken = True
            self._turn += 1
            self._turns[arrival.client] = self._turn

    def find(self, keys: Iterable[tuple[str, bytes]]) -> tuple[int, Arrival] | None:
        """At P1, the first of these requests that has come here too, which is taken, and its place among them."""
        with self._changed:
            for i, key in enumerate(keys):
                found = self._arrivals.get(key)
                if found is not None and not found.taken:
                    found.taken = True
                    return i, found
        return None

    def close(self, error: BaseException | None = None) -> None:
        """Send everybody away, with the reason; a fork just lets go. Never raises."""
        if os.getpid() != self._process:
            if self._listener is not None:
                self._listener.close()
            return
        reason = error.message if isinstance(error, StrongroomError) else type(error).__name__ if error else "is over"
        with self._changed:
            self._closed = True
            for arrival in self._arrivals.values():
                if not arrival.done.is_set():
                    arrival.finish(MpcError(f"service: ended: {reason}"))
            for sock in self._strangers:
                dismiss(sock)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        for thread in self._threads:
            thread.join(_GREETING)

    def _untaken(self) -> list[Arrival]:
        return [each for each in self._arrivals.values() if not each.taken]

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name="mpc reception", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _listen(self, listener: socket.socket) -> None:
        listener.settimeout(_GLANCE)
        while not self._closed:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._make_room()
            sock.settimeout(_GREETING)
            with self._changed:
                self._strangers[sock] = self._start(self._hear, sock)

    def _make_room(self) -> None:
        """One more stranger may come: who has been silent for longest leaves, and its thread ends before the next."""
        with self._changed:
            if len(self._strangers) < _MOST_STRANGERS:
                return
            oldest, thread = next(iter(self._strangers.items()))
            del self._strangers[oldest]
            dismiss(oldest)
        thread.join()

    def _hear(self, sock: socket.socket) -> None:
        """One connection, from its greeting to its end."""
        channel = None
        try:
            client, channel = self._greet(sock)
            with self._counted(sock, client):
                assert self._welcome is not None  # noqa: S101  # begun before anybody is let in
                wire.send_text(channel, wire.WELCOME, self._welcome)
                while not self._closed and self._await(channel):
                    self._serve(client, channel)
        except (StrongroomError, OSError) as error:
            if channel is not None and isinstance(error, StrongroomError):
                with contextlib.suppress(ChannelError):
                    wire.refuse(channel, error)
        finally:
            with self._changed:
                self._strangers.pop(sock, None)
            if channel is not None:
                channel.close(linger=1.0)
            else:
                sock.close()

    @contextlib.contextmanager
    def _counted(self, sock: socket.socket, client: str) -> Iterator[None]:
        """While a connection is a client's, and no stranger's any more. Raises StrongroomError if it may not be."""
        if self._clients is not None and client not in self._clients:
            raise PeerIdentityError(f"client: {client} is not served here", hint="ask who runs the servers")
        with self._changed:
            if self._strangers.pop(sock, None) is None:
                raise ChannelError("client: took too long to say who it is")
            if self._open[client] >= _MOST_EACH:
                raise MpcError(
                    f"client: {client} has {_MOST_EACH} connections already", hint="close one, or ask over one for all"
                )
            if self._open.total() >= _MOST_OPEN:
                raise MpcError("service: has no room for one more connection", hint="try again later")
            self._open[client] += 1
        try:
            yield
        finally:
            with self._changed:
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]

    def _await(self, channel: Channel) -> bool:
        """Whether the client has something to say before it has been silent for too long."""
        deadline = time.monotonic() + _IDLE
        while not self._closed and time.monotonic() < deadline:
            if channel.hears(_GLANCE):
                return True
        return False

    def _serve(self, client: str, channel: Channel) -> None:
        payload = wire.receive(channel, f"client {client}", wire.REQUEST, self._limit)
        request = wire.Request.parse(payload, seed=self.rank == P1)
        if not wire.fits(request.shape, self._shape, self._most):
            wanted = ", ".join(f"1 to {self._most}" if size is None else str(size) for size in self._shape)
            raise UsageError(f"shape: got {request.shape}, wanted ({wanted})")
        arrival = Arrival(client, request)
        with self._changed:
            numbers = self._numbers.setdefault(client, set())
            if request.id in numbers:
                raise MpcError(
                    "request: its number was used before in this epoch", hint="a request is made anew, not sent again"
                )
            if len(numbers) >= _MOST_REQUESTS or self._closed:
                raise MpcError("service: takes no more requests in this epoch")
            numbers.add(request.id)
            self._arrivals[arrival.key] = arrival
            self._changed.notify_all()
        try:
            while not arrival.done.wait(self._patience):
                with self._changed:
                    if not arrival.taken and self.rank == P1:
                        # P0 asks for the requests that it has, in their order.
                        raise MpcError(
                            "request: P0 did not ask for it", hint="a client sends its request to both servers"
                        )
        finally:
            with self._changed:
                self._arrivals.pop(arrival.key, None)
        if isinstance(arrival.reply, StrongroomError):
            raise arrival.reply
        assert arrival.reply is not None  # noqa: S101  # it is done
        wire.send(channel, wire.ANSWER, arrival.reply.pack())


def _nobody(sock: socket.socket) -> tuple[str, Channel]:
    raise PeerIdentityError("client: the dealer serves nobody")


def describe(
    rank: int, epoch: bytes, model: bytes, shape: Sequence[int | None], most: int, frac: int, bound: int
) -> dict[str, Any]:
    """A server's welcome."""
    return {
        "version": wire.VERSION,
        "party": NAMES[rank],
        "epoch": epoch.hex(),
        "model": model.hex(),
        "shape": list(shape),
        "most": most,
        "frac": frac,
        "bound": bound,
    }
