"""Who can hold a vault's key, and with what they open it.

==============  =====================  ======================
slot            made for a *holder*    opened with a *secret*
==============  =====================  ======================
``key-file``    `KeyFile`              `KeyFile`
``passphrase``  `Passphrase`           `Passphrase`
``age``         `AgeRecipient`         `AgeIdentity`
``source``      `SourceKey`            a `KeySource`
==============  =====================  ======================

Each comes down to one 32-byte **slot key**, under which the slot wraps the vault key in the same way for all kinds.
No secret appears in `repr` or in an exception.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict

from strongroom.crypto import KEY_SIZE, random_key
from strongroom.crypto.password import DEFAULT_COST, PasswordCost, password_key
from strongroom.errors import FormatError, MissingDependencyError, TamperedError, UsageError
from strongroom.sealed import keyfile
from strongroom.vault.keys.slots import AGE, KEY_FILE, MAX_DATA, MAX_STANZA, PASSPHRASE, SCHEME, SOURCE, Slot

MAX_PASSPHRASE: Final = 1024
_MAX_IDENTITY_FILE = 64 << 10
_MAX_IDENTITIES = 16


class KeyFile:
    """A key file (`strongroom.sealed.create_key` makes one); its key becomes the slot key."""

    kind: Final = KEY_FILE

    def __init__(self, key: bytes) -> None:
        """Raises UsageError if `key` is not 32 bytes."""
        if len(key) != KEY_SIZE:
            raise UsageError(f"key: {len(key)} bytes, wanted {KEY_SIZE}")
        self._key = bytes(key)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyFile:
        """Raises OSError as `open` does, and FormatError if the file holds no key."""
        return cls(keyfile.load_key(path))

    def __repr__(self) -> str:
        return "KeyFile(<key>)"


class Passphrase:
    """What somebody remembers; its slot key is Argon2id of it. `read_passphrase` asks for one.

    It is taken in Unicode's normalization form C, as UTF-8, so that it does not matter how a keyboard composes an
    accent. Nothing else is changed: case and spaces count.

    Args:
        text: 1 to 1024 bytes, without control characters, surrogates and characters that this Python's Unicode does not
            know yet (whose normalization might still change).
        cost: of a slot that is made for it. To open, the slot says its own.

    Raises:
        UsageError: it cannot be one. The message holds nothing of it.
    """

    kind: Final = PASSPHRASE

    def __init__(self, text: str, *, cost: PasswordCost = DEFAULT_COST) -> None:
        if not text:
            raise UsageError("passphrase: is empty")
        if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in text):
            raise UsageError("passphrase: holds a control character, or one that is none in Unicode")
        self._utf8 = unicodedata.normalize("NFC", text).encode()
        if len(self._utf8) > MAX_PASSPHRASE:
            raise UsageError(f"passphrase: {len(self._utf8)} bytes, wanted at most {MAX_PASSPHRASE}")
        self.cost = cost

    def __repr__(self) -> str:
        return "Passphrase(<secret>)"


class AgeRecipient:
    """An X25519 recipient of age (https://age-encryption.org), to make a slot for: ``age1...``.

    Whoever knows a recipient can make slots for it, in a vault of their own too: see docs/spec/vault-keys.md.

    Raises:
        UsageError: `text` is none.
        MissingDependencyError: pyrage is not installed.
    """

    kind: Final = AGE

    def __init__(self, text: str) -> None:
        pyrage = _pyrage()
        try:
            self._recipient = pyrage.x25519.Recipient.from_str(text)
        except pyrage.RecipientError:
            raise UsageError("age recipient: wanted age1 and 58 more characters (X25519)") from None

    def __str__(self) -> str:
        return str(self._recipient)

    def __repr__(self) -> str:
        return f"AgeRecipient({self})"


class AgeIdentity:
    """X25519 identities of age, to open with.

    Args:
        text: the content of an identity file as age-keygen writes it: 1 to 16 lines ``AGE-SECRET-KEY-1...``; lines that
            start with ``#`` and empty ones are comments. One that is itself encrypted must be decrypted first.

    Raises:
        FormatError: it is not that. The message holds nothing of it.
        MissingDependencyError: pyrage is not installed.
    """

    kind: Final = AGE

    def __init__(self, text: str) -> None:
        pyrage = _pyrage()
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not 1 <= len(lines) <= _MAX_IDENTITIES:
            raise FormatError(f"age identity: {len(lines)} lines that are no comment, wanted 1 to {_MAX_IDENTITIES}")
        try:
            self._identities = [pyrage.x25519.Identity.from_str(line) for line in lines]
        except pyrage.IdentityError:
            raise FormatError(
                "age identity: another kind of line, wanted AGE-SECRET-KEY-1 and 58 more characters",
                hint="decrypt the identity file first if it is encrypted",
            ) from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AgeIdentity:
        """Those in a file. Raises OSError as `open` does."""
        with Path(path).open("rb") as file:
            data = file.read(_MAX_IDENTITY_FILE + 1)
        if len(data) > _MAX_IDENTITY_FILE:
            raise FormatError(f"age identity file {path}: more than {_MAX_IDENTITY_FILE} bytes")
        # What is not ASCII can only be in comments; elsewhere the replacement is refused.
        return cls(data.decode("ascii", "replace"))

    def __repr__(self) -> str:
        return f"AgeIdentity(<{len(self._identities)}>)"


class SourceKey:
    """A slot key that something else keeps, to make a slot for: a CAS, a smart card, a key service.

    Args:
        scheme: the kind of source: lower-case letters, digits and hyphens, at most 32.
        data: at most 1024 bytes that the source needs to find the key again. They stand in the `keys` file in clear.
        key: 32 random bytes, used for this slot only.

    Raises:
        UsageError: an argument is not as described.
    """

    kind: Final = SOURCE

    def __init__(self, scheme: str, data: bytes, key: bytes) -> None:
        if not SCHEME.fullmatch(scheme):
            raise UsageError(f"key source: {scheme[:40]!a}, wanted a lower-case word of at most 32 characters")
        if len(data) > MAX_DATA:
            raise UsageError(f"key source {scheme}: {len(data)} bytes of data, wanted at most {MAX_DATA}")
        if len(key) != KEY_SIZE:
            raise UsageError(f"key source {scheme}: key: {len(key)} bytes, wanted {KEY_SIZE}")
        self.scheme = scheme
        self.data = bytes(data)
        self._key = bytes(key)

    def __repr__(self) -> str:
        return f"SourceKey({self.scheme}, <key>)"


class KeySource(Protocol):
    """What can fetch the slot keys of `SourceKey` slots of its `scheme`."""

    @property
    def scheme(self) -> str:
        """As in `SourceKey`."""

    def unwrap(self, data: bytes) -> bytes:
        """The 32-byte slot key that `data`, of a slot of this scheme, leads to.

        `data` is not authenticated yet: whoever holds the disk may have written it. So a source knows by itself whom it
        talks to; `data` must not choose that.

        Raises:
            WrongKeyError: this source has no key for it; the next slot is tried. Any other exception ends the attempt.
        """


Holder = KeyFile | Passphrase | AgeRecipient | SourceKey
"""For whom a slot is made."""
Secret = KeyFile | Passphrase | AgeIdentity | KeySource
"""With what a slot is opened."""


class Particulars(TypedDict, total=False):
    """The attributes of a `Slot` that depend on its kind."""

    cost: PasswordCost
    stanza: bytes
    scheme: str
    data: bytes


def enroll(holder: Holder, salt: bytes) -> tuple[bytes, Particulars]:
    """The slot key of a new slot for `holder`, and what the slot says in clear so that it can be found again."""
    if isinstance(holder, KeyFile):
        return holder._key, {}
    if isinstance(holder, Passphrase):
        return password_key(holder._utf8, salt, holder.cost), {"cost": holder.cost}
    if isinstance(holder, SourceKey):
        return holder._key, {"scheme": holder.scheme, "data": holder.data}
    key = random_key()
    stanza: bytes = _pyrage().encrypt(key, [holder._recipient])
    if len(stanza) > MAX_STANZA:
        raise RuntimeError(f"age file: {len(stanza)} bytes, wanted at most {MAX_STANZA}")
    return key, {"stanza": stanza}


def recover(secret: Secret, slot: Slot) -> bytes | None:
    """The slot key that `secret` has for `slot`, which is of its kind; None if it certainly has none.

    Raises:
        TamperedError: it has something that is no key.
        WrongKeyError: a key source has none.
    """
    if isinstance(secret, KeyFile):
        return secret._key
    if isinstance(secret, Passphrase):
        if slot.cost is None:
            return None
        return password_key(secret._utf8, slot.salt, slot.cost)
    if isinstance(secret, AgeIdentity):
        return _open_stanza(secret, slot.stanza)
    key = secret.unwrap(slot.data)
    if len(key) != KEY_SIZE:
        raise TamperedError(f"key source {secret.scheme}: {len(key)} bytes, wanted {KEY_SIZE}")
    return key


def _open_stanza(identity: AgeIdentity, stanza: bytes) -> bytes | None:
    pyrage = _pyrage()
    try:
        key: bytes = pyrage.decrypt(stanza, identity._identities)
    except pyrage.DecryptError:
        return None
    if len(key) != KEY_SIZE:
        raise TamperedError(f"keys file: an age slot holds {len(key)} bytes, wanted {KEY_SIZE}")
    return key


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError:
        raise MissingDependencyError(
            "age: python package pyrage is missing", hint="pip install 'strongroom[age]'"
        ) from None
    return pyrage
