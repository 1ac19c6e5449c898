"""What Intel's hardware measured of an enclave or a trust domain: the body of a quote. Nothing here is authenticated.

Sources: "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 3D, section 38.15 (SGX REPORT) and
38.7.1 (ATTRIBUTES); "Intel TDX DCAP: Quote Generation Library and Quote Verification Library", appendix A.3 (TD
reports 1.0 and 1.5); "Intel TDX Module Base Architecture Specification", ATTRIBUTES. Integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

# CPUSVN, MISCSELECT, reserved, ISVEXTPRODID, ATTRIBUTES (flags, XFRM), MRENCLAVE, reserved, MRSIGNER, reserved,
# CONFIGID, ISVPRODID, ISVSVN, CONFIGSVN, reserved, ISVFAMILYID, REPORTDATA.
_SGX = struct.Struct("<16s4s12x16s16s32s32x32s32x64sHHH42x16s64s")
SGX_REPORT_SIZE = _SGX.size
# TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, SEAMATTRIBUTES, TDATTRIBUTES, XFAM, MRTD, MRCONFIGID, MROWNER, MROWNERCONFIG,
# RTMR0 to 3, REPORTDATA. A TD report 1.5 adds TEE_TCB_SVN_2 and MRSERVICETD.
_TD10 = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD15_MORE = struct.Struct("<16s48s")
TD10_SIZE = _TD10.size
TD15_SIZE = _TD10.size + _TD15_MORE.size

_TD_REGISTERS = (
    "mrseam",
    "mrsignerseam",
    "seamattributes",
    "tdattributes",
    "xfam",
    "mrtd",
    "mrconfigid",
    "mrowner",
    "mrownerconfig",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
)

SGX_FLAGS: Mapping[str, int] = {
    "init": 0,
    "debug": 1,
    "mode64bit": 2,
    "provision_key": 4,
    "einittoken_key": 5,
    "cet": 6,
    "kss": 7,
    "aex_notify": 10,
}
"""SGX ATTRIBUTES: the number of each bit that has a name."""

TD_FLAGS: Mapping[str, int] = {
    "debug": 0,
    "hgs_plus_profiling": 4,
    "perf_profiling": 5,
    "pmt_profiling": 6,
    "icssd": 16,
    "servtd_ext": 17,
    "lass": 27,
    "sept_ve_disable": 28,
    "migratable": 29,
    "pks": 30,
    "key_locker": 31,
    "tpa": 62,
    "perfmon": 63,
}
"""TDATTRIBUTES: the number of each bit that has a name."""
_TUD = 0xFF  # TD under debug: bits 0 to 7


@dataclass(frozen=True)
class SgxReport:
    """An enclave's report, 384 bytes. `registers` maps names to bytes as the structure holds them."""

    isvprodid: int
    isvsvn: int
    configsvn: int
    registers: Mapping[str, bytes]
    report_data: bytes

    @property
    def flags(self) -> dict[str, bool]:
        return _flags(self.registers["attributes"][:8], SGX_FLAGS)

    @property
    def has_unknown_flags(self) -> bool:
        """Whether ATTRIBUTES has a flag that is not in `SGX_FLAGS`."""
        return _has_others(self.registers["attributes"][:8], SGX_FLAGS)

    @property
    def debug(self) -> bool:
        """Whether ATTRIBUTES.DEBUG is set: a debugger can read and write the enclave."""
        return self.flags["debug"]


@dataclass(frozen=True)
class TdReport:
    """A trust domain's report.

    `registers` maps names to bytes; `mrservicetd` is there in a report 1.5 only, as is `current_tcb_svn`, the
    TEE_TCB_SVN of when the report was made: `tee_tcb_svn` is that of when the trust domain was built.
    """

    tee_tcb_svn: bytes
    registers: Mapping[str, bytes]
    report_data: bytes
    current_tcb_svn: bytes | None = None

    @property
    def flags(self) -> dict[str, bool]:
        return _flags(self.registers["tdattributes"], TD_FLAGS)

    @property
    def has_unknown_flags(self) -> bool:
        """Whether TDATTRIBUTES has a bit that is not in `TD_FLAGS`."""
        return _has_others(self.registers["tdattributes"], TD_FLAGS)

    @property
    def debug(self) -> bool:
        """Whether a bit of TDATTRIBUTES.TUD ("TD under debug", bits 0 to 7) is set: any of them voids all trust."""
        return bool(int.from_bytes(self.registers["tdattributes"], "little") & _TUD)

    @property
    def migratable(self) -> bool:
        """Whether a migration TD may move it: TDATTRIBUTES.MIGRATABLE, or a service TD is bound to it, now or later.

        MRSERVICETD is the one that is bound; with SERVTD_EXT the module keeps more of them, which no quote shows.
        """
        return self.flags["migratable"] or self.flags["servtd_ext"] or any(self.registers.get("mrservicetd", b""))


def report_data_at(report: SgxReport | TdReport) -> int:
    """Where in a report its report data are."""
    return _SGX.size - 64 if isinstance(report, SgxReport) else _TD10.size - 64


def parse_sgx_report(raw: bytes) -> SgxReport:
    """The report in `raw`, which has `SGX_REPORT_SIZE` bytes."""
    cpusvn, misc, extended, attributes, enclave, signer, config, product, svn, config_svn, family, data = _SGX.unpack(
        raw
    )
    registers = {
        "mrenclave": enclave,
        "mrsigner": signer,
        # Numbers as people write them: the most significant byte first.
        "isvprodid": product.to_bytes(2, "big"),
        "attributes": attributes,
        "miscselect": misc,
        "cpusvn": cpusvn,
        "configid": config,
        "isvextprodid": extended,
        "isvfamilyid": family,
    }
    return SgxReport(product, svn, config_svn, registers, data)


def parse_td_report(raw: bytes) -> TdReport:
    """The report in `raw`, which has `TD10_SIZE` or `TD15_SIZE` bytes."""
    svn, *values, data = _TD10.unpack_from(raw)
    registers = dict(zip(_TD_REGISTERS, values, strict=True))
    if len(raw) == TD15_SIZE:
        current, registers["mrservicetd"] = _TD15_MORE.unpack_from(raw, _TD10.size)
        return TdReport(svn, registers, data, current)
    return TdReport(svn, registers, data)


def _flags(raw: bytes, names: Mapping[str, int]) -> dict[str, bool]:
    value = int.from_bytes(raw, "little")
    return {name: bool(value >> bit & 1) for name, bit in names.items()}


def _has_others(raw: bytes, names: Mapping[str, int]) -> bool:
    return bool(int.from_bytes(raw, "little") & ~sum(1 << bit for bit in names.values()))
