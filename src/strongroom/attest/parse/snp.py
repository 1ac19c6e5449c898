"""Parse the attestation reports of AMD SEV-SNP: bytes become typed values, and nothing is trusted.

Source: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), revision 1.58: tables 23 (the report), 139
and 141 (signature), and those of the guest policy, PLATFORM_INFO and TCB_VERSION. All integers are little-endian.

Invariants:

- A report has 1184 bytes. The first 672 are signed; a signature of 144 follows, and then 368 that must be zero.
- Reserved fields are zero. A later version may give them a meaning, so an unknown version is refused.
- Versions 2 to 5 are known. From 3 on the report names its processor (CPUID); from 4 on there is room for mitigation
  vectors.
- A bit of the guest's policy that is unknown here is kept in `GuestPolicy.unknown`: whoever appraises must refuse it.
- Malleable: of the two ECDSA signatures (r, s) and (r, n - s) either may stand; no other byte can change.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.errors import FormatError

REPORT_SIZE = 1184
SIGNED_SIZE = 0x2A0
VERSIONS = range(2, 6)

_ECDSA_P384_SHA384 = 1  # table 139
_KEYS = {0: "VCEK", 1: "VLEK"}
_VMPLS = range(4)
# The VMPL of a report that the host asked for (SNP_HV_REPORT_REQ): its report data is not the guest's.
_HOST = 0xFFFFFFFF

# Up to the signature; what is reserved, or depends on the version, is read apart.
_FIELDS = struct.Struct("<IIQ16s16sII8sQI4s64s48s32s48s48s32s32s8s24s64s8s4s4s8s168s")
_HALF = 72  # r and s, table 141
_CPUID = struct.Struct("<BBB21x")
_MITIGATIONS = struct.Struct("<QQ")

# Where the security version numbers stand in TCB_VERSION: before Turin, and since.
_TCB = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TCB_OF_TURIN = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
PRODUCTS = ("Milan", "Genoa", "Turin")

_POLICY_BITS = {
    "smt_allowed": 16,
    "migration_agent_allowed": 18,
    "debug_allowed": 19,
    "single_socket": 20,
    "cxl_allowed": 21,
    "aes_256_xts": 22,
    "rapl_disabled": 23,
    "ciphertext_hiding": 24,
    "page_swap_disabled": 25,
}
_POLICY_ONE = 17
_PLATFORM_BITS = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding": 4,
    "alias_check_complete": 5,
    "iommu_write_safe": 6,
    "tio": 7,
}


@dataclass(frozen=True)
class GuestPolicy:
    """What the guest's owner allows the host, bound to the guest at its launch.

    `abi` is the lowest version of the firmware's interface (major, minor), `bits` the others by name, `unknown` those
    that have no meaning here.
    """

    raw: int
    abi: tuple[int, int]
    bits: Mapping[str, bool]
    unknown: int


@dataclass(frozen=True)
class SnpReport:
    """An attestation report, as the firmware fills it in. Nothing here is authenticated yet.

    `signing_key` is ``VCEK``, the chip's own key, or ``VLEK``, a cloud provider's. TCB versions have 8 bytes each
    (`tcb_components`), firmware versions are (major, minor, build). `cpuid` is family, model and stepping, None before
    version 3; the mitigation vectors are None before version 4. `signed` is what (`r`, `s`) signs.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_enabled: bool
    chip_key_masked: bool
    signing_key: str
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signed: bytes
    r: int
    s: int

    @property
    def migration_agent(self) -> bool:
        """Whether an agent may take the guest elsewhere, or one is already bound to it; none is zeros or ones."""
        bound = self.report_id_ma not in (bytes(32), b"\xff" * 32)
        return bound or self.policy.bits["migration_agent_allowed"]

    @property
    def platform(self) -> Mapping[str, bool]:
        """The bits of PLATFORM_INFO by name (table 23)."""
        return {name: bool(self.platform_info >> bit & 1) for name, bit in _PLATFORM_BITS.items()}

    @property
    def product(self) -> str | None:
        """The product that CPUID names, None before version 3.

        Raises:
            FormatError: it names a processor that is unknown here.
        """
        return None if self.cpuid is None else product_of(*self.cpuid[:2])


