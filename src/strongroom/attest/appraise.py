"""Appraise claims: does a policy want what the vendor vouches for?

1. Simulated: only under the very vendor root that the policy names.
2. Debug: never.
3. The TEE is one that the policy lists, under its own vendor's root.
4. The report data is what the verifier computed for this channel, nonce, kind and claims.
5. The measurement is one that the policy lists.
6. The platform's TCB status is one that the policy lists, and so is every advisory.

The order is part of the contract: the first failure is the one raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.evidence import TEES
from strongroom.attest.verify import INTEL_ROOT, Claims
from strongroom.crypto import equal
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    MeasurementError,
    PolicyError,
    SimulatedEnclaveError,
    TcbError,
)

_ROOT_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MEASUREMENT = re.compile(r"[0-9a-f]{96}")
_ISSUED_BY_APPRAISE = object()


@dataclass(frozen=True)
class ReferenceValues:
    """What a policy accepts. What is absent is refused.

    Attributes:
        tees: kinds of enclave, from `TEES`.
        measurements: as in `Claims.measurement`; an empty tuple accepts no enclave.
        tcb_statuses: Intel's words for a platform's state.
        advisories_allowed: advisories that the policy's author has judged.
        allow_simulated: ``sha256:<hex>`` of the one simulated vendor root to accept. A simulated enclave protects
            nothing against its machine's owner. `simulated` must be among `tees` as well.

    Raises:
        PolicyError: a value is not of that form.
    """

    tees: tuple[str, ...]
    measurements: tuple[str, ...]
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    advisories_allowed: tuple[str, ...] = ()
    allow_simulated: str | None = None

    def __post_init__(self) -> None:
        for name in ("tees", "measurements", "tcb_statuses", "advisories_allowed"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
                raise PolicyError(f"{name}: got {_short(values)}, wanted a list of strings")
            object.__setattr__(self, name, tuple(values))
        for tee in self.tees:
            if tee not in TEES:
                raise PolicyError(f"tees: got {_short(tee)}, wanted some of {', '.join(TEES)}")
        for measurement in self.measurements:
            if not _MEASUREMENT.fullmatch(measurement):
                raise PolicyError(f"measurements: got {_short(measurement)}, wanted 96 lower-case hexadecimal digits")
        allowed = self.allow_simulated
        if allowed is not None and not (isinstance(allowed, str) and _ROOT_DIGEST.fullmatch(allowed)):
            raise PolicyError(
                f'allow_simulated: got {_short(allowed)}, wanted "sha256:" and 64 hexadecimal digits',
                hint="name the digest of the one simulated vendor root to accept; anybody can make another",
            )


@dataclass(frozen=True)
class AttestationResult:
    """Evidence was verified, appraised, and is what the policy wants. Only `appraise` makes one.

    `appraised_at` is in seconds since 1970, by the verifier's clock.
    """

    tee: str
    measurement: str
    vendor_root: str
    tcb_status: str
    appraised_at: int
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
        SimulatedEnclaveError, DebugEnclaveError, AttestationError, BindingError, MeasurementError, TcbError.
    """
    # 1
    if claims.tee == "simulated":
        _appraise_simulated(claims, reference)
    # 2
    if claims.debug:
        raise DebugEnclaveError("enclave: debug is on, wanted off")
    # 3
    if claims.tee not in reference.tees:
        raise AttestationError(
            f"tee: got {claims.tee}, wanted {_one_of(reference.tees)}", hint="the policy's tees decide what may run it"
        )
    if claims.tee != "simulated" and claims.vendor_root != INTEL_ROOT:
        raise AttestationError(f"vendor root of {claims.tee}: got {claims.vendor_root}, wanted {INTEL_ROOT}")
    # 4
    if not equal(claims.report_data, expected_report_data):
        raise BindingError(
            f"report data: got {claims.report_data.hex()[:32]}..., wanted {expected_report_data.hex()[:32]}...",
            hint="the evidence was made for another channel, nonce, kind or claims; never accept it here",
        )
    # 5
    if claims.measurement not in reference.measurements:
        raise MeasurementError(
            f"measurement: got {claims.measurement}, wanted {_one_of(reference.measurements)}",
            hint="another program, configuration or version runs there; add its measurement to the policy to accept it",
        )
    # 6
    if claims.tcb_status not in reference.tcb_statuses:
        raise TcbError(
            f"tcb status: got {claims.tcb_status}, wanted {_one_of(reference.tcb_statuses)}",
            hint="update the platform's firmware, or list the status in the policy",
        )
    unknown = [name for name in claims.advisories if name not in reference.advisories_allowed]
    if unknown:
        raise TcbError(
            f"advisories: got {', '.join(unknown)}, wanted {_one_of(reference.advisories_allowed)}",
            hint="update the platform's firmware, or list the advisory in the policy",
        )
    return AttestationResult(
        claims.tee, claims.measurement, claims.vendor_root, claims.tcb_status, now, _ISSUED_BY_APPRAISE
    )


def _appraise_simulated(claims: Claims, reference: ReferenceValues) -> None:
    allowed = reference.allow_simulated
    if allowed is None or not equal(allowed.encode(), claims.vendor_root.encode()):
        raise SimulatedEnclaveError(
            f"simulated enclave: got vendor root {claims.vendor_root}, wanted {allowed or 'no simulated enclave'}",
            hint=f'allow_simulated = "{claims.vendor_root}" in the policy accepts this simulated vendor, '
            "which protects nothing against the machine's owner",
        )


def _one_of(values: tuple[str, ...]) -> str:
    return " or ".join(values) or "one, but the list is empty"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
