"""What TPM 2.0 computes with keys: credentials that only one TPM can open, and certificates for attestation keys.

Sources: Trusted Computing Group, "TPM 2.0 Library, part 1: Architecture", revision 1.59: sections 11.4.10 (KDFa, KDFe)
and 24 (credential protection), annexes B.10.4 (secret sharing with RSA) and C.6.4 (with elliptic curves).
"""

from __future__ import annotations

import datetime as dt
import hmac

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from cryptography.x509.oid import NameOID

from strongroom.crypto.chains import VendorCertificate, VendorKey
from strongroom.crypto.derive import random_bytes
from strongroom.crypto.x509 import CertificateAuthority
from strongroom.errors import FormatError, UsageError

# TCG EK Credential Profile, version 2.5, section 3.5.12, and TCG OID Registry: tcg-kp-EKCertificate, -AIKCertificate.
EK_USAGE = "2.23.133.8.1"
AK_USAGE = "2.23.133.8.3"

_HASHES: dict[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_IDENTITY = b"IDENTITY\0"
_SKEW = dt.timedelta(minutes=5)


def rsa_key(modulus: bytes, exponent: int) -> VendorKey:
    """The RSA key of these numbers. Raises FormatError if there is none, or none of 2048 to 8192 bits."""
    try:
        key = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()
    except ValueError:
        raise FormatError("public key: not an RSA key") from None
    return VendorKey(_spki(key))


def ec_key(curve: str, x: bytes, y: bytes) -> VendorKey:
    """The key at that point of ``P-256``, ``P-384`` or ``P-521``. Raises FormatError if it is not on the curve."""
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), _CURVES[curve])
        return VendorKey(_spki(numbers.public_key()))
    except ValueError:
        raise FormatError(f"public key: not a point on {curve}") from None


def make_credential(ek: VendorKey, name: bytes, secret: bytes, *, algorithm: str, key_bits: int) -> tuple[bytes, bytes]:
    """Encrypt `secret` so that only the TPM of `ek` can read it, and only while it holds the object called `name`.

    Args:
        ek: the TPM's endorsement key.
        name: of the object, a TPM2B_NAME without its size.
        secret: at most as long as a digest of `algorithm`.
        algorithm: the name algorithm of `ek`: ``sha256`` or ``sha384``.
        key_bits: of the AES key in `ek`'s parameters: 128 or 256.

    Returns:
        What TPM2_ActivateCredential takes: TPMS_ID_OBJECT and the encrypted seed, each without the size before it.

    Raises:
        UsageError: the arguments are not of that form.
    """
    if algorithm not in _HASHES or key_bits not in (128, 256) or len(secret) > _HASHES[algorithm].digest_size:
        raise UsageError(f"credential: got {algorithm}, {key_bits} bits, {len(secret)} bytes of secret")
    chosen = _HASHES[algorithm]
    seed, encrypted_seed = _share_seed(ek, chosen)
    key = _kdfa(chosen, seed, b"STORAGE", name, key_bits // 8)
    # The key is fresh, and so the initial value may be zero.
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    mac_key = _kdfa(chosen, seed, b"INTEGRITY", b"", chosen.digest_size)
    mac = hmac.digest(mac_key, identity + name, chosen.name)
    return _sized(mac) + identity, encrypted_seed


def _share_seed(ek: VendorKey, chosen: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    """A seed, and what its TPM learns it from."""
    public = serialization.load_der_public_key(ek.spki)
    if isinstance(public, rsa.RSAPublicKey):  # B.10.4
        seed = random_bytes(chosen.digest_size)
        return seed, public.encrypt(seed, padding.OAEP(padding.MGF1(chosen), chosen, _IDENTITY))
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise UsageError(f"endorsement key: got {ek.kind}, wanted RSA or a key on a curve")
    # C.6.4
    ephemeral = ec.generate_private_key(public.curve)
    size = (public.curve.key_size + 7) // 8
    theirs, ours = public.public_numbers(), ephemeral.public_key().public_numbers()
    x, y, party = (number.to_bytes(size, "big") for number in (ours.x, ours.y, theirs.x))
    # ECDH gives the x-coordinate at the size of the curve.
    shared = ephemeral.exchange(ec.ECDH(), public)
    kdfe = ConcatKDFHash(chosen, chosen.digest_size, _IDENTITY + x + party)
    return kdfe.derive(shared), _sized(x) + _sized(y)


def _kdfa(chosen: hashes.HashAlgorithm, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    return KBKDFHMAC(
        chosen, Mode.CounterMode, size, 4, 4, CounterLocation.BeforeFixed, label, context, fixed=None
    ).derive(key)


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(2, "big") + part


def certify_ak(
    authority: CertificateAuthority, ak: VendorKey, name: str, *, now: dt.datetime, lifetime: dt.timedelta
) -> VendorCertificate:
    """A certificate for the attestation key of a TPM: quotes then verify under `authority` as their root."""
    root = authority.certificate.native
    usage = {"key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"}
    usage |= {"content_commitment", "encipher_only", "decipher_only"}
    public = serialization.load_der_public_key(ak.spki)
    builder = (
        x509.CertificateBuilder()
        # X.520 caps a common name at 64 characters.
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(root.subject)
        .public_key(public)  # type: ignore[arg-type]  # a VendorKey is RSA or on a curve
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **dict.fromkeys(usage, False)), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(AK_USAGE)]), critical=False)
    )
    signed = builder.sign(authority.key.private_key, hashes.SHA256())
    return VendorCertificate(signed.public_bytes(serialization.Encoding.DER))


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
