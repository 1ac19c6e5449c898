"""Quotes on record, and what a TPM does with its keys, from the specification's other side: tests without any TPM."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.tpm import TpmEvidence
from strongroom.attest.verify import VENDORS, verify
from strongroom.crypto.chains import VendorKey

ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D, "sm3": 0x0012}
HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
CURVES = {"secp256r1": 3, "secp384r1": 4}
# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted; then sign, or decrypt.
AK_BITS, EK_BITS = 0x00050072, 0x00030072
AES = struct.pack(">HHH", 0x0006, 128, 0x0043)
NONE = struct.pack(">H", 0x0010)


def sized(part: bytes) -> bytes:
    return struct.pack(">H", len(part)) + part


def public_area(key: Any, bits: int, *, symmetric: bytes = NONE, name: str = "sha256") -> bytes:
    """The TPMT_PUBLIC of a private key."""
    numbers = key.public_key().public_numbers()
    start = struct.pack(">HI", ALGORITHMS[name], bits) + sized(b"") + symmetric
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = numbers.n.to_bytes(key.key_size // 8, "big")
        return struct.pack(">H", 0x0001) + start + NONE + struct.pack(">HI", key.key_size, 0) + sized(modulus)
    size = key.curve.key_size // 8
    point = b"".join(sized(each.to_bytes(size, "big")) for each in (numbers.x, numbers.y))
    return struct.pack(">H", 0x0023) + start + NONE + struct.pack(">H", CURVES[key.curve.name]) + NONE + point


def attest(
    pcrs: Mapping[str, Mapping[int, bytes]],
    extra_data: bytes,
    *,
    signer: bytes = b"",
    algorithm: str = "sha256",
    firmware: int = 0x0001000200030004,
) -> bytes:
    """The TPMS_ATTEST of a quote of these registers."""
    selection = struct.pack(">I", len(pcrs))
    for bank, values in pcrs.items():
        bits = sum(1 << index for index in values)
        selection += struct.pack(">HB", ALGORITHMS[bank], 3) + bits.to_bytes(3, "little")
    values = (values[index] for values in pcrs.values() for index in sorted(values))
    digest = hashlib.new(algorithm, b"".join(values)).digest()
    clock = struct.pack(">QIIBQ", 1234, 5, 6, 1, firmware)
    return (
        struct.pack(">IH", 0xFF544347, 0x8018) + sized(signer) + sized(extra_data) + clock + selection + sized(digest)
    )


def sign(key: Any, message: bytes, *, algorithm: str = "sha256", pss: bool = False) -> bytes:
    """A TPMT_SIGNATURE."""
    chosen = HASHES[algorithm]
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = padding.PSS(padding.MGF1(chosen), chosen.digest_size) if pss else padding.PKCS1v15()
        parts = (0x0016 if pss else 0x0014, key.sign(message, scheme, chosen))
    else:
        parts = (0x0018, *decode_dss_signature(key.sign(message, ec.ECDSA(chosen))))
    encoded = (
        each if isinstance(each, bytes) else each.to_bytes((each.bit_length() + 7) // 8, "big") for each in parts[1:]
    )
    return struct.pack(">HH", parts[0], ALGORITHMS[algorithm]) + b"".join(map(sized, encoded))


def activate(ek: Any, name: bytes, credential: bytes, seed: bytes) -> bytes | None:
    """What TPM2_ActivateCredential gives for an endorsement key of SHA-256 and AES-128; None if it refuses."""
    if isinstance(ek, rsa.RSAPrivateKey):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        seed = ek.decrypt(seed, oaep)
    else:
        x, y = seed[2:34], seed[36:68]
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ek.curve)
        shared = ek.exchange(ec.ECDH(), numbers.public_key())
        party = ek.public_key().public_numbers().x.to_bytes(32, "big")
        seed = hashlib.sha256(struct.pack(">I", 1) + shared + b"IDENTITY\0" + x + party).digest()
    mac, identity = credential[2:34], credential[34:]
    if hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), identity + name, "sha256") != mac:
        return None
    # CFB by hand: each block is the cipher's output for the one before, added.
    block = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", name, 128)), modes.ECB()).encryptor()  # noqa: S305
    plain, before = b"", bytes(16)
    for at in range(0, len(identity), 16):
        piece = identity[at : at + 16]
        plain += bytes(a ^ b for a, b in zip(piece, block.update(before), strict=False))
        before = piece
    return plain[2 : 2 + int.from_bytes(plain[:2], "big")]


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    message = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(key, message, "sha256")[: bits // 8]


VECTORS = Path(__file__).parents[1] / "vectors" / "tpm2"
NOW = 1_750_000_000
REPORT_DATA = bytes(range(64))
PCRS = {"sha256": {index: bytes([index]) * 32 for index in range(10)}}
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def spki(key: object) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def check(shown: TpmEvidence, *keys: VendorKey) -> Claims:
    anchors = dataclasses.replace(VENDORS, tpm_keys=keys)
    return verify(Evidence("tpm", shown.to_bytes(), b""), now=NOW, anchors=anchors)


def quoted(
    key=P256, pcrs=PCRS, *, bits: int = AK_BITS, extra: bytes = b"n" * 32, signing=None, **options
) -> TpmEvidence:
    """Evidence by a TPM that holds `key`."""
    public = public_area(key, bits)
    message = attest(pcrs, extra, **options)
    return TpmEvidence(message, sign(key, message, **(signing or {})), pcrs, public)


def coco() -> TpmEvidence:
    wire = json.loads((VECTORS / "tpm_evidence_coco.json").read_text())
    quote = wire["tpm_quote"]
    values = {index: bytes.fromhex(value) for index, value in enumerate(quote["pcrs"])}
    message, signature, key = map(base64.b64decode, (quote["message"], quote["signature"], wire["ak_public"]))
    return TpmEvidence(message, signature, {"sha256": values}, spki=key)


def own(name: str) -> tuple[TpmEvidence, bytes]:
    """A quote by swtpm, and its nonce."""
    at = VECTORS / "swtpm_own"
    meta = json.loads((at / "meta.json").read_text())
    pcrs = {meta["bank"]: {int(index): bytes.fromhex(value) for index, value in meta["pcrs"].items()}}
    key = base64.b64decode("".join((at / f"{name}_ak.pem").read_text().splitlines()[1:-1]))
    message, signature = ((at / f"{name}_quote.{part}").read_bytes() for part in ("msg", "sig"))
    return TpmEvidence(message, signature, pcrs, spki=key), bytes.fromhex(meta["nonce"])


REAL = {"coco": coco, "ecc256": lambda: own("ecc256")[0], "rsa2048": lambda: own("rsa2048")[0]}
