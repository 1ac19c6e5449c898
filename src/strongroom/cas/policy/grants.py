"""Grants: the signed consent of one policy's people to what another policy imports (docs/spec/cas.md).

Rules:

- What a grant does not say is not granted: the importer's measurements, how its evidence is appraised, its purpose and
  whom its outputs are for are those that the grant names, or fewer.
- Who signs are the people of the exporting policy as it is now: an administrator who may grant, and, where it has
  owners, as many of them as sign a version. After they have changed, the new ones sign anew.
- Of two grants to the same importer the one with the higher serial counts, and no lower one comes back.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.attest.reference import MEASUREMENT as MEASUREMENT
from strongroom.cas.policy.owners import MAX_OWNERS, OwnerSignature, read_signatures
from strongroom.cas.policy.places import POLICY_NAME
from strongroom.cas.policy.rights import RESOURCE
from strongroom.cas.policy.table import FINGERPRINT
from strongroom.cas.policy.version import MAX_PURPOSE, RECIPIENT, Policy
from strongroom.cas.wire import b64, bytes_field, text_field
from strongroom.crypto import PublicKey, Signer, digest
from strongroom.errors import FormatError, GrantError, VerificationError

FORMAT = "strongroom/grant/v1"
GRANT_ID = re.compile(r"[0-9a-f]{64}")
MAX_LISTED = 256
_ADMINISTRATOR_LABEL = b"strongroom/grant/v1\0"
_OWNER_LABEL = b"strongroom/grant/owner/v1\0"
_MAX_NUMBER = (1 << 53) - 1
MAX_TABLE = 1 << 19  # a policy's document and how JSON quotes it


@dataclass(frozen=True)
class Grant:
    """What one policy lets another have.

    Attributes:
        source: the exporting policy.
        importer: the policy that imports.
        resources: ``secret:NAME``, ``vault:NAME`` and ``sealed:NAME`` of the exporting policy.
        measurements: of the enclaves that may have them.
        reference: the digest of the importer's table ``[reference]``: how their evidence is appraised.
        purpose: the importer's.
        recipients: the importer's are among these.
        expires: in Unix seconds: from then on it grants nothing.
        serial: higher than that of every grant before, to the same importer.
    """

    source: str
    importer: str
    resources: tuple[str, ...]
    measurements: tuple[str, ...]
    reference: str
    purpose: str
    recipients: tuple[str, ...]
    expires: int
    serial: int

    def to_bytes(self) -> bytes:
        """Canonical JSON: the bytes that are signed."""
        return canonical(
            {
                "format": FORMAT,
                "from": self.source,
                "to": self.importer,
                "resources": list(self.resources),
                "measurements": list(self.measurements),
                "reference": self.reference,
                "purpose": self.purpose,
                "recipients": list(self.recipients),
                "expires": self.expires,
                "serial": self.serial,
            }
        )

    @property
    def id(self) -> str:
        """The SHA-256 of its bytes, in hexadecimal digits."""
        return digest(self.to_bytes()).hex()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Grant:
        """Raises FormatError unless `raw` is exactly what `to_bytes` gives for some grant."""
        value = parse_canonical(raw)
        wanted = {
            *("format", "from", "to", "resources", "measurements", "reference", "purpose", "recipients"),
            *("expires", "serial"),
        }
        if set(value) != wanted:
            raise FormatError(f"grant: got {', '.join(sorted(value))[:200]}, wanted {', '.join(sorted(wanted))}")
        if value["format"] != FORMAT:
            raise FormatError(f"grant.format: got {str(value['format'])[:80]!r}, wanted {FORMAT!r}")
        return cls(
            source=matching(value, "from", POLICY_NAME),
            importer=matching(value, "to", POLICY_NAME),
            resources=listing(value, "resources", RESOURCE),
            measurements=listing(value, "measurements", MEASUREMENT),
            reference=matching(value, "reference", FINGERPRINT),
            purpose=purpose_in(value),
            recipients=listing(value, "recipients", RECIPIENT, empty=True),
            expires=_number(value, "expires"),
            serial=_number(value, "serial"),
        )


def imports(policy: Policy) -> dict[str, tuple[str, ...]]:
    """What a policy imports: resources by the policy that they are of, in the document's order."""
    found: dict[str, list[str]] = {}
    for kind, rules in (("secret", policy.secrets), ("vault", policy.vaults), ("sealed", policy.sealed)):
        for rule in rules:
            if rule.source:
                found.setdefault(rule.source, []).append(f"{kind}:{rule.name}")
    return {source: tuple(resources) for source, resources in found.items()}


