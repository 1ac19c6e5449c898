"""Sealed blocks at their places: what is encrypted, read and written of one file, without knowing of its tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from strongroom.crypto import TAG_SIZE, BlockCipher
from strongroom.errors import TamperedError, TruncatedError, WrongKeyError
from strongroom.sealed import layout
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, GENERATION_SHIFT, PLACE_MASK, POINTER
from strongroom.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12


class BlockStore:
    """The places of one storage, as sealed blocks. Not for use from several threads at once.

    Args:
        ciphers: by generation of the key.
        generation: of the key to write with.
        file_id: bound into every block.
        origin: place p rests at byte (p - origin) * block size.
        what: the file's name, for errors.
    """

    def __init__(
        self,
        storage: Storage,
        ciphers: Mapping[int, BlockCipher],
        generation: int,
        file_id: bytes,
        block_size: int,
        *,
        origin: int,
        what: str,
    ) -> None:
        self.storage = storage
        self.what = what
        self.block_size = block_size
        self.origin = origin
        self.generation = generation
        self._ciphers = ciphers
        self._writer = ciphers[generation]
        self._aad = layout.block_aad(file_id)
        self._nonces = layout.NonceSource()
        # Ciphertext passes through this private buffer only: the host can change the file while it is being read.
        self._box = bytearray(block_size + TAG_SIZE)
        self._box_block = memoryview(self._box)[:block_size]

    def read(self, level: int, index: int, pointer: bytes, out: Buffer) -> None:
        """Put the block that `pointer`, no hole, points at into `out`, of one block's length.

        Raises:
            TamperedError, TruncatedError: it is not what was written; `out` then holds zeros.
            WrongKeyError: it is of a generation that there is no key for.
        """
        field, nonce, tag = POINTER.unpack(pointer)
        place = field & PLACE_MASK
        cipher = self._ciphers.get(field >> GENERATION_SHIFT)
        if cipher is None:
            raise WrongKeyError(f"{self.what}: block {index} of level {level}: no key of generation {field >> GENERATION_SHIFT}")
        try:
            if self.storage.read_into((place - self.origin) * self.block_size, self._box_block) != self.block_size:
                raise TruncatedError(
                    f"{self.what}: block {index} of level {level}: place {place} lies behind the end of the file",
                    hint=CUT_HINT,
                )
            self._box[self.block_size :] = tag
            cipher.decrypt_into(nonce, self._box, self._aad + layout.pack_level_index(level, index), out)
        except TamperedError:
            # What failed to authenticate has been decrypted into `out`; nobody may see it.
            memoryview(out)[:] = bytes(self.block_size)
            raise TamperedError(
                f"{self.what}: block {index} of level {level}: authentication failed at place {place}",
                hint=CHANGED_HINT,
            ) from None

    def write(self, level: int, index: int, place: int, data: Buffer) -> bytes:
        """Seal `data`, of one block, into `place`; the result is the pointer."""
        nonce = self._nonces.next()
        self._writer.encrypt_into(nonce, data, self._aad + layout.pack_level_index(level, index), self._box)
        self.storage.write_at((place - self.origin) * self.block_size, self._box_block)
        return POINTER.pack(self.generation << GENERATION_SHIFT | place, nonce, self._box[self.block_size :])

    def places(self) -> int:
        """How many places the storage has now."""
        return self.storage.size() // self.block_size + self.origin

    def resize(self, places: int) -> None:
        """Give the storage exactly this many places."""
        size = (places - self.origin) * self.block_size
        if self.storage.size() != size:
            self.storage.resize(size)
