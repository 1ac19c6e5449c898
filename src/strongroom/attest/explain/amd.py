"""An SNP report in words.

Source: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), revision 1.58: table 10 (policy), 23 (the
report), 25 (platform information), and section 2.2 (TCB versions).
"""

from __future__ import annotations

from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import (
    Field,
    Layout,
    Reading,
    Section,
    endorsements,
    flags,
    number,
    octets,
    rows,
    size,
)
from strongroom.attest.parse.snp import REPORT_SIZE, SIGNED_SIZE, product_of
from strongroom.errors import FormatError

_POLICY = {
    16: "SMT allowed",
    20: "only one socket",
    21: "CXL devices allowed",
    22: "memory must be AES-256-XTS",
    23: "RAPL must be off",
    24: "ciphertext hiding for DRAM must be on",
    25: "page swap must be off",
}
_POLICY_ALARMS = {18: "may migrate with an agent", 19: "debug allowed: the host may read its memory"}
_PLATFORM = {
    0: "SMT is on",
    1: "TSME is on",
    2: "ECC memory",
    3: "RAPL is off",
    4: "ciphertext hiding for DRAM is on",
    5: "aliases of memory were checked",
    6: "IOMMU write safe",
    7: "trusted I/O is on",
}
_SIGNERS = {0: "VCEK: the key of this chip", 1: "VLEK: a key that AMD gave to a cloud provider", 7: "none: not signed"}


def explain_snp(evidence: Evidence) -> tuple[Section, ...]:
    """The report of an SNP guest and the endorsements that came with it."""
    return (*report_sections(evidence.quote), endorsements(evidence.endorsements, whence(evidence.quote)))


def whence(report: bytes) -> str:
    """Where the certificate of the key that signed a report comes from."""
    if signing_key(report) == 1:
        return "the host hands out the VLEK's: AMD's key service has it for the cloud provider alone"
    return "AMD's key service has the VCEK's: --fetch gets it"


def report_sections(report: bytes) -> tuple[Section, ...]:
    """The 1,184 bytes of a report, also where it is part of other evidence.

    Raises:
        FormatError: it has another size.
    """
    if len(report) != REPORT_SIZE:
        raise FormatError(f"snp report: {len(report)} bytes, wanted {REPORT_SIZE}")
    version = int.from_bytes(report[:4], "little")
    guest = tuple(rows(_GUEST, report))
    later = {*(_SINCE_3 if version < 3 else ()), *(_SINCE_4 if version < 4 else ())}
    platform = [each for each in rows(_PLATFORM_LAYOUT, report[size(_GUEST) :]) if each.name not in later]
    product, turin = _product(version, report)
    platform.insert(0, Field("product", product, "by the CPUID numbers in the report" if version >= 3 else ""))
    named = {"current TCB": 0x38, "reported TCB": 0x180, "committed TCB": 0x1E0, "launch TCB": 0x1F0}
    tcb = tuple(Field(name, report[at : at + 8], _tcb(report[at : at + 8], turin)) for name, at in named.items())
    unsigned = report[SIGNED_SIZE + 144 :]
    signature = (
        Field("r", report[SIGNED_SIZE : SIGNED_SIZE + 72], "72 bytes, little-endian"),
        Field("s", report[SIGNED_SIZE + 72 : SIGNED_SIZE + 144], "72 bytes, little-endian"),
        Field("reserved", f"{len(unsigned)} bytes", "zero" if not any(unsigned) else "NOT ZERO, and signed by nobody"),
    )
    return (
        Section("report", (*guest, _key_flags(report)), "what the guest is"),
        Section("platform", tuple(platform), "what it runs on"),
        Section("versions", tcb, "the key that signs is made from the reported TCB"),
        Section(
            "signature", signature, "ECDSA P-384 with SHA-384 over the first 672 bytes; what follows them is unsigned"
        ),
    )


def _product(version: int, report: bytes) -> tuple[str, bool]:
    """The product in words, and whether its TCB has Turin's form."""
    if version < 3:
        return "not told before version 3: Milan or Genoa", False
    try:
        product = product_of(report[0x188], report[0x189])
    except FormatError as error:
        return error.message.removeprefix("SNP report: "), report[0x188] >= 0x1A
    return product, product == "Turin"


