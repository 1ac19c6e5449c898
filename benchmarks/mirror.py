"""The mirror of a training: how fast a state is sealed and restored, and what training pays for it.

- A state is a model of 16 tensors of mixed sizes and its AdamW state after a step: 64 tensors with the step counts. All
  of it is written each time. A save ends when it is durable, under its final name: the peers write a new file or
  directory, sync it and rename it, we commit with an anchor file beside the mirror. A restore begins with what lies in
  the file system, whose pages are in the kernel's cache, and ends with tensors in memory.
- "encrypted torch.save" is `torch.save` into memory, AES-256-GCM over its bytes with `cryptography`, and one write;
  back, `torch.load` with `weights_only`. Ours besides keeps the state before, and refuses an older one.
- "raw write" overwrites as many bytes in an existing file with one call, and syncs it.
- "memory copy" copies the same tensors into memory that was touched before, by PyTorch or by NumPy, whichever is faster
  at the moment. What is compared with it is how long an overlapped commit holds up a training, none being under way.
- Overheads: the same training twice, in turns of some steps, once with a mirror on the disk that survives power cuts.
  Its commits overlap the next step.
- Iterations: the network of 12 convolutions on shuffled batches of 60,000 images, from a sealed file on the disk whose
  cache holds all and is full, and from arrays in memory.

Besides the goals it prints what every way to save takes, and the swaps per second of transactions on a persistent array
(the test that Plinius took from Romulus). With ``STRONGROOM_BENCH_DETAILS=FILE`` these are written as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Bench, Goal
from strongroom.sealed import FileAnchor, Root, threads
from strongroom.storage import LocalDirectory, OpenMode, Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

    from torch import nn

SIZES: Final = (10, 44, 67, 78, 100, 1000)  # MB; all but the last are Plinius's
PLACES: Final = ("tmpfs", "disk")
BATCHES: Final = (16, 64, 256, 1024)
TWELVE: Final = "12 convolutions"
SMALL: Final = "small perceptron"
WIDE: Final = "wide perceptron"
ENCRYPTED: Final = "encrypted torch.save"

# Milliseconds that Plinius (its Fig. 7, in SGX) took to save and to restore, by MB.
PUBLISHED: Final = {
    "Plinius, persistent memory": {10: (12, 7), 44: (51, 29), 67: (116, 49), 78: (131, 57), 100: (171, 74)},
    "Plinius's SSD baseline": {10: (55, 27), 44: (202, 113), 67: (286, 171), 78: (334, 199), 100: (427, 257)},
}


def _state_goals(size: int) -> Iterator[Goal]:
    late = size > SIZES[0]  # too long for a quick run
    for place, save in (("tmpfs", 5), ("disk", 2)):
        yield Goal(f"save {size} MB, {place} / {ENCRYPTED}", save, "x", "at least", late)
        yield Goal(f"restore {size} MB, {place} / {ENCRYPTED}", 3, "x", "at least", late)
    yield Goal(f"save {size} MB, disk / raw write", 1.1, "x", "at most", late)
    yield Goal(f"stall {size} MB / memory copy", 1.2, "x", "at most", late)


GOALS: Sequence[Goal] = (
    *(goal for size in SIZES for goal in _state_goals(size)),
    Goal(f"training, {TWELVE}, commit each step", 1.05, "x", "at most", full_only=True),
    Goal(f"training, {TWELVE}, auto", 1.035, "x", "at most", full_only=True),
    Goal(f"training, {SMALL}, auto", 1.035, "x", "at most"),
    Goal(f"training, {WIDE}, auto", 1.035, "x", "at most", full_only=True),
    *(Goal(f"iteration on sealed batches of {size}", 1.05, "x", "at most", size > 16) for size in BATCHES),
)

_KEY = bytes(range(32))
_KINDS: tuple[Literal["save", "restore"], ...] = ("save", "restore")
_SHARES = (0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04)  # of the state, for its eight large tensors
_WIDTH = 256


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants, and print what every way takes."""
    rows: list[Row] = []
    swaps: list[dict[str, Any]] = []
    try:
        with _places() as places:
            for size in SIZES[:1] if bench.quick else SIZES:
                if bench.wants(f"stall {size} MB / memory copy"):
                    rows += _states(bench, size, places)
            _overheads(bench, places["disk"])
            _iterations(bench, places["disk"])
            if not bench.quick:
                swaps += _swaps(places)
    finally:
        _show(rows, swaps)


