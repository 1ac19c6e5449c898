"""The vault: opening, reading, writing, and the one commit that covers all of it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from strongroom.crypto import random_bytes, random_key
from strongroom.errors import (
    FormatError,
    RollbackError,
    TamperedError,
    UsageError,
    WrongKeyError,
)
from strongroom.sealed import NO_FRESHNESS, Anchor, NoFreshness, PinnedAnchor, Root, SealedFile
from strongroom.sealed.layout import CHANGED_HINT, DEFAULT_BLOCK, MIN_BLOCK, check_block_size
from strongroom.sealed.opening import open_in
from strongroom.storage import Directory, LocalDirectory
from strongroom.vault import metadata
from strongroom.vault.metadata import DATA_NAME, Entry
from strongroom.vault.names import Names

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

META = "meta"
DEFAULT_MODE = 0o644

Mode = Literal["r", "r+", "x"]


@dataclass(frozen=True, slots=True)
class Stat:
    """What a path in a vault is: `size` in bytes and `mode` bits of a file; a directory has 0 and 0o755."""

    size: int
    mode: int
    is_dir: bool


def open(  # noqa: A001  # used as `vault.open`
    path: str | os.PathLike[str] | Directory,
    mode: Mode = "r",
    *,
    key: bytes,
    anchor: Anchor | NoFreshness,
) -> Vault:
    """Open the vault in a directory.

    Nothing that is changed counts before `Vault.commit`, which `close` and the end of a ``with`` block call too; a
    ``with`` block that an exception ends discards what was not committed.

    Args:
        path: the directory on disk; with mode ``x`` it is made, or must be empty.
        mode: ``r`` to read the version that is the newest now, ``r+`` to change, ``x`` to create.
        key: 32 bytes.
        anchor: where the latest root is remembered, or `NO_FRESHNESS` to accept any authentic version, however old.

    Raises:
        FileNotFoundError, FileExistsError: there is no vault, or there is one already.
        LockedError: somebody else is writing.
        FormatError, WrongKeyError, TruncatedError, RollbackError, TamperedError: as `open_sealed`.
    """
    if mode not in ("r", "r+", "x"):
        raise UsageError(f"mode: {mode!r}, wanted r, r+ or x")
    if not isinstance(path, (str, os.PathLike)):
        return Vault(path, mode, key, anchor, what="vault")
    if mode == "x":
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(Path(path).iterdir()):
            raise FileExistsError(f"{os.fspath(path)}: is not empty")
        LocalDirectory(Path(path).absolute().parent).sync()
    return Vault(LocalDirectory(path), mode, key, anchor, what=os.fspath(path))


class Vault:
    """An open vault. Made by `vault.open`; its methods may be called from several threads.

    Rules:

    - A data file is written once, under a fresh random name and key, and never changed.
    - It is accepted only at the root that `meta` records: another file, another version or a shorter one is refused.
    - A commit is: data files and directory synced -> `meta` committed -> anchor -> dead data files unlinked.
    - A reader reads `meta` once, at opening, and sees that version. A later commit of a writer may unlink data files
      under it; it then gets an error that says so.
    """

    def __init__(
        self, directory: Directory, mode: Mode, key: bytes, anchor: Anchor | NoFreshness, *, what: str
    ) -> None:
        self._directory = directory
        self._mode = mode
        self._what = what
        self._lock = threading.RLock()
        self._writing: set[str] = set()  # data files not in `_files` yet
        self._uncommitted: set[str] = set()  # those in it that no attempt at a commit has named
        self._closed = False
        self._files: dict[str, Entry] = {}
        self._changed = mode == "x"
        self._meta = open_in(directory, META, mode, key, anchor, MIN_BLOCK, what=f"{what}: {META}", expected=True)
        try:
            if mode != "x":
                if self._meta.length > metadata.MAX_META:
                    raise FormatError(f"{what}: {META}: {self._meta.length} bytes, wanted at most {metadata.MAX_META}")
                self._files = metadata.decode(self._meta.read())
            self._names = Names(self._files)
            self._root = self._meta.root
        except BaseException:
            self._meta.discard()
            raise
        if mode == "r":
            self._meta.close()

    # Looking.

    @property
    def root(self) -> Root | None:
        """The root of the newest committed version (of the one that was, in a reader); None before the first."""
        return self._root

    @property
    def name(self) -> str:
        return self._what

    @property
    def directory(self) -> Directory:
        """Where the sealed bytes are."""
        return self._directory

    def files(self) -> list[str]:
        """The paths of all files, sorted."""
        with self._lock:
            return sorted(self._files)

    def listdir(self, path: str = "") -> list[str]:
        """The names in a directory, sorted.

        Raises:
            FileNotFoundError, NotADirectoryError: it is none.
        """
        with self._lock:
            if not self.stat(path).is_dir:
                raise NotADirectoryError(f"{self._what}: {path} is a file")
            return self._names.list(path)

    def walk(self, path: str = "") -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`: (directory, its directories, its files), the top first."""
        names = self.listdir(path)
        prefix = path + "/" if path else ""
        directories = [name for name in names if prefix + name not in self._files]
        yield path, directories, [name for name in names if prefix + name in self._files]
        for name in directories:
            yield from self.walk(prefix + name)

    def stat(self, path: str) -> Stat:
        """Raises FileNotFoundError if there is nothing at `path`."""
        with self._lock:
            if entry := self._files.get(path):
                return Stat(entry.size, entry.mode, is_dir=False)
            if self._names.is_dir(path):
                return Stat(0, 0o755, is_dir=True)
        raise FileNotFoundError(f"{self._what}: {path}: no such file")

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def read_bytes(self, path: str) -> bytes:
        """The whole content of a file."""
        with self.open(path) as file:
            return file.read()

    # Files.

    def open(
        self,
        path: str,
        mode: Literal["rb", "wb"] = "rb",
        *,
        permissions: int = DEFAULT_MODE,
        block_size: int = DEFAULT_BLOCK,
    ) -> SealedFile:
        """Open a file of the vault, to read it or to write it anew.

        A file written is in the vault once it is closed, and on the disk for good once the vault is committed; until
        then readers of the path get the old one. An exception inside its ``with`` block leaves the old one.

        Args:
            permissions: the mode bits that a new file shall have when it is unpacked or mounted.
            block_size: of a new file; its data file is a multiple of it long.

        Raises:
            FileNotFoundError, IsADirectoryError: there is no such file.
            UsageError: the path cannot be one.
            IntegrityError: the data file is not what was committed.
        """
        with self._lock:
            self._usable()
            if mode == "rb":
                if self.stat(path).is_dir:
                    raise IsADirectoryError(f"{self._what}: {path} is a directory")
                return self._open_data(path, self._files[path])
            if mode == "wb":
                self._usable(to_write=True)
                self._names.check_target(path)
                return _DataWriter(self, path, permissions & metadata.MODE_BITS, block_size)
        raise UsageError(f"mode: {mode!r}, wanted rb or wb")

    def write_bytes(self, path: str, data: Buffer, *, permissions: int = DEFAULT_MODE) -> None:
        """Make `data` the whole content of a file."""
        with self.open(path, "wb", permissions=permissions, block_size=fit_block(memoryview(data).nbytes)) as file:
            file.write(data)

    def remove(self, path: str) -> None:
        """Take a file out of the vault. Raises FileNotFoundError."""
        with self._lock:
            self._usable(to_write=True)
            if path not in self._files:
                raise FileNotFoundError(f"{self._what}: {path}: no such file")
            del self._files[path]
            self._names.remove(path)
            self._changed = True

    def rename(self, old: str, new: str) -> None:
        """Give a file another path, replacing the file that has it.

        Raises:
            FileNotFoundError: there is no file `old`.
            UsageError: `new` cannot be a path here.
        """
        with self._lock:
            self._usable(to_write=True)
            if old not in self._files:
                raise FileNotFoundError(f"{self._what}: {old}: no such file")
            if old == new:
                return
            self._names.check_target(new)
            self._files[new] = self._files.pop(old)
            self._names.remove(old)
            self._names.add(new)
            self._changed = True

    def _open_data(self, path: str, entry: Entry) -> SealedFile:
        what = f"{self._what}: {path}"
        try:
            file = open_in(
                self._directory, entry.name, "r", entry.key, PinnedAnchor(entry.root), what=what, expected=True
            )
        except FileNotFoundError:
            raise TamperedError(
                f"{what}: its data file {entry.name} is missing",
                hint="deleted, or removed by a later commit: open the vault again",
            ) from None
        except (WrongKeyError, FormatError, RollbackError) as error:
            # The vault's own key was right; so another file lies where this one belongs.
            raise TamperedError(
                f"{what}: its data file {entry.name} is another one ({error.code})",
                hint="something replaced it on the disk; restore the whole vault from a copy",
            ) from None
        if file.length != entry.size:
            file.close()
            raise TamperedError(f"{what}: {file.length} bytes, wanted {entry.size}", hint=CHANGED_HINT)
        return file

    def _adopt(self, path: str, entry: Entry) -> None:
        with self._lock:
            self._usable(to_write=True)
            self._names.check_target(path)
            self._files[path] = entry
            self._names.add(path)
            self._writing.discard(entry.name)
            self._uncommitted.add(entry.name)
            self._changed = True

    # The commit.

    def commit(self) -> Root:
        """Make the vault, as it is now, the newest version, durably and atomically; return its root.

        Files still open for writing are not part of it.

        Raises:
            OSError, ConflictError, CasError: as `SealedFile.commit`.
        """
        with self._lock:
            self._usable(to_write=True)
            if self._changed or self._root is None:
                data = metadata.encode(self._files)
                self._directory.sync()  # the data files were synced when they were closed
                self._meta.seek(0)
                self._meta.truncate(0)
                self._meta.write(data)
            self._uncommitted.clear()  # even if the next line fails, `meta` on the disk may name them
            self._root = self._meta.commit()
            if self._changed:
                self._changed = False
                self._sweep()
            return self._root

    def _sweep(self) -> None:
        """Unlink data files that the committed version does not name, and what a crash left."""
        keep = {entry.name for entry in self._files.values()} | self._writing
        for name in self._directory.list():
            if DATA_NAME.fullmatch(name) and name not in keep:
                self._directory.unlink(name)

    def verify(self) -> int:
        """Read every block of every file from the disk; return the number of files.

        Raises:
            IntegrityError: something is not what was committed; the message names the first such path.
        """
        for path in (paths := self.files()):
            with self.open(path) as file:
                file.verify()
        return len(paths)

    # The end.

    def close(self) -> None:
        """Commit what was changed, and give back the lock. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._mode != "r" and not self._meta.closed:
                    self.commit()
                    self._meta.close()
            finally:
                self.discard()

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest."""
        with self._lock:
            self._closed = True
            self._meta.discard()
            while self._uncommitted:
                with contextlib.suppress(OSError):  # the next commit sweeps
                    self._directory.unlink(self._uncommitted.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __repr__(self) -> str:
        return f"<Vault {self._what!r} mode={self._mode!r} files={len(self._files)} root={self._root}>"

    def _usable(self, *, to_write: bool = False) -> None:
        if self._closed:
            raise ValueError(f"{self._what}: is closed")
        if to_write and self._mode == "r":
            raise UsageError(f"{self._what}: open for reading only", hint='open it with mode "r+"')


class _DataWriter(SealedFile):
    """A data file being written; the vault knows it once it is closed."""

    def __init__(self, vault: Vault, path: str, permissions: int, block_size: int) -> None:
        self._vault = vault
        self._path = path
        self._permissions = permissions
        self._data_name = random_bytes(16).hex()
        self._data_key = random_key()
        self._closing = False
        check_block_size(block_size)
        storage = vault._directory.open(self._data_name, "x")
        vault._writing.add(self._data_name)
        what = f"{vault.name}: {path}"
        super().__init__(storage, "x", self._data_key, NO_FRESHNESS, block_size, what=what, write_once=True)
        self.on_abandon = lambda: vault._directory.unlink(self._data_name)

    def close(self) -> None:
        """Write the rest to the disk, and put the file into the vault."""
        if self.closed:
            return
        self._closing = True
        super().close()
        assert self.root is not None  # noqa: S101  # closing committed it
        self._vault._adopt(
            self._path, Entry(self._data_name, self._data_key, self.length, self.root, self._permissions)
        )

    def discard(self) -> None:
        super().discard()
        if not self._closing:
            self._vault._writing.discard(self._data_name)


def fit_block(size: int) -> int:
    """A block size that wastes little for a file of `size` bytes."""
    block = MIN_BLOCK
    while block < min(size, DEFAULT_BLOCK):
        block *= 2
    return block
