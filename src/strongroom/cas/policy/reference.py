"""The table `[reference]` of a policy: which enclaves it accepts (docs/how-to/policy.md).

Rules:

- A key that is missing takes the strict default of `ReferenceValues`; one that is there and empty is an error, where
  an empty list would accept nothing.
- Nothing here accepts more than one named thing at a time: no wildcards, no `true`.
- What is wanted of devices is said in the table `devices`, and of enclaves nowhere else than above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.attest.evidence import DEVICES, TEES
from strongroom.attest.reference import ANY, ReferenceValues
from strongroom.attest.words import BY_PRODUCT
from strongroom.cas.policy.table import FINGERPRINT, Table, number
from strongroom.errors import PolicyError

ENCLAVES = tuple(tee for tee in TEES if tee not in DEVICES)

_MAX_VERSION = 1 << 63


def reference_values(table: Table, *, draft: bool = False, alone: bool = False) -> ReferenceValues:
    """What the table says.

    Args:
        draft: let `measurements` be missing, to find out what it shall be.
        alone: let it say nothing but what is wanted of devices; then it accepts no enclave.

    Raises:
        PolicyError: a key that does not exist, a missing one, or a value that is not of its form.
    """
    if alone and set(table.value) == {"devices"}:
        return ReferenceValues((), (), devices=_values(table.table("devices"), of_devices=True))
    statuses = table.strings("tcb_statuses", default=("UpToDate",))
    tpm_roots = table.optional_strings("tpm_roots") or ()
    platforms, others = table.optional_table("platforms"), table.strings("other_programs", default=())
    devices = table.optional_table("devices")
    return _values(
        table,
        draft=draft,
        tcb_statuses=statuses,
        tpm_roots=tpm_roots,
        devices=None if devices is None else _values(devices, of_devices=True),
        platforms={tee: _registers(platforms.table(tee)) for tee in platforms.value} if platforms else {},
        other_programs=others,
    )


def _values(
    table: Table,
    *,
    draft: bool = False,
    of_devices: bool = False,
    tcb_statuses: tuple[str, ...] = (),
    tpm_roots: tuple[str, ...] = (),
    devices: ReferenceValues | None = None,
    platforms: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
    other_programs: tuple[str, ...] = (),
) -> ReferenceValues:
    """What enclaves and devices have in common, with what only enclaves have as arguments."""
    tees, kinds = table.strings("tees"), DEVICES if of_devices else ENCLAVES
    for tee in tees:
        if tee in TEES and tee not in kinds:
            table.refuse(
                f"{table.path}.tees: got {tee}, wanted some of {', '.join(kinds)}",
                "tees",
                hint=f"{tee} is no device"
                if of_devices
                else "a device by itself is no enclave: what is wanted of it stands in the table devices",
            )
            tees = ()
            break
    measurements = table.optional_strings("measurements") if draft else table.strings("measurements")
    minimum = table.optional_table("minimum_tcb")
    registers = table.optional_table("registers")
    age = table.positive("maximum_age", default=None)
    advisories, weaknesses = table.strings("advisories_allowed", default=()), table.strings("weaknesses_allowed", ())
    simulated, revocation = _allow_simulated(table), table.flag("revocation_required", default=False)
    count = table.positive("count", default=None) if of_devices else None
    signers, hardware_ids = table.optional_strings("signers"), table.optional_strings("hardware_ids")
    table.finish()
    said: dict[str, Any] = {
        "tees": tees,
        "measurements": measurements or (),
        "tcb_statuses": tcb_statuses,
        "advisories_allowed": advisories,
        "allow_simulated": simulated,
        "minimum_tcb": {tee: _versions(minimum.table(tee), tee) for tee in minimum.value} if minimum else {},
        "signers": signers,
        "registers": _registers(registers) if registers else {},
        "hardware_ids": hardware_ids,
        "tpm_roots": tpm_roots,
        "weaknesses_allowed": weaknesses,
        "maximum_age": age,
        "revocation_required": revocation,
        "devices": devices,
        "count": count,
        "platforms": platforms or {},
        "other_programs": other_programs,
    }
    if not table.explains:
        return _made(table, said)
    # What is wrong with each key by itself, for these kinds; what is made of the document is thrown away.
    sound = dict(_ANY)
    for key, value in said.items():
        # What else was started is known of machines only, and of SNP's not at all.
        more = {"other_programs": (ANY,)} if key == "platforms" and value else {}
        if key == "other_programs":
            more = {"platforms": sound.get("platforms", {})}
            if platforms and not more["platforms"]:
                continue
        try:
            _made(table, _ANY | {"tees": kinds} | more | {key: value})
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


def _registers(table: Table) -> dict[str, tuple[str, ...]]:
    return {name: table.strings(name) for name in table.value}


def _allow_simulated(table: Table) -> str | None:
    if table.value.get("allow_simulated") is True:
        table.refuse(
            f"{table.path}.allow_simulated: got true, wanted the digest of one vendor root",
            "allow_simulated",
            hint="true would accept anybody's simulation; `strongroom cas status` prints this user's digest",
        )
    if "allow_simulated" not in table.value:
        return table.take("allow_simulated", None)  # type: ignore[no-any-return]  # marks it as known
    return table.match("allow_simulated", FINGERPRINT, "sha256:<64 hex>") or None


def _versions(table: Table, tee: str) -> dict[str, Any]:
    for name, version in table.value.items():
        if tee in BY_PRODUCT and isinstance(version, dict):
            _versions(table.table(name), "")
        elif type(version) is not int or not 0 <= version < _MAX_VERSION:
            table.refuse(f"{table.path}.{name[:80]}: got {number(version)}, wanted a number, 0 or more", name)
    return dict(table.value)
