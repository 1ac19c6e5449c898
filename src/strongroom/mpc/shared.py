"""A value shared between the servers, and its mask.

One mask hides one value, opened once, and then serves any number of products and rearrangements of that value. The same
mask over two values would give away their difference. So:

- A `Shared` never changes: every operation makes a new one.
- A `Masked` is drawn from a position of a stream that was never used, and belongs to one `Shared`; views of it see the
  same opening and the same mask, rearranged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from strongroom.errors import UsageError
from strongroom.mpc.party import Party
from strongroom.mpc.ring import Words, encode
from strongroom.mpc.transcript import broadcast, shapes

View = Callable[[Words], Words]
Key = int | slice | EllipsisType | None


@dataclass(frozen=True, repr=False)
class Masked:
    """A value minus its mask, open to the servers.

    Attributes:
        opening: E = X - A; zeros at the dealer, which does not see it.
        mask: a server's share of A; A itself at the dealer.
    """

    opening: Words
    mask: Words

    def view(self, view: View) -> Masked:
        return Masked(view(self.opening), view(self.mask))


class Shared:
    """An array of ring elements, one additive share at each server.

    The dealer holds the shape alone: its `words` are zeros that take no memory.

    Attributes:
        words: this party's share, which nobody may write to.
        frac: fractional bits of the value.
    """

    def __init__(
        self, party: Party, words: Words, frac: int, *, base: Shared | None = None, view: View | None = None
    ) -> None:
        self.party = party
        self.words = np.asarray(
            words
        )  # NumPy makes scalars of arrays without a dimension, and those warn when they wrap
        self.frac = frac
        self._base, self._view = base, view
        self._masked: Masked | None = None

    @classmethod
    def of_shape(cls, party: Party, shape: Sequence[int], frac: int) -> Shared:
        """What the dealer has of a shared value."""
        return cls(party, _nothing(tuple(shape)), frac)

    @classmethod
    def public(cls, party: Party, values: ArrayLike, frac: int) -> Shared:
        """A value that everybody knows: P0's share is the value."""
        words = encode(values, frac, party.settings.bound)
        with party.operation("public", shapes(words.shape), frac, public=words):
            if party.first:
                return cls(party, words, frac)
            return cls.of_shape(party, words.shape, frac)

    def __repr__(self) -> str:
        return f"Shared({shapes(self.shape)}, frac={self.frac})"

    def __reduce__(self) -> Any:
        raise UsageError("a share cannot be pickled or copied", hint="it would be written in clear; reveal it first")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape

    @property
    def size(self) -> int:
        return self.words.size

    # Views: the same value rearranged, under the same mask.

    def reshape(self, *shape: int) -> Shared:
        return self._rearranged(lambda words: words.reshape(shape), "reshape", shapes(shape))

    def transpose(self, *axes: int) -> Shared:
        order = axes or tuple(reversed(range(len(self.shape))))
        return self._rearranged(lambda words: words.transpose(order), "transpose", order)

    def broadcast(self, shape: Sequence[int]) -> Shared:
        """The same elements, each as often as the shape says."""
        return self._rearranged(lambda words: np.broadcast_to(words, tuple(shape)), "broadcast", shapes(shape))

    @property
    def T(self) -> Shared:  # noqa: N802  # as NumPy's
        return self.transpose()

    def __getitem__(self, key: Key | tuple[Key, ...]) -> Shared:
        """A part, by integers, slices, None and Ellipsis. Opening it does not open the whole."""
        for each in key if isinstance(key, tuple) else (key,):
            if not (each is None or each is Ellipsis or isinstance(each, int | slice)):
                raise UsageError(f"index: got {type(each).__name__}, wanted integers, slices, None or Ellipsis")
        self.party.enter("part", shapes(self.shape), key)
        return Shared(self.party, self.words[key], self.frac, base=self, view=lambda words: words[key])

    def strided(self, shape: Sequence[int], strides: Sequence[int], offset: int) -> Shared:
        """The elements that `torch.as_strided` shows of the value laid out in C order; strides count elements."""

        def view(words: Words) -> Words:
            return strided(words, shape, strides, offset)

        self.party.enter("strided", shapes(self.shape, shape), tuple(strides), offset)
        # Whoever shows all of it opens all of it, so that every such view finds it open.
        every = prod(n for n, step in zip(shape, strides, strict=True) if step) == self.size
        return (_Rearranged if every else Shared)(self.party, view(self.words), self.frac, base=self, view=view)

    def _rearranged(self, view: View, *facts: object) -> Shared:
        self.party.enter(*map(str, facts))
        return _Rearranged(self.party, view(self.words), self.frac, base=self, view=view)

    # Masks

    @property
    def masked(self) -> Masked | None:
        """The opening that serves this value, if there is one."""
        if self._masked is None and self._base is not None and self._view is not None:
            whole = self._base.masked
            if whole is not None:
                self._masked = whole.view(self._view)
        return self._masked

    def to_open(self) -> Shared:
        """The value to open so that this one is: itself, or what it is a rearrangement of."""
        return self

    def set_masked(self, masked: Masked) -> None:
        """Keep an opening; a value has one."""
        if self._masked is not None:
            raise UsageError("mask: the value has one already")
        self._masked = masked

    # What needs no message

    def __add__(self, other: Shared | ArrayLike) -> Shared:
        return self._linear("add", other, np.add)

    def __sub__(self, other: Shared | ArrayLike) -> Shared:
        return self._linear("sub", other, np.subtract)

    def __neg__(self) -> Shared:
        with self.party.operation("neg", shapes(self.shape)):
            if self.party.is_dealer:
                return Shared.of_shape(self.party, self.shape, self.frac)
            return Shared(self.party, np.negative(self.words), self.frac)

    def _linear(self, name: str, other: Shared | ArrayLike, function: np.ufunc) -> Shared:
        """Share by share; something public is added by P0 alone."""
        public = None if isinstance(other, Shared) else encode(other, self.frac, self.party.settings.bound)
        if isinstance(other, Shared) and other.frac != self.frac:
            raise UsageError(f"{name}: got {self.frac} and {other.frac} fractional bits, wanted the same")
        words = other.words if isinstance(other, Shared) else public
        assert words is not None  # noqa: S101  # one or the other
        shape = broadcast(name, self.shape, words.shape)
        with self.party.operation(name, shapes(self.shape, words.shape), self.frac, public=public):
            if self.party.is_dealer:
                return Shared.of_shape(self.party, shape, self.frac)
            if public is not None and not self.party.first:
                return Shared(self.party, np.broadcast_to(self.words, shape), self.frac)
            return Shared(self.party, function(self.words, words), self.frac)

    def sum(self, *, keep: bool = False) -> Shared:
        """The sum along the last axis; with `keep`, over an axis of one."""
        with self.party.operation("sum", shapes(self.shape), int(keep)):
            if self.party.is_dealer:
                return Shared.of_shape(self.party, self.shape[:-1] + (1,) * keep, self.frac)
            return Shared(self.party, self.words.sum(-1, keepdims=keep), self.frac)

    def times_public(self, factor: ArrayLike, *, frac: int | None = None) -> Shared:
        """The product with public numbers at `frac` fractional bits, the settings' by default; it has those of both."""
        settings = self.party.settings
        own = settings.frac if frac is None else frac
        words = encode(factor, own, settings.bound)
        shape = broadcast("times public", self.shape, words.shape)
        total = self.frac + own
        with self.party.operation("times public", shapes(self.shape, words.shape), total, public=words):
            if self.party.is_dealer:
                return Shared.of_shape(self.party, shape, total)
            return Shared(self.party, self.words * words, total)

    def shifted(self, bits: int, frac: int) -> Shared:
        """The words times 2^bits, read with `frac` fractional bits: the value times 2^(bits + own frac - frac)."""
        with self.party.operation("shift", shapes(self.shape), self.frac, bits, frac):
            if self.party.is_dealer:
                return Shared.of_shape(self.party, self.shape, frac)
            return Shared(self.party, self.words << np.uint64(bits), frac)


