"""Saving and restoring a state: against an encrypted `torch.save`, a raw write, a copy in memory; others beside it."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.harness import Bench, Goal
from benchmarks.mirror.ours import Ours, Overlapped
from benchmarks.mirror.rivals import ENCRYPTED, Asynchronous, Distributed, Encrypted, Safetensors, TorchSave
from benchmarks.mirror.ways import KINDS, Kind, Row, State, Way, needed

SIZES: Final = (10, 44, 67, 78, 100, 1000)  # MB; all but the last are Plinius's


def compared(what: Kind, size: int, place: str) -> str:
    """The goal of saving or restoring a state of that many MB against the encrypted `torch.save`."""
    return f"{what} {size} MB, {place} / {ENCRYPTED}"


def raw(size: int) -> str:
    """The goal of saving against a raw write."""
    return f"save {size} MB, disk / raw write"


def stalled(size: int) -> str:
    """The goal of holding up a training no longer than a copy in memory."""
    return f"stall {size} MB / memory copy"


def _goals(size: int) -> Iterator[Goal]:
    late = size > SIZES[0]  # too long for a quick run
    for place, save in (("tmpfs", 5), ("disk", 2)):
        yield Goal(compared("save", size, place), save, "x", "at least", late)
        yield Goal(compared("restore", size, place), 3, "x", "at least", late)
    yield Goal(raw(size), 1.1, "x", "at most", late)
    yield Goal(stalled(size), 1.2, "x", "at most", late)


_OTHERS: Final[tuple[type[Way], ...]] = (Overlapped, TorchSave, Safetensors, Distributed, Asynchronous)

GOALS: Sequence[Goal] = tuple(goal for size in SIZES for goal in _goals(size))


def states(bench: Bench, places: Mapping[str, Path]) -> Iterator[Row]:
    """Measure the goals that `bench` wants, the smallest state first; a row for each way, as soon as it is there."""
    for size in SIZES:
        if bench.wants(*(goal.name for goal in _goals(size))):
            state = State(size)
            rounds = 3 if bench.quick or size > 500 else 7
            memory: dict[str, dict[Kind, float]] = {}
            for place, folder in places.items():
                ways = [*_compare(bench, state, size, place, folder, rounds)]
                if bench.complete:
                    ways += _others(bench, state, size, place, folder, 1 if size > 500 else 3)
                for way in ways:
                    if way.name not in memory:
                        with _quiet():
                            memory[way.name] = needed(type(way), state, places["tmpfs"])
                    yield way.row(place, size, memory[way.name])
                if ways:
                    bench.say(f"memory, {size} MB, {place}")
            _stall(bench, state, size, places["tmpfs"], rounds + 4)
            gc.unfreeze()  # what `Way.run` froze may lie in cycles, and is large


def _compare(bench: Bench, state: State, size: int, place: str, folder: Path, rounds: int) -> list[Way]:
    names = {what: compared(what, size, place) for what in KINDS}
    wants_raw = place == "disk" and bench.wants(raw(size))
    if not wants_raw and not bench.wants(*names.values()):
        return []
    ours, sealed = Ours(state, folder), Encrypted(state, folder)
    try:
        for _ in range(3):  # until the mirror has the places it takes turns in
            ours.save()
        if not bench.wants(names["save"]):
            sealed.save()
        for what in KINDS:
            bench.compare(
                names[what],
                ours.rate(what),
                sealed.rate(what),
                peer_name=ENCRYPTED,
                unit="MB/s",
                rounds=rounds,
                until_clear=True,
            )
            if what == "save" and wants_raw:
                _against_raw(bench, size, ours, folder / "raw", rounds)
            for way in (ours, sealed):
                del way.seen[what][:1]  # it warmed up
        return [ours, sealed]
    finally:
        ours.close()
        sealed.close()


def _against_raw(bench: Bench, size: int, ours: Ours, path: Path, rounds: int) -> None:
    data = memoryview(os.urandom(ours.stored()))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def write() -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], done)
        os.fdatasync(fd)

    try:
        bench.compare(
            raw(size),
            lambda: ours.run("save").total * 1000,
            bench.timed(write),
            peer_name="raw write",
            unit="ms",
            rounds=rounds,
        )
    finally:
        os.close(fd)
        path.unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
        yield


def _others(bench: Bench, state: State, size: int, place: str, folder: Path, rounds: int) -> list[Way]:
    """Those that no goal names, in turns."""
    ways = [kind(state, folder) for kind in _OTHERS]
    try:
        with _quiet():
            for _ in range(rounds + 1):
                for way in ways:
                    way.run("save")
            for way in ways:
                del way.seen["save"][0]
            for _ in range(rounds):
                for way in ways:
                    way.run("restore")
        bench.say(f"other ways, {size} MB, {place}", rounds=rounds)
        return ways
    finally:
        for way in ways:
            way.close()


def _stall(bench: Bench, state: State, size: int, folder: Path, rounds: int) -> None:
    if not bench.wants(stalled(size)):
        return
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
            stalled(size),
            stall,
            lambda: min(bench.timed(copy)() for copy in (by_torch, by_numpy)),
            peer_name="memory copy",
            unit="ms",
            rounds=rounds,
            warmup=3,
        )
    finally:
        ours.close()
