"""What lies where in a mirror: the content of the sealed file, byte by byte. The specification is docs/spec/mirror.md.

::

    whole blocks of large arrays | rest of them and small arrays | manifest (JSON) | footer

- An array's whole blocks lie at a place of its own, so they can be sealed out of its memory, and what did not change
  is not written again. What is left of it, less than a block, lies with all small arrays in the tail.
- An array keeps its place as long as its whole blocks are as many; others are put where there is room.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from strongroom.errors import FormatError
from strongroom.lineage.resumes import Resumes
from strongroom.mirror.state import MAX_DIMENSIONS, item_size

MAGIC: Final = b"SRMIRROR"
VERSION: Final = 1
FOOTER: Final = struct.Struct("<8sIIQQ")  # magic, version, 0, where the tail begins, bytes of the manifest
MAX_MANIFEST: Final = 256 << 20
MAX_STEP: Final = (1 << 63) - 1
_ALIGN: Final = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """An array in a mirror.

    Attributes:
        name: the path that leads to it in the state.
        dtype: as `state.item_size` takes it.
        offset: where its whole blocks begin, a multiple of the block size.
        whole: bytes of those.
        tail: where the rest begins, from the beginning of the tail.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    whole: int
    tail: int


@dataclass(frozen=True)
class Layout:
    """Where arrays lie. `area` is where the tail begins, `rest` how long the arrays' part of it is."""

    block_size: int
    entries: tuple[Entry, ...]
    area: int
    rest: int

    @functools.cached_property
    def wanted(self) -> list[Wanted]:
        """The arrays that were to have a place, in order."""
        return [Wanted(e.name, e.kind, e.dtype, e.shape, e.nbytes) for e in self.entries]

    @functools.cached_property
    def text(self) -> str:
        """The arrays as the manifest lists them; a training changes them seldom, and commits often."""
        return _json([[e.name, e.kind, e.dtype, list(e.shape), e.offset, e.tail] for e in self.entries])


class Wanted(NamedTuple):
    """An array that shall have a place."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def arrange(wanted: Sequence[Wanted], block_size: int, before: Layout | None = None) -> Layout:
    """Places for arrays: those they had, as far as they fit, and gaps or the end for others.

    `before` itself if it has just these arrays.
    """
    if before is not None and before.block_size == block_size and before.wanted == wanted:
        return before
    known = {entry.name: entry for entry in before.entries} if before else {}
    sizes = [one.nbytes // block_size * block_size for one in wanted]
    places: list[int | None] = []
    used: list[tuple[int, int]] = []
    for one, size in zip(wanted, sizes, strict=True):
        old = known.pop(one.name, None)
        keeps = size > 0 and old is not None and old.whole == size
        places.append(old.offset if keeps and old else None)
        if keeps and old:
            used.append((old.offset, old.offset + size))
    gaps = _gaps(sorted(used))
    entries, tail = [], 0
    for one, size, kept in zip(wanted, sizes, places, strict=True):
        place = 0
        if size:
            place = kept if kept is not None else _take(gaps, size)
        entries.append(Entry(one.name, one.kind, one.dtype, one.shape, one.nbytes, place, size, tail))
        tail += -(-(one.nbytes - size) // _ALIGN) * _ALIGN
    area = max((entry.offset + entry.whole for entry in entries), default=0)
    return Layout(block_size, tuple(entries), area, tail)


def _gaps(used: list[tuple[int, int]]) -> list[list[int]]:
    gaps, at = [], 0
    for start, stop in used:
        if start > at:
            gaps.append([at, start])
        at = max(at, stop)
    return [*gaps, [at, MAX_STEP]]


def _take(gaps: list[list[int]], size: int) -> int:
    for gap in gaps:
        if gap[1] - gap[0] >= size:
            gap[0] += size
            return gap[0] - size
    raise AssertionError("the last gap has no end")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a commit says of itself.

    Attributes:
        step: of the training; each commit's is above the one before.
        time: seconds since 1970.
        layout: where its arrays lie.
        values: the state as `state.encode` made it.
        kept: (step, sequence) of earlier commits that were kept when this was made, the oldest first.
        resumes: every return from the mirror that this commit follows.
    """

    step: int
    time: float
    layout: Layout
    values: Any
    kept: tuple[tuple[int, int], ...] = ()
    resumes: Resumes = field(default_factory=Resumes)

    def to_bytes(self) -> bytes:
        """The manifest and the footer."""
        layout = self.layout
        members = {
            "step": _json(self.step),
            "time": _json(self.time),
            "rest": _json(layout.rest),
            "arrays": layout.text,
            "values": _json(self.values),
            "kept": _json([list(one) for one in self.kept]),
        }
        if self.resumes.count:
            members["resumes"] = _json(self.resumes.to_wire())
        text = ",".join(f'"{name}":{value}' for name, value in members.items())
        body = f"{{{text}}}".encode("utf-8", "surrogatepass")
        if len(body) > MAX_MANIFEST:
            raise FormatError(f"mirror manifest: {len(body)} bytes, wanted at most {MAX_MANIFEST}")
        return body + FOOTER.pack(MAGIC, VERSION, 0, layout.area, len(body))


