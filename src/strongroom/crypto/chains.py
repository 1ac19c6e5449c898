"""Certificates as hardware vendors issue them, and the chains that end at a vendor's root.

AMD signs with RSA-PSS of 4096 bits, Intel, NVIDIA and Amazon with ECDSA, makers of TPMs with PKCS #1 v1.5; so keys of
every kind that `VendorKey` lists are read, where the rest of the project knows P-256 alone (`keys`, `x509`).

Rules (RFC 5280, section 6, and stricter):

- A chain is followed from the leaf to a root that the caller names, byte for byte; nothing is built or guessed.
- Whoever issues is a CA that may sign certificates; a path length holds; the leaf is no CA. A critical extension that
  is unknown refuses, but for those that the caller says it reads; name constraints refuse, as nobody here obeys them.
- A revocation list is complete, and by an issuer that may sign lists.
- SHA-2 alone; a signature covers the bytes that arrived, and names its algorithm twice alike.
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
from functools import cached_property, lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from strongroom.crypto.derive import digest
from strongroom.crypto.vendor_key import HASHES, VendorKey
from strongroom.errors import ExpiredError, FormatError, VerificationError

__all__ = ["RevocationList", "VendorCertificate", "VendorKey", "pem_certificates", "verify_chain"]

MAX_CERTIFICATE = 16 * 1024
MAX_CHAIN = 8
MAX_REVOCATION_LIST = 512 * 1024

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_KEY_USAGE, _BASIC_CONSTRAINTS, _NAME_CONSTRAINTS = "2.5.29.15", "2.5.29.19", "2.5.29.30"
# The extensions whose meaning `verify_chain` takes into account.
_KNOWN_CRITICAL = {_KEY_USAGE, _BASIC_CONSTRAINTS}
# What makes a revocation list, or an entry of it, be about other certificates than all of its issuer's: issuing
# distribution point, delta list, certificate issuer (RFC 5280, sections 5.2.4, 5.2.5, 5.3.3).
_PARTIAL = {"2.5.29.28", "2.5.29.27", "2.5.29.29"}
_SEQUENCE, _VERSION = 0x30, 0xA0  # of a certificate the version is [0]
_SERIAL_ZERO = b"\x02\x01\x00"
# All that `cryptography` is known to raise for what it cannot read; its warnings are errors where a program says so.
_UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    NotImplementedError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    Warning,
)
# What strangers' bytes make it warn of (lengths of names, serial numbers, keys that are no longer in use) is nothing
# that a program's user can mend, and would print a path of this machine. Once for all: `catch_warnings` is for one
# thread alone.
warnings.filterwarnings("ignore", category=UserWarning, module=r"strongroom\.crypto\.(?:chains|vendor_key)\Z")


class _Signed:
    """What a certificate and a revocation list have in common: signed bytes, a signature, and its scheme (RFC 5280,
    sections 4.1.1 and 5.1.1).

    `scheme` is ``ECDSA sha384``, ``RSA sha256``, ``RSA-PSS sha384 48`` (with the length of the salt) and the like.
    """

    def __init__(self, der: bytes, loaded: x509.Certificate | x509.CertificateRevocationList) -> None:
        content = _element(der, 0)[0]
        _, end = _element(der, content)
        self._message = der[content:end]
        # The signed part names the algorithm too: its first SEQUENCE, after a version and a serial number.
        inner = _element(der, content)[0]
        while der[inner] != _SEQUENCE:
            inner = _element(der, inner)[1]
        outer = _element(der, end)[1]
        self._twice_alike = der[inner : _element(der, inner)[1]] == der[end:outer]
        if der[_element(der, outer)[0]]:
            raise ValueError("a signature that ends within a byte")
        self._signature = loaded.signature
        parameters, chosen = loaded.signature_algorithm_parameters, loaded.signature_hash_algorithm
        self._hash = HASHES.get(chosen.name) if chosen else None
        self._padding: padding.PSS | padding.PKCS1v15 | None = None
        self.scheme = f"ECDSA {chosen.name}" if chosen else "without a digest"
        if chosen and isinstance(parameters, padding.PSS):
            # One digest for all of it: a mask with another cannot match.
            self._padding = padding.PSS(padding.MGF1(chosen), parameters._salt_length)
            self.scheme = f"RSA-PSS {chosen.name} {parameters._salt_length}"
        elif chosen and isinstance(parameters, padding.PKCS1v15):
            self._padding = parameters
            self.scheme = f"RSA {chosen.name}"

    def matches(self, key: VendorKey) -> bool:
        """Whether it is signed by `key`, with SHA-2, and says so in both places."""
        if not self._twice_alike or self._hash is None:
            return False
        try:
            if isinstance(key._key, rsa.RSAPublicKey) and self._padding is not None:
                key._key.verify(self._signature, self._message, self._padding, self._hash)
            elif isinstance(key._key, ec.EllipticCurvePublicKey) and self._padding is None:
                key._key.verify(self._signature, self._message, ec.ECDSA(self._hash))
            else:
                return False
        except (InvalidSignature, *_UNREADABLE):
            return False
        return True


class VendorCertificate:
    """A parsed certificate with a `VendorKey`; nothing about it is verified.

    `serial`, `subject` and `issuer` are as it has them (names as in RFC 4514), `valid` is its first and its last
    second, `signed_with` the scheme of its signature, such as ``RSA-PSS sha384 48`` or ``ECDSA sha384``.
    """

    def __init__(self, der: bytes) -> None:
        """Raises FormatError if `der` is not an X.509 certificate of at most 16 KiB with a `VendorKey`."""
        if len(der) > MAX_CERTIFICATE:
            raise FormatError(f"certificate: {len(der)} bytes, wanted at most {MAX_CERTIFICATE}")
        try:
            loadable = _with_positive_serial(der)
            self._cert = x509.load_der_x509_certificate(loadable)
            self.serial = self._cert.serial_number if loadable == der else 0
            key = self._cert.public_key()
            spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            self.subject = self._cert.subject.rfc4514_string()
            self.issuer = self._cert.issuer.rfc4514_string()
            self._extensions = {each.oid.dotted_string: each for each in self._cert.extensions}
            self.valid = (
                int(self._cert.not_valid_before_utc.timestamp()),
                int(self._cert.not_valid_after_utc.timestamp()),
            )
            self._signed = _Signed(der, self._cert)
        except (IndexError, *_UNREADABLE):
            raise FormatError("certificate: not X.509 DER") from None
        if self.serial < 0:
            raise FormatError("certificate: a negative serial number")
        self.der = bytes(der)
        self.key = VendorKey(spki)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, as ``sha256:<hex>``."""
        return "sha256:" + digest(self.der).hex()

    @property
    def signed_with(self) -> str:
        return self._signed.scheme

    @property
    def is_ca(self) -> bool:
        constraints = self._extensions.get(_BASIC_CONSTRAINTS)
        return constraints is not None and isinstance(constraints.value, x509.BasicConstraints) and constraints.value.ca

    @property
    def usages(self) -> frozenset[str] | None:
        """The extended key usages, dotted, that it is limited to; None if to none (RFC 5280, section 4.2.1.12)."""
        found = self._extensions.get("2.5.29.37")
        value = None if found is None else found.value
        return frozenset(each.dotted_string for each in value) if isinstance(value, x509.ExtendedKeyUsage) else None

    @property
    def may_sign(self) -> bool:
        """Whether its key usage allows signatures over other things than certificates and revocation lists."""
        return self._may("digital_signature")

    @property
    def only_signs(self) -> bool:
        """Whether it has a key usage, and that allows signatures and nothing else to do with keys."""
        encrypts = ("key_encipherment", "data_encipherment", "key_agreement")
        return _KEY_USAGE in self._extensions and self.may_sign and not any(map(self._may, encrypts))

    def pem(self) -> str:
        lines = re.findall(".{1,64}", base64.b64encode(self.der).decode())
        return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])

    def extension(self, oid: str) -> bytes | None:
        """The DER value of the extension of that dotted identifier, None where there is none.

        Raises:
            FormatError: it is of a kind that cannot be given as bytes.
        """
        found = self._extensions.get(oid)
        try:
            return None if found is None else found.value.public_bytes()
        except _UNREADABLE:
            raise FormatError(f"certificate: extension {oid} cannot be read") from None

    @property
    def is_self_issued(self) -> bool:
        """Whether it names itself as its issuer, byte for byte: names may be equal and encoded differently."""
        at = _element(self.der, _element(self.der, 0)[0])[0]
        if self.der[at] == _VERSION:
            at = _element(self.der, at)[1]
        issuer = _element(self.der, _element(self.der, at)[1])[1]  # after the serial number and the algorithm
        validity = _element(self.der, issuer)[1]
        subject = _element(self.der, validity)[1]
        return self.der[issuer:validity] == self.der[subject : _element(self.der, subject)[1]]

    def verify_issued_by(self, issuer: VendorCertificate) -> None:
        """Check that `issuer` signed this certificate and has its issuer's name.

        Raises:
            VerificationError: it did not, or not with SHA-2.
        """
        if not _issued(self, issuer):
            raise VerificationError(f"certificate {self.subject!r:.120}: not signed by {issuer.subject!r:.120}")

    def _check_may_issue(self, below: int) -> None:
        constraints = self._extensions.get(_BASIC_CONSTRAINTS)
        value = constraints.value if constraints else None
        if not isinstance(value, x509.BasicConstraints) or not value.ca:
            raise VerificationError(f"issuer {self.subject!r:.120}: is no CA")
        if value.path_length is not None and value.path_length < below:
            raise VerificationError(f"issuer {self.subject!r:.120}: may have {value.path_length} CAs below it")
        if not self._may("key_cert_sign"):
            raise VerificationError(f"issuer {self.subject!r:.120}: may not sign certificates")
        if _NAME_CONSTRAINTS in self._extensions:
            raise VerificationError(f"issuer {self.subject!r:.120}: has name constraints, wanted none")

    def _may(self, use: str) -> bool:
        """Whether its key usage allows that; without the extension it does (RFC 5280, section 4.2.1.3)."""
        usage = self._extensions.get(_KEY_USAGE)
        return usage is None or (isinstance(usage.value, x509.KeyUsage) and bool(getattr(usage.value, use)))

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


