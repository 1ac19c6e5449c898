"""Keras training under a mirror: ``model.fit`` that goes on at any batch, bit for bit, with any backend.

::

    data = OrderedData(dataset, 64, seed=1)
    with mirror.open("run.mirror", key=key, anchor=anchor) as opened:
        mirrored = MirrorCallback(opened, data)
        model.fit(data, epochs=10, initial_epoch=mirrored.resume(), shuffle=False, callbacks=[mirrored])

What it holds: all variables of the model, its metrics and its optimizer (seed generators of layers are among them), the
global seed generator of Keras, the random generators of Python, NumPy and PyTorch, the place in the data, the history,
and the memory of the callbacks that it is told of. What it cannot hold: the generators of TensorFlow (``tf.random``;
Keras's own layers do not use them), other callbacks' memory, and kernels that are not deterministic. "Bit for bit" is
among runs with the same versions and threads.

- `fit` cannot be positioned. So the data are, and the first epoch after resuming is a short one; metrics go on in it.
- What is committed after an epoch's last batch is the state at the epoch's end, after validation and other callbacks.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import keras
import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError
from strongroom.mirror.manifest import Entry, unique
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.ordered import OrderedData
from strongroom.mirror.pace import BUDGET, Pace
from strongroom.mirror.restored import Convert
from strongroom.mirror.state import EXTENSION_TYPES, Array, of_numpy

__all__ = ["NO_EPOCH", "MirrorCallback", "OrderedData"]

NO_EPOCH: Final = 1 << 62
"""What `MirrorCallback.resume` gives for a run that was stopped: an epoch that no `fit` reaches."""

# Callbacks of Keras that decide how the training goes on, and what they remember from one epoch to the next.
_MEMORY: Final = {
    "EarlyStopping": ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    "ReduceLROnPlateau": ("wait", "cooldown_counter", "best"),
}


class MirrorCallback(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
    """Mirrors a `fit`, and lets the next one go on from there. Put it last among the callbacks.

    Args:
        mirror: that is open. Its steps are batches since the beginning; without `data`, epochs.
        data: what `fit` is given. None for anything else: then there are commits at the ends of epochs only, and an
            epoch is the same again only if what orders it draws from a generator that is held.
        every: batches between two commits, or ``auto``: as often as `budget` allows. The state after the last epoch is
            always committed.
        budget: the share of the time that training may wait for commits.
        callbacks: `EarlyStopping` and `ReduceLROnPlateau` of the same `fit`, whose memory is kept too.

    Attributes:
        step: of the last batch or, without `data`, epoch.
        history: of all epochs, by the names in the logs; `fit` returns it too.

    Every method that Keras calls raises as `Mirror.begin`.
    """

    def __init__(
        self,
        mirror: Mirror,
        data: OrderedData | None = None,
        *,
        every: int | Literal["auto"] = 1,
        budget: float = BUDGET,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        for one in callbacks:
            if type(one).__name__ not in _MEMORY:
                raise UsageError(f"callbacks: a {type(one).__name__}, wanted {' or '.join(_MEMORY)}")
        self._mirror = mirror
        self._data = data
        self._callbacks = list(callbacks)
        self.pace = Pace(every, budget=budget)
        self.step = 0
        self.history: dict[str, list[Any]] = {}
        self._epochs: list[int] = []
        self._epoch = self._start = 0  # the place where the epoch under way began
        self._batch = 0  # batches of it that are done
        self._due = False
        self._state: dict[str, Any] | None = None  # restored, and not yet put back for good
        self._resumed = False

    # Resuming.

    def resume(self, step: int | None = None, *, stopped: bool = True) -> int:
        """Read the newest commit, or an older one that is kept; the `initial_epoch` for `fit`, which puts it back.

        0 if there is none yet. `NO_EPOCH` if a callback had stopped the training at an epoch's end: `fit` then trains
        no more.

        Args:
            stopped: False to train on all the same.

        Raises:
            UsageError: the commit is not of Keras, or of another backend or other data.
            as `Mirror.restore`.
        """
        self._resumed = True
        restored = self._mirror.restore(step)
        if restored is None:
            return 0
        try:
            state = {name: restored.part(name, _CONVERT) for name in restored}
        finally:
            restored.close()
        place = state.get("keras")
        if not isinstance(place, dict):
            raise UsageError("mirror: holds no training of Keras, wanted one that a MirrorCallback committed")
        if place["backend"] != keras.backend.backend():
            raise UsageError(f"backend: {keras.backend.backend()}, and the mirror is of {place['backend']}")
        settings = self._data.settings if self._data else None
        if place["data"] != settings:
            raise UsageError(
                f"data: {_named(settings)}, and the mirror is of {_named(place['data'])}",
                hint="give the same data in the same batches, or start another mirror",
            )
        self._state = state
        self.step, self._epoch, self._start = restored.step, place["epoch"], place["batch"]
        self._epochs, self.history = list(place["epochs"]), place["history"]
        return NO_EPOCH if place["stopped"] and stopped else self._epoch

    def on_train_begin(self, logs: Any = None) -> None:
        """Put the state back. Raises UsageError if the model, the optimizer or the callbacks are not as they were."""
        if not self._resumed:
            raise UsageError(
                "fit: not resumed, wanted resume() before each fit", hint="fit(..., initial_epoch=mirrored.resume())"
            )
        self._resumed = False
        if self._data is not None and self.params.get("steps") is not self._data.num_batches:
            raise UsageError(
                "fit: other data than the callback's, or steps_per_epoch, wanted the OrderedData that it was given"
            )
        if self._state is not None:
            self._build(self._state["metrics"])
            self._put_back(self._state)
            _recall(self._callbacks, self._state["callbacks"])

    def _build(self, metrics: Mapping[str, Any]) -> None:
        """What TensorFlow leaves to the first batch: the variables of the optimizer and, where they matter, metrics."""
        model = self.model
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if self._start and self._data is not None and len(model.metrics_variables) < len(metrics):
            batch = self._data.example()
            model.test_on_batch(*(batch if isinstance(batch, tuple) else (batch,)))

    def on_train_end(self, logs: Any = None) -> None:
        """See to it that the history is whole."""
        self._show_history()

    # The training.

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Place the data. Raises UsageError if `fit` begins with another epoch than `resume` said."""
        if epoch != self._epoch:
            raise UsageError(
                f"initial_epoch: {epoch}, wanted {self._epoch}", hint="fit(..., initial_epoch=mirrored.resume())"
            )
        self._show_history()
        self._batch = self._start
        if not self._start:
            self._state = None  # nothing that came since is to be undone
        if self._data is not None:
            self._data.go_to(epoch, self._start)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """In the middle of an epoch, undo what its beginning has done, here and before: metrics, rates, generators."""
        if self._state is not None:
            self._put_back(self._state)
            self._state = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Commit, if it is time and the epoch goes on."""
        if self._data is None:
            return
        self._batch = min(self._start + batch + 1, self._data.in_epoch)  # `batch` ends a group of steps_per_execution
        self.step = self._epoch * self._data.in_epoch + self._batch
        self._due = self.pace.due()
        if self._batch < self._data.in_epoch and (self._due or self.model.stop_training):
            self._commit()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Commit, if it is time, as the beginning of the next epoch."""
        if self._data is None:
            self.step = epoch + 1
            self._due = self.pace.due()
        elif self._batch < self._data.in_epoch:
            return  # stopped in the middle, from where it can go on
        self._epochs.append(epoch)
        for name, value in (logs or {}).items():
            plain = isinstance(value, (int, float, str, np.generic, np.ndarray))
            self.history.setdefault(name, []).append(value if plain else np.asarray(value))
        self._epoch, self._start, self._batch = epoch + 1, 0, 0
        if self._due or self.model.stop_training or self._epoch == self.params.get("epochs"):
            self._commit()

    # The state.

    def _commit(self) -> None:
        self.pace.committed(self._mirror.commit(self.step, self.state()))

    def state(self) -> dict[str, Any]:
        """The whole state as it is now."""
        model = self.model  # asking for it makes JAX's state the model's
        place = {
            "backend": keras.backend.backend(),
            "epoch": self._epoch,
            "batch": self._batch,
            "stopped": bool(model.stop_training) and self._batch == 0,
            "data": self._data.settings if self._data else None,
            "epochs": self._epochs,
            "history": self.history,
        }
        variables = {name: _pack(part, name) for name, part in _variables(model).items()}
        return {
            "keras": place,
            **variables,
            "callbacks": [_remember(one) for one in self._callbacks],
            "random": _random_state(),
        }

    def _put_back(self, state: Mapping[str, Any]) -> None:
        now = _variables(self.model)
        if "seeds" in state and "seeds" not in now:
            keras.random.uniform(())  # makes the global seed generator
            now = _variables(self.model)
        for name, variables in now.items():
            saved = state.get(name, {})
            if name == "metrics" and not self._start and len(variables) != len(saved):
                continue  # TensorFlow makes them later, and at the beginning of an epoch Keras resets them
            _assign(variables, saved, name)
        _set_random_state(state["random"])

    def _show_history(self) -> None:
        shown = getattr(self.model, "history", None)
        if shown is not None and self._epochs:
            shown.epoch[:] = self._epochs
            shown.history.update({name: list(values) for name, values in self.history.items()})


