"""Plinius's networks on MNIST: trained through kills, then sealed, served from an enclave, and asked.

- `examples/train_plinius.py` trains each network of the `.cfg` files under ``$STRONGROOM_DATA/plinius/cfg`` under a
  mirror, on images that it sealed. The process is killed (SIGKILL) at random moments and started again. The curve must
  be one curve: a step that is trained again after a kill prints the loss that it printed before, and each step that a
  run without kills prints too, for as long as that one goes (`COMPARED` steps), has the loss that it has there. "steps
  that differ" are those of which either is not so.
- The 12-convolution network (`mnist.cfg`) and the smallest (`cfg.cfg`) are trained as long as their files say, 500
  steps. Of the others some steps are trained: their files are the same for 400 to 5,000 steps, and the largest takes
  long for one.
- `cifar.cfg` wants images of three channels, `tiny.cfg` of 224 x 224 in colour, and it knows 1,000 classes: neither was
  made for MNIST, and the script gives them its images in that form, for the kills' sake. A file with the content of
  another (`small/cfg9.cfg`) is left out.
- What was trained whole is exported to ONNX, sealed in a vault and served in a simulated enclave; a client appraises
  the service and sends the 10,000 test images. What it gets right is the accuracy; Plinius has 98.52 %.
- Memory is what a process takes above its imports at its peak while it draws batches of floats from the 60,000 training
  images: sealed as bytes and normalised in the enclave, beside sealed as the floats that these become.

A quick run trains 15 steps of the smallest network, through one kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.harness import Bench, Goal

ACCURACY = "12 convolutions, accuracy from the enclave"
DIFFERENCE = "decisions that differ, enclave / plain"
NETWORKS = "networks trained through kills"
CURVE = "steps that differ after kills"
MEMORY = "memory, images as bytes / as floats"

GOALS: Sequence[Goal] = (
    Goal(ACCURACY, 98.52, "%", "at least", full_only=True),
    Goal(DIFFERENCE, 0, "images", "at most", full_only=True),
    Goal(NETWORKS, 22, "networks", "at least", full_only=True),
    Goal(CURVE, 0, "steps", "at most"),
    Goal(MEMORY, 0.3, "x", "at most"),
)

SCRIPT = Path(__file__).parent.parent / "examples" / "train_plinius.py"
SMALLEST, TWELVE = "cfg.cfg", "mnist.cfg"
WHOLE_KILLS = 5
SOME_STEPS, SOME_KILLS = 6, 2
LARGE_STEPS, LARGE_KILLS = 3, 1  # of those that take many seconds for a step
LARGE = ("big/", "cifar", "tiny")
COMPARED = 60

_KEY = bytes(range(32))
_BATCH = 256  # images of a request


@dataclass
class Training:
    """What became of a network.

    Attributes:
        losses: as printed, by step.
        kills, repeated, compared: how often it was killed; how many steps were printed again; how many steps were
            compared with a run without kills.
        differing: of both, those with another loss.
        plain: the accuracy that the script found, in percent; None if it did not get so far.
        enclave, decisions: the accuracy from the enclave, and how many decisions there were not the plain model's.
        seconds: from the first start to the end, the kills included. pace: the last of them from step to step.
    """

    name: str
    losses: dict[int, str] = field(default_factory=dict)
    kills: int = 0
    repeated: int = 0
    compared: int = 0
    differing: int = 0
    plain: float | None = None
    enclave: float | None = None
    decisions: int | None = None
    seconds: float = 0.0
    pace: float = 0.0

    def saw(self, step: int, loss: str) -> None:
        if step in self.losses:
            self.repeated += 1
            self.differing += self.losses[step] != loss
        else:
            self.losses[step] = loss

    def compare(self, alone: Mapping[int, str]) -> None:
        """Hold it against the losses of a run without kills."""
        self.compared = len(alone)
        self.differing += sum(loss != self.losses.get(step) for step, loss in alone.items())


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    data = _data()
    done: list[Training] = []
    try:
        with tempfile.TemporaryDirectory() as directory:
            _measure(bench, data, Path(directory), done)
    finally:
        _show(done)


def _measure(bench: Bench, data: Path, folder: Path, done: list[Training]) -> None:
    rng = random.Random()  # noqa: S311  # other moments each time

    def one(name: str, *, kills: int, steps: int | None = None, onnx: Path | None = None) -> Training:
        cfg = data / "plinius" / "cfg" / name
        done.append(train(cfg, data / "mnist", folder / "killed" / name, kills=kills, rng=rng, steps=steps, onnx=onnx))
        done[-1].name = name
        done[-1].compare(train_alone(cfg, data / "mnist", folder / "alone" / name, steps=steps))
        return done[-1]

    if bench.quick:
        bench.record(CURVE, one(SMALLEST, steps=15, kills=1).differing)
    if bench.wants(MEMORY):
        bench.record(MEMORY, _memory(folder, data))
    if bench.quick:
        return
    for name in (TWELVE, SMALLEST):
        model = folder / f"{name}.onnx"
        ask(one(name, kills=WHOLE_KILLS, onnx=model), model, folder / f"{name}.served", data)
    bench.record(ACCURACY, done[0].enclave or 0.0)
    bench.record(DIFFERENCE, sum(each.decisions or 0 for each in done))
    for name in networks(data):
        if name not in (TWELVE, SMALLEST):
            steps, kills = (LARGE_STEPS, LARGE_KILLS) if name.startswith(LARGE) else (SOME_STEPS, SOME_KILLS)
            one(name, steps=steps, kills=kills)
    bench.record(CURVE, sum(each.differing for each in done))
    bench.record(NETWORKS, sum(each.kills > 0 and not each.differing for each in done))


# Training.


def _data() -> Path:
    """The directory with MNIST and Plinius's files."""
    data = Path(os.environ.get("STRONGROOM_DATA", "."))
    for name in ("mnist", "plinius/cfg"):
        if not (data / name).is_dir():
            raise peers.UnavailableError(f"STRONGROOM_DATA: names no directory with {name}")
    return data


