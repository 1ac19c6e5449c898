"""One model as a program in an enclave, with full TensorFlow, with LiteRT and with ONNX Runtime, under 94 MiB.

- secureTF (Quoc et al., Middleware 2020, section 5.3) classifies with Inception-v3, 91 MB, in SGX's 94 MB: with full
  TensorFlow in 49.782 s, with TensorFlow Lite in 0.697 s.
- Here: Inception-v3 of Keras with the same random weights for all three, read from a sealed vault, one image at a time,
  two threads. The enclave's processes enter a control group with swap when the runtime is imported, and are held to
  94 MiB beyond that once the model is loaded (`serve_groups.py`). That takes root; without it there is no limit, which
  is said.
- Memory is what the processes of the enclave hold of their own, before the limit. Bytes are those of the files of the
  runtime's packages and all that they need, which an enclave measures; the one here measures all that is installed.
- Start-up is from the command to the line that the runtime is imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.enclave_runs import Runs, runs
from benchmarks.harness import Bench, Goal
from benchmarks.serve_groups import PLENTY, lower, swapping
from benchmarks.serve_runs import descendants, pinned
from strongroom.serve.plan.paging_probe import paged_group

LATENCY = {"litert": "LiteRT, an image in 94 MiB", "onnxruntime": "ONNX Runtime, an image in 94 MiB"}
RATIO = "full TensorFlow / LiteRT, an image in 94 MiB"

GOALS: Sequence[Goal] = (
    *(Goal(name, 697, "ms", "at most", full_only=True) for name in LATENCY.values()),
    Goal(RATIO, 1, "x", "at least", full_only=True),
)
LIMIT = 94 << 20
_SLOW_MS = 10_000
_RUNTIMES = {
    "tensorflow": ("TensorFlow", "tensorflow", "saved"),
    "litert": ("LiteRT", "ai-edge-litert", "model.tflite"),
    "onnxruntime": ("ONNX Runtime", "onnxruntime", "model.onnx"),
}
PAPER = {"tensorflow": 49_782.0, "litert": 697.0}
_SHAPE = (299, 299, 3)


@dataclass
class Row:
    """What is told of a runtime."""

    name: str
    package_bytes: int
    start_ms: float
    load_ms: float
    held_bytes: int
    free_ms: float
    limited_ms: float


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if not bench.wants(*LATENCY.values(), RATIO):
        return
    rows = {}
    needs = ("tensorflow", "ai_edge_litert", "onnxruntime", "torch", "pyfuse3")
    with pinned(), runs(*needs) as place, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(swapping(place.directory))
            limited = True
        except peers.UnavailableError as error:
            bench.say(f"no limit on memory: {error}")
            limited = False
        _models(place)
        place.run([sys.executable, "-m", "strongroom", "seal", "model"])
        place.copy("lite.py")
        for runtime in _RUNTIMES:
            rows[runtime] = _row(bench, place, runtime, limited=limited)
    for runtime, name in LATENCY.items():
        if bench.wants(name):
            bench.record(name, rows[runtime].limited_ms)
    if bench.wants(RATIO):
        bench.record(RATIO, rows["tensorflow"].limited_ms / rows["litert"].limited_ms)
    if bench.plots:
        (bench.plots / "serve-lite.json").write_text(
            json.dumps([asdict(row) for row in rows.values()], indent=2) + "\n"
        )
        draw(rows, bench.plots / "serve-lite.png")


def _row(bench: Bench, place: Runs, runtime: str, *, limited: bool) -> Row:
    name, package, file = _RUNTIMES[runtime]
    command = place.inside("lite.py", runtime, f"/data/{file}", options=("--data", "model.vault"))
    command[command.index("out.vault")] = f"out-{runtime}.vault"
    with _group(limited) as door:
        began = time.perf_counter()
        with place.talk(command) as talk:
            start = 1000 * (time.perf_counter() - began)
            numbers = descendants(talk.process)
            for number in numbers if door else ():
                with contextlib.suppress(OSError):
                    door.write_text(str(number)) if door else None
            load, _, _ = talk.ask("load")
            talk.ask(1)
            free = statistics.median(talk.ask(3)[0] for _ in range(3))
            held = sum(map(_held, numbers))
            if door:
                lower(door, LIMIT)
            paged = talk.ask(1)[0]
            if paged < _SLOW_MS:  # else it counts, since one more would take minutes
                paged = statistics.median(talk.ask(1)[0] for _ in range(3))
    row = Row(name, package_bytes(package), start, load, held, free, paged)
    paper = f"; secureTF {PAPER[runtime] / 1000:.3f} s" if runtime in PAPER else ""
    bench.say(
        f"{name}: {row.package_bytes / 1e6:.0f} MB of packages, starts in {start / 1000:.2f} s, loads in "
        f"{load:.0f} ms, holds {held / 1e6:.0f} MB, {free:.0f} ms an image, in 94 MiB {paged:.0f} ms{paper}"
    )
    return row


@contextlib.contextmanager
def _group(limited: bool) -> Iterator[Path | None]:
    if not limited:
        yield None
        return
    with paged_group(PLENTY) as door:
        yield door


def _held(process: int) -> int:
    """Bytes of memory of a process's own."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(process), "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def package_bytes(name: str) -> int:
    """Bytes of the files of a package, and of all that it requires."""
    seen: set[str] = set()
    waiting, total = [name], 0
    while waiting:
        each = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if each in seen:
            continue
        seen.add(each)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(each)
            total += sum(file.size or 0 for file in found.files or ())
            for needed in found.requires or ():
                if "extra ==" not in needed:
                    waiting.append(re.split(r"[^A-Za-z0-9._-]", needed, maxsplit=1)[0])
    return total


def _models(place: Runs) -> None:
    """The same network in three forms. In processes of their own, since Keras has one backend in each."""
    (place.directory / "model").mkdir()
    for backend in ("tensorflow", "torch"):
        command = [sys.executable, "-m", "benchmarks.serve_lite", backend, str(place.directory)]
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": _here()}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Inception-v3 by {backend}: {done.stderr[-1000:]}")


def _here() -> str:
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


def _export(backend: str, directory: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.InceptionV3(weights=None, input_shape=_SHAPE)
    weights = directory / "inception.weights.h5"
    if backend == "torch":
        import numpy as np

        model.load_weights(weights)
        model(np.zeros((1, *_SHAPE), np.float32))
        model.export(str(directory / "model" / "model.onnx"), format="onnx", verbose=False)
        return
    import tensorflow as tf

    model.save_weights(weights)
    model.export(str(directory / "model" / "saved"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory / "model" / "saved"))
    (directory / "model" / "model.tflite").write_bytes(converter.convert())


def draw(rows: dict[str, Row], path: Path) -> None:
    """Milliseconds of an image, with and without the limit, beside the paper's."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for place, (runtime, row) in enumerate(rows.items()):
        axes.bar(place - 0.27, row.free_ms, 0.26, color="C0", label=None if place else "no limit")
        axes.bar(place, row.limited_ms, 0.26, color="C1", label=None if place else "94 MiB")
        if runtime in PAPER:
            axes.bar(place + 0.27, PAPER[runtime], 0.26, color="C2", label=None if place else "secureTF, SGX")
    axes.set_yscale("log")
    axes.set_ylabel("ms an image, Inception-v3")
    axes.set_xticks(range(len(rows)), [f"{row.name}\n{row.package_bytes / 1e6:.0f} MB" for row in rows.values()])
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    _export(sys.argv[1], Path(sys.argv[2]))
