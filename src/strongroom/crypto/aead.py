"""Authenticated encryption with 24-byte nonces that may be drawn at random for ever.

`BlockCipher` is XAES-256-GCM (https://c2sp.org/XAES-256-GCM): the first 12 bytes of the nonce select a derived AES-256
key, the last 12 are that key's GCM nonce. A 96-bit random nonce alone would reach NIST SP 800-38D's limit of 2^32
messages within hours at 4 KiB blocks; here a process draws one 12-byte prefix, so the derived key is cached and the
cost per block is that of plain AES-GCM.

AES-GCM commits to no key: where an attacker may offer several keys, check a key commitment first (the sealed file
does).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.errors import TamperedError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

KEY_SIZE = 32
NONCE_SIZE = 24
TAG_SIZE = 16
_PREFIX = 12
_CACHED_KEYS = 64


class BlockCipher:
    """XAES-256-GCM under one key, into buffers of the caller's. For use from any number of threads.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError(f"key: {len(key)} bytes, wanted {KEY_SIZE}")
        # The block function under the 256-bit key; ECB of one block is that function (the CMAC of the specification).
        self._block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
        doubled = int.from_bytes(self._block.update(bytes(16)), "big") << 1
        if doubled >> 128:
            doubled ^= (1 << 128) | 0x87
        self._k1 = doubled
        self._lock = threading.Lock()  # the block function keeps state while it works
        self._derived: OrderedDict[bytes, AESGCM] = OrderedDict()

    def __repr__(self) -> str:
        return "BlockCipher(<key>)"

    def _gcm(self, prefix: bytes) -> AESGCM:
        return self._derived.get(prefix) or self._derive(prefix)

    def _derive(self, prefix: bytes) -> AESGCM:
        with self._lock:
            halves = (
                self._block.update(
                    (int.from_bytes(bytes((0, i)) + b"X\0" + prefix, "big") ^ self._k1).to_bytes(16, "big")
                )
                for i in (1, 2)
            )
            gcm = self._derived[prefix] = AESGCM(b"".join(halves))
            if len(self._derived) > _CACHED_KEYS:
                self._derived.popitem(last=False)
        return gcm

    def encrypt_into(self, nonce: bytes, plaintext: Buffer, aad: Buffer, out: Buffer) -> None:
        """Write ciphertext and tag, `len(plaintext) + 16` bytes, to `out`. `nonce` is 24 bytes, never used before."""
        self.seal_into(bytes(nonce[:_PREFIX]), nonce[_PREFIX:], plaintext, aad, out)

    def seal_into(self, prefix: bytes, nonce: bytes, plaintext: Buffer, aad: Buffer, out: Buffer) -> None:
        """As `encrypt_into`, of a nonce in its two halves of 12 bytes: for who takes them apart anyway."""
        (self._derived.get(prefix) or self._derive(prefix)).encrypt_into(nonce, plaintext, aad, out)

    def decrypt_into(self, nonce: bytes, box: Buffer, aad: Buffer, out: Buffer) -> None:
        """Write the plaintext of `box` (ciphertext and tag), `len(box) - 16` bytes, to `out`.

        `box` must be private memory: what the host can write while it is read must be copied first.

        Raises:
            TamperedError: the tag does not match; `out` holds nothing of use.
        """
        self.open_into(bytes(nonce[:_PREFIX]), nonce[_PREFIX:], box, aad, out)

    def open_into(self, prefix: bytes, nonce: bytes, box: Buffer, aad: Buffer, out: Buffer) -> None:
        """As `decrypt_into`, of a nonce in its two halves of 12 bytes: for who takes them apart anyway."""
        try:
            (self._derived.get(prefix) or self._derive(prefix)).decrypt_into(nonce, box, aad, out)
        except InvalidTag:
            raise TamperedError("ciphertext: authentication failed") from None

    def encrypt(self, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes:
        """Ciphertext and tag as new bytes."""
        return self._gcm(bytes(nonce[:_PREFIX])).encrypt(nonce[_PREFIX:], plaintext, aad)

    def decrypt(self, nonce: bytes, box: Buffer, aad: bytes) -> bytes:
        """The plaintext as new bytes.

        Raises:
            TamperedError: the tag does not match.
        """
        try:
            return self._gcm(bytes(nonce[:_PREFIX])).decrypt(nonce[_PREFIX:], box, aad)
        except InvalidTag:
            raise TamperedError("ciphertext: authentication failed") from None


def seal_box(key: bytes | BlockCipher, plaintext: bytes, aad: bytes) -> bytes:
    """``nonce[24] || ciphertext || tag[16]`` of a small message, under a fresh random nonce.

    Args:
        key: 32 bytes, or for who seals under it often the cipher of it.
    """
    nonce = os.urandom(NONCE_SIZE)
    return nonce + _cipher(key).encrypt(nonce, plaintext, aad)


def open_box(key: bytes | BlockCipher, box: bytes, aad: bytes) -> bytes:
    """The plaintext that `seal_box` took under the same key.

    Raises:
        TamperedError: wrong key, other `aad`, or changed bytes (one cannot tell which).
    """
    if len(box) < NONCE_SIZE + TAG_SIZE:
        raise TamperedError(f"sealed box: {len(box)} bytes, wanted at least {NONCE_SIZE + TAG_SIZE}")
    return _cipher(key).decrypt(box[:NONCE_SIZE], box[NONCE_SIZE:], aad)


def _cipher(key: bytes | BlockCipher) -> BlockCipher:
    return key if isinstance(key, BlockCipher) else BlockCipher(key)
