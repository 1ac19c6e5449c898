"""Vendors in software whose keys are on P-384, as Amazon's, NVIDIA's and AMD's are: for tests, of anybody's programs.

**Whoever has such a vendor's key signs any claim.** Verifiers accept none of it unless they are given its root.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from strongroom.crypto.chains import VendorCertificate
from strongroom.crypto.vendor import Validity

_SIZE = 48


class P384Signer:
    """A key on P-384, and the certificates that lead from it to its root: its own first, the root last."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, chain: tuple[VendorCertificate, ...]) -> None:
        """For `root` and `issue`, which make them."""
        self._key = key
        self.chain = chain

    @classmethod
    def root(cls, name: str, validity: Validity) -> P384Signer:
        """A new root under that common name."""
        key = ec.generate_private_key(ec.SECP384R1())
        return cls(key, (_certificate(name, key, name, key, validity, ca=True, signs=False, extensions={}),))

    def issue(
        self,
        name: str,
        validity: Validity,
        *,
        ca: bool,
        signs: bool = True,
        extensions: Mapping[str, bytes] | None = None,
    ) -> P384Signer:
        """A new key certified by this one.

        Args:
            signs: whether its key usage lets a key that is no CA's sign.
            extensions: dotted object identifiers to DER values.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        own = self.chain[0].subject.removeprefix("CN=")
        extensions = extensions or {}
        certificate = _certificate(name, key, own, self._key, validity, ca=ca, signs=signs, extensions=extensions)
        return P384Signer(key, (certificate, *self.chain))

    def sign(self, message: bytes) -> bytes:
        """ECDSA with SHA-384: r || s, big-endian, 96 bytes."""
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(_SIZE) + s.to_bytes(_SIZE)

    def __repr__(self) -> str:
        return f"P384Signer({self.chain[0].subject!r})"


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    validity: Validity,
    *,
    ca: bool,
    signs: bool,
    extensions: Mapping[str, bytes],
) -> VendorCertificate:
    start, end = (dt.datetime.fromtimestamp(moment, dt.UTC) for moment in (validity.start, validity.end))
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "encipher_only"), False)
    signs = signs and not ca
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=signs,
                key_agreement=not ca and not signs,
                key_cert_sign=ca,
                crl_sign=ca,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
    )
    for oid, value in extensions.items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    signed = builder.sign(issuer_key, hashes.SHA384())
    return VendorCertificate(signed.public_bytes(serialization.Encoding.DER))
