"""Signed, dated statements: compact JWS (RFC 7515) with ES256 and an explicit type (RFC 8725, section 3.11).

A reader says which type it wants and which key it trusts; the token chooses neither. The protected header is exactly
``{"alg":"ES256","typ":typ}``, and has the key's thumbprint as `kid` where others than us are to find that key. Header
and payload are canonical JSON, and base64url is accepted in one form only.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Mapping
from typing import TypeGuard

from strongroom.attest.binding import JSON, MAX_CANONICAL, canonical, parse_canonical
from strongroom.crypto import PublicKey, SigningKey, digest
from strongroom.errors import ExpiredError, FormatError, UsageError, VerificationError

MAX_TOKEN = 4 * (MAX_CANONICAL // 3) + 1024
# How far a signer's clock may be ahead of the reader's. Expiry gets no such allowance.
SKEW = 60


def sign_token(key: SigningKey, typ: str, payload: Mapping[str, JSON], *, kid: bool = False) -> str:
    """Sign `payload`, which holds `iat` and `exp` in seconds since 1970, as a token of type `typ`.

    Args:
        kid: whether the header names the key, for readers that choose it from a set (RFC 7517).

    Raises:
        UsageError: `iat` or `exp` is missing or no integer, or the token would never be valid.
        FormatError: the payload is not what `canonical` takes.
    """
    if not typ.isascii() or not typ.isprintable() or not typ:
        raise UsageError(f"token type: got {typ!r}, wanted printable ASCII")
    issued, expires = payload.get("iat"), payload.get("exp")
    if not _is_time(issued) or not _is_time(expires) or issued >= expires:
        raise UsageError(f"token: got iat {issued!r} and exp {expires!r}, wanted integers, iat before exp")
    signed = f"{_encode(_header(typ, key.public if kid else None))}.{_encode(canonical(payload))}"
    return f"{signed}.{_encode(key.sign(signed.encode()))}"


def verify_token(token: str, public: PublicKey, typ: str, *, now: int, kid: bool = False) -> dict[str, JSON]:
    """The payload of a token of type `typ` that `public` signed and that is valid at `now`.

    1. Size and shape. 2. The header is ours for that type and, with `kid`, for that key. 3. The signature. 4. The
    payload. 5. Its dates.

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
    if header != _encode(_header(typ, public if kid else None)):
        named = f", kid {thumbprint(public)}" if kid else ""
        raise VerificationError(f"token header: wanted exactly alg ES256{named} and typ {typ}")
    public.verify(_decode(signature), f"{header}.{payload}".encode())
    try:
        claims = parse_canonical(_decode(payload))
    except FormatError as error:
        raise VerificationError(f"token payload: {error.message}") from None
    check_times(f"token {typ}", claims.get("iat"), claims.get("exp"), now=now)
    return claims


def check_times(what: str, issued: object, expires: object, *, now: int) -> None:
    """Raises ExpiredError unless `now` is between the two, VerificationError unless they are times at all."""
    if not _is_time(issued) or not _is_time(expires):
        raise VerificationError(f"{what}: wanted integers iat and exp")
    if now >= expires:
        raise ExpiredError(f"{what}: expired at {expires}, it is {now}")
    if issued > now + SKEW:
        raise ExpiredError(f"{what}: issued at {issued}, it is {now}")


def jwk(public: PublicKey) -> dict[str, JSON]:
    """A key as JOSE writes it (RFC 7518, section 6.2), with its thumbprint as `kid`."""
    return {**_jwk(public), "alg": "ES256", "kid": thumbprint(public), "use": "sig"}


@functools.lru_cache(maxsize=128)
def thumbprint(public: PublicKey) -> str:
    """RFC 7638: the SHA-256 of the key's required members, in base64url."""
    return _encode(digest(canonical(_jwk(public))))


def _jwk(public: PublicKey) -> dict[str, JSON]:
    point = public.point
    return {"crv": "P-256", "kty": "EC", "x": _encode(point[:32]), "y": _encode(point[32:])}


@functools.lru_cache(maxsize=128)
def _header(typ: str, key: PublicKey | None) -> bytes:
    return canonical({"alg": "ES256", **({"kid": thumbprint(key)} if key else {}), "typ": typ})


def _is_time(value: object) -> TypeGuard[int]:
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