def reference_table(policy: Policy) -> dict[str, Any]:
    """A policy's table ``[reference]`` as its document has it."""
    table: dict[str, Any] = tomllib.loads(policy.text)["reference"]
    return table


def reference_digest(policy: Policy) -> str:
    """``sha256:<hex>`` of the canonical JSON of a policy's table ``[reference]``."""
    return _reference_digest(policy.text)


@functools.lru_cache(maxsize=64)
def _reference_digest(text: str) -> str:
    return digest_of_reference(tomllib.loads(text)["reference"])


def digest_of_reference(reference: Mapping[str, Any]) -> str:
    return "sha256:" + digest(canonical(reference, cap=MAX_TABLE)).hex()


@dataclass(frozen=True)
class SignedGrant:
    """A grant and the signatures given to it so far.

    Attributes:
        administrator: whose signature `signature` is; None while there is none.
        signatures: of owners.
    """

    grant: Grant
    administrator: PublicKey | None = None
    signature: bytes = field(default=b"")
    signatures: tuple[OwnerSignature, ...] = ()

    @classmethod
    def from_wire(cls, wire: object) -> SignedGrant:
        """Raises FormatError."""
        if not isinstance(wire, Mapping) or set(wire) != {"grant", "administrator", "signature", "signatures"}:
            raise FormatError("grant: wanted an object of exactly grant, administrator, signature and signatures")
        grant = Grant.from_bytes(text_field(wire, "grant").encode())
        signatures = read_signatures(wire["signatures"])
        if wire["administrator"] is None and wire["signature"] is None:
            return cls(grant, signatures=signatures)
        key = PublicKey(bytes_field(wire, "administrator"))
        return cls(grant, key, bytes_field(wire, "signature"), signatures)

    def to_wire(self) -> dict[str, Any]:
        return {
            "grant": self.grant.to_bytes().decode(),
            "administrator": None if self.administrator is None else b64(self.administrator.spki),
            "signature": None if self.administrator is None else b64(self.signature),
            "signatures": [one.to_wire() for one in self.signatures],
        }

    def signed_by(self, key: Signer, exporter: Policy) -> SignedGrant:
        """The same with that key's signature: as an administrator who may grant, as an owner, or as both.

        Raises:
            GrantError: the key is neither's.
        """
        fingerprint, raw = key.public.fingerprint, self.grant.to_bytes()
        administrator, signature, signatures = self.administrator, self.signature, self.signatures
        administers = may_grant(exporter, fingerprint, self.grant.resources)
        owns = exporter.owners is not None and exporter.owners.name_of(fingerprint) is not None
        if not administers and not owns:
            raise GrantError(
                f"key: {fingerprint} is no owner's of {exporter.name}, and no administrator's who may grant this",
                hint="--key names the key; the policy's document says whose sign",
            )
        if administers and administrator is None:
            administrator, signature = key.public, key.sign(_ADMINISTRATOR_LABEL + raw)
        if owns and fingerprint not in {one.key for one in signatures}:
            signatures = (*signatures, OwnerSignature(fingerprint, key.sign(_OWNER_LABEL + raw)))
        return SignedGrant(self.grant, administrator, signature, signatures)

    def missing(self, exporter: Policy) -> str:
        """Who has not signed yet, in words; empty if enough have."""
        if self.administrator is None:
            return "an administrator who may grant"
        if exporter.owners is None:
            return ""
        keys = {one.key for one in self.signatures}
        signed = sum(key.fingerprint in keys for key in exporter.owners.keys.values())
        left = exporter.owners.threshold - signed
        names = [name for name, key in exporter.owners.keys.items() if key.fingerprint not in keys]
        return f"{left} of {', '.join(names)}" if left > 0 else ""

    def check_signatures(self, exporter: Policy) -> None:
        """Check the signatures that are there, whether or not they are enough, against that version's people.

        Raises:
            GrantError: a key is nobody's who may sign.
            VerificationError: a signature does not match: it is of another grant.
        """
        raw = self.grant.to_bytes()
        if self.grant.source != exporter.name:
            raise GrantError(f"grant.from: got {self.grant.source}, wanted {exporter.name}")
        if self.administrator is not None:
            fingerprint = self.administrator.fingerprint
            if not may_grant(exporter, fingerprint, self.grant.resources):
                raise GrantError(
                    f"grant: {fingerprint} is that of no administrator of {exporter.name} who may grant this",
                    hint="an administrator of the newest version signs it: `strongroom policy approve`",
                )
            _verify(self.administrator, self.signature, _ADMINISTRATOR_LABEL + raw, "the administrator's")
        if len(self.signatures) > MAX_OWNERS:
            raise FormatError(f"grant.signatures: {len(self.signatures)}, wanted at most {MAX_OWNERS}")
        for one in self.signatures:
            name = None if exporter.owners is None else exporter.owners.name_of(one.key)
            if exporter.owners is None or name is None:
                raise GrantError(
                    f"grant: {one.key} is the key of no owner of {exporter.name} in version {exporter.version}",
                    hint="its owners have changed: those of now sign it anew",
                )
            _verify(exporter.owners.keys[name], one.signature, _OWNER_LABEL + raw, f"{name}'s")

    def check(self, exporter: Policy) -> None:
        """Check that the people of that version have signed it, all who must.

        Raises:
            GrantError, VerificationError: as `check_signatures`; or a signature is missing.
        """
        self.check_signatures(exporter)
        missing = self.missing(exporter)
        if missing:
            raise GrantError(
                f"grant: signed by too few of {exporter.name}; not yet: {missing}",
                hint="each of them signs it with `strongroom policy approve`",
            )


