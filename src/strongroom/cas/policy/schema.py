"""A policy's document as JSON Schema (draft 2020-12), for editors and other programs; made of what the parser checks.

A document that the parser takes is valid, and one that it refuses is not, except for what no schema says: what appears
twice (names, places, variables, ports, keys), a place within another or of characters that cannot be printed, names
that nothing has (of secrets in templates, of vaults, of an administrator's resources), an owner's key that is not on
the curve, a threshold above the number of owners, replicas' numbers above `instances`, numbers with a fraction
(``1.0``), a date-time in quotes, spellings of IPv6 addresses, addresses and names that enclaves use among themselves,
what a certificate holds, registers and lengths that evidence of the kinds in
`tees` never has, and limits of the document as a whole. What `strongroom policy check` says counts.
"""

from __future__ import annotations

from strongroom.attest.reference import MEASUREMENT
from strongroom.cas.policy.network import CA, DOMAIN, ENDS, MAX_EGRESS, MAX_PORT, MAX_PUBLISHED, TASK, TRANSPORTS
from strongroom.cas.policy.owners import MAX_OWNERS, OWNER_NAME
from strongroom.cas.policy.places import (
    FRESHNESS,
    MAX_INSTANCES,
    PATH_RULES,
    POLICY_NAME,
    SEALED_ACCESS,
    TAKEN,
    VAULT_ACCESS,
    WITH_VAULT,
)
from strongroom.cas.policy.program import HARMLESS, MODE, RESERVED, TOOL, VARIABLE
from strongroom.cas.policy.rights import ISSUER, MAX_ADMINISTRATORS, RESOURCE, RIGHTS, SUBJECT, WORD
from strongroom.cas.policy.schema_forms import NOT_EMPTY, Schema, array, integer, some, string, table, text, whole
from strongroom.cas.policy.schema_reference import reference_schema
from strongroom.cas.policy.table import FINGERPRINT, MAX_DOCUMENT
from strongroom.cas.policy.version import DELIVERED, LEASE, MAX_PURPOSE, MIN_LEASE, RECIPIENT

_DIGEST = FINGERPRINT.pattern
_SPKI = r"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE[A-Za-z0-9+/]{85}[AQgw]=="  # RFC 5480: an uncompressed point on P-256
_SHOWN = r"[^\u0000-\u001f\u007f-\u009f]"
_MOUNT = rf"(?!/(?:{'|'.join(sorted(TAKEN))})(?:/|$))(?:/(?!\.{{1,2}}(?:/|$))[^/\u0000-\u001f\u007f-\u009f]+)+"
_TEMPLATE = rf"(?:[^\u0000$]|\$(?!\$?\{{)|\$\$\{{|\$\{{secret\.{WORD.pattern}\}})*"
_MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
_FILE = r"(?!/)(?!(?:[^\u0000]*/)?\.\.(?:/|$))[^\u0000]+"


_PARTY = {
    "properties": {"policy": {"properties": {"role": {"const": "party"}}, "required": ["role"]}},
    "required": ["policy"],
}


def policy_schema() -> Schema:
    """The schema, as an object to be written as JSON."""
    schema = table(
        "What may run in an enclave, and what it receives.",
        {
            "policy": _head(),
            "owners": _owners(),
            "administrators": array(_administrator(), "Who may do some of what the owner may.")
            | {"maxItems": MAX_ADMINISTRATORS},
            "reference": reference_schema(),
            "program": _program(),
            "secrets": array(_secret(), "Secrets for the program's variables, and for templates."),
            "files": array(_written(), "Files that are written into the enclave's memory before the program starts."),
            "vaults": array(_vault(), "What is sealed and the enclave gets the key of."),
            "sealed": array(_sealed(), "Files that are sealed by themselves."),
            "paths": array(_path(), "How files below a path are kept; the longest path wins."),
            "mesh": _mesh(),
            "egress": array(_egress(), "The hosts that the program may reach.", maxItems=MAX_EGRESS),
        },
        required=("policy",),
    )
    mirror = {"properties": {"access": {"const": "mirror"}}, "required": ["access"]}
    service = {"properties": {"policy": {"properties": {"role": {"enum": ["service", "cas"]}}, "required": ["role"]}}}
    schema["properties"]["vaults"] |= {"contains": mirror, "minContains": 0, "maxContains": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Strongroom policy",
        **schema,
        "if": service | {"required": ["policy"]},
        "then": {"properties": {"vaults": {"contains": mirror, "minContains": 0, "maxContains": 0}}},
        "allOf": [
            {"anyOf": [_PARTY, {"required": ["reference"]}]},
            {"if": _PARTY, "then": {"properties": dict.fromkeys(sorted(DELIVERED), False)}},
            *(_asks(kind, "from", "purpose") for kind in ("secrets", "vaults", "sealed")),
            *(_asks(kind, "writers", "instances") for kind in ("vaults", "sealed")),
        ],
    }