class _Rearranged(Shared):
    """Every element of another value, in another order or shape."""

    def to_open(self) -> Shared:
        assert self._base is not None  # noqa: S101  # made so
        return self._base.to_open()


@lru_cache(1024)
def _nothing(shape: tuple[int, ...]) -> Words:
    """Zeros that take no memory, and that nobody may write to."""
    return np.broadcast_to(np.uint64(0), shape)


def strided(words: Words, shape: Sequence[int], strides: Sequence[int], offset: int) -> Words:
    """A view as `torch.as_strided` has it; of what does not lie in C order, a view of a copy that does."""
    if not any(words.strides):
        return np.broadcast_to(words.reshape(-1)[:1].reshape(()), tuple(shape))  # the dealer's zeros, in no memory
    flat = np.ascontiguousarray(words).reshape(-1)
    return np.lib.stride_tricks.as_strided(flat[offset:], tuple(shape), [8 * step for step in strides])


def concatenate(values: Sequence[Shared], axis: int = -1) -> Shared:
    """One value out of several, along an axis; open if all of them are."""
    values[0].party.enter("concatenate", shapes(*(value.shape for value in values)), axis)
    party, frac = values[0].party, values[0].frac
    if any(value.frac != frac for value in values):
        raise UsageError(f"concatenate: got {[value.frac for value in values]} fractional bits, wanted the same")
    joined = Shared(party, np.concatenate([value.words for value in values], axis), frac)
    opened = [value.masked for value in values]
    if all(opened):
        some = [each for each in opened if each is not None]
        opening = np.concatenate([each.opening for each in some], axis)
        joined.set_masked(Masked(opening, np.concatenate([each.mask for each in some], axis)))
    return joined
