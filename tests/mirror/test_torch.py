"""PyTorch: tensors, generators, the place in the data, and runs that are killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # skipped without it
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler  # noqa: E402

from strongroom import mirror  # noqa: E402
from strongroom.errors import UsageError  # noqa: E402
from strongroom.mirror.pace import Pace  # noqa: E402
from strongroom.mirror.torch import CONVERT, Training, pack, random_state, set_random_state  # noqa: E402
from strongroom.sealed import NO_FRESHNESS  # noqa: E402
from strongroom.storage import MemoryDirectory  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
KEY = bytes(range(32))


def opened(directory: MemoryDirectory, **options: object) -> mirror.Mirror:
    return mirror.open(directory, key=KEY, anchor=NO_FRESHNESS, block_size=4096, **options)  # type: ignore[arg-type]


def kills(module: str, *arguments: str, directory: Path) -> dict[str, object]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        f"tests.mirror.{module}",
        *arguments,
        "--directory",
        str(directory),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize(
    ("optimizer", "workers", "mode"),
    [("sgd", 2, "synchronous"), ("adam", 2, "overlapped"), ("adamw", 2, "overlapped")],
)
def test_a_run_that_is_killed_goes_as_one_that_is_not(tmp_path, optimizer, workers, mode):
    arguments = [optimizer, "--kills", "5", "--seed", "11", "--workers", str(workers), "--mode", mode]
    said = kills("kills", *arguments, directory=tmp_path)
    assert said["kills"] == 5 and said["steps"] == 36
    assert said["same"], said


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ranks_that_are_killed_go_as_ranks_that_are_not(tmp_path, kind):
    said = kills("kills_ranks", kind, "--kills", "2", "--seed", "4", directory=tmp_path)
    assert said["kills"] == 2 and said["steps"] == 16
    assert said["same"] == [True, True], said


def test_tensors_of_every_type_and_shape_come_back():
    types = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    ]  # fmt: skip
    values = {str(dtype): (torch.rand(3, 700) * 100).to(dtype) for dtype in types}
    values |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "transposed": torch.rand(70, 50).t(),
        "parameter": nn.Parameter(torch.rand(5)),
        "conjugate": torch.rand(4, dtype=torch.complex64).conj(),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    }
    with opened(MemoryDirectory()) as made:
        made.commit(1, {"state": pack(values)})
        restored = made.restore()
        assert restored is not None
        found = restored.part("state", CONVERT)
    for name, value in values.items():
        other, value = found[name], value.detach().resolve_conj()
        assert other.dtype == value.dtype and other.shape == value.shape, name
        same = (a.contiguous().reshape(-1).view(torch.uint8) for a in (other, value))
        assert torch.equal(*same) if value.numel() else True, name
    for bad in (torch.rand(3, 3).to_sparse(), torch.empty(3, device="meta")):
        with pytest.raises(UsageError, match="model/w: a tensor of"):
            pack({"w": bad}, "model")


def draw() -> tuple[float, ...]:
    return random.gauss(0, 1), random.random(), np.random.normal(), float(torch.randn(()))  # noqa: S311


def test_generators_go_on_where_they_were():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    np.random.normal()  # of two that are drawn together, one is kept
    random.gauss(0, 1)
    with opened(MemoryDirectory()) as made:
        made.commit(1, {"random": random_state()})
        drawn = [draw() for _ in range(5)]
        restored = made.restore()
        assert restored is not None
        set_random_state(restored.part("random", CONVERT))
        assert [draw() for _ in range(5)] == drawn


class Run:
    """A training of a few steps, whose order, noise and weights are told."""

    def __init__(self, made: mirror.Mirror, loader: object, **options: object) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        parts = {"model": self.model, "optimizer": self.optimizer}
        self.training = Training(made, loader=loader, **parts, **options)  # type: ignore[arg-type]
        self.seen: list[object] = []

    def go(self, epochs: int, *, stop: int = 1 << 30) -> list[object]:
        self.training.restore()
        for epoch, batches in self.training.epochs(epochs):
            for batch in batches:
                loss = self.model(batch[0] / 40).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.seen.append((epoch, batch[0].tolist(), loss.item()))
                self.training.commit(loss=loss.item())
                if self.training.step >= stop:
                    return self.seen
        return self.seen


def loaders(kind: str) -> object:
    data = TensorDataset(torch.arange(34, dtype=torch.float32).reshape(17, 2))
    if kind == "plain":
        return DataLoader(data, batch_size=4)
    if kind == "shuffled":
        return DataLoader(data, batch_size=4, shuffle=True)
    if kind == "dropping":
        return DataLoader(data, batch_size=4, shuffle=True, drop_last=True)
    if kind == "generator":
        return DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(8))
    if kind == "weighted":
        return DataLoader(data, batch_size=4, sampler=WeightedRandomSampler(torch.rand(17).tolist(), 17))
    return DataLoader(data, batch_size=None, shuffle=True)


@pytest.mark.parametrize("kind", ["plain", "shuffled", "dropping", "generator", "weighted", "single"])
def test_every_place_in_the_data_can_be_gone_on_from(kind):
    def loader() -> object:
        torch.manual_seed(4)
        return loaders(kind)

    with opened(MemoryDirectory()) as made:
        whole = Run(made, loader()).go(3)
    for stop in range(1, len(whole)):
        directory = MemoryDirectory()
        with opened(directory) as made:
            first = Run(made, loader()).go(3, stop=stop)
        torch.manual_seed(99)  # a new process begins somewhere else
        with opened(directory) as made:
            assert [*first, *Run(made, loader()).go(3)] == whole, stop


def test_an_epoch_may_be_left_early():
    def some(made: mirror.Mirror) -> list[object]:
        run = Run(made, loaders("shuffled"))
        run.training.restore()
        for epoch, batches in run.training.epochs(3):
            for number, batch in enumerate(batches):
                run.seen.append((epoch, batch[0].tolist()))
                run.training.commit()
                if number == 1:
                    break
        return run.seen

    with opened(MemoryDirectory()) as made:
        assert len(some(made)) == 6


def test_a_loader_with_a_state_of_its_own_sees_to_itself():
    class Own:
        def __init__(self) -> None:
            self.at = 0

        def __iter__(self):
            while self.at < 5:
                self.at += 1
                yield (torch.full((1, 2), float(self.at)),)
            self.at = 0

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, state):
            self.at = state["at"]

    directory = MemoryDirectory()
    with opened(MemoryDirectory()) as made:
        whole = Run(made, Own()).go(2)
    with opened(directory) as made:
        first = Run(made, Own()).go(2, stop=3)
    with opened(directory) as made:
        assert [*first, *Run(made, Own()).go(2)] == whole


def test_values_come_back_and_older_steps_too():
    directory = MemoryDirectory()
    with opened(directory, keep=5) as made:
        whole = Run(made, loaders("shuffled"))
        seen = whole.go(1)
        again = Run(made, loaders("shuffled"))
        assert again.training.restore(step=2) == 2
        assert again.training.values == {"loss": seen[1][2]}  # type: ignore[index]
        assert again.training.step == 2
        assert [*seen[:2], *again.go(1)] == seen


def test_what_does_not_fit_is_refused():
    directory = MemoryDirectory()
    with opened(directory) as made:
        run = Run(made, loaders("plain"))
        run.go(1, stop=1)
        with pytest.raises(UsageError, match="parts: model, and the mirror holds model, optimizer"):
            Training(made, loader=loaders("plain"), model=run.model).restore()
        with pytest.raises(UsageError, match="loader: missing"):
            Training(made, model=run.model, optimizer=run.optimizer).restore()
        with pytest.raises(UsageError, match="lr: a float, wanted something with state_dict"):
            Training(made, lr=0.1)
        with pytest.raises(UsageError, match="loader: a list"):
            Training(made, loader=[1, 2])
        with pytest.raises(UsageError, match="this training has no loader"):
            Training(made, model=run.model).epochs(1)

        class Stream(IterableDataset):
            def __iter__(self):
                return iter(())

        with pytest.raises(UsageError, match="IterableDataset, which cannot be positioned"):
            Training(made, loader=DataLoader(Stream()))
    with opened(MemoryDirectory()) as made:
        made.commit(1, {"other": 1})
        with pytest.raises(UsageError, match="holds no 'parts'"):
            Training(made, model=nn.Linear(1, 1)).restore()


def test_a_generator_may_be_a_part():
    with opened(MemoryDirectory()) as made:
        generator = torch.Generator().manual_seed(6)
        training = Training(made, noise=generator)
        training.commit()
        drawn = torch.rand(3, generator=generator)
        training.restore()
        assert torch.equal(torch.rand(3, generator=generator), drawn)


def assert_slowed_steps_count(now: list[float]) -> None:
    """A commit that holds up nothing, but makes the next four steps half as slow again, costs two steps."""

    class Sealing:
        left = 4

        @property
        def done(self) -> bool:
            return self.left <= 0

    pace = Pace("auto", budget=0.05, clock=lambda: now[0])
    began, steps, commits, sealing = now[0], 3000, 0, Sealing()
    sealing.left = 0
    for _ in range(steps):
        now[0] += 0.01 if sealing.done else 0.015
        sealing.left -= 1
        if pace.due():
            assert sealing.done, "one at a time"
            commits, sealing = commits + 1, Sealing()
            pace.committed(sealing)
    assert pace.every in (48, 49)
    assert commits > 50
    assert now[0] - began < steps * 0.01 * 1.05


def test_commits_keep_to_their_budget():
    now = [0.0]
    pace = Pace("auto", budget=0.05, clock=lambda: now[0])
    commits, stalled = [], 0.0
    for step in range(2000):
        now[0] += 0.01
        if pace.due():
            commits.append(step)
            now[0] += 0.02
            stalled += 0.02
            pace.committed()
    assert len(commits) > 20
    assert stalled / now[0] < 0.05
    assert pace.every == 48
    assert_slowed_steps_count(now)
    fixed = Pace(3, clock=lambda: now[0])
    due = []
    for _ in range(9):
        if fixed.due():
            fixed.committed()
            due.append(True)
        else:
            due.append(False)
    assert due == [False, False, True] * 3
    for bad in (0, -1, 1.5, True, "often"):
        with pytest.raises(UsageError):
            Pace(bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Pace("auto", budget=0)
