"""The bytes of a sealed file (normative: docs/spec/sealed-file.md). Pure: nothing here reads or writes.

- Integers are little-endian. Every byte of a slot is authenticated, and every byte of a block that a root reaches.
- A place is a file offset divided by the block size; places below `first_place` hold the slots, so place 0 in a pointer
  means a hole: zeros that rest nowhere.
- The height of the tree follows from the length: it is stored nowhere, and so can contradict nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from strongroom.crypto import NONCE_SIZE, TAG_SIZE, BlockCipher, derive, digest, equal, random_bytes
from strongroom.errors import FormatError, TamperedError
from strongroom.sealed.anchor import Root

MAGIC: Final = b"SRSEALED"
VERSION: Final = 0
SLOT_SIZE: Final = 4096
SLOTS: Final = 4
SLOTS_SIZE: Final = SLOTS * SLOT_SIZE
MIN_BLOCK: Final = 4 << 10
MAX_BLOCK: Final = 4 << 20
DEFAULT_BLOCK: Final = 64 << 10
MAX_LENGTH: Final = 1 << 60
FILE_ID_SIZE: Final = 16

CUT_HINT: Final = "the end of the file is missing; restore it from a copy"
CHANGED_HINT: Final = "something changed it on the disk; restore it from a copy"

POINTER: Final = struct.Struct(f"<Q{NONCE_SIZE}s{TAG_SIZE}s")  # place, nonce, tag
HOLE: Final = bytes(POINTER.size)

_HEADER = struct.Struct("<8sHHI16s32s")  # magic, version, flags, block size, file id, key commitment
_NONCE_END = _HEADER.size + NONCE_SIZE
_BODY_SIZE = SLOT_SIZE - _NONCE_END - TAG_SIZE
# sequence, length, places, root pointer, previous sequence, previous digest, epoch, log lsn, log tag, count of
# retained roots; zeros up to _BODY_SIZE
_BODY = struct.Struct(f"<QQQ{POINTER.size}sQ32sQQ16sI")

_ROOT_LABEL = b"strongroom/sealed/v0/root\0"
_SLOT_LABEL = b"strongroom/sealed/v0/slot\0"
_BLOCK_LABEL = b"strongroom/sealed/v0/block\0"
_LEVEL_INDEX = struct.Struct("<BQ")


@dataclass(frozen=True, slots=True)
class Header:
    """The clear part of a slot."""

    block_size: int
    file_id: bytes
    commitment: bytes

    def check_key(self, key: bytes) -> bool:
        """Whether `key` is the one that the slot was sealed under."""
        return equal(self.commitment, commitment(key, self.file_id))

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, 0, self.block_size, self.file_id, self.commitment)


@dataclass(frozen=True, slots=True)
class Commit:
    """What a slot seals: one committed version of the file."""

    sequence: int
    length: int
    places: int
    pointer: bytes
    previous: Root | None

    def root(self, header: Header) -> Root:
        previous = self.previous or _NO_ROOT
        fields = struct.pack(
            f"<16sIQQQ{POINTER.size}sQ32sQ16s",
            header.file_id,
            header.block_size,
            0,  # anchor epoch
            self.sequence,
            self.length,
            self.pointer,
            previous.sequence,
            previous.digest,
            0,  # log position: lsn
            bytes(16),  # log position: tag
        )
        return Root(self.sequence, digest(_ROOT_LABEL, fields))


class _NoRoot:
    sequence = 0
    digest = bytes(32)


_NO_ROOT = _NoRoot()


def commitment(key: bytes, file_id: bytes) -> bytes:
    """Binds a slot to one key. AES-GCM alone does not: ciphertexts exist that open under several."""
    return derive(key, "strongroom/sealed/v0/commit", context=file_id)


def block_cipher(key: bytes, file_id: bytes) -> BlockCipher:
    """The cipher of a file's blocks and slots."""
    return BlockCipher(derive(key, "strongroom/sealed/v0/blocks", context=file_id))


