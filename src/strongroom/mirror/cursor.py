"""The place of a training in its data: which epoch, which batch, and what the order was drawn from.

- The order of an epoch is drawn anew on resuming, from the generators as they were when it began, and the batches done
  are passed over without being loaded. So a sampler may draw what it likes when it begins and when it ends, and from a
  generator of its own at any time, but not in between from the global ones, which the training draws from too.
- The sampler is asked here, once an epoch, and not by PyTorch, which does so once or twice, as there are workers, and
  as they are left from the epoch before. What PyTorch draws itself comes from a generator that is no one else's.
- Workers draw augmentations from generators that are seeded for each batch, by the epoch's seed and the batch's number:
  what a worker did before does not matter, nor how many there are.
- With no workers, batches draw from the program's own generators, whose state is in every commit.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from strongroom.errors import UsageError

State = dict[str, Any]


class Cursor:
    """Batches of a loader over epochs, from any place on.

    Args:
        loader: a `DataLoader`, or something with ``state_dict`` and ``load_state_dict``, which then sees to itself.
        save, restore: the state of the global random generators.
    """

    def __init__(
        self, loader: Iterable[Any], save: Callable[[], State], restore: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._save = save
        self._restore = restore
        self._inner = loader
        self._own_state = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._numbered: _Numbered | None = None
        if not self._own_state:
            if not isinstance(loader, DataLoader):
                raise UsageError(
                    f"loader: a {type(loader).__name__}, wanted a DataLoader, or something with state_dict",
                    hint="put a SealedDataset into a DataLoader, or place its batches(epoch=, start=) yourself",
                )
            self._whole = loader
            self._draws = torch.Generator()
            self._loader, self._numbered = _rebuild(loader, self._draws)
        self._generators = [] if self._own_state else _generators(loader)
        self.begun = False  # whether `epochs` has given out any batches, since it was placed last
        self.epoch = 0
        self.batch = 0  # batches of the epoch that were given out
        self._seed = 0
        self._began: State | None = None  # the generators when the epoch began
        self._resume: State | None = None

    # The place.

    def state(self) -> State:
        """Where it is, to be given to `go_to`."""
        state: State = {
            "epoch": self.epoch,
            "batch": self.batch,
            "asked": self._numbered.asked if self._numbered else 0,
            "seed": self._seed,
            "began": self._began,
            "generators": [one.get_state() for one in self._generators],
            "batches": self._batches_in_epoch(),
        }
        if self._own_state:
            state["loader"] = self._inner.state_dict()  # type: ignore[attr-defined]
        return state

    def go_to(self, state: State) -> None:
        """Go on from there when `epochs` is called next.

        Raises:
            UsageError: in the middle of an epoch, which the loader has now another number of batches in.
        """
        were, now = state.get("batches"), self._batches_in_epoch()
        if state["began"] is not None and None not in (were, now) and were != now:
            raise UsageError(
                f"loader: {now} batches in an epoch, and the mirror is in the middle of one of {were}",
                hint="give the same data in the same batches, or go back to a step between two epochs",
            )
        self.begun = False
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._seed, self._began = state["seed"], state["began"]
        self._put_back_own(state["generators"])
        self._resume = state if state["began"] is not None else None
        if self._own_state:
            self._inner.load_state_dict(state["loader"])  # type: ignore[attr-defined]

    def _batches_in_epoch(self) -> int | None:
        if self._own_state:
            return None
        try:
            return len(self._whole)
        except (TypeError, NotImplementedError):  # a sampler need not know
            return None

    # The batches.

    def epochs(self, count: int) -> Iterator[tuple[int, Iterator[Any]]]:
        """(number, batches) of each epoch that is left of `count`; each is read to its end before the next."""
        while self.epoch < count:
            number = self.epoch
            yield number, self._batches(number)
            if self.epoch == number:  # the caller left the epoch before its end
                self._next_epoch()

    def _next_epoch(self) -> None:
        self.epoch, self.batch, self._began, self._resume = self.epoch + 1, 0, None, None

    def _batches(self, number: int) -> Iterator[Any]:
        self.begun = True
        if self._own_state:
            resumed, self._resume, self._began = self._resume, None, {}
            now = self._save()
            batches = iter(self._inner)
            if resumed is not None:  # what it drew to find its place, the training did not draw here
                self._restore(now)
            yield from self._count(batches)
            return
        assert self._numbered is not None  # noqa: S101  # it has no state of its own
        for sampler in _samplers(self._inner):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(number)
        resumed, self._resume = self._resume, None
        if resumed is None:
            self.batch = 0
            self._began = self._drawn()
            self._seed = int(torch.empty((), dtype=torch.int64).random_().item())
            self._numbered.start(0, 1, self._seed)
            batches = self._load()
        else:
            now = self._drawn()
            self._put_back(resumed["began"])
            torch.empty((), dtype=torch.int64).random_()  # the seed was drawn here
            self._numbered.start(self.batch, max(1, resumed["asked"]), self._seed)
            self._put_back(now)
            batches = self._load()
        yield from self._count(batches)

    def _load(self) -> Iterator[Any]:
        self._draws.manual_seed(self._seed)
        return iter(self._loader)

    def _count(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.batch += 1
            yield batch
        self._next_epoch()

    def _drawn(self) -> State:
        """Everything that an order is drawn from, as it is now."""
        return {"random": self._save(), "generators": [one.get_state() for one in self._generators]}

    def _put_back(self, state: State) -> None:
        self._restore(state["random"])
        self._put_back_own(state["generators"])

    def _put_back_own(self, states: list[torch.Tensor]) -> None:
        if len(states) != len(self._generators):
            raise UsageError(f"loader: has {len(self._generators)} generators of its own, and the mirror {len(states)}")
        for generator, saved in zip(self._generators, states, strict=True):
            generator.set_state(saved)


def _samplers(loader: Any) -> list[Any]:
    found = [loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
    return [one for i, one in enumerate(found) if one is not None and all(one is not other for other in found[:i])]


def _generators(loader: Any) -> list[torch.Generator]:
    found = [loader.generator, *(getattr(sampler, "generator", None) for sampler in _samplers(loader))]
    made: list[torch.Generator] = []
    for one in found:
        if isinstance(one, torch.Generator) and all(one is not other for other in made):
            made.append(one)
    return made


class _Batch(list[Any]):
    """The indices of a batch, and the seed for what loads it."""

    seed = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _batch, (list(self), self.seed)


def _batch(indices: Iterable[Any], seed: int) -> _Batch:
    made = _Batch(indices)
    made.seed = seed
    return made


_NO_BATCH: Final = object()


class _Numbered:
    """A sampler's batches with a seed each, from some batch on.

    Attributes:
        asked: how often the sampler was asked for a batch in this epoch: workers are given some ahead of time, and the
            last answer is that there is none. What it drew then is part of the generators' state, so after a restart
            it is asked as often before they are put back.
    """

    def __init__(self, inner: Any, *, single: bool) -> None:
        self._inner = inner
        self._single = single
        self._first = 0
        self._left: Iterator[_Batch] = iter(())
        self.asked = 0

    def start(self, first: int, asked: int, seed: int) -> None:
        """Have the sampler begin, ask it at once as often as it had been, and go on at batch `first`."""
        batches = iter(self._inner)
        again = [next(batches, _NO_BATCH) for _ in range(asked)]
        self.asked = asked
        self._first = first
        self._left = self._rest(again[first:], batches, first, seed)

    def __len__(self) -> int:
        return max(0, len(self._inner) - self._first)

    def __iter__(self) -> Iterator[_Batch]:
        return self._left

    def _rest(self, ahead: list[Any], batches: Iterator[Any], number: int, seed: int) -> Iterator[_Batch]:
        while True:
            if ahead:
                one = ahead.pop(0)
            else:
                self.asked += 1
                one = next(batches, _NO_BATCH)
            if one is _NO_BATCH:
                return
            yield self._seeded(one, seed, number)
            number += 1

    def _seeded(self, indices: Any, seed: int, number: int) -> _Batch:
        digest = hashlib.sha256(f"strongroom/mirror/batch/v0 {seed} {number}".encode()).digest()
        return _batch([indices] if self._single else indices, int.from_bytes(digest[:8], "little") >> 1)


class _Seeded:
    """A data set whose batches are loaded with generators of their own, in a worker."""

    def __init__(self, inner: Any, *, single: bool) -> None:
        self._inner = inner
        self._single = single

    def __len__(self) -> int:
        return len(self._inner)

    def __getitems__(self, batch: _Batch) -> Any:
        if get_worker_info() is not None:
            random.seed(batch.seed)
            np.random.seed(batch.seed % (1 << 32))  # the global one is what data sets use
            torch.manual_seed(batch.seed)
        if self._single:
            return self._inner[batch[0]]
        if hasattr(self._inner, "__getitems__") and self._inner.__getitems__:
            return self._inner.__getitems__(list(batch))
        return [self._inner[index] for index in batch]


def _rebuild(loader: DataLoader[Any], draws: torch.Generator) -> tuple[DataLoader[Any], _Numbered]:
    """A loader like the one given, whose batches have numbers and can begin anywhere, and which draws from `draws`."""
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise UsageError(
            f"loader: a {type(loader).__name__}, which gives batches in a way of its own, wanted a plain DataLoader",
            hint="do that in collate_fn or in the training, or give it state_dict and load_state_dict",
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UsageError(
            "loader: over an IterableDataset, which cannot be positioned, wanted one with indices",
            hint="use a map-style data set, or torchdata's StatefulDataLoader with a data set that has a state",
        )
    single = loader.batch_sampler is None
    numbered = _Numbered(loader.sampler if single else loader.batch_sampler, single=single)
    more: dict[str, Any] = {}
    if loader.num_workers:
        more["prefetch_factor"] = loader.prefetch_factor
        more["persistent_workers"] = loader.persistent_workers
        more["multiprocessing_context"] = loader.multiprocessing_context
    made: DataLoader[Any] = DataLoader(
        _Seeded(loader.dataset, single=single),  # type: ignore[arg-type]
        batch_sampler=numbered,  # type: ignore[arg-type,unused-ignore]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=draws,
        **more,
    )
    return made, numbered
