"""A party without peers, keys and values, which runs a program only to count what it does.

It runs the code of a real party: only what a real one would draw or be sent is zeros, what a source gives is not asked
for, and of all products of matrices and convolutions of the same shapes one is computed, to see how long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from strongroom.crypto import STREAM_KEY_SIZE, KeyStream
from strongroom.mpc.costs.figures import PARTIES, Figures, Place
from strongroom.mpc.costs.network import Step
from strongroom.mpc.costs.where import Modules
from strongroom.mpc.party import DEALER, Party, Stream
from strongroom.mpc.peer import NAMES, Array, Peer
from strongroom.mpc.protocols.linear import check_matmul
from strongroom.mpc.ring import Convolution, Settings, Transposed, Words
from strongroom.mpc.ring import matmul as ring_matmul

Product = Callable[[Words, Words], Words]

_BLOCK = 16  # bytes: a draw passes over the rest of its last one
_TIMED = 1 << 20
_SHORT = 2e-3  # seconds: a product that is faster is timed several times


@dataclass
class Counted:
    """One operation at one party, as it is counted."""

    name: str
    place: Place
    rounds: int = 0
    sent: int = 0
    frames: int = 0
    multiplied: int = 0
    compared: int = 0
    drawn: int = 0

    def figures(self, rank: int) -> Figures:
        """This party's own."""

        def own(value: int) -> tuple[int, int, int]:
            return tuple(value if each == rank else 0 for each in range(PARTIES))  # type: ignore[return-value]

        return Figures(
            self.rounds, own(self.sent), own(self.frames), own(self.multiplied), self.compared, own(self.drawn)
        )


@dataclass
class Stretch:
    """What a party did from one cut to the next.

    Attributes:
        steps: what it sent and received, in order, and how long it computed before each.
        rest: seconds that it computed after the last one.
    """

    operations: list[Counted] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rest: float = 0.0


class DryMeter:
    """Counts a dry party's work, and takes the time of what it computes.

    What is computed after an operation's last message counts with the next one's first.
    """

    def __init__(self, rank: int, modules: Modules) -> None:
        self.rank, self._modules = rank, modules
        self._stretch = Stretch()
        self._current: Counted | None = None
        self._more = 0.0  # seconds of what a real party computes and this one does not
        self._since = time.thread_time()

    def cut(self) -> Stretch:
        """End a stretch, and begin the next."""
        stretch, self._stretch = self._stretch, Stretch()
        stretch.rest = self._computed()
        self._current = None
        return stretch

    def _computed(self) -> float:
        """Seconds since this was last asked."""
        now, since, more = time.thread_time(), self._since, self._more
        self._since, self._more = now, 0.0
        return now - since + more

    def _step(self, peer: int, *, sends: bool, size: int) -> None:
        self._stretch.steps.append(Step(len(self._stretch.operations) - 1, self._computed(), peer, sends, size))

    # Of a party

    def began(self, name: str, facts: Sequence[object]) -> None:
        started = time.thread_time()
        self._current = Counted(name, self._modules.place())
        self._stretch.operations.append(self._current)
        self._since += time.thread_time() - started  # looking for the place is no part of it

    def ended(self) -> None:
        pass

    def gave(self, values: ArrayLike) -> None:
        pass

    def opening(self, words: Words, width: int, offset: int) -> None:
        pass

    def compared(self, count: int) -> None:
        if self._current is not None:
            self._current.compared += count

    def multiplied(self, product: Product, a: Words, b: Words) -> None:
        if self._current is not None:
            self._current.multiplied += multiplications(product, a.shape, b.shape)

    def skipped(self, seconds: float) -> None:
        """A real party would compute for as long."""
        self._more += seconds

    # Of its peers and streams

    def sent(self, peer: int, out: Sequence[Array]) -> None:
        size = sum(part.nbytes for part in out)
        if self._current is not None:
            self._current.sent += size
            self._current.frames += 1
        self._step(peer, sends=True, size=size)

    def received(self, peer: int, into: Sequence[Array]) -> None:
        for part in into:
            part[...] = 0
        self._step(peer, sends=False, size=sum(part.nbytes for part in into))

    def exchanged(self, peer: int) -> None:
        if self._current is not None and peer != DEALER != self.rank:
            self._current.rounds += 1

    def drew(self, size: int) -> None:
        if self._current is not None:
            self._current.drawn += size
        self._more += size * _seconds_a_byte()


