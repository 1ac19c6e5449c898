"""How three processes find each other: each party calls one of these, and has its `Party` when all three are there.

P1 connects to P0, and the dealer to both, so the dealer needs no open port. They may start in any order.

- Unix sockets: all parties on one machine, as one user. One trust domain: nothing is encrypted.
- TCP: mutual TLS 1.3 between parties whose certificates one authority issued.

A server that is given `appraise` takes a dealer for what that finds out of its channel, which is TLS 1.3 either way,
and for nothing else: the dealer runs in an enclave and has its key from nobody.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from strongroom.channel import Channel, Identity, TlsChannel, TlsStream, accept, bind, connect
from strongroom.crypto import Certificate
from strongroom.errors import (
    AttestationError,
    ChannelError,
    PeerIdentityError,
    StrongroomError,
    UnsupportedPlatformError,
    UsageError,
)
from strongroom.mpc.certificates import Credentials, named
from strongroom.mpc.door import PATIENCE, Door, Guest
from strongroom.mpc.party import DEALER, Party
from strongroom.mpc.peer import NAMES, Observer
from strongroom.mpc.ring import Settings

_RETRY = 0.05  # seconds between attempts to reach a party that has not started yet
_MOST_PATH = 90  # bytes; a socket's whole path may have 103 on macOS, 107 on Linux
Address = tuple[str, int]
Appraise = Callable[[TlsStream], object]
"""Finds out whether the dealer at the other end is the one meant; raises StrongroomError unless it is."""


def join_unix(
    rank: int,
    directory: Path,
    settings: Settings | None = None,
    *,
    wait: float | None = None,
    program: bytes = b"",
    observer: Observer | None = None,
    appraise: Appraise | None = None,
) -> Party:
    """Meet the other two at sockets in a directory that only this user can enter.

    Args:
        wait: seconds for the others to come, if not as long as for their bytes.
        program: digest of the program; the same for all three.
        appraise: at a server, of a dealer in an enclave.

    Raises:
        AttestationError: a dealer came, and the last that did was refused.
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

    def dial(other: int, patience: float) -> Guest:
        sock = _dial_unix(directory / f"{NAMES[other]}.sock", patience)
        sock.sendall(bytes([rank]))
        return Guest(other, Channel(sock, NAMES[other], seconds=chosen.seconds), sock)

    def greet(sock: socket.socket) -> Guest:
        other = (sock.recv(1) or b"\xff")[0]
        if not rank < other <= DEALER:
            raise PeerIdentityError(f"peer: said that it is party {other}")
        if other == DEALER and appraise is not None:
            identity = Identity.fresh(NAMES[rank], now=_now())
            return _appraised(accept(sock, expect=_expect_dealer, identity=identity), appraise, chosen)
        return Guest(other, Channel(sock, NAMES[other], seconds=chosen.seconds), sock)

    with contextlib.ExitStack() as stack:
        listener = _listen_unix(stack, directory / f"{NAMES[rank]}.sock") if rank != DEALER else None
        met = _meet(rank, dial, listener, greet, chosen.seconds if wait is None else wait)
    channels = {other: guest.channel for other, guest in met.items()}
    identities = b"".join(guest.leaf.der for guest in met.values() if guest.leaf is not None)
    return Party(rank, channels, chosen, identities=identities, program=program, observer=observer)