def _asks(kind: str, key: str, of_policy: str) -> Schema:
    """Where one of that kind has that key, the policy has the other."""
    return {
        "if": {"properties": {kind: {"contains": {"required": [key]}}}, "required": [kind]},
        "then": {"properties": {"policy": {"required": [of_policy]}}},
    }


def _head() -> Schema:
    return table(
        "Which policy and version this is, and who administers it.",
        {
            "name": text(POLICY_NAME.pattern, "namespace/name, the same in every version."),
            "version": integer(1, (1 << 31) - 1, "1, then one more each time."),
            "previous": text(f"|{_DIGEST}", "The digest of the version before; empty or absent in version 1."),
            "owner": text(_DIGEST, "The fingerprint of the administrator's key."),
            "role": {
                "enum": ["program", "service", "cas", "party"],
                "description": "What may attest under it; cas: the CAS itself, as strongroom/cas alone; party: one "
                "of `mpc`, whose administrators have its keys certified.",
            },
            "expires": {"format": "date-time"} | text(_MOMENT, "When it ends: an offset date-time."),
            "instances": integer(1, MAX_INSTANCES, "How many enclaves may live at once."),
            "lease": integer(MIN_LEASE, LEASE, "Seconds that an attestation counts."),
            "purpose": text(rf"{_SHOWN}{{1,{MAX_PURPOSE}}}", "What the imports are asked for."),
            "recipients": array(string(RECIPIENT.pattern), "Policies and keys that receive the outputs.")
            | {"uniqueItems": True},
        },
        required=("name", "version", "owner", "role"),
    )


def _administrator() -> Schema:
    rules = table(
        "Somebody who may do some of what the owner may.",
        {
            "name": text(WORD.pattern, "A name for it here."),
            "key": text(_DIGEST, "The fingerprint of its key."),
            "oidc": text(ISSUER.pattern, "An issuer of OpenID Connect."),
            "subject": text(SUBJECT.pattern, "What that issuer calls the person."),
            "may": array({"enum": list(RIGHTS)}, "What it may do.", minItems=1) | {"uniqueItems": True},
            "resources": some(RESOURCE.pattern, "The only secrets, vaults and sealed files that is about.")
            | {"uniqueItems": True},
        },
        required=("name", "may"),
    )
    by_key = {"required": ["key"], "properties": {"oidc": False, "subject": False}}
    return rules | {"anyOf": [by_key, {"required": ["oidc", "subject"], "properties": {"key": False}}]}


def _owners() -> Schema:
    keys = {
        "type": "object",
        "description": "Public keys by name: a DER SubjectPublicKeyInfo on P-256, in base64.",
        "propertyNames": {"pattern": whole(OWNER_NAME.pattern)},
        "additionalProperties": {"type": "string", "pattern": whole(_SPKI)},
        "minProperties": 1,
        "maxProperties": MAX_OWNERS,
    }
    threshold = integer(1, MAX_OWNERS, "How many of them must sign a version.")
    return table(
        "Who must sign this version and the next one.",
        {"threshold": threshold, "keys": keys},
        required=("threshold", "keys"),
    )


def _program() -> Schema:
    return table(
        "What runs.",
        {
            "command": array(string(_TEMPLATE), "The program and its arguments.", minItems=1)
            | {"prefixItems": [string(NOT_EMPTY)]},
            "files": array(string(_FILE), "Its files, below the document's directory."),
            "environment": {
                "type": "object",
                "description": "Its variables.",
                "propertyNames": {"pattern": whole(_variable())},
                "additionalProperties": string(_TEMPLATE),
            },
            "image": text(FINGERPRINT.pattern, "The container image that is its root."),
            "tools": array(
                string(TOOL.pattern), "The system's programs that it may start; without it, any.", uniqueItems=True
            ),
        },
        required=(),
    ) | {"anyOf": [{"required": ["command"]}, {"required": ["image"]}]}


def _vault() -> Schema:
    vault = table(
        "A vault, or the mirror of a training.",
        {
            "name": text(WORD.pattern, "Its name in this policy."),
            "mount": text(f"|{_MOUNT}", "Where the program finds it.") | {"maxLength": 4096},
            "access": {"enum": list(VAULT_ACCESS), "description": "What the enclave may do with it."},
            **_shared(),
        },
        required=("name", "access"),
    )
    mirror = {"properties": {"access": {"const": "mirror"}}, "required": ["access"]}
    unseen = {"properties": {"mount": {"const": ""}, "freshness": False}}
    return vault | {"allOf": [{"if": mirror, "then": unseen}, *_ACCESS_OF_SHARED]}


def _sealed() -> Schema:
    sealed = table(
        "A file that is sealed by itself.",
        {
            "name": text(WORD.pattern, "Its name in this policy."),
            "path": _place("Where the program finds it."),
            "access": {"enum": list(SEALED_ACCESS), "description": "What the enclave may do with it."},
            **_shared(),
        },
        required=("name", "path", "access"),
    )
    return sealed | {"allOf": list(_ACCESS_OF_SHARED)}


