"""What `explain` returns, and how a fixed layout becomes rows of it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.crypto.chains import RevocationList, VendorCertificate
from strongroom.errors import FormatError

# The common name in a name of RFC 4514, where a backslash escapes what follows it.
_COMMON_NAME = re.compile(r"(?:^|[,+])CN=((?:[^\\,+]|\\.)+)")

MEASUREMENT = "what a policy's measurements list"


@dataclass(frozen=True)
class Field:
    """One field: what it holds, and what that means where the value does not say it."""

    name: str
    value: str | bytes | int
    meaning: str = ""


@dataclass(frozen=True)
class Section:
    """Fields that belong together; `note` says who vouches for them."""

    title: str
    fields: tuple[Field, ...]
    note: str = ""


Reading: TypeAlias = Callable[[bytes], tuple[str | bytes | int, str]]
"""How the bytes of a field become a value and its meaning."""

Layout: TypeAlias = Sequence[tuple[str, int, Reading | None]]
"""Fields one after another: name, size, reading. Without a reading they are reserved, and shown only if they are not
zero; without a name they are shown elsewhere."""


def rows(layout: Layout, raw: bytes) -> Iterator[Field]:
    """The fields of `raw`, which has at least the layout's size."""
    start = 0
    for name, size, reading in layout:
        part = raw[start : start + size]
        start += size
        if reading is not None:
            yield Field(name, *reading(part))
        elif name and any(part):
            yield Field(name, part, "reserved, and not zero")


def size(layout: Layout) -> int:
    return sum(each for _, each, _ in layout)


def octets(meaning: str = "") -> Reading:
    """Bytes as they are."""
    return lambda raw: (raw, meaning)


def number(meaning: str = "", names: Mapping[int, str] | None = None) -> Reading:
    """A little-endian integer; `names` are words for its values."""

    def read(raw: bytes) -> tuple[int, str]:
        value = int.from_bytes(raw, "little")
        word = "" if names is None else names.get(value, "unknown")
        return value, "; ".join(filter(None, (word, meaning)))

    return read


def flags(bits: Mapping[int, str], *, alarming: Mapping[int, str] | None = None) -> Reading:
    """A little-endian set of bits, each with its words; those of `alarming` come first, in capitals."""

    def read(raw: bytes) -> tuple[bytes, str]:
        value = int.from_bytes(raw, "little")
        alarms = [text.upper() for bit, text in (alarming or {}).items() if value >> bit & 1]
        known = [text for bit, text in bits.items() if value >> bit & 1]
        named = {*bits, *(alarming or {})}
        unknown = [f"bit {bit}" for bit in range(8 * len(raw)) if value >> bit & 1 and bit not in named]
        return raw, ", ".join([*alarms, *known, *unknown]) or "none set"

    return read


def moment(seconds: float) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s since 1970"


def certificate_fields(certificates: Sequence[VendorCertificate]) -> Iterator[Field]:
    """One row a certificate: its subject, then who issued it, and until when."""
    for index, each in enumerate(certificates):
        name = "leaf" if index == 0 else f"issuer {index}"
        issuer = "itself" if each.issuer == each.subject else common_name(each.issuer)
        start, end = each.valid
        about = f"{each.key.kind} key; valid {moment(start)} to {moment(end)}; by {issuer}"
        yield Field(name, common_name(each.subject), about)


def common_name(name: str) -> str:
    """The common name in a subject or an issuer, all of it if it has none."""
    found = _COMMON_NAME.search(name)
    return found[1] if found else name


def list_fields(lists: Sequence[RevocationList]) -> Iterator[Field]:
    for each in lists:
        yield Field("revocation list", f"{len(each.der):,} bytes", f"by {common_name(each.issuer)}")


def endorsements(raw: bytes, missing: str) -> Section:
    """The section on endorsements of every vendor but Intel: those of the evidence, or given beside it."""
    found = parse_endorsements(raw)
    given = (*certificate_fields(found.certificates), *list_fields(found.revocation_lists))
    return Section("endorsements", given or (Field("certificates", "none", missing),), "`verify` follows them")


def chain(ders: Sequence[bytes]) -> tuple[Field, ...]:
    """The certificates of a chain inside of evidence; one that does not parse is said to be so."""
    found: list[Field] = []
    for index, der in enumerate(ders):
        try:
            (row,) = certificate_fields((VendorCertificate(der),))
            found.append(Field("leaf" if index == 0 else f"issuer {index}", row.value, row.meaning))
        except FormatError as error:
            found.append(Field(f"certificate {index}", f"{len(der)} bytes", error.message))
    return tuple(found)
