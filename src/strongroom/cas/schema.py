"""A policy's document as JSON Schema (draft 2020-12), for editors and other programs; made of what the parser checks.

A document that the parser takes is valid, and one that it refuses is not, except for what no schema says: names, mounts
and variables that appear twice, a mount within another or of characters that cannot be printed, an owner's key under
two names or not on the curve, a threshold above the number of owners, numbers with a fraction (``1.0``), registers and
lengths that evidence of the kinds in `tees` never has, and limits of the document as a whole. What `strongroom policy
check` says counts.
"""

from __future__ import annotations

from typing import Any

from strongroom.attest.evidence import DEVICES, MAX_DEVICES
from strongroom.attest.words import (
    AMD_VERSIONS,
    BY_PRODUCT,
    COMMON_AMD_VERSIONS,
    INTEL_STATUSES,
    VERSIONS,
    WEAKNESSES,
)
from strongroom.cas.document import FINGERPRINT
from strongroom.cas.owners import MAX_OWNERS, OWNER_NAME
from strongroom.cas.policy import _ACCESS, _HARMLESS, _RESERVED, _TAKEN, _VARIABLE, _WORD, POLICY_NAME
from strongroom.cas.reference import ENCLAVES

Schema = dict[str, Any]

_DIGEST = FINGERPRINT.pattern
_SPKI = r"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE[A-Za-z0-9+/]{85}[AQgw]=="  # RFC 5480: an uncompressed point on P-256
_NO_NUL, _SOME = r"[^\u0000]*", r"[^\u0000]+"
_MOUNT = rf"(?!/(?:{'|'.join(sorted(_TAKEN))})(?:/|$))(?:/(?!\.{{1,2}}(?:/|$))[^/\u0000-\u001f\u007f-\u009f]+)+"
_FILE = r"(?!/)(?!(?:[^\u0000]*/)?\.\.(?:/|$))[^\u0000]+"


def policy_schema() -> Schema:
    """The schema, as an object to be written as JSON."""
    schema = _table(
        "What may run in an enclave, and what it receives.",
        {
            "policy": _head(),
            "owners": _owners(),
            "reference": _reference(),
            "program": _program(),
            "vaults": _array(_vault(), "What is sealed and the enclave gets the key of."),
            "secrets": _array(_secret(), "Secrets for the program's variables."),
        },
        required=("policy", "reference"),
    )
    mirror = {"properties": {"access": {"const": "mirror"}}, "required": ["access"]}
    service = {"properties": {"policy": {"properties": {"role": {"const": "service"}}, "required": ["role"]}}}
    schema["properties"]["vaults"] |= {"contains": mirror, "minContains": 0, "maxContains": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Strongroom policy",
        **schema,
        "if": service | {"required": ["policy"]},
        "then": {"properties": {"vaults": {"contains": mirror, "minContains": 0, "maxContains": 0}}},
    }


def _head() -> Schema:
    return _table(
        "Which policy and version this is, and who administers it.",
        {
            "name": _text(POLICY_NAME.pattern, "namespace/name, the same in every version."),
            "version": _integer(1, (1 << 31) - 1, "1, then one more each time."),
            "previous": _text(f"|{_DIGEST}", "The digest of the version before; empty or absent in version 1."),
            "owner": _text(_DIGEST, "The fingerprint of the administrator's key."),
            "role": {"enum": ["program", "service"], "description": "What may attest under it."},
        },
        required=("name", "version", "owner", "role"),
    )


def _owners() -> Schema:
    keys = {
        "type": "object",
        "description": "Public keys by name: a DER SubjectPublicKeyInfo on P-256, in base64.",
        "propertyNames": {"pattern": _whole(OWNER_NAME.pattern)},
        "additionalProperties": {"type": "string", "pattern": _whole(_SPKI)},
        "minProperties": 1,
        "maxProperties": MAX_OWNERS,
    }
    threshold = _integer(1, MAX_OWNERS, "How many of them must sign a version.")
    return _table(
        "Who must sign this version and the next one.",
        {"threshold": threshold, "keys": keys},
        required=("threshold", "keys"),
    )


def _reference() -> Schema:
    count = _integer(1, MAX_DEVICES, "Exactly how many must be shown.")
    devices = _values("Which devices, each of which must fit.", DEVICES, {"count": count})
    return _values(
        "Which enclaves are accepted.",
        ENCLAVES,
        {
            "tcb_statuses": _array({"enum": list(INTEL_STATUSES)}, "Intel's words for a platform's state."),
            "tpm_roots": _some(_DIGEST, "SHA-256 of root certificates or enrolled keys of TPMs."),
            "devices": devices,
        },
    )