def join_tcp(
    rank: int,
    addresses: Mapping[int, Address],
    certificates: Path | Credentials,
    settings: Settings | None = None,
    *,
    listen: socket.socket | None = None,
    wait: float | None = None,
    program: bytes = b"",
    observer: Observer | None = None,
    appraise: Appraise | None = None,
) -> Party:
    """Meet the other two over TCP with mutual TLS 1.3.

    Args:
        rank: this party's.
        addresses: of the two servers; this party's own is listened on.
        certificates: this party's directory, as `certificates.create` makes it, or what it shows otherwise.
        listen: a bound socket to use instead of this party's own address.
        wait, program, appraise: as for `join_unix`.

    Raises:
        AttestationError: a dealer came, and the last that did was refused.
        UsageError: the certificates are another party's.
        PeerIdentityError: somebody else answers at a server's address.
        PortInUseError, ChannelError: this party's own address cannot be listened on.
        ChannelError: the others did not come in time.
    """
    chosen = settings or Settings()
    credentials = certificates if isinstance(certificates, Credentials) else Credentials.load(certificates)
    identity = credentials.identity  # one for all of these connections, which outlive it
    own = credentials.named(identity.chain)
    if own != rank:
        raise UsageError(f"certificates: {certificates} is not {NAMES[rank]}'s", hint="each host has its party's alone")
    expected = credentials.expect(range(rank + 1, len(NAMES)), _now)

    def deals(chain: Sequence[Certificate]) -> bool:
        return DEALER in (named(chain), credentials.named(chain))

    def expect(chain: Sequence[Certificate]) -> None:
        if appraise is not None and deals(chain):
            _expect_dealer(chain)
        else:
            expected(chain)

    def dial(other: int, patience: float) -> Guest:
        sock = socket.create_connection(addresses[other], patience)
        stream = connect(sock, expect=credentials.expect([other], _now), identity=identity)
        return Guest(other, TlsChannel(stream, NAMES[other], seconds=chosen.seconds), sock, stream.peer[0])

    def greet(sock: socket.socket) -> Guest:
        stream = accept(sock, expect=expect, identity=identity)
        found = credentials.named(stream.peer)
        if appraise is not None and deals(stream.peer):
            return _appraised(stream, appraise, chosen)
        assert found is not None  # noqa: S101  # the expectation named it
        return Guest(found, TlsChannel(stream, NAMES[found], seconds=chosen.seconds), sock, stream.peer[0])

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen or bind(*addresses[rank])) if rank != DEALER else None
        met = _meet(rank, dial, listener, greet, chosen.seconds if wait is None else wait)
    leaves = {other: guest.leaf for other, guest in met.items()} | {rank: identity.chain[0]}
    identities = b"".join(leaf.der for _, leaf in sorted(leaves.items()) if leaf is not None)
    channels = {other: guest.channel for other, guest in met.items()}
    return Party(rank, channels, chosen, identities=identities, program=program, observer=observer)


def _expect_dealer(chain: Sequence[Certificate]) -> None:
    if named(chain) != DEALER or len(chain) > 1:
        raise PeerIdentityError(
            f"{NAMES[DEALER]}: has its key from an authority, wanted a dealer in an enclave, which makes its own",
            hint="start the dealer with --enclave, or this server without --dealer-policy",
        )


def _appraised(stream: TlsStream, appraise: Appraise, settings: Settings) -> Guest:
    appraise(stream)
    _, sock = stream.release()
    return Guest(DEALER, TlsChannel(stream, NAMES[DEALER], seconds=settings.seconds), sock, stream.peer[0])


def _meet(
    rank: int,
    dial: Callable[[int, float], Guest],
    listener: socket.socket | None,
    greet: Callable[[socket.socket], Guest],
    wait: float,
) -> dict[int, Guest]:
    """The other two parties, by rank: this one dials those before it and hears those behind it."""
    deadline = time.monotonic() + wait
    met: dict[int, Guest] = {}
    with contextlib.ExitStack() as unmet:
        for other in range(min(rank, DEALER)):
            met[other] = _reach(dial, other, deadline)
            unmet.callback(met[other].channel.close)
        if listener is not None:
            with Door(listener, greet) as door:
                while missing := [other for other in range(len(NAMES)) if other not in (rank, *met)]:
                    guest = door.next(deadline)
                    if guest is None:
                        if isinstance(door.refusal, AttestationError):
                            raise door.refusal
                        raise _late([NAMES[other] for other in missing], door.refused)
                    unmet.callback(guest.channel.close)
                    for other in [other for other in met if other > rank]:
                        if other == guest.rank or met[other].left():  # it died meanwhile, and may begin anew
                            met.pop(other).channel.close()
                    met[guest.rank] = guest
        unmet.pop_all()
    return met


def _reach(dial: Callable[[int, float], Guest], other: int, deadline: float) -> Guest:
    while True:
        try:
            return dial(other, min(PATIENCE, max(deadline - time.monotonic(), _RETRY)))
        except PeerIdentityError:
            raise
        except (ChannelError, OSError) as error:  # not there yet, or just going
            if time.monotonic() > deadline:
                raise _unreached(NAMES[other], error) from None
        time.sleep(_RETRY)


def _unreached(name: str, error: ChannelError | OSError) -> ChannelError:
    reason = error.message if isinstance(error, StrongroomError) else (error.strerror or str(error)).lower()
    return ChannelError(f"{name}: not reached: {reason}", hint="start all three parties; is its address right?")


def _late(missing: Sequence[str], refused: str) -> ChannelError:
    hint = f"somebody else came and was refused: {refused}" if refused else "start all three parties"
    return ChannelError(f"{' and '.join(missing)}: did not connect in time", hint=hint)


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
    listener.listen()
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