class _DryPeer(Peer):
    """Takes everything, and says zeros."""

    def __init__(self, own: int, rank: int, meter: DryMeter) -> None:
        self.rank, self.name, self._meter = rank, NAMES[rank], meter
        self.sent = self.received = self.rounds = 0
        self.transcript = None

    def exchange(self, out: Sequence[Array], into: Sequence[Array]) -> None:
        self.rounds += 1
        self._meter.exchanged(self.rank)
        self.send(out)
        self.receive(into)

    def send(self, out: Sequence[Array]) -> None:
        self.sent += sum(part.nbytes for part in out)
        self._meter.sent(self.rank, out)

    def receive(self, into: Sequence[Array]) -> None:
        self.received += sum(part.nbytes for part in into)
        self._meter.received(self.rank, into)

    def tell(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Zeros(KeyStream):
    """A key stream without a key."""

    def __init__(self, meter: DryMeter) -> None:
        self.position, self._meter = 0, meter

    def fill(self, out: Any) -> None:
        np.frombuffer(out, np.uint8)[...] = 0
        size = memoryview(out).nbytes
        size += -size % _BLOCK
        self.position += size
        self._meter.drew(size)


class _DryStream(Stream):
    def __init__(self, name: str, rank: int, meter: DryMeter) -> None:
        self._meter = meter
        super().__init__(name, b"", rank, None)

    def _set(self, key: bytes) -> None:
        self._stream = _Zeros(self._meter)

    def ratchet(self) -> None:
        pass


class DryParty(Party):
    """One of three parties that never meet; `meter` counts what it does."""

    dry = True

    def __init__(self, rank: int, settings: Settings, meter: DryMeter) -> None:
        super().__init__(rank, {}, settings)
        self.meter = self._dry = meter
        others = [other for other in range(PARTIES) if other != rank]
        self.peers = {other: _DryPeer(rank, other, meter) for other in others}
        self._streams = {other: _DryStream(NAMES[other], rank, meter) for other in others}
        self.coins = _DryStream("coins", rank, meter)

    def given(self, values: Callable[[], ArrayLike], shape: Sequence[int]) -> Words:
        return np.zeros(tuple(shape), np.uint64)

    def multiply(self, product: Product, a: Words, b: Words) -> Words:
        self._dry.multiplied(product, a, b)
        shape = _result_shape(product, a.shape, b.shape)
        if shape is None:
            return product(a, b)
        started = time.thread_time()
        seconds = _seconds_of(product, a.shape, b.shape)
        # The one that is computed takes place outside of the clock.
        self._dry.skipped(seconds + started - time.thread_time())
        return np.zeros(shape, np.uint64)


def _result_shape(product: Product, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Of a product that need not be computed; nothing of one that is as fast as counting it."""
    if isinstance(product, Convolution | Transposed):
        return product.shape(a, b)
    return check_matmul(a, b) if product is ring_matmul else None


def multiplications(product: Product, a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Of ring elements, as the definition of the product has them."""
    if isinstance(product, Convolution):
        return prod(product.shape(a, b)) * prod(b[1:])
    if isinstance(product, Transposed):
        return prod(a) * prod(b[1:])
    if product is ring_matmul:
        return prod(check_matmul(a, b)) * a[-1]
    return prod(np.broadcast_shapes(a, b))


@lru_cache(maxsize=4096)
def _seconds_of(product: Product, a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """How long a product of these shapes takes here: the best of some times, in as many threads as there are or in one.

    One thread's is processor time, which others' work on this machine does not lengthen.
    """
    left, right = np.ones(a, np.uint64), np.ones(b, np.uint64)
    best = _best(lambda: product(left, right), time.perf_counter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(best, _best(lambda: product(left, right), time.thread_time))
    finally:
        torch.set_num_threads(threads)


def _best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _SHORT and len(times) < 10):
        started = clock()
        work()
        times.append(clock() - started)
        if sum(times) > 50 * _SHORT:
            break
    return min(times)


@lru_cache(maxsize=1)
def _seconds_a_byte() -> float:
    """How long drawing takes here."""
    stream, out = KeyStream(bytes(STREAM_KEY_SIZE)), np.empty(_TIMED, np.uint8)
    return _best(lambda: stream.fill(out), time.thread_time) / _TIMED
