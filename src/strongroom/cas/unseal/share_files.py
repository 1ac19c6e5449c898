"""Shares of a root secret as files: what identifies a set of them, and one share sealed to its holder.

Rules:

- A set is named by the digest of its threshold, a salt and the commitments to its shares, so that nobody can exchange
  one of them and keep the name.
- A share is told from a wrong one by its commitment, a salted digest of it: it is as long and as random as a key, so
  that nobody finds it from that.
- A file is sealed to its holder's key with all that it says outside of the box.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strongroom.attest.binding import canonical
from strongroom.cas.state.way import SECRET_SIZE, octets
from strongroom.cas.unseal.shamir import MAX_SHARES, split
from strongroom.cas.wire import hex_field, text_field
from strongroom.crypto import HpkeKey, digest, equal, hpke_seal, random_bytes
from strongroom.errors import FormatError, TamperedError, UnauthorizedError, UsageError, WrongKeyError

HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
KEY_PREFIX = "x25519:"
_KEY_MARK = "STRONGROOM-SHARE-KEY-1"
_FILE_INFO = b"strongroom/cas/share-file/v1\0"
_COMMITMENT = b"strongroom/cas/share-commitment/v1\0"
_SET = b"strongroom/cas/share-set/v1\0"
_SALT_SIZE = 32
_MAX_FILE = 1 << 16


@dataclass(frozen=True)
class ShareSet:
    """What everybody may know of one sharing of a secret."""

    threshold: int
    salt: bytes
    commitments: tuple[bytes, ...]
    """Of share 1, 2, ..."""

    @property
    def count(self) -> int:
        return len(self.commitments)

    @property
    def name(self) -> str:
        """64 hexadecimal digits."""
        return digest(_SET, canonical(self.to_wire())).hex()

    def to_wire(self) -> dict[str, Any]:
        commitments = [commitment.hex() for commitment in self.commitments]
        return {"threshold": self.threshold, "salt": self.salt.hex(), "commitments": commitments}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> ShareSet:
        """Raises FormatError if it is not what `to_wire` gives."""
        threshold, commitments = wire.get("threshold"), wire.get("commitments")
        if type(threshold) is not int or not isinstance(commitments, list):
            raise FormatError("shares: wanted a threshold and commitments")
        made = cls(
            threshold, octets(wire, "salt"), tuple(octets({"commitment": each}, "commitment") for each in commitments)
        )
        sizes = {len(commitment) for commitment in made.commitments}
        if not 1 <= threshold <= made.count <= MAX_SHARES or len(made.salt) != _SALT_SIZE or sizes != {32}:
            raise FormatError(f"shares: got {threshold} of {made.count}, or a salt or a commitment of another length")
        return made

    def check(self, index: int, share: bytes) -> None:
        """Raises UnauthorizedError unless that is the share of that index."""
        right = 1 <= index <= self.count and len(share) == SECRET_SIZE
        if not right or not equal(_commitment(self.salt, index, share), self.commitments[index - 1]):
            raise UnauthorizedError(
                f"share {index}: is none of this CAS's shares", hint="whose share is it? each names its set"
            )


def make_shares(secret: bytes, threshold: int, count: int) -> tuple[ShareSet, dict[int, bytes]]:
    """Share a secret out. Raises UsageError as `split`."""
    shares, salt = split(secret, threshold=threshold, count=count, random=random_bytes), random_bytes(_SALT_SIZE)
    commitments = tuple(_commitment(salt, index, share) for index, share in sorted(shares.items()))
    return ShareSet(threshold, salt, commitments), shares


def _commitment(salt: bytes, index: int, share: bytes) -> bytes:
    return digest(_COMMITMENT, salt, bytes([index]), share)


@dataclass(frozen=True)
class ShareFile:
    """One share, sealed to its holder's key."""

    set: ShareSet
    index: int
    holder: str
    key: bytes
    box: bytes = field(repr=False)

    @classmethod
    def seal(cls, shared: ShareSet, index: int, share: bytes, holder: str, key: bytes) -> ShareFile:
        box = hpke_seal(key, share, info=_file_info(shared, index, holder, key))
        return cls(shared, index, holder, key, box)

    def open(self, key: HpkeKey) -> bytes:
        """The share.

        Raises:
            WrongKeyError: it is sealed to another key.
            UnauthorizedError: it is not the share that its commitment says.
        """
        if not equal(key.public, self.key):
            raise WrongKeyError(
                f"share {self.index}: is sealed to {public_text(self.key)}, not to {public_text(key.public)}",
                hint=f"it is {self.holder}'s: give the file that `strongroom cas share-key` made there, with --key",
            )
        try:
            share = key.open(self.box, info=_file_info(self.set, self.index, self.holder, self.key))
        except TamperedError:
            raise TamperedError(f"share {self.index}: its file was changed", hint="get it anew") from None
        self.set.check(self.index, share)
        return share

    def to_bytes(self) -> bytes:
        said = {"version": 1, "holder": self.holder, "key": public_text(self.key), "index": self.index}
        whole = said | {"set": self.set.to_wire(), "box": self.box.hex()}
        return json.dumps(whole, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> ShareFile:
        """Raises FormatError if it is not what `to_bytes` gives."""
        try:
            wire = json.loads(raw) if len(raw) <= _MAX_FILE else None
        except (ValueError, RecursionError):
            wire = None
        if not isinstance(wire, dict) or wire.get("version") != 1 or not isinstance(wire.get("set"), dict):
            raise FormatError("share file: is none, or one of a newer version")
        index, shared = wire.get("index"), ShareSet.from_wire(wire["set"])
        holder = text_field(wire, "holder")
        if type(index) is not int or not 1 <= index <= shared.count or not HOLDER.fullmatch(holder):
            raise FormatError(f"share file: wanted an index of 1 to {shared.count} and a holder's name")
        return cls(shared, index, holder, public_key(text_field(wire, "key")), hex_field(wire, "box"))

    @classmethod
    def load(cls, path: Path) -> ShareFile:
        """Raises FormatError, with the file's name."""
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
        try:
            return cls.from_bytes(raw)
        except FormatError as error:
            raise FormatError(f"{path}: {error.message}", hint=error.hint) from None


def _file_info(shared: ShareSet, index: int, holder: str, key: bytes) -> bytes:
    return _FILE_INFO + canonical({"set": shared.name, "index": index, "holder": holder, "key": public_text(key)})


def public_text(key: bytes) -> str:
    """A holder's public key as people pass it on."""
    return KEY_PREFIX + key.hex()


def public_key(text: str) -> bytes:
    """What `public_text` wrote. Raises FormatError."""
    try:
        key = bytes.fromhex(text.removeprefix(KEY_PREFIX)) if text.startswith(KEY_PREFIX) else b""
    except ValueError:
        key = b""
    if len(key) != SECRET_SIZE:
        raise FormatError(
            f"share key: got {text[:80]!r}, wanted {KEY_PREFIX}<64 hex>",
            hint="`strongroom cas share-key FILE` prints a holder's",
        )
    return key


def create_share_key(path: Path) -> HpkeKey:
    """Make a holder's key in a new file of mode 0600. Raises FileExistsError rather than replace a key."""
    key = HpkeKey()
    text = f"# Opens the shares of a CAS's root secret that are sealed to {public_text(key.public)}.\n"
    text += f"{_KEY_MARK} {key.private.hex()}\n"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    return key


def load_share_key(path: Path) -> HpkeKey:
    """Raises FormatError if the file holds none; the message holds nothing of it."""
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE)
    lines = [line for line in raw.splitlines() if line.strip() and not line.startswith(b"#")]
    mark, _, digits = (lines[0] if len(lines) == 1 else b"").partition(b" ")
    if mark == _KEY_MARK.encode():
        try:
            return HpkeKey(bytes.fromhex(digits.strip().decode("ascii")))
        except (ValueError, FormatError):
            pass
    raise FormatError(f"{path}: wanted one line, {_KEY_MARK} <64 hex>")


def read_holders(words: list[str]) -> dict[str, bytes]:
    """Holders and their public keys, each given as ``NAME=x25519:<64 hex>``.

    Raises:
        UsageError, FormatError: a name or a key is none, or there twice.
    """
    holders: dict[str, bytes] = {}
    for word in words:
        name, _, key = word.partition("=")
        if not HOLDER.fullmatch(name) or name in holders:
            raise UsageError(
                f"holder: got {word[:80]!r}, wanted NAME={KEY_PREFIX}<64 hex>, each name once",
                hint="`strongroom cas share-key FILE` prints a holder's key",
            )
        holders[name] = public_key(key)
    if len(set(holders.values())) != len(holders):
        raise UsageError("holders: two have the same key", hint="each makes one: `strongroom cas share-key FILE`")
    return holders