def _json(value: Any) -> str:
    # Not ASCII only: two surrogates that are no pair would come back as one character.
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def parse_footer(data: bytes, length: int) -> tuple[int, int]:
    """Where the tail of a mirror of `length` bytes begins, and how long its manifest is.

    Raises:
        FormatError: it is no mirror, or one of another version.
    """
    magic, version, zero, area, size = FOOTER.unpack(data) if len(data) == FOOTER.size else (b"", 0, 0, 0, 0)
    if magic != MAGIC:
        raise FormatError("mirror: the sealed file does not end as a mirror does, wanted one that a mirror made")
    if version != VERSION or zero:
        raise FormatError(f"mirror: of format {version}, wanted {VERSION}", hint="a newer Strongroom made it")
    if size > MAX_MANIFEST or area + size + FOOTER.size > length:
        raise FormatError(f"mirror: a manifest of {size} bytes from {area} on, in {length} bytes")
    return area, size


def parse_manifest(body: bytes, *, area: int, length: int, block_size: int) -> Manifest:
    """Raises FormatError for what `Manifest.to_bytes` does not make, and for places outside of the file."""
    try:
        raw = json.loads(body.decode("utf-8", "surrogatepass"), parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise FormatError("mirror manifest: no JSON") from None
    names = {"step", "time", "rest", "arrays", "values", "kept"}
    if not isinstance(raw, dict) or raw.keys() - {"resumes"} != names:
        raise FormatError(f"mirror manifest: wanted exactly {', '.join(sorted(names))}, and maybe resumes")
    step, rest = _count(raw["step"], "step"), _count(raw["rest"], "rest")
    time = raw["time"]
    if not isinstance(time, (int, float)) or isinstance(time, bool) or not abs(time) < MAX_STEP:
        raise FormatError("mirror manifest: time, wanted a number")
    if area % block_size or area + rest + len(body) + FOOTER.size != length:
        raise FormatError(f"mirror manifest: {area} and {rest} bytes of arrays in {length} bytes")
    entries = tuple(_entry(one, area, rest, block_size) for one in _list(raw["arrays"], "arrays"))
    if rest > len(entries) * block_size:  # each leaves less than a block, so that no more need be read than is used
        raise FormatError(f"mirror manifest: {rest} bytes for the rest of {len(entries)} arrays")
    if len({entry.name for entry in entries}) != len(entries):
        raise FormatError("mirror manifest: two arrays of one name")
    kept = tuple(_kept(one) for one in _list(raw["kept"], "kept"))
    resumes = Resumes.from_wire(raw["resumes"]) if "resumes" in raw else Resumes()
    return Manifest(step, float(time), Layout(block_size, entries, area, rest), raw["values"], kept, resumes)


def _entry(raw: object, area: int, rest: int, block_size: int) -> Entry:
    if not isinstance(raw, list) or len(raw) != 6 or not all(isinstance(part, str) for part in raw[:3]):
        raise FormatError("mirror manifest: an array, wanted name, kind, type, shape, offset and tail")
    name, kind, dtype = raw[:3]
    sizes = _list(raw[3], "shape")
    if len(sizes) > MAX_DIMENSIONS:
        raise FormatError(f"mirror manifest: an array of {len(sizes)} dimensions, wanted at most {MAX_DIMENSIONS}")
    shape = tuple(_count(size, "shape") for size in sizes)
    offset, tail = _count(raw[4], "offset"), _count(raw[5], "tail")
    nbytes = math.prod(shape) * item_size(dtype)
    whole = nbytes // block_size * block_size
    if offset % block_size or offset + whole > area or tail + nbytes - whole > rest:
        raise FormatError(f"mirror manifest: array {name[:80]!r} lies outside of the arrays' part")
    return Entry(name, kind, dtype, shape, nbytes, offset, whole, tail)


def _kept(raw: object) -> tuple[int, int]:
    if not isinstance(raw, list) or len(raw) != 2:
        raise FormatError("mirror manifest: a commit that is kept, wanted step and sequence")
    return _count(raw[0], "step"), _count(raw[1], "sequence")


def _list(raw: object, what: str) -> list[object]:
    if not isinstance(raw, list):
        raise FormatError(f"mirror manifest: {what}, wanted a list")
    return raw


def _count(raw: object, what: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 <= raw <= MAX_STEP:
        raise FormatError(f"mirror manifest: {what}, wanted a number from 0 to 2^63 - 1")
    return raw


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("two members of one name")
    return made


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def unique(names: Sequence[str]) -> list[str]:
    """Names that differ: a second of the same gets ``~2`` behind it."""
    counts: Mapping[str, int] = {}
    seen: dict[str, int] = dict(counts)
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        candidate = name if seen[name] == 1 else f"{name}~{seen[name]}"
        while candidate != name and candidate in seen:
            seen[name] += 1
            candidate = f"{name}~{seen[name]}"
        seen.setdefault(candidate, 1)
        made.append(candidate)
    return made
