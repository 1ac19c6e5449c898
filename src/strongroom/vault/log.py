"""The intent log: what fsync made durable since the last commit (normative: docs/spec/vault.md).

A record is ``length (u32) || lsn (u64) || nonce (24) || ciphertext || tag (16)``, sealed with the lsn and the tag of
the record before it as associated data: one chain for the vault's whole life. A commit says up to which (lsn, tag) it
has taken the records in, so that the file can be written from its start again and what is left of older records behind
them authenticates no more. A record is whole or nothing: recovery takes the longest valid prefix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from strongroom.crypto import NONCE_SIZE, TAG_SIZE, BlockCipher, derive
from strongroom.errors import FormatError, TamperedError
from strongroom.sealed.layout import NonceSource
from strongroom.storage import Storage

MAX_RECORD: Final = 4 << 20
NO_TAG: Final = bytes(TAG_SIZE)
_STEP: Final = 1 << 20  # the file grows by this much, so that an append changes no metadata of the host's file system
_HEAD = struct.Struct(f"<IQ{NONCE_SIZE}s")
_AAD = struct.Struct(f"<Q{TAG_SIZE}s")
_LABEL = b"strongroom/vault/v1/log\0"


def log_cipher(key: bytes, vault_id: bytes) -> BlockCipher:
    """The cipher of a vault's log records."""
    return BlockCipher(derive(key, "strongroom/vault/v1/log", context=vault_id))


class Log:
    """The log of one vault, from the position that `meta` has taken in.

    Args:
        storage: the file `log`.
        lsn, tag: of the last record that `meta` has taken in; 0 and zeros for none.
    """

    def __init__(self, storage: Storage, cipher: BlockCipher, vault_id: bytes, lsn: int, tag: bytes) -> None:
        self._storage = storage
        self._cipher = cipher
        self._aad = _LABEL + vault_id
        self._nonces = NonceSource()
        self.lsn = lsn
        self.tag = tag
        self.poisoned = False  # a sync failed: what the file holds is unknown
        self._end = 0
        self._size = storage.size()

    @property
    def length(self) -> int:
        """Bytes of records since the file was last started over."""
        return self._end

    def records(self) -> Iterator[bytes]:
        """The records that follow the position, as far as they are valid; moves the position to the last one.

        What is read is the host's: a changed record ends the list, as a torn one does, and the anchor notices.
        """
        at = 0
        size = self._storage.size()
        while at + _HEAD.size + TAG_SIZE <= size:
            head = bytearray(_HEAD.size)
            self._storage.read_into(at, head)
            length, lsn, nonce = _HEAD.unpack(head)
            if not TAG_SIZE <= length <= MAX_RECORD + TAG_SIZE or at + _HEAD.size + length > size:
                return
            if lsn > self.lsn + 1:
                return
            if lsn == self.lsn + 1:
                box = bytearray(length)
                if self._storage.read_into(at + _HEAD.size, box) != length:
                    return
                try:
                    plain = self._cipher.decrypt(nonce, box, self._aad + _AAD.pack(lsn, self.tag))
                except TamperedError:
                    return
                self.lsn, self.tag = lsn, bytes(box[-TAG_SIZE:])
                yield plain
            at += _HEAD.size + length
            self._end = at

    def append(self, plain: bytes) -> None:
        """Add a record and sync it.

        Raises:
            OSError: it may be in the log or not, if a sync failed; a full disk keeps it out.
        """
        if len(plain) > MAX_RECORD:
            raise FormatError(f"vault log: a record of {len(plain)} bytes, wanted at most {MAX_RECORD}")
        lsn = self.lsn + 1
        nonce = self._nonces.next()
        box = self._cipher.encrypt(nonce, plain, self._aad + _AAD.pack(lsn, self.tag))
        record = _HEAD.pack(len(box), lsn, nonce) + box
        while self._end + len(record) > self._size:
            # Written, not only extended: a hole would cost the host's journal at each sync.
            self._storage.write_at(self._size, bytes(_STEP))
            self._size += _STEP
        self._storage.write_at(self._end, record)
        self.poisoned = True
        self._storage.sync()
        self.poisoned = False
        self.lsn, self.tag = lsn, box[-TAG_SIZE:]
        self._end += len(record)

    def start_over(self) -> None:
        """Write the next record at the start of the file: a commit has taken in all there were."""
        self._end = 0

    def close(self) -> None:
        self._storage.close()
