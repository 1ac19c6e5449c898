"""Packs: many small contents in one data file, each sealed as one piece of its true length."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from strongroom.crypto import TAG_SIZE, BlockCipher, derive, random_key
from strongroom.errors import TamperedError, TruncatedError
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, NonceSource
from strongroom.storage import Directory, Storage
from strongroom.vault.rows import Packed

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

MAX_PACK: Final = 16 << 20
_OPEN_PACKS: Final = 16
_LABEL = b"strongroom/vault/v1/piece\0"
_CLEAR_LABEL = b"strongroom/vault/v1/clear-piece\0"


def pack_cipher(key: bytes, pack: bytes) -> BlockCipher:
    """The cipher of a pack's pieces."""
    return BlockCipher(derive(key, "strongroom/vault/v1/pack", context=pack))


class PackWriter:
    """A pack that this process made and appends to. What is in it is never overwritten."""

    def __init__(self, storage: Storage, pack: bytes, *, encrypted: bool) -> None:
        self.id = pack
        self.key = random_key()
        self.size = 0
        self.synced = True
        self._storage = storage
        self._encrypted = encrypted
        self._cipher = pack_cipher(self.key, pack)
        self._nonces = NonceSource()

    @property
    def full(self) -> bool:
        return self.size >= MAX_PACK

    def append(self, data: Buffer) -> Packed:
        """Seal a piece; it is durable after the next `sync`."""
        nonce = self._nonces.next()
        if self._encrypted:
            box = self._cipher.encrypt(nonce, data, _LABEL + self.id)
            written: Buffer = memoryview(box)[:-TAG_SIZE]
        else:
            written = bytes(data)
            box = self._cipher.encrypt(nonce, b"", _CLEAR_LABEL + self.id + written)
        self._storage.write_at(self.size, written)
        piece = Packed(self.id, self.size, nonce, box[-TAG_SIZE:])
        self.size += memoryview(written).nbytes
        self.synced = False
        return piece

    def sync(self) -> None:
        if not self.synced:
            self._storage.sync()
            self.synced = True

    def close(self) -> None:
        self._storage.close()


class PackReader:
    """Reads pieces, keeping a few packs open."""

    def __init__(self, directory: Directory, what: str, *, encrypted: bool) -> None:
        self._directory = directory
        self._what = what
        self._encrypted = encrypted
        self._open: OrderedDict[bytes, tuple[Storage, BlockCipher]] = OrderedDict()

    def read(self, piece: Packed, size: int, key: bytes) -> bytearray:
        """The content of a piece.

        Raises:
            TamperedError, TruncatedError: it is not what was committed.
        """
        found = self._open.get(piece.pack)
        if found is None:
            try:
                storage = self._directory.open(piece.pack.hex(), "r", shared=True)
            except FileNotFoundError:
                raise missing(self._what, piece.pack) from None
            found = self._open[piece.pack] = storage, pack_cipher(key, piece.pack)
            if len(self._open) > _OPEN_PACKS:
                self._open.popitem(last=False)[1][0].close()
        else:
            self._open.move_to_end(piece.pack)
        storage, cipher = found
        there = storage.size() >= piece.offset + size  # first: no row makes anybody allocate more than there is
        head = b"" if self._encrypted else _CLEAR_LABEL + piece.pack
        box = bytearray(head + bytes(size + TAG_SIZE) if there else b"")
        if not there or storage.read_into(piece.offset, memoryview(box)[len(head) : len(head) + size]) != size:
            raise TruncatedError(f"{self._what}: data file {piece.pack.hex()} is too short", hint=CUT_HINT)
        try:
            return self._open_piece(cipher, piece, box, size)
        except TamperedError:
            raise TamperedError(
                f"{self._what}: data file {piece.pack.hex()}: authentication failed at byte {piece.offset}",
                hint=CHANGED_HINT,
            ) from None

    def _open_piece(self, cipher: BlockCipher, piece: Packed, box: bytearray, size: int) -> bytearray:
        """The content of what was read into `box`: private memory, that the host cannot change any more."""
        if self._encrypted:
            content = bytearray(size)
            box[size:] = piece.tag
            cipher.decrypt_into(piece.nonce, box, _LABEL + piece.pack, content)
            return content
        del box[-TAG_SIZE:]  # it is associated data as a whole
        cipher.decrypt_into(piece.nonce, piece.tag, box, bytearray())
        return box[len(_CLEAR_LABEL) + len(piece.pack) :]

    def forget(self, pack: bytes) -> None:
        """Close a pack that is dead."""
        if found := self._open.pop(pack, None):
            found[0].close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][0].close()


def missing(what: str, file: bytes) -> TamperedError:
    return TamperedError(
        f"{what}: its data file {file.hex()} is missing",
        hint="deleted, or removed by a later commit: open the vault again",
    )