@contextlib.contextmanager
def _places() -> Iterator[dict[str, Path]]:
    """A directory in memory and one on a disk, where the machine has them."""
    from strongroom.mirror.region import look

    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    disks = [Path(tempfile.gettempdir()), Path.cwd()]
    disk = next((path for path in disks if look(path, "power").kind != "memory"), disks[0])
    with tempfile.TemporaryDirectory(dir=memory) as one, tempfile.TemporaryDirectory(dir=disk) as other:
        yield {"tmpfs": Path(one), "disk": Path(other)}


# What is measured of a way to save.


@dataclass(frozen=True)
class Laps:
    """The seconds of one save or restore.

    Attributes:
        sealing: of that, encrypting or decrypting, where there is any; ours with what is neither that nor file access.
        access: reading, or writing and syncing.
        stall: until training goes on, where that is sooner than the end.
    """

    total: float
    sealing: float = 0.0
    access: float = 0.0
    stall: float | None = None


@dataclass
class Row:
    """What one way took, in milliseconds and MiB; medians."""

    place: str
    size: int
    way: str
    save: dict[str, float] = field(default_factory=dict)
    restore: dict[str, float] = field(default_factory=dict)
    metadata: int | None = None


class Way:
    """A way to save a state in a directory, which keeps what each run took."""

    name = ""

    def __init__(self, state: State, folder: Path) -> None:
        self.state = state
        self.folder = folder / self.name.replace(" ", "-")
        self.folder.mkdir()
        self.seen: dict[str, list[dict[str, float]]] = {"save": [], "restore": []}

    def save(self) -> Laps:
        raise NotImplementedError

    def restore(self) -> Laps:
        raise NotImplementedError

    def stored(self) -> int:
        """Bytes that one save leaves or writes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def run(self, what: Literal["save", "restore"]) -> Laps:
        """Do it, and keep what it took."""
        gc.collect()
        before, used = _memory(reset=True), time.process_time()
        laps: Laps = getattr(self, what)()
        parts = {name: value * 1000 for name, value in asdict(laps).items() if value is not None}
        parts["cpu"] = (time.process_time() - used) * 1000
        parts["memory"] = _memory() - before
        self.seen[what].append(parts)
        return laps

    def rate(self, what: Literal["save", "restore"]) -> Callable[[], float]:
        """A figure: bytes of state per second, in MB/s."""
        return lambda: self.state.size / self.run(what).total / 1e6

    def row(self, place: str, size: int) -> Row:
        """Medians of what was kept."""
        middle = {
            what: {name: statistics.median(one[name] for one in seen) for name in seen[0]}
            for what, seen in self.seen.items()
            if seen
        }
        return Row(place, size, self.name, **middle, metadata=self.stored() - self.state.size)


def _memory(*, reset: bool = False) -> float:
    """MiB that this process has; or, if not `reset`, has had at most since then. 0 where Linux's /proc is missing."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        name = "VmRSS:" if reset else "VmHWM:"
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


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


