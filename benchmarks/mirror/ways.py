"""A state of a training, and what every way to save and restore it is measured by."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

Kind = Literal["save", "restore"]

KEY: Final = bytes(range(32))
KINDS: Final[tuple[Kind, ...]] = ("save", "restore")

_SHARES: Final = (0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04)  # of the state, for its eight large tensors
_WIDTH: Final = 256


class State:
    """A model and its AdamW state, `size` bytes in `tensors`."""

    def __init__(self, megabytes: int) -> None:
        import torch
        from torch import nn

        each = megabytes * 1_000_000 // 12  # numbers of a parameter tensor and its two moments, 4 bytes each
        made: list[nn.Parameter] = []
        for share in _SHARES:
            made += [nn.Parameter(torch.randn(int(each * share) // _WIDTH, _WIDTH)), nn.Parameter(torch.randn(_WIDTH))]
        self.model = nn.ParameterList(made)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for one in made:
            one.grad = torch.randn_like(one)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tensors = dict(_tensors("", self.parts()))
        self.size = sum(one.nbytes for one in self.tensors.values())

    def parts(self) -> dict[str, Any]:
        """What is saved."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def _tensors(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _tensors(f"{path}/{name}", part)
    elif hasattr(value, "untyped_storage"):
        yield path, value


@dataclass(frozen=True)
class Laps:
    """The seconds of one save or restore.

    Attributes:
        sealing: of that, encrypting or decrypting, where there is any; ours with what is neither that nor file access.
        access: reading, or writing and syncing; where nothing is encrypted it is not told apart, and this is all.
        stall: until training goes on, where that is sooner than the end.
    """

    total: float
    sealing: float | None = None
    access: float | None = None
    stall: float | None = None

    @classmethod
    def clear(cls, total: float, stall: float | None = None) -> Laps:
        """Of what encrypts nothing."""
        return cls(total, None, total, stall)


@dataclass
class Row:
    """What one way took; medians.

    Attributes:
        size: of the state, in MB.
        save, restore: the fields of `Laps` and ``cpu``, in milliseconds, and ``memory``, in MiB.
        metadata: bytes written that are no bytes of the state.
    """

    place: str
    size: int
    way: str
    metadata: int
    save: dict[str, float] = field(default_factory=dict)
    restore: dict[str, float] = field(default_factory=dict)


class Way:
    """A way to save a state in a directory, which keeps what each run took."""

    name = ""

    def __init__(self, state: State, folder: Path) -> None:
        self.state = state
        self.folder = folder / self.name.replace(" ", "-")
        self.folder.mkdir()
        self.metadata = 0
        self.seen: dict[Kind, list[dict[str, float]]] = {"save": [], "restore": []}

    def save(self) -> Laps:
        raise NotImplementedError

    def restore(self) -> Laps:
        raise NotImplementedError

    def stored(self) -> int:
        """Bytes that one save leaves or writes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def close(self) -> None:
        """Remove it; what was kept stays."""
        self.metadata = self.stored() - self.state.size
        shutil.rmtree(self.folder)

    def run(self, what: Kind) -> Laps:
        """Do it, and keep what it took."""
        _collect()
        used = time.process_time()
        laps = self.save() if what == "save" else self.restore()
        parts = {name: value * 1000 for name, value in asdict(laps).items() if value is not None}
        parts["cpu"] = (time.process_time() - used) * 1000
        self.seen[what].append(parts)
        return laps

    def rate(self, what: Kind) -> Callable[[], float]:
        """A figure: bytes of state per second, in MB/s."""
        return lambda: self.state.size / self.run(what).total / 1e6

    def row(self, place: str, size: int, memory: Mapping[Kind, float]) -> Row:
        """Medians of what was kept, and what `needed` found."""
        row = Row(place, size, self.name, self.metadata)
        for what, seen in self.seen.items():
            if seen:
                middle = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
                getattr(row, what).update(middle, memory=memory[what])
        return row


def needed(kind: type[Way], state: State, folder: Path) -> dict[Kind, float]:
    """MiB that a save and a restore need beyond the state, at their peak; what a way keeps from save to save included.

    Told apart from the runs that are timed, since memory is to be given back to the system before. 0 where Linux's
    ``/proc`` is missing.
    """
    place = folder / "memory"
    place.mkdir()
    before = _resident()
    way = kind(state, place)
    try:
        for _ in range(2):
            way.save()
        saved = _peak() - before
        before = _resident()
        way.restore()
        restored = _peak() - before
    finally:
        way.close()
        place.rmdir()
    return {"save": max(0.0, saved), "restore": max(0.0, restored)}


def _resident() -> float:
    """MiB that this process has, without what the allocator keeps back; `_peak` counts from here."""
    _collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS:")


def _peak() -> float:
    """MiB that it has had at most."""
    return _status("VmHWM:")


def _status(name: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


def _collect() -> None:
    """Leave no garbage to others; what is left is frozen, or the next time would look through all of PyTorch again."""
    gc.collect()
    gc.freeze()


# Files.


def write(path: Path, *pieces: bytes) -> None:
    """A new file, durable under its name."""
    new = path.with_name(path.name + ".new")
    with new.open("wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    rename(new, path)


def rename(new: Path, path: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name("old"))
    new.replace(path)
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    shutil.rmtree(path.with_name("old"), ignore_errors=True)
