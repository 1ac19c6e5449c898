"""What Intel says of a platform's TCB, in our own code: for the quotes that `dcap-qvl` refuses to read, and as a second
opinion on the others (`judge`).

1. TCB information and the identity of the quoting enclave are signed under Intel's root by whom it made for that, and
   hold at `now`. Its platforms have keys under that root too, which their owners may have taken out.
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
from functools import lru_cache

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
from strongroom.attest.parse.pck import SGX_EXTENSION, Platform
from strongroom.attest.verify.anchors import INTEL_ROOT
from strongroom.attest.verify.dcap_chain import follow
from strongroom.attest.verify.dcap_claims import TcbLevel
from strongroom.attest.words import INTEL_STATUSES
from strongroom.crypto.chains import RevocationList, VendorCertificate, VendorKey, pem_certificates, verify_chain
from strongroom.errors import ExpiredError, FormatError, TcbError, VerificationError

_UP_TO_DATE, _OUT_OF_DATE = "UpToDate", "OutOfDate"
_OTHERS = "get the ones that belong to it: --fetch, or a bundle made with this platform's evidence"
_OLD = "the platform's TCB is older than any that Intel lists: update its firmware"
_CONFIGURE = ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
# As in the chains that come with Intel's answers ("Intel SGX and Intel TDX services API": TCB-Info-Issuer-Chain).
_TCB_SIGNER = "C=US,ST=CA,L=Santa Clara,O=Intel Corporation,CN=Intel SGX TCB Signing"
_ABOUT = {"sgx": ("SGX", "QE"), "tdx": ("TDX", "TD_QE")}


def follow_with(
    collateral: Collateral, quote: Quote, root: VendorCertificate, *, now: int, intel: bool = True
) -> tuple[Platform, TcbLevel]:
    """`dcap_chain.follow` with the revocation lists of these endorsements, and then `tcb_level`.

    Raises:
        FormatError: the endorsements do not parse, or are of another platform or kind.
        TcbError: they have no level for this platform.
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
        FormatError: the endorsements do not parse, or are of another platform or kind.
        TcbError: they have no level for this platform.
        ExpiredError: one of them does not hold at `now`.
        VerificationError: one is signed by another, or the quoting enclave or TDX module is not Intel's.
    """
    # 1
    root_list = RevocationList(collateral.root_ca_crl)
    for chain in (collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain):
        verify_chain(pem_certificates(chain.encode()), root, now=now, revocation_lists=[root_list])
    return judge(quote, platform, collateral, root, now=now)


def judge(quote: Quote, platform: Platform, collateral: Collateral, root: VendorCertificate, *, now: int) -> TcbLevel:
    """`tcb_level` of endorsements whose chains somebody has followed: what is left of step 1, and steps 2 to 6."""
    # 1
    for name, text, signature, chain in (
        ("TCB information", collateral.tcb_info, collateral.tcb_info_signature, collateral.tcb_info_issuer_chain),
        ("QE identity", collateral.qe_identity, collateral.qe_identity_signature, collateral.qe_identity_issuer_chain),
    ):
        _check_signed(name, text, signature, _signer(chain, root).key)
    info, qe = parse_tcb_info(collateral.tcb_info), parse_qe_identity(collateral.qe_identity)
    for name, window in (("TCB information", info.window), ("QE identity", qe.window)):
        _check_window(name, window, now)
    # 2
    wanted = _ABOUT["sgx" if isinstance(quote.report, SgxReport) else "tdx"]
    if (info.kind, qe.kind) != wanted:
        raise FormatError(
            f"endorsements: got those of {info.kind} and {qe.kind[:20]!r}, wanted {' and '.join(wanted)}",
            hint=_OTHERS,
        )
    if (info.fmspc, info.pce_id) != (platform.fmspc, platform.pce_id):
        raise FormatError(
            f"TCB information: got that of FMSPC {info.fmspc.hex()}, PCE {info.pce_id.hex()}, wanted this platform's, "
            f"{platform.fmspc.hex()} and {platform.pce_id.hex()}",
            hint=_OTHERS,
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


def window_of(collateral: Collateral) -> tuple[tuple[int, int], ...]:
    """From when until when each of the two documents holds, seconds since 1970."""
    windows = parse_tcb_info(collateral.tcb_info).window, parse_qe_identity(collateral.qe_identity).window
    return tuple((window.start, window.end) for window in windows)


def worse(first: TcbLevel, second: TcbLevel) -> TcbLevel:
    """Of two opinions on one platform the worse status, what either advises, the older number and the nearer end."""
    return TcbLevel(
        status=max(first.status, second.status, key=_badness),
        advisories=tuple(dict.fromkeys((*first.advisories, *second.advisories))),
        evaluation=_least(first.evaluation, second.evaluation),
        expires=_least(first.expires, second.expires),
    )


def _badness(status: str) -> int:
    return INTEL_STATUSES.index(status) if status in INTEL_STATUSES else len(INTEL_STATUSES)


def _least(first: int | None, second: int | None) -> int | None:
    return min((each for each in (first, second) if each is not None), default=None)


# The same for months; that it is in force, and not revoked, is seen each time. What is refused is no result, and not
# kept.
@lru_cache(maxsize=16)
def _signer(chain: str, root: VendorCertificate) -> VendorCertificate:
    """The leaf of an issuer chain, if it is one that `root` made to sign such documents."""
    leaf = pem_certificates(chain.encode())[0]
    leaf.verify_issued_by(root)
    made_for_it = root.fingerprint != INTEL_ROOT or leaf.subject == _TCB_SIGNER
    if leaf.is_ca or not leaf.may_sign or leaf.extension(SGX_EXTENSION) is not None or not made_for_it:
        raise VerificationError(f"endorsements: signed by {leaf.subject!r:.120}, wanted Intel's signer of TCBs")
    return leaf


@lru_cache(maxsize=16)  # as above
def _check_signed(name: str, text: str, signature: bytes, key: VendorKey) -> None:
    if len(signature) != 64:
        raise VerificationError(f"{name}: a signature of {len(signature)} bytes, wanted 64")
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify_ecdsa(r, s, text.encode(), algorithm="sha256")
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
    raise TcbError("TCB information: no level for a platform with such old versions", hint=_OLD)


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
        raise TcbError(
            f"TCB information: knows no TDX module of version {version}",
            hint="get endorsements that are as new as the module: --fetch",
        )
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
    raise TcbError(f"{name}: no level for version {isvsvn}, which is so old", hint=_OLD)


def _masked(got: bytes, wanted: bytes, mask: bytes) -> bool:
    return bytes(a & m for a, m in zip(got, mask, strict=True)) == bytes(
        a & m for a, m in zip(wanted, mask, strict=True)
    )


def _lowered(statuses: Iterable[str]) -> str:
    """The platform's status, the first, lowered by the others; where no rule says how, the worst stands for all."""
    status, *others = statuses
    for other in others:
        if other == _OUT_OF_DATE and status in (_UP_TO_DATE, "SWHardeningNeeded"):
            status = _OUT_OF_DATE
        elif other == _OUT_OF_DATE and status in _CONFIGURE:
            status = "OutOfDateConfigurationNeeded"
        elif other not in (_UP_TO_DATE, _OUT_OF_DATE):
            status = max(status, other, key=_badness)
    return status
