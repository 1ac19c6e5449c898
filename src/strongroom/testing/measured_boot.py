"""A machine with a TPM, booted: firmware, boot loader and kernel are measured into a TPM in software, and logged.

    with BootedTpm.start(directory) as booted:
        os.environ.update(booted.environment)
        machine = find_machine("tpm")

The TPM is a real one in all but its chip (`swtpm`); what stands for the firmware extends its registers as the TCG's
profile has it (`event_log`), in each bank that the TPM keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from strongroom.attest.parse.event_log import parse_event_log
from strongroom.attest.tee.tpm import LOG_VARIABLE, VARIABLE, Tpm
from strongroom.enclave.machine import log
from strongroom.testing.event_log import FirmwareLog, variable
from strongroom.testing.swtpm import SoftwareTpm

_BANKS = ("sha256",)


def pc_firmware(*, loader: bytes = b"a boot loader", command_line: bytes = b"/vmlinuz root=/dev/vda ro") -> FirmwareLog:
    """What the firmware of a PC measures, and GRUB after it: sections 3.3.4 and 10.4 of the TCG's profile."""
    boot = FirmwareLog(_BANKS)
    boot.measure(0, 0x8, "firmware 1.0\0".encode("utf-16-le"))
    boot.measure(7, 0x80000001, variable("SecureBoot", b"\1"))
    for pcr in range(8):
        boot.measure(pcr, 0x4, bytes(4))
    boot.measure(4, 0x80000003, b"where it was loaded from", digested=loader)
    boot.measure(8, 0xD, b"kernel_cmdline: " + command_line + b"\0", digested=command_line)
    boot.measure(9, 0xD, b"/vmlinuz\0", digested=b"a kernel")
    boot.measure(14, 0xD, b"MokList\0", digested=b"no keys")
    return boot


class BootedTpm:
    """A machine that is up.

    Attributes:
        environment: variables that name its TPM, its firmware's log, and where its launchers keep theirs.
        boot: what was measured.
    """

    def __init__(self, tpm: SoftwareTpm, boot: FirmwareLog, environment: Mapping[str, str]) -> None:
        self._tpm, self.boot, self.environment = tpm, boot, environment
        self.tcti = tpm.tcti

    @classmethod
    def start(cls, maker: Path, run: Path, *, boot: FirmwareLog | None = None) -> BootedTpm:
        """Switch it on.

        Args:
            maker: as of `SoftwareTpm.start`; the TPM in it is made on first use, and its key stays.
            run: a directory in the place of `/run`: new for each boot.
            boot: what is measured; by default `pc_firmware`.

        Raises:
            MissingDependencyError, EnclaveError: as `SoftwareTpm.start`.
        """
        boot = boot or pc_firmware()
        tpm = SoftwareTpm.start(maker)
        try:
            with Tpm.open(tpm.tcti) as opened:
                for event in parse_event_log(boot.to_bytes()):
                    opened.extend_banks(event.pcr, event.digests)
            run.mkdir(parents=True, exist_ok=True)
            (run / "binary_bios_measurements").write_bytes(boot.to_bytes())
        except BaseException:
            tpm.stop()
            raise
        named = {
            VARIABLE: tpm.tcti,
            LOG_VARIABLE: str(run / "binary_bios_measurements"),
            log.VARIABLE: str(run / "strongroom"),
        }
        return cls(tpm, boot, named)

    def __enter__(self) -> BootedTpm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tpm.stop()
