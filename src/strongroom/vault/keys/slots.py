"""The bytes of a `keys` file (normative: docs/spec/vault-keys.md). Pure: nothing here reads, writes or asks.

Rules:

- The file has one spelling: what parses encodes to the very bytes it was parsed from.
- A slot opens under one secret only: its commitment is checked before anything is decrypted, since AES-GCM commits to
  no key. The file as a whole commits to one vault key likewise.
- Nothing in the file is to be believed before `Document.authenticate`, save that it keeps the bounds checked here.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from strongroom.crypto import KEY_SIZE, NONCE_SIZE, TAG_SIZE, derive, digest, equal, open_box, seal_box
from strongroom.crypto.encoding import base64_bytes
from strongroom.crypto.password import SALT_SIZE, PasswordCost
from strongroom.errors import FormatError, TamperedError, UsageError, WrongKeyError
from strongroom.sealed.anchor import DIGEST_SIZE, Root
from strongroom.sealed.layout import CHANGED_HINT

VERSION: Final = 0
MAX_SIZE: Final = 64 << 10
MAX_SLOTS: Final = 16
MAX_LABEL: Final = 100
MAX_STANZA: Final = 1024
MAX_DATA: Final = 1024
MAX_WORK: Final = 8 << 20  # KiB times passes of all passphrase slots together
MAX_GENERATION: Final = (1 << 53) - 1
ID_SIZE: Final = 16
SCHEME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")

KEY_FILE: Final = "key-file"
PASSPHRASE: Final = "passphrase"  # noqa: S105  # the name of a kind
AGE: Final = "age"
SOURCE: Final = "source"

_BOX_SIZE = NONCE_SIZE + KEY_SIZE + TAG_SIZE
_FORMAT = "strongroom-keys"
_MEMBERS = {"commitment", "format", "generation", "id", "mac", "previous", "slots", "version"}
_SLOT_MEMBERS = {"box", "commitment", "created", "kind", "label", "salt"}
_KIND_MEMBERS = {
    KEY_FILE: set[str](),
    PASSPHRASE: {"lanes", "memory", "passes"},
    AGE: {"age"},
    SOURCE: {"data", "scheme"},
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)

_LABEL = "strongroom/keys/v0/"
_SLOT_AAD = b"strongroom/keys/v0/slot\0"
_DIGEST_LABEL = b"strongroom/keys/v0/digest\0"


@dataclass(frozen=True, slots=True)
class Slot:
    """The vault key, wrapped for one holder.

    Attributes:
        salt: 16 bytes drawn anew whenever a slot is made.
        commitment, box: bind the slot to its holder's key, and wrap the vault key under it; empty until `wrap`.
        cost: of a passphrase.
        stanza: an age file that holds the slot's key.
        scheme, data: the kind of key source, and what it wants to be reminded of.
    """

    kind: str
    label: str
    created: dt.datetime
    salt: bytes = field(repr=False)
    cost: PasswordCost | None = None
    stanza: bytes = field(default=b"", repr=False)
    scheme: str = ""
    data: bytes = field(default=b"", repr=False)
    commitment: bytes = field(default=b"", repr=False)
    box: bytes = field(default=b"", repr=False)

    def wrap(self, ring_id: bytes, slot_key: bytes, vault_key: bytes) -> Slot:
        """This slot, holding `vault_key` for whoever has `slot_key`."""
        committed = dataclasses.replace(self, commitment=_derive(slot_key, "slot-commitment", ring_id + self.salt))
        wrapping = _derive(slot_key, "slot-wrap", ring_id + self.salt)
        return dataclasses.replace(committed, box=seal_box(wrapping, vault_key, committed._aad(ring_id)))

    def unwrap(self, ring_id: bytes, slot_key: bytes) -> bytes | None:
        """The vault key, or None if the slot is another holder's.

        Raises:
            TamperedError: the slot is that holder's, and was changed.
        """
        if not equal(self.commitment, _derive(slot_key, "slot-commitment", ring_id + self.salt)):
            return None
        wrapping = _derive(slot_key, "slot-wrap", ring_id + self.salt)
        try:
            return open_box(wrapping, self.box, self._aad(ring_id))
        except TamperedError:
            raise TamperedError("keys file: a slot was changed", hint=CHANGED_HINT) from None

    def _aad(self, ring_id: bytes) -> bytes:
        members = self.members()
        del members["box"]
        return _SLOT_AAD + ring_id + _canonical(members)

    def members(self) -> dict[str, object]:
        """The slot as the JSON object that it is in the file."""
        members: dict[str, object] = {
            "box": _base64(self.box),
            "commitment": _base64(self.commitment),
            "created": self.created.replace(tzinfo=None).isoformat() + "Z",
            "kind": self.kind,
            "label": self.label,
            "salt": _base64(self.salt),
        }
        if self.cost:
            members |= {"lanes": self.cost.lanes, "memory": self.cost.memory, "passes": self.cost.passes}
        elif self.kind == AGE:
            members |= {"age": _base64(self.stanza)}
        elif self.kind == SOURCE:
            members |= {"data": _base64(self.data), "scheme": self.scheme}
        return members


@dataclass(frozen=True, slots=True)
class Document:
    """A whole `keys` file.

    Attributes:
        ring_id: 16 bytes drawn when the first slot was made.
        commitment: binds the file to one vault key.
        previous: the version that this one replaces; None in generation 1.
        mac: over all of the rest, under the vault key.
    """

    ring_id: bytes
    commitment: bytes = field(repr=False)
    generation: int
    previous: Root | None
    slots: tuple[Slot, ...]
    mac: bytes = field(default=b"", repr=False)

    @classmethod
    def commit(cls, vault_key: bytes, ring_id: bytes, previous: Root | None, slots: tuple[Slot, ...]) -> Document:
        """The authenticated version after `previous`."""
        generation = previous.sequence + 1 if previous else 1
        bare = cls(ring_id, _derive(vault_key, "vault-key", ring_id), generation, previous, slots)
        return dataclasses.replace(bare, mac=bare._mac(vault_key))

    def authenticate(self, vault_key: bytes) -> None:
        """Check that a holder of `vault_key` wrote this file, all of it.

        Raises:
            WrongKeyError: `vault_key` is not the one that this file wraps.
            TamperedError: it is, and the file was changed.
        """
        if not equal(self.commitment, _derive(vault_key, "vault-key", self.ring_id)):
            raise WrongKeyError("keys file: wraps another vault key", hint="is it the keys file of this vault?")
        if not equal(self.mac, self._mac(vault_key)):
            raise TamperedError("keys file: authentication failed", hint=CHANGED_HINT)

    def _mac(self, vault_key: bytes) -> bytes:
        members = self._members()
        del members["mac"]
        return _derive(vault_key, "mac", self.ring_id + digest(_canonical(members)))

    def _members(self) -> dict[str, object]:
        return {
            "commitment": _base64(self.commitment),
            "format": _FORMAT,
            "generation": self.generation,
            "id": self.ring_id.hex(),
            "mac": _base64(self.mac),
            "previous": str(self.previous) if self.previous else "",
            "slots": [slot.members() for slot in self.slots],
            "version": VERSION,
        }

    def encode(self) -> bytes:
        """The bytes of the file: canonical JSON (members sorted, no white space, ASCII)."""
        return _canonical(self._members())

    @classmethod
    def decode(cls, data: bytes) -> Document:
        """The document that `encode` gives `data` for.

        Raises:
            FormatError: there is none, or it exceeds a bound.
        """
        if len(data) > MAX_SIZE:
            raise FormatError(f"keys file: more than {MAX_SIZE} bytes")
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            raise FormatError("keys file: not JSON") from None
        if not isinstance(parsed, dict) or parsed.get("format") != _FORMAT:
            raise FormatError(f"keys file: wanted an object whose format is {_FORMAT}")
        if type(parsed.get("version")) is not int or parsed["version"] != VERSION:
            raise FormatError(f"keys file: version: wanted {VERSION}", hint="a newer strongroom may read it")
        if parsed.keys() != _MEMBERS:
            raise FormatError(f"keys file: wanted an object of {', '.join(sorted(_MEMBERS))}")
        slots = parsed["slots"]
        if not isinstance(slots, list) or len(slots) > MAX_SLOTS:
            raise FormatError(f"keys file: slots: wanted an array of at most {MAX_SLOTS}")
        before = _string("previous", parsed["previous"])
        document = cls(
            _ring_id(_string("id", parsed["id"])),
            _binary("commitment", parsed["commitment"], KEY_SIZE, KEY_SIZE),
            _number("generation", parsed["generation"]),
            Root.parse(before) if before else None,
            tuple(_parse_slot(f"slot {index}", slot) for index, slot in enumerate(slots)),
            _binary("mac", parsed["mac"], DIGEST_SIZE, DIGEST_SIZE),
        )
        if document.generation != (document.previous.sequence + 1 if document.previous else 1):
            raise FormatError("keys file: generation: wanted the one after the previous")
        if problem := work_problem(document.slots):
            raise FormatError(f"keys file: {problem}")
        if len({slot.label for slot in document.slots}) != len(slots):
            raise FormatError("keys file: two slots have one label")
        # Canonical bytes have one reading: no member twice, no second spelling of a number or a string.
        if document.encode() != data:
            raise FormatError("keys file: not canonical JSON")
        return document

    @property
    def version(self) -> Root:
        """The generation, and the digest of the whole file."""
        return Root(self.generation, digest(_DIGEST_LABEL, self.encode()))


def label_problem(label: str) -> str | None:
    """What keeps `label` from being one: a line in clear, for terminals and logs."""
    if not label.isprintable() or not label:
        return "wanted printable characters"
    if len(label.encode()) > MAX_LABEL:
        return f"{len(label.encode())} bytes, wanted at most {MAX_LABEL}"
    return None


def work_problem(slots: tuple[Slot, ...]) -> str | None:
    """What trying a passphrase on all `slots` would cost too much, if it would."""
    work = sum(slot.cost.work for slot in slots if slot.cost)
    if work > MAX_WORK:
        return f"Argon2id memory times passes of all slots: {work}, wanted at most {MAX_WORK}"
    return None


def _parse_slot(where: str, fields: Any) -> Slot:
    if not isinstance(fields, dict):
        raise FormatError(f"keys file: {where}: wanted an object")
    kind = fields.get("kind")
    extra = _KIND_MEMBERS.get(kind) if isinstance(kind, str) else None
    if extra is None:
        raise FormatError(f"keys file: {where}: another kind of slot", hint="a newer strongroom may read it")
    if fields.keys() != _SLOT_MEMBERS | extra:
        raise FormatError(f"keys file: {where}: wanted an object of {', '.join(sorted(_SLOT_MEMBERS | extra))}")
    label = _string(f"{where}: label", fields["label"])
    if problem := label_problem(label):
        raise FormatError(f"keys file: {where}: label: {problem}")
    scheme = _string(f"{where}: scheme", fields.get("scheme", ""))
    if kind == SOURCE and not SCHEME.fullmatch(scheme):
        raise FormatError(f"keys file: {where}: scheme: wanted a lower-case word")
    cost = None
    if kind == PASSPHRASE:
        try:
            cost = PasswordCost(*(_number(f"{where}: {name}", fields[name]) for name in ("memory", "passes", "lanes")))
        except UsageError as error:
            raise FormatError(f"keys file: {where}: {error.message}") from None
    return Slot(
        kind=str(kind),
        label=label,
        created=_time(f"{where}: created", fields["created"]),
        salt=_binary(f"{where}: salt", fields["salt"], SALT_SIZE, SALT_SIZE),
        cost=cost,
        stanza=_binary(f"{where}: age", fields["age"], 1, MAX_STANZA) if kind == AGE else b"",
        scheme=scheme,
        data=_binary(f"{where}: data", fields["data"], 0, MAX_DATA) if kind == SOURCE else b"",
        commitment=_binary(f"{where}: commitment", fields["commitment"], KEY_SIZE, KEY_SIZE),
        box=_binary(f"{where}: box", fields["box"], _BOX_SIZE, _BOX_SIZE),
    )


def _derive(key: bytes, what: str, context: bytes) -> bytes:
    return derive(key, _LABEL + what, context=context)


def _canonical(members: dict[str, object]) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":")).encode("ascii")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _string(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise FormatError(f"keys file: {where}: wanted a string")
    return value


def _number(where: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_GENERATION:
        raise FormatError(f"keys file: {where}: wanted a whole number from 1 to {MAX_GENERATION}")
    return value


def _binary(where: str, value: object, least: int, most: int) -> bytes:
    try:
        data = base64_bytes(_string(where, value))
    except ValueError:
        raise FormatError(f"keys file: {where}: wanted base64") from None
    if not least <= len(data) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise FormatError(f"keys file: {where}: {len(data)} bytes, wanted {wanted}")
    return data


def _ring_id(text: str) -> bytes:
    if not re.fullmatch(f"[0-9a-f]{{{2 * ID_SIZE}}}", text):
        raise FormatError(f"keys file: id: wanted {2 * ID_SIZE} hex digits")
    return bytes.fromhex(text)


def _time(where: str, value: object) -> dt.datetime:
    text = _string(where, value)
    try:
        if _TIME.fullmatch(text):
            return dt.datetime.fromisoformat(text)
    except ValueError:
        pass
    raise FormatError(f"keys file: {where}: wanted a time as 2000-01-31T23:59:59Z")
