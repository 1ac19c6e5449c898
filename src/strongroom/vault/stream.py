"""An open file of a vault as a Python file object."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strongroom.errors import FormatError, IntegrityError, StrongroomError
from strongroom.sealed.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

    from strongroom.vault.node import Node
    from strongroom.vault.vault import Vault


class VaultFile(Stream):
    """A seekable binary file. Made by `Vault.open`; its methods may be called from several threads."""

    def __init__(self, vault: Vault, node: Node, mode: str, name: str, place: tuple[int, bytes] | None = None) -> None:
        super().__init__(mode)
        self._lock = vault._lock
        self._vault = vault
        self._node = node
        self._name = name
        self._place = place  # where the name goes when the file is closed

    @property
    def name(self) -> str:
        return self._name

    @property
    def length(self) -> int:
        """In bytes, with what is not committed yet."""
        with self._lock:
            return self._node.inode.size

    @property
    def block_size(self) -> int:
        """Reads and writes that are aligned to it are the fastest."""
        return self._node.block_size

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
                raise self._told(error) from None

    def read_blocks(self, indices: Sequence[int], out: Buffer, rows: Sequence[int] | None = None) -> None:
        """Several blocks in one call, as `SealedFile.read_blocks`."""
        with self._lock:
            self._usable()
            try:
                self._node.read_blocks(indices, out, rows)
            except (IntegrityError, FormatError) as error:
                raise self._told(error) from None

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, whatever the position is."""
        with self._lock:
            self._writing()
            self._node.write_at(offset, data)

    def write(self, data: Buffer) -> int:
        """Write all of `data` at the position; at the end if the file was opened to append."""
        with self._lock, memoryview(data) as view:
            self._writing()
            if self._mode == "ab":
                self._position = self.length
            return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or extend it by a hole that reads as zeros, to `size` bytes (default: the position)."""
        with self._lock:
            self._writing()
            size = self._position if size is None else size
            self._node.truncate(size)
            return size

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
                raise self._told(error) from None

    def parts(self) -> list[tuple[bytes, int, int]]:
        """As `Node.parts`, of a file that is open for reading."""
        with self._lock:
            self._usable()
            try:
                return self._node.parts()
            except (IntegrityError, FormatError) as error:
                raise self._told(error) from None

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

    def __del__(self) -> None:
        # What was not closed gets no name: that must not depend on when the collector runs.
        if "_lock" in self.__dict__ and not self.closed:
            self.discard()

    def __repr__(self) -> str:
        return f"<VaultFile {self._name!r} mode={self._mode!r}>"

    def _told(self, error: StrongroomError) -> StrongroomError:
        """The error with the path in front, which the layers below do not know."""
        return type(error)(f"{self._name}: {error.message}", hint=error.hint)

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
