"""Steady work inside and outside: training, reading sealed data, classification, system calls.

- Two processes, of the same program, work in turns; a goal is held against the median of the ratios of neighbouring
  turns.
- Training: convolutional networks on images of 32 x 32, in memory, in PyTorch and in Keras on TensorFlow; all cores.
- Reading: JPEG images of 500 x 375, as ImageNet's are, decoded and resized in a `DataLoader` with two workers, from a
  sealed vault, decrypted on access through FUSE, and from plain files of the same content. The first epoch is told, and
  does not count: nothing is in the kernel's page cache then, of either.
- Classification, after secureTF's (Quoc et al., Middleware 2020): LiteRT models of 42, 91 and 163 MB, with random
  weights and Inception's kind of blocks, one image at a time. With the file-system shield the model lies in a sealed
  vault, without it is one of the program's measured files. The paper puts the cost at about 5 %.
- System calls: of a process under the enclave's filter alone, and of one in an enclave, beside one without.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.enclave_models import write_images, write_model
from benchmarks.enclave_runs import Runs, Talk, runs
from benchmarks.harness import Bench, Goal

TORCH, KERAS = "training throughput, PyTorch", "training throughput, Keras on TensorFlow"
EPOCH = "an epoch of sealed images"
SIZES = (42, 91, 163)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = tuple(sorted({1, 2, CORES}))


def classification(size: int, threads: int) -> str:
    return f"classification, {size} MB, shield on, {threads} threads"


CALLS = "getppid under the filter of system calls"

GOALS: Sequence[Goal] = (
    Goal(TORCH, 0.97, "x", "at least"),
    Goal(KERAS, 0.97, "x", "at least", full_only=True),
    Goal(EPOCH, 1.05, "x", "at most", full_only=True),
    *(
        Goal(classification(size, threads), 1.05, "x", "at most", full_only=(size, threads) != (42, 2))
        for size in SIZES
        for threads in THREADS
    ),
    Goal(CALLS, 3, "x", "at most"),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    for goal, program, package in ((TORCH, "train_torch.py", "torch"), (KERAS, "train_keras.py", "tensorflow")):
        if bench.wants(goal):
            with runs(package) as place:
                place.copy(program)
                _training(bench, place, goal, program)
    if bench.wants(EPOCH):
        with runs("torch", "PIL", "pyfuse3") as place:
            _reading(bench, place)
    for size in SIZES:
        if bench.wants(*(classification(size, threads) for threads in THREADS)):
            with runs("ai_edge_litert", "tensorflow", "pyfuse3") as place:
                _classification(bench, place, size)
    if bench.wants(CALLS):
        with runs() as place:
            _calls(bench, place)


def _training(bench: Bench, place: Runs, goal: str, program: str) -> None:
    with place.talk(place.outside(program)) as outside, place.talk(place.inside(program)) as inside:
        outside.ask(2)
        steps = max(2, round(outside.ask(4)[0] / 64 * (0.5 if bench.quick else 1.5)))
        bench.compare(
            goal,
            lambda: inside.ask(steps)[0],
            lambda: outside.ask(steps)[0],
            peer_name="outside",
            unit="images/s",
            rounds=7 if bench.quick else 21,
        )


def _reading(bench: Bench, place: Runs) -> None:
    count = 64 if bench.quick else 400
    write_images(place.directory / "images", count)
    place.run([sys.executable, "-m", "strongroom", "seal", "images"])
    place.copy("read_images.py")
    ours = place.inside("read_images.py", "/data", options=("--data", "images.vault"))
    plain = place.outside("read_images.py", "images")
    with place.talk(plain) as outside, place.talk(ours) as inside:
        first = inside.ask("epoch"), outside.ask("epoch")
        assert first[0][1] == first[1][1] == count  # both have read all
        bench.say(f"first epoch: sealed {first[0][0]:.2f} s, plain {first[1][0]:.2f} s")
        bench.compare(
            EPOCH,
            lambda: inside.ask("epoch")[0],
            lambda: outside.ask("epoch")[0],
            peer_name="plain files",
            unit="s",
            rounds=15,
        )


def _classification(bench: Bench, place: Runs, size: int) -> None:
    (place.directory / "model").mkdir()
    write_model(place.directory / "model" / "model.tflite", size)
    place.run([sys.executable, "-m", "strongroom", "seal", "model"])
    place.copy("classify.py")
    program, model = "classify.py", "model/model.tflite"
    commands = {
        "outside": place.outside(program, model),
        "shield off": place.inside(program, model, options=("--include", model)),
        "shield on": place.inside(program, "/data/model.tflite", options=("--data", "model.vault")),
    }
    commands["shield off"][commands["shield off"].index("out.vault")] = "out-off.vault"
    with ExitStack() as stack:
        talks = {name: stack.enter_context(place.talk(command)) for name, command in commands.items()}
        for threads in THREADS:
            if bench.wants(classification(size, threads)):
                _classify(bench, talks, size, threads)


def _classify(bench: Bench, talks: dict[str, Talk], size: int, threads: int) -> None:
    images = 2 if bench.quick else 5
    loads: dict[str, list[float]] = {name: [] for name in talks}
    each: dict[str, list[float]] = {name: [] for name in talks}

    def ask(name: str) -> Callable[[], float]:
        def milliseconds() -> float:
            loaded, one = talks[name].ask(images, threads)
            loads[name].append(loaded)
            each[name].append(one)
            return one

        return milliseconds

    def ours() -> float:
        ask("shield off")()
        return ask("shield on")()

    bench.compare(
        classification(size, threads),
        ours,
        ask("outside"),
        peer_name="outside",
        unit="ms",
        rounds=5 if bench.quick else 9,
    )
    for name in talks:
        load, one = statistics.median(loads[name]), statistics.median(each[name])
        bench.say(f"{size} MB, {threads} threads, {name}: {one:.1f} ms an image, {load:.1f} ms to load")


def _calls(bench: Bench, place: Runs) -> None:
    import strongroom.enclave.drop
    from strongroom.enclave.seccomp import seccomp_filter

    filtered = seccomp_filter()
    if filtered is None:
        raise RuntimeError("no filter of system calls for this kind of machine")
    place.copy("calls.py")
    drop = [sys.executable, "-I", str(Path(strongroom.enclave.drop.__file__))]
    program = place.outside("calls.py")
    with (
        place.talk([*drop, "--", *program]) as outside,
        place.talk([*drop, "--filter", filtered.hex(), "--", *program]) as confined,
        place.talk(place.inside("calls.py")) as inside,
    ):
        count = 20_000
        for name in ("getppid", "stat", "open and close", "read 4 KiB"):
            taken = [[talk.ask(name, count)[0] for talk in (outside, confined, inside)] for _ in range(5)]
            free, kept, whole = (statistics.median(side) for side in zip(*taken, strict=True))
            bench.say(f"{name}: {free:.2f} us, under the filter {kept:.2f} us, in an enclave {whole:.2f} us")
        bench.compare(
            CALLS,
            lambda: confined.ask("getppid", count)[0],
            lambda: outside.ask("getppid", count)[0],
            peer_name="without",
            unit="us",
            rounds=9,
        )
