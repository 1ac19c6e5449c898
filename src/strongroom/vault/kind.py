"""The two kinds of vault: encrypted, and authenticated only (normative: docs/spec/vault.md).

The kind is in no field that anybody could change. `meta` and the log of a vault that is authenticated only are sealed
under another key than the vault key, which is derived from it: so whoever opens such a vault as an encrypted one has
the wrong key, and the other way round.
"""

from __future__ import annotations

from typing import Final

from strongroom.crypto import derive
from strongroom.errors import FormatError
from strongroom.sealed.layout import SLOT_SIZE, SLOTS_SIZE, parse_header
from strongroom.storage import Directory

_LABEL: Final = "strongroom/vault/v1/authenticated-only"


def meta_key(key: bytes, *, encrypted: bool) -> bytes:
    """The key of `meta` and of the log, for a vault key."""
    return key if encrypted else derive(key, _LABEL)


def is_kind(directory: Directory, name: str, key: bytes, *, encrypted: bool) -> bool:
    """Whether a slot of `meta`, which has that name, says that it is of this vault key and kind."""
    wanted = meta_key(key, encrypted=encrypted)
    slots = bytearray(SLOTS_SIZE)
    storage = directory.open(name, "r", shared=True)
    try:
        storage.read_into(0, slots)
    finally:
        storage.close()
    for at in range(0, SLOTS_SIZE, SLOT_SIZE):
        try:
            header = parse_header(bytes(slots[at : at + SLOT_SIZE]))
        except FormatError:
            continue
        if header is not None and header.check_key(wanted):
            return True
    return False


def shown(*, encrypted: bool) -> str:
    """The kind, in words."""
    return "encrypted" if encrypted else "authenticated only"
