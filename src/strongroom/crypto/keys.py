"""Signature keys: ECDSA on P-256 with SHA-256, the one that TLS, TPMs, DCAP and JOSE (ES256) all know."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from strongroom.crypto.derive import digest
from strongroom.errors import FormatError, VerificationError

_ECDSA = ec.ECDSA(hashes.SHA256())
SIGNATURE_SIZE = 64


class PublicKey:
    """A P-256 verification key.

    `spki` is its DER SubjectPublicKeyInfo, `fingerprint` the SHA-256 of that as ``sha256:<hex>``: the name by which
    keys are pinned everywhere.
    """

    def __init__(self, spki: bytes) -> None:
        """Raises FormatError if `spki` is not a DER SubjectPublicKeyInfo of a P-256 key."""
        try:
            key = serialization.load_der_public_key(spki)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError("public key: not a DER SubjectPublicKeyInfo") from None
        self._take(key)

    def _take(self, key: object) -> None:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise FormatError("public key: not an elliptic-curve key on P-256")
        self._key = key
        self.spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def of(cls, key: object) -> PublicKey:
        """The same of a key that was read already. Raises FormatError if it is not on P-256."""
        made = cls.__new__(cls)
        made._take(key)
        return made

    @cached_property
    def fingerprint(self) -> str:
        return "sha256:" + digest(self.spki).hex()

    @property
    def point(self) -> bytes:
        """The raw point, x || y, 64 bytes big-endian, as DCAP quotes hold it."""
        return self._key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)[1:]

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a raw signature, r || s, 64 bytes big-endian (JOSE's form).

        Raises:
            VerificationError: it is not this key's signature of `message`.
        """
        if len(signature) != SIGNATURE_SIZE:
            raise VerificationError(f"signature: {len(signature)} bytes, wanted {SIGNATURE_SIZE}")
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        try:
            self._key.verify(encode_dss_signature(r, s), message, _ECDSA)
        except InvalidSignature:
            raise VerificationError("signature: does not match the key") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.spki == other.spki

    def __hash__(self) -> int:
        return hash(self.spki)

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint})"


class Signer(Protocol):
    """What signs: a key in memory, or one that a piece of hardware keeps."""

    @property
    def public(self) -> PublicKey: ...

    def sign(self, message: bytes) -> bytes:
        """The raw signature, r || s, 64 bytes big-endian."""
        ...


class SigningKey:
    """A P-256 private key. Its value leaves this object only through `pem` and `save`."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey(
            key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Raises FormatError if `pem` is not an unencrypted PKCS#8 or SEC 1 key on P-256."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError("private key: not an unencrypted PEM key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise FormatError("private key: not an elliptic-curve key on P-256")
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a PEM file."""
        return cls.from_pem(path.read_bytes())

    def save(self, path: Path) -> None:
        """Write a new PEM file, mode 0600. Raises FileExistsError rather than replace a key."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(self.pem())

    def pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """The raw signature, r || s, 64 bytes big-endian."""
        r, s = decode_dss_signature(self._key.sign(message, _ECDSA))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The underlying key, for this package and for the TLS layer."""
        return self._key

    def __repr__(self) -> str:
        return f"SigningKey(<private>, public={self.public.fingerprint})"