def _write(path: Path, *pieces: bytes) -> None:
    """A new file, durable under its name."""
    new = path.with_name(path.name + ".new")
    with new.open("wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    _rename(new, path)


def _rename(new: Path, path: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name("old"))
    new.replace(path)
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    shutil.rmtree(path.with_name("old"), ignore_errors=True)


# Ours.


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
    clock: Clock

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> Storage:
        return cast("Storage", _ClockedStorage(super().open(name, mode, shared=shared), self.clock))


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

        directory = type("Clocked", (_ClockedDirectory,), {"clock": self.clock})
        with mock.patch("strongroom.mirror.opening.LocalDirectory", directory):  # it chooses what a path needs
            anchor = _ClockedAnchor(self.folder / "anchor", self.clock)
            return mirror.open(self.folder / "mirror", key=_KEY, anchor=anchor, mode=self.mode)

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


# The peers.


class TorchSave(Way):
    name = "torch.save"

    def save(self) -> Laps:
        import torch

        began = time.perf_counter()
        path, new = self.folder / "state", self.folder / "state.new"
        with new.open("wb") as file:
            torch.save(self.state.parts(), file)
            file.flush()
            os.fsync(file.fileno())
        _rename(new, path)
        return Laps(time.perf_counter() - began)

    def restore(self) -> Laps:
        import torch

        began = time.perf_counter()
        torch.load(self.folder / "state", weights_only=True)
        return Laps(time.perf_counter() - began)


class Encrypted(Way):
    name = ENCRYPTED

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._gcm = AESGCM(_KEY)

    def save(self) -> Laps:
        import torch

        began = time.perf_counter()
        clear = io.BytesIO()
        torch.save(self.state.parts(), clear)
        serialised = time.perf_counter()
        nonce = os.urandom(12)
        sealed = self._gcm.encrypt(nonce, clear.getbuffer(), None)
        encrypted = time.perf_counter()
        _write(self.folder / "state", nonce, sealed)
        end = time.perf_counter()
        return Laps(end - began, encrypted - serialised, end - encrypted)

    def restore(self) -> Laps:
        import torch

        began = time.perf_counter()
        with (self.folder / "state").open("rb") as file:
            nonce, sealed = file.read(12), file.read()
        read = time.perf_counter()
        clear = self._gcm.decrypt(nonce, sealed, None)
        decrypted = time.perf_counter()
        torch.load(io.BytesIO(clear), weights_only=True)
        return Laps(time.perf_counter() - began, decrypted - read, read - began)


class Safetensors(Way):
    name = "safetensors"

    def save(self) -> Laps:
        from safetensors.torch import save_file

        began = time.perf_counter()
        path, new = self.folder / "state", self.folder / "state.new"
        save_file(self.state.tensors, new)
        fd = os.open(new, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        _rename(new, path)
        return Laps(time.perf_counter() - began)

    def restore(self) -> Laps:
        from safetensors.torch import load_file

        began = time.perf_counter()
        for tensor in load_file(self.folder / "state").values():
            tensor.clone()  # what is loaded is a map of the file, and is read when it is used
        return Laps(time.perf_counter() - began)


class Distributed(Way):
    name = "distributed.checkpoint"

    def save(self) -> Laps:
        from torch.distributed.checkpoint.state_dict_saver import save

        began = time.perf_counter()
        save(self.state.parts(), checkpoint_id=self.folder / "new", no_dist=True)
        _rename(self.folder / "new", self.folder / "state")
        return Laps(time.perf_counter() - began)

    def restore(self) -> Laps:
        from torch.distributed.checkpoint.state_dict_loader import load

        began = time.perf_counter()
        load(self.state.parts(), checkpoint_id=self.folder / "state", no_dist=True)  # into memory that is there
        return Laps(time.perf_counter() - began)


class Asynchronous(Distributed):
    name = "its async_save"

    def save(self) -> Laps:
        from torch.distributed.checkpoint.state_dict_saver import async_save

        began = time.perf_counter()
        future: Any = async_save(self.state.parts(), checkpoint_id=self.folder / "new", no_dist=True)
        stall = time.perf_counter() - began
        future.result()
        _rename(self.folder / "new", self.folder / "state")
        return Laps(time.perf_counter() - began, stall=stall)


# States.


def _states(bench: Bench, megabytes: int, places: Mapping[str, Path]) -> list[Row]:
    state = State(megabytes)
    rounds = 3 if bench.quick or megabytes > 500 else 7
    rows = []
    for place, folder in places.items():
        ours, sealed = Ours(state, folder), Encrypted(state, folder)
        try:
            for what in _KINDS:
                name = f"{what} {megabytes} MB, {place} / {ENCRYPTED}"
                for _ in range(3 if what == "save" else 0):  # until the mirror has the places it takes turns in
                    ours.save()
                bench.compare(name, ours.rate(what), sealed.rate(what), peer_name=ENCRYPTED, unit="MB/s", rounds=rounds)
                if what == "save":
                    if place == "disk":
                        _against_raw(bench, megabytes, ours, folder / "raw", rounds)
                    for way in (ours, sealed):
                        del way.seen["save"][:1]  # it warmed up
            rows += [ours.row(place, megabytes), sealed.row(place, megabytes)]
        finally:
            ours.close()
            sealed.close()
        if not bench.quick:
            rows += _others(state, megabytes, place, folder, 1 if megabytes > 500 else 3)
    _stall(bench, megabytes, state, places["tmpfs"], rounds)
    return rows


def _against_raw(bench: Bench, megabytes: int, ours: Ours, path: Path, rounds: int) -> None:
    data = memoryview(os.urandom(ours.stored()))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def write() -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], done)
        os.fdatasync(fd)

    try:
        bench.compare(
            f"save {megabytes} MB, disk / raw write",
            lambda: ours.run("save").total * 1000,
            bench.timed(write),
            peer_name="raw write",
            unit="ms",
            rounds=rounds,
        )
    finally:
        os.close(fd)
        path.unlink()


def _others(state: State, megabytes: int, place: str, folder: Path, rounds: int) -> list[Row]:
    """Those that no goal names, in turns."""
    ways = [kind(state, folder) for kind in (Overlapped, TorchSave, Safetensors, Distributed, Asynchronous)]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
            for _ in range(rounds + 1):
                for way in ways:
                    way.run("save")
            for way in ways:
                del way.seen["save"][0]
            for _ in range(rounds):
                for way in ways[1:]:
                    way.run("restore")
        return [way.row(place, megabytes) for way in ways]
    finally:
        for way in ways:
            way.close()