@lru_cache(maxsize=256)  # a machine shows the same chain each time, and what is true of two certificates stays so
def _issued(certificate: VendorCertificate, issuer: VendorCertificate) -> bool:
    """Whether `issuer` has the name of that certificate's issuer, and signed it; dates and powers are no part of it."""
    return certificate._cert.issuer == issuer._cert.subject and certificate._signed.matches(issuer.key)


class RevocationList:
    """A parsed X.509 revocation list; nothing about it is verified.

    `valid` is its first second, and its last or None where it names none.
    """

    def __init__(self, der: bytes) -> None:
        """Raises FormatError if `der` is not a revocation list of at most 512 KiB."""
        if len(der) > MAX_REVOCATION_LIST:
            raise FormatError(f"revocation list: {len(der)} bytes, wanted at most {MAX_REVOCATION_LIST}")
        try:
            self._crl = x509.load_der_x509_crl(der)
            self.issuer = self._crl.issuer.rfc4514_string()
            self._extensions = {each.oid.dotted_string: each.critical for each in self._crl.extensions}
            start, end = self._crl.last_update_utc, self._crl.next_update_utc
            self.valid = (int(start.timestamp()), None if end is None else int(end.timestamp()))
            self._signed = _Signed(der, self._crl)
        except (IndexError, *_UNREADABLE):
            raise FormatError("revocation list: not X.509 DER") from None
        self.der = bytes(der)

    def verify(self, issuer: VendorCertificate, *, now: int) -> None:
        """Check that `issuer` signed this list, that it is all of its list, and that it is in force at `now`.

        Raises:
            VerificationError: it did not or may not; the list is partial, or has a critical extension.
            ExpiredError: it is not in force yet, has been replaced, or does not say until when it holds.
        """
        if self._crl.issuer != issuer._cert.subject or not self._signed.matches(issuer.key):
            raise VerificationError(f"revocation list: not signed by {issuer.subject!r:.120}")
        if not issuer._may("crl_sign"):
            raise VerificationError(f"issuer {issuer.subject!r:.120}: may not sign revocation lists")
        # From here on it is the issuer's word, and reading each entry is worth the time.
        if self._unknown():
            raise VerificationError(f"revocation list of {self.issuer!r:.120}: partial, or with critical extensions")
        start, end = self.valid
        if end is None:
            raise ExpiredError(f"revocation list of {self.issuer!r:.120}: does not say until when it is in force")
        if not start <= now <= end:
            raise ExpiredError(
                f"revocation list of {self.issuer!r:.120}: not in force at {_moment(now)}, "
                f"but from {_moment(start)} to {_moment(end)}"
            )

    def check(self, certificate: VendorCertificate) -> None:
        """Raises VerificationError if this list revokes `certificate`."""
        if self._crl.get_revoked_certificate_by_serial_number(certificate.serial) is not None:
            raise VerificationError(f"certificate {certificate.subject!r:.120}: revoked by its issuer")

    def _unknown(self) -> bool:
        try:
            entries = [(each.oid.dotted_string, each.critical) for entry in self._crl for each in entry.extensions]
        except _UNREADABLE:
            return True
        return any(critical or oid in _PARTIAL for oid, critical in [*self._extensions.items(), *entries])


