"""A party: one of the three processes that run the same program on shares.

Rules:

- P0 and P1 compute; D deals correlated randomness, sees no input and no result, and sends to P1 alone: what P0 needs
  of the dealer's, P0 draws itself.
- All randomness comes from streams whose keys two or three parties share. A stream only goes forward: no position is
  used twice, whatever a value, a retry or a program does.
- Whether something is drawn, opened or kept depends on the program alone.
- An epoch has its own keys. Anything that goes wrong inside an operation ends it, for all three: nothing is retried.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strongroom.channel import Channel
from strongroom.crypto import STREAM_KEY_SIZE, KeyStream, derive, digest, random_bytes
from strongroom.errors import MpcError, StrongroomError, UsageError
from strongroom.mpc.arena import Arena
from strongroom.mpc.beside import Beside
from strongroom.mpc.peer import NAMES, Array, Observer, Peer
from strongroom.mpc.ring import Settings, Words, encode
from strongroom.mpc.transcript import VERSION, Transcript

P0, P1, DEALER = 0, 1, 2
D = DEALER  # as messages name it
SERVERS = (P0, P1)

_PART = 32


class Meter(Protocol):
    """Watches a party at work: what `mpc.cost`, `mpc.profile` and `mpc.debug` hang on it. Never changes anything."""

    def began(self, name: str, facts: Sequence[object]) -> None:
        """An operation was entered into the transcript, with these facts."""

    def ended(self) -> None:
        """The operation that began last is over."""

    def gave(self, values: ArrayLike) -> None:
        """This party is the source of these values."""

    def multiplied(self, product: Callable[[Words, Words], Words], a: Words, b: Words) -> None:
        """A product in the ring."""

    def compared(self, count: int) -> None:
        """As many elements are compared."""

    def opening(self, words: Words, width: int, offset: int) -> None:
        """A server's shares are about to be opened under a mask of `width` bits, with `offset` added."""


class Stream:
    """A key stream that tells the observer what is drawn of it, and can be given its next key."""

    def __init__(self, name: str, key: bytes, rank: int, observer: Observer | None) -> None:
        self._name, self._rank, self.observer = name, rank, observer
        self._generation = 0
        self._set(key)

    def __repr__(self) -> str:
        return f"Stream({self._name})"

    def _set(self, key: bytes) -> None:
        self._key = key
        self._stream = KeyStream(derive(key, "strongroom mpc stream", length=STREAM_KEY_SIZE))

    def fill(self, out: Array) -> Array:
        """Overwrite an array in C order with fresh bytes, and return it."""
        start = self._stream.position
        self._stream.fill(out.reshape(-1).view(np.uint8))
        if self.observer is not None:
            name = f"{self._name}.{self._generation}"
            self.observer.drew(self._rank, name, start, self._stream.position)
        return out

    def words(self, shape: int | tuple[int, ...]) -> Words:
        """Fresh words in memory of their own."""
        return self.fill(np.empty(shape, np.uint64))

    def ratchet(self) -> None:
        """Go on under the next key; this one is forgotten."""
        self._generation += 1
        self._set(derive(self._key, "strongroom mpc ratchet"))


class _Operation:
    """One operation, from its entry into the transcript to its end."""

    __slots__ = ("_meter", "_party", "_scope")

    def __init__(self, party: Party, name: str, facts: Sequence[object]) -> None:
        self._party, self._scope, self._meter = party, party.arena.scope(), party.meter
        if self._meter is not None:
            self._meter.began(name, facts)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__()
        try:
            if error is not None:
                self._party.abort(error)
        finally:
            if self._meter is not None:
                self._meter.ended()


