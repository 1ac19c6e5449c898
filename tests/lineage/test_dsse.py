"""Envelopes against the vectors of the DSSE specification, and what is refused."""

import base64
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.attest.dsse import MAX_ENVELOPE, Envelope, pae
from strongroom.crypto import CertificateAuthority, PublicKey, SigningKey, self_signed
from strongroom.errors import FormatError, VerificationError

KEY = SigningKey.generate()
NOW = dt.datetime.now(dt.UTC)
CHAIN = (
    self_signed(KEY, "leaf", now=NOW, lifetime=dt.timedelta(hours=1)),
    CertificateAuthority.create("r", now=NOW).certificate,
)

# https://github.com/secure-systems-lab/dsse, protocol.md "Test Vectors" and testvectors/vectors.json
HELLO = ("http://example.com/HelloWorld", b"hello world")
X = 46950820868899156662930047687818585632848591499744589407958293238635476079160
Y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
SIGNATURE = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.mark.parametrize(
    ("kind", "payload", "wanted"),
    [
        (*HELLO, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"),
        ("application/vnd.in-toto+json", STATEMENT, b"DSSEv1 28 application/vnd.in-toto+json 43 " + STATEMENT),
        ("application/vnd.in-toto+json", b"", b"DSSEv1 28 application/vnd.in-toto+json 0 "),
        ("", STATEMENT, b"DSSEv1 0  43 " + STATEMENT),
        (
            "application/vnd.exämple+json",
            STATEMENT,
            b"DSSEv1 29 application/vnd.ex\xc3\xa4mple+json 43 " + STATEMENT,
        ),
    ],
    ids=["hello", "in-toto", "empty_payload", "empty_type", "type_not_ascii"],
)
def test_what_is_signed_is_what_the_specification_says(kind, payload, wanted):
    assert pae(kind, payload) == wanted


def test_the_specifications_signature_verifies():
    numbers = ec.EllipticCurvePublicNumbers(X, Y, ec.SECP256R1())
    spki = numbers.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    envelope = Envelope(*HELLO, base64.b64decode(SIGNATURE), CHAIN)
    assert envelope.verify(PublicKey(spki), HELLO[0]) == b"hello world"


def test_an_envelope_comes_back_and_foreign_members_are_passed_over():
    raw = Envelope.sign(KEY, CHAIN, *HELLO).to_bytes()
    assert Envelope.parse(raw).verify(KEY.public, HELLO[0]) == b"hello world"
    document = json.loads(raw) | {"comment": 1}
    assert Envelope.parse(json.dumps(document).encode()).verify(KEY.public, HELLO[0]) == b"hello world"


def test_url_safe_base64_is_taken_too():
    document = json.loads(Envelope.sign(KEY, CHAIN, HELLO[0], b"\xfb\xff\xbf>?").to_bytes())
    assert document["payload"] == "+/+/Pj8="
    document["payload"] = "-_-_Pj8="
    assert Envelope.parse(json.dumps(document).encode()).verify(KEY.public, HELLO[0]) == b"\xfb\xff\xbf>?"


def test_another_type_or_key_does_not_verify():
    envelope = Envelope.sign(KEY, CHAIN, *HELLO)
    with pytest.raises(VerificationError, match="wanted application/json"):
        envelope.verify(KEY.public, "application/json")
    with pytest.raises(VerificationError, match="signature"):
        Envelope("application/json", envelope.payload, envelope.signature, CHAIN).verify(KEY.public, "application/json")
    with pytest.raises(VerificationError, match="signature"):
        envelope.verify(SigningKey.generate().public, HELLO[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["signatures"].append(d["signatures"][0]), "one signature"),
        (lambda d: d.update(signatures=[]), "one signature"),
        (lambda d: d.pop("payload"), "one signature"),
        (lambda d: d.update(payload="*"), "payload is not base64"),
        (lambda d: d.update(payload=7), "payload is not base64|one signature"),
        (lambda d: d.update(payloadType=None), "payloadType"),
        (lambda d: d["signatures"][0]["x5c"].pop(), "one signature"),
        (lambda d: d["signatures"][0].update(x5c=["AAAA", "AAAA"]), "X.509"),
        (lambda d: d["signatures"][0].update(sig="AAAA" * 200), "at most 256"),
    ],
)
def test_what_is_no_envelope_is_refused(change, match):
    document = json.loads(Envelope.sign(KEY, CHAIN, *HELLO).to_bytes())
    change(document)
    with pytest.raises(FormatError, match=match):
        Envelope.parse(json.dumps(document).encode())


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b" " * (MAX_ENVELOPE + 1)])
def test_bytes_that_are_no_envelope_are_refused(raw):
    with pytest.raises(FormatError, match="envelope"):
        Envelope.parse(raw)
