"""Public keys of vendors: which are read, and what they did not sign."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from strongroom.crypto.chains import VendorKey
from strongroom.errors import FormatError, VerificationError
from tests.crypto.certificates import P384, PSS, RSA


def spki(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_spki(modulus: int, exponent: int) -> bytes:
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "key",
    [ec.SECP224R1(), ec.SECP256K1(), ec.BrainpoolP384R1()],
    ids=lambda curve: curve.name,
)
def test_other_curves_are_refused(key):
    with pytest.raises(FormatError, match="P-256, P-384 or P-521"):
        VendorKey(spki(ec.generate_private_key(key)))


def test_a_curve_that_is_spelled_out_is_one_of_those_with_a_name():
    # The parameters of P-256, given one by one. Another generator would let anybody sign (CVE-2020-0601).
    explicit = bytes.fromhex(
        "3082014b3082010306072a8648ce3d02013081f7020101302c06072a8648ce3d0101022100ffffffff0000000100000000000000000000"
        "0000ffffffffffffffffffffffff305b0420ffffffff00000001000000000000000000000000fffffffffffffffffffffffc04205ac635"
        "d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b031500c49d360886e704936a6678e1139d26b7819f7e90044104"
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315e"
        "cecbb6406837bf51f5022100ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551020101034200041e524040"
        "deb7980d2997732c7fa665b1d5c7615f00b81f9220243c535e7f2aefb2e33d1fb7e2b63c59809638f8130a43b23030f0711119820c59f0"
        "309bc3df1a"
    )
    assert VendorKey(explicit).kind == "P-256"
    for place in (explicit.index(bytes.fromhex("6b17d1f2")), explicit.index(bytes.fromhex("5ac635d8"))):
        with pytest.raises(FormatError):
            VendorKey(explicit[:place] + bytes([explicit[place] ^ 1]) + explicit[place + 1 :])


def test_other_kinds_of_key_are_refused():
    with pytest.raises(FormatError, match="wanted RSA"):
        VendorKey(spki(ed25519.Ed25519PrivateKey.generate()))
    modulus = RSA["root"].public_key().public_numbers().n
    for exponent in (3, 17, 2**32 + 1, 2**1024 + 1):
        with pytest.raises(FormatError, match="exponent"):
            VendorKey(rsa_spki(modulus, exponent))
    assert VendorKey(rsa_spki(modulus, 65537)).kind == "RSA"
    for bits in (1024, 8200):
        with pytest.raises(FormatError):
            VendorKey(rsa_spki(2 ** (bits - 1) + 1, 65537))
    with pytest.raises(FormatError):
        VendorKey(spki(P384["leaf"]) + b"\0")
    with pytest.raises(FormatError):
        VendorKey(b"\x30" * 20_000)


def test_what_a_vendor_key_did_not_sign_is_refused():
    elliptic, modular = VendorKey(spki(P384["leaf"])), VendorKey(spki(RSA["root"]))
    signature = RSA["root"].sign(b"m", PSS, hashes.SHA384())
    modular.verify_rsa(signature, b"m", algorithm="sha384", pss=True)
    for wrong in (
        lambda: modular.verify_rsa(signature, b"n", algorithm="sha384", pss=True),
        lambda: modular.verify_rsa(signature, b"m", algorithm="sha384"),
        lambda: modular.verify_rsa(b"", b"m", algorithm="sha384"),
        lambda: modular.verify_ecdsa(1, 1, b"m", algorithm="sha384"),
        lambda: elliptic.verify_rsa(signature, b"m", algorithm="sha384"),
        *(
            lambda r=r, s=s: elliptic.verify_ecdsa(r, s, b"m", algorithm="sha384")
            for r in (-1, 0, 1, 2**576)
            for s in (-1, 0, 1, 2**576)
        ),
    ):
        with pytest.raises(VerificationError):
            wrong()
