"""The fields of a data set as columns that give any rows, and how the cache's cap is shared among them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.data.bfloat16 import bfloat16_type, narrow, widen
from strongroom.data.blocks import Bytes, Rows
from strongroom.data.buffers import Buffers
from strongroom.data.formats import Array, Decoded, Stored
from strongroom.data.order import Indices
from strongroom.data.source import Source
from strongroom.errors import FormatError, UsageError

_CHUNK = 256 << 10


class Column:
    """One field. `dtype` and `row_shape` are those of what it gives: in the machine's byte order; BF16 and what is
    normalised as float32, or else as bfloat16.
    """

    def __init__(self, name: str, array: Array, rows: Rows | Parts | None, *, bfloat16: bool = False) -> None:
        self.name = name
        self.array = array
        self.rows = rows
        self.row_shape = array.shape[1:]
        self.dtype = np.dtype(np.float32) if array.bfloat16 or array.normalise else array.dtype.newbyteorder("=")
        self._narrow = bfloat16
        if bfloat16:
            if self.dtype != np.float32:
                raise UsageError(f"bfloat16: field {name!r} of {self.dtype}, wanted one that is given as float32")
            self.dtype = bfloat16_type()
        self._raw = array.dtype
        self._swapped = not array.dtype.isnative
        self._buffers = Buffers()
        self._normalised = Buffers()

    def gather(self, indices: Indices) -> npt.NDArray[Any]:
        """The rows as one new array of shape (len(indices), *row_shape)."""
        count, size = len(indices), self.array.row_bytes
        out: Bytes = self._buffers.take(count * size).reshape(count, size)
        if self.rows is not None and count:
            self.rows.gather(indices, out)
        values: npt.NDArray[Any] = out.reshape(-1).view(self._raw)
        if self._swapped:
            values = values.byteswap(inplace=True).view(self._raw.newbyteorder("="))
        values = values.reshape(count, *self.row_shape)
        normalise = self.array.normalise
        if self.array.bfloat16:
            if self._narrow and normalise is None:
                return values.view(self.dtype)
            values = widen(values)
        if normalise is not None:
            floats = self._normalised.take(4 * values.size).view(np.float32).reshape(values.shape)
            values = normalise.of(values, floats)
        return narrow(values).view(self.dtype) if self._narrow else values

    @property
    def kept(self) -> int:
        """Bytes of decrypted content that are kept now."""
        return self.rows.kept if self.rows is not None else 0


class Parts:
    """Rows of an array that is decoded in parts, of which the last used are kept.

    Args:
        cap: the bytes to keep.
    """

    def __init__(self, source: Source, array: Decoded, *, cap: int) -> None:
        self._source = source
        self._array = array
        self._cap = cap
        self._parts: OrderedDict[int, Bytes] = OrderedDict()
        self._kept = 0
        self._starts = np.array(array.edges[:-1], np.int64)

    @property
    def kept(self) -> int:
        return self._kept

    def gather(self, indices: Indices, out: Bytes) -> None:
        """As `Rows.gather`.

        Raises:
            FormatError: a part is larger than the cap.
        """
        # Of empty parts that begin at the same row, the last one begins the rows.
        wanted = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(wanted).tolist():
            chosen = np.flatnonzero(wanted == number)
            out[chosen] = self._part(number)[indices[chosen] - self._starts[number]]

    def preload(self) -> None:
        """Decode every part, up to the cap."""
        for number in range(len(self._starts)):
            if self._kept + self._size(number) > self._cap:
                break
            self._part(number)

    def _size(self, number: int) -> int:
        edges = self._array.edges
        return (edges[number + 1] - edges[number]) * self._array.row_bytes

    def _part(self, number: int) -> Bytes:
        # Decoding keeps state between reads, which no fork may find half way.
        with self._source.lock:
            part = self._parts.get(number)
            if part is not None:
                self._parts.move_to_end(number)
                return part
            size = self._size(number)
            if size > self._cap:
                raise FormatError(
                    f"{self._source.name}: field {self._array.name!r}: part {number} takes {size} bytes decoded, "
                    f"wanted at most {self._cap}, its share of the cache",
                    hint="raise cache=, or store it uncompressed (numpy.savez) or in smaller row groups",
                )
            while self._kept + size > self._cap:
                self._kept -= self._parts.popitem(last=False)[1].nbytes
            values = np.ascontiguousarray(self._array.decode(number))
            rows = self._array.edges[number + 1] - self._array.edges[number]
            part = values.reshape(-1).view(np.uint8).reshape(rows, self._array.row_bytes)
            self._parts[number] = part
            self._kept += size
            return part


def make_columns(
    fields: Sequence[tuple[str, Source, Array]], cache: int, bfloat16: Collection[str] = ()
) -> list[Column]:
    """Columns over `fields` (name, file, array) that keep at most `cache` bytes together.

    1. What must be decoded whole has to fit.                           else FormatError
    2. The smallest fields first are kept whole, as long as they fit (labels, mostly).
    3. The others share what is left in proportion to their sizes: three quarters for blocks that are held, one quarter
       for those last used; all of it for parts last used.
    """
    if cache < 0:
        raise UsageError(f"cache: {cache}, wanted 0 or more bytes")
    left = cache
    shares: dict[int, int] = {}
    needs = {at: _needed(source, array) for at, (_, source, array) in enumerate(fields)}
    for at, (name, source, array) in enumerate(fields):
        if isinstance(array, Decoded) and len(array.edges) == 2:  # 1
            if needs[at] > left:
                raise FormatError(
                    f"{source.name}: field {name!r}: takes {needs[at]} bytes decompressed, wanted at most {left}, "
                    f"what is left of the cache",
                    hint="store it uncompressed (numpy.savez, seal_arrays), or raise cache=",
                )
            shares[at] = needs.pop(at)
            left -= shares[at]
    for at, need in sorted(needs.items(), key=lambda item: item[1]):  # 2
        if need > left:
            break
        shares[at] = needs.pop(at)
        left -= need
    total = sum(needs.values())
    for at, need in needs.items():  # 3
        shares[at] = left * need // total
    columns = []
    for at, (name, source, array) in enumerate(fields):
        rows: Rows | Parts | None = None
        if isinstance(array, Decoded):
            rows = Parts(source, array, cap=shares[at])
        elif isinstance(array, Stored) and array.nbytes:
            ring = shares[at] // 4 if at in needs else 0
            rows = Rows(source, array.offset, array.count, array.row_bytes, held=shares[at] - ring, ring=ring)
        columns.append(Column(name, array, rows, bfloat16=name in bfloat16))
    return columns


def chunk_rows(columns: Sequence[Column]) -> int:
    """How many consecutive records a windowed order takes at a time: about 256 KiB of them, or a Parquet row group.

    It follows from the data set's shape alone, never from the cache or the block size.
    """
    parts = [
        part
        for column in columns
        if isinstance(column.array, Decoded) and len(edges := column.array.edges) > 2
        for part in [edges[1] - edges[0]]
    ]
    size = sum(column.array.row_bytes for column in columns)
    return max(1, *parts) if parts else max(1, _CHUNK // max(1, size))


def _needed(source: Source, array: Array) -> int:
    if isinstance(array, Stored):
        return Rows.needed(source, array.offset, array.nbytes)
    return array.nbytes
