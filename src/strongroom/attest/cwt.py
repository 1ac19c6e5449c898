"""Signed claims in CBOR: COSE_Sign1 (RFC 9052, section 4.2) with ES256 and an explicit type, the sibling of `token`.

What `token` promises holds here too: the reader names the type and the key, the token chooses neither, and one
statement has one encoding (RFC 8949, section 4.2.1). A token is exactly the bytes

    d2 84 || bstr(protected) || a0 || bstr(claims) || 58 40 || signature[64]

so nothing of it is decoded before its signature has been checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import cbor2

from strongroom.attest.token import check_times, thumbprint
from strongroom.crypto import PublicKey, SigningKey
from strongroom.crypto.keys import SIGNATURE_SIZE
from strongroom.errors import UsageError, VerificationError

MAX_CWT = 64 * 1024

# Header parameters: RFC 9052, section 3.1, and for the type RFC 9596. Claims: RFC 8392, section 4.
_ALG, _KID, _TYP = 1, 4, 16
_ES256 = -7
EXP, IAT = 4, 6
_SIGN1_OF_FOUR = b"\xd2\x84"
_NO_UNPROTECTED = b"\xa0"


def sign_cwt(key: SigningKey, typ: str, claims: Mapping[object, object]) -> bytes:
    """Sign `claims`, which hold `EXP` and `IAT`, as a token of type `typ`, a media type.

    Raises:
        UsageError: the token would be longer than `MAX_CWT`, or never valid.
    """
    issued, expires = claims.get(IAT), claims.get(EXP)
    if type(issued) is not int or type(expires) is not int or not 0 <= issued < expires:
        raise UsageError(f"token: got iat {issued!r} and exp {expires!r}, wanted integers, iat before exp")
    protected, payload = _protected(typ, key.public), encode(claims)
    signature = key.sign(_to_be_signed(protected, payload))
    token = _head(protected) + encode(payload) + encode(signature)
    if len(token) > MAX_CWT:
        raise UsageError(f"token: {len(token)} bytes, wanted at most {MAX_CWT}")
    return token


def verify_cwt(token: bytes, public: PublicKey, typ: str, *, now: int) -> dict[object, object]:
    """The claims of a token of type `typ` that `public` signed and that is valid at `now`.

    1. Size and shape. 2. The header is ours for that type and key. 3. The signature. 4. The claims. 5. Their dates.

    Raises:
        ExpiredError: it is expired, or issued in the future.
        VerificationError: it is malformed, of another type or algorithm, or not signed by that key.
    """
    if not isinstance(token, bytes) or len(token) > MAX_CWT:
        raise VerificationError(f"token: wanted at most {MAX_CWT} bytes")
    protected = _protected(typ, public)
    head = _head(protected)
    if not token.startswith(head):
        raise VerificationError(f"token header: wanted exactly ES256, kid {thumbprint(public)} and typ {typ}")
    payload, signature = _payload_and_signature(token[len(head) :])
    public.verify(signature, _to_be_signed(protected, payload))
    try:
        claims = cbor2.loads(payload)
        well_formed = isinstance(claims, dict) and encode(claims) == payload
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        well_formed = False
    if not well_formed:
        raise VerificationError("token claims: not one CBOR map in deterministic encoding")
    check_times(f"token {typ}", claims.get(IAT), claims.get(EXP), now=now)
    found: dict[object, object] = claims
    return found


def _payload_and_signature(rest: bytes) -> tuple[bytes, bytes]:
    """The two byte strings of which `rest` consists, the second of a signature's length."""
    split = len(rest) - 2 - SIGNATURE_SIZE
    if split > 0:
        for size in (1, 2, 3):  # bytes of the head of a byte string of less than 64 KiB
            payload, signature = rest[size:split], rest[split + 2 :]
            if encode(payload) == rest[:split] and rest[split : split + 2] == b"\x58\x40":
                return payload, signature
    raise VerificationError("token: wanted a COSE_Sign1 of two headers, a payload and a signature of 64 bytes")


def _protected(typ: str, public: PublicKey) -> bytes:
    return encode({_ALG: _ES256, _KID: thumbprint(public).encode(), _TYP: typ})


def _head(protected: bytes) -> bytes:
    return _SIGN1_OF_FOUR + encode(protected) + _NO_UNPROTECTED


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure (RFC 9052, section 4.4), without external data."""
    return encode(["Signature1", protected, b"", payload])


def encode(value: object) -> bytes:
    """CBOR in deterministic encoding; sorting keys by length first, as here, is bytewise where they are of one type."""
    encoded: bytes = cbor2.dumps(value, canonical=True)
    return encoded
