"""Our way: a commit of the mirror, with what it spends in files told apart from the rest."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from benchmarks.mirror.ways import KEY, Laps, State, Way
from strongroom.sealed import FileAnchor, Root, threads
from strongroom.storage import LocalDirectory, OpenMode, Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12


class Clock:
    """Seconds that several threads spend in a storage, and the bytes they write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.transfer = self.sync = 0.0
        self.written = 0

    def add(self, name: str, began: float, written: int = 0) -> None:
        spent = time.perf_counter() - began
        with self._lock:
            setattr(self, name, getattr(self, name) + spent)
            self.written += written

    def take(self) -> float:
        """The share of the time that has gone there since the last call: transfers are split over threads."""
        spent = self.transfer / threads._THREADS + self.sync
        self.transfer = self.sync = 0.0
        return spent


class _ClockedStorage:
    def __init__(self, inner: Storage, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        began = time.perf_counter()
        done = self._inner.read_into(offset, buffer)
        self._clock.add("transfer", began)
        return done

    def write_at(self, offset: int, data: Buffer) -> None:
        began = time.perf_counter()
        self._inner.write_at(offset, data)
        self._clock.add("transfer", began, memoryview(data).nbytes)

    def sync(self) -> None:
        began = time.perf_counter()
        self._inner.sync()
        self._clock.add("sync", began)


class _ClockedDirectory(LocalDirectory):
    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self._clock = clock

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> Storage:
        return cast("Storage", _ClockedStorage(super().open(name, mode, shared=shared), self._clock))


class _ClockedAnchor(FileAnchor):
    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self._clock = clock

    def advance(self, old: Root | None, new: Root) -> None:
        began = time.perf_counter()
        super().advance(old, new)
        self._clock.add("sync", began)


class Ours(Way):
    name = "Strongroom"
    mode: Literal["synchronous", "overlapped"] = "synchronous"

    def __init__(self, state: State, folder: Path) -> None:
        from strongroom.mirror.torch import Training

        super().__init__(state, folder)
        self.clock = Clock()
        self.open = self._open()
        self.training = Training(self.open, model=state.model, optimizer=state.optimizer)
        self._written = 0

    def _open(self) -> Any:
        from strongroom import mirror

        anchor = _ClockedAnchor(self.folder / "anchor", self.clock)
        # What a path on a disk or in tmpfs would get, but for the clock.
        return mirror.open(_ClockedDirectory(self.folder, self.clock), key=KEY, anchor=anchor, mode=self.mode)

    def save(self) -> Laps:
        self.clock.take()
        self.clock.written = 0
        began = time.perf_counter()
        commit = self.training.commit()
        stall = time.perf_counter() - began
        assert commit is not None
        commit.durable()
        total = time.perf_counter() - began
        access = self.clock.take()
        self._written = self.clock.written
        return Laps(total, total - access, access, stall if self.mode == "overlapped" else None)

    def restore(self) -> Laps:
        """As a training that starts: opens the mirror, which nobody else has open."""
        from strongroom.mirror.torch import CONVERT

        self.open.close()
        self.clock.take()
        began = time.perf_counter()
        opened = self._open()
        parts = opened.restore().part("parts", CONVERT)
        total = time.perf_counter() - began
        access = self.clock.take()
        assert len(parts) == 2
        opened.close()
        return Laps(total, total - access, access)

    def stored(self) -> int:
        return self._written

    def close(self) -> None:
        self.open.close()
        super().close()


class Overlapped(Ours):
    name = "Strongroom, overlapped"
    mode = "overlapped"
