"""bfloat16, the upper half of a float32, which NumPy lacks: arrays of it are uint16 here."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.errors import MissingDependencyError

Words = npt.NDArray[np.uint16]


def widen(words: Words) -> npt.NDArray[np.float32]:
    """The float32 of the same values; a new array."""
    wide = words.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def narrow(values: npt.NDArray[Any]) -> Words:
    """The nearest bfloat16 of each float32, the even one of two; what is no number stays none."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nans = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)  # rounding could carry one to infinity
    return np.where(nans, (bits >> np.uint32(16)) | np.uint32(0x40), nearest).astype(np.uint16)


def bfloat16_type() -> np.dtype[Any]:
    """The type that the package ml_dtypes adds to NumPy."""
    try:
        kind: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise MissingDependencyError("bfloat16: NumPy has no such type", hint="pip install ml_dtypes") from None
    return kind


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is that type."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2
