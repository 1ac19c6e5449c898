"""Files that people pass on for a grant: the request, and the grant that they sign one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.attest.binding import canonical
from strongroom.cas.policy.grants import (
    MAX_TABLE,
    MEASUREMENT,
    Grant,
    SignedGrant,
    digest_of_reference,
    imports,
    listing,
    matching,
    purpose_in,
    reference_table,
)
from strongroom.cas.policy.places import POLICY_NAME
from strongroom.cas.policy.rights import RESOURCE
from strongroom.cas.policy.version import RECIPIENT, Policy
from strongroom.errors import FormatError, GrantError

REQUEST_FORMAT = "strongroom/grant-request/v1"
_MAX_FILE = 1 << 19


@dataclass(frozen=True)
class GrantRequest:
    """What an importing policy asks another policy's people for. Nobody signs it: the grant made of it is signed."""

    source: str
    importer: str
    resources: tuple[str, ...]
    reference: Mapping[str, Any]
    purpose: str
    recipients: tuple[str, ...]
    command: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: Policy, source: str) -> GrantRequest:
        """What that policy imports from `source`. Raises GrantError if that is nothing."""
        resources = imports(policy).get(source)
        if not resources:
            raise GrantError(
                f"policy {policy.name}: imports nothing from {source[:140]}", hint="say from = in the document"
            )
        command = policy.program.command if policy.program else ()
        return cls(
            source, policy.name, resources, reference_table(policy), policy.purpose, policy.recipients, tuple(command)
        )

    @classmethod
    def parse(cls, text: str) -> GrantRequest:
        """Raises FormatError."""
        value = read_object(text, "request")
        wanted = {"format", "from", "to", "resources", "reference", "purpose", "recipients", "command"}
        if value.get("format") != REQUEST_FORMAT or set(value) != wanted:
            raise FormatError(
                "request: not a grant's request of version 1", hint="`strongroom policy request` writes it"
            )
        reference, command = value["reference"], value["command"]
        if not isinstance(reference, dict) or not isinstance(reference.get("measurements"), list):
            raise FormatError("request.reference: wanted the importer's table of that name")
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            raise FormatError("request.command: wanted strings")
        canonical(reference, cap=MAX_TABLE)
        request = cls(
            source=matching(value, "from", POLICY_NAME),
            importer=matching(value, "to", POLICY_NAME),
            resources=listing(value, "resources", RESOURCE),
            reference=reference,
            purpose=purpose_in(value),
            recipients=listing(value, "recipients", RECIPIENT, empty=True),
            command=tuple(command),
        )
        listing(reference, "measurements", MEASUREMENT)
        return request

    def to_text(self) -> str:
        wire = {
            "format": REQUEST_FORMAT,
            "from": self.source,
            "to": self.importer,
            "resources": list(self.resources),
            "reference": dict(self.reference),
            "purpose": self.purpose,
            "recipients": list(self.recipients),
            "command": list(self.command),
        }
        return json.dumps(wire, indent=2, ensure_ascii=False) + "\n"

    def grant(self, *, expires: int, serial: int) -> Grant:
        """The grant of all that is asked for."""
        return Grant(
            self.source,
            self.importer,
            self.resources,
            tuple(self.reference["measurements"]),
            digest_of_reference(self.reference),
            self.purpose,
            self.recipients,
            expires,
            serial,
        )


@dataclass(frozen=True)
class GrantFile:
    """What people sign one after the other: the grant, and the importer's table ``[reference]`` that it names."""

    signed: SignedGrant
    reference: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> GrantFile:
        """Raises FormatError."""
        value = read_object(text, "grant")
        reference = value.pop("reference", None)
        signed = SignedGrant.from_wire(value)
        if not isinstance(reference, dict) or digest_of_reference(reference) != signed.grant.reference:
            raise FormatError("grant.reference: is not the table of which the grant has the digest")
        return cls(signed, reference)

    def to_text(self) -> str:
        wire = self.signed.to_wire() | {"reference": dict(self.reference)}
        return json.dumps(wire, indent=2, ensure_ascii=False) + "\n"


def read_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object in a file that people pass on. Raises FormatError."""
    if len(text) > _MAX_FILE:
        raise FormatError(f"{what}: {len(text)} characters, the limit is {_MAX_FILE}")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError(f"{what}: not a JSON object, or one with a name twice")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)
