"""Models whose weights lie in other files, as PyTorch's exporter writes them: put together before they are loaded.

ONNX Runtime would open the named files itself; here they are read through the vault, so that what is served is
authenticated whole, and its digest covers the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from strongroom.errors import MissingDependencyError, ModelFormatError
from strongroom.serve.onnx_file import has_outside_weights, require_self_contained_onnx

_MAX_MODEL = (1 << 31) - 1  # protobuf's limit for one message
_MAX_SHARED = (
    2  # tensors that are tied may name the same bytes; more than this often, a few bytes would fill the memory
)


def inline_weights(model: bytes, read: Callable[[str], bytes]) -> bytes:
    """The model with all its weights in it, wherever its tensors are; `model` itself where they are already.

    Args:
        model: an ONNX file's bytes.
        read: gives the bytes of a file by its path relative to the model's.

    Raises:
        ModelFormatError: not ONNX; a weight's file is missing, too short, or named by a path that leads elsewhere; or
            the whole is over protobuf's limit of 2 GiB, or much larger than the files.
        MissingDependencyError: the `onnx` package is not installed.
    """
    if not has_outside_weights(model):
        return model
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError(
            "model: keeps weights in other files, and python package onnx is missing",
            hint="pip install 'strongroom[serve]'",
        ) from None
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # of a class of protobuf's, or not, by its version
        raise ModelFormatError(f"model: is no ONNX: {error}") from None
    outside = [tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    files: dict[str, bytes] = {}
    pieces = [_piece(tensor, files, read) for tensor in outside]
    # All are added up before any is copied.
    total, held = sum(len(piece) for piece in pieces), sum(map(len, files.values()))
    if len(model) + total > _MAX_MODEL:
        raise ModelFormatError(f"model: {len(model) + total} bytes with its weights, the limit is {_MAX_MODEL}")
    if total > _MAX_SHARED * held:
        raise ModelFormatError(
            f"model: {total} bytes of weights out of files of {held}, wanted at most {_MAX_SHARED} times these"
        )
    for tensor, piece in zip(outside, pieces, strict=True):
        tensor.raw_data = bytes(piece)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    whole: bytes = proto.SerializeToString()
    require_self_contained_onnx(whole)
    return whole


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor below a message: of graphs and their branches, functions, attributes and sparse tensors."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _tensors(one)


def _piece(tensor: Any, files: dict[str, bytes], read: Callable[[str], bytes]) -> memoryview:
    """The bytes of a tensor that is kept elsewhere, not copied; `files` keeps what was read."""
    said = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    path = PurePosixPath(said.get("location", ""))
    location = str(path)  # one spelling, so that no file is held twice
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in location:
        raise ModelFormatError(f"model: weights at {location!r:.200}, wanted a file beside the model")
    if location not in files:
        if sum(map(len, files.values())) > _MAX_MODEL:
            raise ModelFormatError(f"model: its weights lie in more files than make {_MAX_MODEL} bytes, the limit")
        try:
            files[location] = read(location)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ModelFormatError(
                f"model: its weights lie in {location!r:.200}, which was not sealed with it",
                hint="seal the directory that holds both",
            ) from None
    data = files[location]
    offset = _number(said, "offset", 0)
    length = _number(said, "length", max(0, len(data) - offset))
    if offset + length > len(data):
        raise ModelFormatError(f"model: {location!r:.200} has {len(data)} bytes, wanted at least {offset + length}")
    return memoryview(data)[offset : offset + length]


def _number(said: dict[str, str], name: str, default: int) -> int:
    """A place in a file, of so few digits that it is one."""
    text = said.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ModelFormatError(f"model: {name} of weights is {text!r:.60}, wanted a number of bytes")
    return int(text)
