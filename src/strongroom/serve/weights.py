"""Models whose weights lie in other files, as PyTorch's exporter writes them: put together before they are loaded.

ONNX Runtime would open the named files itself; here they are read through the vault, so that what is served is
authenticated whole, and its digest covers the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from strongroom.errors import MissingDependencyError, ModelFormatError
from strongroom.serve.onnx_file import has_outside_weights

_MAX_MODEL = (1 << 31) - 1  # protobuf's limit for one message


def inline_weights(model: bytes, read: Callable[[str], bytes]) -> bytes:
    """The model with all its weights in it; `model` itself where they are already.

    Args:
        model: an ONNX file's bytes.
        read: gives the bytes of a file by its path relative to the model's.

    Raises:
        ModelFormatError: not ONNX; a weight's file is missing, too short, or named by a path that leads elsewhere; or
            the whole is over protobuf's limit of 2 GiB.
        MissingDependencyError: the `onnx` package is not installed.
    """
    if not has_outside_weights(model):
        return model
    try:
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    except ImportError:
        raise MissingDependencyError(
            "model: keeps weights in other files, and python package onnx is missing",
            hint="pip install 'strongroom[serve]'",
        ) from None
    proto = onnx.load_model_from_string(model)
    files: dict[str, bytes] = {}
    for tensor in proto.graph.initializer:
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        location, offset = str(info.location), int(info.offset or 0)
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
            raise ModelFormatError(f"model: weights at {location!r:.200}, wanted a file beside the model")
        if location not in files:
            try:
                files[location] = read(location)
            except (FileNotFoundError, IsADirectoryError):
                raise ModelFormatError(
                    f"model: its weights lie in {location!r:.200}, which was not sealed with it",
                    hint="seal the directory that holds both",
                ) from None
        data = files[location]
        length = int(info.length) if info.length is not None else len(data) - offset
        if not 0 <= offset <= offset + length <= len(data):
            raise ModelFormatError(f"model: {location!r:.200} has {len(data)} bytes, wanted at least {offset + length}")
        tensor.raw_data = data[offset : offset + length]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    if proto.ByteSize() > _MAX_MODEL:
        raise ModelFormatError(f"model: {proto.ByteSize()} bytes with its weights, the limit is {_MAX_MODEL}")
    whole: bytes = proto.SerializeToString()
    return whole