class Party:
    """One party's side of an epoch.

    Args:
        rank: 0 and 1 for the servers, 2 for the dealer.
        channels: one to each of the other two.
        settings: the same for all three.
        identities: what the peers' certificates are, where there are any; part of the epoch.
        program: digest of the program, if it is one file; part of the epoch, and the same for all three.
        observer: sees frames and draws.

    Attributes:
        rank, settings, program, arena, transcript: this party's own.
        peers: by rank.
        meter: what watches, if anything does.
        beside: what all three share where they are in one process, one trust domain.
        failed: why the epoch ended, if it was not finished.
        dry: whether there are no peers and no values, as where a program is only counted.

    Raises:
        MpcError: the others have other settings, another version or another program.
    """

    dry = False

    def __init__(
        self,
        rank: int,
        channels: Mapping[int, Channel],
        settings: Settings | None = None,
        *,
        identities: bytes = b"",
        program: bytes = b"",
        observer: Observer | None = None,
    ) -> None:
        self.rank = rank
        self._owner = os.getpid(), threading.get_ident()
        self.settings = settings or Settings()
        self.program = program or bytes(_PART)
        self.arena = Arena()
        self.meter: Meter | None = None
        self.beside: Beside | None = None
        self.identities = digest(identities) if identities else b""
        self.peers = {
            other: Peer(rank, other, channel, seconds=self.settings.seconds, observer=observer)
            for other, channel in sorted(channels.items())
        }
        self._ended: str | None = None
        self.failed: str | None = None
        try:
            self._begin_epoch(identities, observer)
        except BaseException as error:
            self.abort(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`finish`; if something was raised, tell the others that and end."""
        if error is not None:
            self.abort(error)
        else:
            self.finish()

    def __repr__(self) -> str:
        return f"Party({NAMES[self.rank]})"

    def _begin_epoch(self, identities: bytes, observer: Observer | None) -> None:
        if len(self.program) != _PART:
            raise UsageError(f"program: got a digest of {len(self.program)} bytes, wanted {_PART} bytes")
        agreed = digest(f"{VERSION} {self.settings.describe()}".encode())
        nonces = {self.rank: random_bytes(_PART)}
        parts: dict[int, bytes] = {}
        for other, peer in self.peers.items():
            part = random_bytes(_PART)
            got = bytearray(4 * _PART)
            out = np.frombuffer(agreed + self.program + nonces[self.rank] + part, np.uint8)
            peer.exchange([out], [np.frombuffer(got, np.uint8)])
            theirs, program, nonces[other], theirs_part = (bytes(got[i : i + _PART]) for i in range(0, len(got), _PART))
            if theirs != agreed:
                raise MpcError(
                    f"{peer.name}: has other settings or another version than {NAMES[self.rank]}",
                    hint=f"here: version {VERSION}, {self.settings.describe()}",
                )
            if program != self.program:
                raise MpcError(
                    f"{peer.name}: runs another program than {NAMES[self.rank]}: SHA-256 {program[:8].hex()}..., "
                    f"wanted {self.program[:8].hex()}...",
                    hint="all three run the same file; `sha256sum` shows which one differs",
                )
            parts[other] = part + theirs_part if self.rank < other else theirs_part + part
        everyone = b"".join(nonces[rank] for rank in sorted(nonces))
        self.epoch = digest(b"strongroom mpc epoch\0", everyone, agreed, self.program, digest(identities))
        self.transcript = Transcript(self.epoch)
        for peer in self.peers.values():
            peer.transcript = self.transcript
            # A second look: whoever has another view of the three nonces is found before anything is shared.
            peer.exchange([np.empty(0, np.uint8)], [np.empty(0, np.uint8)])
            peer.rounds = 0
        self._streams = {
            other: Stream(
                f"{min(self.rank, other)}{max(self.rank, other)}",
                derive(part, "strongroom mpc pair", context=self.epoch),
                self.rank,
                observer,
            )
            for other, part in parts.items()
        }
        self.coins = Stream("coins", derive(everyone, "strongroom mpc coins", context=self.epoch), self.rank, observer)

    @property
    def runs(self) -> bool:
        """Whether the epoch has not ended, and this is the process and the thread that began it."""
        return self._ended is None and (os.getpid(), threading.get_ident()) == self._owner

    @property
    def forked(self) -> bool:
        """Whether this is a fork of the process that began the epoch. It sends, logs and ends nothing: its copies of
        keys and counters are the parent's too."""
        return os.getpid() != self._owner[0]

    @property
    def is_dealer(self) -> bool:
        return self.rank == DEALER

    @property
    def first(self) -> bool:
        """Whether this is P0, which adds what is public."""
        return self.rank == P0

    def stream(self, other: int) -> Stream:
        """The stream shared with `other` alone."""
        return self._streams[other]

    @property
    def dealt(self) -> Stream:
        """A server's stream shared with the dealer."""
        return self._streams[DEALER]

    @property
    def rounds(self) -> int:
        """Exchanges with the other server so far."""
        return 0 if self.is_dealer else self.peers[1 - self.rank].rounds

    def given(self, values: Callable[[], ArrayLike], shape: Sequence[int]) -> Words:
        """What this party has, as words at the settings' fractional bits.

        Raises:
            UsageError: the values are of another shape, not finite, or beyond the settings' bound; this is a fork made
                while they were asked for.
        """
        found = values()
        self._check_owner("values")
        words = encode(found, self.settings.frac, self.settings.bound)
        if words.shape != tuple(shape):
            raise UsageError(f"values: got shape {words.shape}, wanted {tuple(shape)}")
        if self.meter is not None:
            self.meter.gave(found)
        return words

    def multiply(self, product: Callable[[Words, Words], Words], a: Words, b: Words) -> Words:
        """A product in the ring."""
        if self.meter is not None:
            self.meter.multiplied(product, a, b)
        return product(a, b)

    def exchange(self, out: Sequence[Array], into: Sequence[Array]) -> None:
        """One round between the servers."""
        self.peers[1 - self.rank].exchange(out, into)

    def deal(self, *out: Array) -> None:
        """The dealer's words for P1."""
        self.peers[P1].send(out)

    def take(self, *into: Array) -> None:
        """What `deal` sent, at P1."""
        self.peers[DEALER].receive(into)

    def fill_dealt(self, out: Array, *more: Array) -> Array:
        """A server's shares of what the dealer shares in one go: P0 draws them, P1 is sent them. Returns the first."""
        if self.first:
            for each in (out, *more):
                self.dealt.fill(each)
        else:
            self.take(out, *more)
        return out

    def enter(self, name: str, *facts: object, public: Words | None = None) -> None:
        """Enter into the transcript what neither draws nor sends.

        Raises:
            MpcError: the epoch has ended.
            UsageError: this is not the process or the thread that began it.
        """
        if self._ended is not None:
            raise MpcError(f"{name}: the epoch has ended: {self._ended}", hint="connect anew")
        self._check_owner(name)
        self.transcript.add(name, *facts, public=public)

    def _check_owner(self, name: str) -> None:
        if (os.getpid(), threading.get_ident()) != self._owner:
            # A copy of the streams would draw the same masks for other values.
            raise UsageError(
                f"{name}: a party belongs to the thread that made it", hint="no fork, no second thread: one program"
            )

    def operation(self, name: str, *facts: object, public: Words | None = None) -> _Operation:
        """Enter an operation into the transcript; a context to run it in. Whatever it raises ends the epoch.

        Raises as `enter`.
        """
        self.enter(name, *facts, public=public)
        return _Operation(self, name, facts)

    def ratchet(self) -> None:
        """Give every stream its next key: who takes a server later cannot open what went by before."""
        with self.operation("ratchet"):
            for stream in (*self._streams.values(), self.coins):
                stream.ratchet()

    def finish(self) -> None:
        """End in order: all three have come to the same end of the same program. A fork just lets go.

        Raises:
            DivergedError: they have not.
        """
        if self.forked:
            self._end("it goes on in the process that began it", None)
            return
        with self.operation("finish"):
            nothing: NDArray[Any] = np.empty(0, np.uint8)
            # The dealer asks P1 first: that is who finds out if the dealer ran something else.
            for _, peer in sorted(self.peers.items(), reverse=self.is_dealer):
                peer.exchange([nothing], [nothing])
        self._end("it was finished", None)

    def abort(self, error: BaseException) -> None:
        """End the epoch because of `error`, and tell the others; a fork just lets go. Never raises."""
        if self._ended is None:
            reason = error.message if isinstance(error, StrongroomError) else type(error).__name__
            self._end(reason, reason)

    def _end(self, ended: str, reason: str | None) -> None:
        self._ended, self.failed = ended, reason
        if self.forked:
            for peer in self.peers.values():
                peer.abandon()
            return
        if reason is not None:
            for peer in self.peers.values():
                peer.tell(reason)
        for peer in self.peers.values():
            peer.close()
