"""Committed versions of a content, read from the storage: what they reach, and whether they are whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strongroom.errors import IntegrityError, TamperedError, TruncatedError
from strongroom.sealed import layout, places
from strongroom.sealed.blocks import BlockStore
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, GENERATION_SHIFT, PLACE_MASK, POINTER
from strongroom.sealed.places import Reach

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_BATCH = 4 << 20  # bytes of data read at once to be verified


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a content: what a commit record must remember of it.

    Attributes:
        pointer: of the root block; `HOLE` where there is none.
        length: of the content, in bytes.
        places: the storage has at least this many while the version counts.
    """

    pointer: bytes
    length: int
    places: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A block that cannot be read. `place` is where it should be, `index` its number in its level."""

    level: int
    index: int
    place: int
    error: IntegrityError


@dataclass(slots=True)
class Scrub:
    """What reading everything found.

    Attributes:
        blocks: data blocks read and whole, each counted once, in however many versions it is.
        holes: data blocks of the newest version that rest nowhere, or that a damaged interior block hides.
        unreachable_places: places of the storage that no version reaches, free to be written.
        problems: what is not whole.
    """

    blocks: int = 0
    holes: int = 0
    unreachable_places: int = 0
    problems: list[Problem] = field(default_factory=list)


def place_of(pointer: Buffer) -> int:
    """Where a pointer points; 0 is a hole."""
    return int.from_bytes(memoryview(pointer)[:8], "little") & PLACE_MASK


def generation_of(pointer: bytes) -> int:
    """The generation of the key that a pointer's block is sealed under."""
    return pointer[7]


def nodes(store: BlockStore, version: Version) -> Iterator[tuple[int, int, bytearray]]:
    """Every interior block as (level, index, block), a parent before its children; valid until the next one.

    Raises:
        IntegrityError: one is not what was committed.
    """
    _check_size(store, version)
    height = layout.height_of(version.length, store.block_size)
    boxes = [bytearray(store.block_size) for _ in range(height + 1)]
    if place_of(version.pointer):
        yield from _nodes(store, height, 0, version.pointer, boxes)


def _nodes(
    store: BlockStore, level: int, index: int, pointer: Buffer, boxes: list[bytearray]
) -> Iterator[tuple[int, int, bytearray]]:
    if level == 0:
        return
    node = boxes[level]
    store.read(level, index, pointer, node)
    yield level, index, node
    if level > 1:
        for slot, value in enumerate(store.fields(node)):
            if value:
                at = slot * POINTER.size
                yield from _nodes(store, level - 1, index * store.fanout + slot, node[at : at + POINTER.size], boxes)


def reach(store: BlockStore, version: Version, first: int) -> Reach:
    """Which places `version` reaches, the lowest possible being `first`.

    Raises:
        IntegrityError: an interior block is not what was committed, or a place is used twice or cannot be.
    """
    flags = bytearray()
    for _ in _checked_nodes(store, version, first, flags):
        pass
    return places.reach_of(flags)


def _checked_nodes(
    store: BlockStore, version: Version, first: int, flags: bytearray
) -> Iterator[tuple[int, int, bytearray]]:
    """As `nodes`, while `flags` gets a 1 for each place; at the end each was used once."""
    _check_size(store, version)
    flags.extend(bytes(version.places))
    count = 0

    def mark(found: list[int], level: int, index: int) -> None:
        nonlocal count
        count += len(found)
        try:
            for place in found:
                flags[place] = 1
        except IndexError:
            raise misplaced(store, level, index) from None
        if found and min(found) < first:
            raise misplaced(store, level, index)

    if root := place_of(version.pointer):
        mark([root], layout.height_of(version.length, store.block_size), 0)
    for level, index, node in nodes(store, version):
        mark([value & PLACE_MASK for value in store.fields(node) if value], level - 1, index * store.fanout)
        yield level, index, node
    if flags.count(1) != count:
        raise TamperedError(f"{store.what}: a place is used twice", hint=CHANGED_HINT)


def _check_size(store: BlockStore, version: Version) -> None:
    if version.places > store.places():
        raise TruncatedError(f"{store.what}: {store.places()} places, wanted {version.places}", hint=CUT_HINT)


def misplaced(store: BlockStore, level: int, index: int) -> TamperedError:
    """The error of a pointer to a place that cannot be."""
    return TamperedError(
        f"{store.what}: block {index} of level {level} or one after it: its place is used twice or out of range",
        hint=CHANGED_HINT,
    )


def verify(store: BlockStore, version: Version, first: int) -> int:
    """Read every block that `version` reaches; the number of data blocks read.

    Raises:
        IntegrityError: as `reach`, of data blocks too.
    """
    size, count = store.block_size, 0
    batch = max(1, _BATCH // size)
    scratch = memoryview(bytearray(min(batch, store.fanout) * size))
    if layout.height_of(version.length, size) == 0 and place_of(version.pointer):
        store.read(0, 0, version.pointer, scratch[:size])
        count += 1
    for level, index, node in _checked_nodes(store, version, first, bytearray()):
        if level == 1:
            fields = store.fields(node)
            count += store.fanout - fields.count(0)
            for slot in range(0, store.fanout, batch):
                stop = min(slot + batch, store.fanout)
                if any(fields[slot:stop]):
                    pointers = node[slot * POINTER.size : stop * POINTER.size]
                    store.read(0, index * store.fanout + slot, pointers, scratch[: (stop - slot) * size])
    return count


def generations(store: BlockStore, version: Version) -> set[int]:
    """The generations of the keys that the blocks of `version` are sealed under.

    Raises:
        IntegrityError: an interior block is not what was committed.
    """
    found = {generation_of(version.pointer)} if place_of(version.pointer) else set()
    for _, _, node in nodes(store, version):
        found.update(value >> GENERATION_SHIFT for value in store.fields(node) if value)
    return found


def scrub(store: BlockStore, versions: Sequence[Version], first: int) -> Scrub:
    """Read every block of all versions, the newest of which comes first, and go on where one is damaged."""
    found = Scrub()
    # What was read in each place, so that what versions share is read once: a hash of pointer, level and index.
    read = array("q", bytes(8 * store.places()))
    for at, version in enumerate(versions):
        height = layout.height_of(version.length, store.block_size)
        data = _scrub(store, height, 0, version.pointer, first, read, found)
        if at == 0:
            found.holes = -(-version.length // store.block_size) - data
    found.unreachable_places = max(0, len(read) - first - sum(1 for value in read if value))
    return found


def _scrub(
    store: BlockStore, level: int, index: int, pointer: Buffer, first: int, read: array[int], found: Scrub
) -> int:
    """Read one block and all below it; how many data blocks `pointer` reaches, of those not read before."""
    place = place_of(pointer)
    if not place:
        return 0
    mark: int = hash((bytes(pointer), level, index)) or 1
    if first <= place < len(read) and read[place] == mark:
        return 0
    block = bytearray(store.block_size)
    try:
        if not first <= place < len(read) or read[place]:
            raise misplaced(store, level, index)
        read[place] = mark
        store.read(level, index, pointer, block)
    except IntegrityError as error:
        found.problems.append(Problem(level, index, place, error))
        return int(level == 0)
    if level == 0:
        found.blocks += 1
        return 1
    data = 0
    for slot in range(store.fanout):
        child = block[slot * POINTER.size : (slot + 1) * POINTER.size]
        data += _scrub(store, level - 1, index * store.fanout + slot, child, first, read, found)
    return data
