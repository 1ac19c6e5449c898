"""A model as others made it, read as bytes from elsewhere, and put into the one form that the rest of `graph` knows.

Of the form (`load` makes it, `optimise` and `split` keep it):

- Operators stand in an order in which they can run; each makes a tensor that an answer needs; each tensor is made once.
- There are no functions of the model's own, no constants among the operators, and no input with a value of its own.
- No answer is a weight, and no two operators have one name.
- Every weight has the bytes of its shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from strongroom.crypto import digest
from strongroom.errors import ModelFormatError, UsageError, printable
from strongroom.serve.graph.nodes import bodies, made, sorted_nodes, uses
from strongroom.serve.onnx_file import has_outside_weights
from strongroom.serve.runtime import DATATYPE_OF, FATAL, PROVIDERS, onnx, onnxruntime
from strongroom.serve.weights import inline_weights

MAX_MODEL = (1 << 31) - 1  # protobuf's limit for one message
_OLDEST = 7  # the oldest opset that ONNX Runtime promises to run
_CONSTANTS = ("value", "value_float", "value_floats", "value_int", "value_ints")


@dataclass(frozen=True)
class Model:
    """An ONNX model that has been looked at.

    Attributes:
        proto: ONNX's own object, with all weights in it. Not to be changed.
        digest: SHA-256 of the bytes it was loaded from, its weights in it, in hexadecimal digits. What `optimise` and
            `split` make of a model keeps it.
        notes: what was done to it or could not be, one line each.
    """

    proto: Any = field(repr=False)
    digest: str
    notes: tuple[str, ...] = ()


def load(source: bytes | Path, *, external: Callable[[str], bytes] | None = None) -> Model:
    """Read a model.

    Args:
        source: an ONNX file's bytes, or its path.
        external: gives the bytes of a file that weights lie in, by its path relative to the model's: a vault's reader
            where the model is sealed. Without it, a path's neighbours are read, and bytes must hold all weights.

    Raises:
        ModelFormatError: it is not ONNX, is of an opset that cannot be converted, has inputs or outputs that are no
            tensors of numbers, or its weights lie where they should not or are more than 2 GiB.
        MissingDependencyError: `onnx` or `onnxruntime` is not installed.
    """
    if isinstance(source, Path):
        external = external or functools.partial(_beside, source.parent)
        source = _read(source)
    if len(source) > MAX_MODEL:
        raise ModelFormatError(f"model: {len(source)} bytes, the limit is {MAX_MODEL}")
    if external is not None:
        source = inline_weights(source, external)
    elif has_outside_weights(source):
        raise ModelFormatError(
            "model: keeps weights in other files, wanted all of them in the model",
            hint="give its path, or a reader of these files",
        )
    try:
        proto = onnx().load_model_from_string(source)
    except Exception as error:  # of a class of protobuf's, or not, by its version
        raise ModelFormatError(f"model: is no ONNX, or was cut short: {printable(error)}") from None
    notes: list[str] = []
    proto = _runnable(proto, notes)
    try:
        put_in_form(proto)
    except UnicodeDecodeError:
        raise ModelFormatError("model: a name in it is no text, wanted UTF-8") from None
    return Model(proto, digest(source).hex(), tuple(notes))


def put_in_form(proto: Any) -> None:
    """Put a graph without functions in the form above, in place."""
    graph = proto.graph
    if not graph.output:
        raise ModelFormatError("model: gives no answer, wanted an output")
    for key in ("value_info", "quantization_annotation", "metadata_props"):
        graph.ClearField(key)
    del proto.metadata_props[:], proto.training_info[:]
    _check_weights(graph)
    _take_constants(graph)
    _take_defaults(graph)
    _check_ends(graph)
    nodes = sorted_nodes(graph)
    _drop_unneeded(graph, nodes)
    _name_apart(graph)


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_MODEL:
            raise ModelFormatError(
                f"model: {size} bytes, the limit is {MAX_MODEL}", hint="keep its weights in other files"
            )
        with path.open("rb") as file:
            return file.read(MAX_MODEL + 1)
    except OSError as error:
        raise UsageError(f"model: {printable(path)}: {(error.strerror or str(error)).lower()}") from None


def _beside(folder: Path, name: str) -> bytes:
    """A file of weights that lies beside the model, or below; a link that leads elsewhere does not."""
    path = folder / name
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        raise ModelFormatError(
            f"model: weights at {printable(name)!r}, a link that leads elsewhere, wanted a file beside the model"
        )
    if path.exists() and not path.is_file():
        raise ModelFormatError(f"model: weights at {printable(name)!r}, which is no file")
    if path.exists() and path.stat().st_size > MAX_MODEL:
        raise ModelFormatError(f"model: {printable(name)!r} has more than {MAX_MODEL} bytes, the limit")
    return path.read_bytes()


def _runnable(proto: Any, notes: list[str]) -> Any:
    """The model without functions of its own, of an opset that ONNX Runtime takes."""
    if proto.functions:
        try:
            proto = onnx().inliner.inline_local_functions(proto)
        except Exception as error:
            raise ModelFormatError(f"model: its functions cannot be inlined: {printable(error)}") from None
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), None)
    newest, newest_ir = _newest()
    if opset is not None and not _OLDEST <= opset <= newest:
        wanted = min(max(opset, 13), newest)
        try:
            proto = onnx().version_converter.convert_version(proto, wanted)
        except Exception as error:
            raise ModelFormatError(
                f"model: opset {opset}, wanted {_OLDEST} to {newest}, and it cannot be converted: {printable(error)}",
                hint="export it again with an opset in that range",
            ) from None
        notes.append(f"converted from opset {opset} to {wanted}")
    # Weights need not be inputs from version 4 on.
    proto.ir_version = min(max(proto.ir_version, 4), newest_ir)
    return proto


@functools.cache
def _newest() -> tuple[int, int]:
    """The newest opset and version of the format that the installed ONNX Runtime takes, found out by asking it."""
    helper, float_ = onnx().helper, onnx().TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, float_, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])

    def takes(opset: int, version: int) -> bool:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = version
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = FATAL, 1
        try:
            runtime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
        except Exception:
            return False
        return True

    opset = next(n for n in range(onnx().defs.onnx_opset_version(), 0, -1) if takes(n, 8))
    return opset, next(n for n in range(onnx().IR_VERSION, 0, -1) if takes(opset, n))


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a weight's values. Raises ModelFormatError unless they are those of its shape."""
    name, count = printable(tensor.name)[:120], prod(tensor.dims)
    if any(size < 0 for size in tensor.dims) or count > MAX_MODEL:
        raise ModelFormatError(f"model: {name!r} has shape {list(tensor.dims)[:16]}, wanted one that fits in 2 GiB")
    types = onnx().TensorProto
    if tensor.data_type == types.STRING:
        return sum(len(text) for text in tensor.string_data)
    try:
        kind = onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelFormatError(f"model: {name!r} is of type {tensor.data_type}, which ONNX does not have") from None
    # Narrower ones are packed, several to a byte.
    bits = next((n for n in (2, 4) if kind.name.endswith(f"int{n}") or kind.name.startswith(f"float{n}")), 0)
    size: int = (count * bits + 7) // 8 if bits else count * kind.itemsize
    if tensor.HasField("raw_data"):
        fits = len(tensor.raw_data) == size
    else:
        field_ = onnx().helper.tensor_dtype_to_field(tensor.data_type)
        values = len(getattr(tensor, field_))
        fits = values == size if bits else values == count * (2 if kind.kind == "c" else 1)
    if not fits:
        raise ModelFormatError(f"model: {name!r} does not hold a tensor of shape {list(tensor.dims)[:16]}")
    return size


