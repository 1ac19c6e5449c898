"""The vault behind a `SealedFileSystem`: opened when it is first used, for writing when that is first asked for."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, Final

import fsspec

from strongroom.errors import UsageError
from strongroom.sealed import Anchor, NoFreshness, Root
from strongroom.storage import Directory, LocalDirectory, ObjectDirectory
from strongroom.vault.access import VaultKey
from strongroom.vault.engine import META
from strongroom.vault.keys import KeyFile
from strongroom.vault.vault import Mode, Vault
from strongroom.vault.vault import open as open_vault

_LOCAL: Final = {"file", "local"}


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a vault lies: a path or URL, or a path in the file system of a protocol; and options of that."""

    path: str
    protocol: str | None
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeyFilePath:
    """A key file that is read whenever the vault is opened."""

    path: str | os.PathLike[str]


class Connection:
    """At most two openings of one vault: a reader, which keeps its version, and a writer, which then serves all.

    Its methods may be called from several threads. In a process that was forked everything is opened anew.

    Args:
        place: where the vault lies, or an open one, which stays open.
        mode, encrypted: as `SealedFileSystem` has them.
        what: for errors.
    """

    def __init__(
        self,
        place: Remote | Directory | Vault | None,
        key: VaultKey | KeyFilePath | None,
        anchor: Anchor | NoFreshness,
        mode: Mode | None,
        *,
        encrypted: bool | None,
        what: str,
    ) -> None:
        self._given = place if isinstance(place, Vault) else None
        self._place = place
        self._key = key
        self._anchor = anchor
        self._mode = mode
        self._encrypted = encrypted
        self._what = what
        self._lock = threading.RLock()
        self._reader: Vault | None = None
        self._writer: Vault | None = None
        self._process = os.getpid()

    def _directory(self) -> str | Directory:
        place = self._place
        if not isinstance(place, Remote):
            return place  # type: ignore[return-value]  # a directory: a vault is not opened again
        if place.protocol is not None:
            fs = fsspec.filesystem(place.protocol, **place.options)
            path = fs._strip_protocol(place.path)
        elif "://" in place.path or "::" in place.path:
            fs, path = fsspec.core.url_to_fs(place.path, **place.options)
        else:
            return place.path
        if {fs.protocol} & _LOCAL if isinstance(fs.protocol, str) else set(fs.protocol) & _LOCAL:
            return str(path)
        return ObjectDirectory(fs, path, updatable=(META,))

    def _open(self, mode: Mode) -> Vault:
        key = KeyFile.load(self._key.path) if isinstance(self._key, KeyFilePath) else self._key
        assert key is not None  # noqa: S101  # the file system looked
        return open_vault(self._directory(), mode, key=key, anchor=self._anchor, encrypted=self._encrypted)

    def reading(self) -> Vault:
        """The vault, to look at."""
        with self._lock:
            self._check_process()
            if self._given is not None:
                return self._given
            if self._writer is not None:
                return self._writer
            if self._mode in ("r+", "x"):
                return self.writing()
            if self._reader is None:
                self._reader = self._open("r")
            return self._reader

    def writing(self) -> Vault:
        """The vault, to change, at the newest version unless there are changes already.

        Raises:
            UsageError: the mode is ``r``.
        """
        with self._lock:
            self._check_process()
            if self._given is not None:
                return self._given
            if self._mode == "r":
                raise UsageError(f"{self._what}: open for reading only", hint='give mode="r+", or no mode')
            if self._writer is None:
                if self._reader is not None and not _has_open_files(self._reader):
                    self.refresh()  # where the platform has no byte locks, it would be in the way
                self._writer = self._open("x" if self._mode == "x" else "r+")
                self._mode = "r+"
            _catch_up(self._writer)
            return self._writer

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # Locks belong to the process that forked: opened anew here, and not closed, which would end them there.
            if self._given is not None:
                raise UsageError(f"{self._what}: is of a vault that another process opened", hint="give its path")
            self._reader = self._writer = None
            self._process = os.getpid()

    def commit(self) -> Root | None:
        """As `SealedFileSystem.commit`."""
        with self._lock:
            self._check_process()
            vault = self._given or self._writer
            if vault is None:
                return None if self._reader is None else self._reader.root
            try:
                return vault.commit()
            except BaseException:
                if self._writer is not None and self._writer._broken:
                    self.roll_back()
                raise

    def roll_back(self) -> None:
        """Drop what was not committed; files that are open to be written end."""
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.discard()

    def let_others_in(self) -> None:
        """Close the writer where it would keep every other opener out: locally, without byte locks."""
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

    def refresh(self) -> None:
        """Go on to the newest version; files that are open for reading end."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.discard()
            if self._writer is not None:
                _catch_up(self._writer)

    def close(self) -> None:
        """Commit, and close."""
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
            for vault in (self._writer, self._reader):
                if vault is not None:
                    vault.discard()


def _has_open_files(vault: Vault) -> bool:
    return any(node.handles for node in vault._files.nodes.values())


def _catch_up(vault: Vault) -> None:
    """Go on from what others have committed, unless there is anything to commit: then the commit does that."""
    with vault._lock:
        if vault.changed:
            return
        refresh = getattr(vault._meta._storage, "refresh", None)
        if refresh is None:
            vault._catch_up()
        else:  # numbered objects: without locks, and seen as they were at opening
            refresh()
            vault._rebase()
