"""The only importer of `cryptography`: AEAD, key derivation, signatures, X.509 and HPKE behind a few small types.

`content.py`, the only importer of `blake3`, says what bytes are to parties that share no key.

Rules:

- Keys come from the operating system's random generator or from `derive`; nothing here invents randomness.
- Whatever is verified raises; no function returns a bool that a caller could ignore.
- No key appears in `repr`, in an exception or in a log.
"""

from strongroom.crypto.aead import KEY_SIZE, NONCE_SIZE, TAG_SIZE, BlockCipher, open_box, seal_box
from strongroom.crypto.content import ContentDigest, content_digest
from strongroom.crypto.derive import derive, digest, equal, random_bytes, random_key
from strongroom.crypto.exchange import exchange_pair
from strongroom.crypto.hpke import HpkeKey, hpke_seal
from strongroom.crypto.keys import PublicKey, Signer, SigningKey
from strongroom.crypto.keystream import STREAM_KEY_SIZE, KeyStream
from strongroom.crypto.x509 import Certificate, CertificateAuthority, names_its_own_issuer, self_signed

__all__ = [
    "KEY_SIZE",
    "NONCE_SIZE",
    "STREAM_KEY_SIZE",
    "TAG_SIZE",
    "BlockCipher",
    "Certificate",
    "CertificateAuthority",
    "ContentDigest",
    "HpkeKey",
    "KeyStream",
    "PublicKey",
    "Signer",
    "SigningKey",
    "content_digest",
    "derive",
    "digest",
    "equal",
    "exchange_pair",
    "hpke_seal",
    "names_its_own_issuer",
    "open_box",
    "random_bytes",
    "random_key",
    "seal_box",
    "self_signed",
]
