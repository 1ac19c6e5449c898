"""An ONNX file as a graph, without its weights' values if they are withheld.

The file is checked as what it is, bytes from elsewhere: weights in other files lie beside it and nowhere else, sizes
are known before memory is taken, and what cannot be parsed is said to be so.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from strongroom.errors import MissingDependencyError, ModelFormatError, UsageError
from strongroom.mpc.imports.classical import classical_weights, leave_out_labels
from strongroom.mpc.imports.graph import ONNX, ONNX_ML, Graph, Node, printable
from strongroom.mpc.imports.room import zeros
from strongroom.mpc.imports.secrecy import weights_among

MAX_MODEL = (1 << 31) - 1  # protobuf's limit for one message
MAX_ELEMENTS = 1 << 32  # of all tensors
_OPSETS = range(7, 27)
_CONTROL = {"Loop", "Scan", "SequenceMap"}
WITHOUT_WEIGHTS = "strongroom.architecture"  # the mark of a file whose weights were taken out


def read_onnx(path: Path, *, weights: bool, public: Collection[str]) -> Graph:
    """The graph in a file.

    Args:
        weights: whether the weights' values are wanted; if not, they are zero.
        public: names of initialisers that are no weights, whatever they look like.

    Raises:
        ModelFormatError: it is no ONNX, or lacks weights that are wanted.
        MissingDependencyError: `onnx` is not installed.
        UsageError: a name that is to be public is no constant of the graph.
    """
    return graph_of(parsed(path), path.parent, weights=weights, public=public)


def graph_of(model: Any, folder: Path, *, weights: bool, public: Collection[str]) -> Graph:
    """The graph of ONNX's own object; what lies in other files lies in this folder. Raises as `read_onnx`."""
    opsets = {("" if each.domain == "ai.onnx" else each.domain): each.version for each in model.opset_import}
    if opsets.get(ONNX, _OPSETS[-1]) not in _OPSETS:
        raise ModelFormatError(
            f"model: opset {opsets[ONNX]}, wanted {_OPSETS[0]} to {_OPSETS[-1]}",
            hint="onnx.version_converter.convert_version makes another one of it",
        )
    reader = _Reader(folder, opsets, weights=weights, public=frozenset(public))
    graph = reader.graph(model.graph, whole=True)
    if unknown := sorted(reader.public - reader.constants):
        raise UsageError(f"public: the model has no constant {unknown[0]!r:.120}")
    withheld = reader.withheld
    if any(each.key == WITHOUT_WEIGHTS for each in model.metadata_props):
        withheld = withheld | reader.secret
    if missing := sorted(withheld - reader.secret) or (weights and sorted(withheld)):
        raise ModelFormatError(
            f"model: the values of {printable(missing[0])!r} are withheld, wanted them",
            hint="an architecture file is for mpc.load_architecture; whoever has the weights loads the whole file",
        )
    return graph


def parsed(path: Path) -> Any:
    """The file as ONNX's own object, with local functions put in their places."""
    onnx = _onnx()
    if (size := path.stat().st_size) > MAX_MODEL:
        raise ModelFormatError(f"model: {size} bytes, the limit is {MAX_MODEL}", hint="keep its weights in other files")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # of a class of protobuf's, or not, by its version
        raise ModelFormatError(f"model: {path.name} is no ONNX, or was cut short: {printable(str(error))}") from None
    if not model.ir_version or not model.graph.node:
        raise ModelFormatError(f"model: {path.name} has no graph, wanted ONNX")
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise ModelFormatError(f"model: its functions cannot be inlined: {printable(str(error))}") from None
    return model


