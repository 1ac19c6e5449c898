"""Key derivation, digests, comparison and randomness."""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.crypto.aead import KEY_SIZE


def derive(key: bytes, label: str, *, context: bytes = b"", length: int = KEY_SIZE) -> bytes:
    """HKDF-SHA-256 (RFC 5869) of `key`, domain-separated by `label` and `context`.

    The info string is ``label || 0x00 || context``; labels are ASCII without NUL, so that no two (label, context) pairs
    meet.
    """
    if "\0" in label:
        raise ValueError("label: contains NUL")
    info = label.encode("ascii") + b"\0" + context
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(key)


def digest(*parts: bytes, algorithm: str = "sha256") -> bytes:
    """The digest of the concatenation of `parts`. Callers frame variable-length parts themselves."""
    state = hashlib.sha256() if algorithm == "sha256" else hashlib.new(algorithm)
    for part in parts:
        state.update(part)
    return state.digest()


def equal(a: bytes, b: bytes) -> bool:
    """Compare in constant time (for inputs of equal length)."""
    return hmac.compare_digest(a, b)


def random_bytes(count: int) -> bytes:
    """Bytes from the operating system's generator."""
    return os.urandom(count)


def random_key() -> bytes:
    """A fresh 256-bit key."""
    return os.urandom(KEY_SIZE)
