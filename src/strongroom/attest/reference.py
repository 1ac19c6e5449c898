"""Reference values: what a policy accepts of an enclave. What is absent is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from strongroom.attest.evidence import DEVICES, TEES
from strongroom.attest.verify.anchors import VENDORS, Anchors
from strongroom.errors import PolicyError

_ROOT_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MEASUREMENT = re.compile(r"[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_LISTS = (
    "tees",
    "measurements",
    "tcb_statuses",
    "advisories_allowed",
    "signers",
    "hardware_ids",
    "tpm_roots",
    "weaknesses_allowed",
)


@dataclass(frozen=True)
class ReferenceValues:
    """What a policy accepts. What is absent is refused; what is None is not asked for.

    Attributes:
        tees: kinds of enclave, from `TEES`.
        measurements: as in `Claims.measurement`; an empty tuple accepts no enclave.
        tcb_statuses: Intel's words for a platform's state, for `sgx`, `tdx` and `simulated`.
        advisories_allowed: advisories that the policy's author has judged.
        allow_simulated: ``sha256:<hex>`` of the one simulated vendor root to accept. A simulated enclave or device
            protects nothing against its machine's owner. For an enclave, `simulated` must be among `tees` as well.
        minimum_tcb: for each tee, the lowest security version numbers to accept, by the vendor's names, as in
            `Claims.tcb`. `snp` and `azure-snp` need theirs: AMD has no word for a platform that is up to date.
        signers: as in `Claims.signer`: one of them must have signed what was loaded.
        registers: of each register named, the values to accept.
        hardware_ids: the processors to accept, as in `Claims.hardware_id`.
        tpm_roots: for `tpm`, ``sha256:<hex>`` of the roots to accept: of a certificate, or of an enrolled key's
            SubjectPublicKeyInfo.
        weaknesses_allowed: from `Claims.weaknesses`, those that the policy's author has judged.
        maximum_age: seconds that evidence with a time of its own may be old.
        devices: what every device must be. If None, no device may be shown; else at least one must.

    Raises:
        PolicyError: a value is not of that form.
    """

    tees: tuple[str, ...]
    measurements: tuple[str, ...]
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    advisories_allowed: tuple[str, ...] = ()
    allow_simulated: str | None = None
    minimum_tcb: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    signers: tuple[str, ...] | None = None
    registers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hardware_ids: tuple[str, ...] | None = None
    tpm_roots: tuple[str, ...] = ()
    weaknesses_allowed: tuple[str, ...] = ()
    maximum_age: int | None = None
    devices: ReferenceValues | None = None

    @property
    def anchors(self) -> Anchors:
        """Where `verify` may let chains end: at the vendors' roots, and at those that this policy names by digest."""
        simulated = None if self.devices is None else self.devices.allow_simulated
        return replace(VENDORS, named=frozenset(self.tpm_roots) | ({simulated} if simulated else set()))

    def __post_init__(self) -> None:
        for name in _LISTS:
            values = getattr(self, name)
            if values is not None or name not in ("signers", "hardware_ids"):
                object.__setattr__(self, name, _strings(name, values))
        for tee in self.tees:
            if tee not in TEES:
                raise PolicyError(f"tees: got {_short(tee)}, wanted some of {', '.join(TEES)}")
        for measurement in self.measurements:
            if not _MEASUREMENT.fullmatch(measurement):
                raise PolicyError(
                    f"measurements: got {_short(measurement)}, wanted 64, 96 or 128 lower-case hexadecimal digits"
                )
        for name in ("signers", "hardware_ids"):
            for value in getattr(self, name) or ():
                if not _HEX.fullmatch(value):
                    raise PolicyError(f"{name}: got {_short(value)}, wanted lower-case hexadecimal digits")
        for root in (*self.tpm_roots, *([] if self.allow_simulated is None else [self.allow_simulated])):
            if not isinstance(root, str) or not _ROOT_DIGEST.fullmatch(root):
                where = "tpm_roots" if root in self.tpm_roots else "allow_simulated"
                raise PolicyError(
                    f'{where}: got {_short(root)}, wanted "sha256:" and 64 hexadecimal digits',
                    hint="name the digest of the one root to accept",
                )
        if "" in self.tcb_statuses:
            raise PolicyError("tcb_statuses: got an empty one, wanted Intel's words for a platform's state")
        self._check_tables()

    def _check_tables(self) -> None:
        if not isinstance(self.registers, Mapping):
            raise PolicyError(f"registers: got {_short(self.registers)}, wanted a table")
        registers = {name: _strings(f"registers.{name}", values) for name, values in self.registers.items()}
        for name, values in registers.items():
            if not values or not all(_HEX.fullmatch(value) for value in values):
                raise PolicyError(f"registers.{name}: wanted at least one value of lower-case hexadecimal digits")
        object.__setattr__(self, "registers", registers)
        if not isinstance(self.minimum_tcb, Mapping):
            raise PolicyError(f"minimum_tcb: got {_short(self.minimum_tcb)}, wanted a table for each tee")
        for tee, versions in self.minimum_tcb.items():
            if tee not in TEES or not isinstance(versions, Mapping) or not versions:
                raise PolicyError(f"minimum_tcb.{tee}: wanted a table of numbers for one of {', '.join(TEES)}")
            for name, version in versions.items():
                if type(version) is not int or version < 0:
                    raise PolicyError(f"minimum_tcb.{tee}.{name}: got {_short(version)}, wanted a number")
        age = self.maximum_age
        if age is not None and (type(age) is not int or age <= 0):
            raise PolicyError(f"maximum_age: got {_short(age)}, wanted seconds, at least 1")
        devices = self.devices
        if devices is not None and (not devices.tees or set(devices.tees) - set(DEVICES) or devices.devices):
            raise PolicyError(f"devices.tees: got {_short(devices.tees)}, wanted some of {', '.join(DEVICES)}")


def _strings(name: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise PolicyError(f"{name}: got {_short(values)}, wanted a list of strings")
    return tuple(values)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
