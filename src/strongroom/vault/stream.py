"""An open file of a vault as a Python file object."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strongroom.errors import FormatError, IntegrityError, StrongroomError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

    from strongroom.vault.node import Node
    from strongroom.vault.vault import Vault


class VaultFile(io.BufferedIOBase):
    """A seekable binary file. Made by `Vault.open`; its methods may be called from several threads."""

    def __init__(self, vault: Vault, node: Node, mode: str, name: str, place: tuple[int, bytes] | None = None) -> None:
        self._vault = vault
        self._node = node
        self._mode = mode
        self._name = name
        self._place = place  # where the name goes when the file is closed
        self._position = 0
        self._lock = vault._lock

    @property
    def name(self) -> str:
        return self._name

    @property
    def mode(self) -> str:
        return {"r+b": "rb+"}.get(self._mode, self._mode)

    @property
    def length(self) -> int:
        """In bytes, with what is not committed yet."""
        with self._lock:
            return self._node.inode.size

    @property
    def block_size(self) -> int:
        """Reads and writes that are aligned to it are the fastest."""
        return self._node.block_size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._mode != "rb"

    def seekable(self) -> bool:
        return True

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on, whatever the position is; the count is smaller only at the end.

        Raises:
            TamperedError, TruncatedError: a block is not what was committed; `buffer` holds nothing of it.
        """
        with self._lock:
            self._usable()
            try:
                return self._node.read_at(offset, buffer)
            except (IntegrityError, FormatError) as error:
                raise type(error)(f"{self._name}: {error.message}", hint=error.hint) from None

    def read_blocks(self, indices: Sequence[int], out: Buffer, rows: Sequence[int] | None = None) -> None:
        """Several blocks in one call, as `SealedFile.read_blocks`."""
        with self._lock:
            self._usable()
            try:
                self._node.read_blocks(indices, out, rows)
            except (IntegrityError, FormatError) as error:
                raise type(error)(f"{self._name}: {error.message}", hint=error.hint) from None

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, whatever the position is."""
        with self._lock:
            self._writing()
            self._node.write_at(offset, data)

    def readinto(self, buffer: Buffer) -> int:
        with self._lock:
            count = self.read_at(self._position, buffer)
            self._position += count
            return count

    readinto1 = readinto

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            self._usable()
            left = max(0, self.length - self._position)
            buffer = bytearray(left if size is None or size < 0 else min(size, left))
            count = self.readinto(buffer)
            return bytes(buffer) if count == len(buffer) else bytes(buffer[:count])

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def write(self, data: Buffer) -> int:
        """Write all of `data` at the position; at the end if the file was opened to append."""
        with self._lock, memoryview(data) as view:
            self._writing()
            if self._mode == "ab":
                self._position = self.length
            self._node.write_at(self._position, view)
            self._position += view.nbytes
            return view.nbytes

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or extend it by a hole that reads as zeros, to `size` bytes (default: the position)."""
        with self._lock:
            self._writing()
            size = self._position if size is None else size
            self._node.truncate(size)
            return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._lock:
            self._usable()
            if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
                raise ValueError(f"whence: {whence}, wanted 0, 1 or 2")
            position = offset + (0, self._position, self.length)[whence]
            if position < 0:
                raise ValueError(f"position: {position}, wanted 0 or more")
            self._position = position
            return position

    def tell(self) -> int:
        self._usable()
        return self._position

    def flush(self) -> None:
        """Do nothing: only a commit of the vault makes anything durable."""

    def verify(self) -> int:
        """Read every block from the storage; return how many.

        Raises:
            IntegrityError: a block is not what was committed.
        """
        with self._lock:
            self._usable()
            try:
                return self._node.verify()
            except (IntegrityError, FormatError) as error:
                raise type(error)(f"{self._name}: {error.message}", hint=error.hint) from None

    def close(self) -> None:
        """Give the file its name if it was opened with ``wb``. Closing twice is fine."""
        with self._lock:
            if self.closed:
                return
            try:
                if self._place is not None and not self._vault._closed:
                    self._vault.adopt(self._node.number, *self._place)
            finally:
                self._end()

    def discard(self) -> None:
        """Close; a file opened with ``wb`` leaves no trace."""
        with self._lock:
            if not self.closed:
                self._end()

    def _end(self) -> None:
        super().close()
        self._vault.release(self._node)

    def __enter__(self) -> Self:
        self._usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        # What was not closed gets no name: that must not depend on when the collector runs.
        if "_lock" in self.__dict__ and not self.closed:
            self.discard()

    def __repr__(self) -> str:
        return f"<VaultFile {self._name!r} mode={self._mode!r}>"

    def _usable(self) -> None:
        if self.closed or self._vault._closed:
            raise ValueError(f"{self._name}: is closed")

    def _writing(self) -> None:
        self._usable()
        if not self.writable():
            raise io.UnsupportedOperation(f"{self._name}: open for reading only")
        if self._vault._broken:
            raise StrongroomError(
                f"{self._name}: an earlier write or commit of the vault failed", hint="open the vault again"
            )
