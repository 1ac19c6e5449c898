"""The owners of a policy: who must sign its versions, and their signatures (docs/spec/cas.md).

Rules:

- A key counts once: under two names it is refused in the document, and signing twice is refused in the signatures.
- A signature is of one policy's name, one version and one document; nothing else passes under it.
- A set of signatures is taken whole: one that does not verify, or is of nobody who may sign, refuses all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.cas.policy.table import FINGERPRINT, Table, number
from strongroom.cas.wire import b64, bytes_field, text_field
from strongroom.crypto import PublicKey, Signer
from strongroom.crypto.encoding import base64_bytes
from strongroom.errors import FormatError, UnauthorizedError, VerificationError

MAX_OWNERS = 32
OWNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = b"strongroom/policy/owner/v1\0"


@dataclass(frozen=True)
class Owners:
    """Who signs a policy's versions, by name, and how many of them must."""

    keys: Mapping[str, PublicKey]
    threshold: int

    def name_of(self, fingerprint: str) -> str | None:
        """The owner with that key, or None."""
        return next((name for name, key in self.keys.items() if key.fingerprint == fingerprint), None)


@dataclass(frozen=True)
class OwnerSignature:
    """An owner's signature of one version: the fingerprint of the key, and 64 bytes."""

    key: str
    signature: bytes

    @classmethod
    def from_wire(cls, wire: object) -> OwnerSignature:
        """Raises FormatError."""
        if not isinstance(wire, dict) or set(wire) != {"key", "signature"}:
            raise FormatError("signatures: wanted objects of exactly key and signature")
        key = text_field(wire, "key")
        if not FINGERPRINT.fullmatch(key):
            raise FormatError(f"signatures.key: got {key[:80]!r}, wanted a fingerprint, sha256:<64 hex>")
        return cls(key, bytes_field(wire, "signature"))

    def to_wire(self) -> dict[str, str]:
        return {"key": self.key, "signature": b64(self.signature)}


def read_signatures(wire: object) -> tuple[OwnerSignature, ...]:
    """Signatures from JSON.

    Raises:
        FormatError: not a list of signatures, more than any two versions can have, or two of one key.
    """
    if not isinstance(wire, list) or len(wire) > 2 * MAX_OWNERS:
        raise FormatError(f"signatures: wanted a list of at most {2 * MAX_OWNERS}")
    signatures = tuple(OwnerSignature.from_wire(one) for one in wire)
    _check_once(signatures)
    return signatures


def signed_bytes(name: str, version: int, digest: str) -> bytes:
    """What an owner signs: policy, version and digest under a label."""
    return _LABEL + json.dumps([name, version, digest], separators=(",", ":")).encode()


def sign_version(key: Signer, *, name: str, version: int, digest: str) -> OwnerSignature:
    """An owner's signature of a version."""
    return OwnerSignature(key.public.fingerprint, key.sign(signed_bytes(name, version, digest)))


def check_signatures(
    signatures: Sequence[OwnerSignature],
    *,
    name: str,
    version: int,
    digest: str,
    owners: Owners | None,
    before: Owners | None,
) -> None:
    """Check that a version is signed by enough of its own owners and of those of the version before.

    This is TUF's rule for its root (The Update Framework, 5.3.4). Owners that this version no longer has sign as those
    of the version before, and for nothing else.

    Args:
        owners: of this version; None if it has none.
        before: of the version before; None if it has none, or there is no such version.

    Raises:
        FormatError: a key has signed twice.
        UnauthorizedError: a key is none of an owner's, or a threshold is not reached.
        VerificationError: a signature does not match: it is of other bytes, another version or another policy.
    """
    check_each(signatures, name=name, version=version, digest=digest, owners=owners, before=before)
    # 3. Both thresholds are reached.
    keys = {one.key for one in signatures}
    if before is not None:
        _check_threshold(before, keys, name, version - 1)
    if owners is not None:
        _check_threshold(owners, keys, name, version)


def check_each(
    signatures: Sequence[OwnerSignature],
    *,
    name: str,
    version: int,
    digest: str,
    owners: Owners | None,
    before: Owners | None,
) -> None:
    """As `check_signatures`, but for the thresholds: some are there, and others may follow."""
    # 1. No key counts twice.
    _check_once(signatures)
    # 2. Every key is an owner's, and its signature of this version.
    signed = signed_bytes(name, version, digest)
    known = [each for each in (owners, before) if each is not None]
    for one in signatures:
        found = next(((each, who) for each in known if (who := each.name_of(one.key)) is not None), None)
        if found is None:
            raise UnauthorizedError(
                f"signatures: {one.key} is the key of no owner of {name} in version {version} or the one before",
                hint="an owner who was removed signs no more; take that signature out",
            )
        try:
            found[0].keys[found[1]].verify(one.signature, signed)
        except VerificationError:
            raise VerificationError(
                f"signatures: {found[1]}'s does not match {name}, version {version}, {digest}",
                hint="it is of another document, version or policy: sign this one",
            ) from None


