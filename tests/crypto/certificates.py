"""Certificates and revocation lists as the tests want them: sound unless told otherwise."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from strongroom.crypto.chains import RevocationList, VendorCertificate

START = 1_700_000_000
END = START + 100_000
NOW = START + 50_000

P384 = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("root", "middle", "leaf", "other")}
RSA = {name: rsa.generate_private_key(65537, 2048) for name in ("root", "middle")}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def moment(seconds: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)


def name(common: str | x509.Name) -> x509.Name:
    return (
        common if isinstance(common, x509.Name) else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    )


def usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{each: each in allowed for each in USAGES})


@dataclass(frozen=True)
class Party:
    """A certificate and its private key."""

    native: x509.Certificate
    key: Any

    @property
    def certificate(self) -> VendorCertificate:
        return VendorCertificate(self.der)

    @property
    def der(self) -> bytes:
        return self.native.public_bytes(serialization.Encoding.DER)


def issue(
    subject: str | x509.Name,
    key: Any,
    issuer: Party | None = None,
    *,
    ca: bool = False,
    path_length: int | None = None,
    usages: tuple[str, ...] | None = None,
    constraints: bool = True,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    start: int = START,
    end: int = END,
    serial: int = 7,
    algorithm: hashes.HashAlgorithm | None = None,
    rsa_padding: Any = None,
) -> Party:
    """A certificate for `key` by `issuer`, or by itself."""
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(issuer.native.subject if issuer else name(subject))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(moment(start))
        .not_valid_after(moment(end))
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if usages is not None:
        builder = builder.add_extension(usage(*usages), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    if rsa_padding is None and isinstance(signer, rsa.RSAPrivateKey):
        rsa_padding = PSS
    return Party(builder.sign(signer, algorithm or hashes.SHA384(), rsa_padding=rsa_padding), key)


def chain(**of_middle: Any) -> tuple[Party, Party, Party]:
    """Leaf, issuer, root, each on P-384."""
    root = issue("root", P384["root"], ca=True)
    middle = issue("middle", P384["middle"], root, **({"ca": True, "serial": 8} | of_middle))
    return issue("leaf", P384["leaf"], middle, serial=9), middle, root


def revocation_list(
    issuer: Party,
    *serials: int,
    start: int = START,
    end: int = END,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    of_entries: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> RevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.native.subject)
        .last_update(moment(start))
        .next_update(moment(end))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(start))
        for extension, critical in of_entries:
            entry = entry.add_extension(extension, critical=critical)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    rsa_padding = PSS if isinstance(issuer.key, rsa.RSAPrivateKey) else None
    signed = builder.sign(issuer.key, hashes.SHA384(), rsa_padding=rsa_padding)
    return RevocationList(signed.public_bytes(serialization.Encoding.DER))


def sequence(*parts: bytes) -> bytes:
    """A DER SEQUENCE."""
    return element(0x30, b"".join(parts))


def element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def signed_again(party: Party, signer: Any, *, message: bytes | None = None, algorithm: Any = None) -> bytes:
    """A certificate with another signed part, or a signature with another digest, as no builder makes them."""
    message = message or party.native.tbs_certificate_bytes
    algorithm = algorithm or hashes.SHA384()
    signature = (
        signer.sign(message, PSS, algorithm)
        if isinstance(signer, rsa.RSAPrivateKey)
        else signer.sign(message, ec.ECDSA(algorithm))
    )
    # The outer algorithm is what follows the signed part.
    start = party.der.index(party.native.tbs_certificate_bytes) + len(party.native.tbs_certificate_bytes)
    identifier = party.der[start : start + 2 + party.der[start + 1]]
    if not isinstance(algorithm, hashes.SHA384):
        identifier = identifier[:-1] + bytes([{"sha256": 2, "sha512": 4}[algorithm.name]])
    return sequence(message, identifier, element(3, b"\0" + signature))
