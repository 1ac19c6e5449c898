"""The key ring: the slots of one vault, opened, changed and saved as a whole.

Rules:

- Whoever changes the ring has the vault key, and the ring as it was is authenticated first: a change never signs what
  somebody else slipped in.
- A file replaces another whole: written under a name of its own, synced, renamed, and the directory synced.
- No clock is read here; the time is an argument.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

from strongroom.crypto import KEY_SIZE, random_bytes
from strongroom.crypto.password import SALT_SIZE, PasswordCost
from strongroom.errors import ConflictError, FormatError, RollbackError, TamperedError, UsageError, WrongKeyError
from strongroom.sealed.anchor import Root
from strongroom.sealed.layout import CHANGED_HINT
from strongroom.storage import Directory
from strongroom.vault.keys.holders import AgeIdentity, Holder, KeyFile, Passphrase, Secret, enroll, recover
from strongroom.vault.keys.slots import (
    ID_SIZE,
    KEY_FILE,
    MAX_GENERATION,
    MAX_SIZE,
    MAX_SLOTS,
    PASSPHRASE,
    SOURCE,
    Document,
    Slot,
    label_problem,
    work_problem,
)

KEYS: Final = "keys"
_LEFT_OVER = re.compile(r"keys\.[0-9a-f]{16}\.new")
_SAID = {KEY_FILE: "key file", PASSPHRASE: "passphrase", "age": "age identity"}


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """What the `keys` file says of a slot in clear. Nothing of it is to be believed before `KeyRing.unlock`.

    Attributes:
        index: its place in `KeyRing.slots`, which moves when one before it is removed.
        kind: ``key-file``, ``passphrase``, ``age`` or ``source``.
        label: who holds it; no two slots have the same.
        created: in UTC, to the second.
        cost: of a passphrase.
        scheme: of a key source.
        data: of a key source: what it finds the slot's key by.
    """

    index: int
    kind: str
    label: str
    created: dt.datetime
    cost: PasswordCost | None
    scheme: str | None
    data: bytes = b""


class KeyRing:
    """A `keys` file in memory. `create` and `load` make one; changes count once `save` has returned.

    Not for use from several threads at once.
    """

    def __init__(self, document: Document, saved: Root | None) -> None:
        self._document = document
        self._saved = saved  # the version on the disk that this one came from
        self._authentic = False

    # Making and reading.

    @classmethod
    def create(cls, vault_key: bytes, holder: Holder, *, label: str, now: dt.datetime) -> KeyRing:
        """The ring of a vault that has none, with its first slot. `vault_key` may be one in use already.

        Raises:
            UsageError: as `add`; or `vault_key` is not 32 bytes.
        """
        if len(vault_key) != KEY_SIZE:
            raise UsageError(f"vault key: {len(vault_key)} bytes, wanted {KEY_SIZE}")
        ring = cls(Document.commit(vault_key, random_bytes(ID_SIZE), None, ()), None)
        ring.add(vault_key, holder, label=label, now=now)
        return ring

    @classmethod
    def load(cls, directory: Directory) -> KeyRing | None:
        """The ring in a vault's directory, or None if it has no `keys` file (its key is then the vault key itself).

        Raises:
            FormatError: the file is not one, or exceeds a bound. Nothing costly was done.
        """
        try:
            return cls.decode(_read(directory))
        except FileNotFoundError:
            return None

    @classmethod
    def decode(cls, data: bytes) -> KeyRing:
        """The ring in the bytes of a `keys` file. Raises FormatError."""
        document = Document.decode(data)
        return cls(document, document.version)

    def encode(self) -> bytes:
        """The bytes of the `keys` file."""
        return self._document.encode()

    # Looking.

    @property
    def slots(self) -> list[SlotInfo]:
        """What the file says in clear."""
        return [
            SlotInfo(index, slot.kind, slot.label, slot.created, slot.cost, slot.scheme or None, slot.data)
            for index, slot in enumerate(self._document.slots)
        ]

    @property
    def version(self) -> Root:
        """The generation and the digest of the file as it now is: for the vault to remember, and for `check`."""
        return self._document.version

    def __repr__(self) -> str:
        return f"KeyRing({len(self._document.slots)} slots, generation {self._document.generation})"

    # Opening.

    def unlock(self, secret: Secret) -> bytes:
        """The vault key. The whole ring is authenticated under it.

        Every slot of the secret's kind is tried until one is its own.

        Raises:
            WrongKeyError: none is. It names what was tried, and nothing of how near it came.
            TamperedError: the secret's slot, or any other part of the file, was changed.
            Exception: whatever a key source raises.
        """
        return self._open(secret)[1]

    def _open(self, secret: Secret) -> tuple[int, bytes]:
        tried = 0
        for index, slot in enumerate(self._document.slots):
            if not _fits(secret, slot):
                continue
            tried += 1
            vault_key = self._try(secret, slot)
            if vault_key is not None:
                try:
                    self.authenticate(vault_key)
                except WrongKeyError:
                    # The slot's own key was right; so the rest of the file is not what that slot was written with.
                    raise TamperedError("keys file: a slot wraps another vault key", hint=CHANGED_HINT) from None
                return index, vault_key
        name = _name(secret)
        kinds = ", ".join(sorted({slot.kind for slot in self._document.slots})) or "none"
        if not tried:
            raise WrongKeyError(f"{name}: the vault has no slot of that kind", hint=f"its slots are of: {kinds}")
        raise WrongKeyError(f"{name}: opens no slot of the vault ({tried} tried)")

    def _try(self, secret: Secret, slot: Slot) -> bytes | None:
        try:
            slot_key = recover(secret, slot)
        except WrongKeyError:
            return None
        return None if slot_key is None else slot.unwrap(self._document.ring_id, slot_key)

    def authenticate(self, vault_key: bytes) -> None:
        """Check the ring against a vault key that the caller has by itself.

        Raises:
            WrongKeyError: the ring is another vault's.
            TamperedError: it was changed.
        """
        self._document.authenticate(vault_key)
        self._authentic = True

    def check(self, expected: Root | None) -> None:
        """Check that the ring is the one that the vault remembers, or the one saved right after it.

        The latter is what a crash between saving the ring and remembering it leaves; the vault then remembers
        `version`, before it saves another one.

        Args:
            expected: the `version` remembered last, in a place as fresh as the vault's anchor; None if there was none.

        Raises:
            RollbackError: it is neither: an older one, or one of another history.
        """
        if not self._authentic:
            raise UsageError("keys file: checked before it was unlocked")
        if self.version == expected or self._document.previous == expected:
            return
        raise RollbackError(
            f"keys file: generation {self._document.generation}, wanted {expected.sequence if expected else 1} or the "
            "one after it",
            hint="an old or foreign keys file was put back; restore the vault and its keys file together",
        )

    # Changing.

    def add(self, vault_key: bytes, holder: Holder, *, label: str, now: dt.datetime) -> None:
        """Make a slot for `holder`.

        Args:
            label: who that is; 1 to 100 bytes, printable. It stands in the file in clear, for all who can read it.
            now: the time, with a time zone.

        Raises:
            UsageError: there are 16 slots already, the label cannot be one or is taken, or the passphrases together
                would cost too much to try.
            WrongKeyError, TamperedError: as `authenticate`.
        """
        self.authenticate(vault_key)
        slots = self._document.slots
        if len(slots) >= MAX_SLOTS:
            raise UsageError(f"key slots: {len(slots)} are taken, there are no more", hint="remove one first")
        self._check_label(label, slots)
        self._replace(vault_key, (*slots, self._make(vault_key, holder, label, now)))

    def remove(self, vault_key: bytes, which: int | str, *, force: bool = False) -> None:
        """Take a slot away. This keeps nobody out who has the vault key or an old copy of the file.

        Args:
            which: the slot's index or label.
            force: remove the last one too. Only the vault key itself then opens the vault.

        Raises:
            UsageError: there is no such slot, or it is the last.
            WrongKeyError, TamperedError: as `authenticate`.
        """
        self.authenticate(vault_key)
        slots = list(self._document.slots)
        index = self._find(which)
        if len(slots) == 1 and not force:
            raise UsageError(
                "key slot: is the last; without it only who has the vault key itself opens the vault",
                hint="add another one first; --force removes it, where a key file holds the vault key",
            )
        del slots[index]
        self._replace(vault_key, tuple(slots))

    def rotate(self, old: Secret, new: Holder, *, now: dt.datetime, label: str | None = None) -> None:
        """Put a slot for `new` in the place of the one that `old` opens, under its label unless another is given.

        The old slot's copies still open with `old`, and give the same vault key.

        Raises:
            WrongKeyError, TamperedError: as `unlock` with `old`.
            UsageError: as `add`.
        """
        index, vault_key = self._open(old)
        slots = list(self._document.slots)
        before = slots.pop(index)
        if label is not None:
            self._check_label(label, tuple(slots))
        slots.insert(index, self._make(vault_key, new, before.label if label is None else label, now))
        self._replace(vault_key, tuple(slots))

    def _make(self, vault_key: bytes, holder: Holder, label: str, now: dt.datetime) -> Slot:
        if now.tzinfo is None:
            raise UsageError("time: without a time zone")
        created = now.astimezone(dt.UTC).replace(microsecond=0)
        salt = random_bytes(SALT_SIZE)
        slot_key, particulars = enroll(holder, salt)
        slot = Slot(kind=holder.kind, label=label, created=created, salt=salt, **particulars)
        return slot.wrap(self._document.ring_id, slot_key, vault_key)

    def _check_label(self, label: str, others: tuple[Slot, ...]) -> None:
        if problem := label_problem(label):
            raise UsageError(f"label: {problem}")
        if any(slot.label == label for slot in others):
            raise UsageError(f"label: {label}: another slot has it")

    def _find(self, which: int | str) -> int:
        for index, slot in enumerate(self._document.slots):
            if which == (index if isinstance(which, int) else slot.label):
                return index
        raise UsageError(f"key slot: there is none {which!a}")

    def _replace(self, vault_key: bytes, slots: tuple[Slot, ...]) -> None:
        if problem := work_problem(slots):
            raise UsageError(problem, hint="make passphrases cheaper, or fewer")
        if self._saved and self._saved.sequence >= MAX_GENERATION:
            raise UsageError("keys file: has no generation left")
        # However many changes there are between two saves, they are one generation.
        self._document = Document.commit(vault_key, self._document.ring_id, self._saved, slots)

    # Saving.

    def save(self, directory: Directory) -> None:
        """Make this the vault's `keys` file, durably and atomically: a crash leaves the old one or this one.

        The caller holds the vault's lock for writers, and has had the vault remember the version before this one.

        Raises:
            ConflictError: the file on the disk is not the one that this ring came from.
            OSError: the disk failed. Either version may be there; the same call can be made again.
        """
        try:
            there = _version(_read(directory))
        except FileNotFoundError:
            there = None
        if there not in (self._saved, self.version):
            raise ConflictError("keys file: somebody else changed it", hint="load it again and repeat the change")
        if there != self.version:
            name = f"keys.{random_bytes(8).hex()}.new"
            file = directory.open(name, "x")
            try:
                file.write_at(0, self.encode())
                file.sync()
            finally:
                file.close()
            directory.rename(name, KEYS)
        # Even if it is there already: perhaps this is the second attempt, and its name was never synced.
        directory.sync()
        self._saved = self.version
        _clean(directory)


def _read(directory: Directory) -> bytes:
    file = directory.open(KEYS, "r")
    try:
        # One byte more than allowed, whatever the host says of the size: it may change it meanwhile.
        buffer = bytearray(MAX_SIZE + 1)
        count = file.read_into(0, buffer)
    finally:
        file.close()
    if count > MAX_SIZE:
        raise FormatError(f"keys file: more than {MAX_SIZE} bytes")
    return bytes(buffer[:count])


def _version(data: bytes) -> Root:
    return Document.decode(data).version


def _clean(directory: Directory) -> None:
    for name in directory.list():
        if _LEFT_OVER.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                directory.unlink(name)


def _fits(secret: Secret, slot: Slot) -> bool:
    if isinstance(secret, (KeyFile, Passphrase, AgeIdentity)):
        return slot.kind == secret.kind
    return slot.kind == SOURCE and slot.scheme == secret.scheme


def _name(secret: Secret) -> str:
    if isinstance(secret, (KeyFile, Passphrase, AgeIdentity)):
        return _SAID[secret.kind]
    return f"key source {secret.scheme}"
