"""Opening a vault with any of its keys, and the key ring that the vault remembers.

Rules:

- The vault key itself, as bytes, opens a vault whatever its `keys` file says. Everybody else goes through a slot.
- A key file is a slot's, or holds the vault key itself: `strongroom seal` writes such a one.
- `meta` remembers the version of the `keys` file, so that the anchor covers it: an older one that was put back is
  refused, unless the anchor is not asked. A change is: remember what is on the disk -> commit -> save the new file ->
  remember it -> commit. After a crash between the last two the next one who writes remembers it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from strongroom.crypto import KEY_SIZE, random_key
from strongroom.errors import FormatError, TamperedError, UsageError, WrongKeyError
from strongroom.sealed import Root
from strongroom.storage import Directory, LocalDirectory
from strongroom.vault.keys import KEYS, AgeRecipient, Holder, KeyFile, KeyRing, Passphrase, Secret, SourceKey

if TYPE_CHECKING:
    from strongroom.vault.vault import Vault

VaultKey = bytes | Secret | Holder
"""What a vault is opened with, or made for."""

_REMEMBERED: Final = "keys"
_META: Final = "meta"


@dataclass(frozen=True, slots=True, repr=False)
class Unlocked:
    """A vault key, and the authenticated key ring that it came from, if it came from one."""

    key: bytes
    ring: KeyRing | None


def find_key(directory: Directory, key: VaultKey, *, new: bool) -> Unlocked:
    """As `enroll` for a new vault, else as `unlock`; raises FormatError, FileNotFoundError if no vault is there."""
    if new:
        return enroll(directory, key)
    if isinstance(directory, LocalDirectory):
        if directory.path.is_file():
            raise FormatError(f"{directory.path}: is a file, not a vault", hint="open_sealed opens sealed files")
        if not (directory.path / _META).exists():
            raise FileNotFoundError(f"{directory.path}: no vault is there")
    return unlock(directory, key)


def unlock(directory: Directory, key: VaultKey) -> Unlocked:
    """The vault key that `key` gives, or is.

    Raises:
        UsageError: the vault has no key slots, and `key` is not a key file; or `key` cannot open anything.
        WrongKeyError: it opens no slot.
        TamperedError, FormatError: the `keys` file was changed.
    """
    if isinstance(key, (bytes, bytearray, memoryview)):
        _check_size(key)
        return Unlocked(bytes(key), None)
    if isinstance(key, (AgeRecipient, SourceKey)):
        raise UsageError(
            f"key: {key!r} makes a slot, wanted what opens one", hint="give the age identity or key source"
        )
    ring = KeyRing.load(directory)
    if ring is None:
        if isinstance(key, KeyFile):
            return Unlocked(key._key, None)
        raise UsageError("key slots: the vault has none", hint="open it with its key file")
    try:
        return Unlocked(ring.unlock(key), ring)
    except WrongKeyError:
        if not isinstance(key, KeyFile):
            raise
    try:
        ring.authenticate(key._key)
    except WrongKeyError:
        # Neither a slot's nor the ring's. It may still be the vault's: a crash came between a new vault key and the end
        # of the old one's slots. If it is not, opening the vault says so.
        return Unlocked(key._key, None)
    return Unlocked(key._key, ring)


def enroll(directory: Directory, key: VaultKey) -> Unlocked:
    """The key of a new vault: `key` itself, or a random one and a `keys` file with a slot for `key`.

    Raises:
        UsageError: no slot can be made for `key`.
    """
    if isinstance(key, (bytes, bytearray, memoryview)):
        _check_size(key)
        return Unlocked(bytes(key), None)
    if isinstance(key, KeyFile):
        return Unlocked(key._key, None)
    if not isinstance(key, (Passphrase, AgeRecipient, SourceKey)):
        raise UsageError(f"key: {key!r} opens a slot, wanted what makes one", hint="give the age recipient")
    made = random_key()
    ring = KeyRing.create(made, key, label=key.kind, now=dt.datetime.now(dt.UTC))
    ring.save(directory)  # first: what is sealed under a key that nobody has is lost
    return Unlocked(made, ring)


def _check_size(key: bytes | bytearray | memoryview) -> None:
    if len(key) != KEY_SIZE:
        raise UsageError(f"sealing key: {len(key)} bytes, wanted {KEY_SIZE}")


def check_ring(vault: Vault, ring: KeyRing | None) -> None:
    """Compare an authentic ring with the version that the vault remembers; one who writes remembers a newer one.

    Raises:
        RollbackError: it is an older one.
    """
    if ring is None:
        return
    known = _remembered(vault)
    # A vault that remembers nothing has a first ring, or the commit after it has not happened.
    ring.check(known)
    if vault.mode != "r" and known != ring.version:
        _remember(vault, ring)


@contextlib.contextmanager
def changing_ring(vault: Vault) -> Iterator[KeyRing | None]:
    """The ring of a vault that is open to be written; at the end it is saved and remembered.

    None is given if there is no ring yet; `create_ring` makes one.

    Raises:
        RollbackError, TamperedError: the ring on the disk is not the one that the vault remembers.
        ConflictError: somebody else changed it.
    """
    ring = KeyRing.load(vault.directory)
    if ring is not None:
        try:
            ring.authenticate(vault._key)
        except WrongKeyError:
            raise TamperedError(
                f"{vault.name}: its keys file is another vault's", hint="restore it, or remove it and make new slots"
            ) from None
        check_ring(vault, ring)
    vault.commit()
    yield ring
    if ring is not None:
        _save(vault, ring)


def create_ring(vault: Vault, holder: Holder, *, label: str, now: dt.datetime) -> KeyRing:
    """Give a vault that has no key slots its first. Its vault key goes on to open it.

    Raises:
        UsageError: as `KeyRing.add`.
    """
    ring = KeyRing.create(vault._key, holder, label=label, now=now)
    _save(vault, ring)
    return ring


def rekey(vault: Vault, key: bytes, progress: Callable[[int], None] = lambda size: None) -> Root:
    """As `Vault.rekey`, and remove the `keys` file, whose slots hold the old key."""
    root = vault.rekey(key, progress)
    if KEYS not in vault.directory.list():
        return root
    vault.directory.unlink(KEYS)
    vault.directory.sync()
    _note(vault, b"")
    return vault.commit()


def _save(vault: Vault, ring: KeyRing) -> None:
    ring.save(vault.directory)
    _remember(vault, ring)
    vault.commit()


def _remembered(vault: Vault) -> Root | None:
    value = vault._state.info(_REMEMBERED)
    if value is None or value == b"":
        return None
    if not isinstance(value, bytes):
        raise FormatError("vault metadata: the version of the keys file is no text")
    return Root.parse(value.decode("ascii", "replace"))


def _remember(vault: Vault, ring: KeyRing) -> None:
    _note(vault, str(ring.version).encode())


def _note(vault: Vault, value: bytes) -> None:
    with vault._lock:
        vault._state.set_info(_REMEMBERED, value)


__all__ = ["KEYS", "Unlocked", "VaultKey", "changing_ring", "check_ring", "create_ring", "enroll", "rekey", "unlock"]
