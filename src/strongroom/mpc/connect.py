"""How three processes find each other: each party calls one of these, and has its `Party` when all three are there.

P1 connects to P0, and the dealer to both, so the dealer needs no open port.

- Unix sockets: all parties on one machine, as one user. One trust domain: nothing is encrypted.
- TCP: mutual TLS 1.3 between parties whose certificates one authority issued.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from strongroom.channel import Channel, TlsChannel, accept, bind, connect
from strongroom.crypto import Certificate
from strongroom.errors import ChannelError, PeerIdentityError, UnsupportedPlatformError, UsageError
from strongroom.mpc.certificates import Credentials, named
from strongroom.mpc.party import DEALER, Party
from strongroom.mpc.peer import NAMES, Observer
from strongroom.mpc.ring import Settings

_RETRY = 0.05  # seconds between attempts to reach a party that has not started yet
_HANDSHAKE = 10.0
_MOST_PATH = 90  # bytes; a socket's whole path may have 103 on macOS, 107 on Linux
Address = tuple[str, int]


def join_unix(
    rank: int, directory: Path, settings: Settings | None = None, *, observer: Observer | None = None
) -> Party:
    """Meet the other two at sockets in a directory that only this user can enter.

    Raises:
        UsageError: others can enter the directory, its path is too long, or it holds an old socket.
        UnsupportedPlatformError: there are no Unix sockets here.
        ChannelError: the others did not come in time.
    """
    chosen = settings or Settings()
    if not hasattr(socket, "AF_UNIX"):
        raise UnsupportedPlatformError("Unix sockets: not on this system", hint="use join_tcp on 127.0.0.1")
    if len(os.fsencode(directory)) > _MOST_PATH:
        raise UsageError(f"directory: {directory} is longer than {_MOST_PATH} bytes", hint="a socket's path is short")
    if directory.stat().st_mode & 0o077:
        raise UsageError(f"directory: {directory} is open to others", hint=f"chmod 700 {directory}")
    deadline = time.monotonic() + chosen.seconds
    channels: dict[int, Channel] = {}
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as met:
        if rank != DEALER:
            listener = _listen_unix(stack, directory / f"{NAMES[rank]}.sock")
        for other in range(min(rank, DEALER)):
            path = directory / f"{NAMES[other]}.sock"
            sock = _dial(partial(_dial_unix, path, chosen.seconds), NAMES[other], deadline)
            sock.sendall(bytes([rank]))
            channels[other] = Channel(sock, NAMES[other], seconds=chosen.seconds)
            met.callback(channels[other].close)
        while rank != DEALER and len(channels) < 2:
            sock = _accept(listener, rank, deadline)
            other = _hello(sock)
            if not rank < other <= DEALER or other in channels:
                sock.close()
                continue
            channels[other] = Channel(sock, NAMES[other], seconds=chosen.seconds)
            met.callback(channels[other].close)
        met.pop_all()
    return Party(rank, channels, chosen, observer=observer)


def join_tcp(
    rank: int,
    addresses: Mapping[int, Address],
    certificates: Path,
    settings: Settings | None = None,
    *,
    listen: socket.socket | None = None,
    observer: Observer | None = None,
) -> Party:
    """Meet the other two over TCP with mutual TLS 1.3.

    Args:
        rank: this party's.
        addresses: of the two servers; this party's own is listened on.
        certificates: this party's directory, as `certificates.create` makes it.
        listen: a bound socket to use instead of this party's own address.

    Raises:
        PeerIdentityError: somebody else answers at a server's address.
        ChannelError: the others did not come in time.
    """
    chosen = settings or Settings()
    credentials = Credentials.load(certificates)
    own = named(credentials.identity.chain)
    if own != rank:
        raise UsageError(f"certificates: {certificates} is not {NAMES[rank]}'s", hint="each host has its party's alone")
    deadline = time.monotonic() + chosen.seconds
    channels: dict[int, Channel] = {}
    leaves: dict[int, Certificate] = {rank: credentials.identity.chain[0]}
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as met:
        if rank != DEALER:
            listener = stack.enter_context(listen or bind(*addresses[rank]))
        for other in range(min(rank, DEALER)):
            reach = partial(socket.create_connection, addresses[other], chosen.seconds)
            sock = _dial(reach, NAMES[other], deadline)
            sock.settimeout(_HANDSHAKE)
            stream = connect(sock, expect=credentials.expect([other], _now), identity=credentials.identity)
            leaves[other] = stream.peer[0]
            channels[other] = TlsChannel(stream, NAMES[other], seconds=chosen.seconds)
            met.callback(channels[other].close)
        while rank != DEALER and len(channels) < 2:
            sock = _accept(listener, rank, deadline)
            sock.settimeout(_HANDSHAKE)
            awaited = [other for other in range(rank + 1, 3) if other not in channels]
            try:
                stream = accept(sock, expect=credentials.expect(awaited, _now), identity=credentials.identity)
            except (PeerIdentityError, ChannelError):
                continue  # a stranger; the party that is awaited may still come
            found = named(stream.peer)
            assert found is not None  # noqa: S101  # the expectation named it
            leaves[found] = stream.peer[0]
            channels[found] = TlsChannel(stream, NAMES[found], seconds=chosen.seconds)
            met.callback(channels[found].close)
        met.pop_all()
    identities = b"".join(leaves[each].der for each in sorted(leaves))
    return Party(rank, channels, chosen, identities=identities, observer=observer)


def _hello(sock: socket.socket) -> int:
    """The rank that a peer on this machine says it has; no party's if it says nothing."""
    try:
        return (sock.recv(1) or b"\xff")[0]
    except OSError:
        return 255


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _listen_unix(stack: contextlib.ExitStack, path: Path) -> socket.socket:
    """A socket at `path`, where it stands until `stack` unwinds: nobody looks for it once all have met."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        listener.bind(str(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"socket: {path}: {reason}", hint="meet in a new, empty directory") from None
    stack.callback(path.unlink, missing_ok=True)
    listener.listen(2)
    return listener


def _dial_unix(path: Path, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def _dial(dial: Callable[[], socket.socket], name: str, deadline: float) -> socket.socket:
    while True:
        try:
            return dial()
        except OSError as error:
            if time.monotonic() > deadline:
                reason = (error.strerror or str(error)).lower()
                raise ChannelError(f"{name}: not reached: {reason}", hint="start all three parties") from None
        time.sleep(_RETRY)


def _accept(listener: socket.socket, rank: int, deadline: float) -> socket.socket:
    listener.settimeout(max(deadline - time.monotonic(), _RETRY))
    try:
        sock, _ = listener.accept()
    except OSError:
        raise ChannelError(
            f"{NAMES[rank]}: the other parties did not connect in time", hint="start all three"
        ) from None
    sock.settimeout(_HANDSHAKE)
    return sock
