"""`profile`: what a running party does, operation by operation.

It watches and changes nothing: a party that is profiled says the same to the others as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from strongroom.errors import UsageError
from strongroom.mpc.costs.dry import Counted, multiplications
from strongroom.mpc.costs.figures import By, Operation, Place, Row, Summed, count, duration, size, table
from strongroom.mpc.costs.trace import Span, write_tensorboard, write_trace
from strongroom.mpc.costs.where import Modules
from strongroom.mpc.party import DEALER, Party
from strongroom.mpc.peer import NAMES, Array, Observer, Peer
from strongroom.mpc.ring import Words
from strongroom.mpc.tensor.world import current


@dataclass
class Profile(Summed):
    """What one party did while it was watched. Made by `profile`; complete when that ends.

    Attributes:
        rank: the party's.
        operations: in order; their `seconds` are those spent `computing` and `waiting` for a peer, each from the end of
            the operation before. Figures are this party's own.
        operation_spans, module_spans, waits: when each began and ended.
    """

    rank: int
    operations: list[Operation] = field(default_factory=list)
    operation_spans: list[Span] = field(default_factory=list)
    module_spans: list[Span] = field(default_factory=list)
    waits: list[Span] = field(default_factory=list)

    def table(self, by: By = "module") -> str:
        """The sums of one kind, and of all."""
        head = NAMES[self.rank], "rounds", "sends", "products", "compared", "draws", "computing", "waiting"
        return table(head, map(self._cells, [*self.sums(by), self.total]))

    def _cells(self, row: Row) -> list[str]:
        f = row.figures
        sent, multiplied, drawn = (each[self.rank] for each in (f.sent, f.multiplied, f.drawn))
        exact = [str(f.rounds), size(sent), count(multiplied), count(f.compared), size(drawn)]
        return [row.label, *exact, *map(duration, row.seconds.values())]

    def __str__(self) -> str:
        return self.table()

    def chrome_trace(self, path: Path | str) -> None:
        """Write what ran when, in the Trace Event Format that Perfetto and chrome://tracing open.

        The party is a process of three rows: modules, operations, and waiting for a peer. Times are this machine's
        clock; `merge_traces` puts the three parties' files into one.
        """
        rows = {"modules": self.module_spans, "operations": self.operation_spans, "waiting": self.waits}
        write_trace(Path(path), self.rank, rows)

    def tensorboard(self, log_dir: Path | str, *, step: int = 0) -> None:
        """Write each module's figures as scalars, and the table as a text, below a run that is named as the party.

        Raises:
            MissingDependencyError: TensorBoard is not installed.
        """
        write_tensorboard(Path(log_dir) / NAMES[self.rank], self.rank, self.by_module, self.table(), step)


@contextmanager
def profile() -> Iterator[Profile]:
    """Watch the party of this thread's world::

        with mpc.profile() as seen:
            model(x)
        print(seen)
        seen.chrome_trace("P0.json")

    Raises:
        UsageError: there is no world here, or something watches its party already.
    """
    party = current().party
    if party.meter is not None:
        raise UsageError(
            "profile: something watches this party already", hint="one of cost, profile and debug at a time"
        )
    found = Profile(party.rank)
    with Modules() as modules, ExitStack() as stack:
        meter = _Watch(party, modules, found)
        stack.callback(meter.leave)
        yield found


class _Watch:
    """The meter, and the observer of the streams."""

    def __init__(self, party: Party, modules: Modules, found: Profile) -> None:
        self._party, self._modules, self._found = party, modules, found
        self._zero = time.time() - time.perf_counter()
        self._open: list[tuple[Counted, float]] = []
        self._since = time.perf_counter()
        self._waited = 0.0
        self._peers = party.peers
        modules.watch = self._module
        self._streams = [party.coins, *(party.stream(rank) for rank in party.peers)]
        self._observers = [each.observer for each in self._streams]
        for each in self._streams:
            each.observer = _Draws(each.observer, self)
        party.peers = {rank: _Timed(peer, self) for rank, peer in party.peers.items()}
        party.meter = self

    def leave(self) -> None:
        self._party.meter, self._party.peers = None, self._peers
        for stream, before in zip(self._streams, self._observers, strict=True):
            stream.observer = before
        self._modules.watch = None

    def _module(self, place: Place, start: float, end: float) -> None:
        self._found.module_spans.append(Span(place.module, place.kind, start + self._zero, end - start, {}))

    # Of a party

    def began(self, name: str, facts: Sequence[object]) -> None:
        counted = Counted(name, self._modules.place())
        self._open.append((counted, time.perf_counter()))

    def ended(self) -> None:
        if not self._open:
            return  # it began before anybody watched
        counted, start = self._open.pop()
        now = time.perf_counter()
        waiting, self._waited = self._waited, 0.0
        seconds = {"computing": max(0.0, now - self._since - waiting), "waiting": waiting}
        self._since = now
        figures = counted.figures(self._found.rank)
        self._found.operations.append(Operation(counted.name, counted.place, figures, seconds))
        facts: dict[str, object] = {
            "module": counted.place.module,
            "line": counted.place.where,
            "rounds": counted.rounds,
            "bytes sent": counted.sent,
            "compared": counted.compared,
        }
        self._found.operation_spans.append(Span(counted.name, "operation", start + self._zero, now - start, facts))

    def gave(self, values: ArrayLike) -> None:
        pass

    def opening(self, words: Words, width: int, offset: int) -> None:
        pass

    def compared(self, count: int) -> None:
        if self._open:
            self._open[-1][0].compared += count

    def multiplied(self, product: Callable[[Words, Words], Words], a: Words, b: Words) -> None:
        if self._open:
            self._open[-1][0].multiplied += multiplications(product, a.shape, b.shape)

    # Of peers and streams

    def drew(self, size: int) -> None:
        if self._open:
            self._open[-1][0].drawn += size

    def talked(self, peer: int, start: float, sent: int, frames: int, *, round_: bool) -> None:
        end = time.perf_counter()
        self._waited += end - start
        if self._open:
            counted = self._open[-1][0]
            counted.sent += sent
            counted.frames += frames
            counted.rounds += round_ and peer != DEALER != self._party.rank
        self._found.waits.append(
            Span(f"{NAMES[peer]}", "waiting", start + self._zero, end - start, {"bytes sent": sent})
        )


class _Timed(Peer):
    """A peer, and how long it takes."""

    def __init__(self, peer: Peer, watch: _Watch) -> None:
        self._peer, self._watch = peer, watch

    def __getattribute__(self, name: str) -> Any:
        if name in ("exchange", "send", "receive", "_peer", "_watch", "_talk", "__class__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_peer"), name)

    def exchange(self, out: Sequence[Array], into: Sequence[Array]) -> None:
        self._talk(lambda: self._peer.exchange(out, into), out, frames=1, round_=True)

    def send(self, out: Sequence[Array]) -> None:
        self._talk(lambda: self._peer.send(out), out, frames=1)

    def receive(self, into: Sequence[Array]) -> None:
        self._talk(lambda: self._peer.receive(into), (), frames=0)

    def _talk(self, talk: Callable[[], None], out: Sequence[Array], *, frames: int, round_: bool = False) -> None:
        start = time.perf_counter()
        try:
            talk()
        finally:
            sent = sum(part.nbytes for part in out)
            self._watch.talked(self._peer.rank, start, sent, frames, round_=round_)


class _Draws:
    """Tells the watch, and whoever observed before."""

    def __init__(self, before: Observer | None, watch: _Watch) -> None:
        self._before, self._watch = before, watch

    def sent(self, rank: int, to: int, payload: Sequence[Array]) -> None:
        if self._before is not None:
            self._before.sent(rank, to, payload)

    def drew(self, rank: int, stream: str, start: int, stop: int) -> None:
        self._watch.drew(stop - start)
        if self._before is not None:
            self._before.drew(rank, stream, start, stop)