def _check_weights(graph: Any) -> None:
    pending = [graph]
    while pending:
        graph = pending.pop()
        names = [each.name for each in graph.initializer] + [each.values.name for each in graph.sparse_initializer]
        if len(set(names)) < len(names):
            raise ModelFormatError("model: two weights are of one name")
        for tensor in graph.initializer:
            tensor_bytes(tensor)
        for node in graph.node:
            pending.extend(bodies(node))


def _take_constants(graph: Any) -> None:
    """Constants among the operators become weights."""
    kept = []
    for node in graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if value is None or value.name not in _CONSTANTS or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        if value.name == "value":
            tensor.CopyFrom(value.t)
        else:
            number = onnx().helper.get_attribute_value(value)
            types = onnx().TensorProto
            kind = types.FLOAT if "float" in value.name else types.INT64
            many = isinstance(number, (int, float))
            dims, values = ([], [number]) if many else ([len(number)], list(number))
            tensor.CopyFrom(onnx().helper.make_tensor(node.output[0], kind, dims, values))
        tensor.name = node.output[0]
        tensor_bytes(tensor)
    if len(kept) < len(graph.node):
        kept = [_copied(node) for node in kept]
        del graph.node[:]
        graph.node.extend(kept)


def _copied(message: Any) -> Any:
    other = type(message)()
    other.CopyFrom(message)
    return other


