"""The root secret sealed to a TPM: to the values of some of its registers, and to a PIN if one is given.

A TPM knows what was booted, not what runs: whoever is root on that machine, as it was booted, gets the secret too,
unless a PIN is asked for. It keeps a disk, or a copy of one, from being of use anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from strongroom.attest.tee.tpm import Tpm
from strongroom.attest.tee.tpm_seal import Sealed, seal, unseal
from strongroom.cas.state.way import Record, octets, text
from strongroom.errors import FormatError, UsageError

DEFAULT_PCRS = (7,)
"""Secure Boot: whether it is on, and whose keys it takes. Updates of firmware and kernel leave it as it is."""

MAX_PIN = 32  # as long as the digest that a TPM takes as a password


class TpmSealed:
    """An object in the record, which one TPM opens.

    Args:
        where: the TPM, as `Tpm.open` takes it.
        pcrs, bank: to whose values a secret is sealed.
        pin: at most 32 bytes; empty for none.
    """

    way: ClassVar[str] = "tpm"
    creates: ClassVar[bool] = True

    def __init__(
        self,
        where: str | None = None,
        *,
        pcrs: Sequence[int] = DEFAULT_PCRS,
        bank: str = "sha256",
        pin: bytes = b"",
    ) -> None:
        if len(pin) > MAX_PIN or pin.endswith(b"\0"):  # a TPM drops zeros at the end
            raise UsageError(f"pin: {len(pin)} bytes, wanted at most {MAX_PIN}, and no zero at its end")
        self._where, self._pcrs, self._bank, self._pin = where, tuple(pcrs), bank, pin

    def keep(self, secret: bytes) -> Record:
        with Tpm.open(self._where) as tpm:
            sealed = seal(tpm, secret, bank=self._bank, pcrs=self._pcrs, pin=self._pin)
        return {
            "bank": sealed.bank,
            "pcrs": list(sealed.pcrs),
            "pin": sealed.pin,
            "public": sealed.public.hex(),
            "private": sealed.private.hex(),
        }

    def recover(self, record: Record) -> bytes:
        pcrs, pin = record.get("pcrs"), record.get("pin")
        if (
            not isinstance(pcrs, list)
            or not all(type(index) is int and 0 <= index < 24 for index in pcrs)
            or type(pin) is not bool
        ):
            raise FormatError("unseal.json: pcrs, pin: wanted registers, and whether there is a PIN")
        if pin and not self._pin:
            raise UsageError(
                "pin: the root secret is sealed to one", hint="--pin-file FILE; for `rekey` --old-pin-file FILE"
            )
        sealed = Sealed(octets(record, "public"), octets(record, "private"), text(record, "bank"), tuple(pcrs), pin)
        with Tpm.open(self._where) as tpm:
            return unseal(tpm, sealed, pin=self._pin)
