"""A frozen TensorFlow graph, read from its bytes without TensorFlow.

The walk follows protobuf's wire format through the few messages of TensorFlow's `graph.proto` that a graph without
variables needs. What TensorFlow and ONNX mean alike becomes ONNX's node, so that the same passes see it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import torch

from strongroom.errors import ModelFormatError
from strongroom.mpc.imports.graph import ONNX, OWN, TENSORFLOW, Graph, Node, printable
from strongroom.mpc.imports.room import MAX_MADE
from strongroom.mpc.imports.secrecy import weights_among

MAX_ELEMENTS = 1 << 31
_MAX_OUTPUTS = 1 << 12
_VERSION = 18  # of the ONNX operators that nodes become
_DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64, 10: np.bool_,
    17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
_ONNX_TYPES = {1: 1, 2: 11, 3: 6, 4: 2, 6: 3, 9: 7, 10: 9, 14: 16, 19: 10}
# By the field of a tensor's values: how many bytes each has, none for a varint.
_VALUES = {5: "<f", 6: "<d", 7: None, 10: None, 11: None, 13: None}

_SAME = {
    "Abs": "Abs", "Add": "Add", "AddN": "Sum", "AddV2": "Add", "Ceil": "Ceil", "Div": "Div", "Elu": "Elu",
    "Equal": "Equal", "Erf": "Erf", "Exp": "Exp", "Floor": "Floor", "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual", "Identity": "Identity", "Less": "Less", "LessEqual": "LessOrEqual", "Log": "Log",
    "LogSoftmax": "LogSoftmax", "LogicalAnd": "And", "LogicalNot": "Not", "LogicalOr": "Or", "Max": "ReduceMax",
    "Maximum": "Max", "Mean": "ReduceMean", "Min": "ReduceMin", "Minimum": "Min", "Mul": "Mul", "Neg": "Neg",
    "Pow": "Pow", "PreventGradient": "Identity", "Prod": "ReduceProd", "RealDiv": "Div", "Reciprocal": "Reciprocal",
    "Relu": "Relu", "Select": "Where", "SelectV2": "Where", "Selu": "Selu", "Sigmoid": "Sigmoid", "Sign": "Sign",
    "Size": "Size", "Snapshot": "Identity", "Softmax": "Softmax", "Softplus": "Softplus", "Softsign": "Softsign",
    "Sqrt": "Sqrt", "StopGradient": "Identity", "Sub": "Sub", "Sum": "ReduceSum", "Tanh": "Tanh",
}  # fmt: skip
_OURS = {"Rsqrt": "Rsqrt", "Erfc": "Erfc"}


def read_graph_def(data: bytes, outputs: list[str] | None = None, *, name: str = "it") -> Graph:
    """The graph in a serialised `GraphDef`.

    Args:
        outputs: names of values, as `node:0`; by default those that no node takes.
        name: the file's, for messages.

    Raises:
        ModelFormatError: it is none, or was cut short.
    """
    try:
        nodes = [_node(value) for number, value in _fields(data) if number == 1]
        if not nodes:
            raise ValueError("it has no nodes")
        graph = _graph(nodes, outputs or [])
    except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ModelFormatError(
            f"model: {printable(name)} is no TensorFlow graph, or was cut short: {printable(str(error))}"
        ) from None
    _sort(graph)
    if outputs is None:
        taken = {name for node in graph.nodes for name in node.inputs}
        graph.outputs = [node.outputs[0] for node in graph.nodes if taken.isdisjoint(node.outputs)]
    graph.weights = weights_among(graph)
    for name, tensor in graph.constants.items():
        if tensor.is_floating_point():
            graph.constants[name] = tensor.to(torch.float64)
    return graph


def _graph(nodes: list[tuple[str, str, list[str], dict[str, Any]]], outputs: list[str]) -> Graph:
    graph = Graph([], [], outputs)
    beyond = 0  # the elements that constants have and the file does not hold
    for op, name, inputs, attributes in nodes:
        first = f"{name}:0"
        if op == "Const":
            shape, array = _values(attributes.get("value", b""), name)
            if array is None:
                continue
            beyond += max(0, prod(shape) - array.size)
            if 8 * beyond > MAX_MADE:
                raise ModelFormatError(
                    f"model: constant {printable(name)!r} of shape {shape}, "
                    f"wanted at most {MAX_MADE} bytes beyond what the file holds"
                )
            graph.constants[first] = _tensor(shape, array, name)
        elif op in ("Placeholder", "PlaceholderWithDefault"):
            graph.inputs.append(first)
        elif op not in ("NoOp", "Assert"):
            graph.nodes.append(_translated(op, name, inputs, attributes))
    return graph


def _translated(op: str, name: str, inputs: list[str], attributes: dict[str, Any]) -> Node:
    plain = {key: _attribute(value) for key, value in attributes.items() if key != "value"}
    count = plain.get("num", plain.get("num_split", 8))
    if not isinstance(count, int) or not 0 < count <= _MAX_OUTPUTS:
        raise ModelFormatError(
            f"model: node {printable(name)!r} has {count!s:.40} outputs, wanted up to {_MAX_OUTPUTS}"
        )
    outputs = [f"{name}:{i}" for i in range(count)]
    if op == "IdentityN":
        outputs = outputs[: len(inputs)]
    if op == "Square":
        return Node("Mul", inputs * 2, outputs[:1], {}, ONNX, _VERSION, name)
    if op in _OURS:
        return Node(_OURS[op], inputs, outputs[:1], {}, OWN, 0, name)
    if op in _SAME:
        kept: dict[str, Any] = {}
        if op in ("Mean", "Sum", "Max", "Min", "Prod"):
            kept["keepdims"] = int(plain.get("keep_dims", False))
            kept["noop_with_empty_axes"] = 1
        return Node(_SAME[op], inputs, outputs[:1], kept, ONNX, _VERSION, name)
    if op == "Cast":
        return Node("Cast", inputs, outputs[:1], {"to": _ONNX_TYPES.get(plain.get("DstT", 0))}, ONNX, _VERSION, name)
    if op == "LeakyRelu":
        return Node("LeakyRelu", inputs, outputs[:1], {"alpha": plain.get("alpha", 0.2)}, ONNX, _VERSION, name)
    return Node(op, inputs, outputs, plain, TENSORFLOW, 0, name)


def _sort(graph: Graph) -> None:
    """Put nodes in an order in which they can run."""
    producers, placed, order = graph.producers(), set[int](), list[Node]()
    for root in graph.nodes:
        waiting = [(root, False)]
        while waiting:
            node, ready = waiting.pop()
            if ready:
                order.append(node)
            elif id(node) not in placed:
                placed.add(id(node))
                waiting.append((node, True))
                waiting += [(producers[name], False) for name in node.inputs if name in producers]
    graph.nodes = order


# The wire format


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message: numbers, or bytes."""
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = _varint(view, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(view, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("a field of an unknown kind")
        if at + size > len(view):
            raise ValueError("a field that is longer than what holds it")
        yield number, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _node(data: memoryview) -> tuple[str, str, list[str], dict[str, Any]]:
    name = op = ""
    inputs: list[str] = []
    attributes: dict[str, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            op = _text(value)
        elif number == 3 and not (given := _text(value)).startswith("^"):
            inputs.append(given if ":" in given else f"{given}:0")
        elif number == 5:
            entry = dict(_fields(value))
            attributes[_text(entry[1])] = entry.get(2, b"")
    return op, name, inputs, attributes


def _attribute(data: memoryview) -> Any:
    """A value of an attribute: a number, a text, a list of them, or nothing that an operator here takes."""
    for number, value in _fields(data):
        if number == 2:
            return _text(value)
        if number in (3, 6):
            return _signed(value)
        if number == 4:
            return struct.unpack("<f", value)[0]
        if number == 5:
            return bool(value)
        if number == 1:
            return _list(value)
    return None


def _list(data: memoryview) -> list[Any]:
    made: list[Any] = []
    for number, value in _fields(data):
        if number == 3:
            made += [_signed(value)] if isinstance(value, int) else list(_packed(value))
        elif number == 2:
            made.append(_text(value))
        elif number == 4:
            made += [each[0] for each in struct.iter_unpack("<f", value)]
    return made


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield _signed(value)


def _values(data: memoryview, name: str) -> tuple[tuple[int, ...], Any]:
    """The shape of a constant, and the elements that are there of it; None for text."""
    kind, content = 0, b""
    shape: tuple[int, ...] = ()
    values: list[Any] = []
    for number, value in _fields(dict(_fields(data)).get(8, b"")):
        if number == 1:
            kind = value
        elif number == 2:
            shape = tuple(_signed(dict(_fields(each)).get(1, 0)) for field, each in _fields(value) if field == 2)
        elif number == 4:
            content = bytes(value)
        elif number in _VALUES:
            form = _VALUES[number]
            if isinstance(value, int):
                values.append(_signed(value))
            elif form is None:
                values += _packed(value)
            else:
                values += [each[0] for each in struct.iter_unpack(form, value)]
    if kind == 7:
        return shape, None
    if kind not in _DTYPES or any(n < 0 for n in shape) or prod(shape) > MAX_ELEMENTS:
        raise ModelFormatError(f"model: constant {printable(name)!r} is of type {kind} and shape {shape}")
    dtype = np.dtype(_DTYPES[kind])
    if content:
        array = np.frombuffer(content, dtype)
        if array.size not in (1, prod(shape)):
            raise ModelFormatError(
                f"model: constant {printable(name)!r} has {array.size} elements, its shape is {shape}"
            )
        return shape, array
    if kind == 19:
        return shape, np.array(values or [0], np.uint16).view(np.float16)
    return shape, np.array(values or [0], dtype)


def _tensor(shape: tuple[int, ...], array: Any, name: str) -> torch.Tensor:
    """A constant; the last of the elements that are there is repeated."""
    dtype = array.dtype
    if 0 < array.size < prod(shape):
        array = np.concatenate([array, np.full(prod(shape) - array.size, array[-1], dtype)])
    elif array.size == 1:
        array = array[: prod(shape)]
    if array.size != prod(shape):
        raise ModelFormatError(f"model: constant {printable(name)!r} has {array.size} elements, its shape is {shape}")
    if dtype.kind == "f":
        array = array.astype(np.float32)
    elif dtype.name in ("uint16", "uint32", "uint64"):
        array = array.astype(np.int64)
    return torch.from_numpy(array.reshape(shape).copy())
