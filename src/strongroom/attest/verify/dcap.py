"""Verify Intel's evidence, and the simulated vendor's, which has the same form.

1. Parse the quote; a debug enclave is refused before anything else, whoever signed it.
2. Find the vendor root: Intel's for `tdx` and `sgx`, the one that the endorsements carry for `simulated`.
3. Let `dcap-qvl` follow every signature from that root to the quote at `now`, with the revocation lists, and find the
   platform's TCB level.
4. Follow the quote's own signatures in our own code too (`dcap_chain`).
5. Compare its reading of the report and the platform with ours, so that no two parsers ever disagree about what was
   signed; and judge the platform too (`dcap_tcb.judge`): `dcap-qvl` takes TCB information of any version and PCE, and
   by any signer under the root. Of two levels the worse counts (`dcap_tcb.worse`).

Of the enclave's next quote the signature is verified, and steps 3 to 5 are not repeated while their outcome is known
(`dcap_kept`).

`dcap-qvl` enforces no policy here: status, advisories and what it would else decide about (hyperthreading, platforms to
which processors may be added) go into the claims, for `appraise`. It reads SGX quotes of version 3 only: for later ones
our own code does step 3 as well (`dcap_tcb`).
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import dcap_qvl

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.collateral import parse_collateral
from strongroom.attest.parse.dcap import Quote, parse_quote
from strongroom.attest.parse.dcap_body import SgxReport
from strongroom.attest.parse.pck import Platform
from strongroom.attest.verify.anchors import INTEL_ROOT, Anchors
from strongroom.attest.verify.dcap_chain import check_signature, follow
from strongroom.attest.verify.dcap_claims import TcbLevel, dcap_claims
from strongroom.attest.verify.dcap_kept import Answer, Answers, key_of
from strongroom.attest.verify.dcap_tcb import follow_with, judge, window_of, worse
from strongroom.crypto.chains import VendorCertificate
from strongroom.errors import (
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    StrongroomError,
    TcbError,
    VerificationError,
)

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----\n?\0?\Z")
_answers = Answers()

# How dcap-qvl says that a date is out of its window; a reason that this misses is still a VerificationError.
_OUT_OF_TIME = re.compile(r"expired|in the future|not ?yet ?valid|not ?valid ?yet", re.IGNORECASE)

_MAX_REASON = 1000

# The names of webpki's errors, which it passes on, in words.
_WORDS = {
    "CertExpired": "a certificate has expired",
    "CertNotValidYet": "a certificate is not valid yet",
    "CrlExpired": "a revocation list has expired",
    "CertRevoked": "a certificate is revoked",
    "UnknownIssuer": "a certificate is not by the issuer that its chain shows",
    "UnknownRevocationStatus": "no revocation list tells of a certificate",
    "InvalidSignatureForPublicKey": "a certificate's signature does not hold",
    "InvalidCrlSignatureForPublicKey": "a revocation list's signature does not hold",
    "UnsupportedSignatureAlgorithmForPublicKeyContext": "a certificate is signed otherwise than its issuer's key can",
    "UnsupportedCrlSignatureAlgorithmForPublicKeyContext": "a revocation list is signed otherwise than its issuer's "
    "key can",
    "BadDer": "a certificate or a revocation list is no DER",
}

# What dcap-qvl says of evidence that nobody forged: the error that it is, and what to do about it. Everything else that
# it says is a VerificationError.
_WRONG_ENDORSEMENTS = re.compile(r"Fmspc mismatch|non-(?:TDX|SGX) TCB info|Unsupported QE Identity id")
_NO_LEVEL = re.compile(
    r"No matching TCB level|No TCB levels|is below minimum required|No TDX module identity|TCB status is invalid"
)
_HINTS = {
    "SEPT_VE_DISABLE": "Intel vouches for it, but its host can take pages away unseen (SEPT_VE_DISABLE is 0), which no "
    "policy can allow for tdx: start the trust domain with it; Azure's are verified as azure-tdx, with their vTPM",
    "TD migration": "an agent that is not measured may move it: start the trust domain without migration",
    "Invalid MR service TD": "a service TD that is not measured is bound to it: start the trust domain without one",
    "TD profiling": "its host can watch it: start the trust domain without profiling",
}

# What `dcap-qvl` calls the fields that both read.
_SGX_NAMES = {"mr_enclave": "mrenclave", "mr_signer": "mrsigner", "attributes": "attributes", "cpu_svn": "cpusvn"}
_TD_NAMES = {
    "mr_seam": "mrseam",
    "mr_signer_seam": "mrsignerseam",
    "seam_attributes": "seamattributes",
    "td_attributes": "tdattributes",
    "xfam": "xfam",
    "mr_td": "mrtd",
    "mr_config_id": "mrconfigid",
    "mr_owner": "mrowner",
    "mr_owner_config": "mrownerconfig",
    "rt_mr0": "rtmr0",
    "rt_mr1": "rtmr1",
    "rt_mr2": "rtmr2",
    "rt_mr3": "rtmr3",
}


def verify_dcap(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of a `tdx`, `sgx` or `simulated` quote, by the steps at the top of this file."""
    # 1
    quote = parse_quote(evidence.quote)
    kind = "sgx" if isinstance(quote.report, SgxReport) else "tdx"
    if evidence.tee != kind and evidence.tee != "simulated":
        raise FormatError(f"quote: got one of {kind}, wanted one of {evidence.tee}")
    refuse_debug(evidence.tee, quote)
    _refuse_unborn(quote)
    # 2
    collateral = _collateral(evidence.endorsements)
    root = _root(evidence.tee, collateral.pck_crl_issuer_chain, anchors)
    intel = evidence.tee != "simulated"
    if kind == "sgx" and quote.version > 3:
        # 3 and 4
        platform, level = follow_with(parse_collateral(evidence.endorsements), quote, root, now=now, intel=intel)
        return dcap_claims(evidence.tee, quote, platform, level, root.fingerprint)
    key = key_of(evidence.tee, quote, evidence.endorsements, root)
    known = _answers.get(key, now=now)
    if known is not None:
        check_signature(quote)
        return replace(known.claims, report_data=quote.report.report_data)
    # 3
    verified = _let_follow(evidence.tee, quote, collateral, root, now)
    level, window = _level(evidence.tee, verified, now)
    # 4
    platform = follow(quote, root, now=now, intel=intel)
    # 5
    _same_reading(verified, quote, platform)
    endorsed = parse_collateral(evidence.endorsements)
    level = worse(level, judge(quote, platform, endorsed, root, now=now))
    claims = dcap_claims(evidence.tee, quote, platform, level, root.fingerprint)
    windows = [window, *window_of(endorsed), root.valid, *(each.valid for each in quote.certificates)]
    _answers.keep(key, Answer(claims, max(start for start, _ in windows), min(end for _, end in windows)))
    return claims


