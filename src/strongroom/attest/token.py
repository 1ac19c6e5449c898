"""Signed, dated statements: compact JWS (RFC 7515) with ES256 and an explicit type (RFC 8725, section 3.11).

A reader says which type it wants and which key it trusts; the token chooses neither. The protected header is exactly
``{"alg":"ES256","typ":typ}``, header and payload are canonical JSON, and base64url is accepted in one form only.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TypeGuard

from strongroom.attest.binding import JSON, MAX_CANONICAL, canonical, parse_canonical
from strongroom.crypto import PublicKey, SigningKey
from strongroom.errors import ExpiredError, FormatError, UsageError, VerificationError

MAX_TOKEN = 4 * (MAX_CANONICAL // 3) + 1024
# How far a signer's clock may be ahead of the reader's. Expiry gets no such allowance.
SKEW = 60


def sign_token(key: SigningKey, typ: str, payload: Mapping[str, JSON]) -> str:
    """Sign `payload`, which holds `iat` and `exp` in seconds since 1970, as a token of type `typ`.

    Raises:
        UsageError: `iat` or `exp` is missing or no integer, or the token would never be valid.
        FormatError: the payload is not what `canonical` takes.
    """
    if not typ.isascii() or not typ.isprintable() or not typ:
        raise UsageError(f"token type: got {typ!r}, wanted printable ASCII")
    issued, expires = payload.get("iat"), payload.get("exp")
    if not _is_time(issued) or not _is_time(expires) or issued >= expires:
        raise UsageError(f"token: got iat {issued!r} and exp {expires!r}, wanted integers, iat before exp")
    signed = f"{_encode(_header(typ))}.{_encode(canonical(payload))}"
    return f"{signed}.{_encode(key.sign(signed.encode()))}"


def verify_token(token: str, public: PublicKey, typ: str, *, now: int) -> dict[str, JSON]:
    """The payload of a token of type `typ` that `public` signed and that is valid at `now`.

    1. Size and shape. 2. The header is ours for that type. 3. The signature. 4. The payload. 5. Its dates.

    Raises:
        ExpiredError: it is expired, or issued in the future.
        VerificationError: it is malformed, of another type or algorithm, or not signed by that key.
    """
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_TOKEN:
        raise VerificationError(f"token: wanted ASCII, at most {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) != 3:
        raise VerificationError(f"token: got {len(parts)} parts, wanted 3")
    header, payload, signature = parts
    if header != _encode(_header(typ)):
        raise VerificationError(f"token header: wanted exactly alg ES256 and typ {typ}")
    public.verify(_decode(signature), f"{header}.{payload}".encode())
    try:
        claims = parse_canonical(_decode(payload))
    except FormatError as error:
        raise VerificationError(f"token payload: {error.message}") from None
    issued, expires = claims.get("iat"), claims.get("exp")
    if not _is_time(issued) or not _is_time(expires):
        raise VerificationError("token: wanted integers iat and exp")
    if now >= expires:
        raise ExpiredError(f"token {typ}: expired at {expires}, it is {now}")
    if issued > now + SKEW:
        raise ExpiredError(f"token {typ}: issued at {issued}, it is {now}")
    return claims


def _header(typ: str) -> bytes:
    return canonical({"alg": "ES256", "typ": typ})


def _is_time(value: JSON) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    # The decoder skips what it does not know; one value has one encoding here.
    if not raw or _encode(raw) != text:
        raise VerificationError("token: not base64url")
    return raw
