"""The bytes of a sealed file (normative: docs/spec/sealed-file.md). Pure: nothing here reads or writes.

- Integers are little-endian. Every byte of a slot is authenticated, and every byte of a block that a root reaches.
- A place is a file offset divided by the block size; places below `first_place` hold the slots, so place 0 in a pointer
  means a hole: zeros that rest nowhere.
- The top 8 bits of a pointer's first word say under which generation of the key its block is sealed.
- The height of the tree follows from the length: it is stored nowhere, and so can contradict nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from strongroom.crypto import KEY_SIZE, NONCE_SIZE, TAG_SIZE, BlockCipher, derive, digest, equal, random_bytes
from strongroom.errors import FormatError, TamperedError, UsageError
from strongroom.sealed.anchor import DIGEST_SIZE, MAX_GROUP, Root

MAGIC: Final = b"SRSEALED"
VERSION: Final = 1
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

POINTER: Final = struct.Struct(f"<Q{NONCE_SIZE}s{TAG_SIZE}s")  # generation << 56 | place, nonce, tag
HOLE: Final = bytes(POINTER.size)
GENERATION_SHIFT: Final = 56
PLACE_MASK: Final = (1 << GENERATION_SHIFT) - 1
GENERATIONS: Final = 256

# Sequence numbers are bytes that readers lock, from 2^62 on and below the lock of whoever opens the plain way.
MAX_SEQUENCE: Final = (1 << 61) - 1
MAX_RETAINED: Final = 16
AUTHENTICATED_ONLY: Final = 1  # the one flag: blocks lie in clear

_HEADER = struct.Struct("<8sHHI16s32s")  # magic, version, flags, block size, file id, key commitment
_NONCE_END = _HEADER.size + NONCE_SIZE
_BODY_SIZE = SLOT_SIZE - _NONCE_END - TAG_SIZE
# sequence, length, places, root pointer, previous sequence, previous digest, epoch, log lsn, log tag, key generation,
# old keys, retained roots, roots since the anchor, bits of the retained roots that are kept for a reader, old block key
_BODY = struct.Struct(f"<QQQ{POINTER.size}sQ32sQQ16sBBBBHxx{KEY_SIZE}s")
_RETAINED = struct.Struct(f"<QQQ{POINTER.size}s{DIGEST_SIZE}s")  # sequence, length, places, root pointer, digest
_RETAINED_AT = 192
_SINCE_AT = _RETAINED_AT + MAX_RETAINED * _RETAINED.size
_BODY_END = _SINCE_AT + MAX_GROUP * DIGEST_SIZE

_ROOT_LABEL = b"strongroom/sealed/v1/root\0"
_SLOT_LABEL = b"strongroom/sealed/v1/slot\0"
_BLOCK_LABEL = b"strongroom/sealed/v1/block\0"
_LEVEL_INDEX = struct.Struct("<BQ")
_NEWER = "a newer strongroom may read it"


@dataclass(frozen=True, slots=True)
class Header:
    """The clear part of a slot."""

    block_size: int
    file_id: bytes
    commitment: bytes
    flags: int = 0

    @property
    def encrypted(self) -> bool:
        """Whether blocks are ciphertext; else they are authenticated only."""
        return not self.flags & AUTHENTICATED_ONLY

    def check_key(self, key: bytes) -> bool:
        """Whether `key` is the one that the slot was sealed under."""
        return equal(self.commitment, commitment(key, self.file_id))

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, self.flags, self.block_size, self.file_id, self.commitment)


@dataclass(frozen=True, slots=True)
class Retained:
    """What it takes to open a version that stays readable. `pinned`: for as long as a reader holds it, and no longer.

    Its digest is that of the version's root.
    """

    sequence: int
    length: int
    places: int
    pointer: bytes
    digest: bytes
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """What a slot seals: one committed version of the file.

    Args:
        previous: the version that it follows; of this only sequence and digest count.
        epoch: of the anchor.
        lsn, tag: how much of a vault's intent log it has taken in; 0 and empty without one.
        retained: at most 16, by rising sequence. This version itself may be among them.
        since: the digests of the roots since the anchor, the last of them that of `previous`; at most 64.
        generation: of the key that the slot is sealed under, modulo 256.
        old_key: the block key of the generation before, while blocks are being sealed anew; else empty.
    """

    sequence: int
    length: int
    places: int
    pointer: bytes
    previous: Root | None
    epoch: int = 0
    lsn: int = 0
    tag: bytes = b""
    retained: tuple[Retained, ...] = ()
    since: tuple[bytes, ...] = ()
    generation: int = 0
    old_key: bytes = field(default=b"", repr=False)

    def root(self, header: Header) -> Root:
        """Its root, as an anchor holds it when it has just been committed."""
        before, before_digest = self.previous.version if self.previous else (0, bytes(DIGEST_SIZE))
        fields = struct.pack(
            f"<16sIHQQQ{POINTER.size}sQ32sQ16s",
            header.file_id,
            header.block_size,
            header.flags,
            self.epoch,
            self.sequence,
            self.length,
            self.pointer,
            before,
            before_digest,
            self.lsn,
            self.tag,
        )
        return Root(self.sequence, digest(_ROOT_LABEL, fields), self.epoch, self.lsn, self.tag)

    def as_retained(self, header: Header, *, pinned: bool = False) -> Retained:
        return Retained(self.sequence, self.length, self.places, self.pointer, self.root(header).digest, pinned=pinned)


def commitment(key: bytes, file_id: bytes) -> bytes:
    """Binds a slot to one key. AES-GCM alone does not: ciphertexts exist that open under several."""
    return derive(key, "strongroom/sealed/v1/commit", context=file_id)


def block_key(key: bytes, file_id: bytes) -> bytes:
    """The key of a file's blocks and slots."""
    return derive(key, "strongroom/sealed/v1/blocks", context=file_id)


