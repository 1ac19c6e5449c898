"""Evidence as it travels: which kind it says it is, what the TEE signed, and what verifying needs besides.

Nothing here is trusted, or even parsed: `parse` reads what is inside, one file per kind, and `verify` says whose word
it is. Lengths are capped before anything is decoded, and one value has one encoding.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from strongroom.crypto.encoding import base64_bytes
from strongroom.errors import FormatError

TEES = ("sgx", "tdx", "snp", "tpm", "azure-snp", "azure-tdx", "nitro", "nvidia", "simulated")
"""Every kind of evidence that `verify` knows (docs/spec/evidence.md)."""
DEVICES = ("nvidia",)
"""Those of `TEES` that are devices of an enclave, and no enclaves."""

# A TPM's event log is the largest.
MAX_QUOTE = 256 * 1024
# Intel's revocation list of processor CAs is by far the largest part, and travels as hexadecimal digits.
MAX_ENDORSEMENTS = 512 * 1024
MAX_DEVICES = 16
# Firmware sets 64 KiB aside for its log, as a rule.
MAX_EVENT_LOG = 192 * 1024

LAUNCHED = ("tdx", "snp", "tpm", "simulated")
"""Those of `TEES` that may be a whole machine, on which a launcher starts programs (docs/spec/evidence.md)."""
PROGRAM = re.compile(r"[0-9a-f]{96}")
_OPTIONAL = {"devices", "program", "event_log"}


@dataclass(frozen=True)
class Evidence:
    """What an enclave shows: what its TEE signed, and the endorsements that its vendor signed, neither of them trusted.

    Attributes:
        tee: which kind of enclave it says it is, one of `TEES`.
        quote: the TEE's own signed structure.
        endorsements: what verifying needs besides: for DCAP, the collateral as JSON (docs/spec/evidence.md).
        devices: evidence of devices, such as GPUs, that the enclave passes its data to, under the same report data.
        program: where the TEE is a whole machine, the measurement of the program on it that the launcher says asks for
            this evidence; empty for others. Only the report data vouches for it (`binding.launched_data`).
        event_log: what was measured into a machine's run-time registers, of kinds that carry no log in their quote;
            empty if it is not shown. Only its replay vouches for it.
    """

    tee: str
    quote: bytes = field(repr=False)
    endorsements: bytes = field(repr=False)
    devices: tuple[Evidence, ...] = field(default=(), repr=False)
    program: str = ""
    event_log: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.tee not in TEES:
            raise FormatError(f"evidence: got tee {str(self.tee)[:20]!r}, wanted one of {', '.join(TEES)}")
        _cap("quote", len(self.quote), MAX_QUOTE)
        _cap("endorsements", len(self.endorsements), MAX_ENDORSEMENTS)
        _cap("event_log", len(self.event_log), MAX_EVENT_LOG)
        self._check_launched()
        if len(self.devices) > MAX_DEVICES:
            raise FormatError(f"evidence: {len(self.devices)} devices, wanted at most {MAX_DEVICES}")
        for device in self.devices:
            if device.tee not in DEVICES or device.devices:
                raise FormatError(
                    f"device: got tee {device.tee}, wanted {' or '.join(DEVICES)}, without devices of its own"
                )

    def _check_launched(self) -> None:
        if self.program and (self.tee not in LAUNCHED or not PROGRAM.fullmatch(self.program)):
            raise FormatError(
                f"evidence: got program {self.program[:20]!r} with {self.tee}, wanted 96 lower-case hexadecimal digits "
                f"with {' or '.join(LAUNCHED)}"
            )
        if self.event_log and (not self.program or self.tee not in ("tdx", "simulated")):
            raise FormatError(
                f"evidence: got an event log with {self.tee}, wanted one with tdx or simulated, and with a program"
            )

    def to_wire(self) -> dict[str, object]:
        """The evidence as a JSON object: the tee's name, base64 (RFC 4648, section 4), and what else there is."""
        wire: dict[str, object] = {
            "tee": self.tee,
            "quote": base64.b64encode(self.quote).decode(),
            "endorsements": base64.b64encode(self.endorsements).decode(),
        }
        wire |= {"devices": [device.to_wire() for device in self.devices]} if self.devices else {}
        wire |= {"program": self.program} if self.program else {}
        return wire | ({"event_log": base64.b64encode(self.event_log).decode()} if self.event_log else {})

    @classmethod
    def from_wire(cls, wire: Mapping[str, object]) -> Evidence:
        """The evidence that `to_wire` wrote.

        Raises:
            FormatError: another set of fields, an unknown tee, bad base64, or more bytes than the caps allow.
        """
        if not isinstance(wire, Mapping) or set(wire) - _OPTIONAL != {"tee", "quote", "endorsements"}:
            raise FormatError(
                "evidence: wanted an object of tee, quote and endorsements, and devices, program and event_log if any"
            )
        tee = wire["tee"]
        if not isinstance(tee, str):
            raise FormatError(f"evidence: got a tee of type {type(tee).__name__}, wanted a string")
        devices = wire.get("devices", None)
        if "devices" in wire and (not isinstance(devices, list) or not 1 <= len(devices) <= MAX_DEVICES):
            raise FormatError(f"devices: wanted a list of 1 to {MAX_DEVICES}")
        if isinstance(devices, list) and any(isinstance(each, Mapping) and "devices" in each for each in devices):
            raise FormatError("device: wanted one without devices of its own")
        quote = _decode("quote", wire["quote"], MAX_QUOTE)
        text = wire["endorsements"]
        if not isinstance(text, str):
            raise FormatError(f"endorsements: got a {type(text).__name__}, wanted base64")
        endorsements = _endorsements(text)
        program, log = wire.get("program", ""), b""
        if not isinstance(program, str) or ("program" in wire and not program):
            raise FormatError("program: wanted 96 lower-case hexadecimal digits")
        if "event_log" in wire:
            log = _decode("event_log", wire["event_log"], MAX_EVENT_LOG)
            if not log:
                raise FormatError("event_log: empty, wanted none or one with events")
        shown = tuple(map(cls.from_wire, devices)) if isinstance(devices, list) else ()
        return cls(tee, quote, endorsements, shown, program, log)


def _cap(name: str, size: int, cap: int) -> None:
    if size > cap:
        raise FormatError(f"{name}: {size} bytes, wanted at most {cap}")


def _decode(name: str, text: object, cap: int) -> bytes:
    if not isinstance(text, str):
        raise FormatError(f"{name}: got a {type(text).__name__}, wanted base64")
    _cap(name, len(text) // 4 * 3, cap + 2)
    try:
        return base64_bytes(text)
    except ValueError:
        raise FormatError(f"{name}: not base64") from None


@lru_cache(maxsize=8)  # the same for months, from every enclave of a platform
def _endorsements(text: str) -> bytes:
    return _decode("endorsements", text, MAX_ENDORSEMENTS)