def _check_threshold(owners: Owners, keys: set[str], name: str, version: int) -> None:
    signed = [who for who, key in owners.keys.items() if key.fingerprint in keys]
    if len(signed) < owners.threshold:
        missing = [who for who in owners.keys if who not in signed]
        raise UnauthorizedError(
            f"signatures: {len(signed)} of the {owners.threshold} that the owners of {name} in version {version} must "
            f"give; signed: {', '.join(signed) or 'nobody'}; not yet: {', '.join(missing)}",
            hint="`strongroom policy sign` adds an owner's signature",
        )


def _check_once(signatures: Iterable[OwnerSignature]) -> None:
    seen: set[str] = set()
    for one in signatures:
        if one.key in seen:
            raise FormatError(f"signatures: two of {one.key}, and a key counts once", hint="take one of them out")
        seen.add(one.key)


def read_owners(table: Table) -> Owners:
    """The table `[owners]` of a policy."""
    threshold = table.positive("threshold")
    named = table.table("keys")
    if not 1 <= len(named.value) <= MAX_OWNERS:
        table.refuse(f"{named.path}: got {len(named.value)}, wanted 1 to {MAX_OWNERS} owners", "keys")
    keys: dict[str, PublicKey] = {}
    names: dict[str, str] = {}
    for name in [*named.value][:MAX_OWNERS]:
        key = _key(named, name)
        if key is None:
            continue
        other = names.setdefault(key.fingerprint, name)
        if other != name:
            named.refuse(f"{named.path}.{name}: is the key of {other} too, and a key counts once", name)
        keys[name] = key
    if threshold > len(named.value):
        table.refuse(
            f"{table.path}.threshold: got {number(threshold)}, and there are {len(named.value)} owners", "threshold"
        )
    table.finish()
    return Owners(keys, threshold)


def _key(table: Table, name: str) -> PublicKey | None:
    where = f"{table.path}.{name[:80]}"
    if not OWNER_NAME.fullmatch(name):
        table.refuse(f"{table.path}: got the name {name[:80]!r}, wanted a word", name)
        return None
    text = table.text(name)
    try:
        key = PublicKey(_spki(text))
    except FormatError as error:
        table.refuse(
            f"{where}: {error.message}", name, hint="`strongroom policy key` prints a key as a document takes it"
        )
        return None
    if b64(key.spki) != text:
        table.refuse(f"{where}: is not written as `strongroom policy key` writes it", name)
    return key


def _spki(text: str) -> bytes:
    try:
        return base64_bytes(text)
    except ValueError:
        raise FormatError("not base64") from None


@dataclass(frozen=True)
class SignatureFile:
    """What owners sign one after the other, beside a document: which version it is of, and the signatures so far."""

    policy: str
    version: int
    digest: str
    signatures: tuple[OwnerSignature, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SignatureFile:
        """Raises FormatError."""
        if len(text) > _MAX_FILE:
            raise FormatError(f"signatures: {len(text)} characters, the limit is {_MAX_FILE}")
        try:
            wire = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            wire = None
        if not isinstance(wire, dict) or set(wire) != {"policy", "version", "digest", "signatures"}:
            raise FormatError(
                "signatures: not a JSON object of exactly policy, version, digest and signatures",
                hint="`strongroom policy sign` writes it",
            )
        version = wire["version"]
        if type(version) is not int or not 1 <= version < 1 << 31:
            raise FormatError(f"signatures.version: got {number(version)}, wanted a positive whole number")
        return cls(text_field(wire, "policy"), version, text_field(wire, "digest"), read_signatures(wire["signatures"]))

    def check_of(self, name: str, version: int, digest: str) -> None:
        """Raises VerificationError unless these are signatures of that version."""
        for field, got, wanted in (
            ("policy", self.policy, name),
            ("version", self.version, version),
            ("digest", self.digest, digest),
        ):
            if got != wanted:
                raise VerificationError(
                    f"signatures.{field}: got {str(got)[:100]}, and the document's is {wanted}",
                    hint="they are of another document, or it was changed since; sign anew into another file",
                )

    def to_text(self) -> str:
        wire = {
            "policy": self.policy,
            "version": self.version,
            "digest": self.digest,
            "signatures": [one.to_wire() for one in self.signatures],
        }
        return json.dumps(wire, indent=2) + "\n"


_MAX_FILE = 1 << 16


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)
