"""What makes random access to bytes a Python file object: a position."""

from __future__ import annotations

import io
import os
import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

Mode = Literal["r", "w", "x", "r+"]


class Stream(io.BufferedIOBase):
    """The base of `SealedFile` and of a vault's files, which have the bytes; here is the position.

    Any thread may call its methods, which hold `_lock`.
    """

    _MODES: ClassVar[dict[str, str]] = {"r": "rb", "w": "wb", "x": "xb", "r+": "rb+", "r+b": "rb+"}

    def __init__(self, mode: str) -> None:
        self._lock = threading.RLock()
        self._mode = mode
        self._position = 0

    # What subclasses have.

    @property
    @abstractmethod
    def length(self) -> int:
        """In bytes, with what is not committed yet."""

    @abstractmethod
    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on, whatever the position is; the count is smaller only at the end."""

    @abstractmethod
    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, whatever the position is."""

    @abstractmethod
    def discard(self) -> None:
        """Close without committing."""

    @abstractmethod
    def _usable(self) -> None:
        """Raises ValueError if it is closed."""

    # What it is.

    @property
    def mode(self) -> str:
        return self._MODES.get(self._mode, self._mode)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self.mode != "rb"

    def seekable(self) -> bool:
        return True

    # Bytes at the position.

    def readinto(self, buffer: Buffer) -> int:
        with self._lock:
            count = self.read_at(self._position, buffer)
            self._position += count
            return count

    readinto1 = readinto

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            left = max(0, self.length - self._position)
            buffer = bytearray(left if size is None or size < 0 else min(size, left))
            count = self.readinto(buffer)
            return bytes(buffer) if count == len(buffer) else bytes(buffer[:count])

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def write(self, data: Buffer) -> int:
        """Write all of `data` at the position."""
        with self._lock, memoryview(data) as raw:
            self.write_at(self._position, raw)
            self._position += raw.nbytes
            return raw.nbytes

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
        """Do nothing: only a commit makes anything durable."""

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
