"""Which format a file has, by its first bytes."""

from __future__ import annotations

from collections.abc import Mapping

from strongroom.data.formats import idx, npy, parquet, tensors
from strongroom.data.formats.arrays import Array
from strongroom.data.source import Source
from strongroom.errors import FormatError

_NAMES = "NPY, NPZ, safetensors, idx or Parquet"
_OTHERS = {
    b"\x1f\x8b": ("gzip", "unpack it before you seal it: what is compressed as a whole has no random access"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unpack it before you seal it"),
    b"\x89HDF": ("HDF5", "convert it with strongroom.data.seal_arrays"),
    b"\x80": ("a Python pickle", "pickles are never loaded; convert it with strongroom.data.seal_arrays"),
}


def read_arrays(source: Source) -> Mapping[str, Array]:
    """The arrays in a file, in its order.

    Raises:
        FormatError: it is of no known format, or its header is malformed.
        MissingDependencyError: it is Parquet, and pyarrow is not installed.
    """
    head = source.bytes_at(0, 16)
    if head.startswith(npy.MAGIC):
        return npy.read_npy(source)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return npy.read_npz(source)
    if head.startswith(parquet.MAGIC):
        return parquet.read_parquet(source)
    if tensors.looks_like(head):
        return tensors.read_safetensors(source)
    if idx.looks_like(head):
        return idx.read_idx(source)
    for magic, (name, hint) in _OTHERS.items():
        if head.startswith(magic):
            raise FormatError(f"{source.name}: holds {name}, wanted {_NAMES}", hint=hint)
    raise FormatError(
        f"{source.name}: starts with {head.hex() or 'nothing'}, wanted {_NAMES}",
        hint="strongroom.data.seal_arrays writes what can be read here",
    )
