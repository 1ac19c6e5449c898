"""The type and shape of every tensor of a model, asked of ONNX Runtime: it knows its own operators' rules."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from strongroom.errors import ModelFormatError
from strongroom.serve.graph.nodes import made
from strongroom.serve.runtime import DATATYPE_OF, FATAL, PROVIDERS, onnx, onnxruntime, reason
from strongroom.serve.tensors import DATATYPES

# Weights of more elements than this are left out when shapes are asked for: no shape depends on their values.
_SMALL = 1024
_MOST_GROWN = 4  # sizes of inputs that are tried larger
_STEP = 64  # larger by so much, but for rows: a multiple of what strides come to, behind which a size hardly grows by 1
_MOST_SECONDS = 60.0  # of a run on zeros: a Loop may have no end


@dataclass(frozen=True)
class Tensor:
    """A tensor that crosses a cut.

    Attributes:
        datatype: in the Open Inference Protocol's words: ``FP32``.
        shape: a number, or the name of a size that is known at run time only. Two sizes of one name are equal; a size
            without a name in the model has one that starts with ``?``.
        ranked: whether the model says how many sizes it has. If not, they are as many as were seen, and a stage takes
            no other number of them.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    ranked: bool = True

    def bytes_of(self, dims: Mapping[str, int]) -> int:
        """Its bytes, with the sizes that `dims` names; what it does not name is 1."""
        size = DATATYPES[self.datatype].itemsize
        for each in self.shape:
            size *= each if isinstance(each, int) else dims.get(each, 1)
        return size


def session(model: bytes, *, optimised: int, path: str | None = None, without: Sequence[str] = ()) -> Any:
    """ONNX Runtime's session, made for what it finds out and not to be run much: on one thread, nothing packed.

    Args:
        optimised: the level of ONNX Runtime's optimiser.
        path: where the optimised model is written.
        without: optimisers that are left out.

    Raises:
        ModelFormatError: ONNX Runtime cannot load it.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = FATAL, 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel(optimised)
    options.add_session_config_entry("session.disable_prepacking", "1")
    if path is not None:
        options.optimized_model_filepath = path
    try:
        more = {"disabled_optimizers": list(without)} if without else {}
        return runtime.InferenceSession(model, options, providers=PROVIDERS, **more)
    except MemoryError:
        raise
    except Exception as error:
        hint = "onnx.checker.check_model says more; a model of a newer opset needs a newer onnxruntime"
        if "not a registered" in str(error):
            hint = "it has no such operator: export the model with those of ONNX alone"
        raise ModelFormatError(
            f"model: ONNX Runtime {runtime.__version__} cannot load it: {reason(error)}", hint=hint
        ) from None


def shapes(proto: Any) -> dict[str, Tensor | None]:
    """What ONNX Runtime says of every tensor that goes in or that an operator makes; None for what is no tensor of
    numbers that a request could hold.

    Raises:
        ModelFormatError: ONNX Runtime cannot load the model.
    """
    try:
        loaded = session(_asking(proto, light=True), optimised=0)
    except ModelFormatError:
        # Some operators want the values of their weights when they are loaded.
        loaded = session(_asking(proto, light=False), optimised=0)
    wanted = {each.name for each in proto.graph.input} | {name for node in proto.graph.node for name in made(node)}
    found: dict[str, Tensor | None] = {}
    ranked = {each.name for each in proto.graph.input if each.type.tensor_type.HasField("shape")}
    for each in [*loaded.get_inputs(), *loaded.get_outputs()]:
        if each.name not in wanted:
            continue
        datatype = DATATYPE_OF.get(each.type)
        sizes = [size if size is not None else f"?{each.name}.{axis}" for axis, size in enumerate(each.shape)]
        found[each.name] = (
            # ONNX Runtime says of a single number and of a tensor that it knows nothing about the same: no sizes.
            None if datatype is None else Tensor(each.name, datatype, tuple(sizes), bool(sizes) or each.name in ranked)
        )
    return found


def _asking(proto: Any, *, light: bool) -> bytes:
    """The model with every tensor among its outputs; if it is light, large weights are inputs without a value."""
    asking = type(proto)()
    asking.ir_version = proto.ir_version
    asking.opset_import.extend(proto.opset_import)
    graph, whole = asking.graph, proto.graph
    graph.name = "g"
    graph.input.extend(whole.input)
    graph.node.extend(whole.node)
    graph.sparse_initializer.extend(whole.sparse_initializer)
    floats = {onnx().TensorProto.FLOAT, onnx().TensorProto.FLOAT16, onnx().TensorProto.DOUBLE}
    for tensor in whole.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        if light and count > _SMALL and tensor.data_type in floats:
            graph.input.append(onnx().helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.add().CopyFrom(tensor)
    graph.output.extend(whole.output)
    given = {each.name for each in whole.output}
    for node in whole.node:
        graph.output.extend(onnx().ValueInfoProto(name=name) for name in made(node) if name not in given)
    data: bytes = asking.SerializeToString()
    return data


@dataclass(frozen=True)
class Size:
    """A size that was seen, not proved: `base`, and so much more for each one that an input's size grows by."""

    base: int
    slopes: Mapping[str, Fraction]
    at: Mapping[str, int]  # the inputs' sizes that `base` was seen at

    def value(self, dims: Mapping[str, int]) -> int:
        """The size where the inputs have these sizes, rounded up, as far as it grows evenly."""
        more = sum(by * (dims.get(name, 1) - self.at[name]) for name, by in self.slopes.items())
        return max(0, self.base + ceil(more))


