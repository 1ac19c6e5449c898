"""What Intel says of a platform's TCB, in our own code: for the quotes that `dcap-qvl` refuses to read, and as a second
opinion on the others (`judge`).

1. TCB information and the identity of the quoting enclave are signed under Intel's root, and hold at `now`.
2. They are of this platform (FMSPC, PCE id) and of what it quotes.
3. The platform's level is the first, best first, none of whose versions is above the platform's: those of the PCK
   certificate, its PCESVN, and for a trust domain TEE_TCB_SVN, which has module versions of their own from 1 on.
4. The TDX module is signed by whom Intel says, with its attributes; one of version 1 and up has a level of its own.
5. So has the quoting enclave: its signer, product, MISCSELECT and ATTRIBUTES are those of its identity.
6. The status is the platform's, lowered by those of module and quoting enclave; advisories are of all three.

Whatever has no level is refused. Sources: "Intel SGX and Intel TDX services API", "Get TDX TCB info": "Determining the
TCB status of a TDX platform"; intel/SGX-TDX-DCAP-QuoteVerificationLibrary, `TcbLevelCheck`, for step 6.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from strongroom.attest.parse.collateral import (
    Collateral,
    Identity,
    Level,
    TcbInfo,
    Window,
    parse_qe_identity,
    parse_tcb_info,
)
from strongroom.attest.parse.dcap import Quote
from strongroom.attest.parse.dcap_body import SgxReport, TdReport
from strongroom.attest.parse.pck import Platform
from strongroom.attest.verify.dcap_chain import follow
from strongroom.attest.verify.dcap_claims import TcbLevel
from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates, verify_chain
from strongroom.errors import ExpiredError, VerificationError

_UP_TO_DATE, _OUT_OF_DATE = "UpToDate", "OutOfDate"
_CONFIGURE = ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
_ABOUT = {"sgx": ("SGX", "QE"), "tdx": ("TDX", "TD_QE")}


def follow_with(
    collateral: Collateral, quote: Quote, root: VendorCertificate, *, now: int, intel: bool = True
) -> tuple[Platform, TcbLevel]:
    """`dcap_chain.follow` with the revocation lists of these endorsements, and then `tcb_level`.

    Raises:
        FormatError: the endorsements do not parse.
        ExpiredError: a certificate or an endorsement does not hold at `now`.
        VerificationError: anything else of the steps of both.
    """
    lists = RevocationList(collateral.root_ca_crl), RevocationList(collateral.pck_crl)
    for found, wanted in zip(lists, (root.subject, quote.certificates[0].issuer), strict=True):
        # One by another issuer would say nothing of this chain.
        if found.issuer != wanted:
            raise VerificationError(
                f"revocation list: got that of {found.issuer!r:.120}, wanted that of {wanted!r:.120}"
            )
    platform = follow(quote, root, now=now, revocation_lists=lists, intel=intel)
    return platform, tcb_level(quote, platform, collateral, root, now=now)


def tcb_level(
    quote: Quote, platform: Platform, collateral: Collateral, root: VendorCertificate, *, now: int
) -> TcbLevel:
    """What Intel says of the platform that made a quote, by the steps at the top of this file.

    Raises:
        FormatError: the endorsements do not parse.
        ExpiredError: one of them does not hold at `now`.
        VerificationError: one is signed by another, is of another platform, or has no level for this one.
    """
    # 1
    root_list = RevocationList(collateral.root_ca_crl)
    for name, text, signature, chain in (
        ("TCB information", collateral.tcb_info, collateral.tcb_info_signature, collateral.tcb_info_issuer_chain),
        ("QE identity", collateral.qe_identity, collateral.qe_identity_signature, collateral.qe_identity_issuer_chain),
    ):
        _check_signed(name, text, signature, chain, root, root_list, now)
    return judge(quote, platform, collateral, now=now)


def judge(quote: Quote, platform: Platform, collateral: Collateral, *, now: int) -> TcbLevel:
    """`tcb_level` of endorsements whose signatures somebody has followed: what is left of step 1, and steps 2 to 6."""
    info, qe = parse_tcb_info(collateral.tcb_info), parse_qe_identity(collateral.qe_identity)
    for name, window in (("TCB information", info.window), ("QE identity", qe.window)):
        _check_window(name, window, now)
    # 2
    wanted = _ABOUT["sgx" if isinstance(quote.report, SgxReport) else "tdx"]
    if (info.kind, qe.kind) != wanted:
        raise VerificationError(
            f"endorsements: got those of {info.kind} and {qe.kind[:20]!r}, wanted {' and '.join(wanted)}"
        )
    if (info.fmspc, info.pce_id) != (platform.fmspc, platform.pce_id):
        raise VerificationError(
            f"TCB information: got that of FMSPC {info.fmspc.hex()}, PCE {info.pce_id.hex()}, wanted this platform's, "
            f"{platform.fmspc.hex()} and {platform.pce_id.hex()}"
        )
    # 3
    levels = [_platform_level(info, platform, quote.report)]
    # 4
    if isinstance(quote.report, TdReport):
        levels += _module_level(info, quote.report)
    # 5
    levels.append(_enclave_level(quote.qe_report, qe.identity))
    # 6
    return TcbLevel(
        status=_lowered(level.status for level in levels),
        advisories=tuple(dict.fromkeys(name for level in levels for name in level.advisories)),
        evaluation=min(info.window.evaluation, qe.window.evaluation),
        expires=min(info.window.end, qe.window.end),
    )


def _check_signed(
    name: str,
    text: str,
    signature: bytes,
    chain: str,
    root: VendorCertificate,
    revoked: RevocationList,
    now: int,
) -> None:
    certificates = pem_certificates(chain.encode())
    verify_chain(certificates, root, now=now, revocation_lists=[revoked])
    if len(signature) != 64:
        raise VerificationError(f"{name}: a signature of {len(signature)} bytes, wanted 64")
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        certificates[0].key.verify_ecdsa(r, s, text.encode(), algorithm="sha256")
    except VerificationError as error:
        raise VerificationError(f"{name}: {error.message}") from None


def _check_window(name: str, window: Window, now: int) -> None:
    if not window.start <= now <= window.end:
        raise ExpiredError(f"{name}: not valid at {dt.datetime.fromtimestamp(now, dt.UTC):%Y-%m-%d %H:%M:%SZ}")


def _platform_level(info: TcbInfo, platform: Platform, report: SgxReport | TdReport) -> Level:
    for level in info.levels:
        if (
            _reaches(platform.components, level.sgx)
            and platform.pcesvn >= level.pcesvn
            and (isinstance(report, SgxReport) or _td_reaches(report.tee_tcb_svn, level.tdx))
        ):
            return level
    raise VerificationError("TCB information: no level for a platform with such old versions")


def _td_reaches(svn: bytes, wanted: tuple[int, ...]) -> bool:
    # From module version 1 on the first two are the module's own, which has levels of its own.
    start = 0 if svn[1] == 0 else 2
    return _reaches(svn[start:], wanted[start:])


def _reaches(versions: Iterable[int], wanted: Iterable[int]) -> bool:
    return all(mine >= theirs for mine, theirs in zip(versions, wanted, strict=True))


def _module_level(info: TcbInfo, report: TdReport) -> list[Level]:
    isvsvn, version = report.tee_tcb_svn[:2]
    module = info.module if version == 0 else info.modules.get(f"TDX_{version:02X}")
    if module is None:
        raise VerificationError(f"TCB information: knows no TDX module of version {version}")
    if report.registers["mrsignerseam"] != module.signer or not _masked(
        report.registers["seamattributes"], module.attributes, module.mask
    ):
        raise VerificationError("TDX module: its signer or attributes are not those of Intel's")
    return [] if version == 0 else [_first("TDX module", module.levels, isvsvn)]


def _enclave_level(report: SgxReport, identity: Identity) -> Level:
    registers = report.registers
    if (
        registers["mrsigner"] != identity.signer
        or report.isvprodid != identity.product
        or not _masked(registers["miscselect"], identity.misc, identity.misc_mask)
        or not _masked(registers["attributes"], identity.attributes, identity.mask)
    ):
        raise VerificationError("quoting enclave: not the one that the QE identity describes")
    return _first("quoting enclave", identity.levels, report.isvsvn)


def _first(name: str, levels: Iterable[Level], isvsvn: int) -> Level:
    for level in levels:
        if isvsvn >= level.isvsvn:
            return level
    raise VerificationError(f"{name}: no level for version {isvsvn}, which is so old")


def _masked(got: bytes, wanted: bytes, mask: bytes) -> bool:
    return bytes(a & m for a, m in zip(got, mask, strict=True)) == bytes(
        a & m for a, m in zip(wanted, mask, strict=True)
    )


def _lowered(statuses: Iterable[str]) -> str:
    """The platform's status, the first, lowered by the others: what none of these rules knows stands for all."""
    status, *others = statuses
    for other in others:
        if other == _OUT_OF_DATE and status in (_UP_TO_DATE, "SWHardeningNeeded"):
            status = _OUT_OF_DATE
        elif other == _OUT_OF_DATE and status in _CONFIGURE:
            status = "OutOfDateConfigurationNeeded"
        elif other not in (_UP_TO_DATE, _OUT_OF_DATE):
            status = other
    return status
