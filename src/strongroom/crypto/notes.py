"""The signatures of signed notes (C2SP, signed-note): Ed25519 of witnesses, and ECDSA in DER by keys on P-256."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strongroom.crypto.keys import PublicKey, SigningKey
from strongroom.errors import FormatError, VerificationError

ED25519_KEY_SIZE = 32
ED25519_SIGNATURE_SIZE = 64
_ECDSA = ec.ECDSA(hashes.SHA256())


class Ed25519Key:
    """An Ed25519 private key (RFC 8032). Its value leaves this object only through `pem`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Ed25519Key:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Ed25519Key:
        """Raises FormatError if `pem` is not an unencrypted PKCS #8 Ed25519 key."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError("private key: not an unencrypted PEM key") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise FormatError("private key: not an Ed25519 key")
        return cls(key)

    def pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Ed25519Key(<private>, public={self.public.hex()})"


def verify_ed25519(public: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature under a raw public key of 32 bytes.

    Raises:
        VerificationError: it is not that key's signature of `message`, or the key is none.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise VerificationError("signature: does not match the key") from None


def sign_der(key: SigningKey, message: bytes) -> bytes:
    """ECDSA with SHA-256, in DER, as signed notes hold it."""
    return key.private_key.sign(message, _ECDSA)


def verify_der(key: PublicKey, signature: bytes, message: bytes) -> None:
    """Check what `sign_der` makes.

    Raises:
        VerificationError: it is not this key's signature of `message`.
    """
    loaded = serialization.load_der_public_key(key.spki)
    assert isinstance(loaded, ec.EllipticCurvePublicKey)  # noqa: S101  # a PublicKey is on P-256
    try:
        loaded.verify(signature, message, _ECDSA)
    except InvalidSignature:
        raise VerificationError("signature: does not match the key") from None
