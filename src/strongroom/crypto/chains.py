"""Certificates as hardware vendors issue them, and the chains that end at a vendor's root.

AMD signs with RSA-PSS of 4096 bits, Intel, NVIDIA and Amazon with ECDSA, makers of TPMs with PKCS #1 v1.5; so keys of
every kind that `VendorKey` lists are read, where the rest of the project knows P-256 alone (`keys`, `x509`).

Rules:

- A chain is followed from the leaf to a root that the caller names, byte for byte; nothing is built or guessed.
- Whoever issues is a CA; a path length holds; a critical extension that is unknown refuses, but for those that the
  caller says it reads.
- The time is an argument, and so are revocation lists.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import itertools
import re
import warnings
from collections.abc import Collection, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.utils import CryptographyDeprecationWarning

from strongroom.crypto.derive import digest
from strongroom.errors import ExpiredError, FormatError, VerificationError

MAX_CERTIFICATE = 16 * 1024
MAX_CHAIN = 8
MAX_REVOCATION_LIST = 512 * 1024

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_RSA_BITS = range(2048, 8193)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
# The extensions whose meaning `verify_chain` takes into account.
_KNOWN_CRITICAL = {"2.5.29.15", "2.5.29.19"}  # key usage, basic constraints


class VendorKey:
    """A public key of a vendor's: RSA of 2048 to 8192 bits, or on P-256, P-384 or P-521.

    `spki` is its DER SubjectPublicKeyInfo, `fingerprint` the SHA-256 of that as ``sha256:<hex>``, `kind` ``RSA`` or the
    curve's name.
    """

    def __init__(self, spki: bytes) -> None:
        """Raises FormatError if `spki` is not a DER SubjectPublicKeyInfo of such a key."""
        try:
            key = serialization.load_der_public_key(spki)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError("vendor key: not a DER SubjectPublicKeyInfo") from None
        if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
            self.kind = "RSA"
        elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
            self.kind = _CURVES[key.curve.name]
        else:
            raise FormatError("vendor key: wanted RSA of 2048 to 8192 bits, or a key on P-256, P-384 or P-521")
        self._key = key
        self.spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        return "sha256:" + digest(self.spki).hex()

    def verify_ecdsa(self, r: int, s: int, message: bytes, *, algorithm: str) -> None:
        """Check an ECDSA signature over `message`; `algorithm` is ``sha256``, ``sha384`` or ``sha512``.

        Raises:
            VerificationError: it is not this key's, or this key is not on a curve.
        """
        if not isinstance(self._key, ec.EllipticCurvePublicKey):
            raise VerificationError(f"signature: ECDSA, but the key is {self.kind}")
        if r <= 0 or s <= 0:
            raise VerificationError("signature: does not match the key")
        try:
            self._key.verify(encode_dss_signature(r, s), message, ec.ECDSA(_HASHES[algorithm]))
        except (InvalidSignature, ValueError):
            raise VerificationError("signature: does not match the key") from None

    def verify_rsa(self, signature: bytes, message: bytes, *, algorithm: str, pss: bool = False) -> None:
        """Check an RSA signature over `message`: PKCS #1 v1.5, or with `pss` PSS with a salt of any length.

        Raises:
            VerificationError: it is not this key's, or this key is not RSA.
        """
        if not isinstance(self._key, rsa.RSAPublicKey):
            raise VerificationError(f"signature: RSA, but the key is {self.kind}")
        chosen = _HASHES[algorithm]
        scheme = padding.PSS(padding.MGF1(chosen), padding.PSS.AUTO) if pss else padding.PKCS1v15()
        try:
            self._key.verify(signature, message, scheme, chosen)
        except (InvalidSignature, ValueError):
            raise VerificationError("signature: does not match the key") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VendorKey) and self.spki == other.spki

    def __hash__(self) -> int:
        return hash(self.spki)

    def __repr__(self) -> str:
        return f"VendorKey({self.kind}, {self.fingerprint})"


class VendorCertificate:
    """A parsed certificate with a `VendorKey`; nothing about it is verified."""

    def __init__(self, der: bytes) -> None:
        """Raises FormatError if `der` is not an X.509 certificate of at most 16 KiB with a `VendorKey`."""
        if len(der) > MAX_CERTIFICATE:
            raise FormatError(f"certificate: {len(der)} bytes, wanted at most {MAX_CERTIFICATE}")
        try:
            with warnings.catch_warnings():
                # AMD gives the certificates of its chips the serial number 0, which RFC 5280 forbids.
                warnings.simplefilter("ignore", CryptographyDeprecationWarning)
                self._cert = x509.load_der_x509_certificate(der)
                key = self._cert.public_key()
                spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
                self.serial = self._cert.serial_number
                self.subject = self._cert.subject.rfc4514_string()
                self.issuer = self._cert.issuer.rfc4514_string()
                self._extensions = {each.oid.dotted_string: each for each in self._cert.extensions}
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
            raise FormatError("certificate: not X.509 DER") from None
        self.der = der
        self.key = VendorKey(spki)
        self.valid = (
            int(self._cert.not_valid_before_utc.timestamp()),
            int(self._cert.not_valid_after_utc.timestamp()),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, as ``sha256:<hex>``."""
        return "sha256:" + digest(self.der).hex()

    def pem(self) -> str:
        return self._cert.public_bytes(serialization.Encoding.PEM).decode()

    def extension(self, oid: str) -> bytes | None:
        """The DER value of the extension of that dotted identifier, None where there is none."""
        found = self._extensions.get(oid)
        return None if found is None else found.value.public_bytes()

    def verify_issued_by(self, issuer: VendorCertificate) -> None:
        """Check that `issuer` signed this certificate and has its issuer's name.

        Raises:
            VerificationError: it did not.
        """
        try:
            self._cert.verify_directly_issued_by(issuer._cert)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            raise VerificationError(
                f"certificate {self.subject!r:.120}: not signed by {issuer.subject!r:.120}"
            ) from None

    def _check_may_issue(self, below: int) -> None:
        constraints = self._extensions.get("2.5.29.19")
        value = constraints.value if constraints else None
        if not isinstance(value, x509.BasicConstraints) or not value.ca:
            raise VerificationError(f"issuer {self.subject!r:.120}: is no CA")
        if value.path_length is not None and value.path_length < below:
            raise VerificationError(f"issuer {self.subject!r:.120}: may have {value.path_length} CAs below it")
        usage = self._extensions.get("2.5.29.15")
        if usage and isinstance(usage.value, x509.KeyUsage) and not usage.value.key_cert_sign:
            raise VerificationError(f"issuer {self.subject!r:.120}: may not sign certificates")

    def _check_critical(self, known: Collection[str]) -> None:
        unknown = [
            oid for oid, each in self._extensions.items() if each.critical and oid not in _KNOWN_CRITICAL | set(known)
        ]
        if unknown:
            raise VerificationError(f"certificate {self.subject!r:.120}: critical extensions {unknown} are unknown")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VendorCertificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"VendorCertificate({self.subject!r:.120}, {self.fingerprint})"


