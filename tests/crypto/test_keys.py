"""Signature keys, HPKE keys and certificates: what they accept, and what they must not."""

from __future__ import annotations

import datetime as dt
import stat
import sys

import pytest

from strongroom.crypto import (
    BlockCipher,
    Certificate,
    CertificateAuthority,
    HpkeKey,
    PublicKey,
    SigningKey,
    hpke_seal,
    random_key,
    self_signed,
)
from strongroom.errors import ExpiredError, FormatError, TamperedError, VerificationError

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


# ECDSA


def test_signatures_are_raw_and_of_one_message_and_key():
    key = SigningKey.generate()
    signature = key.sign(b"message")
    assert len(signature) == 64
    key.public.verify(signature, b"message")
    PublicKey(key.public.spki).verify(signature, b"message")
    for bad, message in (
        (signature, b"massage"),
        (signature[32:] + signature[:32], b"message"),
        (signature[:-1] + bytes([signature[-1] ^ 1]), b"message"),
    ):
        with pytest.raises(VerificationError, match="does not match"):
            key.public.verify(bad, message)
    with pytest.raises(VerificationError, match="does not match"):
        SigningKey.generate().public.verify(signature, b"message")


@pytest.mark.parametrize("length", [0, 63, 65, 72])
def test_signatures_of_another_length(length):
    with pytest.raises(VerificationError, match=f"{length} bytes, wanted 64"):
        SigningKey.generate().public.verify(bytes(length), b"message")


@pytest.mark.parametrize("number", [0, ORDER, 2**256 - 1])
def test_numbers_out_of_range_are_no_signature(number):
    key = SigningKey.generate()
    signature, outside = key.sign(b"message"), number.to_bytes(32, "big")
    for bad in (outside + signature[32:], signature[:32] + outside, outside + outside):
        with pytest.raises(VerificationError):
            key.public.verify(bad, b"message")


def test_key_files(tmp_path):
    key, path = SigningKey.generate(), tmp_path / "key.pem"
    key.save(path)
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public == key.public
    with pytest.raises(FileExistsError):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).public == key.public
    for bad in (b"", b"not PEM", path.read_bytes()[:100]):
        with pytest.raises(FormatError, match="private key"):
            SigningKey.from_pem(bad)
    with pytest.raises(FormatError, match="public key"):
        PublicKey(b"not DER")


def test_no_secret_in_any_repr():
    key, hpke, secret = SigningKey.generate(), HpkeKey(), random_key()
    scalar = key.private_key.private_numbers().private_value
    private = hpke._key.private_bytes_raw()
    shown = " ".join(f"{thing!r} {thing}" for thing in (key, key.public, hpke, BlockCipher(secret)))
    for hidden in (f"{scalar:x}", str(scalar), private.hex(), repr(private), secret.hex(), repr(secret)):
        assert hidden not in shown
    assert "<private>" in repr(key)
    assert "<private>" in repr(hpke)


# HPKE


def test_hpke_opens_for_one_key_and_one_purpose():
    key = HpkeKey()
    box = hpke_seal(key.public, b"secret", info=b"configuration")
    assert b"secret" not in box
    assert key.open(box, info=b"configuration") == b"secret"
    assert hpke_seal(key.public, b"secret", info=b"configuration") != box
    with pytest.raises(TamperedError):
        key.open(box, info=b"another purpose")
    with pytest.raises(TamperedError):
        HpkeKey().open(box, info=b"configuration")
    for bad in (b"", box[:16], box[:-1], box[:-1] + bytes([box[-1] ^ 1]), bytes([box[0] ^ 1]) + box[1:], box + b"\0"):
        with pytest.raises(TamperedError):
            key.open(bad, info=b"configuration")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)])
def test_hpke_keys_of_another_length(public):
    with pytest.raises(FormatError, match="HPKE key"):
        hpke_seal(public, b"secret", info=b"")


def test_hpke_to_the_point_of_small_order():
    with pytest.raises(FormatError, match="HPKE key"):
        hpke_seal(bytes(32), b"secret", info=b"")


# X.509


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("test", now=NOW)


def leaf(authority, key=None, **options):
    public = (key or SigningKey.generate()).public
    return authority.issue(public, "leaf", now=NOW, **({"lifetime": DAY} | options))


def test_a_leaf_of_the_authority(authority):
    key = SigningKey.generate()
    issued = leaf(authority, key, uris=["spiffe://acme/job"], hosts=["localhost", "127.0.0.1", "::1"])
    assert issued.key == key.public
    assert issued.uris == ["spiffe://acme/job"]
    assert issued.not_after == NOW + DAY
    assert leaf(authority).uris == []
    for same in (issued, Certificate(issued.der), Certificate.from_pem(issued.pem())):
        same.verify_issued_by(authority.certificate, now=NOW)
    authority.certificate.verify_issued_by(authority.certificate, now=NOW)


def test_certificates_have_their_time(authority):
    issued = leaf(authority)
    issued.verify_issued_by(authority.certificate, now=NOW - dt.timedelta(minutes=4))  # a clock that lags
    for moment in (NOW - DAY, NOW + DAY + dt.timedelta(seconds=1)):
        with pytest.raises(ExpiredError, match="certificate: not valid at"):
            issued.verify_issued_by(authority.certificate, now=moment)
    with pytest.raises(ExpiredError, match="issuer: not valid at"):
        leaf(authority, lifetime=5000 * DAY).verify_issued_by(authority.certificate, now=NOW + 4000 * DAY)


def test_another_authority_of_the_same_name(authority):
    other = CertificateAuthority.create("test", now=NOW)
    with pytest.raises(VerificationError, match="not issued by"):
        leaf(other).verify_issued_by(authority.certificate, now=NOW)


def test_a_leaf_issues_nothing(authority):
    key = SigningKey.generate()
    intermediate = CertificateAuthority(key, leaf(authority, key))
    with pytest.raises(VerificationError, match="is not a CA certificate"):
        leaf(intermediate).verify_issued_by(intermediate.certificate, now=NOW)
    alone = self_signed(key, "alone", now=NOW, lifetime=DAY)
    with pytest.raises(VerificationError, match="is not a CA certificate"):
        alone.verify_issued_by(alone, now=NOW)


def test_an_authority_has_its_own_key(authority):
    with pytest.raises(VerificationError, match="not the key's"):
        CertificateAuthority(SigningKey.generate(), authority.certificate)


def test_changed_certificates(authority):
    issued = leaf(authority)
    changed = bytearray(issued.der)
    changed[-1] ^= 1
    with pytest.raises((VerificationError, FormatError)):
        Certificate(bytes(changed)).verify_issued_by(authority.certificate, now=NOW)
    for bad in (b"", b"not DER", issued.der[:-1]):
        with pytest.raises(FormatError, match=r"not X\.509 DER"):
            Certificate(bad)
    with pytest.raises(FormatError, match=r"not X\.509 PEM"):
        Certificate.from_pem(b"not PEM")
