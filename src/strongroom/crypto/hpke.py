"""Hybrid public-key encryption (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

Secrets go to an enclave sealed to the key in its attested claims, so that whatever terminates TLS in between learns
nothing.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import x25519

from strongroom.errors import FormatError, TamperedError

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
PUBLIC_SIZE = PRIVATE_SIZE = 32


class HpkeKey:
    """A private HPKE key that leaves this object only through `private`. `public` is its 32-byte X25519 point.

    Args:
        private: one that was kept, 32 bytes; a new one without.

    Raises:
        FormatError: `private` has another length.
    """

    def __init__(self, private: bytes | None = None) -> None:
        if private is None:
            self._key = x25519.X25519PrivateKey.generate()
        elif len(private) == PRIVATE_SIZE:
            self._key = x25519.X25519PrivateKey.from_private_bytes(private)
        else:
            raise FormatError(f"private HPKE key: {len(private)} bytes, wanted {PRIVATE_SIZE}")
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def private(self) -> bytes:
        """The private scalar, 32 bytes, for who keeps the key."""
        return self._key.private_bytes_raw()

    def open(self, box: bytes, *, info: bytes) -> bytes:
        """Open what `hpke_seal` sealed to this key under the same `info`.

        Raises:
            TamperedError: it was not, or was changed.
        """
        try:
            return _SUITE.decrypt(box, self._key, info=info)
        except (InvalidTag, ValueError):
            raise TamperedError("HPKE box: does not open under this key") from None

    def __repr__(self) -> str:
        return f"HpkeKey(<private>, public={self.public.hex()})"


def hpke_seal(public: bytes, plaintext: bytes, *, info: bytes) -> bytes:
    """Seal `plaintext` to a 32-byte X25519 key.

    Raises:
        FormatError: `public` is not such a key.
    """
    try:
        return _SUITE.encrypt(plaintext, x25519.X25519PublicKey.from_public_bytes(public), info=info)
    except ValueError:
        raise FormatError(f"HPKE key: {len(public)} bytes, wanted a {PUBLIC_SIZE}-byte X25519 key") from None