class RevocationList:
    """A parsed X.509 revocation list; nothing about it is verified."""

    def __init__(self, der: bytes) -> None:
        """Raises FormatError if `der` is not a revocation list of at most 512 KiB."""
        if len(der) > MAX_REVOCATION_LIST:
            raise FormatError(f"revocation list: {len(der)} bytes, wanted at most {MAX_REVOCATION_LIST}")
        try:
            self._crl = x509.load_der_x509_crl(der)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
            raise FormatError("revocation list: not X.509 DER") from None
        self.der = der
        self.issuer = self._crl.issuer.rfc4514_string()

    def verify(self, issuer: VendorCertificate, *, now: int) -> None:
        """Check that `issuer` signed this list and that it is in force at `now`.

        Raises:
            VerificationError: it did not.
            ExpiredError: it is not in force yet, has been replaced, or does not say until when it holds.
        """
        key = issuer._cert.public_key()
        try:
            signed = isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) and self._crl.is_signature_valid(key)
        except (UnsupportedAlgorithm, ValueError, TypeError):
            signed = False
        if not signed or self._crl.issuer != issuer._cert.subject:
            raise VerificationError(f"revocation list: not signed by {issuer.subject!r:.120}")
        start, end = self._crl.last_update_utc, self._crl.next_update_utc
        moment = dt.datetime.fromtimestamp(now, dt.UTC)
        if end is None or not start <= moment <= end:
            raise ExpiredError(f"revocation list of {self.issuer!r:.120}: not in force at {moment:%Y-%m-%d %H:%M:%SZ}")

    def check(self, certificate: VendorCertificate) -> None:
        """Raises VerificationError if this list revokes `certificate`."""
        if self._crl.get_revoked_certificate_by_serial_number(certificate.serial) is not None:
            raise VerificationError(f"certificate {certificate.subject!r:.120}: revoked by its issuer")


