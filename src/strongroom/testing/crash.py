"""What a power cut may leave of changes that were not synced: each kept, lost, or a write torn between sectors.

Pure: `FaultyStorage` and `FaultyDirectory` keep their changes here and ask which of them to apply.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from strongroom.storage import MemoryStorage

SECTOR = 512

# With at most this many changes not synced, every subset of them is a state.
EXHAUSTIVE = 10


@dataclass(frozen=True, slots=True)
class Torn:
    """A write of which only some sectors survive.

    Args:
        pieces: the indexes of those that do.
        grown: the file is as long as if all had, so that what is missing at its end reads as zeros.
    """

    pieces: frozenset[int]
    grown: bool


# What becomes of one change.
Fate = bool | Torn


@dataclass(eq=False, slots=True, kw_only=True)
class Change:
    """Something done to a file or to names.

    certain: synced, so it survives. doubtful: a sync of it failed, so that no later one makes it certain either, as
    Linux forgets what it could not write back.
    """

    certain: bool = False
    doubtful: bool = False

    @property
    def pieces(self) -> int:
        """Into how many parts it may be torn."""
        return 1


File = TypeVar("File")
C = TypeVar("C", bound=Change)


@dataclass(eq=False, slots=True)
class Write(Change):
    offset: int
    data: bytes

    @property
    def pieces(self) -> int:
        return -(-(self.offset % SECTOR + len(self.data)) // SECTOR)

    def apply(self, disk: MemoryStorage, fate: Fate) -> None:
        if not isinstance(fate, Torn):
            disk.write_at(self.offset, self.data)
            return
        end = self.offset + len(self.data)
        if fate.grown and disk.size() < end:
            disk.resize(end)
        first = self.offset - self.offset % SECTOR  # sectors are the disk's, wherever the write began
        for piece in sorted(fate.pieces):
            start = max(self.offset, first + piece * SECTOR)
            stop = min(end, first + (piece + 1) * SECTOR)
            disk.write_at(start, self.data[start - self.offset : stop - self.offset])

    def __str__(self) -> str:
        return f"write {self.offset}+{len(self.data)}"


@dataclass(eq=False, slots=True)
class Resize(Change):
    size: int

    def apply(self, disk: MemoryStorage, fate: Fate) -> None:
        disk.resize(self.size)

    def __str__(self) -> str:
        return f"resize {self.size}"


@dataclass(eq=False, slots=True)
class Rename(Change, Generic[File]):
    """`file` loses the name `old` and gets the name `new`; the one of the two is None where it is made or unlinked."""

    old: str | None
    new: str | None
    file: File

    def apply(self, names: dict[str, File]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.new is not None:
            names[self.new] = self.file

    def __str__(self) -> str:
        return f"create {self.new}" if self.old is None else f"{self.old} -> {self.new or 'unlinked'}"


@dataclass
class Changes(Generic[C]):
    """The changes of one file, or of a directory's names, since the last state that is certain."""

    pending: list[C] = field(default_factory=list)

    def synced(self) -> bool:
        """A sync returned; whether all that was done is certain now."""
        for change in self.pending:
            change.certain = change.certain or not change.doubtful
        return all(change.certain for change in self.pending)

    def failed(self) -> None:
        """A sync failed: what was not certain before never will be."""
        for change in self.pending:
            change.doubtful = not change.certain

    def uncertain(self) -> list[C]:
        return [change for change in self.pending if not change.certain]


def fates(changes: list[Change], limit: int, rng: random.Random) -> Iterator[tuple[Fate, ...]]:
    """At most `limit` different outcomes for `changes`, one fate for each.

    With at most `EXHAUSTIVE` changes: every subset kept, and each write torn in several ways with all others, none, or
    those before it kept. With more of them: those kept up to some point, all but one, only one, the same torn ones,
    then random mixtures. Where `limit` cuts, it keeps a random sample, with "none" and "all" always in it.
    """
    count = len(changes)
    if count <= EXHAUSTIVE:
        systematic = [*itertools.product((False, True), repeat=count)]
    else:
        upto = [tuple(i < k for i in range(count)) for k in range(count + 1)]
        only = [tuple(i == k for i in range(count)) for k in range(count)]
        systematic = [*upto, *only, *(tuple(not kept for kept in fate) for fate in only)]
    wanted: list[tuple[Fate, ...]] = [*dict.fromkeys([*systematic, *_torn(changes, rng)])]
    ends = [*dict.fromkeys([(False,) * count, (True,) * count])][:limit]
    yield from ends
    rest = [fate for fate in wanted if fate not in ends]
    seen = set(rest) | set(ends)
    if len(rest) > limit - len(ends):
        rest = rng.sample(rest, limit - len(ends))
    yield from rest
    left = limit - len(ends) - len(rest) if count > EXHAUSTIVE else 0
    for _ in range(left):
        mixture = _mixture(changes, rng)
        if mixture not in seen:
            seen.add(mixture)
            yield mixture


def _torn(changes: list[Change], rng: random.Random) -> Iterator[tuple[Fate, ...]]:
    for at, change in enumerate(changes):
        if change.pieces > 1:
            for others in (lambda i: True, lambda i: False, lambda i, at=at: i < at):
                for how in (_head, _tail, _scattered):
                    fate: list[Fate] = [others(i) for i in range(len(changes))]
                    fate[at] = Torn(how(change.pieces, rng), grown=rng.random() < 0.5)
                    yield tuple(fate)


def _mixture(changes: list[Change], rng: random.Random) -> tuple[Fate, ...]:
    density, tearing = rng.random(), rng.choice((0.0, 0.1, 0.5))
    return tuple(
        Torn(rng.choice((_head, _tail, _scattered))(change.pieces, rng), grown=rng.random() < 0.5)
        if change.pieces > 1 and rng.random() < tearing
        else rng.random() < density
        for change in changes
    )


def _head(pieces: int, rng: random.Random) -> frozenset[int]:
    return frozenset(range(rng.randrange(1, pieces)))


def _tail(pieces: int, rng: random.Random) -> frozenset[int]:
    return frozenset(range(rng.randrange(1, pieces), pieces))


def _scattered(pieces: int, rng: random.Random) -> frozenset[int]:
    return frozenset(piece for piece in range(pieces) if rng.random() < 0.5)


def survivors(changes: list[Change], fate: tuple[Fate, ...]) -> Callable[[Change], Fate]:
    """What `fate` says of a change; those that are certain survive."""
    chosen = dict(zip(map(id, changes), fate, strict=True))
    return lambda change: change.certain or chosen[id(change)]
