"""Export of a commit's arrays to a safetensors file, for programs that know nothing of mirrors.

The format is that of https://github.com/huggingface/safetensors: the length of a header (u64, little-endian), the
header (JSON: name -> type, shape and place of each tensor), and the tensors' bytes, little-endian, in C order and
without a gap between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from strongroom.errors import UsageError
from strongroom.mirror.manifest import Entry
from strongroom.mirror.restored import Restored
from strongroom.mirror.state import numpy_type
from strongroom.storage import LocalDirectory

MAX_HEADER: Final = 100_000_000  # MAX_HEADER_SIZE of safetensors
_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = "__metadata__"
_PARTS: Final = "parts/"  # where adapters put what they were given by name

# By the names of the mirror, big-endian ones aside. C64 and the fnuz types are in safetensors since 0.7.
TYPES: Final[Mapping[str, str]] = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<u4": "U32", "<i4": "I32", "<u8": "U64",
    "<i8": "I64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        names: of the tensors in the file, with the name that each has in the mirror.
        size: of the file, in bytes.
        left_out: arrays that safetensors cannot hold, and why.
    """

    names: dict[str, str]
    size: int
    left_out: dict[str, str]


def arrays_of(restored: Restored, part: str | None = None) -> dict[str, Entry]:
    """The arrays of a part by the names that they have in it; of the whole state by their paths.

    Args:
        part: a path in the state, such as ``model`` or ``model/encoder``. For what adapters were given, which lies in
            ``parts``, its name is enough.

    Raises:
        UsageError: there is no array.
    """
    arrays = restored.arrays
    if part is None:
        found = dict(arrays)
    else:
        part = part.strip("/")
        found = _below(arrays, part) or _below(arrays, _PARTS + part)
    if not found:
        wanted = (
            ", ".join(sorted({name.removeprefix(_PARTS).partition("/")[0] for name in arrays})) or "no array at all"
        )
        raise UsageError(f"part: {part or 'the state'} has no arrays", hint=f"there are: {wanted}")
    return found


def _below(arrays: Mapping[str, Entry], part: str) -> dict[str, Entry]:
    if part in arrays:
        return {part.rpartition("/")[2]: arrays[part]}
    return {name[len(part) + 1 :]: entry for name, entry in arrays.items() if name.startswith(f"{part}/")}


def export(
    restored: Restored,
    path: str | os.PathLike[str],
    *,
    part: str | None = None,
    skip: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write arrays of a commit **in clear** to a safetensors file that its owner alone can read.

    It is there whole or not at all. Its metadata are ``step`` and ``root``, those of the commit.

    Args:
        part: as `arrays_of` takes it; by default the whole state.
        skip: leave out what safetensors cannot hold (text, times, most complex numbers) instead of refusing.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: there is one.
        UsageError: there is nothing to export, or an array that safetensors cannot hold, by name.
        IntegrityError: a block is not what was committed.
    """
    path = Path(path)
    if not overwrite and (path.exists() or path.is_symlink()):
        raise FileExistsError(17, "file exists", str(path))
    kept, left_out = _sort_out(arrays_of(restored, part), skip=skip)
    metadata = {"step": str(restored.step), "root": str(restored.root)}
    header = _header(kept, metadata)
    with _new_file(path, overwrite=overwrite) as file:
        file.write(header)
        for entry in kept.values():
            file.write(_content(restored, entry))
    size = len(header) + sum(entry.nbytes for entry in kept.values())
    return Exported({name: entry.name for name, entry in kept.items()}, size, left_out)


def type_of(dtype: str) -> str | None:
    """Safetensors' name of a type of the mirror's; None if it has none."""
    return TYPES.get(f"<{dtype[1:]}" if dtype.startswith(">") else dtype)


def _sort_out(arrays: Mapping[str, Entry], *, skip: bool) -> tuple[dict[str, Entry], dict[str, str]]:
    kept, left_out = {}, {}
    for name, entry in arrays.items():
        reason = _why_not(name, entry)
        if reason is None:
            kept[name] = entry
            continue
        if not skip:
            raise UsageError(
                f"array {name}: {reason}", hint="leave such arrays out (skip), or export a part without any"
            )
        left_out[name] = reason
    if not kept:
        raise UsageError(f"part: none of its {len(left_out)} arrays is one that safetensors can hold")
    # Readers map tensors where they lie: wide elements first, so that each is aligned.
    order = sorted(kept.items(), key=lambda one: (-numpy_type(one[1].dtype).itemsize, one[0]))
    return dict(order), left_out


def _why_not(name: str, entry: Entry) -> str | None:
    if type_of(entry.dtype) is None:
        return f"of type {entry.dtype}, which safetensors lacks"
    if name == _METADATA:
        return "has a name that safetensors keeps for itself"
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "has a name that is no Unicode text"
    return None


def _header(arrays: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    members: dict[str, object] = {_METADATA: metadata}
    at = 0
    for name, entry in arrays.items():
        end = at + entry.nbytes
        members[name] = {"dtype": type_of(entry.dtype), "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH.size)
    if len(text) > MAX_HEADER:
        raise UsageError(f"header: {len(text)} bytes for {len(arrays)} arrays, wanted at most {MAX_HEADER}")
    return _LENGTH.pack(len(text)) + text


def _content(restored: Restored, entry: Entry) -> memoryview:
    data = np.empty(entry.nbytes, np.uint8)
    restored.read_into(entry.name, data.data)
    if entry.dtype.startswith(">"):
        # Real and imaginary parts are swapped each by itself.
        data.view(entry.dtype).byteswap(inplace=True)
    return data.data


@contextlib.contextmanager
def _new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)  # left by a process of this number
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _give_name(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    LocalDirectory(path.parent).sync()


def _give_name(temporary: Path, path: Path) -> None:
    """Rename, unless somebody made a file of that name meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(17, "file exists", str(path)) from None
        temporary.rename(path)
        return
    temporary.unlink()
