"""Is this an ONNX model that can be run from its bytes alone? Told from the bytes, before ONNX Runtime sees them.

A model that names outside files is refused here: ONNX Runtime would open the paths that it names, and what they hold is
in no digest. The walk follows protobuf's wire format through the few messages of onnx.proto in which tensors can lie;
it decodes no tensor and imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from strongroom.errors import ModelFormatError

_EXPORT = "export it to ONNX first, as with torch.onnx.export(model, example, 'model.onnx')"

# What people hand in instead, by its first bytes: (offset, bytes, what it is, what to do).
_OTHERS = (
    (0, b"PK\x03\x04", "a zip archive, as of torch.save, Keras or NumPy", _EXPORT),
    (0, b"\x80", "a Python pickle", _EXPORT),
    (0, b"\x89HDF\r\n", "an HDF5 file, as of Keras", "export it to ONNX first, as with model.export(path, 'onnx')"),
    (0, b"GGUF", "a GGUF file", _EXPORT),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX first, as with tf2onnx"),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "give the ONNX model that it was made from"),
    (0, b"\x7fELF", "a program", "give the path of a .onnx file"),
    (0, b"STRONGRM", "a sealed file", "unseal it first, or name it in a policy that serves it"),
    (8, b'{"', "a safetensors file, which has weights but no network", _EXPORT),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with: git lfs pull"),
    (0, b"<", "HTML or XML", "the download may have been an error page"),
    (0, b"{", "JSON", "give the path of a .onnx file"),
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IR_VERSION, _GRAPH = 1, 7
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 100

# The fields of each message that lead to tensors: onnx.proto of ONNX 1.19, by field number.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}


class _NotProtobufError(Exception):
    pass


def require_self_contained_onnx(model: bytes) -> None:
    """Pass a model that is ONNX and holds all its weights.

    Raises:
        ModelFormatError: it is something else, is cut short, or keeps weights in other files.
    """
    if has_outside_weights(model):
        raise ModelFormatError(
            "model: keeps weights in other files, wanted all of them in the model",
            hint="save it in one file: onnx.save(onnx.load(path), new_path)",
        )


def has_outside_weights(model: bytes) -> bool:
    """Whether a model that is ONNX keeps weights in other files.

    Raises:
        ModelFormatError: it is something else, or is cut short.
    """
    if not model:
        raise ModelFormatError("model: is empty, wanted ONNX")
    for offset, magic, kind, hint in _OTHERS:
        if model.startswith(magic, offset):
            raise ModelFormatError(f"model: is {kind}, wanted ONNX", hint=hint)
    try:
        top = {number for number, _, _ in _fields(memoryview(model), 0, len(model))}
        if not {_IR_VERSION, _GRAPH} <= top:
            raise _NotProtobufError
        return _names_outside_files(memoryview(model))
    except _NotProtobufError:
        raise ModelFormatError(
            f"model: {len(model)} bytes that are not ONNX, or were cut short", hint="give a whole .onnx file"
        ) from None


def _names_outside_files(model: memoryview) -> bool:
    """Whether any tensor of the model is kept elsewhere."""
    pending = [("Model", 0, len(model), 0)]
    while pending:
        message, start, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise _NotProtobufError
        inner = _FIELDS[message]
        for number, value, size in _fields(model, start, end):
            if message == "Tensor":
                # data_location is a varint: its value; external_data is a message: its place.
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    return True
            elif number in inner:
                if size < 0:
                    raise _NotProtobufError
                pending.append((inner[number], value, value + size, depth + 1))
    return False


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of one message: number, and place and size; of a varint or a fixed number its value (or 0) and -1."""
    while start < end:
        key, start = _varint(data, start, end)
        number, wire = key >> 3, key & 7
        value, size = 0, -1
        if wire == _VARINT:
            value, start = _varint(data, start, end)
        elif wire == _FIXED64:
            start += 8
        elif wire == _FIXED32:
            start += 4
        elif wire == _BYTES:
            size, start = _varint(data, start, end)
            value, start = start, start + size
        else:
            raise _NotProtobufError
        if start > end or number == 0:
            raise _NotProtobufError
        yield number, value, size


def _varint(data: memoryview, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise _NotProtobufError
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise _NotProtobufError