class _Reader:
    def __init__(self, folder: Path, opsets: dict[str, int], *, weights: bool, public: frozenset[str]) -> None:
        self._folder, self._opsets, self._weights, self.public = folder, opsets, weights, public
        self._elements = 0
        # Of the graph and of its branches, names of: tensors without values, all constants, the weights.
        self.withheld: set[str] = set()
        self.constants: set[str] = set()
        self.secret: set[str] = set()

    def graph(self, proto: Any, *, whole: bool = False) -> Graph:
        constants: dict[str, torch.Tensor] = {}
        for tensor in proto.initializer:
            value = self._tensor(tensor)
            if isinstance(value, torch.Tensor):
                constants[tensor.name] = value
        for sparse in proto.sparse_initializer:
            raise ModelFormatError(f"model: {printable(sparse.values.name)!r} is sparse, wanted dense tensors")
        nodes = [self._node(each, constants) for each in proto.node]
        graph = Graph(
            [node for node in nodes if node is not None],
            [each.name for each in proto.input if each.name not in constants],
            [each.name for each in proto.output],
            constants,
        )
        if whole:
            leave_out_labels(graph)
        learned = classical_weights(graph)
        graph.weights = weights_among(
            graph, withheld=self.withheld | learned, public=self.public & graph.constants.keys()
        )
        self.constants |= graph.constants.keys()
        self.secret |= graph.weights
        if not self._weights:
            for name in graph.weights:
                kind = constants[name].dtype
                constants[name] = zeros(constants[name].shape, torch.float64 if kind.is_floating_point else kind)
        for name, value in constants.items():
            if value.is_floating_point():
                constants[name] = value.to(torch.float64)  # what is computed of them once is computed well
        return graph

    def _node(self, proto: Any, constants: dict[str, torch.Tensor]) -> Node | None:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        attributes = {each.name: self._attribute(each) for each in proto.attribute}
        node = Node(
            proto.op_type,
            list(proto.input),
            list(proto.output),
            attributes,
            domain,
            self._opsets.get(domain, 1),
            proto.name,
        )
        if not node.outputs or (domain == ONNX_ML and not node.inputs):
            raise node.refuse("takes or gives nothing")
        if domain == ONNX and node.op in _CONTROL:
            raise node.refuse("a program's flow in a model", hint="export it with its loops unrolled")
        if domain == ONNX and node.op == "Constant":
            value = next(iter(attributes.values()), None)
            if isinstance(value, (int, float)) or (isinstance(value, list) and value and not isinstance(value[0], str)):
                value = torch.tensor(value)
            if isinstance(value, torch.Tensor):
                constants[node.outputs[0]] = value
            return None
        return node

    def _attribute(self, proto: Any) -> Any:
        kind = proto.type
        names = type(proto)
        if kind == names.TENSOR:
            return self._tensor(proto.t)
        if kind == names.GRAPH:
            return self.graph(proto.g)
        if kind == names.STRING:
            return proto.s.decode("utf-8", "replace")
        if kind == names.STRINGS:
            return [each.decode("utf-8", "replace") for each in proto.strings]
        if kind in (names.FLOAT, names.INT, names.FLOATS, names.INTS):
            value = _onnx().helper.get_attribute_value(proto)
            return list(value) if kind in (names.FLOATS, names.INTS) else value
        return None  # of a kind that no operator here takes

    def _tensor(self, proto: Any) -> torch.Tensor | list[str]:
        onnx = _onnx()
        shape = tuple(proto.dims)
        self._elements += prod(shape)
        if any(n < 0 for n in shape) or self._elements > MAX_ELEMENTS:
            raise ModelFormatError(
                f"model: {printable(proto.name)!r} of shape {shape}, wanted at most {MAX_ELEMENTS} elements in all"
            )
        if proto.data_type == onnx.TensorProto.STRING:
            return [each.decode("utf-8", "replace") for each in proto.string_data]
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            if not self._weights and not self._beside(proto).exists():
                self.withheld.add(proto.name)
                return zeros(shape)
            proto = self._with_outside_data(proto)
        elif is_withheld(proto):
            self.withheld.add(proto.name)
            return zeros(shape)
        try:
            return _as_torch(onnx.numpy_helper.to_array(proto))
        except Exception as error:
            raise ModelFormatError(
                f"model: {printable(proto.name)!r} does not hold a tensor of shape {shape}: {printable(str(error))}"
            ) from None

    def _beside(self, proto: Any) -> Path:
        said = {each.key: each.value for each in proto.external_data}
        location = PurePosixPath(said.get("location", ""))
        path = self._folder / location
        if location.is_absolute() or ".." in location.parts or not location.parts or "\0" in str(location):
            raise ModelFormatError(f"model: weights at {printable(str(location))!r}, wanted a file beside the model")
        if path.exists() and not path.resolve().is_relative_to(self._folder.resolve()):
            raise ModelFormatError(
                f"model: weights at {printable(str(location))!r}, a link that leads elsewhere, wanted a file beside it"
            )
        return path

    def _with_outside_data(self, proto: Any) -> Any:
        onnx = _onnx()
        path = self._beside(proto)
        said = {each.key: each.value for each in proto.external_data}
        if not path.is_file():
            raise ModelFormatError(f"model: its weights lie in {printable(path.name)!r}, which is not there")
        offset = _number(said.get("offset", "0"))
        kind = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
        bits = 4 if "int4" in kind.name else 8 * kind.itemsize
        length = (prod(proto.dims) * bits + 7) // 8
        if "length" in said and _number(said["length"]) != length:
            raise ModelFormatError(
                f"model: {printable(proto.name)!r} has {printable(said['length'])} bytes, its shape has {length}"
            )
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise ModelFormatError(
                f"model: {printable(path.name)!r} ends in {printable(proto.name)!r}, "
                f"wanted {length} bytes from {offset} on"
            )
        whole = onnx.TensorProto()
        whole.name, whole.data_type, whole.raw_data = proto.name, proto.data_type, data
        whole.dims.extend(proto.dims)
        return whole


def is_withheld(proto: Any) -> bool:
    """Whether a tensor has a shape and no values."""
    held = any(
        len(getattr(proto, name))
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    )
    return not held and prod(proto.dims) > 0


def _as_torch(array: Any) -> torch.Tensor:
    kind = array.dtype
    if kind.kind in "fV" or kind.name.startswith(("bfloat", "float")):
        return torch.from_numpy(array.astype(np.float32 if kind.itemsize <= 4 else np.float64))
    if kind.kind == "c":
        raise ValueError("complex numbers")
    narrow = kind.name in ("bool", "int8", "uint8", "int16", "int32", "int64")
    return torch.from_numpy(np.array(array, kind if narrow else np.int64))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ModelFormatError(f"model: a place in a file is {printable(text)!r}, wanted a number of bytes")
    return int(text)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise MissingDependencyError("onnx: is not installed", hint="pip install 'strongroom[mpc]'") from None
    return onnx
