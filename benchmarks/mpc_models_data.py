"""Test images, as models take them, and what is right; files are found under ``$STRONGROOM_DATA``."""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from strongroom.cli.digits import Digits, load_digits

CACHE = peers.CACHE.parent / "models"
"""Where models that a benchmark trained are kept."""

_RECORD = 1 + 3 * 32 * 32  # of CIFAR-10's "binary version": a label, then the planes


def data(*names: str) -> Path:
    """The directory that ``$STRONGROOM_DATA`` names.

    Raises:
        peers.UnavailableError: it does not have one of these.
    """
    directory = Path(os.environ.get("STRONGROOM_DATA", "."))
    for name in names:
        if not (directory / name).exists():
            raise peers.UnavailableError(f"STRONGROOM_DATA: names no directory with {name}")
    return directory


@cache
def mnist() -> Digits:
    return load_digits(data("mnist") / "mnist")


@cache
def mnist_test() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 10,000 test images, (N, 1, 28, 28) in [0, 1], and their labels."""
    digits = mnist()
    return digits.test_input(), digits.test_labels.astype(np.int64)


@cache
def cifar_test() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The test images that are there, (N, 3, 32, 32) bytes, and their labels."""
    (path,) = (data("cifar10") / "cifar10").glob("test_*.bin.gz")
    records: NDArray[Any] = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
