"""What Intel's evidence claims, in the words of `Claims`.

| field | SGX | TDX |
|---|---|---|
| measurement | MRENCLAVE | `registers_measurement` of MRTD and RTMR0 to 3 |
| signer | MRSIGNER | none |
| hardware_id | PPID | PPID |
| registers | MRSIGNER, ISVPRODID, CONFIGID and others | MRTD, RTMR0 to 3, MRCONFIGID, MROWNER and others |
| tcb | `isvsvn`, `configsvn` | TEE_TCB_SVN: `module`, `module_major`, `seam_patch` |
| attributes | `attribute_<flag>` of ATTRIBUTES | `attribute_<flag>` of TDATTRIBUTES |

Both have besides: tcb `qe` (ISVSVN of the quoting enclave), `pce`, and `evaluation` (Intel's TCB evaluation data
number: how new the endorsements are); attributes `fmspc`, `cpusvn`, `pce_id`, `memory`, `platform_instance`, `smt`,
`dynamic_platform` and `cached_keys`, where Intel says them, and
`endorsements_expire`; of a TD report 1.5 `current_tcb_svn`, TEE_TCB_SVN_2.

Weaknesses: `sept-ve` if TDATTRIBUTES.SEPT_VE_DISABLE is 0, so that the host can inject exceptions by unmapping memory;
`attribute-bits` if ATTRIBUTES or TDATTRIBUTES has a bit that is unknown here.
"""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.attest.claims import REGISTERS, Claims, registers_measurement
from strongroom.attest.parse.dcap import Quote
from strongroom.attest.parse.dcap_body import SgxReport, TdReport
from strongroom.attest.parse.pck import Platform
from strongroom.attest.verify.revocation import CHECKED, UNCHECKED


@dataclass(frozen=True)
class TcbLevel:
    """What Intel says of a platform with these versions.

    `status` is its word, `evaluation` the number of the endorsements that say so, `expires` when they end.
    """

    status: str = ""
    advisories: tuple[str, ...] = ()
    evaluation: int | None = None
    expires: int | None = None


def dcap_claims(tee: str, quote: Quote, platform: Platform, level: TcbLevel, vendor_root: str) -> Claims:
    """The claims of a verified quote."""
    report = quote.report
    common = _common(quote, platform, level)
    registers = {name: value.hex() for name, value in report.registers.items()}
    # Endorsements, from which a level is, have the lists of both issuers, and nothing passes without these.
    revocation = CHECKED if level.status else UNCHECKED
    if isinstance(report, SgxReport):
        return Claims(
            tee=tee,
            measurement=registers["mrenclave"],
            registers=registers,
            report_data=report.report_data,
            debug=report.debug,
            vendor_root=vendor_root,
            tcb_status=level.status,
            advisories=level.advisories,
            hardware_id=platform.ppid.hex(),
            signer=registers["mrsigner"],
            tcb={"isvsvn": report.isvsvn, "configsvn": report.configsvn} | common,
            weaknesses=_weaknesses(report),
            revocation=revocation,
            attributes=_attributes(report, platform, level),
        )
    module, module_major, seam_patch = report.tee_tcb_svn[:3]
    return Claims(
        tee=tee,
        measurement=registers_measurement({name: registers[name] for name in REGISTERS}),
        registers=registers,
        report_data=report.report_data,
        debug=report.debug,
        vendor_root=vendor_root,
        tcb_status=level.status,
        advisories=level.advisories,
        hardware_id=platform.ppid.hex(),
        tcb={"module": module, "module_major": module_major, "seam_patch": seam_patch} | common,
        migratable=report.migratable,
        weaknesses=_weaknesses(report),
        revocation=revocation,
        attributes=_attributes(report, platform, level),
    )


def _weaknesses(report: SgxReport | TdReport) -> tuple[str, ...]:
    exposed = isinstance(report, TdReport) and not report.flags["sept_ve_disable"]
    found = {"sept-ve": exposed, "attribute-bits": report.has_unknown_flags}
    return tuple(name for name, there in found.items() if there)


def _common(quote: Quote, platform: Platform, level: TcbLevel) -> dict[str, int]:
    numbers = {"qe": quote.qe_report.isvsvn, "pce": platform.pcesvn}
    return numbers | ({} if level.evaluation is None else {"evaluation": level.evaluation})


def _attributes(report: SgxReport | TdReport, platform: Platform, level: TcbLevel) -> dict[str, str | int | bool]:
    current = report.current_tcb_svn if isinstance(report, TdReport) else None
    told: dict[str, str | int | bool | None] = {
        **{f"attribute_{name}": value for name, value in report.flags.items()},
        "fmspc": platform.fmspc.hex(),
        "cpusvn": platform.cpusvn.hex(),
        "pce_id": platform.pce_id.hex(),
        "memory": platform.memory,
        "platform_instance": platform.instance.hex() if platform.instance else None,
        "smt": platform.smt,
        "dynamic_platform": platform.dynamic,
        "cached_keys": platform.cached_keys,
        "endorsements_expire": level.expires,
        "current_tcb_svn": current.hex() if current else None,
    }
    return {name: value for name, value in told.items() if value is not None}
