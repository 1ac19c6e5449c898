from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re

import pytest

from strongroom.attest.token import MAX_TOKEN, SKEW, sign_token, verify_token
from strongroom.crypto import SigningKey
from strongroom.errors import ExpiredError, FormatError, StrongroomError, UsageError, VerificationError

NOW = 1_750_000_000
TYP = "strongroom-result+jwt"
PAYLOAD = {"iat": NOW, "exp": NOW + 600, "measurement": "ab", "stages": ["1", "2"]}


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def token(key) -> str:
    return sign_token(key, TYP, PAYLOAD)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(key: SigningKey, header: object, payload: bytes) -> str:
    """A token signed by the right key over whatever header and payload."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    signed = f"{b64(raw)}.{b64(payload)}"
    return f"{signed}.{b64(key.sign(signed.encode()))}"


def test_a_token_gives_its_payload(key, token):
    assert verify_token(token, key.public, TYP, now=NOW) == PAYLOAD
    assert verify_token(token, key.public, TYP, now=NOW - SKEW) == PAYLOAD
    assert verify_token(token, key.public, TYP, now=NOW + 599) == PAYLOAD


def test_a_token_has_its_time(key, token):
    with pytest.raises(ExpiredError, match=rf"token {re.escape(TYP)}: expired at {NOW + 600}, it is {NOW + 600}"):
        verify_token(token, key.public, TYP, now=NOW + 600)
    with pytest.raises(ExpiredError, match=rf"token {re.escape(TYP)}: issued at {NOW}, it is {NOW - SKEW - 1}"):
        verify_token(token, key.public, TYP, now=NOW - SKEW - 1)


def test_another_key_or_type_is_refused(key, token):
    with pytest.raises(VerificationError, match="signature: does not match the key"):
        verify_token(token, SigningKey.generate().public, TYP, now=NOW)
    with pytest.raises(VerificationError, match="token header: wanted exactly alg ES256 and typ strongroom-time"):
        verify_token(token, key.public, "strongroom-time+jwt", now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": TYP},
        {"alg": "HS256", "typ": TYP},
        {"alg": "es256", "typ": TYP},
        {"alg": "ES256"},
        {"alg": "ES256", "typ": TYP, "crit": ["exp"]},
        {"alg": "ES256", "typ": TYP, "jwk": {}},
        {"typ": TYP, "alg": "ES256"},
        b'{"alg":"ES256", "typ":"' + TYP.encode() + b'"}',
        b'{"alg":"none","alg":"ES256","typ":"' + TYP.encode() + b'"}',
        b"",
    ],
)
def test_no_other_header_is_read(key, header):
    good = b'{"exp":1750000600,"iat":1750000000}'
    with pytest.raises(VerificationError, match="token header: "):
        verify_token(forge(key, header, good), key.public, TYP, now=NOW)


def test_the_public_key_is_no_hmac_key(key):
    signed = f"{b64(json.dumps({'alg': 'HS256', 'typ': TYP}).encode())}.{b64(json.dumps(PAYLOAD).encode())}"
    for secret in (key.public.spki, key.public.point):
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        for tag in (mac, mac + mac):
            with pytest.raises(VerificationError):
                verify_token(f"{signed}.{b64(tag)}", key.public, TYP, now=NOW)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"exp":1750000600,"iat":1750000000,"iat":1}', "not in canonical form"),
        (b'{"iat":1750000000,"exp":1750000600}', "not in canonical form"),
        (b'{"exp":1750000600}', "wanted integers iat and exp"),
        (b'{"exp":"1750000600","iat":1750000000}', "wanted integers iat and exp"),
        (b'{"exp":true,"iat":true}', "wanted integers iat and exp"),
        (b'{"exp":1750000600,"iat":-1}', "wanted integers iat and exp"),
        (b'{"exp":1750000600.5,"iat":1750000000}', "float"),
        (b"[]", "wanted an object"),
        (b"{", "does not parse"),
        (b"\xff", "does not parse"),
    ],
)
def test_a_signed_payload_must_still_be_well_formed(key, payload, message):
    header = {"alg": "ES256", "typ": TYP}
    with pytest.raises(VerificationError, match=message):
        verify_token(forge(key, header, payload), key.public, TYP, now=NOW)


def test_no_other_spelling_of_a_token_is_read(key, token):
    header, payload, signature = token.split(".")
    spellings = [
        token + "=",
        token + "==",
        token + " ",
        token + "\n",
        token + ".",
        token + "A",
        "." + token,
        f"{header}.{payload}=.{signature}",
        f"{header}.{payload}",
        f"{header}.{payload}.",
        f"..{signature}",
        f"{header}..{signature}",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}",  # stray bits
        f"{header}.{payload}.{signature}é",
        f"{header}.{payload}\ud800.{signature}",
        "",
        "A" * (MAX_TOKEN + 1),
        b"bytes",
        None,
    ]
    for spelling in spellings:
        with pytest.raises(VerificationError):
            verify_token(spelling, key.public, TYP, now=NOW)


def test_no_changed_character_passes(key, token):
    for i, c in enumerate(token):
        changed = token[:i] + ("B" if c == "A" else "A") + token[i + 1 :]
        with pytest.raises(VerificationError):
            verify_token(changed, key.public, TYP, now=NOW)


@pytest.mark.parametrize(
    ("typ", "payload", "error"),
    [
        (TYP, {}, UsageError),
        (TYP, {"iat": NOW, "exp": NOW}, UsageError),
        (TYP, {"iat": NOW, "exp": float(NOW + 1)}, UsageError),
        (TYP, {"iat": True, "exp": NOW}, UsageError),
        ("", PAYLOAD, UsageError),
        ("tÿp", PAYLOAD, UsageError),
        (TYP, PAYLOAD | {"x": 0.5}, FormatError),
        (TYP, PAYLOAD | {"x": "y" * 70_000}, FormatError),
    ],
)
def test_only_what_can_be_verified_is_signed(key, typ, payload, error):
    with pytest.raises(StrongroomError) as caught:
        sign_token(key, typ, payload)
    assert type(caught.value) is error


def test_the_largest_token_signed_is_accepted(key):
    payload = PAYLOAD | {"x": ""}
    room = 64 * 1024 - len(json.dumps(payload, separators=(",", ":")))
    payload["x"] = "y" * room
    assert verify_token(sign_token(key, TYP, payload), key.public, TYP, now=NOW) == payload
