"""What both ends of the CAS's API share: names, token types and encodings (docs/spec/cas.md)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from strongroom.attest.issuer import CAS_URI as CAS_URI
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
    """Raises FormatError unless `field` is a base64 string."""
    try:
        return base64.b64decode(text_field(body, field), validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{field}: not base64") from None


def hex_field(body: Mapping[str, Any], field: str) -> bytes:
    """Raises FormatError unless `field` is a hexadecimal string."""
    try:
        return bytes.fromhex(text_field(body, field))
    except ValueError:
        raise FormatError(f"{field}: not hexadecimal") from None
