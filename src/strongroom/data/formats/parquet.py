"""Parquet, through pyarrow: columns of numbers are fields, and lists of fixed size give them a second dimension."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.data.formats.arrays import MAX_ARRAYS, Array, Decoded
from strongroom.data.source import Source
from strongroom.errors import FormatError, MissingDependencyError

MAGIC: Final = b"PAR1"

_MAX_METADATA = 64 << 20
_MAX_READ = 1 << 31


def read_parquet(source: Source) -> Mapping[str, Array]:
    """The columns of a Parquet file that hold numbers or booleans; the others are left out.

    Raises:
        FormatError: it is malformed.
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError(
            f"{source.name}: holds Parquet, which needs pyarrow", hint="pip install 'strongroom[parquet]'"
        ) from None
    tail = source.bytes_at(max(0, source.length - 8), 8)
    size = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or not 0 < size <= min(_MAX_METADATA, source.length):
        raise FormatError(f"{source.name}: a Parquet footer of {size} bytes, wanted 1 to {_MAX_METADATA} and {MAGIC!r}")
    try:
        file = pq.ParquetFile(
            io.BufferedReader(source.as_file(largest=_MAX_READ)),
            # Reads in this thread: a pool's would wait for the lock that this one holds, and be gone after a fork.
            pre_buffer=False,
            thrift_string_size_limit=_MAX_METADATA,
            thrift_container_size_limit=1 << 20,
        )
        schema = file.schema_arrow
    except (arrow.ArrowException, OSError) as error:
        raise FormatError(f"{source.name}: not a Parquet file: {str(error)[:200]}") from None
    if len(schema) > MAX_ARRAYS:
        raise FormatError(f"{source.name}: {len(schema)} columns, wanted at most {MAX_ARRAYS}")
    groups = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
    edges = (0, *itertools.accumulate(groups))
    return {
        column.name: _Column(source, file, column.name, *shaped, edges).array()
        for column in schema
        if (shaped := _shape(column.type)) is not None
    }


def _shape(kind: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Element type and shape of a row; None for what is no array of numbers."""
    import pyarrow as arrow

    shape: tuple[int, ...] = ()
    if isinstance(kind, arrow.FixedShapeTensorType):
        if kind.permutation not in (None, list(range(len(kind.shape)))):
            return None
        shape, kind = tuple(kind.shape), kind.value_type
    while arrow.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind):
        return np.dtype(kind.to_pandas_dtype()), shape
    return None


class _Column:
    """Decodes one column, a row group at a time."""

    def __init__(
        self, source: Source, file: Any, name: str, dtype: np.dtype[Any], row: tuple[int, ...], edges: tuple[int, ...]
    ) -> None:
        self._source, self._file, self._name, self._dtype, self._row, self._edges = (
            source,
            file,
            name,
            dtype,
            row,
            edges,
        )

    def array(self) -> Decoded:
        shape = (self._edges[-1], *self._row)
        return Decoded(self._name, self._dtype, shape, edges=self._edges, decode=self.decode)

    def decode(self, group: int) -> npt.NDArray[Any]:
        where = f"{self._source.name}: column {self._name!r}: row group {group}"
        import pyarrow as arrow

        try:
            table = self._file.read_row_group(group, columns=[self._name], use_threads=False)
        except (arrow.ArrowException, OSError) as error:
            raise FormatError(f"{where}: {str(error)[:200]}") from None
        values = table.column(self._name).combine_chunks()
        if isinstance(values, arrow.ChunkedArray):
            values = arrow.concat_arrays(values.chunks) if values.num_chunks else arrow.array([], values.type)
        if isinstance(values, arrow.ExtensionArray):
            values = values.storage
        while arrow.types.is_fixed_size_list(values.type):
            self._no_nulls(where, values)
            values = values.flatten()
        self._no_nulls(where, values)
        rows = self._edges[group + 1] - self._edges[group]
        found = np.asarray(values.to_numpy(zero_copy_only=False), dtype=self._dtype)
        wanted = int(np.prod((rows, *self._row), dtype=np.int64))
        if found.size != wanted:
            raise FormatError(f"{where}: {found.size} values, wanted {wanted}")
        return found.reshape(rows, *self._row)

    def _no_nulls(self, where: str, values: Any) -> None:
        if values.null_count:
            raise FormatError(f"{where}: {values.null_count} nulls, wanted none", hint="fill them before you seal it")
