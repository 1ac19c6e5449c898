"""`SealedDataset`: records of sealed files by number, for PyTorch, NumPy and tf.data."""

from __future__ import annotations

import multiprocessing.context
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strongroom.data.batch import Batch, stack
from strongroom.data.columns import chunk_rows, make_columns
from strongroom.data.fields import check_names, choose, normalised
from strongroom.data.formats import Array, read_arrays
from strongroom.data.normalise import Normalise
from strongroom.data.order import Batches, Indices, Order
from strongroom.data.source import Readable, Source
from strongroom.errors import UsageError
from strongroom.sealed import NO_FRESHNESS, Anchor, NoFreshness, PinnedAnchor, Root
from strongroom.sealed.opening import check_anchor, check_key, open_in
from strongroom.storage import LocalDirectory

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

DEFAULT_CACHE = 256 << 20

Place = str | os.PathLike[str] | Readable
AnyAnchor = Anchor | NoFreshness


class SealedDataset:
    """Records of sealed files, by number. Works as a map-style data set of PyTorch (`DataLoader`); nothing of PyTorch
    is imported.

    A file holds arrays as NPY, NPZ, safetensors, idx or Parquet; a record is a row of each. Records are read in place,
    wherever they are: only the blocks asked for are decrypted. Every byte is authenticated before anybody sees it.

    Memory: at most `cache` bytes of decrypted content, whatever the size of the file, of which forked workers share
    all but a quarter (all of it, if everything fits) and have the rest each; spawned workers have `cache` each. Besides
    that, what any sealed file takes, the batches themselves, and up to three batches' memory for use again.

    Args:
        source: the path of a sealed file; or an open `SealedFile`, or any binary file with `read_at`, which stays the
            caller's; or several of them by name: then the field of a file with one array has that name, and the fields
            of others are called ``name/field``.
        key: of the files given by path, 32 bytes.
        anchor: of the file given by path, or `NO_FRESHNESS`; of several, by name, or `NO_FRESHNESS` for all.
        fields: the names of the fields to read, in the order in which a sample has them; None for all.
        transform: is called with each sample; must be picklable if workers are spawned.
        cache: the cap, in bytes.
        normalise: by field, what is made of its values in place of what the file says (`seal_arrays`); None for the
            values as they are stored.
        bfloat16: the names of fields to give as the nearest bfloat16, not as float32: in the type of ml_dtypes, of
            which `collate` makes PyTorch's and `to_tf` TensorFlow's.
        mapped: read the files given by path through memory that they are mapped into: for persistent memory (DAX) and
            tmpfs, in a directory that nobody else writes to, since a process dies that reads where a mapped file was
            cut. What is read is copied before it is decrypted either way.

    Raises:
        UsageError: arguments that make no sense together, the path of a directory, or a path for a key or an anchor.
        FormatError: the content has no known format, a malformed header, or fields of different lengths.
        IntegrityError: as `open_sealed`, which every read can raise too.
    """

    def __init__(
        self,
        source: Place | Mapping[str, Place],
        *,
        key: bytes | None = None,
        anchor: AnyAnchor | Mapping[str, AnyAnchor] | None = None,
        fields: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        cache: int = DEFAULT_CACHE,
        normalise: Mapping[str, Normalise | None] | None = None,
        bfloat16: Collection[str] = (),
        mapped: bool = False,
    ) -> None:
        self._given = source
        self._key = key
        self._wanted = fields
        self._normalise = dict(normalise or {})
        self._bfloat16 = bfloat16
        self._mapped = mapped
        self._transform = transform
        self._cache = cache
        self._sources: dict[str, Source] = {}
        try:
            self._open(anchor)
        except BaseException:
            self.close()
            raise

    def _open(self, anchor: AnyAnchor | Mapping[str, AnyAnchor] | None) -> None:
        given = self._given if isinstance(self._given, Mapping) else {"": self._given}
        if not given:
            raise UsageError("source: names no file, wanted at least one")
        found: dict[str, tuple[Source, Array]] = {}
        for name, place in given.items():
            source = self._sources[name] = _open_source(
                place, self._key, _anchor_of(anchor, name), name, mapped=self._mapped
            )
            arrays = read_arrays(source)
            for field, array in arrays.items():
                found[field if not name else name if len(arrays) == 1 else f"{name}/{field}"] = (source, array)
        chosen = normalised(choose(found, self._wanted), self._normalise)
        check_names("bfloat16", self._bfloat16, chosen)
        self._columns = make_columns(chosen, self._cache, self._bfloat16)
        self._count = self._columns[0].array.count
        self._single = len(self._columns) == 1

    # What it is.

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in the order in which a sample has them."""
        return tuple(column.name for column in self._columns)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one record's value, of each field."""
        return tuple(column.row_shape for column in self._columns)

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """The type of each field, in this machine's byte order."""
        return tuple(column.dtype for column in self._columns)

    @property
    def transformed(self) -> bool:
        """Whether there is a transform."""
        return self._transform is not None

    @property
    def cached(self) -> int:
        """Bytes of decrypted content that this process keeps or shares now; never more than `cache`."""
        return sum(column.kept for column in self._columns)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        names = ", ".join(source.name for source in self._sources.values())
        return f"<SealedDataset {names!r} {self._count} records of {', '.join(self.fields)}>"

    # Records.

    def __getitem__(self, index: int) -> Any:
        """A record: a tuple of NumPy values in the order of `fields`, or one value of a single field.

        Raises:
            IndexError: there is no such record.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> Sequence[Any]:
        """Several records at once; `collate` makes tensors of them without a copy. A list, if there is a transform."""
        batch = Batch(self._gather(self._checked(indices)), single=self._single)
        return batch if self._transform is None else [self._transform(sample) for sample in batch]

    def __iter__(self) -> Iterator[Any]:
        size = max(1, min(4096, (1 << 20) // max(1, sum(column.array.row_bytes for column in self._columns))))
        for first in range(0, self._count, size):
            yield from self.__getitems__(range(first, min(first + size, self._count)))

    def preload(self) -> None:
        """Decrypt now what the cache will hold, in one pass: before workers are forked, say, which then share it."""
        for column in self._columns:
            if column.rows is not None:
                column.rows.preload()

    # Batches.

    def batches(
        self,
        size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        window: int | None = None,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[Any]:
        """The batches of one epoch: a tuple of arrays in the order of `fields`, or one array of a single field.

        The order is a function of the arguments and the number of records alone, so that an epoch can be resumed at any
        batch, on any machine.

        Args:
            size: records in a batch.
            shuffle: False for the order of the file.
            seed, epoch: choose the order.
            window: how many records are shuffled together; None for all. A windowed order reads runs of consecutive
                records (256 KiB of them, or a Parquet row group), so that beyond the cache each block is decrypted
                about once in an epoch, if a window takes up to a fifth of the cache.
            drop_last: leave out a last batch that is smaller.
            start: the first batch to give.
        """
        order = self.batch_sampler(
            size, shuffle=shuffle, seed=seed, epoch=epoch, window=window, drop_last=drop_last, start=start
        )
        return self._batches(order)

    def _batches(self, order: Batches) -> Iterator[Any]:
        for indices in order.arrays():
            batch = Batch(self._gather(indices), single=self._single)
            del indices
            if self._transform is None:
                # Nothing here keeps the batch, so that its memory can be used again once the caller drops it.
                arrays = batch.unwrap()
                del batch
                yield arrays
                del arrays
            else:
                yield stack([self._transform(sample) for sample in batch])

    def batch_sampler(
        self,
        size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        window: int | None = None,
        drop_last: bool = False,
        start: int = 0,
    ) -> Batches:
        """The order of `batches`, for ``DataLoader(dataset, batch_sampler=..., collate_fn=collate)``.

        Call its `set_epoch` before every epoch.
        """
        order = Order(self._count, shuffle, seed, epoch, window, chunk_rows(self._columns))
        return Batches(order, size, drop_last, start)

    def to_tf(
        self,
        size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        window: int | None = None,
        drop_last: bool = False,
    ) -> Any:
        """A `tf.data.Dataset` of the batches. Each pass over it is the next epoch, the first one `epoch`.

        Raises:
            UsageError: there is a transform; use `map` of tf.data.
            MissingDependencyError: TensorFlow is not installed.
        """
        from strongroom.data.tf_face import to_tf

        return to_tf(self, size, shuffle=shuffle, seed=seed, epoch=epoch, window=window, drop_last=drop_last)

    def _gather(self, indices: Indices) -> tuple[Any, ...]:
        return tuple([column.gather(indices) for column in self._columns])

    def _checked(self, indices: Iterable[int]) -> Indices:
        chosen = np.asarray(indices if isinstance(indices, (np.ndarray, range, list, tuple)) else list(indices))
        if chosen.size == 0:
            return np.empty(0, np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise TypeError(f"indices: {chosen.dtype} of shape {chosen.shape}, wanted a list of integers")
        chosen = chosen.astype(np.int64, copy=False)
        lowest = int(chosen.min())
        if lowest < -self._count or int(chosen.max()) >= self._count:
            raise IndexError(f"record: {lowest} to {int(chosen.max())}, wanted 0 to {self._count - 1}")
        return chosen if lowest >= 0 else np.where(chosen < 0, chosen + self._count, chosen)

    # The end, and other processes.

    def close(self) -> None:
        """Give back the files that were opened by path. Closing twice is fine."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is being spawned, and for nothing else: the state holds the key.

        It goes through the pipe between the two processes, not to a disk. The worker opens the files by path, at
        exactly the roots that are open here.
        """
        if multiprocessing.context.get_spawning_popen() is None:
            raise TypeError(
                "SealedDataset: pickled, which would write its key down; only a worker being spawned may get it. "
                "Give the other process the path and a way to the key"
            )
        roots: dict[str, Root] = {}
        for name, source in self._sources.items():
            place = self._given[name] if isinstance(self._given, Mapping) else self._given
            root = getattr(source.file, "root", None)
            if not isinstance(place, (str, os.PathLike)) or root is None:
                raise TypeError(
                    f"SealedDataset: {source.name} is an open file, which a spawned worker cannot get. "
                    f"Give the data set its path, or fork the workers (multiprocessing_context='fork')"
                )
            roots[name] = root
        return {
            "source": self._given,
            "key": self._key,
            "roots": roots,
            "fields": self.fields,
            "transform": self._transform,
            "cache": self._cache,
            "normalise": self._normalise,
            "bfloat16": self._bfloat16,
            "mapped": self._mapped,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        anchors = {name: PinnedAnchor(root) for name, root in state.pop("roots").items()}
        self.__init__(anchor=anchors, **state)  # type: ignore[misc]


def _anchor_of(anchor: AnyAnchor | Mapping[str, AnyAnchor] | None, name: str) -> AnyAnchor | None:
    if isinstance(anchor, Mapping):
        return anchor.get(name)
    if name and anchor is not None and anchor is not NO_FRESHNESS:
        raise UsageError("anchor: one for several files, wanted one for each, by the same names")
    return anchor


def _open_source(place: Place, key: bytes | None, anchor: AnyAnchor | None, name: str, *, mapped: bool) -> Source:
    if not isinstance(place, (str, os.PathLike)):
        return Source(place)
    if Path(place).is_dir():
        raise UsageError(
            f"{os.fspath(place)}: a directory, wanted the path of a sealed file",
            hint="a file in a vault: SealedDataset(vault.open(directory, ...).open(name))",
        )
    if key is None or anchor is None:
        raise UsageError(
            f"{name or os.fspath(place)}: a path without key or anchor, wanted both",
            hint="anchor=NO_FRESHNESS accepts any authentic version, however old",
        )
    if isinstance(key, str | os.PathLike):
        raise UsageError(
            f"key: a {type(key).__name__}, wanted 32 bytes", hint="strongroom.sealed.load_key(path) reads a key file"
        )
    if isinstance(anchor, str | os.PathLike):
        raise UsageError(
            f"anchor: a {type(anchor).__name__}, wanted an anchor or NO_FRESHNESS",
            hint="strongroom.FileAnchor(path) is the anchor in a file",
        )
    check_key(key)
    check_anchor(anchor)
    path = Path(os.path.realpath(place))  # as `open_sealed`, which knows of no mapped files
    directory = LocalDirectory(path.parent, mapped=mapped)
    return Source(open_in(directory, path.name, "r", key, anchor, what=os.fspath(place)), owned=True)