def may_grant(exporter: Policy, fingerprint: str, resources: Sequence[str]) -> bool:
    """Whether that key is an administrator's who may grant these."""
    if fingerprint == exporter.owner:
        return True
    return any(
        each.key == fingerprint and all(each.allows("grants", resource) for resource in resources)
        for each in exporter.administrators
    )


def check_exportable(grant: Grant, exporter: Policy) -> None:
    """Raises GrantError unless the exporting policy has each resource, as its own."""
    for resource in grant.resources:
        kind, _, name = resource.partition(":")
        rule = (
            exporter.secret(name)
            if kind == "secret"
            else exporter.vault(name)
            if kind == "vault"
            else exporter.sealed_file(name)
        )
        wrong = (
            "names none"
            if rule is None
            else f"has it of {rule.source} itself, and what is imported is not passed on"
            if rule.source
            else ""
        )
        if wrong:
            raise GrantError(f"grant.resources: {resource}: policy {exporter.name} {wrong}")
        if getattr(rule, "access", "") == "mirror":
            raise GrantError(f"grant.resources: {resource}: is a mirror, which only its own policy's enclaves open")


def _verify(key: PublicKey, signature: bytes, signed: bytes, whose: str) -> None:
    try:
        key.verify(signature, signed)
    except VerificationError:
        raise VerificationError(
            f"grant: {whose} signature does not match", hint="it is of another grant: sign this one"
        ) from None


# Fields of a grant, and of what asks for one. Each raises FormatError.


def matching(value: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    got = value[name]
    if not isinstance(got, str) or not pattern.fullmatch(got):
        raise FormatError(f"grant.{name}: got {str(got)[:80]!r}, which is none")
    return got


def listing(value: Mapping[str, Any], name: str, pattern: re.Pattern[str], *, empty: bool = False) -> tuple[str, ...]:
    got = value[name]
    if not isinstance(got, list) or len(got) > MAX_LISTED or not (got or empty):
        raise FormatError(f"grant.{name}: wanted a list of {0 if empty else 1} to {MAX_LISTED}")
    for each in got:
        if not isinstance(each, str) or not pattern.fullmatch(each):
            raise FormatError(f"grant.{name}: got {str(each)[:80]!r}, which is none")
    if len(set(got)) != len(got):
        raise FormatError(f"grant.{name}: names one twice")
    return tuple(got)


def purpose_in(value: Mapping[str, Any]) -> str:
    purpose = value["purpose"]
    if not isinstance(purpose, str) or not purpose.isprintable() or not 1 <= len(purpose) <= MAX_PURPOSE:
        raise FormatError(f"grant.purpose: wanted 1 to {MAX_PURPOSE} printable characters in one line")
    return purpose


def _number(value: Mapping[str, Any], name: str) -> int:
    got = value[name]
    if type(got) is not int or not 1 <= got <= _MAX_NUMBER:
        raise FormatError(f"grant.{name}: got {str(got)[:40]}, wanted 1 to 2^53 - 1")
    return got