def _stall(bench: Bench, megabytes: int, state: State, folder: Path, rounds: int) -> None:
    import torch

    source = list(state.tensors.values())
    target = [torch.zeros_like(one) for one in source]
    arrays = [(there.numpy(), one.numpy()) for there, one in zip(target, source, strict=True)]

    def by_torch() -> None:
        for there, one in zip(target, source, strict=True):
            there.copy_(one)

    def by_numpy() -> None:
        for there, one in arrays:
            there[...] = one

    def stall() -> float:
        found = ours.run("save").stall
        assert found is not None
        return found * 1000

    ours = Overlapped(state, folder)
    try:
        bench.compare(
            f"stall {megabytes} MB / memory copy",
            stall,
            lambda: min(bench.timed(copy)() for copy in (by_torch, by_numpy)),
            peer_name="memory copy",
            unit="ms",
            rounds=rounds + 4,
            warmup=3,
        )
    finally:
        ours.close()


# Whole trainings.


def twelve_convolutions() -> nn.Module:
    """The largest network that Plinius trains on MNIST: 391,594 parameters, normalisation included."""
    from torch import nn

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]

    middle = [module for at in range(9) for module in block(64 if at else 32, 64)]
    end = [nn.Dropout(), nn.Conv2d(128, 10, 1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*block(1, 32), nn.MaxPool2d(2), *middle, nn.MaxPool2d(2), *block(64, 128), *end)


def _perceptron(*widths: int) -> nn.Module:
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class _Trainer:
    """A training, with a mirror if there is a directory for it."""

    def __init__(self, model: nn.Module, batch: int, folder: Path | None = None, every: int | Literal["auto"] = 1):
        import torch

        from strongroom import mirror
        from strongroom.mirror.pace import Pace
        from strongroom.mirror.torch import Training

        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters())
        self.images, self.labels = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
        self.mirror = self.training = None
        self._away = 0.0  # seconds in which the other training had its turn: no step took them
        self._left = time.perf_counter()
        if folder:
            anchor = FileAnchor(folder / "anchor")
            self.mirror = mirror.open(folder / "mirror", key=_KEY, anchor=anchor, mode="overlapped")
            self.training = Training(self.mirror, every=every, model=model, optimizer=self.optimizer)
            self.training.pace = Pace(every, clock=lambda: time.perf_counter() - self._away)

    def run(self, steps: int) -> None:
        self._away += time.perf_counter() - self._left
        for _ in range(steps):
            self.step(self.images, self.labels)
            if self.training:
                self.training.commit()
        self._left = time.perf_counter()

    def step(self, images: Any, labels: Any) -> None:
        from torch import nn

        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def close(self) -> None:
        if self.mirror:
            self.mirror.close()


def _overheads(bench: Bench, folder: Path) -> None:
    trainings: tuple[tuple[str, int | Literal["auto"], Callable[[], nn.Module], int, int, int], ...] = (
        (f"training, {TWELVE}, commit each step", 1, twelve_convolutions, 128, 1, 9),
        (f"training, {TWELVE}, auto", "auto", twelve_convolutions, 128, 1, 9),
        (f"training, {SMALL}, auto", "auto", lambda: _perceptron(784, 128, 10), 64, 300 if bench.quick else 1000, 7),
        (f"training, {WIDE}, auto", "auto", lambda: _perceptron(784, 2048, 2048, 10), 64, 60, 7),
    )
    for number, (name, every, make, batch, steps, rounds) in enumerate(trainings):
        if not bench.wants(name):
            continue
        place = folder / f"training{number}"
        place.mkdir()
        ours, plain = _Trainer(make(), batch, place, every), _Trainer(make(), batch)
        try:
            bench.compare(
                name,
                bench.timed(lambda ours=ours, steps=steps: ours.run(steps), per=steps),  # type: ignore[misc]
                bench.timed(lambda plain=plain, steps=steps: plain.run(steps), per=steps),  # type: ignore[misc]
                peer_name="without a mirror",
                unit="ms",
                rounds=rounds,
                warmup=2,
            )
        finally:
            ours.close()


