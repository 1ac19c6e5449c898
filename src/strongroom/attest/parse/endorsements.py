"""Endorsements of every vendor but Intel: certificates, leaf first, and revocation lists, as one JSON object.

``{"certificates": "<PEM>", "revocation_lists": ["<base64 of DER>", ...]}``, the latter only where there are any. No
bytes at all stand for no endorsements. Intel's are those of `dcap-qvl` (docs/spec/evidence.md).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from strongroom.attest.evidence import MAX_ENDORSEMENTS
from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates
from strongroom.errors import FormatError

MAX_REVOCATION_LISTS = 8


@dataclass(frozen=True)
class Endorsements:
    """What came along with evidence, not trusted."""

    certificates: tuple[VendorCertificate, ...] = ()
    revocation_lists: tuple[RevocationList, ...] = ()

    def to_bytes(self) -> bytes:
        """What `parse_endorsements` reads."""
        if not self.certificates and not self.revocation_lists:
            return b""
        wire: dict[str, object] = {"certificates": "".join(each.pem() for each in self.certificates)}
        if self.revocation_lists:
            wire["revocation_lists"] = [base64.b64encode(each.der).decode() for each in self.revocation_lists]
        return json.dumps(wire, separators=(",", ":")).encode()


def parse_endorsements(raw: bytes) -> Endorsements:
    """Read endorsements of that form.

    Raises:
        FormatError: they are not of it, or too large, or a certificate or list in them does not parse.
    """
    if not raw:
        return Endorsements()
    if len(raw) > MAX_ENDORSEMENTS:
        raise FormatError(f"endorsements: {len(raw)} bytes, wanted at most {MAX_ENDORSEMENTS}")
    try:
        wire = json.loads(raw)
    except (ValueError, RecursionError):
        raise FormatError("endorsements: not JSON") from None
    if not isinstance(wire, dict) or set(wire) - {"revocation_lists"} != {"certificates"}:
        raise FormatError("endorsements: wanted an object of certificates, and revocation_lists if there are any")
    pem, lists = wire["certificates"], wire.get("revocation_lists", [])
    if not isinstance(pem, str) or not pem.isascii():
        raise FormatError("endorsements: certificates: wanted PEM text")
    if not isinstance(lists, list) or len(lists) > MAX_REVOCATION_LISTS:
        raise FormatError(f"endorsements: revocation_lists: wanted a list of at most {MAX_REVOCATION_LISTS}")
    certificates = pem_certificates(pem.encode()) if pem else ()
    return Endorsements(certificates, tuple(RevocationList(_base64(each)) for each in lists))


def _base64(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raise FormatError("endorsements: a revocation list is not base64") from None
