"""Keras 3 models on PyTorch: their own code runs, with a module's parameters in their variables' places.

- Keras copies a model through its file format, which shares must never be in: the module holds the parameters, and a
  copy of it holds others for the same model.
- A batch normalisation is made a factor and a summand by who has its statistics, as the root of a secret is dear.
- A file is data: a layer that holds code, or one of a package that Keras was not told of, is refused.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from strongroom.errors import MissingDependencyError, ModelFormatError, StrongroomError, UsageError
from strongroom.mpc.imports.graph import printable
from strongroom.mpc.imports.module import Weights
from strongroom.mpc.imports.operators.common import is_secret
from strongroom.mpc.imports.operators.layers import folded

_MAX_CONFIG = 1 << 26
_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}


def read_keras(path: Path, *, weights: bool) -> KerasModule:
    """The model in a `.keras` or `.h5` file; of an architecture, the configuration is enough.

    Raises:
        ModelFormatError: it is none, or holds code.
        MissingDependencyError: Keras is not installed, or does not run on PyTorch.
    """
    keras = _keras()
    config = _config(path)
    _require_data(keras, config, path)
    try:
        if not weights and "module" in config:  # an older file's configuration is read with its weights alone
            return KerasModule(keras.saving.deserialize_keras_object(config, safe_mode=True), weights=False)
        return KerasModule(keras.saving.load_model(path, compile=False, safe_mode=True), weights=weights)
    except StrongroomError:
        raise
    except Exception as error:  # of whatever class layers raise, and torch where there is no memory for one
        raise ModelFormatError(f"model: Keras cannot load {path.name}: {printable(str(error), 300)}") from error


def model_of(path: Path) -> Any:
    """Keras's own object of the model in a file, with its weights; raises as `read_keras`."""
    keras = _keras()
    _require_data(keras, _config(path), path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # as above
        raise ModelFormatError(f"model: Keras cannot load {path.name}: {printable(str(error), 300)}") from error


def of_keras(model: Any) -> Any:
    """A Keras model as a `KerasModule`; anything else as it is."""
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(model, keras.Layer) or not isinstance(model, nn.Module):
        return model
    return KerasModule(model)


def _config(path: Path) -> dict[str, Any]:
    """The model's configuration, read without running any of it."""
    try:
        if path.suffix == ".json":
            text: str | bytes = path.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("config.json").file_size > _MAX_CONFIG:
                    raise ModelFormatError(f"model: the configuration in {path.name} is over {_MAX_CONFIG} bytes")
                text = archive.read("config.json")
        else:
            import h5py

            with h5py.File(path, "r") as file:
                text = file.attrs["model_config"]
        if len(text) > _MAX_CONFIG:
            raise ModelFormatError(f"model: the configuration in {path.name} is over {_MAX_CONFIG} bytes")
        config = json.loads(text)
    except ImportError:
        raise MissingDependencyError("h5py: is not installed", hint="pip install h5py") from None
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, RecursionError, zipfile.BadZipFile) as error:
        raise ModelFormatError(
            f"model: {path.name} holds no Keras model: {printable(str(error))}",
            hint="save the whole model: model.save('model.keras'); weights alone have no architecture",
        ) from None
    if not isinstance(config, dict):
        raise ModelFormatError(f"model: {path.name} holds no Keras model, wanted its configuration")
    return config


def _require_data(keras: Any, config: dict[str, Any], path: Path) -> None:
    registered = keras.saving.get_custom_objects()
    for each in _objects(config):
        name, module = str(each.get("class_name")), each.get("module")
        if name in _CODE or name == "function" or name == "__lambda__":
            raise ModelFormatError(
                f"model: {path.name} has a {printable(name)}, which is code, wanted layers of Keras",
                hint="write it as a layer of your own, registered with keras.saving.register_keras_serializable",
            )
        known = module is None or module == "keras" or str(module).startswith("keras.")
        if not known and str(each.get("registered_name")) not in registered:
            raise ModelFormatError(
                f"model: {path.name} has {printable(name)} of {printable(str(module))}, which Keras was not told of",
                hint="import what defines it first, registered with keras.saving.register_keras_serializable",
            )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Everything that a configuration names a class for."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if "class_name" in each:
                yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


