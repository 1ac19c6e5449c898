"""Parse the SGX extension of a platform's certificate (PCK): which platform it is, and how new its TCB.

Source: "Intel SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5. The extension
is a DER sequence of pairs, each of an object identifier below 1.2.840.113741.1.13.1 and a value. Intel may add pairs;
each one read here must be there once, and have its type and size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from strongroom.crypto.chains import VendorCertificate
from strongroom.errors import FormatError

SGX_EXTENSION = "1.2.840.113741.1.13.1"
_PREFIX = bytes.fromhex("2a864886f84d010d01")  # that identifier, in DER

_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
_COMPONENTS = 16
_MEMORY = {0: "standard", 1: "scalable", 2: "scalable-with-integrity"}


@dataclass(frozen=True)
class Platform:
    """What Intel certified of a platform.

    Attributes:
        ppid: the identifier of its processors, 16 bytes.
        components: the 16 security version numbers of its TCB.
        pcesvn: that of its provisioning certification enclave.
        cpusvn: the raw value behind `components`.
        pce_id: which provisioning certification enclave, 2 bytes.
        fmspc: its family, model, stepping, platform and custom SKU, 6 bytes: the key to its TCB information.
        memory: how SGX protects memory there: `standard`, `scalable` or `scalable-with-integrity`.
        instance: the identifier of this installation, 16 bytes; None for platforms of one processor.
        dynamic, cached_keys, smt: whether processors may be added, whether Intel keeps its keys, and whether
            hyperthreading is on; None where Intel does not say.
    """

    ppid: bytes
    components: tuple[int, ...]
    pcesvn: int
    cpusvn: bytes
    pce_id: bytes
    fmspc: bytes
    memory: str
    instance: bytes | None
    dynamic: bool | None
    cached_keys: bool | None
    smt: bool | None


@lru_cache(maxsize=64)  # a platform shows the same certificate in every quote
def parse_platform(certificate: VendorCertificate) -> Platform:
    """What the SGX extension of a PCK certificate says.

    Raises:
        FormatError: the certificate has none, or one of another form.
    """
    raw = certificate.extension(SGX_EXTENSION)
    if raw is None:
        raise FormatError("PCK certificate: has no SGX extension")
    pairs = _pairs(_only(raw, _SEQUENCE))
    tcb = _pairs(_value(pairs, (2,), _SEQUENCE))
    configuration = _pairs(_value(pairs, (7,), _SEQUENCE)) if (7,) in pairs else {}
    kind = _number(_value(pairs, (5,), _ENUMERATED), (5,), 0xFF)
    if kind not in _MEMORY:
        raise _error((5,))
    return Platform(
        ppid=_octets(pairs, (1,), 16),
        components=tuple(_number(_value(tcb, (2, i), _INTEGER), (2, i), 0xFF) for i in range(1, _COMPONENTS + 1)),
        pcesvn=_number(_value(tcb, (2, 17), _INTEGER), (2, 17), 0xFFFF),
        cpusvn=_octets(tcb, (2, 18), 16),
        pce_id=_octets(pairs, (3,), 2),
        fmspc=_octets(pairs, (4,), 6),
        memory=_MEMORY[kind],
        instance=_octets(pairs, (6,), 16) if (6,) in pairs else None,
        dynamic=_boolean(configuration, (7, 1)),
        cached_keys=_boolean(configuration, (7, 2)),
        smt=_boolean(configuration, (7, 3)),
    )


_Pairs = dict[tuple[int, ...], tuple[int, bytes]]


def _pairs(raw: bytes) -> _Pairs:
    """The pairs of a sequence's content: from what follows Intel's prefix to tag and content."""
    found: _Pairs = {}
    for tag, content in _elements(raw):
        parts = list(_elements(content)) if tag == _SEQUENCE else []
        if len(parts) != 2 or parts[0][0] != _OID or not parts[0][1].startswith(_PREFIX):
            raise FormatError("PCK certificate: the SGX extension is no sequence of Intel's pairs")
        arcs = tuple(parts[0][1][len(_PREFIX) :])  # each below 128, so one byte
        if arcs in found:
            raise _error(arcs)
        found[arcs] = parts[1]
    return found


def _elements(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, in DER (ITU-T X.690): tags of one byte, lengths in the fewest bytes."""
    place = 0
    while place < len(raw):
        head = raw[place : place + 2]
        size = head[1] if len(head) == 2 else 0x80
        start = place + 2
        if size in (0x81, 0x82):
            more = size - 0x80
            size, start = int.from_bytes(raw[start : start + more], "big"), start + more
            if size < (0x80 if more == 1 else 0x100):
                raise FormatError("PCK certificate: the SGX extension is not DER")
        elif size >= 0x80:
            raise FormatError("PCK certificate: the SGX extension is not DER")
        place = start + size
        if place > len(raw):
            raise FormatError("PCK certificate: the SGX extension is cut short")
        yield head[0], raw[start:place]


def _only(raw: bytes, tag: int) -> bytes:
    elements = list(_elements(raw))
    if len(elements) != 1 or elements[0][0] != tag:
        raise FormatError("PCK certificate: the SGX extension is not one sequence")
    return elements[0][1]


def _value(pairs: _Pairs, arcs: tuple[int, ...], tag: int) -> bytes:
    got, content = pairs.get(arcs, (None, b""))
    if got != tag:
        raise _error(arcs)
    return content


def _octets(pairs: _Pairs, arcs: tuple[int, ...], size: int) -> bytes:
    content = _value(pairs, arcs, _OCTETS)
    if len(content) != size:
        raise _error(arcs)
    return content


def _number(content: bytes, arcs: tuple[int, ...], largest: int) -> int:
    value = int.from_bytes(content, "big", signed=True)
    if not content or not 0 <= value <= largest or len(content) != value.bit_length() // 8 + 1:
        raise _error(arcs)
    return value


def _boolean(pairs: _Pairs, arcs: tuple[int, ...]) -> bool | None:
    if arcs not in pairs:
        return None
    content = _value(pairs, arcs, _BOOLEAN)
    if content not in (b"\0", b"\xff"):
        raise _error(arcs)
    return content == b"\xff"


def _error(arcs: tuple[int, ...]) -> FormatError:
    name = ".".join(map(str, arcs))
    return FormatError(f"PCK certificate: SGX extension {name} is missing, there twice, or not of its type")
