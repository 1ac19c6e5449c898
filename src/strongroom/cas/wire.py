"""What both ends of the CAS's API share: names, token types and encodings (docs/spec/cas.md)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from strongroom.attest.issuer import CAS_URI as CAS_URI
from strongroom.crypto.encoding import base64_bytes, hex_bytes
from strongroom.errors import FormatError

CONFIGURATION_INFO = b"strongroom/cas/configuration/v1"
"""The HPKE info string under which a configuration is sealed to an enclave."""

ATTEST_FIRST = 401
"""The HTTP status for what an enclave may ask once it has attested, on this connection, under the newest policy."""

TIME_TOKEN = "strongroom-time+jwt"  # noqa: S105  # a token's type
RESULT_LIFETIME = 600
"""Seconds for which a service's attestation result stands; the service renews it before."""

ATTESTED_SECONDS = 600
"""For how long a connection stays attested; the enclave attests again before, or when it is told to."""

MAX_OUTPUTS = 32
"""Statements of lineage in one answer."""

MAX_DEPOSIT = 1 << 16
"""Bytes of a secret that an enclave deposits."""

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
"""How a key is named, and what else is by its SHA-256."""

CERTIFICATE_SECONDS = 3600
"""How long a certificate that the CAS issues to an enclave or a party is valid, at most."""

SLOT_NAME = re.compile(r"[0-9a-f]{32}")
"""What the CAS calls a vault's key slot: it says nothing of the vault."""


PARTY_ROLE = "party"


def party_statement(binder: bytes, policy: str) -> bytes:
    """What a party's key signs to be certified: this connection's exporter, and as which policy's party."""
    return b"strongroom/cas/party/v1\0" + binder + policy.encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def text_field(body: Mapping[str, Any], field: str) -> str:
    """Raises FormatError unless `field` is a string of Unicode text."""
    value = body.get(field)
    if not isinstance(value, str):
        raise FormatError(f"{field}: got {type(value).__name__}, wanted a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{field}: holds a lone surrogate, wanted Unicode text") from None
    return value


def bytes_field(body: Mapping[str, Any], field: str) -> bytes:
    """Raises FormatError unless `field` is a string of base64 in its one spelling."""
    try:
        return base64_bytes(text_field(body, field))
    except ValueError:
        raise FormatError(f"{field}: not base64") from None


def hex_field(body: Mapping[str, Any], field: str) -> bytes:
    """Raises FormatError unless `field` is a string of lower-case hexadecimal."""
    try:
        return hex_bytes(text_field(body, field))
    except ValueError:
        raise FormatError(f"{field}: not lower-case hexadecimal") from None
