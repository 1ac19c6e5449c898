"""A Lightning `fit` goes on bit for bit after kills. Run as a program, this file is the training that is killed."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("lightning") is None:
    pytest.skip("needs lightning", allow_module_level=True)

EPOCHS = 3
BATCHES = 8
SETUPS = {
    "sgd": {"optimizer": "SGD", "with": {"lr": 0.05, "momentum": 0.9}},
    "adamw": {"optimizer": "AdamW", "with": {"lr": 0.01}, "workers": 1},
    "in groups": {"optimizer": "Adam", "with": {"lr": 0.01}, "accumulate": 3, "every": 2, "check": 4},
}


def program() -> Any:
    """The training; Lightning is imported here, as the test itself needs it not."""
    import numpy as np
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from strongroom import mirror
    from strongroom.mirror.lightning import MirrorCallback, MirrorLoader
    from strongroom.sealed import FileAnchor

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec")

    class Noisy(Dataset[Any]):
        inputs = np.random.default_rng(7).normal(size=(60, 10)).astype(np.float32)

        def __len__(self) -> int:
            return len(self.inputs)

        def __getitem__(self, index: int) -> torch.Tensor:
            noise = random.random() + float(np.random.normal()) + torch.randn(10)  # noqa: S311
            return torch.from_numpy(self.inputs[index]) + 0.1 * noise

    class Model(LightningModule):
        def __init__(self, optimizer: str, more: dict[str, Any]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 10))

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return nn.functional.mse_loss(self.net(batch), batch)

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            self.log("val", nn.functional.mse_loss(self.net(batch), batch) + torch.rand(()))

        def configure_optimizers(self) -> Any:
            made = getattr(torch.optim, self.hparams["optimizer"])(self.parameters(), **self.hparams["more"])
            steps = torch.optim.lr_scheduler.StepLR(made, 2, 0.9)
            return [made], [{"scheduler": steps, "interval": "epoch"}]

    class Log(Callback):
        def __init__(self, path: Path, mirrored: MirrorCallback, die_at: int) -> None:  # below 0: after a validation
            self.lines = path.open("a", buffering=1)
            self.mirrored, self.die_at = mirrored, die_at

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            step = self.mirrored.step + 1
            rate, drawn = trainer.optimizers[0].param_groups[0]["lr"], random.random()  # noqa: S311
            logged = trainer.fit_loop.epoch_loop._batches_that_stepped  # the step that loggers are told
            loss = outputs["loss"].item().hex()
            self.lines.write(f"{step} {trainer.current_epoch} {loss} {rate} {drawn} {logged}\n")
            if step == self.die_at:
                os.killpg(0, signal.SIGKILL)

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            value = trainer.callback_metrics["val"].item().hex()
            self.lines.write(f"val{trainer.current_epoch}.{self.mirrored.step} {value}\n")
            if self.mirrored.step == -self.die_at:
                os.killpg(0, signal.SIGKILL)

    def train(directory: Path, log: Path, setup: dict[str, Any], die_at: int) -> None:
        torch.manual_seed(1)
        random.seed(2)
        np.random.seed(3)
        model = Model(setup["optimizer"], setup["with"])
        loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=setup.get("workers", 0))
        checks = DataLoader(Noisy.inputs[:20], batch_size=10)
        with mirror.open(
            directory / "m", key=bytes(32), anchor=FileAnchor(directory / "a"), durability="process"
        ) as opened:
            mirrored = MirrorCallback(opened, every=setup.get("every", 1))
            trainer = Trainer(
                max_epochs=EPOCHS,
                accelerator="cpu",
                callbacks=[Log(log, mirrored, die_at), mirrored],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                accumulate_grad_batches=setup.get("accumulate", 1),
                val_check_interval=setup.get("check", 1.0),
                default_root_dir=directory,
            )
            trainer.fit(model, MirrorLoader(loader), checks, ckpt_path=mirrored.resume())
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in model.state_dict().values()))
        digest.update(repr([random.random(), np.random.random(), torch.rand(()).item()]).encode())  # noqa: S311
        with log.open("a") as lines:
            lines.write(f"end {digest.hexdigest()}\n")

    return train


def in_a_fork(function: Any, *arguments: Any) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()  # the loader's workers are killed with it, as they hold the mirror's lock
            function(*arguments)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        while True:  # until its workers are gone too
            os.killpg(child, 0)
            time.sleep(0.001)
    return status


def curve(log: Path) -> dict[str, list[str]]:
    said: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        step, _, value = line.partition(" ")
        said.setdefault(step, set()).add(value)
    return {step: sorted(values) for step, values in said.items()}


def main(directory: Path) -> None:
    train = program()
    for name, setup in SETUPS.items():
        here = directory / name
        (here / "alone").mkdir(parents=True)
        (here / "killed").mkdir()
        assert in_a_fork(train, here / "alone", here / "alone.log", setup, 0) == 0
        done = 0
        for die_at in [3, -setup.get("check", BATCHES), BATCHES, 2 * BATCHES - 3, 2 * BATCHES + 1, EPOCHS * BATCHES]:
            done += os.WIFSIGNALED(in_a_fork(train, here / "killed", here / "killed.log", setup, die_at))
        for _ in range(2):  # the second time it is finished already
            assert in_a_fork(train, here / "killed", here / "killed.log", setup, 0) == 0
        print(
            json.dumps(
                {"name": name, "kills": done, "alone": curve(here / "alone.log"), "killed": curve(here / "killed.log")}
            )
        )


def refused(directory: Path) -> None:
    """What is not to be mirrored, or not so."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from strongroom import mirror
    from strongroom.errors import UsageError
    from strongroom.mirror.lightning import MirrorCallback, MirrorLoader
    from strongroom.sealed import FileAnchor

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.net(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(mirrored: MirrorCallback, loader: Any, path: str | None) -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[mirrored], enable_model_summary=False, **quiet)
        trainer.fit(Model(), loader, ckpt_path=path)

    loader = DataLoader(torch.zeros(4, 2), batch_size=2)
    with mirror.open(directory / "m", key=bytes(32), anchor=FileAnchor(directory / "a")) as opened:
        with pytest.raises(UsageError, match="data of a DataLoader, wanted a MirrorLoader"):
            fit(MirrorCallback(opened), loader, None)
        fit(MirrorCallback(opened), MirrorLoader(loader), None)
        assert opened.step == 2
        with pytest.raises(UsageError, match="begins at step 0, and the mirror is at 2"):
            fit(MirrorCallback(opened), MirrorLoader(loader), None)
        with pytest.raises(UsageError, match=r"wanted what resume\(\) gave, once"):
            fit(MirrorCallback(opened), MirrorLoader(loader), "strongroom.mirror")
        opened.commit(3, {"other": 1})
        with pytest.raises(UsageError, match="holds no training of Lightning"):
            MirrorCallback(opened).resume()
    with pytest.raises(UsageError, match="a generator without a length"):
        MirrorLoader(iter_of(loader))


def iter_of(loader: Any) -> Any:
    yield from loader


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lightning")
    return {one["name"]: one for one in map(json.loads, python(directory, "kills").splitlines())}


def python(directory: Path, what: str) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, __file__, str(directory), what], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_what_cannot_be_mirrored_is_refused(tmp_path):
    python(tmp_path, "refused")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize("name", SETUPS)
def test_a_killed_training_ends_as_one_left_alone(said, name):
    one = said[name]
    assert one["kills"] == 6
    assert len(one["alone"]) > EPOCHS * BATCHES
    differ = {step for step in one["alone"] | one["killed"] if one["alone"].get(step) != one["killed"].get(step)}
    assert not differ, {step: (one["alone"].get(step), one["killed"].get(step)) for step in sorted(differ)[:5]}


def test_the_example_of_the_guide_runs_and_goes_on(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "mirror-frameworks.md").read_text()
    blocks = dict(re.findall(r"^```python\n# ([a-z.]+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    (tmp_path / "common.py").write_text(blocks["common.py"])
    (tmp_path / "example.py").write_text(blocks["lightning"])
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr


if __name__ == "__main__":
    {"kills": main, "refused": refused}[sys.argv[2]](Path(sys.argv[1]))