def _values(what: str, tees: tuple[str, ...], more: Schema) -> Schema:
    """What enclaves and devices have in common. The parser knows the forms from `attest.reference`."""
    hexadecimal, string = r"(?:[0-9a-f]{2})+", _string(_NO_NUL)
    return _table(
        what,
        {
            "tees": _array({"enum": list(tees)}, "Kinds of evidence.", minItems=1),
            "measurements": _some(r"[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}", "What may run there."),
            "signers": _some(hexadecimal, "Who must have signed it."),
            "registers": {
                "type": "object",
                "description": "For each register named, the values to accept.",
                "additionalProperties": _some(hexadecimal),
            },
            "hardware_ids": _some(hexadecimal, "The only processors to accept."),
            "advisories_allowed": _array(string, "Advisories that were judged."),
            "weaknesses_allowed": _array({"enum": list(WEAKNESSES)}, "Weaknesses that were judged."),
            "minimum_tcb": {
                "type": "object",
                "description": "For each kind, the lowest security versions to accept.",
                "properties": {
                    tee: _versions_by_product() if tee in BY_PRODUCT else _versions(names)
                    for tee, names in VERSIONS.items()
                },
                "additionalProperties": False,
            },
            "maximum_age": _integer(1, (1 << 31) - 1, "Seconds that dated evidence may be old."),
            "revocation_required": {"type": "boolean", "description": "Refuse what no revocation list vouches for."},
            "allow_simulated": _text(_DIGEST, "The one simulated vendor to accept: it protects nothing."),
            **more,
        },
        required=("tees", "measurements"),
    )


def _versions(names: tuple[str, ...], needed: tuple[str, ...] = ()) -> Schema:
    version = _integer(0, (1 << 63) - 1)
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


def _program() -> Schema:
    return _table(
        "What runs.",
        {
            "command": _array(_string(_NO_NUL), "The program and its arguments.", minItems=1)
            | {"prefixItems": [_string(_SOME)]},
            "files": _array(_string(_FILE), "Its files, below the document's directory."),
            "environment": {
                "type": "object",
                "description": "Its variables.",
                "propertyNames": {"pattern": _whole(_variable())},
                "additionalProperties": _string(_NO_NUL),
            },
        },
        required=("command",),
    )


def _vault() -> Schema:
    vault = _table(
        "A vault, or the mirror of a training.",
        {
            "name": _text(_WORD.pattern, "Its name in this policy."),
            "mount": _text(f"|{_MOUNT}", "Where the program finds it.") | {"maxLength": 4096},
            "access": {"enum": list(_ACCESS), "description": "What the enclave may do with it."},
        },
        required=("name", "access"),
    )
    mirror = {"properties": {"access": {"const": "mirror"}}, "required": ["access"]}
    return vault | {"if": mirror, "then": {"properties": {"mount": {"const": ""}}}}


def _secret() -> Schema:
    return _table(
        "A secret for one variable.",
        {
            "name": _text(_WORD.pattern, "Its name in this policy."),
            "environment": _text(_variable(), "The variable that gets it."),
            "generate": _integer(16, 1024, "Bytes that the CAS draws, in place of a stored secret."),
        },
        required=("name", "environment"),
    )


def _variable() -> str:
    return rf"(?:{'|'.join(_HARMLESS)})|(?!(?:{_RESERVED.pattern})$)(?:{_VARIABLE.pattern})"


def _table(what: str, properties: Schema, *, required: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "description": what,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _array(items: Schema, what: str, **more: int) -> Schema:
    return {"type": "array", "description": what, "items": items, **more}


def _some(pattern: str, what: str | None = None) -> Schema:
    """An array with at least one string of that form."""
    said = {} if what is None else {"description": what}
    return {"type": "array", **said, "items": _string(pattern), "minItems": 1}


def _text(pattern: str, what: str) -> Schema:
    return {"type": "string", "description": what, "pattern": _whole(pattern)}


def _string(pattern: str) -> Schema:
    return {"type": "string", "pattern": _whole(pattern)}


def _integer(lowest: int, highest: int, what: str | None = None) -> Schema:
    said = {} if what is None else {"description": what}
    return {"type": "integer", **said, "minimum": lowest, "maximum": highest}


def _whole(pattern: str) -> str:
    """A pattern that the whole text must match, in ECMA 262 as in Python, where ``$`` lets a line break follow."""
    return rf"^(?:{pattern})$(?!\n)"
