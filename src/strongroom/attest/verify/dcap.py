"""Verify Intel's evidence, and the simulated vendor's, which has the same form.

1. Parse the quote; a debug enclave is refused before anything else, whoever signed it.
2. Find the vendor root: Intel's for `tdx` and `sgx`, the one that the endorsements carry for `simulated`.
3. Let `dcap-qvl` follow every signature from that root to the quote at `now`.
4. Compare its reading of the report with ours, so that no two parsers ever disagree about what was signed.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re

import dcap_qvl

from strongroom.attest.claims import Claims, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import TdxReport, parse_tdx
from strongroom.attest.verify.anchors import INTEL_ROOT, Anchors
from strongroom.crypto import digest
from strongroom.errors import DebugEnclaveError, ExpiredError, FormatError, VerificationError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----\n?\0?\Z")
# How dcap-qvl says that a date is out of its window; a reason that this misses is still a VerificationError.
_OUT_OF_TIME = re.compile(r"expired|in the future|not ?yet ?valid|not ?valid ?yet", re.IGNORECASE)


def verify_dcap(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of a `tdx`, `sgx` or `simulated` quote, by the steps at the top of this file."""
    report = parse_tdx(evidence.quote)
    if report.debug:
        raise DebugEnclaveError(
            f"{evidence.tee} enclave: debug is on, wanted off",
            hint="start the enclave without debugging: its memory can be read from outside",
        )
    collateral = _collateral(evidence.endorsements)
    root = _carried_root(collateral.pck_crl_issuer_chain) if evidence.tee == "simulated" else anchors.intel.der
    root_digest = "sha256:" + digest(root).hex()
    if evidence.tee == "simulated":
        if root_digest == INTEL_ROOT:
            raise VerificationError(
                f"simulated evidence: got Intel's vendor root, {INTEL_ROOT}, wanted a simulated one"
            )
        if anchors.simulated is not None and root_digest != anchors.simulated.fingerprint:
            raise VerificationError(f"vendor root: got {root_digest}, wanted {anchors.simulated.fingerprint}")
    verified = _follow(evidence, collateral, root, now)
    _same_reading(evidence.quote, report)
    registers = {name: value.hex() for name, value in report.registers.items()}
    return Claims(
        tee=evidence.tee,
        measurement=registers_measurement(registers),
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
    evidence: Evidence, collateral: dcap_qvl.QuoteCollateralV3, root: bytes, now: int
) -> dcap_qvl.VerifiedReport:
    try:
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