def block_aad(file_id: bytes) -> bytes:
    """What comes before level and index in a block's associated data."""
    return _BLOCK_LABEL + file_id


pack_level_index = _LEVEL_INDEX.pack


def check_block_size(block_size: int) -> None:
    """Raises FormatError unless it is a power of two from 4 KiB to 4 MiB."""
    if not MIN_BLOCK <= block_size <= MAX_BLOCK or block_size & (block_size - 1):
        raise FormatError(f"block size: {block_size}, wanted a power of two from {MIN_BLOCK} to {MAX_BLOCK}")


def first_place(block_size: int) -> int:
    """The lowest place that may hold a block."""
    return -(-SLOTS_SIZE // block_size)


def fanout(block_size: int) -> int:
    """How many pointers an interior block holds."""
    return block_size // POINTER.size


def height_of(length: int, block_size: int) -> int:
    """The level of the root block; data blocks are level 0."""
    blocks = -(-length // block_size)
    height = 0
    while blocks > 1:
        blocks = -(-blocks // fanout(block_size))
        height += 1
    return height


def parse_header(slot: bytes) -> Header | None:
    """The clear header of a slot, or None where no slot was ever written.

    Raises:
        FormatError: there is one of another version, or with an impossible field.
    """
    if len(slot) < _HEADER.size or not slot.startswith(MAGIC):
        return None
    _, version, flags, block_size, file_id, committed = _HEADER.unpack_from(slot)
    if version != VERSION:
        raise FormatError(f"sealed file version: {version}, wanted {VERSION}", hint="a newer strongroom may read it")
    if flags:
        raise FormatError(f"sealed file flags: {flags:#06x}, wanted 0", hint="a newer strongroom may read it")
    check_block_size(block_size)
    return Header(block_size, file_id, committed)


def seal_slot(cipher: BlockCipher, header: Header, commit: Commit, nonce: bytes) -> bytes:
    """The 4096 bytes of a slot."""
    previous = commit.previous or _NO_ROOT
    body = _BODY.pack(
        commit.sequence,
        commit.length,
        commit.places,
        commit.pointer,
        previous.sequence,
        previous.digest,
        0,
        0,
        bytes(16),
        0,
    )
    clear = header.pack()
    return clear + nonce + cipher.encrypt(nonce, body.ljust(_BODY_SIZE, b"\0"), _SLOT_LABEL + clear)


def open_slot(cipher: BlockCipher, slot: bytes) -> Commit:
    """The commit that a slot seals.

    Raises:
        TamperedError: it does not authenticate (a torn write looks the same).
        FormatError: it does, but was written by something newer.
    """
    clear, nonce = slot[: _HEADER.size], slot[_HEADER.size : _NONCE_END]
    if len(slot) != SLOT_SIZE:
        raise TamperedError(f"slot: {len(slot)} bytes, wanted {SLOT_SIZE}")
    body = cipher.decrypt(nonce, slot[_NONCE_END:], _SLOT_LABEL + clear)
    sequence, length, places, pointer, before, before_digest, epoch, lsn, log_tag, retained = _BODY.unpack_from(body)
    if epoch or lsn or any(log_tag) or retained or any(body[_BODY.size :]):
        raise FormatError("slot: uses fields of a later version", hint="a newer strongroom may read it")
    if length > MAX_LENGTH:
        raise FormatError(f"slot: length {length}, wanted at most {MAX_LENGTH}")
    return Commit(sequence, length, places, pointer, Root(before, before_digest) if before else None)


class NonceSource:
    """Nonces that never repeat: 12 random bytes that select the derived key, drawn anew every 2^31 blocks, and 12
    random bytes for each block, which come from the system each time, so that a forked child draws others.
    """

    _LIMIT = 1 << 31

    def __init__(self) -> None:
        self._used = self._LIMIT
        self._prefix = b""

    def next(self) -> bytes:
        if self._used >= self._LIMIT:
            self._prefix = random_bytes(NONCE_SIZE // 2)
            self._used = 0
        self._used += 1
        return self._prefix + random_bytes(NONCE_SIZE // 2)
