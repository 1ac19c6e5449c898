"""PyTorch's optimizers, schedulers, models and loaders, stopped and gone on with: the same bits, or a clear refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # skipped without it
from torch.optim import lr_scheduler  # noqa: E402
from torch.optim.swa_utils import AveragedModel  # noqa: E402
from torch.utils.data import (  # noqa: E402
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    Subset,
)

from strongroom import mirror  # noqa: E402
from strongroom.errors import UsageError  # noqa: E402
from strongroom.mirror.torch import Training, pack  # noqa: E402
from strongroom.sealed import NO_FRESHNESS  # noqa: E402
from strongroom.storage import MemoryDirectory  # noqa: E402

KEY = bytes(range(32))


def opened(directory: MemoryDirectory) -> mirror.Mirror:
    return mirror.open(directory, key=KEY, anchor=NO_FRESHNESS, block_size=4096)


class Noisy(Dataset):
    """Records that every global generator has a part in."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.rand(4) + random.random() + np.random.rand()  # noqa: S311  # not for secrets
        return torch.full((4,), float(index)) + noise / 10


class Setup:
    """A training: a model, what else has a state, and a loader, all made anew by each process."""

    def __init__(
        self,
        model: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 1)),
        optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
        loader: Callable[[], Any] = lambda: DataLoader(Noisy(), 4, shuffle=True),
        more: Callable[[nn.Module, Any], dict[str, Any]] = lambda model, optimizer: {},
    ) -> None:
        self.model, self.optimizer, self.loader, self.more = model, optimizer, loader, more

    def run(self, directory: MemoryDirectory, *, stop: int = 1 << 30, between: bool = False) -> list[object]:
        seen: list[object] = []
        with opened(directory) as made:
            seed = 3 if made.step is None else 99  # a new process begins somewhere else
            torch.manual_seed(3)  # but its model is of the same shape
            model, loader = self.model(), self.loader()
            optimizer = self.optimizer(model.parameters())
            more = self.more(model, optimizer)
            torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
            every = 1000 if between else 1
            training = Training(made, loader=loader, every=every, model=model, optimizer=optimizer, **more)
            training.restore()
            for epoch, batches in training.epochs(2):
                for batch in batches:
                    loss = self.step(model, optimizer, batch / 20, **more)
                    seen.append((epoch, batch.tolist(), loss))
                    training.commit()
                    if training.step >= stop and not between:
                        return seen
                if between:
                    training.commit(force=True)
                    if training.step >= stop:
                        return seen
        return seen

    def step(self, model, optimizer, batch, *, scheduler=None, scaler=None, average=None) -> float:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=scaler is not None):
                loss = model(batch).square().mean()
            (loss if scaler is None else scaler.scale(loss)).backward()
            return loss

        if scaler is not None:
            loss = closure()
            scaler.step(optimizer), scaler.update()
        else:
            loss = optimizer.step(closure)
        if scheduler is not None:
            metrics = [loss.item()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []
            scheduler.step(*metrics)
        if average is not None:
            average.update_parameters(model)
            return average(torch.ones(4)).item()
        return loss.item()

    def check(self, stops: tuple[int, ...] = (1, 3, 4, 6), *, between: bool = False) -> None:
        whole = self.run(MemoryDirectory(), between=between)
        for stop in stops:
            directory = MemoryDirectory()
            first = self.run(directory, stop=stop, between=between)
            assert [*first, *self.run(directory, between=between)] == whole, stop


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(torch.tanh(self.one(x)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 3, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding((x * 20).long().clamp(0, 29))


class Counting(nn.Module):
    """As models of other libraries do, it has a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.count = nn.Linear(4, 1), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.linear(x) * (1 + self.count / 100)

    def get_extra_state(self) -> Any:
        return {"count": self.count, "shape": (1, 2), "name": "counting"}

    def set_extra_state(self, state: Any) -> None:
        assert state["shape"] == (1, 2) and state["name"] == "counting"
        self.count = state["count"]


MODELS = {
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), backend="eager"),
    "tied": Tied,
    "counting": Counting,
    "lazy": lambda: nn.LazyLinear(1),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, in what it compiles
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    Setup(model=MODELS[name]).check()


OPTIMIZERS = {
    "sparse": (lambda parameters: torch.optim.SparseAdam(list(parameters)), Words),
    "lbfgs": (lambda parameters: torch.optim.LBFGS(parameters, max_iter=3, history_size=3), lambda: nn.Linear(4, 1)),
    "fused": (lambda parameters: torch.optim.AdamW(parameters, fused=True), lambda: nn.Linear(4, 1)),
    "foreach": (lambda parameters: torch.optim.AdamW(parameters, foreach=True, amsgrad=True), lambda: nn.Linear(4, 1)),
    "a rate that is a tensor": (
        lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01)),
        lambda: nn.Linear(4, 1),
    ),
    "nadam": (torch.optim.NAdam, lambda: nn.Linear(4, 1)),
    "rprop": (torch.optim.Rprop, lambda: nn.Linear(4, 1)),
    "adafactor": (torch.optim.Adafactor, lambda: nn.Linear(4, 1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    optimizer, model = OPTIMIZERS[name]
    Setup(model=model, optimizer=optimizer).check()


SCHEDULERS = {
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, 10)], milestones=[3]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, scale_fn=lambda x: 0.9**x),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name):
    Setup(more=lambda model, optimizer: {"scheduler": SCHEDULERS[name](optimizer)}).check()


def test_a_scaler_and_an_average():
    Setup(more=lambda model, optimizer: {"scaler": torch.amp.GradScaler("cpu", growth_interval=2)}).check()

    def average(model: nn.Module, optimizer: Any) -> dict[str, Any]:
        return {"average": AveragedModel(model, use_buffers=True).eval()}

    Setup(more=average).check()


class Threes(Sampler):
    def __iter__(self):
        order = torch.randperm(13).tolist()
        for at in range(0, 13, 3):
            yield order[at : at + 3]

    def __len__(self) -> int:
        return 5


def _own() -> torch.Generator:
    return torch.Generator().manual_seed(4)


LOADERS: dict[str, Callable[[], Any]] = {
    "batch sampler": lambda: DataLoader(Noisy(), batch_sampler=Threes()),
    "subset": lambda: DataLoader(Subset(Noisy(), [1, 3, 5, 7, 9, 11, 12]), 2, shuffle=True),
    "two data sets": lambda: DataLoader(ConcatDataset([Noisy(), Noisy()]), 6, shuffle=True),
    "replacement": lambda: DataLoader(Noisy(), 8, sampler=RandomSampler(Noisy(), replacement=True, num_samples=40)),
    "distributed": lambda: DataLoader(Noisy(), 2, sampler=DistributedSampler(Noisy(), num_replicas=2, rank=1)),
}
WITH_WORKERS: dict[str, Callable[[], Any]] = {
    "prefetch, batch sampler": lambda: DataLoader(
        Noisy(), batch_sampler=Threes(), num_workers=2, prefetch_factor=3, multiprocessing_context="fork"
    ),
    "a generator of its own": lambda: DataLoader(
        Noisy(), 4, shuffle=True, num_workers=2, generator=_own(), multiprocessing_context="fork"
    ),
    "workers that stay, and a generator": lambda: DataLoader(
        Noisy(), 4, shuffle=True, num_workers=1, persistent_workers=True, generator=_own(),
        multiprocessing_context="fork",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name):
    Setup(loader=LOADERS[name]).check()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process that has threads
@pytest.mark.parametrize("name", WITH_WORKERS)
def test_loaders_with_workers(name):
    setup = Setup(loader=WITH_WORKERS[name])
    setup.check((2, 7))
    setup.check((4,), between=True)


class Doubling(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch * 2


def test_what_would_not_go_on_is_refused():
    model = nn.Linear(4, 1)
    with opened(MemoryDirectory()) as made:
        with pytest.raises(UsageError, match="loader: a Doubling, which gives batches in a way of its own"):
            Training(made, model=model, loader=Doubling(Noisy()))
        loader = DataLoader(Noisy(), 4)
        training = Training(made, model=model, loader=loader)
        training.commit()  # before the first batch
        with pytest.raises(UsageError, match=r"loader: gave no batches by epochs\(\)"):
            for _ in loader:
                training.commit()
    directory = MemoryDirectory()
    with opened(directory) as made:
        training = Training(made, model=model, loader=DataLoader(Noisy(), 4))
        _, batches = next(training.epochs(1))
        next(batches)
        training.commit()
        with pytest.raises(UsageError, match="3 batches in an epoch, and the mirror is in the middle of one of 4"):
            Training(made, model=model, loader=DataLoader(Noisy(), 5)).restore()


def test_parts_that_do_not_take_their_state_are_refused_by_name():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with opened(MemoryDirectory()) as made:
        model(torch.ones(4)).backward()
        optimizer.step()
        Training(made, model=model, optimizer=optimizer).commit()
        for other, wanted in [
            ({"model": nn.Linear(4, 2)}, "model: .*size mismatch for weight"),
            ({"model": torch.compile(nn.Linear(4, 1), backend="eager")}, "model: .*Missing key.*_orig_mod"),
            ({"optimizer": torch.optim.Adam([model.weight])}, "optimizer: .*parameter group"),
            ({"optimizer": torch.optim.SGD(model.parameters())}, "optimizer: a SGD, which has .*momentum"),
        ]:
            parts = {"model": model, "optimizer": optimizer, **other}
            with pytest.raises(UsageError, match=wanted):
                Training(made, **parts).restore()


def test_tensors_that_are_none_of_one_piece_are_refused_by_name():
    from torch.testing._internal.two_tensor import TwoTensor

    class Opaque(Counting):
        def get_extra_state(self) -> Any:
            return object()

    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    for state, wanted in [
        ({"w": TwoTensor(torch.ones(2), torch.ones(2))}, "m/w: a TwoTensor of several tensors"),
        ({"w": nested}, "m/w: a tensor of .*jagged"),
        (
            nn.Linear(2, 2, device="meta").state_dict(),
            r"m/weight: a tensor of torch.float32 \(torch.strided, on meta\)",
        ),
    ]:
        with pytest.raises(UsageError, match=wanted):
            pack(state, "m")
    with opened(MemoryDirectory()) as made, pytest.raises(UsageError, match="parts/model/_extra_state: a object"):
        Training(made, model=Opaque()).commit()
