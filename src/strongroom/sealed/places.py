"""Which places are free: copy on write never touches a block that a version still needed may reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

BUILT, PREPARED, NEWEST, HELD = 1, 2, 4, 8

# Which places one version reaches: bit p of an integer stands for place p, so that dozens of versions take little room.
Reach = int


def _table(change: Callable[[int], int]) -> bytes:
    """For `bytes.translate`: what becomes of each state."""
    return bytes(change(state) & 15 for state in range(256))


_DIGITS: Final = {bit: bytes(b"01"[bool(state & bit)] for state in range(256)) for bit in (BUILT, NEWEST)}
_ONLY_BUILT: Final = _table(lambda state: state & BUILT)
_CLEAR: Final = _table(lambda state: state & ~BUILT)
_PREPARE: Final = _table(lambda state: state & ~PREPARED | (PREPARED if state & BUILT else 0))
_COMMIT: Final = _table(
    lambda state: state & (BUILT | HELD) | (NEWEST if state & PREPARED else 0) | (HELD if state & NEWEST else 0)
)
_FORGET: Final = _table(lambda state: state & ~HELD)
_HOLD: Final = _table(lambda digit: HELD if digit == ord("1") else 0)
_START: Final = _table(lambda digit: BUILT | NEWEST if digit == ord("1") else 0)


def reach_of(flags: bytearray) -> Reach:
    """The reach whose places are the non-zero bytes of `flags`."""
    return int(flags.translate(_DIGITS[BUILT])[::-1] or b"0", 2)


class PlaceMap:
    """One byte for each place, rebuilt from the tree when a writer first writes; nothing of it rests on disk.

    Its bits say which versions reach the place: ``BUILT`` the one being built, ``PREPARED`` the one that is ready to be
    committed, ``NEWEST`` the newest committed, ``HELD`` any older one that has to stay whole. A place is free if it has
    none. Moving from commit to commit only renames bits.

    Args:
        first: lower places are no blocks.
        newest: what the newest committed version reaches, which is also what the one being built starts from.
    """

    def __init__(self, first: int, newest: Reach = 0) -> None:
        self._first = first
        self._states = bytearray(_flags(newest).translate(_START).ljust(first, b"\0"))
        self._cursor = first

    def hold(self, reaches: Iterable[Reach]) -> None:
        """From now on exactly these older versions stay whole, besides the newest."""
        union = 0
        for reach in reaches:
            union |= reach
        held = _flags(union).translate(_HOLD)
        kept = self._states.translate(_FORGET)
        merged = int.from_bytes(kept, "little") | int.from_bytes(held, "little")
        self._states = bytearray(merged.to_bytes(max(len(kept), len(held)), "little"))
        self._cursor = self._first

    def allocate(self, count: int) -> list[int]:
        """The lowest free places, in order; the version being built now reaches them."""
        states, cursor = self._states, self._cursor
        found: list[int] = []
        while len(found) < count:
            cursor = states.find(0, cursor)
            if cursor < 0:
                cursor = len(states)
                states.extend(bytes((BUILT,)) * (count - len(found)))
                found.extend(range(cursor, len(states)))
                cursor = len(states)
            else:
                states[cursor] = BUILT
                found.append(cursor)
                cursor += 1
        self._cursor = cursor
        return found

    def release(self, places: Iterable[int]) -> None:
        """The version being built no longer reaches these."""
        states = self._states
        for place in places:
            states[place] &= ~BUILT
            if not states[place] and place < self._cursor:
                self._cursor = place

    def built(self) -> int:
        """How many places the version being built reaches."""
        return self._states.translate(_ONLY_BUILT).count(BUILT)

    def built_from(self, place: int) -> bool:
        """Whether the version being built reaches `place` or a higher one."""
        return self._states.translate(_ONLY_BUILT).find(BUILT, place) >= 0

    def free_below(self, place: int) -> int:
        """How many free places there are below this one."""
        return self._states.count(0, self._first, place) + max(0, place - max(len(self._states), self._first))

    def clear(self) -> None:
        """The version being built reaches nothing."""
        self._states = self._states.translate(_CLEAR)
        self._cursor = self._first

    def prepare(self) -> int:
        """The version being built, as it is now, may be committed next; how many places it needs."""
        self._states = self._states.translate(_PREPARE)
        self._cursor = self._first
        return max(len(self._states.translate(_ONLY_BUILT).rstrip(b"\0")), self._first)

    def committed(self) -> Reach:
        """The version prepared is now the newest, and the one before it is held; what that one reaches."""
        before = int(self._states.translate(_DIGITS[NEWEST])[::-1] or b"0", 2)
        # `hold` with the reach returned keeps what this does; until then the bits are right too.
        self._states = self._states.translate(_COMMIT)
        return before

    def extent(self) -> int:
        """How many places the storage needs so that every version that counts is whole."""
        return max(len(self._states.rstrip(b"\0")), self._first)


def _flags(reach: Reach) -> bytes:
    """One digit, ``0`` or ``1``, for each place."""
    return format(reach, "b").encode()[::-1] if reach else b""
