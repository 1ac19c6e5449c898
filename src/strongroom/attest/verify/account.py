"""What a verification that ended well has checked, and what it has not, in words for a person.

Derived from the evidence that was verified and its claims: `verify` does every step that the evidence allows, or
raises. So a step is told only where what it needs came along, and what did not come along is told as not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import parse_azure
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.parse.tpm import parse_tpm
from strongroom.attest.verify.anchors import VENDORS


@dataclass(frozen=True)
class Held:
    """`steps` held, in the order in which they were made; `not_checked` was not looked at."""

    steps: tuple[str, ...]
    not_checked: tuple[str, ...]


def held(evidence: Evidence, claims: Claims) -> Held:
    """What `verify` has checked of that evidence, from which it made those claims."""
    steps, unchecked = _TELLERS[evidence.tee](evidence, claims)
    for index, (device, told) in enumerate(zip(evidence.devices, claims.devices, strict=True)):
        more, open_ = _TELLERS[device.tee](device, told)
        steps += [f"device {index}: {step}" for step in more]
        unchecked += [f"device {index}: {each}" for each in open_]
    return Held(tuple(steps), tuple(unchecked))


_Told = tuple[list[str], list[str]]


def _dcap(evidence: Evidence, claims: Claims) -> _Told:
    steps = [
        "the quote parses, and its enclave cannot be debugged",
        *_intel_chain("the simulated vendor's root" if evidence.tee == "simulated" else _root(claims)),
        *_intel_collateral(claims),
    ]
    unchecked = ["hardware: there is none, and anybody can make such a vendor"] if evidence.tee == "simulated" else []
    return steps, unchecked


def _intel_chain(root: str) -> list[str]:
    return [
        f"the platform's certificate leads to {root}",
        "the platform signed the quoting enclave's report, and that enclave vouches for the attestation key",
        "the attestation key signed the quote",
    ]


def _intel_collateral(claims: Claims) -> list[str]:
    return [
        "the collateral leads to the same root, and is in force",
        "its revocation lists revoke no certificate of the platform's",
        f"the quoting enclave and the platform's versions are among those that it judges: {claims.tcb_status}",
    ]


def _snp(evidence: Evidence, claims: Claims) -> _Told:
    return _amd(evidence.endorsements, claims)


def _amd(endorsements: bytes, claims: Claims) -> _Told:
    key = str(claims.attributes.get("signing_key", "VCEK"))
    given = parse_endorsements(endorsements)
    lists = len(given.revocation_lists)
    steps = [
        f"the report parses, and the certificate is of the {key} that it names, for {claims.product}",
        f"that certificate leads to {_root(claims)}, and all are in force",
        *([f"{_lists(lists)} nothing of that chain"] if lists else []),
        "it certifies the TCB that the report says" + (", and the chip" if key == "VCEK" else ""),
        f"the {key} signed the report",
    ]
    unchecked = [] if lists else ["revocation: no list of AMD's came along (--endorsements, --fetch)"]
    issuers = {each.issuer for each in given.certificates if each.subject.startswith(f"CN=SEV-{key}")}
    if lists and not issuers & {each.issuer for each in given.revocation_lists}:
        unchecked.append(f"revocation of the {key} itself: its issuer's list is not among those that came along")
    unchecked.append("whether these versions are recent: AMD has no word for that; a policy's minimum_tcb is")
    return steps, unchecked


def _azure(evidence: Evidence, claims: Claims) -> _Told:
    shown = parse_azure(evidence.tee, evidence.quote)
    if evidence.tee == "azure-snp":
        hardware, unchecked = _amd(evidence.endorsements, claims)
        hardware.append("the report was asked for by VMPL 0, where the paravisor runs")
        what = "report"
    else:
        what = "TD quote"
        hardware = ["the TD quote parses, and its trust domain cannot be debugged", *_intel_chain(_root(claims))]
        unchecked = []
        if evidence.endorsements:
            hardware += _intel_collateral(claims)
        else:
            unchecked = [
                "revocation of the platform's certificates: Intel's collateral is not there (--endorsements, --fetch)",
                "the platform's TCB, and whether its quoting enclave is recent: for want of the same collateral",
            ]
        hardware.append("the TDREPORT in the HCL report is the one that the TD quote is of")
    steps = [
        *hardware,
        f"the {what} vouches for the paravisor's runtime claims, which name the vTPM's key",
        "that key signed the guest's quote",
        f"the {len(shown.pcrs)} registers are those that were quoted",
    ]
    return steps, unchecked


def _nitro(evidence: Evidence, claims: Claims) -> _Told:
    steps = [
        "the document parses",
        f"its certificates lead to {_root(claims)}, and all are in force",
        "the leaf's key signed the document",
        "the document was made while that certificate was in force",
    ]
    return steps, ["revocation: the lists that Amazon's certificates name are not asked"]


def _nvidia(evidence: Evidence, claims: Claims) -> _Told:
    endorsements = parse_endorsements(evidence.endorsements)
    lists = len(endorsements.revocation_lists)
    steps = [
        "request and report parse",
        f"the device's certificates lead to {_root(claims)}, and all are in force",
        *([f"{_lists(lists)} nothing of that chain"] if lists else []),
        "the device's key signed request and report",
    ]
    if "firmware_id" in claims.registers:
        steps.append("the device's certificate names the firmware that the report names")
    unchecked = [
        "what each block should be: NVIDIA's reference integrity manifests (RIM) are not compared",
        "revocation: NVIDIA's online answers (OCSP) are not asked",
    ]
    return steps, unchecked


def _tpm(evidence: Evidence, claims: Claims) -> _Told:
    shown = parse_tpm(evidence.quote)
    endorsements = parse_endorsements(evidence.endorsements)
    fingerprint = f"sha256:{claims.hardware_id}"
    enrolled = claims.vendor_root == fingerprint
    steps, unchecked = ["quote, key and registers parse"], list[str]()
    if shown.public:
        steps.append("the key's public area says that it stays in its TPM and signs only what the TPM says")
    else:
        unchecked.append("the key's public area, which is not there: whether the key is one of a TPM's")
    if enrolled:
        steps.append("the attestation key is one that you trust as it is")
        unchecked.append("who made the TPM: you vouch for its key")
    else:
        steps.append("the attestation key's certificate leads to a root that you trust, and all are in force")
        if lists := len(endorsements.revocation_lists):
            steps.append(f"{_lists(lists)} nothing of that chain")
        else:
            unchecked.append("revocation: no list came along")
    steps += ["the key signed the quote", "the registers are those that were quoted"]
    if shown.event_log:
        steps.append("the event log replays to the registers that it mentions")
        unchecked.append("what the log calls its events: nobody signs that")
    else:
        unchecked.append("what went into the registers: no event log came along")
    return steps, unchecked


def _root(claims: Claims) -> str:
    return _ROOTS.get(claims.vendor_root, "the root that you named")


def _lists(count: int) -> str:
    return "the revocation list that came along revokes" if count == 1 else f"{count} revocation lists revoke"


_ROOTS: Mapping[str, str] = {
    VENDORS.intel.fingerprint: "Intel's root",
    VENDORS.nitro.fingerprint: "Amazon's root",
    VENDORS.nvidia.fingerprint: "NVIDIA's root",
    **{root.fingerprint: f"AMD's root for {product}" for product, root in VENDORS.amd.items()},
}

_TELLERS: Mapping[str, Callable[[Evidence, Claims], _Told]] = {
    "sgx": _dcap,
    "tdx": _dcap,
    "simulated": _dcap,
    "snp": _snp,
    "azure-snp": _azure,
    "azure-tdx": _azure,
    "nitro": _nitro,
    "nvidia": _nvidia,
    "tpm": _tpm,
}
