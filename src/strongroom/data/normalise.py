"""Values that are stored small and normalised when they are read, inside the enclave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.errors import FormatError, UsageError

Floats = npt.NDArray[np.float32]

# What float32 represents exactly, so that the result has the two roundings of the formula and no other.
EXACT = frozenset({"uint8", "int8", "uint16", "int16", "float16", "float32"})


@dataclass(frozen=True)
class Normalise:
    """What a value becomes when it is read: (value - mean) / std, in float32, each of the two steps rounded once.

    So bytes between 0 and 255 take a quarter of the memory that the floats a network wants do, on the disk and in the
    cache. ``Normalise(std=255)`` gives the very floats of ``images / 255``.

    Args:
        mean, std: in the unit of the stored values; rounded to float32. A number, or a sequence with one for each
            channel: for each place along the first dimension of a record.

    Raises:
        UsageError: one is not finite, `std` is not above 0, or a sequence is empty.
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _rounded(name, getattr(self, name)))

    @property
    def plain(self) -> bool:
        """Whether nothing but the type of a value changes."""
        return self.mean == 0 and self.std == 1

    def check(self, where: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, bfloat16: bool = False) -> None:
        """Raises UsageError unless an array of that shape, its number of records first, and type can be so read."""
        if not bfloat16 and dtype.newbyteorder("=").name not in EXACT:
            raise UsageError(
                f"{where}: normalise: of {dtype}, wanted one of {', '.join(sorted(EXACT))}, bfloat16",
                hint="other types do not fit into float32; normalise them in the program",
            )
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and (len(shape) < 2 or shape[1] != len(value)):
                raise UsageError(
                    f"{where}: normalise: {name} of {len(value)} channels, wanted one number, or one for each place "
                    f"along the first dimension of a record, which is of shape {shape[1:]}"
                )

    def of(self, values: npt.NDArray[Any], out: Floats) -> Floats:
        """Put the normalised `values`, the first dimension of which counts records, into `out`, of the same shape."""
        np.copyto(out, values)
        if self.mean != 0:
            np.subtract(out, _along(self.mean, out.ndim), out=out)
        if self.std != 1:
            np.divide(out, _along(self.std, out.ndim), out=out)
        return out

    # In the header of a file.

    def to_wire(self) -> dict[str, float | list[float]]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in (("mean", self.mean), ("std", self.std))
        }

    @classmethod
    def from_wire(cls, where: str, found: object) -> Normalise:
        """Raises FormatError unless `found` is what `to_wire` gave."""
        if not isinstance(found, Mapping) or found.keys() != {"mean", "std"}:
            raise FormatError(f"{where}: normalise: {str(found)[:100]}, wanted mean and std")
        for value in found.values():
            numbers = value if isinstance(value, list) else [value]
            if any(type(number) not in (int, float) for number in numbers):
                raise FormatError(f"{where}: normalise: {str(value)[:100]}, wanted a number or a list of numbers")
        try:
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})
        except UsageError as error:
            raise FormatError(f"{where}: {error.message}") from None


def _rounded(name: str, value: Any) -> float | tuple[float, ...]:
    try:
        given = np.asarray(value)
    except ValueError:  # lists of different lengths
        given = np.asarray(None)
    if given.size and given.dtype.kind not in "iuf":
        raise UsageError(f"normalise: {name} {str(value)[:100]!r}, wanted numbers")
    with np.errstate(over="ignore"):
        numbers = given.astype(np.float32)
    if numbers.ndim > 1 or not numbers.size:
        raise UsageError(f"normalise: {name} of shape {numbers.shape}, wanted a number, or one for each channel")
    if not np.isfinite(numbers).all() or (name == "std" and numbers.min() <= 0):
        raise UsageError(f"normalise: {name} {str(value)[:100]}, wanted finite numbers{' above 0' * (name == 'std')}")
    return tuple(numbers.tolist()) if numbers.ndim else float(numbers)


def _along(value: float | tuple[float, ...], dimensions: int) -> Floats:
    """As an array that stretches over records and over all but the first dimension of each."""
    numbers = np.asarray(value, np.float32)
    return numbers.reshape(-1, *[1] * (dimensions - 2)) if numbers.ndim else numbers