def block_cipher(key: bytes, file_id: bytes) -> BlockCipher:
    """The cipher of a file's blocks and slots."""
    return BlockCipher(block_key(key, file_id))


def block_aad(file_id: bytes, flags: int = 0) -> bytes:
    """What comes before level and index in a block's associated data."""
    return _BLOCK_LABEL + file_id + struct.pack("<H", flags)


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
        raise FormatError(f"sealed file version: {version}, wanted {VERSION}", hint=_NEWER)
    if flags & ~AUTHENTICATED_ONLY:
        raise FormatError(f"sealed file flags: {flags:#06x}, wanted 0 or 1", hint=_NEWER)
    check_block_size(block_size)
    return Header(block_size, file_id, committed, flags)


def seal_slot(cipher: BlockCipher, header: Header, commit: Commit, nonce: bytes) -> bytes:
    """The 4096 bytes of a slot.

    Raises:
        UsageError: it retains too many roots, or too many lie between it and the anchor.
    """
    if len(commit.retained) > MAX_RETAINED:
        raise UsageError(
            f"retained roots: {len(commit.retained)}, wanted at most {MAX_RETAINED}",
            hint="release one, or close a reader of an older version",
        )
    if len(commit.since) > MAX_GROUP or commit.sequence > MAX_SEQUENCE:
        raise UsageError(f"roots since the anchor: {len(commit.since)}, wanted at most {MAX_GROUP}")
    clear = header.pack()
    return clear + nonce + cipher.encrypt(nonce, _pack_body(commit), _SLOT_LABEL + clear)


def _pack_body(commit: Commit) -> bytes:
    before, before_digest = commit.previous.version if commit.previous else (0, bytes(DIGEST_SIZE))
    body = bytearray(_BODY_SIZE)
    _BODY.pack_into(
        body,
        0,
        commit.sequence,
        commit.length,
        commit.places,
        commit.pointer,
        before,
        before_digest,
        commit.epoch,
        commit.lsn,
        commit.tag,
        commit.generation,
        1 if commit.old_key else 0,
        len(commit.retained),
        len(commit.since),
        sum(root.pinned << i for i, root in enumerate(commit.retained)),
        commit.old_key,
    )
    for i, root in enumerate(commit.retained):
        _RETAINED.pack_into(
            body, _RETAINED_AT + i * _RETAINED.size, root.sequence, root.length, root.places, root.pointer, root.digest
        )
    body[_SINCE_AT : _SINCE_AT + len(commit.since) * DIGEST_SIZE] = b"".join(commit.since)
    return bytes(body)