def verify_chain(
    chain: Sequence[VendorCertificate],
    root: VendorCertificate,
    *,
    now: int,
    revocation_lists: Sequence[RevocationList] = (),
    known_critical: Collection[str] = (),
) -> None:
    """Follow a chain from its leaf to `root`.

    1. It has 1 to 8 certificates below the root; `root` may be repeated as the last, and then is this very one.
    2. Each is signed by the next, the last by `root`; whoever issues is a CA, and `root` signed itself.
    3. All are valid at `now`, the root too.
    4. Every revocation list is by an issuer of this chain, in force, and revokes nothing of it.

    Args:
        chain: the leaf first.
        root: trusted by the caller.
        now: seconds since 1970.
        revocation_lists: each must be of this chain.
        known_critical: critical extensions, dotted, that the caller takes into account itself.

    Raises:
        VerificationError: 1, 2 or 4 does not hold.
        ExpiredError: 3 does not, or a revocation list is out of date.
    """
    # 1
    links = list(chain[:-1]) if chain and chain[-1] == root else list(chain)
    if not 1 <= len(links) <= MAX_CHAIN:
        raise VerificationError(f"certificate chain: {len(links)} certificates below the root, wanted 1 to {MAX_CHAIN}")
    links.append(root)
    # 2
    for below, (certificate, issuer) in enumerate(zip(links, [*links[1:], root], strict=True)):
        certificate.verify_issued_by(issuer)
        certificate._check_critical(known_critical)
        if certificate is not root:
            issuer._check_may_issue(below)
    # 3
    moment = f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y-%m-%d %H:%M:%SZ}"
    for certificate in links:
        start, end = certificate.valid
        if not start <= now <= end:
            raise ExpiredError(f"certificate {certificate.subject!r:.120}: not valid at {moment}")
    # 4
    for revocation_list in revocation_lists:
        issuers = [issuer for issuer in links[1:] if issuer.subject == revocation_list.issuer]
        if not issuers:
            raise VerificationError(f"revocation list of {revocation_list.issuer!r:.120}: of no issuer in the chain")
        revocation_list.verify(issuers[0], now=now)
        for certificate, issuer in itertools.pairwise(links):
            if issuer is issuers[0]:
                revocation_list.check(certificate)


def pem_certificates(pem: bytes) -> tuple[VendorCertificate, ...]:
    """The certificates of a PEM file, in its order.

    Raises:
        FormatError: it holds none, more than 8 and a root, or one that does not parse.
    """
    if len(pem) > (MAX_CHAIN + 1) * 2 * MAX_CERTIFICATE:
        raise FormatError(f"certificates: {len(pem)} bytes of PEM, which is too much")
    found = _PEM.findall(pem)
    if not 1 <= len(found) <= MAX_CHAIN + 1:
        raise FormatError(f"certificates: {len(found)} in the PEM text, wanted 1 to {MAX_CHAIN + 1}")
    return tuple(VendorCertificate(_der(each)) for each in found)


def _der(pem: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(pem.split(b"\n")[1:-1]).replace(b"\r", b""), validate=True)
    except binascii.Error:
        raise FormatError("certificate: not PEM") from None
