"""X.509 v3 certificates: a one-level authority, self-signed channel certificates, and chain verification.

Verification here is narrow on purpose: one pinned root, leaves issued directly by it, validity at a `now` that the
caller gives, and no name matching (peers are named by key, or by the URI that the caller compares).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strongroom.crypto.keys import PublicKey, SigningKey
from strongroom.errors import ExpiredError, FormatError, VerificationError

# Certificates start a little in the past, so that a peer whose clock lags accepts a fresh one.
_SKEW = dt.timedelta(minutes=5)


class Certificate:
    """A parsed certificate with a P-256 key."""

    def __init__(self, der: bytes) -> None:
        """Raises FormatError if `der` is not an X.509 certificate with a P-256 key."""
        try:
            self._cert = x509.load_der_x509_certificate(der)
            key = self._cert.public_key()
            negative = self._cert.serial_number < 0
        except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, Warning):
            raise FormatError("certificate: not X.509 DER") from None
        if negative:  # RFC 5280, section 4.1.2.2; what reads it only warns
            raise FormatError("certificate: its serial number is negative")
        self.der = der
        self.key = PublicKey.of(key)

    @classmethod
    def _of(cls, made: x509.Certificate, key: PublicKey) -> Certificate:
        """One that was made here, for that key."""
        certificate = cls.__new__(cls)
        certificate._cert, certificate.key = made, key
        certificate.der = made.public_bytes(serialization.Encoding.DER)
        return certificate

    @classmethod
    def from_pem(cls, pem: bytes) -> Certificate:
        """Raises FormatError if `pem` holds no certificate."""
        try:
            cert = x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise FormatError("certificate: not X.509 PEM") from None
        return cls(cert.public_bytes(serialization.Encoding.DER))

    @classmethod
    def shown(cls, der: bytes) -> Certificate:
        """One that peers show again and again. Raises FormatError as the constructor does."""
        return _parsed(der)

    @property
    def native(self) -> x509.Certificate:
        """The underlying certificate, for this package and for the TLS layer."""
        return self._cert

    def pem(self) -> bytes:
        return self._cert.public_bytes(serialization.Encoding.PEM)

    @property
    def uris(self) -> list[str]:
        """The URIs of the subject alternative name, such as a SPIFFE ID."""
        names = self._names
        return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)

    @property
    def hosts(self) -> list[str]:
        """The DNS names of the subject alternative name."""
        names = self._names
        return [] if names is None else names.get_values_for_type(x509.DNSName)

    @property
    def _names(self) -> x509.SubjectAlternativeName | None:
        try:
            return self._cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
            return None  # it names nothing that can be read

    @property
    def serial(self) -> str:
        """The serial number in hexadecimal digits."""
        return f"{self._cert.serial_number:x}"

    @property
    def not_after(self) -> dt.datetime:
        return self._cert.not_valid_after_utc

    def verify_issued_by(self, root: Certificate, *, now: dt.datetime) -> None:
        """Check that `root`, a CA, signed this certificate and that both are valid at `now`.

        Raises:
            VerificationError: the signature does not match, or `root` may not issue.
            ExpiredError: one of them is not valid at `now`.
        """
        _check_issued(self, root)
        for name, cert in (("certificate", self._cert), ("issuer", root._cert)):
            if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
                raise ExpiredError(f"{name}: not valid at {now:%Y-%m-%d %H:%M:%SZ}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)


# A peer shows the same certificates on every connection.
_parsed = lru_cache(maxsize=64)(Certificate)


@lru_cache(maxsize=256)  # what two certificates say of each other stays so; a refusal is no result, and not kept
def _check_issued(certificate: Certificate, root: Certificate) -> None:
    """`Certificate.verify_issued_by`, but for the dates."""
    try:
        constraints = root._cert.extensions.get_extension_for_class(x509.BasicConstraints)
        if not constraints.value.ca:
            raise VerificationError("issuer: is not a CA certificate")
        certificate._cert.verify_directly_issued_by(root._cert)
    except x509.ExtensionNotFound:
        raise VerificationError("issuer: has no basic constraints") from None
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, x509.DuplicateExtension):
        raise VerificationError("certificate: not issued by the expected authority") from None


class CertificateAuthority:
    """A root key and its self-signed certificate, which issue leaves directly."""

    def __init__(self, key: SigningKey, certificate: Certificate) -> None:
        if key.public != certificate.key:
            raise VerificationError("authority: the certificate is not the key's")
        self.key = key
        self.certificate = certificate

    @classmethod
    def create(cls, name: str, *, now: dt.datetime, days: int = 3650) -> CertificateAuthority:
        key = SigningKey.generate()
        builder = _builder(_name(name), _name(name), key.public, now, dt.timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        # RFC 5280, sections 4.2.1.1 and 4.2.1.2: strict verifiers, such as Python's from 3.13 on, want both.
        builder = builder.add_extension(_key_id(key.public), critical=False)
        return cls(key, _sign(builder, key, key.public))

    def issue(
        self,
        public: PublicKey,
        name: str,
        *,
        now: dt.datetime,
        lifetime: dt.timedelta,
        uris: list[str] | None = None,
        hosts: list[str] | None = None,
    ) -> Certificate:
        """A leaf for TLS servers and clients; `hosts` are DNS names and IP addresses."""
        issuer = self.certificate.native.subject
        builder = _builder(_name(name), issuer, public, now, lifetime)
        builder = builder.add_extension(_NO_CA, critical=True)
        builder = builder.add_extension(_SIGNS, critical=True)
        builder = builder.add_extension(_TLS_USES, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_key_id(self.certificate.key))
        builder = builder.add_extension(authority, critical=False)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris or []]
        names += [_host(host) for host in hosts or []]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _sign(builder, self.key, public)


_TLS_USES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def self_signed(
    key: SigningKey, name: str, *, now: dt.datetime, lifetime: dt.timedelta, uri: str | None = None
) -> Certificate:
    """A certificate that carries a key into TLS and proves nothing else."""
    builder = _builder(_name(name), _name(name), key.public, now, lifetime)
    builder = builder.add_extension(_NO_CA, critical=True)
    if uri is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    return _sign(builder, key, key.public)


def names_its_own_issuer(der: bytes) -> bool:
    """Whether a certificate, with a key of whatever kind, has itself as its issuer, as roots have (RFC 5280, 6.1).

    Raises:
        FormatError: `der` is no certificate.
    """
    try:
        found = x509.load_der_x509_certificate(der)
        return found.issuer == found.subject
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, Warning):
        raise FormatError("certificate: not X.509 DER") from None


@lru_cache(maxsize=64)
def _name(common: str) -> x509.Name:
    # X.520 caps a common name at 64 characters.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


@lru_cache(maxsize=64)
def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@lru_cache(maxsize=64)
def _key_id(public: PublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(public._key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: PublicKey, now: dt.datetime, lifetime: dt.timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(public._key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + lifetime)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


_NO_CA, _SIGNS = x509.BasicConstraints(ca=False, path_length=None), _usage(ca=False)


def _sign(builder: x509.CertificateBuilder, key: SigningKey, public: PublicKey) -> Certificate:
    return Certificate._of(builder.sign(key.private_key, hashes.SHA256()), public)
