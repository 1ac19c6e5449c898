"""What tensors that are views of each other share: one value that is replaced when any of them is written to.

- A `Shared` never changes. A write makes another one, which has no opening and no mask yet: one mask hides one value.
- What is kept from one reading to the next (views, and so the openings of parts) is dropped by every write.
- A product keeps the fractional bits of both factors until somebody needs it short: ReLU drops them on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.protocols.owned import Owned, own
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import decode
from strongroom.mpc.shared import Shared, strided
from strongroom.mpc.tensor.world import World
from strongroom.mpc.transcript import shapes

Owners = frozenset[str]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its storage, as torch says it: in elements."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def whole(cls, size: tuple[int, ...]) -> Place:
        return cls(size, tuple(prod(size[i + 1 :]) for i in range(len(size))))

    def lifted(self) -> Place:
        """With an axis of one before the last: a sequence as an image."""
        return Place((*self.size[:-1], 1, self.size[-1]), (*self.stride[:-1], 0, self.stride[-1]), self.offset)

    def rows(self, count: int) -> Place:
        """Where `count` elements in a row stand for each one."""
        return Place((*self.size, count), (*(count * step for step in self.stride), 1), count * self.offset)


class Storage:
    """One secret value.

    Args:
        value: nothing if it is not computed.
        owners: whose secret it is.
        holder: the server that knows the value in the clear, if one does; the other's share is zero.
        classes: of an index below that number, whose value has one more axis, the last: 1 at the index, else 0.

    Attributes:
        writes: so far.
    """

    def __init__(
        self,
        world: World,
        value: Shared | None,
        owners: Owners,
        *,
        holder: int | None = None,
        classes: int | None = None,
    ) -> None:
        self.world, self.owners, self.holder, self.writes = world, owners, holder, 0
        self.classes = classes
        self._value = value
        self._views: dict[Place, Shared] = {}
        self._owned: dict[Place, Owned] = {}
        self.folded: Folded | None = None

    def _whole(self) -> Shared:
        if self._value is None:
            raise UsageError("tensor: was not computed: statistics and indices that a layer returns beside its result")
        return self._value

    def read(self, place: Place, *, raw: bool = False) -> Shared:
        """The value at a place; with `raw`, with as many fractional bits as it happens to have."""
        return self._read(self._inner(place), raw=raw)

    def _inner(self, place: Place) -> Place:
        return place if self.classes is None else place.rows(self.classes)

    def _read(self, place: Place, *, raw: bool = False) -> Shared:
        value = self._whole()
        if not raw and value.frac > value.party.settings.frac:
            self._value = value = truncate(value)
            self._views.clear()
        if place == Place.whole(value.shape):
            return value
        if place not in self._views:
            self._views[place] = value.strided(place.size, place.stride, place.offset)
        return self._views[place]

    def write(self, place: Place, value: Shared) -> None:
        """Replace what lies at a place. Raises UsageError if elements lie over each other there."""
        before, place = self._whole(), self._inner(place)
        if any(step == 0 and n > 1 for n, step in zip(place.size, place.stride, strict=True)):
            raise UsageError("write: some elements are the same ones, seen several times", hint="clone it first")
        if place != Place.whole(before.shape):
            before = self._read(Place.whole(before.shape))
            value = value if value.frac == before.frac else truncate(value)
            party = value.party
            party.enter("write", shapes(before.shape, place.size), place.stride, place.offset)
            if party.is_dealer:
                value = Shared.of_shape(party, before.shape, before.frac)
            else:
                words = np.array(before.words, order="C")
                strided(words, place.size, place.stride, place.offset)[...] = value.words
                value = Shared(party, words, before.frac)
        self._value, self.holder, self.folded = value, None, None
        self._views.clear()
        self._owned.clear()
        self.writes += 1

    def add_owners(self, owners: Owners) -> None:
        self.owners |= owners

    def read_owned(self, place: Place) -> Owned:
        """The value as weights that the holder multiplies by, masked for the other server when they are first used."""
        assert self.holder is not None  # noqa: S101  # the caller looked
        if place not in self._owned:
            value = self.read(place)
            self._owned[place] = own(
                value.party, lambda: decode(value.words, value.frac), owner=self.holder, shape=place.size
            )
        return self._owned[place]

    def copied(self, place: Place) -> Storage:
        """Another storage with the same value, which goes its own way from the next write."""
        value = self.read(place, raw=True)
        return Storage(self.world, value, self.owners, holder=self.holder, classes=self.classes)


@dataclass(frozen=True)
class Folded:
    """A batch normalisation as one factor and one summand for each channel, from whoever knows its four parts."""

    scale: Shared
    shift: Shared
    eps: float
    parts: tuple[tuple[Storage, int], ...]  # and how often each had been written to

    def holds(self, parts: tuple[Storage, ...], eps: float) -> bool:
        """Whether it is of these parts as they are now."""
        now = tuple((part, part.writes) for part in parts)
        return (
            eps == self.eps
            and len(now) == len(self.parts)
            and all(a == b for a, b in zip(now, self.parts, strict=True))
        )
