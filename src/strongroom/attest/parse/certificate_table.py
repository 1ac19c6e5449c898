"""Parse the table of certificates that an SNP host hands to its guest along with a report.

Source: AMD, "SEV-ES Guest-Hypervisor Communication Block Standardization" (56421), revision 2.03, section 4.1.8.1: an
array of {GUID 16 bytes, offset u32, length u32}, ended by an entry of zeros, and the certificates that it points to.
GUIDs are in the order in which they are written down; integers are little-endian.

The host fills it in and nothing signs it. It is optional, and may be empty: what it lacks comes from AMD.
"""

from __future__ import annotations

import struct
from uuid import UUID

from strongroom.attest.parse.endorsements import Endorsements
from strongroom.crypto.chains import VendorCertificate, pem_certificates
from strongroom.errors import FormatError

MAX_TABLE = 32 * 1024
_ENTRY = struct.Struct("<16sII")

VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
_LEAF_FIRST = (VLEK, VCEK, ASK, ARK)


def parse_certificate_table(table: bytes) -> Endorsements:
    """The certificates of the table, leaf first. Entries of other kinds are left out.

    Raises:
        FormatError: the table does not end, points outside of itself, has two certificates of one kind, or one that
            does not parse.
    """
    if len(table) > MAX_TABLE:
        raise FormatError(f"certificate table: {len(table)} bytes, wanted at most {MAX_TABLE}")
    if not table:
        return Endorsements()
    entries, end = _entries(table)
    found: dict[UUID, VendorCertificate] = {}
    for guid, offset, length in entries:
        if offset < end or offset + length > len(table):
            raise FormatError(
                f"certificate table: {guid} at {offset} of {length} bytes, wanted it within {end} to {len(table)}"
            )
        if guid in _LEAF_FIRST:
            if guid in found:
                raise FormatError(f"certificate table: two certificates of {guid}")
            found[guid] = _certificate(table[offset : offset + length])
    return Endorsements(tuple(found[guid] for guid in _LEAF_FIRST if guid in found))


def _certificate(raw: bytes) -> VendorCertificate:
    """One certificate: DER, or PEM, as some hosts have it."""
    if not raw.startswith(b"-----BEGIN"):
        return VendorCertificate(raw)
    certificates = pem_certificates(raw)
    if len(certificates) != 1:
        raise FormatError(f"certificate table: {len(certificates)} certificates in one entry, wanted 1")
    return certificates[0]


def _entries(table: bytes) -> tuple[list[tuple[UUID, int, int]], int]:
    """The entries, and where the array with its last one ends."""
    entries: list[tuple[UUID, int, int]] = []
    for start in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, start)
        if not any(guid) and not offset and not length:
            return entries, start + _ENTRY.size
        entries.append((UUID(bytes=guid), offset, length))
    raise FormatError("certificate table: no entry of zeros at its end")
