"""Appraise claims: does a policy want what the vendor vouches for?

1. Simulated: only under the very vendor root that the policy names.
2. Debug: never. Migratable, and other weaknesses of an enclave's isolation: only those that the policy lists.
3. The TEE is one that the policy lists, under its own vendor's root.
4. The report data is what the verifier computed for this channel, nonce, kind and claims.
5. The measurement is one that the policy lists; so is the signer, and each register that the policy names.
6. The platform's TCB status is one that the policy lists, and so is every advisory; its versions are high enough.
7. The processor is one that the policy lists, if it lists any.
8. The evidence is no older than the policy says, where the vendor dates it.
9. Each device by steps 2 to 8, under the same report data; there are devices if the policy wants some, and else none.

The order is part of the contract: the first failure is the one raised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.binding import bound_data
from strongroom.attest.claims import Claims
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify.anchors import VENDORS
from strongroom.crypto import equal
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    ExpiredError,
    MeasurementError,
    SimulatedEnclaveError,
    TcbError,
)

__all__ = ["AttestationResult", "ReferenceValues", "appraise"]

_INTEL = frozenset({VENDORS.intel.fingerprint})
_AMD = frozenset(root.fingerprint for root in VENDORS.amd.values())
# Step 3: under whose root each kind of hardware is. A TPM's is the policy's, a simulated enclave's was step 1.
_ROOTS = {
    "sgx": _INTEL,
    "tdx": _INTEL,
    "azure-tdx": _INTEL,
    "snp": _AMD,
    "azure-snp": _AMD,
    "nitro": frozenset({VENDORS.nitro.fingerprint}),
    "nvidia": frozenset({VENDORS.nvidia.fingerprint}),
}
# Step 6: whose vendor has a word for the platform's state, and where the policy must say which versions it wants.
_WITH_STATUS = ("sgx", "tdx", "azure-tdx", "simulated")
_WITH_MINIMUM = ("snp", "azure-snp")
# A vendor's clock may be ahead of the verifier's by this much.
_SKEW = 60

_ISSUED_BY_APPRAISE = object()


@dataclass(frozen=True)
class AttestationResult:
    """Evidence was verified, appraised, and is what the policy wants. Only `appraise` makes one.

    `appraised_at` is in seconds since 1970, by the verifier's clock; `devices` are the measurements of its devices.
    """

    tee: str
    measurement: str
    vendor_root: str
    tcb_status: str
    appraised_at: int
    devices: tuple[str, ...] = ()
    _token: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._token is not _ISSUED_BY_APPRAISE:
            raise TypeError("AttestationResult: only appraise makes one")


def appraise(claims: Claims, reference: ReferenceValues, *, expected_report_data: bytes, now: int) -> AttestationResult:
    """Compare verified claims with reference values, in the order at the top of this file.

    Args:
        claims: from `verify`.
        reference: what the policy accepts.
        expected_report_data: what `binding.report_data` gives for this channel, computed by the verifier itself.
        now: seconds since 1970, noted in the result.

    Raises:
        SimulatedEnclaveError, DebugEnclaveError, AttestationError, BindingError, MeasurementError, TcbError,
        ExpiredError.
    """
    # 1
    if claims.tee == "simulated":
        _appraise_simulated(claims, reference)
    # 2 to 8
    _appraise_one(claims, reference, expected_report_data, now)
    # 9
    if claims.devices and reference.devices is None:
        raise AttestationError(
            f"devices: got {len(claims.devices)}, wanted none",
            hint="the policy's reference.devices says which devices an enclave may pass its data to",
        )
    if reference.devices is not None:
        if not claims.devices:
            raise AttestationError(f"devices: got none, wanted {_one_of(reference.devices.tees)}")
        for device in claims.devices:
            _appraise_one(device, reference.devices, expected_report_data, now)
    return AttestationResult(
        claims.tee,
        claims.measurement,
        claims.vendor_root,
        claims.tcb_status,
        now,
        tuple(device.measurement for device in claims.devices),
        _ISSUED_BY_APPRAISE,
    )


def _appraise_one(claims: Claims, reference: ReferenceValues, expected_report_data: bytes, now: int) -> None:
    """Steps 2 to 8."""
    # 2
    if claims.debug:
        raise DebugEnclaveError(
            f"{claims.tee} enclave: debug is on, wanted off", hint="its memory can be read from outside"
        )
    weaknesses = [*claims.weaknesses, *(["migratable"] if claims.migratable else [])]
    if unwanted := [each for each in weaknesses if each not in reference.weaknesses_allowed]:
        raise AttestationError(
            f"weaknesses: got {', '.join(unwanted)}, wanted {_one_of(reference.weaknesses_allowed, 'none')}",
            hint="start the enclave without them, or list them in the policy's weaknesses_allowed",
        )
    # 3
    if claims.tee not in reference.tees:
        raise AttestationError(
            f"tee: got {claims.tee}, wanted {_one_of(reference.tees)}", hint="the policy's tees decide what may run it"
        )
    if claims.tee != "simulated":
        roots = frozenset(reference.tpm_roots) if claims.tee == "tpm" else _ROOTS[claims.tee]
        if claims.vendor_root not in roots:
            raise AttestationError(
                f"vendor root of {claims.tee}: got {claims.vendor_root}, wanted {_one_of(tuple(sorted(roots)))}"
            )
    # 4
    expected = bound_data(claims.tee, expected_report_data)
    if not equal(claims.report_data, expected):
        raise BindingError(
            f"report data: got {claims.report_data.hex()[:32]}..., wanted {expected.hex()[:32]}...",
            hint="the evidence was made for another channel, nonce, kind or claims; never accept it here",
        )
    # 5
    if claims.measurement not in reference.measurements:
        raise MeasurementError(
            f"measurement: got {claims.measurement}, wanted {_one_of(reference.measurements)}",
            hint="another program, configuration or version runs there; add its measurement to the policy to accept it",
        )
    if reference.signers is not None and claims.signer not in reference.signers:
        raise MeasurementError(f"signer: got {claims.signer or 'none'}, wanted {_one_of(reference.signers)}")
    for name, wanted in reference.registers.items():
        if claims.registers.get(name) not in wanted:
            raise MeasurementError(
                f"register {name}: got {claims.registers.get(name, 'none')}, wanted {_one_of(wanted)}"
            )
    # 6
    _appraise_tcb(claims, reference)
    # 7
    if reference.hardware_ids is not None and (
        not claims.hardware_id or claims.hardware_id not in reference.hardware_ids
    ):
        raise AttestationError(
            f"hardware id: got {claims.hardware_id or 'none'}, wanted {_one_of(reference.hardware_ids)}",
            hint="another processor than those that the policy lists made this evidence",
        )
    # 8
    if claims.issued_at is not None:
        if claims.issued_at > now + _SKEW:
            raise ExpiredError(f"evidence: made at {claims.issued_at}, it is {now}")
        if reference.maximum_age is not None and now - claims.issued_at > reference.maximum_age:
            raise ExpiredError(f"evidence: {now - claims.issued_at} s old, wanted at most {reference.maximum_age}")


def _appraise_tcb(claims: Claims, reference: ReferenceValues) -> None:
    if claims.tee in _WITH_STATUS and claims.tcb_status not in reference.tcb_statuses:
        raise TcbError(
            f"tcb status: got {claims.tcb_status or 'none'}, wanted {_one_of(reference.tcb_statuses)}",
            hint="update the platform's firmware, or list the status in the policy",
        )
    unknown = [name for name in claims.advisories if name not in reference.advisories_allowed]
    if unknown:
        raise TcbError(
            f"advisories: got {', '.join(unknown)}, wanted {_one_of(reference.advisories_allowed)}",
            hint="update the platform's firmware, or list the advisory in the policy",
        )
    minimum = reference.minimum_tcb.get(claims.tee)
    if minimum is None and claims.tee in _WITH_MINIMUM:
        raise TcbError(
            f"minimum tcb: the policy has none for {claims.tee}",
            hint=f"add minimum_tcb.{claims.tee}: the lowest security versions to accept; "
            "`strongroom attest show` prints those of this evidence",
        )
    for name, wanted in (minimum or {}).items():
        if claims.tcb.get(name, -1) < wanted:
            raise TcbError(
                f"tcb {name}: got {claims.tcb.get(name, 'none')}, wanted at least {wanted}",
                hint="update the platform's firmware",
            )


def _appraise_simulated(claims: Claims, reference: ReferenceValues) -> None:
    allowed = reference.allow_simulated
    if allowed is None or not equal(allowed.encode(), claims.vendor_root.encode()):
        raise SimulatedEnclaveError(
            f"simulated enclave: got vendor root {claims.vendor_root}, wanted {allowed or 'no simulated enclave'}",
            hint=f'allow_simulated = "{claims.vendor_root}" in the policy accepts this simulated vendor, '
            "which protects nothing against the machine's owner",
        )


def _one_of(values: tuple[str, ...], nothing: str = "one, but the list is empty") -> str:
    return " or ".join(values) or nothing
