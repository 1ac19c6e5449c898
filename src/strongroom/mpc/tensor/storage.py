"""What tensors that are views of each other share: one value that is replaced when any of them is written to.

- A `Shared` never changes. A write makes another one, which has no opening and no mask yet: one mask hides one value.
- What is kept from one reading to the next (views, and so the openings of parts) is dropped by every write.
- A product keeps the fractional bits of both factors until somebody needs it short: ReLU drops them on its way.
- A result may be pending: it is computed when it is first read, or never, if only what is made of it is.
- What a module knows of its parts, it knows of their `Shared`: copies have the same one until either is written to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from strongroom.errors import UsageError
from strongroom.mpc.protocols.owned import Owned, own
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import decode
from strongroom.mpc.shared import Shared, strided
from strongroom.mpc.tensor.pending import Pending
from strongroom.mpc.tensor.world import World
from strongroom.mpc.transcript import shapes

if TYPE_CHECKING:
    import torch

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

    def covered(self, part: Place) -> bool:
        """Whether a part shows as many elements, none of them twice by a step of 0."""
        steps = all(step or n == 1 for n, step in zip(part.size, part.stride, strict=True))
        return prod(part.size) == prod(self.size) and steps

    def lifted(self) -> Place:
        """With an axis of one before the last: a sequence as an image."""
        return Place((*self.size[:-1], 1, self.size[-1]), (*self.stride[:-1], 0, self.stride[-1]), self.offset)

    def rows(self, count: int) -> Place:
        """Where `count` elements in a row stand for each one."""
        return Place((*self.size, count), (*(count * step for step in self.stride), 1), count * self.offset)


class Storage:
    """One secret value.

    Args:
        value: nothing if it is not computed, and will not be.
        owners: whose secret it is.
        holder: the server that knows the value in the clear, if one does; the other's share is zero.
        classes: of an index below that number, whose value has one more axis, the last: 1 at the index, else 0.

    Attributes:
        writes: so far.
        pending: what will compute the value.
        device: where the program believes the value to be, if not the CPU; the shares are in this process's memory.
    """

    def __init__(
        self,
        world: World,
        value: Shared | Pending | None,
        owners: Owners,
        *,
        holder: int | None = None,
        classes: int | None = None,
    ) -> None:
        self.world, self.owners, self.holder, self.writes = world, owners, holder, 0
        self.classes = classes
        self.pending = value if isinstance(value, Pending) else None
        self._value = value if isinstance(value, Shared) else None
        self._views: dict[Place, Shared] = {}
        self._shifted: dict[tuple[Place, int], Shared] = {}
        self._owned: dict[Place, Owned] = {}
        self.device: torch.device | None = None

    @property
    def empty(self) -> bool:
        """Whether there is no value, and will be none."""
        return self._value is None and self.pending is None

    def _whole(self) -> Shared:
        if self._value is None:
            if self.pending is None:
                raise UsageError(
                    "tensor: was not computed: statistics and indices that a layer returns beside its result"
                )
            self._value, self.pending = self.pending.value(), None
        return self._value

    def _shape(self) -> tuple[int, ...]:
        return self.pending.shape if self.pending is not None else self._whole().shape

    def read(self, place: Place, *, raw: bool = False) -> Shared:
        """The value at a place; with `raw`, with as many fractional bits as it happens to have."""
        return self._read(self._inner(place), raw=raw)

    def read_at(self, place: Place, frac: int) -> Shared:
        """The value at a place with that many fractional bits, if it has no more; kept, as a bias is read each time."""
        value = self.read(place)
        if value.frac >= frac:
            return value
        key = place, frac
        if key not in self._shifted:
            self._shifted[key] = value.shifted(frac - value.frac, frac)
        return self._shifted[key]

    def rectified(self, place: Place) -> Shared:
        """max(value, 0) at a place; of a value that is pending, in its rounds where that can be."""
        whole = Place.whole(self._shape()) if self.classes is None else None
        if self.pending is not None and whole is not None and whole.covered(place):
            fused = self.pending.rectified()
            if fused is not None:
                return fused if place == whole else fused.strided(place.size, place.stride, place.offset)
        value = self.read(place, raw=True)
        return relu(value, max(0, value.frac - value.party.settings.frac))

    def normalised(self, place: Place, folded: Folded) -> Shared | None:
        """The value after a batch normalisation, where that is pending with it."""
        if self.pending is None or place != Place.whole(self.pending.shape):
            return None
        return self.pending.normalised(folded)

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
        place = self._inner(place)
        if any(step == 0 and n > 1 for n, step in zip(place.size, place.stride, strict=True)):
            raise UsageError("write: some elements are the same ones, seen several times", hint="clone it first")
        whole = Place.whole(self._shape())
        if place != whole:
            before = self._read(whole)
            value = value if value.frac == before.frac else truncate(value)
            party = value.party
            party.enter("write", shapes(before.shape, place.size), place.stride, place.offset)
            if party.is_dealer:
                value = Shared.of_shape(party, before.shape, before.frac)
            else:
                words = np.array(before.words, order="C")
                strided(words, place.size, place.stride, place.offset)[...] = value.words
                value = Shared(party, words, before.frac)
        self._value, self.pending, self.holder = value, None, None
        self._views.clear()
        self._shifted.clear()
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
        made = Storage(self.world, value, self.owners, holder=self.holder, classes=self.classes)
        made.device = self.device
        return made


@dataclass(frozen=True)
class Folded:
    """A batch normalisation as one factor and one summand for each channel, from whoever knows its four parts.

    Attributes:
        parts: weight, bias and mean, those of them that there are. It is kept for the variance, as long as that is.
        holder: the server that knows factor and summand in the clear, if one does.
        kernels: by weights, the same times the factor.
    """

    scale: Shared
    shift: Shared
    eps: float
    parts: tuple[Shared, ...]
    holder: int | None = None
    kernels: WeakKeyDictionary[Shared, Shared | Owned] = field(default_factory=WeakKeyDictionary)

    def holds(self, parts: tuple[Shared, ...], eps: float) -> bool:
        """Whether it is of these parts."""
        return (
            eps == self.eps
            and len(parts) == len(self.parts)
            and all(a is b for a, b in zip(parts, self.parts, strict=True))
        )
