"""Keys for protocols that agree on secrets themselves, such as WireGuard's (X25519, RFC 7748)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import x25519


def exchange_pair() -> tuple[bytes, bytes]:
    """A new private key and its public one, 32 bytes each."""
    key = x25519.X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()
