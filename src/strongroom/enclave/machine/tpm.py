"""A PC with a TPM, or a VM with a virtual one: programs go into PCR 13 (`attest.parse.launched` says why that one).

Quoted are the registers of the boot, 0 to 9, those that only the boot extends, 12 and 14, and 13. The firmware's log
explains them where this user can read it; what the policy pins are the registers. A TPM isolates nothing: the machine's
owner reads all memory, and whoever holds the bus to the TPM can set it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from strongroom.attest.attester import Attester
from strongroom.attest.binding import launched_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.event_log import log_banks, parse_event_log, replay
from strongroom.attest.parse.launched import PROGRAM_PCR, QUOTED_PCRS, empty_log, program_event
from strongroom.attest.parse.tpm import DIGEST_SIZES, parse_tpm
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.tee.tpm import EVENT_LOG, Tpm, TpmAttester, event_log_path, read_event_log, tpm_name
from strongroom.crypto import digest, equal
from strongroom.enclave.machine.log import LaunchLog
from strongroom.enclave.machine.shortened import shortened
from strongroom.errors import EnclaveError, UnsupportedPlatformError

_BANK = "sha256"
_BANKS = ("sha1", "sha256", "sha384", "sha512")


@dataclass(frozen=True)
class TpmMachine:
    """The machine whose TPM `Tpm.open` opens. It is opened for each use, so that no key stays in it.

    Attributes:
        directory: of the log of programs.
    """

    directory: Path
    tee: str = field(default="tpm", init=False)
    where: str = field(default=f"PCR {PROGRAM_PCR}", init=False)

    def accepted(self) -> tuple[str, ...]:
        """Its key, and every register that is quoted but that of programs. Raises as `start`."""
        with Tpm.open() as tpm:
            values, key = tpm.pcrs(_BANK, QUOTED_PCRS), parse_public(tpm.ak_public()).key
        pinned = [f'pcr{index} = ["{value.hex()}"]' for index, value in values.items() if index != PROGRAM_PCR]
        return ('tees = ["tpm"]', f'tpm_roots = ["{key.fingerprint}"]', "[reference.platforms.tpm]", *pinned)

    def start(self, program: str) -> Attester:
        """Measure a program, by its measurement, which is about to start; what makes its evidence.

        Raises:
            EnclaveError: the register is not what the log says, or the TPM refuses.
            UnsupportedPlatformError: no TPM, or not for this user.
            MissingDependencyError: tpm2-pytss is not installed.
        """
        with Tpm.open() as tpm, self._log(tpm) as (firmware, log):
            event = program_event(PROGRAM_PCR, program, log_banks(firmware))
            log.add(event)
            tpm.extend_banks(PROGRAM_PCR, event.digests)
            if not equal(tpm.pcrs(_BANK, [PROGRAM_PCR])[PROGRAM_PCR], _value(firmware + log.added)):
                raise EnclaveError(
                    f"pcr {PROGRAM_PCR}: was extended to another value than it should have been",
                    hint="something else extended it at the same time: restart the machine",
                )
        return _Launched(self, program)

    def evidence(self, program: str, report_data: bytes) -> Evidence:
        """Evidence that a program asks for, which was started here."""
        with Tpm.open() as tpm, self._log(tpm) as (firmware, log):
            whole, values = firmware + log.added, tpm.pcrs(_BANK, QUOTED_PCRS)
            explained = {
                index
                for index, value in replay(parse_event_log(whole), _BANK).items()
                if index in values and equal(value, values[index])
            }
            # What is extended unlogged, as some systems do while they run, is shown by its register alone.
            shown = shortened(whole, keep=lambda event: event.pcr in explained)
            attester = TpmAttester(tpm, bank=_BANK, pcrs=QUOTED_PCRS, event_log=shown)
            evidence = attester.evidence(launched_data(report_data, program))
            if not parse_tpm(evidence.quote).event_log:
                raise EnclaveError("tpm: its registers changed while they were quoted", hint="try again")
            return replace(evidence, program=program)

    @contextmanager
    def _log(self, tpm: Tpm) -> Iterator[tuple[bytes, LaunchLog]]:
        """The firmware's log, and the programs' after it, which the register agrees with, under their lock."""
        firmware = _firmware_log(tpm)
        name = f"pcr{PROGRAM_PCR}-{digest(tpm_name().encode()).hex()[:16]}"
        with LaunchLog.locked(self.directory, name) as log:
            log.agree(firmware, tpm.pcrs(_BANK, [PROGRAM_PCR])[PROGRAM_PCR], _value)
            yield firmware, log


@dataclass(frozen=True)
class _Launched:
    """Makes the evidence of one program."""

    machine: TpmMachine
    program: str
    tee: str = field(default="tpm", init=False)

    def evidence(self, report_data: bytes) -> Evidence:
        return self.machine.evidence(self.program, report_data)


def _firmware_log(tpm: Tpm) -> bytes:
    """The firmware's log; where this user cannot read the machine's own, an empty one for the banks that the TPM keeps.

    Raises:
        UnsupportedPlatformError: one was named that cannot be read; it, or the TPM, has no bank of SHA-256; or it has
            one that cannot be extended here.
    """
    path = event_log_path()
    try:
        raw = empty_log(_kept(tpm)) if path is None else read_event_log(path)
    except UnsupportedPlatformError:
        if path != EVENT_LOG:
            raise
        raw = empty_log(_kept(tpm))
    banks = log_banks(raw)
    if _BANK not in banks or set(banks) - set(_BANKS):
        raise UnsupportedPlatformError(
            f"event log: has banks {', '.join(banks)}, wanted {_BANK} and no others than {', '.join(_BANKS)}",
            hint="the firmware's set-up says which banks the TPM keeps",
        )
    return raw


def _kept(tpm: Tpm) -> tuple[str, ...]:
    """The banks that the TPM keeps."""
    kept = []
    for bank in _BANKS:
        with suppress(UnsupportedPlatformError):
            tpm.pcrs(bank, [PROGRAM_PCR])
            kept.append(bank)
    return tuple(kept)


def _value(log: bytes) -> bytes:
    """What a log comes to for the register of programs."""
    return replay(parse_event_log(log), _BANK).get(PROGRAM_PCR, bytes(DIGEST_SIZES[_BANK]))
