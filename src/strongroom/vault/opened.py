"""What `SealedFileSystem` hands out: open files, and transactions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from fsspec.transaction import Transaction

from strongroom.vault.stream import VaultFile

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

    from strongroom.vault.filesystem import SealedFileSystem

_PEEK = 8 << 10


class OpenedFile(io.BufferedIOBase):
    """An open file of a vault with what fsspec wants of one beside.

    To close one that was written to commits, outside of a transaction. An exception in its ``with`` block leaves what
    was there before; ``fsspec.open`` closes its files in either case, and so commits what had been written.

    Args:
        autocommit: False: the file keeps its old content until `commit`.
    """

    def __init__(self, fs: SealedFileSystem, path: str, file: VaultFile, *, autocommit: bool) -> None:
        self.fs = fs
        self.path = path
        self.autocommit = autocommit
        self._file = file
        self._ended = False  # nothing more is written, and `commit` or `discard` decides
        self.read_at = file.read_at

    @property
    def name(self) -> str:
        return self.path

    @property
    def full_name(self) -> str:
        return f"sealed://{self.path}"

    @property
    def mode(self) -> str:
        return self._file.mode

    @property
    def size(self) -> int:
        return self._file.length

    @property
    def blocksize(self) -> int:
        return self._file.block_size

    def info(self) -> dict[str, Any]:
        return self.fs.info(self.path)

    def readable(self) -> bool:
        return self._file.readable()

    def writable(self) -> bool:
        return self._file.writable()

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        return self._usable().read(size)

    def read1(self, size: int = -1) -> bytes:
        return self._usable().read(size)

    def readinto(self, buffer: Buffer) -> int:
        return self._usable().readinto(buffer)

    readinto1 = readinto

    def peek(self, size: int = 0) -> bytes:
        """Some bytes from the position on, which stays: lines are found by this."""
        buffer = bytearray(_PEEK)
        count = self._usable().read_at(self._file.tell(), buffer)
        return bytes(buffer[:count])

    def write(self, data: Buffer) -> int:
        return self._usable().write(data)

    def truncate(self, size: int | None = None) -> int:
        return self._usable().truncate(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._usable().seek(offset, whence)

    def tell(self) -> int:
        return self._usable().tell()

    def flush(self, force: bool = False) -> None:
        """Do nothing: only a commit makes anything durable."""

    def _usable(self) -> VaultFile:
        if self._ended or self.closed:
            raise ValueError(f"{self.path}: is closed")
        return self._file

    def close(self) -> None:
        """Take the path, and commit; in a transaction its end does that. Closing twice is fine."""
        if self.closed or self._ended:
            return
        if self.autocommit:
            self._finish()
        else:
            self._ended = True
            if not self.writable():
                self.discard()

    def commit(self) -> None:
        """Take the path; for a file without `autocommit`, which was closed."""
        if not self.closed:
            self._finish()

    def _finish(self) -> None:
        self._ended = True
        try:
            self._file.close()
        finally:
            super().close()
        if self.writable() and self.autocommit:
            self.fs._changed()

    def discard(self) -> None:
        """Close; a file opened with ``wb`` leaves no trace."""
        self._ended = True
        self._file.discard()
        super().close()

    def __enter__(self) -> Self:
        self._usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self.autocommit:
            self.discard()
        else:
            self._ended = True  # the transaction may still be committed by who catches this, but not this file
            self.discard()

    def __del__(self) -> None:
        # What was not closed gets no name: that must not depend on when the collector runs. What was closed in a
        # transaction is kept by that.
        if "_file" in self.__dict__ and not self.closed:
            self.discard()

    def __repr__(self) -> str:
        return f"<OpenedFile {self.path!r} mode={self.mode!r}>"


class SealedTransaction(Transaction):  # type: ignore[misc]  # fsspec has no types
    """A transaction of fsspec's that is one commit of the vault, of names too; or that leaves nothing behind."""

    def start(self) -> None:
        """Begin; what was changed before is committed first, so that it is not lost with this."""
        self.fs.commit()
        super().start()

    def complete(self, commit: bool = True) -> None:
        """End.

        Raises:
            As `SealedFileSystem.commit`; nothing of the transaction is committed then.
        """
        fs = self.fs
        try:
            super().complete(commit=commit)
        except BaseException:
            fs._roll_back()
            raise
        if commit:
            fs.commit()
        else:
            fs._roll_back()
