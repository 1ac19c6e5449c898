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
import time
from collections.abc import Iterator
from typing import Any, Final

import fsspec
from fsspec.spec import AbstractFileSystem

from strongroom.errors import UsageError
from strongroom.sealed import NO_FRESHNESS, Anchor, FileAnchor, NoFreshness, Root
from strongroom.storage import Directory
from strongroom.vault.access import VaultKey
from strongroom.vault.connection import Connection, KeyFilePath, Remote
from strongroom.vault.opened import OpenedFile, SealedTransaction
from strongroom.vault.paths import show
from strongroom.vault.rows import Inode
from strongroom.vault.vault import Mode, Vault

_MODES: Final = {
    "rb": "rb", "wb": "wb", "xb": "xb", "ab": "ab", "r+b": "r+b", "rb+": "r+b",
    "w+b": "wb", "wb+": "wb", "x+b": "xb", "xb+": "xb", "a+b": "ab", "ab+": "ab",
}  # fmt: skip
_CHUNK: Final = 1 << 20


class SealedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A vault as an fsspec file system. Nothing is opened before the first use.

    Args:
        vault: the vault's directory: a path, a URL of fsspec's, a `Directory`, or an open `Vault` (in which a
            transaction that fails leaves its changes of names uncommitted). In a chained URL what follows the ``::``.
        key: what `vault.open` takes.
        key_file: the path of a key file, instead of `key`.
        anchor: an anchor, the path of an anchor file, or `NO_FRESHNESS` (or that word), with which a vault that was
            rolled back is read as if it were the newest.
        mode: ``r`` to read only, ``r+`` to change, ``x`` to create the vault; by default it is opened for reading, and
            for writing when that is first asked for.
        autocommit: False: nothing is committed before `commit`, `close` or the end of a transaction.
        encrypted: as `vault.open` has it.
        fo, target_protocol: set by fsspec for a chained URL.
        target_options: of the file system that the vault lies in.

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
        encrypted: bool | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (fo is None) == (vault is None):
            raise UsageError("vault: wanted its path or URL, once", hint="vault=..., or sealed://path::URL")
        if mode not in (None, "r", "r+", "x"):
            raise UsageError(f"mode: {mode!r}, wanted r, r+ or x")
        given = isinstance(vault, Vault)
        if anchor is None and not given:
            raise UsageError("anchor: missing", hint='the path of an anchor file, an anchor, or "NO_FRESHNESS"')
        if not given and (key is None) == (key_file is None):
            raise UsageError("key: wanted key or key_file, one of the two")
        self._given = given
        self._has_key = key is not None
        self._place = fo or vault
        self._autocommit = autocommit
        self._holding = 0  # calls in progress that make one commit together
        where: Remote | Directory | Vault | None
        if isinstance(self._place, (str, os.PathLike)):
            where = Remote(os.fspath(self._place), target_protocol, target_options or {})
        else:
            where = self._place
        opener = KeyFilePath(key_file) if key_file is not None else key
        self._vaults = Connection(where, opener, _anchor_of(anchor), mode, encrypted=encrypted, what=repr(self))

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
        if self._given:
            raise UsageError("file system: is of an open vault, which cannot be pickled", hint="give its path")
        if self._has_key:
            raise UsageError("file system: holds a key, which is not pickled", hint="give key_file=, a path, instead")
        options = self.storage_options
        if options.get("mode") == "x":
            options["mode"] = "r+"
        return _again, (options,)

    def __repr__(self) -> str:
        return f"<SealedFileSystem of {self._place!r}>"

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

    # The vault behind it.

    @property
    def root(self) -> Root | None:
        """The root of the version that is read, or was committed last."""
        return self._vaults.reading().root

    def commit(self) -> Root | None:
        """Commit what was changed, that of files that are still open with ``r+b`` and ``ab`` too; the root.

        Raises:
            As `Vault.commit`. After a failure what was not committed is gone, unless the anchor did not answer: then
            call it again.
        """
        return self._vaults.commit()

    def _changed(self) -> None:
        if self._autocommit and not self._holding and not self._intrans:
            self._vaults.commit()
            self._vaults.let_others_in()

    def _roll_back(self) -> None:
        self._vaults.roll_back()

    @contextlib.contextmanager
    def _together(self) -> Iterator[Vault]:
        """Changes that are one commit outside of a transaction."""
        vault = self._vaults.writing()
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
        self._vaults.refresh()

    def close(self) -> None:
        """Commit what was changed, and close the vault. It is opened again when it is used again."""
        self._vaults.close()

    def start_transaction(self) -> SealedTransaction:
        """Begin a transaction, and commit what was changed before."""
        transaction: SealedTransaction = self.transaction
        transaction.start()
        return transaction

    # Looking.

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size, type (``file``, ``directory``, ``link`` if it leads nowhere, ``other``), times and mode."""
        path = self._strip_protocol(path)
        vault = self._vaults.reading()
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
        vault = self._vaults.reading()
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
        vault = self._vaults.reading() if wanted == "rb" else self._vaults.writing()
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


def _again(options: dict[str, Any]) -> SealedFileSystem:
    return SealedFileSystem(**options)


def _anchor_of(anchor: Anchor | NoFreshness | str | os.PathLike[str] | None) -> Anchor | NoFreshness:
    if anchor is None or anchor == "NO_FRESHNESS":
        return NO_FRESHNESS  # None: the vault is open already
    return FileAnchor(anchor) if isinstance(anchor, (str, os.PathLike)) else anchor


__all__ = ["SealedFileSystem"]
