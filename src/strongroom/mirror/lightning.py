"""PyTorch Lightning under a mirror: ``trainer.fit`` that goes on at any batch.

::

    with mirror.open("run.mirror", key=key, anchor=anchor) as opened:
        mirrored = MirrorCallback(opened)
        trainer = Trainer(max_epochs=10, callbacks=[mirrored])
        trainer.fit(model, MirrorLoader(loader), ckpt_path=mirrored.resume())

What it holds: all that a checkpoint of Lightning does (module, optimizers, schedulers, precision, loops, callbacks with
a state); the random generators of PyTorch, NumPy and Python; the place in the data. It uses Lightning's own way of
resuming, with the mirror for a file.

What it cannot hold, as Lightning cannot:

- what `self.log` has gathered of an epoch: the mean of a training metric over an epoch that was resumed is over the
  rest of it. Whatever watches such a mean may decide otherwise; what watches validation does not;
- what a module's own ``on_train_batch_end`` does: it comes after the commit of that batch;
- metrics of torchmetrics that are not persistent, and callbacks without a ``state_dict``;
- several processes: this is for one;
- gradients that are being accumulated, and a validation that is due: there is no commit between, but before and after.

Generators of the program's own are not held, nor kernels that are not deterministic (``Trainer(deterministic=True)``).
"Bit for bit" is among runs with the same versions and threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, Final, Literal

from strongroom.errors import MissingDependencyError, UsageError
from strongroom.mirror.commit import Commit
from strongroom.mirror.cursor import Cursor
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.pace import BUDGET, Pace
from strongroom.mirror.staging import Staging
from strongroom.mirror.torch import CONVERT, commit_staged, random_state, set_random_state

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.plugins.io import CheckpointIO


def _find() -> tuple[Any, Any]:
    """Lightning's callback and checkpoint classes, of whichever of its two packages is there."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return found.Callback, importlib.import_module(f"{name}.plugins.io").CheckpointIO
    raise MissingDependencyError("mirror: needs PyTorch Lightning", hint="pip install lightning")


if not TYPE_CHECKING:
    Callback, CheckpointIO = _find()

NAME: Final = "strongroom.mirror"
"""What Lightning is told for the path of a checkpoint that is in the mirror."""

_EVER: Final = 1 << 62

# Not needed to go on, and of any type.
_LEFT_OUT: Final = ("hparams_name", "hyper_parameters", "hparams_type", "datamodule_hyper_parameters",
                    "datamodule_hparams_name", "datamodule_hparams_type")  # fmt: skip