def _iterations(bench: Bench, folder: Path) -> None:
    if not any(bench.wants(f"iteration on sealed batches of {size}") for size in BATCHES):
        return
    from strongroom.data import SealedDataset, seal_arrays
    from strongroom.sealed import NO_FRESHNESS

    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60_000, 1, 28, 28), np.uint8)
    labels = rng.integers(0, 10, 60_000)
    seal_arrays(folder / "images", {"images": images, "labels": labels}, key=_KEY, anchor=NO_FRESHNESS)

    def plain(size: int) -> Iterator[Any]:
        for epoch in count():
            order = np.random.default_rng(epoch).permutation(len(images))
            for at in range(0, len(order) - size + 1, size):
                yield images[order[at : at + size]], labels[order[at : at + size]]

    def steps(trainer: _Trainer, batches: Iterable[Any], number: int) -> None:
        import torch

        for _, (some, wanted) in zip(range(number), batches, strict=False):
            trainer.step(torch.from_numpy(some).float() / 255, torch.from_numpy(wanted))

    with SealedDataset(folder / "images", key=_KEY, anchor=NO_FRESHNESS) as dataset:
        dataset.preload()

        def sealed(size: int) -> Iterator[Any]:
            for epoch in count():
                yield from dataset.batches(size, epoch=epoch, drop_last=True)

        trainer = _Trainer(twelve_convolutions(), 1)
        for size in BATCHES:
            number = max(1, 256 // size)
            sources = sealed(size), plain(size)
            ours, theirs = (
                bench.timed(lambda source=source, number=number: steps(trainer, source, number), per=number)  # type: ignore[misc]
                for source in sources
            )
            rounds = 3 if size > 500 else 7
            name = f"iteration on sealed batches of {size}"
            bench.compare(name, ours, theirs, peer_name="arrays in memory", unit="ms", rounds=rounds)


# Swaps per second.


def _swaps(places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Random swaps of numbers in an array of 10 MiB, some in each commit; delta commits of blocks of 4 KiB."""
    from strongroom import mirror

    found = []
    choices: tuple[tuple[str, Literal["process", "power"]], ...] = (
        ("tmpfs", "process"),
        ("disk", "process"),
        ("disk", "power"),
    )
    for place, durability in choices:
        folder = places[place] / f"swaps-{durability}"
        folder.mkdir()
        array = np.arange((10 << 20) // 8, dtype=np.int64)
        numbers, rng = array.data, random.Random(1)  # noqa: S311  # the same swaps each time
        anchor = FileAnchor(folder / "anchor")
        with mirror.open(
            folder / "mirror", key=_KEY, anchor=anchor, delta=True, durability=durability, block_size=4096, keep=1
        ) as opened:
            opened.commit(0, {"array": array})
            step = 0
            for each in (1, 8, 64, 512, 4096):
                pairs = [(rng.randrange(len(array)), rng.randrange(len(array))) for _ in range(each)]
                began, done = time.perf_counter(), 0
                while time.perf_counter() - began < 1:
                    step += 1
                    for i, j in pairs:
                        numbers[i], numbers[j] = numbers[j], numbers[i]
                    opened.commit(step, {"array": array})
                    done += each
                rate = done / (time.perf_counter() - began)
                found.append({"place": place, "durability": durability, "swaps": each, "rate": rate})
    return found


# What is shown.


def _show(rows: Sequence[Row], swaps: Sequence[Mapping[str, Any]]) -> None:
    console = Console(highlight=False, width=140, soft_wrap=True)
    for place in PLACES:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(f"{place}, ms")
        for name in ("save", "seal", "write", "stall", "cpu", "MiB", "meta B", "load", "open", "read", "cpu", "MiB"):
            table.add_column(name, justify="right")
        for size in SIZES:
            of_size = [row for row in rows if (row.place, row.size) == (place, size)]
            if of_size:
                table.add_row(f"{size} MB", style="bold")
            for row in of_size:
                parts = ("total", "sealing", "access", "stall", "cpu", "memory")
                saved = [_cell(row.save.get(name)) for name in parts]
                loaded = [_cell(row.restore.get(name)) for name in parts if name != "stall"]
                table.add_row(row.way, *saved, f"{row.metadata:,}", *loaded)
            for name, figures in PUBLISHED.items() if of_size else ():
                if size in figures:
                    save, restore = figures[size]
                    table.add_row(name, str(save), *[""] * 6, str(restore), style="dim")
        console.print(table)
    for one in swaps:
        console.print(f"{one['swaps']:5} swaps a commit, {one['place']}, {one['durability']}: {one['rate']:,.0f} /s")
    if path := os.environ.get("STRONGROOM_BENCH_DETAILS"):
        Path(path).write_text(json.dumps({"states": [asdict(row) for row in rows], "swaps": list(swaps)}, indent=2))


def _cell(value: float | None) -> str:
    return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
