"""The JSON Schema of a policy's table `[reference]`, made of the words that `attest` knows."""

from __future__ import annotations

from strongroom.attest.evidence import DEVICES, MAX_DEVICES
from strongroom.attest.reference import ANY, MEASUREMENT
from strongroom.attest.words import (
    AMD_VERSIONS,
    BY_PRODUCT,
    COMMON_AMD_VERSIONS,
    INTEL_STATUSES,
    PLATFORMS,
    VERSIONS,
    WEAKNESSES,
)
from strongroom.cas.policy.reference import ENCLAVES
from strongroom.cas.policy.schema_forms import NO_NUL, Schema, array, integer, some, string, table, text
from strongroom.cas.policy.table import FINGERPRINT

_DIGEST = FINGERPRINT.pattern
_HEXADECIMAL = r"(?:[0-9a-f]{2})+"


def reference_schema() -> Schema:
    count = integer(1, MAX_DEVICES, "Exactly how many must be shown.")
    devices = _values("Which devices, each of which must fit.", DEVICES, {"count": count})
    return _values(
        "Which enclaves are accepted.",
        ENCLAVES,
        {
            "tcb_statuses": array({"enum": list(INTEL_STATUSES)}, "Intel's words for a platform's state."),
            "tpm_roots": some(_DIGEST, "SHA-256 of root certificates or enrolled keys of TPMs."),
            "platforms": {
                "type": "object",
                "description": "For each kind that is a whole machine, what it must have booted, by its registers: "
                "`measurements` are then of programs on it.",
                "properties": {tee: _platform(needed) for tee, needed in PLATFORMS.items()},
                "additionalProperties": False,
            },
            "other_programs": some(
                rf"{ANY}|{MEASUREMENT.pattern}", "Programs that may have been started on that machine besides."
            ),
            "devices": devices,
        },
    )


def _platform(needed: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "additionalProperties": some(_HEXADECIMAL),
        "required": list(needed),
    }


def _values(what: str, tees: tuple[str, ...], more: Schema) -> Schema:
    """What enclaves and devices have in common. The parser knows the forms from `attest.reference`."""
    hexadecimal, plain = _HEXADECIMAL, string(NO_NUL)
    return table(
        what,
        {
            "tees": array({"enum": list(tees)}, "Kinds of evidence.", minItems=1),
            "measurements": some(MEASUREMENT.pattern, "What may run there."),
            "signers": some(hexadecimal, "Who must have signed it."),
            "registers": {
                "type": "object",
                "description": "For each register named, the values to accept.",
                "additionalProperties": some(hexadecimal),
            },
            "hardware_ids": some(hexadecimal, "The only processors to accept."),
            "advisories_allowed": array(plain, "Advisories that were judged."),
            "weaknesses_allowed": array({"enum": list(WEAKNESSES)}, "Weaknesses that were judged."),
            "minimum_tcb": {
                "type": "object",
                "description": "For each kind, the lowest security versions to accept.",
                "properties": {
                    tee: _versions_by_product() if tee in BY_PRODUCT else _versions(names)
                    for tee, names in VERSIONS.items()
                },
                "additionalProperties": False,
            },
            "maximum_age": integer(1, (1 << 31) - 1, "Seconds that dated evidence may be old."),
            "revocation_required": {"type": "boolean", "description": "Refuse what no revocation list vouches for."},
            "allow_simulated": text(_DIGEST, "The one simulated vendor to accept: it protects nothing."),
            **more,
        },
        required=("tees", "measurements"),
    )


def _versions(names: tuple[str, ...], needed: tuple[str, ...] = ()) -> Schema:
    version = integer(0, (1 << 63) - 1)
    return {
        "type": "object",
        "properties": dict.fromkeys(names, version),
        "additionalProperties": False,
        **({"required": list(needed)} if needed else {"minProperties": 1}),
    }


def _versions_by_product() -> Schema:
    """All that AMD counts, for all products alike or for each by itself."""
    alike = _versions(AMD_VERSIONS["Turin"], COMMON_AMD_VERSIONS)
    products = {
        "type": "object",
        "properties": {product: _versions(names, names) for product, names in AMD_VERSIONS.items()},
        "additionalProperties": False,
        "minProperties": 1,
    }
    return {"anyOf": [alike, products]}