class MirrorLoader:
    """Batches of a loader that can go on at any of them; Lightning keeps the place with its checkpoints.

    Args:
        loader: a `DataLoader`, with any sampler and workers, of a length; or one with a ``state_dict`` of its own.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not isinstance(loader, Sized):
            raise UsageError(f"loader: a {type(loader).__name__} without a length, wanted one that has it")
        self._length = len(loader)
        self._cursor = Cursor(loader, random_state, set_random_state)
        self._epochs = self._cursor.epochs(_EVER)
        self._random: Any = None  # the generators in the middle of an epoch, until its batches go on

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning makes more iterators than it uses, and an epoch begins with the first batch.
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        _, batches = next(self._epochs)
        yield from batches

    def state_dict(self) -> dict[str, Any]:
        """Its place, and the generators as they are."""
        place = self._cursor.state()
        if place["batch"] >= self._length:  # Lightning takes no more once it has as many as there are
            place = {**place, "epoch": place["epoch"] + 1, "batch": 0, "began": None}
        return {"place": place, "random": random_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self._cursor.go_to(state["place"])
        self._epochs = self._cursor.epochs(_EVER)
        self._random = state["random"] if state["place"]["began"] is not None else None


class MirrorCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Mirrors a `Trainer.fit`, and lets the next one go on from there. Put it last among the callbacks.

    Args:
        mirror: that is open. Its steps are batches since the beginning.
        every: batches between two commits, or ``auto``: as often as `budget` allows. The end of `fit` is always
            committed.
        budget: the share of the time that training may wait for commits.

    Attributes:
        step: of the last batch.

    Every method that Lightning calls raises as `Mirror.begin`.
    """

    def __init__(self, mirror: Mirror, *, every: int | Literal["auto"] = 1, budget: float = BUDGET) -> None:
        self._mirror = mirror
        self._staging = Staging()
        self.pace = Pace(every, budget=budget)
        self.step = 0
        self._random: Any = None
        self._due = False
        self._between = False  # two epochs
        self._stepped: int | None = None  # what loggers were told, if resumed
        self._checkpoint: dict[str, Any] | None = None

    # Resuming.

    def resume(self, step: int | None = None) -> str | None:
        """Read the newest commit, or an older one that is kept; the `ckpt_path` for `fit`. None if there is none yet.

        Raises:
            UsageError: the commit is not of Lightning.
            as `Mirror.restore`.
        """
        restored = self._mirror.restore(step)
        if restored is None:
            return None
        try:
            if "lightning" not in restored:
                raise UsageError("mirror: holds no training of Lightning, wanted one that a MirrorCallback committed")
            self._checkpoint = restored.part("lightning", CONVERT)
        finally:
            restored.close()
        return NAME

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Be the file that Lightning's checkpoint of the name `NAME` is. Raises UsageError for several processes."""
        if trainer.world_size != 1:
            raise UsageError(f"trainer: of {trainer.world_size} processes, wanted one")
        if not isinstance(trainer.strategy.checkpoint_io, _MirrorIO):
            trainer.strategy.checkpoint_io = _MirrorIO(self, trainer.strategy.checkpoint_io)

    def state_dict(self) -> dict[str, Any]:
        """The step, and the generators as they are."""
        return {"step": self.step, "random": random_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on there."""
        self.step, self._random = state_dict["step"], state_dict["random"]

    # The training.

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raises UsageError for other data than a `MirrorLoader`, or if the mirror holds more than was resumed."""
        loader = trainer.train_dataloader
        if not isinstance(loader, MirrorLoader):
            raise UsageError(f"fit: data of a {type(loader).__name__}, wanted a MirrorLoader around it")
        if self._mirror.step is not None and self._mirror.step != self.step:
            raise UsageError(
                f"fit: begins at step {self.step}, and the mirror is at {self._mirror.step}",
                hint="trainer.fit(..., ckpt_path=mirrored.resume())",
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The end of the epoch before, with its validation and schedulers: commit it, or go on from there."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        elif self._due:
            self._between = True
            try:
                self._commit(trainer)
            finally:
                self._between = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lightning counts one step too many, for loggers, when it goes on at the beginning of an epoch."""
        if self._stepped is not None and batch_idx == 0:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._stepped
        self._stepped = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Commit, if it is time, and if nothing is half done."""
        self._random = None  # the loader has put back those of the middle of an epoch
        self.step += 1
        self._due = self.pace.due() or self._due
        done = batch_idx + 1
        checks = trainer.val_check_batch
        half = done % trainer.accumulate_grad_batches or trainer.is_last_batch
        if isinstance(checks, int) and trainer.enable_validation and done % checks == 0:
            half = True
        if self._due and not half:
            self._commit(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Commit what was reached."""
        if self._mirror.step is None or self._mirror.step < self.step:
            self._commit(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the generators back also where there was nothing left to train."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _commit(self, trainer: Any) -> None:
        self._commit_made: Commit | None = None
        trainer.save_checkpoint(NAME, weights_only=False)
        self.pace.committed(self._commit_made)
        self._due = False

    def _save(self, checkpoint: Mapping[str, Any]) -> None:
        kept = {name: part for name, part in checkpoint.items() if name not in _LEFT_OUT}
        if self._between:
            kept["loops"] = {**kept["loops"], "fit_loop": _begun(kept["loops"]["fit_loop"])}
        self._commit_made = commit_staged(self._mirror, self.step, {"lightning": kept}, self._staging)

    def _load(self) -> dict[str, Any]:
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            raise UsageError(f"ckpt_path: {NAME}, wanted what resume() gave, once", hint="ckpt_path=mirrored.resume()")
        self._stepped = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"].get("_batches_that_stepped")
        return checkpoint


def _begun(loop: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a fit loop whose epoch has just begun, with no batch of it done.

    Lightning counts from 0 again only later, and a loop that is resumed goes on counting: it would take the epoch for
    done.
    """
    made = dict(loop)
    for name, part in loop.items():
        if name.startswith("epoch_loop.") and name.endswith("progress"):
            made[name] = _zeroed(part, total=name == "epoch_loop.val_loop.batch_progress")
    return made


def _zeroed(part: Any, *, total: bool, inside: bool = False) -> Any:
    if isinstance(part, Mapping):
        zero = {"current"} | ({"total"} if total else set())
        return {key: _zeroed(value, total=total, inside=inside or key in zero) for key, value in part.items()} | (
            {"is_last_batch": False} if "is_last_batch" in part else {}
        )
    return 0 if inside else part


class _MirrorIO(CheckpointIO):  # type: ignore[misc,unused-ignore]
    """Checkpoints of the name `NAME` in the mirror, all others as before."""

    def __init__(self, mirrored: MirrorCallback, inner: Any) -> None:
        self._mirrored = mirrored
        self._inner = inner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if str(path) == NAME:
            self._mirrored._save(checkpoint)
        else:
            self._inner.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, *arguments: Any, **more: Any) -> Any:
        if str(path) == NAME:
            return self._mirrored._load()
        return self._inner.load_checkpoint(path, *arguments, **more)

    def remove_checkpoint(self, path: Any) -> None:
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        self._inner.teardown()
