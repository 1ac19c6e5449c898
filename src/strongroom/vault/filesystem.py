"""Vaults through fsspec, as ``sealed://``: for pandas, pyarrow, PyTorch's checkpoints, and all else that takes URLs.

::

    with fsspec.open("sealed://train/x.npy::s3://bucket/v", sealed={"key_file": "v.key", "anchor": "v.anchor"}) as file:
        ...
    fs = SealedFileSystem(vault="v.vault", key_file="v.key", anchor="v.anchor")
    with fs.transaction:  # one commit
        fs.pipe("a", b"...")
        fs.rm("b")

Rules:

- Every change outside of a transaction is a commit by itself: a file's when it is closed, any other's before the call
  returns. A transaction is one commit, or none if an exception ends it.
- A key is in no `repr`, token, JSON form or pickle. What is pickled names a key file, which the other process reads.
- Instances are not shared: whoever asks for a file system brings the key.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import fsspec
from fsspec.spec import AbstractFileSystem

from strongroom.errors import UsageError
from strongroom.sealed import NO_FRESHNESS, Anchor, FileAnchor, NoFreshness, Root
from strongroom.storage import Directory, LocalDirectory, ObjectDirectory
from strongroom.vault.access import VaultKey
from strongroom.vault.engine import META
from strongroom.vault.keys import KeyFile
from strongroom.vault.opened import OpenedFile, SealedTransaction
from strongroom.vault.paths import show
from strongroom.vault.rows import Inode
from strongroom.vault.vault import Mode, Vault
from strongroom.vault.vault import open as open_vault

_MODES: Final = {
    "rb": "rb", "wb": "wb", "xb": "xb", "ab": "ab", "r+b": "r+b", "rb+": "r+b",
    "w+b": "wb", "wb+": "wb", "x+b": "xb", "xb+": "xb", "a+b": "ab", "ab+": "ab",
}  # fmt: skip
_CHUNK: Final = 1 << 20
_LOCAL = ("file", "local", "")


class SealedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A vault as an fsspec file system. Nothing is opened before the first use.

    Args:
        vault: the vault's directory: a path, a URL of fsspec's, a `Directory`, or an open `Vault`. In a chained URL
            what follows the ``::``.
        key: what `vault.open` takes.
        key_file: the path of a key file, instead of `key`.
        anchor: an anchor, the path of an anchor file, or `NO_FRESHNESS` (or that word), with which a vault that was
            rolled back is read as if it were the newest.
        mode: ``r`` to read only, ``r+`` to change, ``x`` to create the vault; by default it is opened for reading, and
            for writing when that is first asked for.
        autocommit: False: nothing is committed before `commit`, `close` or the end of a transaction.
        fo, target_protocol, target_options: set by fsspec for a chained URL.

    Raises:
        UsageError: an argument is missing, or contradicts another.
    """

    protocol = "sealed"
    root_marker = ""
    cachable = False
    transaction_type = SealedTransaction
    _strip_tokenize_options = ("key",)

    def __init__(
        self,
        fo: str | None = None,
        *,
        vault: str | os.PathLike[str] | Directory | Vault | None = None,
        key: VaultKey | None = None,
        key_file: str | os.PathLike[str] | None = None,
        anchor: Anchor | NoFreshness | str | os.PathLike[str] | None = None,
        mode: Mode | None = None,
        autocommit: bool = True,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._lock = threading.RLock()
        self._reader: Vault | None = None
        self._writer: Vault | None = None
        self._process = os.getpid()
        self._holding = 0  # calls in progress that make one commit together
        if (fo is None) == (vault is None):
            raise UsageError("vault: wanted its path or URL, once", hint="vault=..., or sealed://path::URL")
        if mode not in (None, "r", "r+", "x"):
            raise UsageError(f"mode: {mode!r}, wanted r, r+ or x")
        self._given = vault if isinstance(vault, Vault) else None
        if anchor is None and self._given is None:
            raise UsageError("anchor: missing", hint='the path of an anchor file, an anchor, or "NO_FRESHNESS"')
        if self._given is None and (key is None) == (key_file is None):
            raise UsageError("key: wanted key or key_file, one of the two")
        self._place = (fo or vault, target_protocol, target_options or {})
        self._mode = mode
        self._autocommit = autocommit
        self._key = key
        self._key_file = key_file
        self._anchor = _anchor_of(anchor)

    # What it is, without the key.

    @property
    def storage_options(self) -> dict[str, Any]:
        """The arguments that make an equal file system, but for a key."""
        return dict(self._options)

    @storage_options.setter
    def storage_options(self, options: dict[str, Any]) -> None:
        shown = {name: value for name, value in options.items() if name != "key"}
        anchor = shown.get("anchor")
        if anchor is NO_FRESHNESS:
            shown["anchor"] = "NO_FRESHNESS"
        for name in ("vault", "key_file", "anchor"):
            value = shown.get(name)
            if isinstance(value, FileAnchor):
                value = value.path
            if isinstance(value, os.PathLike):
                shown[name] = os.fspath(value)
        self._options = shown

    def __reduce__(self) -> Any:
        if self._given is not None:
            raise UsageError("file system: is of an open vault, which cannot be pickled", hint="give its path")
        if self._key is not None:
            raise UsageError("file system: holds a key, which is not pickled", hint="give key_file=, a path, instead")
        options = self.storage_options
        if options.get("mode") == "x":
            options["mode"] = "r+"
        return _again, (options,)

    def __repr__(self) -> str:
        return f"<SealedFileSystem of {self._place[0]!r}>"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text: str = fsspec.utils.stringify_path(path)
        if text.startswith("sealed://"):
            text = text.removeprefix("sealed://").partition("::")[0]
        elif text.startswith("sealed::"):
            text = ""
        return text.strip("/")

    # The vaults behind it.

    def _directory(self) -> str | os.PathLike[str] | Directory:
        place, protocol, options = self._place
        if not isinstance(place, (str, os.PathLike)):
            return place  # type: ignore[return-value]
        text = os.fspath(place)
        if protocol is None and "://" not in text and "::" not in text:
            return place
        if protocol is None:
            fs, path = fsspec.core.url_to_fs(text, **options)
        else:
            fs = fsspec.filesystem(protocol, **options)
            path = fs._strip_protocol(text)
        names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
        if set(names) & set(_LOCAL):
            return str(path)
        return ObjectDirectory(fs, path, updatable=(META,))

    def _open_as(self, mode: Mode) -> Vault:
        key = KeyFile.load(self._key_file) if self._key_file is not None else self._key
        assert key is not None  # noqa: S101  # the constructor looked
        return open_vault(self._directory(), mode, key=key, anchor=self._anchor)

    def _reading(self) -> Vault:
        with self._lock:
            self._check_process()
            if self._given is not None:
                return self._given
            if self._writer is not None:
                return self._writer
            if self._mode in ("r+", "x"):
                return self._writing()
            if self._reader is None:
                self._reader = self._open_as("r")
            return self._reader

    def _writing(self) -> Vault:
        with self._lock:
            self._check_process()
            if self._given is not None:
                return self._given
            if self._mode == "r":
                raise UsageError(f"{self!r}: open for reading only", hint='give mode="r+", or no mode')
            if self._writer is None:
                if self._reader is not None and not _has_open_files(self._reader):
                    self.refresh()  # where the platform has no byte locks, it would be in the way
                self._writer = self._open_as("x" if self._mode == "x" else "r+")
                self._mode = "r+"
            _catch_up(self._writer)
            return self._writer

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # Locks belong to the process that forked: opened anew here, and not closed, which would end them there.
            if self._given is not None:
                raise UsageError(f"{self!r}: is of a vault that another process opened", hint="give its path")
            self._reader = self._writer = None
            self._process = os.getpid()
            if self._mode == "x":
                self._mode = "r+"

    @property
    def root(self) -> Root | None:
        """The root of the version that is read, or was committed last."""
        return self._reading().root

    def commit(self) -> Root | None:
        """Commit what was changed, that of files that are still open with ``r+b`` and ``ab`` too; the root.

        Raises:
            As `Vault.commit`. After a failure what was not committed is gone, unless the anchor did not answer: then
            call it again.
        """
        with self._lock:
            self._check_process()
            vault = self._given or self._writer
            if vault is None:
                return None if self._reader is None else self._reader.root
            try:
                return vault.commit()
            except BaseException:
                if self._writer is not None and self._writer._broken:
                    self._roll_back()
                raise

    def _changed(self) -> None:
        if self._autocommit and not self._holding and not self._intrans:
            self.commit()
            self._let_others_in()

    def _let_others_in(self) -> None:
        # Without byte locks whoever has a local vault open to write keeps every other opener out.
        with self._lock:
            writer = self._writer
            if (
                writer is not None
                and writer._locks is None
                and isinstance(writer.directory, LocalDirectory)
                and not _has_open_files(writer)
            ):
                self._writer = None
                writer.close()

    def _roll_back(self) -> None:
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.discard()

    @contextlib.contextmanager
    def _together(self) -> Iterator[Vault]:
        """Changes that are one commit outside of a transaction."""
        vault = self._writing()
        self._holding += 1
        try:
            yield vault
        finally:
            self._holding -= 1
        self._changed()

    def refresh(self) -> None:
        """Read the newest version from now on; files that are open for reading end.

        Where something was written, that happens by itself with the next change.
        """
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.discard()
            if self._writer is not None:
                _catch_up(self._writer)

    def close(self) -> None:
        """Commit what was changed, and close the vault. It is opened again when it is used again."""
        with self._lock:
            self._check_process()
            writer, self._writer = self._writer, None
            try:
                self.refresh()
            finally:
                if writer is not None:
                    writer.close()

    def __del__(self) -> None:
        # What was not committed is not: that must not depend on when the collector runs.
        if self.__dict__.get("_process") == os.getpid():
            for vault in (self.__dict__.get("_writer"), self.__dict__.get("_reader")):
                if vault is not None:
                    vault.discard()

    def start_transaction(self) -> SealedTransaction:
        """Begin a transaction, and commit what was changed before."""
        transaction: SealedTransaction = self.transaction
        transaction.start()
        return transaction

    # Looking.

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size, type (``file``, ``directory``, ``link`` if it leads nowhere, ``other``), times and mode."""
        path = self._strip_protocol(path)
        vault = self._reading()
        own = vault.stat(path, follow=False)
        return self._describe(vault, path, vault.inode(own.inode))

    def _describe(self, vault: Vault, path: str, inode: Inode) -> dict[str, Any]:
        link = inode.is_link
        if link:
            with contextlib.suppress(OSError):
                inode = vault.inode(vault.stat(path).inode)
        kind = "directory" if inode.is_dir else "file" if inode.is_file else "link" if inode.is_link else "other"
        return {
            "name": path,
            "size": inode.size if inode.is_file else 0,
            "type": kind,
            "mode": inode.mode,
            "mtime": inode.mtime / 1e9,
            "created": inode.ctime / 1e9,
            "islink": link,
            "ino": inode.id,
        }

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        vault = self._reading()
        found = vault.stat(path)
        if not found.is_dir:
            return [self.info(path)] if detail else [path]
        below = [(f"{path}/{show(name)}" if path else show(name), inode) for name, inode in vault.entries(found.inode)]
        return [self._describe(vault, name, inode) if detail else name for name, inode in below]

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Raises what is wrong with the vault, where fsspec would say that the path is not there."""
        try:
            self.info(path)
        except OSError:
            return False
        return True

    def modified(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["mtime"], dt.UTC)

    def created(self, path: str) -> dt.datetime:
        """When its attributes changed last, as fsspec's local file system has it."""
        return dt.datetime.fromtimestamp(self.info(path)["created"], dt.UTC)

    # Files.

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, **kwargs: Any
    ) -> OpenedFile:
        wanted = _MODES.get(mode)
        if wanted is None:
            raise UsageError(f"mode: {mode!r}, wanted rb, wb, xb, ab or r+b")
        vault = self._reading() if wanted == "rb" else self._writing()
        return OpenedFile(self, path, vault.open(path, wanted), autocommit=autocommit)  # type: ignore[arg-type]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self.open(path, "xb" if mode == "create" else "wb", **kwargs) as file:
            file.write(value)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        if truncate or not self.exists(path):
            with self.open(path, "wb"):
                return
        with self._together() as vault:
            vault.change(vault.stat(path).inode, mtime=time.time_ns())

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file with its permission bits, or make a directory as another is."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        with self._together() as vault:
            found = vault.stat(path1)
            if found.is_dir:
                vault.mkdir(path2, permissions=found.mode, exist_ok=True)
                return
            with vault.open(path1) as source, vault.open(path2, "wb", permissions=found.mode) as target:
                buffer = memoryview(bytearray(_CHUNK))
                while count := source.readinto(buffer):
                    target.write(buffer[:count])

    # Many at once: one commit.

    def copy(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().copy(*args, **kwargs)

    def put(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().put(*args, **kwargs)

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().put_file(*args, **kwargs)

    def pipe(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().pipe(*args, **kwargs)

    # Names.

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        if not path:
            raise FileExistsError("the top directory is there")
        with self._together() as vault:
            if not create_parents:
                vault.stat(path.rpartition("/")[0])
            vault.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_protocol(path)
        if exist_ok and (not path or self.isdir(path)):
            return
        self.mkdir(path)

    def rmdir(self, path: str) -> None:
        with self._together() as vault:
            vault.remove_dir(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        with self._together() as vault:
            vault.remove(self._strip_protocol(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and directories if `recursive`; in one commit.

        Raises:
            FileNotFoundError, IsADirectoryError: as ``rm`` says.
        """
        if maxdepth is not None:
            raise UsageError("maxdepth: wanted none", hint="remove the paths one by one, in a transaction")
        with self._together() as vault:
            for one in self.expand_path(path):
                if not one:
                    if not recursive:
                        raise IsADirectoryError("the top directory is a directory")
                    for name in vault.listdir():
                        self._remove(vault, name, recursive=True)
                else:
                    self._remove(vault, one, recursive=recursive)

    def _remove(self, vault: Vault, path: str, *, recursive: bool) -> None:
        if vault.stat(path, follow=False).is_dir and recursive:
            vault.remove_dir(path, recursive=True)
        else:
            vault.remove(path)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Rename; what lies at `path2` is replaced if it is a file, and moved into if it is a directory."""
        if isinstance(path1, list) or fsspec.core.has_magic(str(path1)) or maxdepth is not None:
            with self._together():
                super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        into = str(path2).endswith("/")
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if into or self.isdir(path2):
            path2 = "/".join(part for part in (path2, path1.rpartition("/")[2]) if part)
        with self._together() as vault:
            vault.rename(path1, path2)


def _has_open_files(vault: Vault) -> bool:
    return any(node.handles for node in vault._files.nodes.values())


def _catch_up(vault: Vault) -> None:
    """Go on from what others have committed, unless there is anything to commit: then the commit does that."""
    with vault._lock:
        if not vault.changed:
            vault._catch_up()


def _again(options: dict[str, Any]) -> SealedFileSystem:
    return SealedFileSystem(**options)


def _anchor_of(anchor: Anchor | NoFreshness | str | os.PathLike[str] | None) -> Anchor | NoFreshness:
    if anchor is None or anchor == "NO_FRESHNESS":
        return NO_FRESHNESS  # None: the vault is open already
    return FileAnchor(anchor) if isinstance(anchor, (str, os.PathLike)) else anchor


__all__ = ["SealedFileSystem"]