def networks(data: Path) -> list[str]:
    """The names of the `.cfg` files, each content once, the small ones first."""
    folder, found = data / "plinius" / "cfg", {}
    for path in sorted(folder.rglob("*.cfg"), key=lambda path: (len(path.read_bytes()), path)):
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in found or path.name == TWELVE:
            found[digest] = path.relative_to(folder).as_posix()
    return list(found.values())


def train(
    cfg: Path,
    images: Path,
    folder: Path,
    *,
    kills: int,
    rng: random.Random,
    steps: int | None = None,
    onnx: Path | None = None,
) -> Training:
    """Train a network to its end, however often it is killed.

    Args:
        images: the directory with MNIST.
        folder: is made for the mirror.
        kills: how often, each time at a random moment during a random step.
        steps: None for as many as its file says.
        onnx: where the trained network goes once it is tested; None to stop after the last step, since to test a large
            network takes longer than to train it for some.

    Raises:
        RuntimeError: it ended in any other way, or left a step out.
    """
    whole = _steps(cfg, steps)
    moments = sorted(rng.sample(range(1, whole), kills))  # the step that was printed last
    moments += [whole] if onnx is None else []
    made, began = Training(cfg.name), time.perf_counter()
    while _start(_command(cfg, images, folder, steps, onnx), made, moments, rng) and (moments or onnx):
        made.kills += 1
    made.seconds = time.perf_counter() - began
    _check_whole(made, whole)
    return made


def train_alone(cfg: Path, images: Path, folder: Path, *, steps: int | None = None) -> dict[int, str]:
    """The losses of the first `COMPARED` steps of the same training, without a kill before them."""
    made, last = Training(cfg.name), min(COMPARED, _steps(cfg, steps))
    _start(_command(cfg, images, folder, steps, None), made, [last], random.Random(0))  # noqa: S311
    made.losses = {step: loss for step, loss in made.losses.items() if step <= last}
    _check_whole(made, last)
    return made.losses


def _steps(cfg: Path, steps: int | None) -> int:
    said = next(line for line in cfg.read_text().splitlines() if line.startswith("max_batches"))
    return steps or int(said.partition("=")[2])


def _check_whole(made: Training, steps: int) -> None:
    if sorted(made.losses) != list(range(1, steps + 1)):
        raise RuntimeError(f"{made.name}: printed {len(made.losses)} steps, wanted {steps}")


def _command(cfg: Path, images: Path, folder: Path, steps: int | None, onnx: Path | None) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(cfg), "--data", str(images), "--mirror", str(folder / "mirror")]
    command += [] if steps is None else ["--steps", str(steps)]
    return command + ([] if onnx is None else ["--onnx", str(onnx)])