def _take_defaults(graph: Any) -> None:
    """Inputs that have a value are weights; answers that are weights come of an operator."""
    weights = {tensor.name for tensor in graph.initializer} | {each.values.name for each in graph.sparse_initializer}
    inputs = [_copied(each) for each in graph.input if each.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    renamed = {}
    for name in {each.name for each in graph.output} & weights:
        # Names that ONNX Runtime and exporters make hold no blank.
        renamed[name] = f"{name} value"
    for tensor in [*graph.initializer, *(each.values for each in graph.sparse_initializer)]:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for name, other in sorted(renamed.items()):
        graph.node.append(onnx().helper.make_node("Identity", [other], [name]))


def _check_ends(graph: Any) -> None:
    seen: set[str] = set()
    for kind, ends in (("input", graph.input), ("output", graph.output)):
        for end in ends:
            what = f"model: {kind} {printable(end.name)[:120]!r}"
            if kind == "input" and end.name in seen:
                raise ModelFormatError(f"{what}: there are two of this name")
            seen.add(end.name)
            type_ = end.type.WhichOneof("value")
            if type_ is None and kind == "output":
                continue  # what makes it says what it is
            if type_ != "tensor_type":
                raise ModelFormatError(
                    f"{what}: is a {str(type_).removesuffix('_type')}, wanted a tensor of numbers",
                    hint="for scikit-learn classifiers export with options={'zipmap': False}"
                    if type_ in ("sequence_type", "map_type")
                    else None,
                )
            kind_of = end.type.tensor_type.elem_type
            known = kind_of in onnx().TensorProto.DataType.values()
            name = onnx().TensorProto.DataType.Name(kind_of).lower() if known else f"type {kind_of}"
            if f"tensor({name})" not in DATATYPE_OF:
                raise ModelFormatError(f"{what}: is a tensor of {name}, wanted numbers of a type that requests have")
    outputs = [each.name for each in graph.output]
    if len(set(outputs)) < len(outputs):
        raise ModelFormatError("model: two outputs have one name")


def _drop_unneeded(graph: Any, nodes: list[Any]) -> None:
    """Leave the operators that answers come of, and the weights that these take."""
    needed = {each.name for each in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed.isdisjoint(made(node)):
            continue
        needed.update(uses(node))
        kept.append(_copied(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for weights, names in (
        (graph.initializer, [each.name for each in graph.initializer]),
        (graph.sparse_initializer, [each.values.name for each in graph.sparse_initializer]),
    ):
        if not needed.issuperset(names):
            left = [_copied(each) for each, name in zip(weights, names, strict=True) if name in needed]
            del weights[:]
            weights.extend(left)


def _name_apart(graph: Any) -> None:
    """ONNX Runtime refuses two operators of one name: neither keeps it."""
    seen: set[str] = set()
    for node in graph.node:
        if node.name in seen:
            node.name = ""
        seen.add(node.name)
