"""The root secret sealed to an SGX enclave, by a key that Gramine gives to it alone.

Source: Gramine's documentation, "Attestation and Secret Provisioning": `/dev/attestation/keys/_sgx_mrenclave` holds the
16 bytes of SGX's sealing key under the policy MRENCLAVE, `_sgx_mrsigner` under MRSIGNER. The first is of this very
enclave on this very processor; the second of all enclaves of its signer with that product's number.
"""

from __future__ import annotations

import os
from typing import ClassVar

from strongroom.attest.tee.gramine import ATTESTATION, KEY_SIZE
from strongroom.attest.tee.system import System, read_whole
from strongroom.cas.state.way import Record, open_under, seal_under, text
from strongroom.errors import EnclaveError, FormatError, UnsupportedPlatformError, UsageError

KEYS = ("_sgx_mrenclave", "_sgx_mrsigner")
_HINT = (
    "another enclave, or this one on another processor, has another key: `strongroom cas rekey --from peer` takes the "
    "secret over from an instance that runs"
)


class Sgx:
    """A box in the record, under the enclave's sealing key.

    Args:
        key: which of `KEYS`; None takes the one that the record says, and for a new one the enclave's own.
        system: the calls to make.
    """

    way: ClassVar[str] = "sgx"
    creates: ClassVar[bool] = True

    def __init__(self, key: str | None = None, *, system: System = os) -> None:
        if key is not None and key not in KEYS:
            raise UsageError(f"sealing key: got {key[:40]!r}, wanted {' or '.join(KEYS)}")
        self._key, self._system = key, system

    def keep(self, secret: bytes) -> Record:
        name = self._key or KEYS[0]
        return {"key": name, "box": seal_under(self._read(name), secret, f"sgx/{name}")}

    def recover(self, record: Record) -> bytes:
        name = text(record, "key")
        if name not in KEYS or (self._key or name) != name:
            raise FormatError(f"unseal.json: key: got {name[:40]!r}, wanted {self._key or ' or '.join(KEYS)}")
        return open_under(self._read(name), text(record, "box"), f"sgx/{name}", hint=_HINT)

    def _read(self, name: str) -> bytes:
        path = f"{ATTESTATION}/keys/{name}"
        try:
            key = read_whole(self._system, path, KEY_SIZE)
        except FileNotFoundError:
            raise UnsupportedPlatformError(
                f"sgx: no {path}", hint="this process is not in an SGX enclave under Gramine: start it with gramine-sgx"
            ) from None
        except OSError as error:
            raise EnclaveError(f"sgx: {path}: {os.strerror(error.errno or 0).lower()}") from None
        if len(key) != KEY_SIZE or not any(key):
            raise EnclaveError(f"sgx: {path}: {len(key)} bytes, or zeros, wanted {KEY_SIZE} of a key")
        return key