def see_sizes(proto: Any, tensors: dict[str, Tensor | None], dims: Mapping[str, int]) -> dict[str, Size]:
    """Sizes without a name, as they are when the model runs on zeros: once, and once for each size of its inputs.

    A model that does not run on zeros has none; one that does not run when a size grows does not grow with it. Of
    `tensors`, those of which the model does not say how many sizes they have get as many as are seen, or become None.

    Args:
        dims: sizes of inputs by name; what it does not name is 1.
    """
    free: dict[str, int] = {}
    for each in proto.graph.input:
        tensor = tensors[each.name]
        free.update((size, dims.get(size, 1)) for size in (tensor.shape if tensor else ()) if isinstance(size, str))
    wanted = dict(_unnamed(each for each in tensors.values() if each is not None))
    wanted = {size: place for size, place in wanted.items() if size not in free}
    unranked = {each.name: each for each in tensors.values() if each is not None and not each.ranked}
    outputs = sorted({name for name, _ in wanted.values()} | set(unranked))
    if not outputs:
        return {}
    loaded = session(_asking(proto, light=False), optimised=0)
    first = _run_on_zeros(loaded, outputs, tensors, free)
    if first is None:
        tensors.update((name, None) for name in unranked if name not in {each.name for each in proto.graph.input})
        return {}
    for name, each in unranked.items():
        seen = Tensor(name, each.datatype, tuple(f"?{name}.{axis}" for axis in range(len(first[name]))), False)
        tensors[name] = seen
        wanted.update(_unnamed([seen]))
    slopes: dict[str, dict[str, Fraction]] = {size: {} for size in wanted}
    rows = {tensor.shape[0] for each in proto.graph.input if (tensor := tensors[each.name]) and tensor.shape}
    for name in list(free)[:_MOST_GROWN]:
        for step in (1,) if name in rows else (_STEP, 1):
            grown = _run_on_zeros(loaded, outputs, tensors, {**free, name: free[name] + step})
            if grown is not None:
                break
        else:
            continue
        for size, (output, axis) in wanted.items():
            if len(grown[output]) > axis and (by := grown[output][axis] - first[output][axis]):
                slopes[size][name] = Fraction(by, step)
    return {size: Size(first[output][axis], slopes[size], free) for size, (output, axis) in wanted.items()}


def _unnamed(tensors: Iterable[Tensor]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Sizes without a name in the model, each with the tensor and the axis that have it."""
    for tensor in tensors:
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, str) and size.startswith("?"):
                yield size, (tensor.name, axis)


def _run_on_zeros(
    loaded: Any, outputs: Sequence[str], tensors: Mapping[str, Tensor | None], dims: Mapping[str, int]
) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the outputs for inputs of these sizes; None where the model does not run on such zeros in time."""
    zeros = {}
    for each in loaded.get_inputs():
        tensor = tensors[each.name]
        if tensor is None:
            return None
        shape = [size if isinstance(size, int) else dims[size] for size in tensor.shape]
        zeros[each.name] = np.zeros(shape, DATATYPES[tensor.datatype])
    options = onnxruntime().RunOptions()
    options.log_severity_level = FATAL
    ends = threading.Timer(_MOST_SECONDS, lambda: setattr(options, "terminate", True))
    ends.start()
    try:
        arrays = loaded.run(list(outputs), zeros, options)
    except Exception:  # of whatever class: what a model does with zeros is its affair
        return None
    finally:
        ends.cancel()
    return {name: array.shape for name, array in zip(outputs, arrays, strict=True)}