def verify_chain(
    chain: Sequence[VendorCertificate],
    root: VendorCertificate,
    *,
    now: int,
    revocation_lists: Sequence[RevocationList] = (),
    known_critical: Collection[str] = (),
) -> None:
    """Follow a chain from its leaf to `root`.

    1. It has 1 to 8 certificates below the root, none of them twice; `root` may be repeated as the last, and then is
       this very one. The leaf is no CA.
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
    if len(set(links)) != len(links):
        raise VerificationError("certificate chain: a certificate is in it twice")
    if links[0].is_ca:
        raise VerificationError(f"certificate {links[0].subject!r:.120}: a CA, wanted one that issues nothing")
    # 2
    for below, (certificate, issuer) in enumerate(zip(links, [*links[1:], root], strict=True)):
        certificate.verify_issued_by(issuer)
        certificate._check_critical(known_critical)
        if certificate is not root:
            issuer._check_may_issue(below)
    # 3
    for certificate in links:
        start, end = certificate.valid
        if not start <= now <= end:
            raise ExpiredError(
                f"certificate {certificate.subject!r:.120}: not valid at {_moment(now)}, "
                f"but from {_moment(start)} to {_moment(end)}"
            )
    # 4
    for revocation_list in revocation_lists:
        issuers = [issuer for issuer in links[1:] if issuer._cert.subject == revocation_list._crl.issuer]
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
    if pem.count(b"-----BEGIN CERTIFICATE-----") != len(found):
        raise FormatError("certificates: one in the PEM text is not PEM")
    return tuple(VendorCertificate(_der(each)) for each in found)


def _moment(now: int) -> str:
    return f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y-%m-%d %H:%M:%SZ}"


def _der(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise FormatError("certificate: not PEM") from None


def _element(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the DER element at `at` starts, and where it ends. IndexError if there is none."""
    size, start = der[at + 1], at + 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[at + 2 : start])
    return start, start + size


def _with_positive_serial(der: bytes) -> bytes:
    """A certificate that `cryptography` loads: with the serial number 1 where `der` has 0.

    AMD gives its chips' certificates the number 0, which RFC 5280, section 4.1.2.2 forbids and which `cryptography` is
    to refuse. The signature is checked over `der` itself (`_Signed`).
    """
    at = _element(der, _element(der, 0)[0])[0]
    if der[at] == _VERSION:
        at = _element(der, at)[1]
    if der[at : at + 3] != _SERIAL_ZERO:
        return der
    return der[: at + 2] + b"\x01" + der[at + 3 :]
