"""The primitives, against vectors of their specifications and against a second computation of the same."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from strongroom.crypto import BlockCipher, derive, digest, open_box, seal_box
from strongroom.errors import TamperedError

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"
PLAINTEXT = b"XAES-256-GCM"
# https://c2sp.org/XAES-256-GCM: key, associated data, ciphertext and tag.
XAES = [
    (b"\1" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
    (b"\3" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
]


@pytest.mark.parametrize(("key", "aad", "box"), XAES)
def test_xaes_256_gcm(key, aad, box):
    cipher, wanted = BlockCipher(key), bytes.fromhex(box)
    assert cipher.encrypt(NONCE, PLAINTEXT, aad) == wanted
    assert cipher.decrypt(NONCE, wanted, aad) == PLAINTEXT
    out = bytearray(len(wanted))
    cipher.encrypt_into(NONCE, PLAINTEXT, aad, out)
    assert bytes(out) == wanted
    plain = bytearray(len(PLAINTEXT))
    cipher.decrypt_into(NONCE, wanted, aad, plain)
    assert bytes(plain) == PLAINTEXT
    assert open_box(key, NONCE + wanted, aad) == PLAINTEXT


@pytest.mark.parametrize(("key", "aad", "box"), XAES)
def test_xaes_256_gcm_refuses_anything_else(key, aad, box):
    wanted = bytes.fromhex(box)
    for at in range(8 * len(wanted)):
        changed = bytearray(wanted)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(TamperedError):
            BlockCipher(key).decrypt(NONCE, changed, aad)
    for other_key, nonce, other_aad in (
        (b"\2" * 32, NONCE, aad),
        (key, b"Z" + NONCE[1:], aad),
        (key, NONCE[:-1] + b"Z", aad),
        (key, NONCE, aad + b"\0"),
    ):
        with pytest.raises(TamperedError):
            BlockCipher(other_key).decrypt(nonce, wanted, other_aad)


def test_a_cipher_gives_the_same_whatever_it_did_before():
    cipher = BlockCipher(b"\1" * 32)
    for prefix in range(200):  # more derived keys than it remembers
        cipher.encrypt(prefix.to_bytes(12, "big") + bytes(12), b"x", b"")
    assert cipher.encrypt(NONCE, PLAINTEXT, b"").hex() == XAES[0][2]


def test_boxes_have_fresh_nonces_and_a_least_size():
    key = bytes(32)
    boxes = {seal_box(key, b"text", b"aad") for _ in range(10)}
    assert len({box[:24] for box in boxes}) == 10
    assert {open_box(key, box, b"aad") for box in boxes} == {b"text"}
    for box in (b"", bytes(39)):
        with pytest.raises(TamperedError, match="wanted at least 40"):
            open_box(key, box, b"aad")
    assert open_box(key, seal_box(key, b"", b""), b"") == b""


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2."""
    prk = hmac.digest(salt or bytes(32), key, "sha256")
    out, block, count = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([count]), "sha256")
        out, count = out + block, count + 1
    return out[:length]


def test_the_second_computation_of_hkdf_is_that_of_rfc_5869():
    # A.1
    okm = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    # A.3
    okm = hkdf(b"\x0b" * 22, b"", b"", 42)
    assert okm.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"


@pytest.mark.parametrize("length", [16, 32, 42, 100])
@pytest.mark.parametrize(("label", "context"), [("a label", b""), ("strongroom/test", bytes(range(80)))])
def test_derive_is_hkdf_with_a_framed_label(label, context, length):
    key = bytes(range(32))
    assert derive(key, label, context=context, length=length) == hkdf(
        key, b"", label.encode() + b"\0" + context, length
    )


def test_no_two_labels_and_contexts_meet():
    key = bytes(32)
    derived = [derive(key, label, context=context) for label, context in (("ab", b""), ("a", b"b"), ("a", b"\0b"))]
    assert len(set(derived)) == 3
    with pytest.raises(ValueError, match="NUL"):
        derive(key, "a\0b")


def test_sha256_is_hashlibs():
    assert digest(b"a", b"bc") == hashlib.sha256(b"abc").digest()
    assert digest(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
