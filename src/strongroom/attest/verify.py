"""Verify evidence: who vouches for these claims? Signatures, chains, revocation and dates; no clock, network or file.

1. Parse the quote; a debug enclave is refused before anything else, whoever signed it.
2. Find the vendor root: Intel's for `tdx`, the one that the endorsements carry for `simulated`.
3. Let `dcap-qvl` follow every signature from that root to the quote at `now`.
4. Compare its reading of the report with ours, so that no two parsers ever disagree about what was signed.

A `simulated` enclave goes through the same code as `tdx`. What sets them apart is `Claims.vendor_root`: anybody can
make a vendor root, so verifying simulated evidence proves nothing until `appraise` has compared that digest.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass

import dcap_qvl

from strongroom.attest.evidence import REGISTER_SIZE, REGISTERS, Evidence, TdxReport, parse_tdx
from strongroom.crypto import digest
from strongroom.errors import DebugEnclaveError, ExpiredError, FormatError, UsageError, VerificationError

# Intel SGX Root CA, which also roots TDX. DER from https://certificates.trustedservices.intel.com/
# Intel_SGX_Provisioning_Certification_RootCA.cer; dcap-qvl has the certificate itself built in.
INTEL_ROOT = "sha256:44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

MEASUREMENT_LABEL = b"strongroom/measurement/v1"

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----\n?\0?\Z")
# How dcap-qvl says that a date is out of its window; a reason that this misses is still a VerificationError.
_OUT_OF_TIME = re.compile(r"expired|in the future|not ?yet ?valid|not ?valid ?yet", re.IGNORECASE)
_LAST_MOMENT = 253402300799  # the end of the year 9999, where X.509's dates end


@dataclass(frozen=True)
class Claims:
    """What the vendor vouches for. Authentic, not yet wanted: `appraise` decides that.

    Attributes:
        tee: the kind of enclave.
        measurement: `claims_measurement` of the registers, 96 hexadecimal digits.
        registers: MRTD and RTMR0..3 by name, 96 hexadecimal digits each.
        report_data: the 64 bytes that the enclave bound its evidence to.
        debug: whether the enclave can be debugged; `verify` never returns such claims.
        tcb_status: Intel's word for the platform's state, such as ``UpToDate``.
        advisories: Intel's advisories that apply to the platform.
        vendor_root: ``sha256:<hex>`` of the DER certificate at which the chains end.
        hardware_id: the processor's PPID in hexadecimal digits, from its certificate.
    """

    tee: str
    measurement: str
    registers: Mapping[str, str]
    report_data: bytes
    debug: bool
    tcb_status: str
    advisories: tuple[str, ...]
    vendor_root: str
    hardware_id: str


def claims_measurement(registers: Mapping[str, bytes | str]) -> str:
    """SHA-384("strongroom/measurement/v1" || mrtd || rtmr0 || rtmr1 || rtmr2 || rtmr3) in hexadecimal digits.

    Args:
        registers: exactly these five, each 48 bytes or their 96 hexadecimal digits.

    Raises:
        UsageError: a register is missing, unknown, or of another size.
    """
    if set(registers) != set(REGISTERS):
        raise UsageError(f"registers: got {', '.join(sorted(registers)) or 'none'}, wanted {', '.join(REGISTERS)}")
    parts = []
    for name in REGISTERS:
        value = registers[name]
        try:
            part = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
        except ValueError:
            raise UsageError(f"register {name}: not hexadecimal digits") from None
        if len(part) != REGISTER_SIZE:
            raise UsageError(f"register {name}: {len(part)} bytes, wanted {REGISTER_SIZE}")
        parts.append(part)
    return digest(MEASUREMENT_LABEL, *parts, algorithm="sha384").hex()


def verify(evidence: Evidence, *, now: int, vendor_root: bytes | None = None) -> Claims:
    """Follow the signatures from the vendor's root to the claims.

    Args:
        evidence: what the enclave showed.
        now: seconds since 1970, by the verifier's clock.
        vendor_root: if given, the one root certificate (DER) that is accepted.

    Raises:
        FormatError: quote or endorsements do not parse.
        DebugEnclaveError: the enclave can be debugged, or says so.
        ExpiredError: an endorsement or a certificate is not valid at `now`.
        VerificationError: anything else that does not hold.
        UsageError: `now` is no moment before the year 10000.
    """
    if not 0 <= now <= _LAST_MOMENT:
        raise UsageError(f"now: got {now}, wanted seconds since 1970")
    report = parse_tdx(evidence.quote)
    if report.debug:
        raise DebugEnclaveError(
            f"{evidence.tee} enclave: debug is on, wanted off",
            hint="start the enclave without debugging: its memory can be read from outside",
        )
    collateral = _collateral(evidence.endorsements)
    root = _carried_root(collateral.pck_crl_issuer_chain) if evidence.tee == "simulated" else None
    root_digest = INTEL_ROOT if root is None else "sha256:" + digest(root).hex()
    if root is not None and root_digest == INTEL_ROOT:
        raise VerificationError(f"simulated evidence: got Intel's vendor root, {INTEL_ROOT}, wanted a simulated one")
    if vendor_root is not None and root_digest != (wanted := "sha256:" + digest(vendor_root).hex()):
        raise VerificationError(f"vendor root: got {root_digest}, wanted {wanted}")
    verified = _follow(evidence, collateral, root, now)
    _same_reading(evidence.quote, report)
    registers = {name: value.hex() for name, value in report.registers.items()}
    return Claims(
        tee=evidence.tee,
        measurement=claims_measurement(registers),
        registers=registers,
        report_data=report.report_data,
        debug=report.debug,
        tcb_status=verified.status,
        advisories=tuple(verified.advisory_ids),
        vendor_root=root_digest,
        hardware_id=verified.ppid.hex(),
    )


def _collateral(endorsements: bytes) -> dcap_qvl.QuoteCollateralV3:
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(endorsements.decode())
    except ValueError as error:
        raise FormatError(f"endorsements: {_reason(error)}") from None


def _carried_root(chain: str) -> bytes:
    """The last certificate of a PEM chain, as DER."""
    start = chain.rfind("-----BEGIN CERTIFICATE-----")
    match = _CERTIFICATE.match(chain, max(start, 0))
    try:
        der = base64.b64decode(match[1].replace("\n", ""), validate=True) if match else b""
    except binascii.Error:
        der = b""
    if not der:
        raise FormatError("endorsements: no vendor root at the end of the issuer chain")
    return der


def _follow(
    evidence: Evidence, collateral: dcap_qvl.QuoteCollateralV3, root: bytes | None, now: int
) -> dcap_qvl.VerifiedReport:
    try:
        if root is None:
            return dcap_qvl.verify(evidence.quote, collateral, now)
        return dcap_qvl.verify_with_root_ca(evidence.quote, collateral, root, now)
    except ValueError as error:
        reason = _reason(error)
    except BaseException as error:
        # A panic in Rust arrives outside Exception; evidence from a stranger must not end the process.
        if type(error).__name__ != "PanicException":
            raise
        reason = "the verifier could not read it"
    if _OUT_OF_TIME.search(reason):
        moment = dt.datetime.fromtimestamp(now, dt.UTC)
        raise ExpiredError(f"{evidence.tee} evidence: not valid at {moment:%Y-%m-%d %H:%M:%SZ}: {reason}")
    raise VerificationError(f"{evidence.tee} evidence: {reason}")


def _same_reading(quote: bytes, report: TdxReport) -> None:
    theirs = dcap_qvl.Quote.parse(quote).report
    names = ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3", "report_data", "td_attributes")
    if [getattr(theirs, name, None) for name in names] != [
        *report.registers.values(),
        report.report_data,
        report.attributes,
    ]:
        raise VerificationError("quote: two parsers read it differently")


def _reason(error: BaseException) -> str:
    """One printable line of what dcap-qvl says."""
    text = str(error).removeprefix("Verification failed: ").removeprefix("Failed to parse JSON: ")
    text = re.sub(r" ?\{[^}]*\}", "", " ".join(text.split()))
    return "".join(c if c.isprintable() else " " for c in text)[:300]