def open_slot(cipher: BlockCipher, slot: bytes) -> Commit:
    """The commit that a slot seals.

    Raises:
        TamperedError: it does not authenticate (a torn write looks the same).
        FormatError: it does, but is nothing that `seal_slot` gives.
    """
    clear, nonce = slot[: _HEADER.size], slot[_HEADER.size : _NONCE_END]
    if len(slot) != SLOT_SIZE:
        raise TamperedError(f"slot: {len(slot)} bytes, wanted {SLOT_SIZE}")
    header = parse_header(clear)
    body = cipher.decrypt(nonce, slot[_NONCE_END:], _SLOT_LABEL + clear)
    if header is None:
        raise FormatError("slot: has no header")
    commit = _parse_body(body)
    # One spelling each: what is not used is zero, and everything is in order.
    if _pack_body(commit) != body:
        raise FormatError("slot: unused fields are not zero", hint=_NEWER)
    _check_roots(commit, header)
    return commit


def _parse_body(body: bytes) -> Commit:
    (
        sequence, length, places, pointer, before, before_digest, epoch, lsn, tag, generation, old_keys, retained,
        since, pinned, old_key,
    ) = _BODY.unpack_from(body)  # fmt: skip
    if not 1 <= sequence <= MAX_SEQUENCE or before != sequence - 1:
        raise FormatError(f"slot: sequence {sequence} after {before}, wanted 1 to 2^61 - 1, one after the other")
    if length > MAX_LENGTH or places > PLACE_MASK:
        raise FormatError(f"slot: length {length} in {places} places, wanted at most {MAX_LENGTH} in {PLACE_MASK}")
    if old_keys > 1 or retained > MAX_RETAINED or since > MAX_GROUP:
        raise FormatError(
            f"slot: {old_keys} old keys, {retained} retained roots and {since} since the anchor, "
            f"wanted at most 1, {MAX_RETAINED} and {MAX_GROUP}",
            hint=_NEWER,
        )
    if epoch >> 63 or lsn >> 63:
        raise FormatError(f"slot: epoch {epoch} and log number {lsn}, wanted at most 2^63 - 1")
    return Commit(
        sequence,
        length,
        places,
        pointer,
        Root(before, before_digest) if before else None,
        epoch,
        lsn,
        tag if lsn else b"",
        tuple(_parse_retained(body, i, pinned=bool(pinned >> i & 1)) for i in range(retained)),
        tuple(body[at : at + DIGEST_SIZE] for at in range(_SINCE_AT, _SINCE_AT + since * DIGEST_SIZE, DIGEST_SIZE)),
        generation,
        old_key if old_keys else b"",
    )


def _parse_retained(body: bytes, i: int, *, pinned: bool) -> Retained:
    sequence, length, places, pointer, root = _RETAINED.unpack_from(body, _RETAINED_AT + i * _RETAINED.size)
    return Retained(sequence, length, places, pointer, root, pinned)


def _check_roots(commit: Commit, header: Header) -> None:
    """Raises FormatError unless the lists of roots fit the commit that they are in."""
    sequences = [root.sequence for root in commit.retained]
    if sequences != sorted(set(sequences)) or any(not 1 <= n <= commit.sequence for n in sequences):
        raise FormatError(f"slot: retained roots {sequences}, wanted rising ones up to {commit.sequence}")
    for root in commit.retained:
        own = commit.as_retained(header, pinned=root.pinned)
        if root.length > MAX_LENGTH or root.places > PLACE_MASK or (root.sequence == own.sequence and root != own):
            raise FormatError(f"slot: retained root {root.sequence} is not a version of this file")
    if commit.since and (
        len(commit.since) >= commit.sequence or not commit.previous or commit.since[-1] != commit.previous.digest
    ):
        raise FormatError(f"slot: {len(commit.since)} roots since the anchor do not end with the previous one")


class NonceSource:
    """Nonces that never repeat: 12 random bytes that select the derived key, drawn anew every 2^31 blocks, and 12
    random bytes for each block, which come from the system each time, so that a forked child draws others.
    """

    _LIMIT = 1 << 31

    def __init__(self) -> None:
        self._used = self._LIMIT
        self._prefix = b""

    def next(self) -> bytes:
        prefix, halves = self.take_apart(1)
        return prefix + halves[0]

    def take_apart(self, count: int) -> tuple[bytes, list[bytes]]:
        """So many of them: the first half, which they share, and the second half of each."""
        if self._used + count > self._LIMIT:
            self._prefix = random_bytes(NONCE_SIZE // 2)
            self._used = 0
        self._used += count
        half = NONCE_SIZE // 2
        drawn = random_bytes(half * count)
        return self._prefix, [drawn[at : at + half] for at in range(0, half * count, half)]