def _tcb(raw: bytes, turin: bool) -> str:
    names = ("fmc", "bootloader", "tee", "snp") if turin else ("bootloader", "tee")
    parts = [f"{name} {value}" for name, value in zip(names, raw, strict=False)]
    if not turin:
        parts.append(f"snp {raw[6]}")
    return ", ".join([*parts, f"microcode {raw[7]}"])


def _policy(raw: bytes) -> tuple[bytes, str]:
    minor, major = raw[0], raw[1]
    # Bits 0 to 15 are the ABI version, bit 17 is always one.
    rest = (int.from_bytes(raw, "little") & ~0x2FFFF).to_bytes(8, "little")
    _, words = flags(_POLICY, alarming=_POLICY_ALARMS)(rest)
    return raw, f"{words}; ABI {major}.{minor} or later"


def signing_key(report: bytes) -> int:
    """Bits 2 to 4 of the key flags."""
    return int.from_bytes(report[0x48:0x4C], "little") >> 2 & 7


def _key_flags(report: bytes) -> Field:
    value = int.from_bytes(report[0x48:0x4C], "little")
    words = [f"signed by {_SIGNERS.get(signing_key(report), 'an unknown kind of key')}"]
    words += ["author key given"] if value & 1 else []
    words += ["chip id masked"] if value & 2 else []
    return Field("key flags", report[0x48:0x4C], ", ".join(words))


def _vmpl(raw: bytes) -> tuple[int, str]:
    level = int.from_bytes(raw, "little")
    if level == 0xFFFFFFFF:
        return level, "asked for by the host, not by the guest"
    return level, "the guest's most privileged level" if level == 0 else f"privilege level {level} of 0 to 3"


def _version(raw: bytes) -> tuple[str, str]:
    return f"{raw[2]}.{raw[1]} build {raw[0]}", "firmware"


def _agent(raw: bytes) -> tuple[bytes, str]:
    return raw, "none" if raw in (bytes(32), b"\xff" * 32) else "REPORT ID OF AN AGENT THAT MAY MOVE IT"


def _chip(raw: bytes) -> tuple[bytes, str]:
    return raw, "of the processor" if any(raw) else "hidden by the host"


_GUEST: Layout = (
    ("version", 4, number("of the report's form")),
    ("guest SVN", 4, number("given at launch")),
    ("policy", 8, _policy),
    ("family id", 16, octets("given at launch")),
    ("image id", 16, octets("given at launch")),
    ("VMPL", 4, _vmpl),
    ("signature kind", 4, number(names={1: "ECDSA P-384 with SHA-384"})),
    ("", 8, None),  # the current TCB
    ("platform flags", 8, flags(_PLATFORM)),
    ("", 8, None),  # the key flags
    ("report data", 64, octets("what the guest bound the report to")),
    ("measurement", 48, octets("launch digest of the guest's initial memory")),
    ("host data", 32, octets("given by the host at launch")),
    ("id key digest", 48, octets("who signed the launch digest")),
    ("author key", 48, octets("who signed that key")),
    ("report id", 32, octets("of this guest, for its life")),
    ("migration agent", 32, _agent),
)
_SINCE_3 = ("family", "model", "stepping")
_SINCE_4 = ("launch mitigations", "now mitigated")
_CPUID: Reading = number("CPUID")
_PLATFORM_LAYOUT: Layout = (
    ("", 8, None),  # the reported TCB
    ("family", 1, _CPUID),
    ("model", 1, _CPUID),
    ("stepping", 1, _CPUID),
    ("reserved", 21, None),
    ("chip id", 64, _chip),
    ("", 8, None),  # the committed TCB
    ("current firmware", 3, _version),
    ("reserved", 1, None),
    ("committed", 3, _version),
    ("reserved", 1, None),
    ("", 8, None),  # the launch TCB
    ("launch mitigations", 8, flags({})),
    ("now mitigated", 8, flags({})),
    ("reserved", 152, None),
)
