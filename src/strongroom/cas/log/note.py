"""Heads of the log as C2SP's checkpoints: what the CAS signs, what witnesses cosign, and the verification of both.

Sources: C2SP signed-note (notes, key IDs, vkeys), tlog-checkpoint (the text), tlog-cosignature (Ed25519, version 1).

- The CAS's root key signs: a note signature of type 0x02 (ECDSA in DER), whose key ID is the first four bytes of the
  SHA-256 of the key's SubjectPublicKeyInfo, that is of `cas_root`. So whoever has pinned `cas_root` needs nothing else.
- The origin, and the name of the CAS's signatures, is ``strongroom-cas/`` and `cas_root` in hexadecimal digits. No DER
  certificate, which that key signs too, begins with such a text.
- Signatures of unknown keys are ignored. A known key's that does not verify refuses the whole note.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.cas.log.tree import HASH_SIZE, MAX_SIZE
from strongroom.cas.wire import FINGERPRINT
from strongroom.crypto import PublicKey, SigningKey, digest
from strongroom.crypto.encoding import base64_bytes
from strongroom.crypto.notes import (
    ED25519_KEY_SIZE,
    ED25519_SIGNATURE_SIZE,
    Ed25519Key,
    sign_der,
    verify_der,
    verify_ed25519,
)
from strongroom.errors import FormatError, VerificationError

MAX_NOTE = 1 << 16
MAX_SIGNATURES = 64
MAX_EXTENSION = 16
"""Lines of a checkpoint after its three."""

_ECDSA, _COSIGNATURE = b"\x02", b"\x04"
_KEY_ID = 4
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: who signed, and what (the rest is the signature type's own)."""

    name: str
    key_id: bytes
    value: bytes

    def __str__(self) -> str:
        return f"\u2014 {self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures, of which none is verified by being here."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(map(str, self.signatures))

    @classmethod
    def parse(cls, note: str) -> Note:
        """Raises FormatError unless `note` is a signed note of at most 64 KiB and 64 signatures."""
        if len(note) > MAX_NOTE:
            raise FormatError(f"note: {len(note)} characters, wanted at most {MAX_NOTE}")
        text, blank, lines = note.rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise FormatError("note: wanted a text, a blank line, and lines of signatures")
        if any((ord(c) < 0x20 and c != "\n") or "\ud800" <= c <= "\udfff" for c in note):
            raise FormatError("note: holds control characters, or is no Unicode text")
        signatures = [_signature(line) for line in lines[:-1].split("\n")]
        if len(signatures) > MAX_SIGNATURES:
            raise FormatError(f"note: {len(signatures)} signatures, wanted at most {MAX_SIGNATURES}")
        return cls(text + "\n", tuple(signatures))

    def with_signatures(self, more: Sequence[NoteSignature]) -> Note:
        return Note(self.text, (*self.signatures, *more))

    def by(self, name: str, key_id: bytes) -> list[NoteSignature]:
        """The signatures that claim to be by that key."""
        return [one for one in self.signatures if (one.name, one.key_id) == (name, key_id)]


def _signature(line: str) -> NoteSignature:
    words = line.split(" ")
    if len(words) != 3 or words[0] != "\u2014" or not _NAME.fullmatch(words[1]):
        raise FormatError(f"note: {line[:80]!r} is no line of a signature")
    blob = _base64(words[2], "note: a signature")
    if len(blob) <= _KEY_ID:
        raise FormatError("note: a signature is too short")
    return NoteSignature(words[1], blob[:_KEY_ID], blob[_KEY_ID:])


def _base64(text: str, what: str) -> bytes:
    try:
        return base64_bytes(text)
    except ValueError:
        raise FormatError(f"{what} is not base64 in its one spelling") from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: `root` stands for its first `size` entries. `extension` are lines that say more."""

    origin: str
    size: int
    root: bytes
    extension: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extension)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Raises FormatError unless `text` is a checkpoint's."""
        lines = text.split("\n")
        if not 4 <= len(lines) <= 4 + MAX_EXTENSION or lines.pop() or not all(lines):
            raise FormatError(f"checkpoint: wanted lines of origin, size and root, and at most {MAX_EXTENSION} more")
        if not _SIZE.fullmatch(lines[1]) or int(lines[1]) > MAX_SIZE:
            raise FormatError(f"checkpoint size: got {lines[1][:40]!r}, wanted a number")
        root = _base64(lines[2], "checkpoint root")
        if len(root) != HASH_SIZE:
            raise FormatError(f"checkpoint root: {len(root)} bytes, wanted {HASH_SIZE}")
        return cls(lines[0], int(lines[1]), root, tuple(lines[3:]))


# The log's own signature


def origin_of(cas_root: str) -> str:
    """The origin of the log of the CAS with that root. Raises FormatError if it is no fingerprint."""
    if not FINGERPRINT.fullmatch(cas_root):
        raise FormatError(f"cas_root: got {cas_root[:80]!r}, wanted sha256:<64 hex digits>")
    return f"strongroom-cas/{cas_root.removeprefix('sha256:')}"