def parse_snp(report: bytes) -> SnpReport:
    """Parse a report of version 2 to 5.

    Raises:
        FormatError: it is something else, is unsigned, was asked for by the host, or a reserved field is not zero.
    """
    if len(report) != REPORT_SIZE:
        raise FormatError(f"SNP report: {len(report)} bytes, wanted {REPORT_SIZE}")
    fields = _FIELDS.unpack_from(report)
    version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb, platform_info, key_info = fields[:10]
    reserved, report_data, measurement, host_data, id_key, author_key, report_id, report_id_ma = fields[10:18]
    reported_tcb, cpuid, chip_id, committed_tcb, current, committed, launch_tcb, rest = fields[18:]
    if version not in VERSIONS:
        raise FormatError(f"SNP report: got version {version}, wanted {VERSIONS[0]} to {VERSIONS[-1]}")
    if algorithm != _ECDSA_P384_SHA384:
        raise FormatError(f"SNP report: got signature algorithm {algorithm}, wanted {_ECDSA_P384_SHA384}")
    if vmpl not in _VMPLS:
        hint = "the host asked for this report, not the guest" if vmpl == _HOST else None
        raise FormatError(f"SNP report: got VMPL {vmpl}, wanted 0 to 3", hint=hint)
    signing_key = _KEYS.get(key_info >> 2 & 7)
    if signing_key is None:
        raise FormatError(f"SNP report: got signing key {key_info >> 2 & 7}, wanted 0 (VCEK) or 1 (VLEK)")
    named, mitigated = version >= 3, version >= 4
    for place, value in (
        (0x48, (key_info >> 5).to_bytes(4)),
        (0x4C, reserved),
        (0x188, cpuid[3:] if named else cpuid),
        (0x1EB, current[3:]),
        (0x1EF, committed[3:]),
        (0x1F8, rest[_MITIGATIONS.size :] if mitigated else rest),
        (SIGNED_SIZE + 2 * _HALF, report[SIGNED_SIZE + 2 * _HALF :]),
    ):
        if any(value):
            raise FormatError(f"SNP report: reserved bytes at {place:#x} are not zero")
    launch_mitigations, current_mitigations = _MITIGATIONS.unpack_from(rest) if mitigated else (None, None)
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=_policy(policy),
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=current_tcb,
        platform_info=platform_info,
        author_key_enabled=bool(key_info & 1),
        chip_key_masked=bool(key_info & 2),
        signing_key=signing_key,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key,
        author_key_digest=author_key,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpuid=_CPUID.unpack(cpuid) if named else None,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        current_version=_firmware(current),
        committed_version=_firmware(committed),
        launch_tcb=launch_tcb,
        launch_mitigations=launch_mitigations,
        current_mitigations=current_mitigations,
        signed=report[:SIGNED_SIZE],
        r=int.from_bytes(report[SIGNED_SIZE : SIGNED_SIZE + _HALF], "little"),
        s=int.from_bytes(report[SIGNED_SIZE + _HALF : SIGNED_SIZE + 2 * _HALF], "little"),
    )


def product_of(family: int, model: int) -> str:
    """The product by whose keys a processor of that CPUID family and model signs.

    Families and models of EPYC 7003 (Milan), 9004 with 97x4 and 8004 (Genoa), 9005 (Turin).

    Raises:
        FormatError: it is unknown here.
    """
    if family == 0x19 and model < 0x10:
        return "Milan"
    if family == 0x19 and (0x10 <= model < 0x20 or 0xA0 <= model < 0xB0):
        return "Genoa"
    if family == 0x1A and model < 0x20:
        return "Turin"
    raise FormatError(f"SNP report: a processor of family {family:#x}, model {model:#x}, which is unknown here")


def tcb_components(tcb: bytes, product: str) -> dict[str, int]:
    """The security version numbers in a TCB version of 8 bytes.

    Raises:
        FormatError: a reserved byte is not zero.
    """
    places = _TCB_OF_TURIN if product == "Turin" else _TCB
    if any(value for place, value in enumerate(tcb) if place not in places.values()):
        raise FormatError(f"TCB version: got {tcb.hex()}, wanted zeros in the reserved bytes of {product}'s")
    return {name: tcb[place] for name, place in places.items()}


def _policy(raw: int) -> GuestPolicy:
    if not raw >> _POLICY_ONE & 1:
        raise FormatError(f"SNP report: got policy {raw:#x}, wanted bit {_POLICY_ONE} set")
    bits = {name: bool(raw >> bit & 1) for name, bit in _POLICY_BITS.items()}
    known = 0xFFFF | 1 << _POLICY_ONE | sum(1 << bit for bit in _POLICY_BITS.values())
    return GuestPolicy(raw, (raw >> 8 & 0xFF, raw & 0xFF), bits, raw & ~known)


def _firmware(raw: bytes) -> tuple[int, int, int]:
    """Build, minor and major, as the report has them, from the most significant on."""
    return raw[2], raw[1], raw[0]
