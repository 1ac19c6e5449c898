"""X.509 as a TEE vendor issues it: deep chains, extensions of its own, and revocation lists.

Only the simulated vendor uses this. Everything that a certificate says is an argument, and nothing reads a clock.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from strongroom.crypto.keys import PublicKey, SigningKey

_CRL_URL = "https://simulated.invalid/crl"


@dataclass(frozen=True)
class Validity:
    """A closed interval of seconds since 1970."""

    start: int
    end: int

    def times(self) -> tuple[dt.datetime, dt.datetime]:
        return dt.datetime.fromtimestamp(self.start, dt.UTC), dt.datetime.fromtimestamp(self.end, dt.UTC)


@dataclass(frozen=True)
class Issuer:
    """A key that signs certificates and revocation lists, under a common name."""

    name: str
    key: SigningKey

    def certificate(
        self,
        name: str,
        public: PublicKey,
        validity: Validity,
        *,
        ca: bool,
        extensions: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """A DER certificate for `public`; `extensions` maps dotted object identifiers to DER values."""
        own, theirs = (_public(key) for key in (self.key.public, public))
        start, end = validity.times()
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.name))
            .public_key(theirs)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(ca=ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(theirs), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
            .add_extension(_crl_points(), critical=False)
        )
        for oid, value in (extensions or {}).items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
            )
        return builder.sign(self.key.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def revocation_list(self, validity: Validity) -> bytes:
        """A DER revocation list that names no certificate."""
        start, end = validity.times()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.name))
            .last_update(start)
            .next_update(end)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(self.key.public)), critical=False)
        )
        return builder.sign(self.key.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def pem_chain(*certificates: bytes) -> str:
    """DER certificates as one PEM text, in the order given."""
    return "".join(
        x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM).decode() for der in certificates
    )


def _public(key: PublicKey) -> ec.EllipticCurvePublicKey:
    return cast(ec.EllipticCurvePublicKey, serialization.load_der_public_key(key.spki))


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Strongroom simulation, protects nothing"),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _crl_points() -> x509.CRLDistributionPoints:
    # Intel's certificates name one, and revocation checking looks for it; nobody ever fetches this one.
    return x509.CRLDistributionPoints(
        [x509.DistributionPoint([x509.UniformResourceIdentifier(_CRL_URL)], None, None, None)]
    )