def refuse_debug(tee: str, quote: Quote) -> None:
    """Raises DebugEnclaveError if the quote's enclave can be debugged."""
    if quote.report.debug:
        raise DebugEnclaveError(
            f"{tee} enclave: debug is on, wanted off",
            hint="start the enclave without debugging: its memory can be read from outside",
        )


def _refuse_unborn(quote: Quote) -> None:
    # SDM volume 3D, section 38.7.1: EINIT sets it once the enclave is complete; before, nothing can run in it.
    if isinstance(quote.report, SgxReport) and not quote.report.flags["init"]:
        raise VerificationError("sgx enclave: ATTRIBUTES.INIT is 0, wanted 1")


@lru_cache(maxsize=8)  # the same for months, from every enclave of a platform
def _collateral(endorsements: bytes) -> dcap_qvl.QuoteCollateralV3:
    if not endorsements:
        raise FormatError(
            "endorsements: got none, wanted Intel's for this platform",
            hint="`strongroom attest endorsements fetch` gets them, and so does strongroom.attest.endorsements",
        )
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(endorsements.decode())
    except ValueError as error:
        raise FormatError(f"endorsements: {_reason(error)}") from None


def _root(tee: str, chain: str, anchors: Anchors) -> VendorCertificate:
    if tee != "simulated":
        return anchors.intel
    root = _certificate(_carried_root(chain))
    if root.fingerprint == INTEL_ROOT:
        raise VerificationError(f"simulated evidence: got Intel's vendor root, {INTEL_ROOT}, wanted a simulated one")
    if anchors.simulated is not None and root != anchors.simulated:
        raise VerificationError(f"vendor root: got {root.fingerprint}, wanted {anchors.simulated.fingerprint}")
    return root


_certificate = lru_cache(maxsize=16)(VendorCertificate)


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


