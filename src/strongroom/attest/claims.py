"""What a vendor vouches for, in one form for every kind of enclave. Made by `verify`; `appraise` decides whether it is
wanted.

The measurement is one string that stands for what was loaded:

| tee | measurement |
|---|---|
| `tdx`, `simulated` | `registers_measurement` of MRTD and RTMR0 to 3 |
| `sgx` | MRENCLAVE, 64 hexadecimal digits |
| `snp` | the launch digest, 96 hexadecimal digits |
| `nitro` | PCR0, the digest of the enclave's image, 96 hexadecimal digits |
| `tpm` | `pcrs_measurement` of the quoted PCRs |
| `azure-snp`, `azure-tdx` | `layers_measurement` of the hardware's and the vTPM's |
| `nvidia` | `pcrs_measurement`-like digest of the device's measurement blocks: see `verify/nvidia.py` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.crypto import digest
from strongroom.errors import UsageError

REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
REGISTER_SIZE = 48
MEASUREMENT_LABEL = b"strongroom/measurement/v1"


@dataclass(frozen=True)
class Claims:
    """What the vendor vouches for. Authentic, not yet wanted.

    Attributes:
        tee: the kind of enclave, one of `evidence.TEES`.
        measurement: what was loaded, as in the table above, in lower-case hexadecimal digits.
        registers: single registers by name, in lower-case hexadecimal digits: MRTD and RTMR0 to 3; ``pcr0`` and so on.
        report_data: the bytes that the enclave bound its evidence to, as its structure holds them
            (`binding.bound_data` says how each kind holds the 64 bytes of `binding.report_data`).
        debug: whether the enclave can be debugged, and so read from outside.
        vendor_root: ``sha256:<hex>`` of the DER certificate at which the chain of signatures ends.
        tcb_status: Intel's word for the platform's state, such as ``UpToDate``; empty for vendors without such words.
        advisories: the vendor's advisories that apply to the platform.
        hardware_id: the processor or device: PPID, CHIP_ID and the like, in hexadecimal digits; empty if not told.
        signer: who signed what was loaded: MRSIGNER, SNP's ID key digest, Nitro's PCR8; empty if nobody did.
        product: the vendor's name for the kind of hardware, such as ``Milan``; empty if not told.
        tcb: security version numbers by the vendor's names, such as ``{"snp": 22, "microcode": 213}``.
        migratable: whether the enclave can be moved to another machine by an agent that the claims do not measure.
        weaknesses: what else takes from its isolation, in the words of docs/spec/evidence.md, such as ``sept-ve``.
        revocation: whether certificates that this evidence rests on are known not to be revoked: ``checked`` by a list
            of each issuer that makes one, ``partly``, ``not checked``; or ``none: `` and why there are no lists.
        issued_at: when the evidence was made by the vendor's own clock, seconds since 1970; None if it has no clock.
        attributes: whatever else a person or a policy may want to see, by name.
        devices: claims of devices under the same report data.
        program: of a program that a launcher started on a machine which is one TEE: its measurement, as `strongroom
            measure` prints it; empty for other evidence. The launcher's word: the report data vouches for it, which
            `appraise` compares.
        programs: every program that was started on that machine, in that order, as the log says that replays to its
            registers; ``event:<hex>`` for what is something else; None if no log tells.
    """

    tee: str
    measurement: str
    registers: Mapping[str, str]
    report_data: bytes
    debug: bool
    vendor_root: str
    tcb_status: str = ""
    advisories: tuple[str, ...] = ()
    hardware_id: str = ""
    signer: str = ""
    product: str = ""
    tcb: Mapping[str, int] = field(default_factory=dict)
    migratable: bool = False
    weaknesses: tuple[str, ...] = ()
    revocation: str = "not checked"
    issued_at: int | None = None
    attributes: Mapping[str, str | int | bool] = field(default_factory=dict)
    devices: tuple[Claims, ...] = ()
    program: str = ""
    programs: tuple[str, ...] | None = None

    @property
    def all_weaknesses(self) -> tuple[str, ...]:
        """`weaknesses`, and ``migratable`` if it is."""
        return (*self.weaknesses, *(["migratable"] if self.migratable else []))

    @property
    def revocation_checked(self) -> bool:
        """Whether all was checked that can be."""
        return self.revocation == "checked" or self.revocation.startswith("none: ")


def registers_measurement(registers: Mapping[str, bytes | str]) -> str:
    """SHA-384("strongroom/measurement/v1" || mrtd || rtmr0 || rtmr1 || rtmr2 || rtmr3) in hexadecimal digits.

    Args:
        registers: exactly these five, each 48 bytes or their 96 hexadecimal digits.

    Raises:
        UsageError: a register is missing, unknown, or of another size.
    """
    if set(registers) != set(REGISTERS):
        raise UsageError(f"registers: got {', '.join(sorted(registers)) or 'none'}, wanted {', '.join(REGISTERS)}")
    parts = []
    for name in REGISTERS:
        value = registers[name]
        try:
            part = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
        except ValueError:
            raise UsageError(f"register {name}: not hexadecimal digits") from None
        if len(part) != REGISTER_SIZE:
            raise UsageError(f"register {name}: {len(part)} bytes, wanted {REGISTER_SIZE}")
        parts.append(part)
    return digest(MEASUREMENT_LABEL, *parts, algorithm="sha384").hex()


def pcrs_measurement(bank: str, pcrs: Mapping[int, bytes]) -> str:
    """SHA-384("strongroom/measurement/v1/pcrs" || bank || 0 || (index u8 || length u8 || value)...), ascending indices.

    Args:
        bank: the name of the bank's digest, such as ``sha256``.
        pcrs: those that the quote selects, by index.

    Raises:
        UsageError: there are none, or an index or a length does not fit a byte.
    """
    if not pcrs or any(not 0 <= index < 256 or len(value) >= 256 for index, value in pcrs.items()):
        raise UsageError("pcrs: wanted at least one, with indices and lengths below 256")
    parts = (bytes([index, len(pcrs[index])]) + pcrs[index] for index in sorted(pcrs))
    return digest(MEASUREMENT_LABEL + b"/pcrs", bank.encode() + b"\0", *parts, algorithm="sha384").hex()


def layers_measurement(*measurements: str) -> str:
    """SHA-384("strongroom/measurement/v1/layers" || (length u8 || measurement)...): the outermost layer first."""
    parts = (bytes([len(each) // 2]) + bytes.fromhex(each) for each in measurements)
    return digest(MEASUREMENT_LABEL + b"/layers", *parts, algorithm="sha384").hex()
