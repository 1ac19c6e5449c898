"""Which places of a sealed file are free: copy on write never touches a block that a committed root may need."""

from __future__ import annotations

from typing import Final

FREE, LIVE, FRESH, DYING, DEAD = range(5)

_COMMIT: Final = bytes((FREE, LIVE, LIVE, DEAD, FREE)) + bytes(251)
_REACHED: Final = bytes((FREE, LIVE, FRESH, FREE, FREE)) + bytes(251)
_CLEAR: Final = bytes((FREE, DYING, FREE, DYING, DEAD)) + bytes(251)


class PlaceMap:
    """One byte for each place, rebuilt from the tree when a writer first writes; nothing of it rests on disk.

    ========= ==================================================== ==============
    state     reached by                                           after a commit
    ========= ==================================================== ==============
    ``FREE``  no root                                              ``FREE``
    ``LIVE``  the newest committed root                            ``LIVE``
    ``FRESH`` only the root being built                            ``LIVE``
    ``DYING`` the newest committed root, not the one being built   ``DEAD``
    ``DEAD``  only the root before the newest committed            ``FREE``
    ========= ==================================================== ==============

    Args:
        places: how many places the newest committed root may use.
        first: places below this hold the slots.
    """

    def __init__(self, places: int, first: int) -> None:
        self._first = first
        self._states = bytearray(max(places, first))
        self._cursor = first

    def mark(self, place: int, state: int) -> bool:
        """Note while rebuilding that a root reaches `place`; False if the place cannot be, or is taken."""
        if place >= len(self._states) or place < self._first or self._states[place] != FREE:
            return False
        self._states[place] = state
        return True

    def extend(self, places: int) -> None:
        """Make room to `mark` places up to this."""
        self._states.extend(bytes(max(0, places - len(self._states))))

    def is_marked(self, place: int) -> bool:
        return place < len(self._states) and self._states[place] != FREE

    def allocate(self) -> int:
        """A free place, now `FRESH`."""
        place = self._states.find(FREE, self._cursor)
        if place < 0:
            place = len(self._states)
            self._states.append(FRESH)
        else:
            self._states[place] = FRESH
        self._cursor = place + 1
        return place

    def release(self, place: int) -> None:
        """The root being built no longer reaches `place`."""
        if self._states[place] == FRESH:
            self._states[place] = FREE
            self._cursor = min(self._cursor, place)
        else:
            self._states[place] = DYING

    def clear(self) -> None:
        """The root being built reaches nothing."""
        self._states = self._states.translate(_CLEAR)
        self._cursor = self._first

    def reach(self) -> int:
        """How many places the file needs so that the root being built is whole."""
        return max(len(self._states.translate(_REACHED).rstrip(b"\0")), self._first)

    def extent(self) -> int:
        """How many places the file needs so that every root that counts is whole."""
        return max(len(self._states.rstrip(b"\0")), self._first)

    def commit(self) -> None:
        """The root being built is now the newest committed one."""
        self._states = self._states.translate(_COMMIT)
        self._cursor = self._first