def _named(settings: Mapping[str, Any] | None) -> str:
    return "none" if settings is None else ", ".join(f"{name} {value}" for name, value in settings.items())


# Variables.


def _variables(model: Any) -> dict[str, list[Any]]:
    found = {"model": _once(model.variables), "optimizer": [], "metrics": list(model.metrics_variables)}
    taken = {id(one) for one in found["metrics"]}
    found["model"] = [one for one in found["model"] if id(one) not in taken]
    if model.optimizer is not None:
        found["optimizer"] = _once(model.optimizer.variables)
    state = sys.modules["keras.src.backend.common.global_state"]
    seeds = state.get_global_attribute("global_seed_generator")  # what layers and functions without a seed draw from
    if seeds is not None:
        found["seeds"] = [seeds.state]
    return found


def _once(variables: Sequence[Any]) -> list[Any]:
    return list({id(one): one for one in variables}.values())


def _array(variable: Any, path: str) -> Array:
    if keras.backend.backend() == "torch":
        from strongroom.mirror.torch import to_array

        return to_array(variable.value, path)  # without the copy that Keras makes
    return of_numpy(np.asarray(keras.ops.convert_to_numpy(variable.value)), path)


def _pack(variables: Sequence[Any], part: str) -> dict[str, Array]:
    paths = unique([str(one.path) for one in variables])
    return {path: _array(one, f"{part}/{path}") for path, one in zip(paths, variables, strict=True)}


