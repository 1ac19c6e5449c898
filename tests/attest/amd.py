"""An AMD of the tests' own: chains and reports in AMD's formats, sound unless told otherwise; and the real vectors."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.verify import VENDORS, Anchors
from strongroom.crypto.chains import RevocationList, VendorCertificate
from tests.crypto.certificates import P384, RSA, Party, issue, revocation_list

VECTORS = Path(__file__).parents[1] / "vectors" / "sev-snp"
# Every vector's certificate is valid then.
NOW = 1_740_000_000

OIDS = "1.3.6.1.4.1.3704.1"
CHIP = bytes(range(1, 65))
CPUIDS = {"Milan": (0x19, 1, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 2, 1)}
TCB = {"Milan": "0400000000001bde", "Genoa": "0a00000000001754", "Turin": "0102030500000075"}
NUMBERS = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
ORDER = (
    *(
        "version",
        "guest_svn",
        "policy",
        "family_id",
        "image_id",
        "vmpl",
        "algorithm",
        "current",
        "platform",
        "key_info",
    ),
    *("report_data", "measurement", "host_data", "id_key", "author_key", "report_id", "report_id_ma", "tcb", "cpuid"),
    *("chip", "committed", "versions", "launch"),
)
PLACES = {
    "Turin": {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
    "Milan": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
}


def vector(name: str) -> Evidence:
    """A real report with the certificate of its key."""
    return evidence((VECTORS / f"{name}.report.bin").read_bytes(), [leaf_of(name)])


def leaf_of(name: str) -> VendorCertificate:
    return VendorCertificate((VECTORS / f"{name}.leaf.der").read_bytes())


def evidence(report: bytes, certificates: list[VendorCertificate], lists: tuple[RevocationList, ...] = ()) -> Evidence:
    return Evidence("snp", report, Endorsements(tuple(certificates), lists).to_bytes())


def with_byte(raw: bytes, place: int, value: int) -> bytes:
    return raw[:place] + bytes([value]) + raw[place + 1 :]


def amd_name(common: str) -> x509.Name:
    """AMD's order of names."""
    oid = x509.NameOID
    return x509.Name(
        [
            x509.NameAttribute(oid.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(oid.COUNTRY_NAME, "US"),
            x509.NameAttribute(oid.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(oid.COMMON_NAME, common),
        ]
    )


def number(value: int) -> bytes:
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


@cache
def _root(product: str) -> Party:
    return issue(amd_name(f"ARK-{product}"), RSA["root"], ca=True, start=NOW - 10, end=NOW + 10)


@cache
def _issuer(product: str, between: str) -> Party:
    return issue(
        amd_name(f"SEV-{between}{product}"),
        RSA["middle"],
        _root(product),
        ca=True,
        path_length=0,
        usages=("key_cert_sign", "crl_sign"),
        serial=2,
        start=NOW - 10,
        end=NOW + 10,
    )


@dataclass(frozen=True)
class Amd:
    """One product's chain. `leaf` is of a VCEK, or of a VLEK; `extensions` of it by the rest of their identifier."""

    product: str = "Milan"
    kind: str = "VCEK"
    chip: bytes = CHIP
    tcb: bytes = b""
    name: str = ""
    subject: str = ""
    extensions: dict[str, bytes | None] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)

    @property
    def anchors(self) -> Anchors:
        return replace(VENDORS, amd={**VENDORS.amd, self.product: self.root.certificate})

    @property
    def root(self) -> Party:
        return _root(self.product)

    @property
    def issuer(self) -> Party:
        return _issuer(self.product, "VLEK-" if self.kind == "VLEK" else "")

    @property
    def leaf(self) -> Party:
        tcb = self.tcb or bytes.fromhex(TCB[self.product])
        places = PLACES.get(self.product, PLACES["Milan"])
        named = self.name or f"{self.product}-B1"
        values: dict[str, bytes | None] = {"1": b"\2\1\0", "2": bytes([0x16, len(named)]) + named.encode()}
        values |= {f"3.{NUMBERS[name]}": number(tcb[place]) for name, place in places.items()}
        values |= {"5": b"\x16\x08CN=cloud"} if self.kind == "VLEK" else {"4": self.hardware_id}
        values |= self.extensions
        extensions = tuple(
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{OIDS}.{oid}"), value), False)
            for oid, value in values.items()
            if value is not None
        )
        options = {"start": NOW - 10, "end": NOW + 10, "constraints": False, "serial": 3} | self.options
        return issue(
            amd_name(self.subject or f"SEV-{self.kind}"), P384["leaf"], self.issuer, extensions=extensions, **options
        )

    @property
    def hardware_id(self) -> bytes:
        return self.chip[:8] if self.product == "Turin" else self.chip

    def report(self, **changes: object) -> bytes:
        """A signed report; `changes` by the names below, or `at`: a mapping of offsets to bytes."""
        fields: dict[str, object] = {
            "version": 5,
            "guest_svn": 6,
            "policy": 0x3001F,
            "family_id": b"f" * 16,
            "image_id": b"i" * 16,
            "vmpl": 0,
            "algorithm": 1,
            "current": bytes.fromhex(TCB[self.product]),
            "platform": 0x25,
            "key_info": 4 if self.kind == "VLEK" else 0,
            "report_data": b"d" * 64,
            "measurement": b"m" * 48,
            "host_data": b"h" * 32,
            "id_key": bytes(48),
            "author_key": bytes(48),
            "report_id": b"r" * 32,
            "report_id_ma": b"\xff" * 32,
            "tcb": self.tcb or bytes.fromhex(TCB[self.product]),
            "cpuid": bytes(CPUIDS[self.product]),
            "chip": bytes(64) if self.kind == "VLEK" else self.hardware_id,
            "committed": bytes.fromhex(TCB[self.product]),
            "versions": bytes.fromhex("2337010022370100"),
            "launch": bytes.fromhex(TCB[self.product]),
            "mitigations": (11, 15),
        } | changes
        if fields["version"] < 3:  # type: ignore[operator]
            fields["cpuid"] = b""
        if fields["version"] < 4:  # type: ignore[operator]
            fields["mitigations"] = (0, 0)
        body = struct.pack(
            "<IIQ16s16sII8sQQ64s48s32s48s48s32s32s8s24s64s8s8s8sQQ152x",
            *(fields[name] for name in ORDER),
            *fields["mitigations"],  # type: ignore[misc]
        )
        for place, value in fields.get("at", {}).items():  # type: ignore[attr-defined]
            body = body[:place] + value + body[place + len(value) :]
        r, s = decode_dss_signature(P384["leaf"].sign(body, ec.ECDSA(hashes.SHA384())))
        return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)

    def evidence(self, lists: tuple[RevocationList, ...] = (), **changes: object) -> Evidence:
        return evidence(self.report(**changes), [self.leaf.certificate, self.issuer.certificate], lists)

    def revoking(self, issuer: Party, *serials: int) -> RevocationList:
        return revocation_list(issuer, *serials, start=NOW - 10, end=NOW + 10)