def _shared() -> Schema:
    number = integer(0, MAX_INSTANCES - 1)
    return {
        "freshness": {"enum": list(FRESHNESS), "description": "Whether its anchor may trail the newest commits."},
        "writers": array(number, "The only replicas that may write.", minItems=1) | {"uniqueItems": True},
        "from": text(POLICY_NAME.pattern, "The policy that it is imported of."),
    }


_ACCESS_OF_SHARED = (
    {"if": {"required": ["writers"]}, "then": {"properties": {"access": {"const": "read-write"}}}},
    {"if": {"required": ["from"]}, "then": {"properties": {"access": {"const": "read-only"}}}},
)


def _path() -> Schema:
    rules = table(
        "How files below a path are kept.",
        {
            "path": _place("Where."),
            "rule": {"enum": list(PATH_RULES), "description": "How."},
            "vault": text(WORD.pattern, "The vault that keeps them."),
        },
        required=("path", "rule"),
    )
    kept = {"required": ["vault"], "properties": {"rule": {"enum": list(WITH_VAULT)}}}
    return rules | {"anyOf": [kept, {"properties": {"rule": {"enum": [*_WITHOUT_VAULT]}, "vault": False}}]}


_WITHOUT_VAULT = tuple(rule for rule in PATH_RULES if rule not in WITH_VAULT)


def _secret() -> Schema:
    secret = table(
        "A secret of the policy's.",
        {
            "name": text(WORD.pattern, "Its name in this policy."),
            "environment": text(_variable(), "The variable that gets it."),
            "generate": integer(16, 1024, "Bytes that the CAS draws, in place of a stored secret."),
            "deposited": {"type": "boolean", "description": "Whether an enclave of this policy writes it."},
            "from": text(POLICY_NAME.pattern, "The policy that it is imported of."),
        },
        required=("name",),
    )
    written = {"properties": {"deposited": {"const": True}}, "required": ["deposited"]}
    not_drawn: Schema = {"generate": False}
    return secret | {
        "allOf": [
            {"if": written, "then": {"properties": not_drawn}},
            {"if": {"required": ["from"]}, "then": {"properties": not_drawn | {"deposited": {"const": False}}}},
        ]
    }


def _written() -> Schema:
    content = {"type": "string", "description": "What it holds, with places for secrets.", "pattern": whole(_TEMPLATE)}
    return table(
        "A file in the enclave's memory.",
        {
            "path": _place("Where the program finds it."),
            "content": content | {"maxLength": MAX_DOCUMENT},
            "mode": text(MODE.pattern, "Its mode; 0400 if absent."),
        },
        required=("path", "content"),
    )


def _mesh() -> Schema:
    published = table(
        "A service for outsiders.",
        {"name": text(WORD.pattern, "Its name."), "port": integer(1, MAX_PORT, "The program's port.")},
        required=("name", "port"),
    )
    return table(
        "Whom the program may reach, and who may reach it, through attested channels.",
        {
            "peers": array(string(POLICY_NAME.pattern), "Policies whose enclaves are peers.") | {"uniqueItems": True},
            "publish": array(published, "Services for outsiders.", maxItems=MAX_PUBLISHED),
            "pinned": array(_pinned(), "What peers are held to."),
            "tasks": array(string(TASK.pattern), "Of each replica, its kind of task, for TensorFlow."),
            "transport": {"enum": list(TRANSPORTS), "description": f"What carries it; {TRANSPORTS[0]} if absent."},
        },
        required=(),
    )


def _pinned() -> Schema:
    ports = array(integer(1, MAX_PORT), "The only ports here that it may connect to.") | {"uniqueItems": True}
    measurements = array(string(MEASUREMENT.pattern), "The only measurements of its enclaves.") | {"uniqueItems": True}
    held = table(
        "What a peer is held to.",
        {"policy": text(POLICY_NAME.pattern, "Whose enclaves."), "measurements": measurements, "ports": ports},
        required=("policy",),
    )
    some_of = [{"required": [name], "properties": {name: {"minItems": 1}}} for name in ("measurements", "ports")]
    return held | {"anyOf": some_of}


def _egress() -> Schema:
    return table(
        "A host that the program may reach.",
        {
            "host": {
                "description": "A domain in lower case, or an address.",
                "anyOf": [string(DOMAIN.pattern), string(_IPV4), string(_IPV6)],
            },
            "port": integer(1, MAX_PORT, "Its port."),
            "ca": text(CA.pattern, "system, or the one root that may vouch for it: its certificate's digest, or that."),
            "tls": {"enum": list(ENDS), "description": f"Who makes TLS to it; {ENDS[0]} if absent."},
        },
        required=("host", "port", "ca"),
    )


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_IPV6 = r"[0-9a-f:]*:[0-9a-f:.]*"


def _place(what: str) -> Schema:
    return text(_MOUNT, what) | {"maxLength": 4096}


def _variable() -> str:
    return rf"(?:{'|'.join(HARMLESS)})|(?!(?:{RESERVED.pattern})$)(?:{VARIABLE.pattern})"