def _assign(variables: Sequence[Any], saved: Mapping[str, Any], part: str) -> None:
    """By place, not by name: Keras numbers names on, so that a second model of a process has others."""
    if len(variables) != len(saved):
        raise UsageError(
            f"{part}: {len(variables)} variables, and the mirror holds {len(saved)}",
            hint="build and compile the model as it was, or start another mirror",
        )
    for variable, (path, array) in zip(variables, saved.items(), strict=True):
        now = _array(variable, f"{part}/{variable.path}")
        was = of_numpy(array, path)
        if (now.shape, now.dtype) != (was.shape, was.dtype):
            raise UsageError(
                f"{part}: {variable.path} is {now.dtype} {now.shape}, and the mirror's {path} {was.dtype} {was.shape}"
            )
        variable.assign(array)


def _view(entry: Entry, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if entry.dtype not in EXTENSION_TYPES:
        return array
    import ml_dtypes  # which Keras depends on

    return array.view(np.dtype(getattr(ml_dtypes, entry.dtype)))


_CONVERT: Final[dict[str, Convert]] = {"numpy": _view, "torch": _view}


# Other callbacks.


def _remember(callback: Any) -> dict[str, Any]:
    name = type(callback).__name__
    kept = {one: getattr(callback, one) for one in _MEMORY[name] if hasattr(callback, one)}
    return {"class": name, **kept}


def _recall(callbacks: Sequence[Any], saved: Sequence[Mapping[str, Any]]) -> None:
    names, were = [type(one).__name__ for one in callbacks], [str(one["class"]) for one in saved]
    if names != were:
        raise UsageError(f"callbacks: {', '.join(names) or 'none'}, and the mirror is of {', '.join(were) or 'none'}")
    for callback, memory in zip(callbacks, saved, strict=True):
        for name in _MEMORY[type(callback).__name__]:
            if name in memory:
                setattr(callback, name, memory[name])


# Random generators.


def _random_state() -> dict[str, Any]:
    if "torch" in sys.modules:
        from strongroom.mirror import torch as ours

        return ours.random_state()
    version, words, gauss = random.getstate()
    return {"python": (version, np.array(words, np.uint64), gauss), "numpy": np.random.get_state()}


def _set_random_state(state: Mapping[str, Any]) -> None:
    if "torch" in state:
        from strongroom.mirror import torch as ours

        ours.set_random_state(state)
        return
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss))
    np.random.set_state(tuple(state["numpy"]))