def log_key_id(key: PublicKey) -> bytes:
    """The key ID of a log's signatures by that key."""
    return digest(key.spki)[:_KEY_ID]


def sign_checkpoint(size: int, root: bytes, key: SigningKey, extension: Sequence[str] = ()) -> Note:
    """The head of the log of the CAS whose root key is `key`."""
    origin = origin_of(key.public.fingerprint)
    text = Checkpoint(origin, size, root, tuple(extension)).text
    signature = NoteSignature(origin, log_key_id(key.public), sign_der(key, text.encode()))
    return Note(text, (signature,))


def verify_checkpoint(note: Note, name: str, key: PublicKey) -> Checkpoint:
    """The head that a note states, signed by `key` under `name`.

    Raises:
        FormatError: it is no checkpoint.
        VerificationError: it is not signed by that key, or wrongly.
    """
    claimed = note.by(name, log_key_id(key))
    if not claimed:
        raise VerificationError(f"checkpoint: is not signed by {name[:100]}")
    for signature in claimed:
        verify_der(key, signature.value, note.text.encode())
    return Checkpoint.parse(note.text)


def verify_cas_checkpoint(note: Note, cas_root: str, key: PublicKey) -> Checkpoint:
    """The head that the CAS with that root states.

    Args:
        key: the CAS's root key, from anywhere: `cas_root` is its fingerprint.

    Raises:
        FormatError: the note is no checkpoint.
        VerificationError: `key` is not that CAS's, has not signed, or the checkpoint is of another log.
    """
    origin = origin_of(cas_root)
    if key.fingerprint != cas_root:
        raise VerificationError(f"checkpoint: its key is {key.fingerprint}, wanted the CAS's root {cas_root}")
    checkpoint = verify_checkpoint(note, origin, key)
    if checkpoint.origin != origin:
        raise VerificationError(f"checkpoint: is of the log {checkpoint.origin[:100]!r}, wanted {origin}")
    return checkpoint


def log_vkey(key: PublicKey) -> str:
    """The log's key as signed notes write keys, to configure any witness with."""
    name = origin_of(key.fingerprint)
    return f"{name}+{log_key_id(key).hex()}+{base64.b64encode(_ECDSA + key.spki).decode()}"


# Witnesses


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness's name and Ed25519 key: ``name+key ID+base64(04 || key)`` in its text form, the vkey."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        return digest(self.name.encode(), b"\n", _COSIGNATURE, self.public)[:_KEY_ID]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_COSIGNATURE + self.public).decode()}"

    @classmethod
    def parse(cls, vkey: str) -> WitnessKey:
        """Raises FormatError unless `vkey` is the text form of a key for cosignatures of version 1."""
        parts = vkey.split("+", 2)
        if len(vkey) > 300 or len(parts) != 3 or not _NAME.fullmatch(parts[0]):
            raise FormatError(f"witness: got {vkey[:80]!r}, wanted NAME+KEYID+KEY")
        blob = _base64(parts[2], "witness: its key")
        if blob[:1] != _COSIGNATURE or len(blob) != 1 + ED25519_KEY_SIZE:
            raise FormatError(f"witness {parts[0]}: its key is not one for Ed25519 cosignatures")
        key = cls(parts[0], blob[1:])
        if key.key_id.hex() != parts[1]:
            raise FormatError(f"witness {parts[0]}: its key ID is {parts[1][:20]!r}, wanted {key.key_id.hex()}")
        return key

    def verify(self, note: Note) -> int | None:
        """When this witness cosigned the note, in seconds since 1970: the latest time, or None if it never did.

        Raises:
            VerificationError: a cosignature that claims to be by this key is not.
        """
        times = [self._verify(signature, note.text) for signature in note.by(self.name, self.key_id)]
        return max(times, default=None)

    def _verify(self, signature: NoteSignature, text: str) -> int:
        if len(signature.value) != 8 + ED25519_SIGNATURE_SIZE:
            raise VerificationError(f"witness {self.name}: a cosignature of {len(signature.value)} bytes, wanted 72")
        time = int.from_bytes(signature.value[:8], "big")
        try:
            verify_ed25519(self.public, signature.value[8:], _cosigned(text, time))
        except VerificationError:
            raise VerificationError(f"witness {self.name}: its cosignature does not match its key") from None
        return time


def cosign(text: str, name: str, key: Ed25519Key, *, now: int) -> NoteSignature:
    """A witness's cosignature of a checkpoint's text, for one that has checked its consistency."""
    witness = WitnessKey(name, key.public)
    return NoteSignature(name, witness.key_id, now.to_bytes(8, "big") + key.sign(_cosigned(text, now)))


def check_witness_name(name: str) -> str:
    """Raises FormatError unless `name` can be a key's name in a note."""
    if not _NAME.fullmatch(name):
        raise FormatError(f"witness name: got {name[:80]!r}, wanted 1 to 200 characters without blanks and +")
    return name


def _cosigned(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()
