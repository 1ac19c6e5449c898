"""SNP reports as the `sev` crate writes them into JSON, field by field, and so the Confidential Containers attester.

The report is put together again from its fields; one that the JSON leaves out is zero, as in every report that has it
reserved. A field that was lost or altered makes another report, which then does not verify.

Source: virtee/sev, `src/firmware/guest/types/snp.rs` (struct AttestationReport), before and since its version 5; for
the places of the fields `parse/snp.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.errors import FormatError

_SIZE = 1184
# Where each field stands, and its size.
_NUMBERS = {
    "version": (0x00, 4),
    "guest_svn": (0x04, 4),
    "policy": (0x08, 8),
    "vmpl": (0x30, 4),
    "sig_algo": (0x34, 4),
    "plat_info": (0x40, 8),
    "key_info": (0x48, 4),
    "_author_key_en": (0x48, 4),
    "cpuid_fam_id": (0x188, 1),
    "cpuid_mod_id": (0x189, 1),
    "cpuid_step": (0x18A, 1),
    "current_build": (0x1E8, 1),
    "current_minor": (0x1E9, 1),
    "current_major": (0x1EA, 1),
    "committed_build": (0x1EC, 1),
    "committed_minor": (0x1ED, 1),
    "committed_major": (0x1EE, 1),
    "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}
_STRINGS = {
    "family_id": (0x10, 16),
    "image_id": (0x20, 16),
    "report_data": (0x50, 64),
    "measurement": (0x90, 48),
    "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "_reserved_1": (0x188, 24),
    "chip_id": (0x1A0, 64),
}
_TCBS = {"current_tcb": 0x38, "reported_tcb": 0x180, "committed_tcb": 0x1E0, "launch_tcb": 0x1F0}
_VERSIONS = {"current": 0x1E8, "committed": 0x1EC}
_TCB_PLACES = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TCB_PLACES_OF_TURIN = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
_SIGNATURE = {"r": 0x2A0, "s": 0x2E8}


def report_of_fields(document: object) -> bytes:
    """The 1,184 bytes of the report whose fields these are.

    Raises:
        FormatError: a field has another type or size.
    """
    fields = _object("attestation_report", document)
    report = bytearray(_SIZE)
    for name, (place, size) in _NUMBERS.items():
        if fields.get(name) is not None:
            report[place : place + size] = _number(name, fields[name], size)
    for name, (place, size) in _STRINGS.items():
        if fields.get(name) is not None:
            report[place : place + size] = _octets(name, fields[name], size)
    for name, place in _TCBS.items():
        tcb = _object(name, fields.get(name))
        places = _TCB_PLACES if tcb.get("fmc") is None else _TCB_PLACES_OF_TURIN
        for part, at in places.items():
            report[place + at : place + at + 1] = _number(f"{name}.{part}", tcb.get(part), 1)
    for name, place in _VERSIONS.items():
        if isinstance(fields.get(name), Mapping):
            for at, part in enumerate(("build", "minor", "major")):
                report[place + at : place + at + 1] = _number(f"{name}.{part}", fields[name].get(part), 1)
    signature = _object("signature", fields.get("signature"))
    for name, place in _SIGNATURE.items():
        report[place : place + 72] = _octets(f"signature.{name}", signature.get(name), 72)
    return bytes(report)


def _object(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(f"snp evidence: {name}: got a {type(value).__name__}, wanted an object")
    return value


def _number(name: str, value: object, size: int) -> bytes:
    if type(value) is not int or not 0 <= value < 1 << 8 * size:
        raise FormatError(f"snp evidence: {name}: wanted a number of {size} bytes")
    return value.to_bytes(size, "little")


def _octets(name: str, value: object, size: int) -> bytes:
    if not isinstance(value, list) or len(value) != size or not all(type(x) is int and 0 <= x < 256 for x in value):
        raise FormatError(f"snp evidence: {name}: wanted a list of {size} bytes")
    return bytes(value)
