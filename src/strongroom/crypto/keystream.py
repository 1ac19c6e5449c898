"""Key streams: AES-128-CTR as a generator that two holders of one key run in step (NIST SP 800-38A, section 6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

STREAM_KEY_SIZE = 16
_BLOCK = 16
_PIECE = 1 << 18  # of zeros, small enough to stay in the processor's cache
_ZEROS = memoryview(bytes(_PIECE))


class KeyStream:
    """The stream of one key, from its beginning, each byte once. For one thread at a time.

    The counter block is a 64-bit stream number and a 64-bit counter of blocks, both big-endian.

    Args:
        key: 16 bytes, used for nothing else.
        number: which of the key's streams, below 2^64.

    Attributes:
        position: how many bytes were drawn; always whole blocks of 16.
    """

    def __init__(self, key: bytes, number: int = 0) -> None:
        if len(key) != STREAM_KEY_SIZE:
            raise ValueError(f"key: {len(key)} bytes, wanted {STREAM_KEY_SIZE}")
        start = number.to_bytes(8, "big") + bytes(8)
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
        self.position = 0

    def __repr__(self) -> str:
        return f"KeyStream(<key>, position={self.position})"

    def fill(self, out: Buffer) -> None:
        """Overwrite `out` with the next bytes, and pass over what is left of the last block."""
        view = memoryview(out).cast("B")
        size = len(view)
        if size <= _PIECE:
            self._encryptor.update_into(_ZEROS[:size], view)
        else:
            for start in range(0, size, _PIECE):
                piece = view[start : start + _PIECE]
                self._encryptor.update_into(_ZEROS[: len(piece)], piece)
        rest = -size % _BLOCK
        if rest:
            self._encryptor.update(_ZEROS[:rest])
        self.position += size + rest
