"""Reading a mirror: what a commit holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.errors import FormatError, UsageError
from strongroom.mirror.manifest import FOOTER, Entry, Manifest, parse_footer, parse_manifest
from strongroom.mirror.state import arrays_in, decode, numpy_type
from strongroom.sealed import Anchor, NoFreshness, Root
from strongroom.sealed.file import SealedFile
from strongroom.sealed.opening import open_sealed

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

_ALIGN: Final = 64  # of an array in memory: a processor's cache line, and what vector units like

Convert = Callable[[Entry, npt.NDArray[Any]], object]


def read_manifest(file: SealedFile) -> Manifest:
    """The manifest of the version that `file` is at.

    Raises:
        FormatError: the file is no mirror.
        IntegrityError: a block of it is not what was committed.
    """
    length = file.length
    footer = bytearray(min(length, FOOTER.size))
    file.read_at(length - len(footer), footer)
    area, size = parse_footer(bytes(footer), length)
    body = bytearray(size)
    file.read_at(length - FOOTER.size - size, body)
    return parse_manifest(bytes(body), area=area, length=length, block_size=file.block_size)


class Restored(Mapping[str, Any]):
    """The state of one commit: a mapping of the parts that were put. Arrays are read when a part is asked for.

    Attributes:
        manifest: what lies where.
        root: of the commit.
    """

    def __init__(
        self, file: SealedFile, manifest: Manifest, *, owned: bool, valid: Callable[[], bool] = lambda: True
    ) -> None:
        self._file = file
        self._owned = owned
        self._valid = valid
        self._root = file.root
        self._tail: npt.NDArray[np.uint8] | None = None
        self.manifest = manifest
        raw = manifest.values.get("d") if isinstance(manifest.values, dict) else None
        if not isinstance(raw, list):
            raise FormatError("mirror state: wanted named parts")
        self._parts: dict[str, object] = {}
        for pair in raw:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] in self._parts:
                raise FormatError("mirror state: a part, wanted a name and a value")
            self._parts[pair[0]] = pair[1]
        self._by_name = {entry.name: entry for entry in manifest.layout.entries}

    @property
    def step(self) -> int:
        """The step that it is of."""
        return self.manifest.step

    @property
    def root(self) -> Root | None:
        return self._root

    @property
    def time(self) -> float:
        """When it was committed, in seconds since 1970, by the clock of the machine that did."""
        return self.manifest.time

    # The state.

    def __getitem__(self, name: str) -> Any:
        """A part, as it was put; arrays of other libraries come as NumPy's, or as what `part` is told to make."""
        return self.part(name, {})

    def part(self, name: str, convert: Mapping[str, Convert]) -> Any:
        """A part, with functions that make arrays of some kinds what they were.

        Raises:
            KeyError: there is no such part.
            IntegrityError: a block is not what was committed.
        """
        entries = self.manifest.layout.entries
        raw = self._parts[name]
        loaded = self._load_all([entries[i] for i in arrays_in(raw) if 0 <= i < len(entries)])

        def make(kind: str, index: int) -> object:
            if not 0 <= index < len(entries):
                raise FormatError(f"mirror state: array {index}, wanted 0 to {len(entries) - 1}")
            entry = entries[index]
            if kind not in ("scalar", entry.kind):
                raise FormatError(f"array {entry.name[:80]!r}: of kind {entry.kind[:40]!r}, and the state says another")
            array = loaded.pop(entry.name, None)
            if array is None:  # a second time: each is its own
                array = self._load(entry)
            if kind == "scalar":
                if array.shape:
                    raise FormatError(f"array {entry.name[:80]!r}: of shape {array.shape}, wanted a scalar")
                return array[()]
            return convert[kind](entry, array) if kind in convert else array

        return decode(raw, make)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    # Arrays by name.

    @property
    def arrays(self) -> Mapping[str, Entry]:
        """Every array by the path that leads to it, such as ``model/weight``."""
        return dict(self._by_name)

    def array(self, name: str) -> npt.NDArray[Any]:
        """One array by its path, as NumPy has it; bfloat16 and the like as unsigned integers.

        Raises:
            KeyError: there is no such array.
            IntegrityError: a block is not what was committed.
        """
        return self._load(self._by_name[name])

    def read_into(self, name: str, out: Buffer) -> None:
        """The bytes of one array, into memory of its size.

        Raises:
            UsageError: `out` is of another size.
        """
        entry = self._by_name[name]
        view = np.frombuffer(out, np.uint8)
        if len(view) != entry.nbytes:
            raise UsageError(f"array {name}: {len(view)} bytes to fill, wanted {entry.nbytes}")
        self._read_all([entry], [0], view)

    def _load(self, entry: Entry) -> npt.NDArray[Any]:
        return self._load_all([entry])[entry.name]

    def _load_all(self, entries: Sequence[Entry]) -> dict[str, npt.NDArray[Any]]:
        """Arrays by name, in one piece of memory: the system gives a large one faster than many small ones."""
        places = [0, *accumulate(-(-entry.nbytes // _ALIGN) * _ALIGN for entry in entries)]
        memory = np.empty(places.pop(), np.uint8)
        self._read_all(entries, places, memory)
        return {
            entry.name: _shaped(entry, memory[place : place + entry.nbytes])
            for entry, place in zip(entries, places, strict=True)
        }

    def _read_all(self, entries: Sequence[Entry], places: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
        if not self._valid():
            raise UsageError(f"step {self.step}: the mirror has gone on, wanted to be read before the next commit")
        block = self._file.block_size
        pairs = list(zip(entries, places, strict=True))
        self._file.read_pieces([(entry.offset, entry.whole // block, place) for entry, place in pairs], out)
        for entry, place in pairs:
            if entry.whole < entry.nbytes:
                rest = self._rest()[entry.tail : entry.tail + entry.nbytes - entry.whole]
                out[place + entry.whole : place + entry.nbytes] = rest

    def _rest(self) -> npt.NDArray[np.uint8]:
        if self._tail is None:
            tail = np.empty(self.manifest.layout.rest, np.uint8)
            self._file.read_at(self.manifest.layout.area, tail)
            self._tail = tail
        return self._tail

    # The whole.

    def verify(self) -> int:
        """Read every block; how many there are. Raises IntegrityError."""
        return self._file.verify()

    def close(self) -> None:
        """Give back the file, where it is this object's own. Closing twice is fine."""
        if self._owned:
            self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Restored step={self.step} parts={list(self._parts)}>"


def _shaped(entry: Entry, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    try:
        return data.view(numpy_type(entry.dtype)).reshape(entry.shape)
    except ValueError:  # the empty one of a shape that NumPy cannot have
        raise FormatError(f"array {entry.name[:80]!r}: of shape {entry.shape}, which NumPy has not") from None


def read(
    path: str | os.PathLike[str], *, key: bytes, anchor: Anchor | NoFreshness, step: int | None = None
) -> Restored:
    """A commit of the mirror at a path, also while somebody else writes it; close it, or use it in a ``with`` block.

    Args:
        step: of an older commit that is kept; by default the newest.

    Raises:
        FileNotFoundError: there is none.
        UsageError: that step is not kept.
        FormatError: the file is no mirror.
        WrongKeyError, TamperedError, RollbackError: as `open_sealed`.
    """
    file = open_sealed(Path(path), "r", key=key, anchor=anchor)
    try:
        manifest = read_manifest(file)
        if step is None or step == manifest.step:
            return Restored(file, manifest, owned=True)
        sequences = {root.sequence for root in file.retained}
        kept = {one: sequence for one, sequence in manifest.kept if sequence in sequences}
        if step not in kept:
            steps = ", ".join(map(str, (*sorted(kept), manifest.step)))
            raise UsageError(f"step: {step} is not kept, wanted one of {steps}")
    except BaseException:
        file.discard()
        raise
    old = open_sealed(Path(path), "r", key=key, anchor=anchor, at=kept[step])
    file.discard()
    try:
        return Restored(old, read_manifest(old), owned=True)
    except BaseException:
        old.discard()
        raise
