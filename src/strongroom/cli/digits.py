"""The demo's data: handwritten digits that scikit-learn ships, or MNIST from a directory."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.errors import FormatError, MissingDependencyError, UsageError

_TRAIN = 1400  # of scikit-learn's 1,797 digits; the rest is the test set
_MAX_ITEMS = 1 << 20

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """Images, uint8 in [0, brightest], N x H x W, and labels."""

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array

    def test_input(self) -> Array:
        """The test images as the model takes them: float32, N x 1 x H x W, in [0, 1]."""
        return (self.test_images.astype(np.float32) / np.float32(self.train_images.max()))[:, None]


def load_digits(directory: Path | None) -> Digits:
    """MNIST from `directory` (IDX files as published, compressed or not), or scikit-learn's digits.

    Raises:
        UsageError: a file is missing.
        FormatError: a file is not IDX.
        MissingDependencyError: scikit-learn is not installed.
    """
    if directory is not None:
        files = [
            _read_idx(directory, f"{part}-{kind}")
            for part in ("train", "t10k")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        return Digits("MNIST", *files)
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError:
        raise MissingDependencyError("scikit-learn: is not installed", hint="pip install 'strongroom[demo]'") from None
    images, labels = bundled(return_X_y=True)
    # The file is sorted by writer; a fixed shuffle gives both sets all of them.
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].reshape(-1, 8, 8).astype(np.uint8), labels[order]
    return Digits("scikit-learn's digits", images[:_TRAIN], labels[:_TRAIN], images[_TRAIN:], labels[_TRAIN:])


def _read_idx(directory: Path, name: str) -> Array:
    """An IDX file of unsigned bytes: magic 0x0000 08 <dimensions>, each dimension a big-endian u32, then the data."""
    packed, plain = directory / f"{name}.gz", directory / name
    if packed.is_file():
        raw = gzip.decompress(packed.read_bytes())
    elif plain.is_file():
        raw = plain.read_bytes()
    else:
        raise UsageError(f"data: {directory} has no {name}.gz", hint="give a directory with MNIST's four files")
    dimensions = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    start = 4 + 4 * dimensions
    if dimensions not in (1, 3) or len(raw) < start:
        raise FormatError(f"data: {name} is not an IDX file of bytes")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if shape[0] > _MAX_ITEMS or len(raw) - start != int(np.prod(shape, dtype=np.int64)):
        raise FormatError(f"data: {name}: {len(raw) - start} bytes for shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