def _let_follow(
    tee: str, quote: Quote, collateral: dcap_qvl.QuoteCollateralV3, root: VendorCertificate, now: int
) -> dict[str, Any]:
    """What dcap-qvl says of the quote: its claims, version 1 of their form."""
    if not root.is_self_issued:
        # dcap-qvl takes that for granted, and where it is not so ends the whole process: no panic that could be caught.
        raise VerificationError(f"vendor root: got one issued by {root.issuer!r:.120}, wanted one issued by itself")
    policy = dcap_qvl.QuotePolicy.claims_only(now)
    try:
        claims = _ask(lambda: dcap_qvl.QuoteVerifier(root.der).verify_with_policy(quote.raw, collateral, now, policy))
        return dict(json.loads(claims.to_json()))
    except _RefusalError as refused:
        reason = str(refused)
    # Of a chain that fails it says no more than that here; its older function says why.
    try:
        _ask(lambda: dcap_qvl.verify_with_root_ca(quote.raw, collateral, root.der, now))
    except _RefusalError as refused:
        reason = str(refused)
    if _OUT_OF_TIME.search(reason):
        raise _expired(tee, now, reason)
    raise _refused(tee, reason)


def _refused(tee: str, reason: str) -> StrongroomError:
    if _WRONG_ENDORSEMENTS.search(reason):
        return FormatError(
            f"endorsements: got those of another platform or kind, wanted those of this {tee} evidence: {reason}",
            hint="get the ones that belong to it: --fetch, or a bundle made with this platform's evidence",
        )
    if _NO_LEVEL.search(reason):
        return TcbError(
            f"{tee} evidence: {reason}",
            hint="Intel lists no such TCB, being too old, or has revoked it: update the platform's firmware",
        )
    hint = next((hint for word, hint in _HINTS.items() if reason.startswith(word)), None)
    return VerificationError(f"{tee} evidence: {reason}", hint=hint)


class _RefusalError(Exception):
    """What dcap-qvl says, in one line."""


def _ask(question: Callable[[], Any]) -> Any:
    """What dcap-qvl answers. Raises _RefusalError if it refuses."""
    try:
        return question()
    except ValueError as error:
        raise _RefusalError(_reason(error)) from None
    except BaseException as error:
        # A panic in Rust arrives outside Exception; evidence from a stranger must not end the process.
        if type(error).__name__ != "PanicException":
            raise
        raise _RefusalError("the verifier could not read it") from None


def _level(tee: str, verified: dict[str, Any], now: int) -> tuple[TcbLevel, tuple[int, int]]:
    """The platform's level, and from when until when it holds.

    dcap-qvl takes revocation lists before they are in force, so dates are looked at again.
    """
    starts = max(verified["latest_issue_date"], verified["qe_iden_latest_issue_date"])
    expires = min(verified["earliest_expiration_date"], verified["qe_iden_earliest_expiration_date"])
    if not starts <= now <= expires:
        raise _expired(tee, now, f"an endorsement is of {starts}, or ends at {expires}")
    tcb = verified["tcb"]
    level = TcbLevel(tcb["status"], tuple(tcb["advisory_ids"]), tcb["eval_data_number"], expires)
    return level, (starts, expires)


def _expired(tee: str, now: int, reason: str) -> ExpiredError:
    moment = dt.datetime.fromtimestamp(now, dt.UTC)
    return ExpiredError(f"{tee} evidence: not valid at {moment:%Y-%m-%d %H:%M:%SZ}: {reason}")


def _same_reading(verified: dict[str, Any], quote: Quote, platform: Platform) -> None:
    ((_, theirs),) = verified["report"].items()
    theirs = theirs.get("base", theirs)  # a TD report 1.5 is a 1.0 and two fields
    names = _SGX_NAMES if isinstance(quote.report, SgxReport) else _TD_NAMES
    ours = {name: quote.report.registers[mine].hex() for name, mine in names.items()}
    ours["report_data"] = quote.report.report_data.hex()
    pck = verified["platform"]["pck"]
    told = tuple(bytes(pck[name]) for name in ("ppid", "fmspc", "cpu_svn", "pce_id"))
    if (
        any(theirs.get(name) != value for name, value in ours.items())
        or told != (platform.ppid, platform.fmspc, platform.cpusvn, platform.pce_id)
        or pck["pce_svn"] != platform.pcesvn
    ):
        raise VerificationError("quote: two parsers read it differently")


def _reason(error: BaseException) -> str:
    """One printable line of what dcap-qvl says."""
    # It may quote all of what it could not read: cut first, as what follows takes time by the square.
    text = str(error)[:_MAX_REASON].removeprefix("Verification failed: ").removeprefix("Failed to parse JSON: ")
    text = re.sub(r" ?\{[^}]*\}", "", " ".join(text.split()))
    text = _WORDS.get(text.partition("(")[0].strip(), text)
    return "".join(c if c.isprintable() else " " for c in text)[:300]