class _Held:
    """The model itself: code, shared by all copies, whose variables' values do not matter."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class KerasModule(nn.Module):
    """A Keras model as a module of PyTorch whose parameters may be secret; it infers, and does not train.

    Args:
        weights: whether the parameters have the model's values, or zeros.

    Raises:
        UsageError: it is not built, so that it has no weights yet.
    """

    def __init__(self, model: Any, *, weights: bool = True) -> None:
        super().__init__()
        keras = _keras()
        if not model.built:
            raise UsageError("model: is not built, wanted its weights", hint="give it an Input, or call it once")
        self._held = _Held(model)
        self.weights = Weights()
        variables = {id(each): i for i, each in enumerate(model.variables)}
        self._public: dict[int, torch.Tensor] = {}
        values = {i: _value(each) for i, each in enumerate(model.variables)}
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                self._fold(layer, variables, values)
            elif isinstance(layer, keras.layers.Embedding):
                object.__setattr__(layer, "call", _looking_up(layer))
        self._places = {
            i: self.weights.put(f"{i}.{model.variables[i].name}", value if weights else torch.zeros_like(value))
            for i, value in values.items()
            if i not in self._public and value.is_floating_point()
        }
        self.eval()

    def _fold(self, layer: Any, variables: dict[int, int], values: dict[int, torch.Tensor]) -> None:
        if layer.gamma is None or layer.beta is None:
            raise UsageError(
                f"model: batch normalisation {layer.name!r} without {'scale' if layer.gamma is None else 'center'}",
                hint="build it with scale=True and center=True: ones and zeros make it the same",
            )
        gamma, beta, mean, variance = (
            variables[id(each)] for each in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        )
        weight, bias, centre, spread = (values[i].to(torch.float64) for i in (gamma, beta, mean, variance))
        scale, shift = folded(weight, bias, centre, spread, layer.epsilon)
        values[gamma], values[beta] = scale.to(torch.float32), shift.to(torch.float32)
        # With these the layer does nothing but multiply and add.
        self._public[mean] = torch.zeros_like(values[mean])
        self._public[variance] = torch.full_like(values[variance], 1 - layer.epsilon)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        keras, model = _keras(), self._held.model
        state = {**self._public, **{i: getattr(holder, name) for i, (holder, name) in self._places.items()}}
        inputs = args[0] if len(args) == 1 else list(args)
        with keras.StatelessScope(state_mapping=[(model.variables[i], value) for i, value in state.items()]):
            return model(inputs, training=False, **kwargs)

    def extra_repr(self) -> str:
        return f"{type(self._held.model).__name__} {self._held.model.name!r}"


def _looking_up(layer: Any) -> Callable[..., Any]:
    """An embedding's call which does not ask whether a secret index is negative: none is."""
    call = type(layer).call

    def looked_up(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if is_secret(inputs):
            return functional.embedding(inputs, layer.embeddings.value)
        return call(layer, inputs, *args, **kwargs)

    return looked_up


def _value(variable: Any) -> torch.Tensor:
    value: torch.Tensor = variable.value.detach()
    return value.clone()


def _keras() -> Any:
    try:
        import keras
    except ImportError as error:
        if error.name == "keras":
            raise MissingDependencyError("keras: is not installed", hint="pip install 'strongroom[keras]'") from None
        raise MissingDependencyError(
            f"keras: has no {printable(str(error.name))}, which it is to run on",
            hint="set KERAS_BACKEND=torch before Keras is imported",
        ) from None
    if keras.backend.backend() != "torch":
        raise UsageError(
            f"keras: runs on {keras.backend.backend()}, wanted torch",
            hint="set KERAS_BACKEND=torch before Keras is imported",
        )
    return keras
