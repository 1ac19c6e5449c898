"""The table `[reference]` of a policy: which enclaves it accepts (docs/how-to/policy.md).

Rules:

- A key that is missing takes the strict default of `ReferenceValues`; one that is there and empty is an error, where
  an empty list would accept nothing.
- Nothing here accepts more than one named thing at a time: no wildcards, no `true`.
"""

from __future__ import annotations

import re
from typing import Any

from strongroom.attest.evidence import TEES
from strongroom.attest.reference import ReferenceValues
from strongroom.cas.document import FINGERPRINT, Table, number
from strongroom.errors import PolicyError

_MAX_VERSION = 1 << 63


def reference_values(table: Table, *, draft: bool = False) -> ReferenceValues:
    """What the table says.

    Args:
        draft: let `measurements` be missing, to find out what it shall be.

    Raises:
        PolicyError: a key that does not exist, a missing one, or a value that is not of its form.
    """
    statuses = table.strings("tcb_statuses", default=("UpToDate",))
    tpm_roots = table.optional_strings("tpm_roots") or ()
    devices = table.optional_table("devices")
    return _values(
        table,
        draft=draft,
        tcb_statuses=statuses,
        tpm_roots=tpm_roots,
        devices=None if devices is None else _values(devices),
    )


def _values(
    table: Table,
    *,
    draft: bool = False,
    tcb_statuses: tuple[str, ...] = (),
    tpm_roots: tuple[str, ...] = (),
    devices: ReferenceValues | None = None,
) -> ReferenceValues:
    """What enclaves and devices have in common, with what only enclaves have as arguments."""
    tees = table.strings("tees")
    measurements = table.optional_strings("measurements") if draft else table.strings("measurements")
    minimum = table.optional_table("minimum_tcb")
    registers = table.optional_table("registers")
    age = table.positive("maximum_age", default=None)
    advisories, weaknesses = table.strings("advisories_allowed", default=()), table.strings("weaknesses_allowed", ())
    simulated = _allow_simulated(table)
    signers, hardware_ids = table.optional_strings("signers"), table.optional_strings("hardware_ids")
    table.finish()
    said: dict[str, Any] = {
        "tees": tees,
        "measurements": measurements or (),
        "tcb_statuses": tcb_statuses,
        "advisories_allowed": advisories,
        "allow_simulated": simulated,
        "minimum_tcb": {tee: _versions(minimum.table(tee)) for tee in minimum.value} if minimum else {},
        "signers": signers,
        "registers": {name: registers.strings(name) for name in registers.value} if registers else {},
        "hardware_ids": hardware_ids,
        "tpm_roots": tpm_roots,
        "weaknesses_allowed": weaknesses,
        "maximum_age": age,
        "devices": devices,
    }
    if not table.explains:
        return _made(table, said)
    # What is wrong with each key by itself, for these kinds; what is made of the document is thrown away.
    sound, kinds = dict(_ANY), TEES
    for key, value in said.items():
        try:
            _made(table, _ANY | {"tees": kinds} | {key: value})
            sound[key] = value
            kinds = (key == "tees" and value) or kinds
        except PolicyError as error:
            at = error.message.removeprefix(f"{table.path}.").partition(":")[0].split(".")
            table.refuse(error.message, *at, hint=error.hint)
    return ReferenceValues(**(sound if kinds == sound["tees"] else _ANY))


_ANY: dict[str, Any] = {"tees": ("nvidia",), "measurements": ()}  # a kind that may be a device's


def _made(table: Table, said: dict[str, Any]) -> ReferenceValues:
    try:
        return ReferenceValues(**said)
    except PolicyError as error:
        raise PolicyError(f"{table.path}.{error.message}", hint=error.hint) from None


def _allow_simulated(table: Table) -> str | None:
    if table.value.get("allow_simulated") is True:
        table.refuse(
            f"{table.path}.allow_simulated: got true, wanted the digest of one vendor root",
            "allow_simulated",
            hint="true would accept anybody's simulation; `strongroom cas status` prints this user's digest",
        )
    pattern = re.compile(f"|{FINGERPRINT.pattern}")
    return table.match("allow_simulated", pattern, "sha256:<64 hex>", default="") or None


def _versions(table: Table) -> dict[str, int]:
    for name, version in table.value.items():
        if type(version) is not int or not 0 <= version < _MAX_VERSION:
            table.refuse(f"{table.path}.{name[:80]}: got {number(version)}, wanted a number, 0 or more", name)
    return dict(table.value)
