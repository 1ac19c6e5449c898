"""A PC's firmware, as far as a TPM sees it: it measures, and writes a log of what it measured.

    firmware = FirmwareLog()
    firmware.measure(7, 0x80000001, variable("SecureBoot", b"\\1"))
    log, pcrs = firmware.to_bytes(), firmware.pcrs("sha256")

Source: as `strongroom.attest.parse.event_log`, whose inverse this is.
"""

from __future__ import annotations

import hashlib
import struct

_ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
_NO_ACTION = 0x3
# EFI_GLOBAL_VARIABLE: 8be4df61-93ca-11d2-aa0d-00e098032b8c.
_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


def variable(name: str, value: bytes, *, owner: bytes = _GLOBAL) -> bytes:
    """What firmware digests of one of its variables (UEFI_VARIABLE_DATA)."""
    text = name.encode("utf-16-le")
    return owner + struct.pack("<QQ", len(name), len(value)) + text + value


class FirmwareLog:
    """Registers that start at zero, and the log of what is measured into them, in these banks."""

    def __init__(self, banks: tuple[str, ...] = ("sha1", "sha256")) -> None:
        self._banks = banks
        self._pcrs: dict[str, dict[int, bytes]] = {bank: {} for bank in banks}
        algorithms = b"".join(struct.pack("<HH", _ALGORITHMS[bank], hashlib.new(bank).digest_size) for bank in banks)
        spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 105, 2, len(banks)) + algorithms + b"\0"
        self._log = struct.pack("<II20sI", 0, _NO_ACTION, bytes(20), len(spec)) + spec

    def measure(self, pcr: int, kind: int, data: bytes, *, digested: bytes | None = None) -> None:
        """Extend a register by the digest of `digested`, by default `data`, and log `data`."""
        digests = {bank: hashlib.new(bank, data if digested is None else digested).digest() for bank in self._banks}
        for bank, value in digests.items():
            before = self._pcrs[bank].get(pcr, bytes(len(value)))
            self._pcrs[bank][pcr] = hashlib.new(bank, before + value).digest()
        self._append(pcr, kind, digests, data)

    def start_at(self, locality: int) -> None:
        """What firmware logs that was started at another locality than 0; before anything else."""
        for bank in self._banks:
            self._pcrs[bank][0] = bytes(hashlib.new(bank).digest_size - 1) + bytes([locality])
        self.note(b"StartupLocality\0" + bytes([locality]))

    def note(self, data: bytes) -> None:
        """Log something that is not measured."""
        self._append(0, _NO_ACTION, {bank: bytes(hashlib.new(bank).digest_size) for bank in self._banks}, data)

    def _append(self, pcr: int, kind: int, digests: dict[str, bytes], data: bytes) -> None:
        values = b"".join(struct.pack("<H", _ALGORITHMS[bank]) + value for bank, value in digests.items())
        self._log += struct.pack("<III", pcr, kind, len(digests)) + values + struct.pack("<I", len(data)) + data

    def pcrs(self, bank: str) -> dict[int, bytes]:
        """The registers that were measured into."""
        return dict(self._pcrs[bank])

    def to_bytes(self) -> bytes:
        return self._log
