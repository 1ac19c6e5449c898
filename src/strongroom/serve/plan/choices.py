"""Smaller models: weights in 8 bits, and fewer channels, with what that costs in accuracy.

- Quantised without data: weights of 8 bits for each output channel, activations rounded as they come (ONNX Runtime's
  dynamic quantisation). With data: activations' ranges are those seen on it (static, in QDQ form).
- Pruned: whole output channels, those with the least sum of absolute weights, where `prune.prune` can take them away,
  so that memory and time shrink too.
- Accuracy is measured with both models on the same inputs.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from strongroom.errors import FormatError, ModelFormatError, UnsupportedPlatformError, UsageError
from strongroom.serve.graph import Model, load
from strongroom.serve.plan.document import Change
from strongroom.serve.plan.prune import prune
from strongroom.serve.runtime import FATAL, PROVIDERS, onnx, onnxruntime, reason
from strongroom.serve.stage import Stage
from strongroom.serve.tensors import Array

_CALIBRATED: Final = 128  # inputs
_BATCH: Final = 32
_MAX_DATA: Final = 8 << 30
_OPSET: Final = 13  # the first in which DequantizeLinear knows channels


@dataclass(frozen=True)
class Data:
    """Inputs, and what they are.

    Attributes:
        inputs: by name, the first dimension counts inputs; of one array without a name, the name is empty.
        labels: the class of each; None if not given.
    """

    inputs: Mapping[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def named(self, stage: Stage) -> dict[str, Array]:
        """The inputs by the names that a model has for them.

        Raises:
            UsageError: it has others.
        """
        names = [info.name for info in stage.inputs]
        if list(self.inputs) == [""] and len(names) == 1:
            return {names[0]: self.inputs[""]}
        if set(self.inputs) != set(names):
            raise UsageError(f"--calibrate: has {', '.join(self.inputs) or 'one array'}, wanted {', '.join(names)}")
        return dict(self.inputs)


@dataclass(frozen=True)
class Measured:
    """What became of the answers.

    Attributes:
        inputs: how many were tried.
        agreement: share of them for which both models' largest output is the same.
        difference: the largest difference of two outputs, as a share of the largest absolute output.
        before, after: share of right answers of the given model and of the smaller; None without labels.
    """

    inputs: int
    agreement: float
    difference: float
    before: float | None
    after: float | None


def read_data(path: Path, labels: Path | None) -> Data:
    """Inputs of a ``.npy`` or ``.npz`` file, and labels of a ``.npy``.

    Raises:
        FormatError: they are no such files, or do not fit each other.
    """
    found = _arrays(path)
    sizes = {value.shape[0] if value.ndim else 0 for value in found.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise FormatError(f"{path.name}: arrays of {sorted(sizes)} inputs, wanted the same number in each")
    if labels is None:
        return Data(found, None)
    classes = next(iter(_arrays(labels).values())).reshape(-1)
    if classes.dtype.kind not in "iu" or len(classes) not in sizes:
        raise FormatError(f"{labels.name}: {len(classes)} of {classes.dtype}, wanted {sizes.pop()} whole numbers")
    return Data(found, classes)


def smaller(
    model: Model, *, quantize: bool, prune: float, data: Data | None, secret: bool = False
) -> tuple[Model, Change]:
    """The smaller model, and what was done.

    Args:
        secret: it may lie in no file on a disk, not even for a moment.

    Raises:
        UnsupportedPlatformError: it may not, and this system has no files in memory, which quantising takes.
        ModelFormatError: ONNX Runtime cannot quantise it.
        UsageError: nothing of it can be pruned, or the data do not fit.
    """
    made = _pruned(model, prune) if prune else model
    if quantize:
        made = load(_quantized(made, data, secret=secret))
    method = ("dynamic" if data is None else "static") if quantize else ""
    return made, Change(method, round(prune * 1000), model.digest)


def accuracy(before: Model, after: Model, data: Data, *, threads: int) -> Measured:
    """Run both on the data.

    Raises:
        ServeError: the data do not fit.
    """
    answers = []
    for model in (before, after):
        stage = Stage.load(model.proto.SerializeToString(), name="measured", threads=threads)
        answers.append(np.concatenate([_first(stage, each) for each in _batches(stage, data)]))
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in answers)
    classes = [each.argmax(axis=1) for each in (a, b)]
    right: list[float | None] = [None, None]
    if data.labels is not None:
        right = [float((each == data.labels[: len(each)]).mean()) for each in classes]
    return Measured(
        len(a),
        float((classes[0] == classes[1]).mean()),
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)),
        *right,
    )


def _pruned(model: Model, share: float) -> Model:
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    if not prune(proto, share):
        raise UsageError(
            "--prune: no channels of this model can be taken away whole",
            hint="of convolutions and products that lead to another by activations and pooling alone they can",
        )
    return load(proto.SerializeToString())


def _arrays(path: Path) -> dict[str, Array]:
    if path.stat().st_size > _MAX_DATA:
        raise FormatError(f"{path.name}: {path.stat().st_size} bytes, wanted at most {_MAX_DATA}")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise FormatError(f"{path.name}: is no .npy or .npz of numbers: {error}") from None


def _batches(stage: Stage, data: Data) -> Iterator[dict[str, Array]]:
    """The data in batches that the model takes, in its datatypes."""
    named = data.named(stage)
    fixed = [info.shape[0] for info in stage.inputs if info.shape and info.shape[0] > 0]
    step = min([_BATCH, *fixed])
    for start in range(0, len(data) - (len(data) % step if fixed else 0), step):
        yield {name: np.ascontiguousarray(value[start : start + step]) for name, value in named.items()}


def _first(stage: Stage, inputs: Mapping[str, Array]) -> Array:
    return stage.infer(inputs, [stage.outputs[0].name])[stage.outputs[0].name]


def _quantized(model: Model, data: Data | None, *, secret: bool) -> bytes:
    """The model's bytes with weights of 8 bits; nothing of it goes to a disk but where the system keeps such files."""
    if secret and _in_memory() is None:
        raise UnsupportedPlatformError(
            "--quantize: the model is sealed, and this system has no /dev/shm to quantise it in",
            hint="seal a model that was quantised elsewhere",
        )
    runtime = onnxruntime()
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise ModelFormatError(f"model: this onnxruntime cannot quantise: {error}") from None
    with tempfile.TemporaryDirectory(dir=_in_memory()) as place, _quiet():
        out = Path(place) / "quantized.onnx"
        try:
            proto = _ready(model, runtime, Path(place) / "ready.onnx")
            if data is None:
                quantization.quantize_dynamic(proto, out, per_channel=True, weight_type=quantization.QuantType.QInt8)
            else:
                reader = _Reader(Stage.load(proto.SerializeToString(), name="calibrated"), data)
                quantization.quantize_static(
                    proto,
                    out,
                    reader,
                    per_channel=True,
                    # Of 7 bits without VNNI: products of two 8-bit numbers saturate there (ONNX Runtime, "Quantize ONNX
                    # Models", section "When to use reduce-range").
                    reduce_range=not _has_vnni(),
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
        except (OSError, UsageError):
            raise
        except Exception as error:
            raise ModelFormatError(f"model: ONNX Runtime cannot quantise it: {reason(error)}") from None
        return out.read_bytes()


def _ready(model: Model, runtime: Any, file: Path) -> Any:
    """The model in the form that quantises best: of an opset with scales for each channel, normalisation folded."""
    tools = onnx()
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    if any(each.domain in ("", "ai.onnx") and each.version < _OPSET for each in proto.opset_import):
        proto = tools.version_converter.convert_version(proto, _OPSET)
    options = runtime.SessionOptions()
    options.log_severity_level = FATAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    runtime.InferenceSession(proto.SerializeToString(), options, providers=list(PROVIDERS))
    return tools.load(file)


class _Reader:
    """What `quantize_static` asks for inputs."""

    def __init__(self, stage: Stage, data: Data) -> None:
        some = Data({name: value[:_CALIBRATED] for name, value in data.inputs.items()}, None)
        self._batches = _batches(stage, some)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _has_vnni() -> bool:
    with contextlib.suppress(OSError):
        return "avx512_vnni" in (text := Path("/proc/cpuinfo").read_text()) or "avx_vnni" in text
    return False


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # a directory of our own is made in it


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the quantiser prints and warns of is for its own developers."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
