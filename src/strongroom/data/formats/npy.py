"""NPY, and NPZ: a zip of NPY files (numpy.lib.format). Python's literals are parsed, never evaluated; no pickles."""

from __future__ import annotations

import ast
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, Final, cast

import numpy as np
import numpy.typing as npt

from strongroom.data.formats.arrays import MAX_ARRAYS, Array, Decoded, check_dtype, check_shape, stored
from strongroom.data.source import Source
from strongroom.errors import FormatError

MAGIC: Final = b"\x93NUMPY"
FIELD: Final = "data"

_MAX_HEADER = 10_000  # as numpy's own, for ast.literal_eval
_MAX_DIRECTORY = 64 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
_PREFIX = 12  # magic, version and the longest length field


def read_npy(source: Source) -> Mapping[str, Array]:
    """The array of an NPY file, named `FIELD`. Raises FormatError if the header is malformed, or says object or
    Fortran order.
    """
    return {FIELD: _stored(source, FIELD, 0, source.length)}


def read_npz(source: Source) -> Mapping[str, Array]:
    """The arrays of an NPZ file. Stored members are read in place, compressed ones are to be decoded whole.

    Raises:
        FormatError: the zip or a member's header is malformed.
    """
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], source.as_file(largest=_MAX_DIRECTORY)))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise FormatError(f"{source.name}: not an NPZ file: {str(error)[:100]}") from None
    if len(members) > MAX_ARRAYS:
        raise FormatError(f"{source.name}: {len(members)} members, wanted at most {MAX_ARRAYS}")
    arrays: dict[str, Array] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if not member.filename.endswith(".npy"):
            raise FormatError(
                f"{source.name}: member {member.filename[:100]!r}, wanted NPY files only",
                hint="numpy.savez writes such files",
            )
        if name in arrays:
            raise FormatError(f"{source.name}: two members {name[:100]!r}, wanted each name once")
        if member.flag_bits & 1:
            raise FormatError(f"{source.name}: member {name[:100]!r}: encrypted by zip, wanted plain")
        if member.compress_type == zipfile.ZIP_STORED:
            arrays[name] = _stored(source, name, _data_offset(source, member), member.file_size)
        else:
            arrays[name] = _compressed(source, archive, member, name)
    return arrays


def _data_offset(source: Source, member: zipfile.ZipInfo) -> int:
    raw = source.bytes_at(member.header_offset, _LOCAL.size)
    if len(raw) != _LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        raise FormatError(f"{source.name}: member {member.filename[:100]!r}: no zip header at {member.header_offset}")
    name_length, extra_length = _LOCAL.unpack(raw)[-2:]
    return int(member.header_offset + _LOCAL.size + name_length + extra_length)


def _stored(source: Source, name: str, offset: int, size: int) -> Array:
    def read(at: int, count: int) -> bytes:
        return source.bytes_at(offset + at, min(count, size - at))

    dtype, shape, start = _header(f"{source.name}: array {name[:100]!r}", read)
    return stored(source, name, dtype, shape, offset + start, size - start)


def _compressed(source: Source, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Array:
    where = f"{source.name}: array {name[:100]!r}"
    try:
        with archive.open(member) as file:
            head = file.read(_PREFIX + _MAX_HEADER)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise FormatError(f"{where}: {str(error)[:100]}", hint="save it with numpy.savez") from None
    dtype, shape, start = _header(where, lambda at, count: head[at : at + count])
    wanted = math.prod(shape) * dtype.itemsize
    if member.file_size - start != wanted:
        raise FormatError(f"{where}: {member.file_size - start} bytes, wanted {wanted} for shape {shape} of {dtype}")

    def decode(part: int) -> npt.NDArray[Any]:
        array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8).data
        try:
            with archive.open(member) as file:
                file.read(start)
                done = 0
                while done < wanted and (count := file.readinto(view[done : done + (1 << 20)])):  # type: ignore[attr-defined]
                    done += count
                if done != wanted or file.read(1):
                    raise FormatError(f"{where}: {done} bytes, wanted {wanted}")
        except zipfile.BadZipFile as error:
            raise FormatError(f"{where}: {str(error)[:100]}") from None
        return array

    return Decoded(name, dtype, shape, edges=(0, shape[0]) if shape else (0, 0), decode=decode)


def _header(where: str, read: Callable[[int, int], bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Dtype, shape, and where the data begin."""
    head = read(0, _PREFIX)
    if not head.startswith(MAGIC) or len(head) < _PREFIX:
        raise FormatError(f"{where}: not an NPY file")
    version = head[6], head[7]
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(f"{where}: NPY version {version[0]}.{version[1]}, wanted 1.0, 2.0 or 3.0")
    begin, size = (10, head[8] | head[9] << 8) if version == (1, 0) else (12, int.from_bytes(head[8:12], "little"))
    if size > _MAX_HEADER:
        raise FormatError(f"{where}: NPY header of {size} bytes, wanted at most {_MAX_HEADER}")
    text = read(begin, size)
    try:
        fields = ast.literal_eval(text.decode("utf-8" if version == (3, 0) else "latin-1"))
        if set(fields) != {"descr", "fortran_order", "shape"} or not isinstance(fields["shape"], tuple):
            raise ValueError("other fields")
        descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        dtype = np.dtype(descr if isinstance(descr, str) else "V")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise FormatError(f"{where}: NPY header: {text[:80]!r}, wanted descr, fortran_order and shape") from None
    check_dtype(where, dtype)
    check_shape(where, shape)
    if fortran and len(shape) > 1:
        raise FormatError(
            f"{where}: in Fortran order, wanted C order",
            hint="save numpy.ascontiguousarray(array): records are its rows",
        )
    return dtype, shape, begin + size
