"""Data for Keras's ``fit`` whose place is known: batches in an order that is a function of the seed and the epoch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from strongroom.data import Batch, Batches, Order, SealedDataset
from strongroom.data.batch import stack
from strongroom.errors import UsageError


class OrderedData(keras.utils.PyDataset):  # type: ignore[misc,unused-ignore]
    """Batches for `fit` whose order is a function of the seed and the epoch, so that an epoch can begin at any batch.

    A batch is a tuple of arrays, (inputs, targets) as `fit` takes it: the fields of a sealed data set in their order.

    Args:
        source: a `SealedDataset`, or a tuple of arrays of one length.
        size: records in a batch.
        shuffle, seed, window, drop_last: as `SealedDataset.batches`. Tell `fit` ``shuffle=False`` in any case.
        transform: is called with each batch and a NumPy generator that is seeded for that batch alone. It must draw
            from nothing else: batches are loaded ahead, and again after a crash.
        workers: threads that load and transform the batches that come next, each one; 0 to do so when they are asked
            for. (Those that Keras has lose their place when a `fit` begins.)

    Raises:
        UsageError: arrays of different lengths; fewer records than make a batch; a negative number of workers.
    """

    def __init__(
        self,
        source: SealedDataset | Sequence[npt.NDArray[Any]],
        size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        window: int | None = None,
        drop_last: bool = False,
        transform: Callable[[Any, np.random.Generator], Any] | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        if workers < 0:
            raise UsageError(f"workers: {workers}, wanted 0 or more")
        if isinstance(source, SealedDataset):
            self._arrays: tuple[npt.NDArray[Any], ...] = ()
            made = source.batch_sampler(size, shuffle=shuffle, seed=seed, window=window, drop_last=drop_last)
        else:
            self._arrays = tuple(source)
            lengths = {len(array) for array in self._arrays}
            if len(lengths) != 1:
                raise UsageError(f"source: arrays of {len(lengths)} lengths, wanted one, at least")
            made = Batches(Order(lengths.pop(), shuffle, seed, window=window), size, drop_last)
        if not len(made):
            raise UsageError(f"source: {made.order.count} records make no batch of {size}, wanted at least one")
        self._source = source
        self._batches = made
        self._transform = transform
        self._place: tuple[Order, int] = (made.order, 0)
        self._next = 0  # what was asked for so far begins at 0 and ends before this
        self._lock = threading.Lock()  # TensorFlow asks in threads of its own
        self._source_lock = threading.Lock()
        self._count = workers
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Any]] = {}  # of the epoch that is given, by number
        # Keras asks for this once in a `fit`, and the first epoch may be shorter than the others: so it is a number
        # that can change, which NumPy has.
        self._left = np.array(len(made))

    @property
    def in_epoch(self) -> int:
        """Batches in a whole epoch."""
        return len(self._batches)

    @property
    def settings(self) -> dict[str, Any]:
        """What the order is made of."""
        order = self._batches.order
        kept = ("count", "shuffle", "seed", "window", "chunk")
        return {**{name: getattr(order, name) for name in kept}, "size": self._batches.size, "batches": self.in_epoch}

    def go_to(self, epoch: int, start: int = 0) -> None:
        """The next pass gives the batches of `epoch` from number `start` on.

        Raises:
            UsageError: there is no such batch.
        """
        if not 0 <= start < self.in_epoch:
            raise UsageError(f"start: {start}, wanted 0 to {self.in_epoch - 1}")
        with self._lock:
            self._place = replace(self._batches.order, epoch=epoch), start
            for ahead in self._ahead.values():
                ahead.cancel()
            self._ahead.clear()
            self._left[()] = self.in_epoch - start

    # What Keras asks for.

    @property
    def num_batches(self) -> Any:
        """Batches that the epoch gives: an integer array of no dimension, which follows `go_to`."""
        return self._left

    def __len__(self) -> int:
        return int(self._left)

    def __getitem__(self, index: int) -> Any:
        """A batch by its place among those left of the epoch.

        Raises:
            IndexError: there is none.
            UsageError: they are asked for in another order than theirs.
        """
        with self._lock:
            if index > self._next:
                raise UsageError(
                    f"batch {index}: asked for before batch {self._next}, wanted them in order",
                    hint="fit(..., shuffle=False): the data are shuffled as it is",
                )
            self._next = max(self._next, index + 1)
            order, start = self._place
            at = start + index
            if not 0 <= at < self.in_epoch:
                raise IndexError(f"batch: {index}, wanted 0 to {self.in_epoch - start - 1}")
            ahead = self._ahead.pop(at, None)
            for number in range(at + 1, min(at + 1 + self._count, self.in_epoch)):
                if number not in self._ahead:
                    self._ahead[number] = self._threads().submit(self._make, order, number)
        return self._make(order, at) if ahead is None else ahead.result()

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="batches")
        return self._pool

    def _make(self, order: Order, number: int) -> Any:
        size = self._batches.size
        batch = self._load(order.take(number * size, (number + 1) * size))
        if self._transform is None:
            return batch
        text = f"strongroom/mirror/keras/batch/v0 {order.seed} {order.epoch} {number}"
        drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        return self._transform(batch, np.random.default_rng(drawn))

    def example(self) -> Any:
        """The first batch of the first epoch."""
        batch = self._load(self._batches.order.take(0, self._batches.size))
        return batch if self._transform is None else self._transform(batch, np.random.default_rng(0))

    def _load(self, records: npt.NDArray[np.int64]) -> Any:
        if not isinstance(self._source, SealedDataset):
            return tuple(array[records] for array in self._arrays)
        with self._source_lock:
            batch = self._source.__getitems__(records)
        return batch.unwrap() if isinstance(batch, Batch) else stack(batch)
