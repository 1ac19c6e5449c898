"""An Intel of the tests' own: signs quotes of any kind that Intel has, with whatever a test wants in them."""

from __future__ import annotations

import datetime as dt
import json
import struct
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import INTEL_QE_VENDOR
from strongroom.attest.tee import dcap
from strongroom.attest.verify.anchors import VENDORS, Anchors
from strongroom.crypto import SigningKey, digest
from strongroom.crypto.chains import VendorCertificate
from strongroom.crypto.vendor import Issuer, Validity, pem_chain

NOW = 1_750_000_000
DAY = 24 * 3600
VALID = Validity(NOW - DAY, NOW + 30 * DAY)
SEPT_VE_DISABLE, MIGRATABLE = 1 << 28, 1 << 29
# The signer and product of Intel's own quoting enclaves, of SGX and of TDX.
QUOTING = {
    "sgx": (bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"), 1),
    "tdx": (bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"), 2),
}


def sgx_body(*, flags: int = 0x5, isvsvn: int = 3, report_data: bytes = bytes(64)) -> bytes:
    """An enclave's report; MRENCLAVE is all ``e``, MRSIGNER all ``s``, ISVPRODID 7, CONFIGID all ``c``."""
    return b"".join(
        (
            b"\1" * 16 + bytes(16) + b"x" * 16 + struct.pack("<QQ", flags, 0xE7),
            b"e" * 32 + bytes(32) + b"s" * 32 + bytes(32) + b"c" * 64,
            struct.pack("<HHH", 7, isvsvn, 5) + bytes(42) + b"f" * 16 + report_data,
        )
    )


def td_body(
    *,
    attributes: int = SEPT_VE_DISABLE,
    svn: bytes = b"\1" * 16,
    seam_signer: bytes = bytes(48),
    service_td: bytes | None = None,
    report_data: bytes = bytes(64),
) -> bytes:
    """A TD report: 1.0, or 1.5 if there is a service TD. MRTD is all ``t``, MRCONFIGID all ``c``."""
    body = svn + b"m" * 48 + seam_signer + bytes(8) + struct.pack("<QQ", attributes, 0xE7)
    body += b"t" * 48 + b"c" * 48 + bytes(2 * 48 + 4 * 48) + report_data
    return body if service_td is None else body + svn + service_td


@dataclass
class Intel:
    """Attributes say what is signed: each can be changed before the next `evidence`."""

    quoting: tuple[bytes, int] = (dcap.QE_SIGNER, 2)
    qe_flags: int = 0x15
    qe_svn: int = 1
    extension: bytes = field(default_factory=lambda: dcap.pck_extension(b"p" * 16, b"i" * 16))
    revoked: bool = False
    tcb_edits: dict[str, object] = field(default_factory=dict)
    qe_edits: dict[str, object] = field(default_factory=dict)
    authentication: bytes = b"a" * 32
    newline: str = "\n"

    def __post_init__(self) -> None:
        self._root, self._platform = (Issuer(name, SigningKey.generate()) for name in ("Tests Root", "Tests Platform"))
        self._pck, self._tcb, self._key = (SigningKey.generate() for _ in range(3))
        self.root = VendorCertificate(self._root.certificate("Tests Root", self._root.key.public, VALID, ca=True))

    def anchors(self) -> Anchors:
        """Verifiers that take this one for Intel."""
        return replace(VENDORS, intel=self.root)

    def evidence(self, body: bytes, *, tee: str = "simulated", version: int = 4) -> Evidence:
        return Evidence(tee, self.quote(body, version=version), self.collateral(sgx=len(body) == 384))

    def quote(self, body: bytes, *, version: int = 4) -> bytes:
        sgx = len(body) == 384
        header = struct.pack("<HHI4x16s20x", version, 2, 0 if sgx else 0x81, INTEL_QE_VENDOR)
        if version == 5:
            header += struct.pack("<HI", {384: 1, 584: 2, 648: 3}[len(body)], len(body))
        signed = header + body
        signer, product = self.quoting
        bound = digest(self._key.public.point, self.authentication) + bytes(32)
        report = b"\1" * 16 + bytes(32) + struct.pack("<QQ", self.qe_flags, 0xE7) + bytes(64) + signer + bytes(96)
        report += struct.pack("<HH", product, self.qe_svn) + bytes(60) + bound
        self._platform_der = self._root.certificate("Tests Platform", self._platform.key.public, VALID, ca=True)
        pck = self._platform.certificate(
            "Tests PCK", self._pck.public, VALID, ca=False, extensions={dcap.SGX_EXTENSION: self.extension}
        )
        self._serial = x509.load_der_x509_certificate(pck).serial_number
        chain = pem_chain(pck, self._platform_der, self.root.der).replace("\n", self.newline).encode()
        certification = dcap.certification(report, self._pck.sign(report), self.authentication, chain)
        if version == 3:
            certification = certification[6:]
        return dcap.td_quote(signed, self._key.sign(signed), self._key.public.point, certification)

    def collateral(self, *, sgx: bool) -> bytes:
        """The endorsements of the quote made last."""
        info = json.loads(dcap.tcb_info(VALID.start, VALID.end))
        identity = json.loads(dcap.qe_identity(VALID.start, VALID.end))
        identity |= {"mrsigner": self.quoting[0].hex().upper(), "isvprodid": self.quoting[1]}
        if sgx:
            info["id"], identity["id"] = "SGX", "QE"
            del info["tdxModule"], info["tdxModuleIdentities"], info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"]
        tcb_info, qe_identity = json.dumps(info | self.tcb_edits), json.dumps(identity | self.qe_edits)
        tcb_chain = pem_chain(self._root.certificate("Tests TCB", self._tcb.public, VALID, ca=False), self.root.der)
        parts = {
            "root_ca_crl": self._root.revocation_list(VALID).hex(),
            "pck_crl": self._pck_list().hex(),
            "pck_crl_issuer_chain": pem_chain(self._platform_der, self.root.der),
            "tcb_info_issuer_chain": tcb_chain,
            "tcb_info": tcb_info,
            "tcb_info_signature": self._tcb.sign(tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": tcb_chain,
            "qe_identity": qe_identity,
            "qe_identity_signature": self._tcb.sign(qe_identity.encode()).hex(),
        }
        return json.dumps(parts).encode()

    def _pck_list(self) -> bytes:
        if not self.revoked:
            return self._platform.revocation_list(VALID)
        start, end = (dt.datetime.fromtimestamp(moment, dt.UTC) for moment in (VALID.start, VALID.end))
        own = self._platform.key.private_key
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key())
        entry = x509.RevokedCertificateBuilder(self._serial, start).build()
        issuer = x509.load_der_x509_certificate(self._platform_der).subject
        builder = x509.CertificateRevocationListBuilder(issuer, start, end, revoked_certificates=[entry])
        builder = builder.add_extension(x509.CRLNumber(2), critical=False).add_extension(identifier, critical=False)
        return builder.sign(own, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
