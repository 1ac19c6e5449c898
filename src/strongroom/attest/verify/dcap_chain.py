"""The chain of signatures of Intel's quotes, in our own code: root -> PCK certificate -> QE report -> quote.

1. The platform's certificate (PCK) leads to the root, at `now` and by the revocation lists given.
2. It signed the quoting enclave's report.
3. That report vouches for the attestation key: REPORTDATA = SHA-256(key || authentication data) || 0[32].
4. The quoting enclave is Intel's, and no debugger can read it. Whoever owns a platform can let PCK sign reports of
   enclaves of his own, so without this step he could quote whatever he likes.
5. The attestation key signed the quote's header and body.

For `sgx`, `tdx` and `simulated` this is a second opinion beside `dcap-qvl`; for `azure-tdx`, whose trust domains that
library refuses, it is the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from strongroom.attest.parse.dcap import Quote
from strongroom.attest.parse.dcap_body import SgxReport
from strongroom.attest.parse.pck import Platform, parse_platform
from strongroom.crypto import digest, equal
from strongroom.crypto.chains import RevocationList, VendorCertificate, VendorKey, verify_chain
from strongroom.errors import FormatError, VerificationError

# Intel's quoting enclaves by what they quote: MRSIGNER and ISVPRODID as the QE and TD_QE identities of Intel's
# provisioning certification service have them ("Intel SGX and Intel TDX services API", enclave identity, version 2).
_QUOTING_ENCLAVES = {
    "sgx": (bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"), 1),
    "tdx": (bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"), 2),
}

# RFC 5480: SubjectPublicKeyInfo of a point on P-256, up to its coordinates.
_P256_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


def follow(
    quote: Quote,
    root: VendorCertificate,
    *,
    now: int,
    revocation_lists: Sequence[RevocationList] = (),
    intel: bool = True,
) -> Platform:
    """Follow the signatures from `root` to the quote, by the steps at the top of this file.

    Args:
        intel: whether step 4 wants one of Intel's quoting enclaves; a simulated vendor has its own.

    Returns:
        What the root's owner certified of the platform.

    Raises:
        VerificationError: a signature or a revocation list does not hold, or the quoting enclave is another.
        ExpiredError: a certificate or a revocation list is not valid at `now`.
        FormatError: the certificate is no PCK certificate.
    """
    # 1
    verify_chain(quote.certificates, root, now=now, revocation_lists=revocation_lists)
    pck = quote.certificates[0]
    platform = parse_platform(pck)
    # 2
    _check_qe_report(pck.key, quote.qe_signature, quote.qe_signed)
    # 3
    expected = digest(quote.attestation_key, quote.qe_authentication) + bytes(32)
    if not equal(quote.qe_report.report_data, expected):
        raise VerificationError("attestation key: the quoting enclave vouches for another one")
    # 4
    _check_quoting_enclave(quote, intel=intel)
    # 5
    check_signature(quote)
    return platform


def check_signature(quote: Quote) -> None:
    """Step 5 of `follow`."""
    _check("quote", _attestation_key(quote.attestation_key), quote.signature, quote.signed)


@lru_cache(maxsize=64)  # a quoting enclave keeps its own for months
def _attestation_key(point: bytes) -> VendorKey:
    try:
        return VendorKey(_P256_SPKI + point)
    except FormatError:
        raise VerificationError("attestation key: not a point on P-256") from None


def _check_quoting_enclave(quote: Quote, *, intel: bool) -> None:
    report = quote.qe_report
    if report.debug:
        raise VerificationError("quoting enclave: debug is on, wanted off")
    if intel:
        got = report.registers["mrsigner"], report.isvprodid
        wanted = _QUOTING_ENCLAVES["sgx" if isinstance(quote.report, SgxReport) else "tdx"]
        if got != wanted:
            raise VerificationError(
                f"quoting enclave: got signer {got[0].hex()}, product {got[1]}, wanted {wanted[0].hex()}, {wanted[1]}"
            )


@lru_cache(maxsize=64)  # a platform shows the same one in every quote; what is refused is no result, and not kept
def _check_qe_report(key: VendorKey, signature: bytes, message: bytes) -> None:
    _check("QE report", key, signature, message)


def _check(name: str, key: VendorKey, signature: bytes, message: bytes) -> None:
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify_ecdsa(r, s, message, algorithm="sha256")
    except VerificationError as error:
        raise VerificationError(f"{name}: {error.message}") from None