def _start(command: list[str], made: Training, moments: list[int], rng: random.Random) -> bool:
    """Run it once, until it ends or the first of the moments comes; whether it was killed before its end."""
    printed: float | None = None
    killed = False
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                words = line.split()
                if words[0] == "step":
                    made.saw(int(words[1]), words[3])
                    made.pace = time.perf_counter() - printed if printed else made.pace
                    printed = time.perf_counter()
                    if moments and int(words[1]) >= moments[0] and not killed:
                        del moments[0]
                        time.sleep(rng.random() * made.pace)
                        process.send_signal(signal.SIGKILL)
                        killed = True
                elif words[0] == "accuracy":
                    made.plain = float(words[1])
        except BaseException:
            process.kill()
            raise
        if process.wait() not in ((0, -signal.SIGKILL) if killed else (0,)):
            errors.seek(0)
            raise RuntimeError(f"{made.name}: ended with status {process.returncode}: {errors.read()[-1000:]}")
        return process.returncode != 0


# In the enclave.


def ask(made: Training, model: Path, folder: Path, data: Path) -> None:
    """Seal the network, serve it in an enclave, and classify the test images there."""
    from strongroom.channel import bind
    from strongroom.cli.digits import load_digits
    from strongroom.cli.serve import start_service
    from strongroom.cli.workspace import Home, SealedVault
    from strongroom.serve import Client
    from strongroom.serve.stage import Stage

    digits = load_digits(data / "mnist")
    images = digits.test_input()
    home, sealed = Home.open(folder / "home"), SealedVault.at(folder / "model.vault")
    with sealed.create() as opened:
        opened.write_bytes("model.onnx", model.read_bytes())
        opened.commit()
    plain = Stage.load(model.read_bytes(), name="plain")
    model.unlink()
    with home.cas() as address, bind("127.0.0.1", 0) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        policy, enclave, serving = start_service(home, address, sealed, ["model.onnx"], listener=listener, quiet=True)
        try:
            while not serving.wait(0.05):
                if not enclave.running:
                    raise RuntimeError("service: ended before it served")  # `stop` says why
            with Client(url, cas_root=address.cas_root, policy=policy.name, reference=policy.reference) as client:
                client.appraise()
                answers = [client.predict(some)["logits"].argmax(1) for some in _batches(images)]
        finally:
            enclave.stop()
    decided = np.concatenate(answers)
    alone = np.concatenate([plain.infer({"image": some})["logits"].argmax(1) for some in _batches(images)])
    made.enclave = 100 * float((decided == digits.test_labels).mean())
    made.decisions = int((decided != alone).sum())


def _batches(images: Any) -> Iterator[Any]:
    for at in range(0, len(images), _BATCH):
        yield images[at : at + _BATCH]


# Memory.

_CHILD = """
import json, sys
from pathlib import Path
from strongroom.data import SealedDataset
from strongroom.sealed import NO_FRESHNESS

def taken():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))

path, key = json.load(sys.stdin)
before = taken()
peak = 0
with SealedDataset(path, key=bytes.fromhex(key), anchor=NO_FRESHNESS, mapped=True) as dataset:
    dataset.preload()
    for number, batch in enumerate(dataset.batches(128)):
        assert batch.dtype == "float32" and batch.max() <= 1
        if number % 50 == 0:
            peak = max(peak, taken() - before)
print(max(peak, taken() - before))
"""


def _memory(folder: Path, data: Path) -> float:
    """What another process takes to draw from bytes, over what it takes to draw from floats."""
    from strongroom.cli.digits import load_digits
    from strongroom.data import Normalise, seal_arrays
    from strongroom.sealed import NO_FRESHNESS

    images = load_digits(data / "mnist").train_images
    taken = []
    for name, array, how in (
        ("bytes", images, {"image": Normalise(std=255)}),
        ("floats", images / np.float32(255), {}),
    ):
        path = folder / name
        seal_arrays(path, {"image": array}, key=_KEY, anchor=NO_FRESHNESS, normalise=how)
        question = json.dumps([str(path), _KEY.hex()])
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], input=question, capture_output=True, text=True, check=True
        )
        taken.append(float(done.stdout))
    return taken[0] / taken[1]


# What is shown.


def _show(done: Sequence[Training]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("network")
    for name in ("steps", "kills", "repeated", "compared", "differ", "last loss", "plain %", "enclave %", "s"):
        table.add_column(name, justify="right")
    for each in done:
        last = each.losses[max(each.losses)] if each.losses else ""
        shares = ["" if share is None else f"{share:.2f}" for share in (each.plain, each.enclave)]
        counts = [len(each.losses), each.kills, each.repeated, each.compared, each.differing]
        table.add_row(each.name, *map(str, counts), last, *shares, f"{each.seconds:,.0f}")
    Console(highlight=False, width=120, soft_wrap=True).print(table)
