"""The root secret sealed to an SEV-SNP guest, by a key that its processor derives for it alone.

Sources: include/uapi/linux/sev-guest.h of Linux (`SNP_GET_DERIVED_KEY`); AMD, "SEV Secure Nested Paging Firmware ABI
Specification", revision 1.55, section 7.2 (MSG_KEY_REQ, MSG_KEY_RSP). Mixed into the key, besides the processor's own:
the guest's policy, so that a guest that may be debugged gets another one, and its measurement. Not mixed in are
versions of the firmware, so that an update of it does not lock the CAS out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import ClassVar

from strongroom.attest.tee.system import System
from strongroom.cas.state.way import Record, open_under, seal_under, text
from strongroom.errors import EnclaveError, FormatError, UnsupportedPlatformError, UsageError

DEVICE = "/dev/sev-guest"
KEY_SIZE = 32
MAX_VMPL = 3
Ioctl = Callable[[int, int, bytearray], object]
"""`fcntl.ioctl`, which changes the buffer in place."""

_FIELDS = 1 << 0 | 1 << 3  # GUEST_FIELD_SELECT: the guest's policy, its measurement
_MESSAGE_VERSION = 1
_HINT = (
    "another program in the guest, another policy or another processor has another key: `strongroom cas rekey --from "
    "peer` takes the secret over from an instance that runs"
)


class DerivedKeyRequest(ctypes.Structure):
    """`struct snp_derived_key_req`."""

    _fields_ = (
        ("root_key_select", ctypes.c_uint32),  # 0: the processor's own, VCEK
        ("reserved", ctypes.c_uint32),
        ("guest_field_select", ctypes.c_uint64),
        ("vmpl", ctypes.c_uint32),
        ("guest_svn", ctypes.c_uint32),
        ("tcb_version", ctypes.c_uint64),
    )


class GuestRequest(ctypes.Structure):
    """`struct snp_guest_request_ioctl`."""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("fw_error", ctypes.c_uint32),
        ("vmm_error", ctypes.c_uint32),
    )


class KeyResponse(ctypes.Structure):
    """MSG_KEY_RSP, the 64 bytes of `struct snp_derived_key_resp`."""

    _fields_ = (("status", ctypes.c_uint32), ("reserved", ctypes.c_uint8 * 28), ("key", ctypes.c_uint8 * KEY_SIZE))


# _IOWR('S', 1, struct snp_guest_request_ioctl)
GET_DERIVED_KEY = 3 << 30 | ctypes.sizeof(GuestRequest) << 16 | ord("S") << 8 | 1


class Snp:
    """A box in the record, under the guest's derived key.

    Args:
        vmpl: the privilege level to derive the key for, at least that of this kernel.
        system, ioctl: the calls to make.
    """

    way: ClassVar[str] = "snp"
    creates: ClassVar[bool] = True

    def __init__(self, vmpl: int = 0, *, system: System = os, ioctl: Ioctl | None = None) -> None:
        if not 0 <= vmpl <= MAX_VMPL:
            raise UsageError(f"vmpl: got {vmpl}, wanted 0 to {MAX_VMPL}")
        self._vmpl, self._system, self._given = vmpl, system, ioctl

    def keep(self, secret: bytes) -> Record:
        return {"vmpl": self._vmpl, "box": seal_under(self._derive(self._vmpl), secret, self.way)}

    def recover(self, record: Record) -> bytes:
        vmpl = record.get("vmpl")
        if type(vmpl) is not int or not 0 <= vmpl <= MAX_VMPL:
            raise FormatError(f"unseal.json: vmpl: wanted 0 to {MAX_VMPL}")
        return open_under(self._derive(vmpl), text(record, "box"), self.way, hint=_HINT)

    def _derive(self, vmpl: int) -> bytes:
        ioctl = self._given or _system_ioctl()
        request = DerivedKeyRequest(guest_field_select=_FIELDS, vmpl=vmpl)
        response = KeyResponse()
        raw = bytearray(
            GuestRequest(
                msg_version=_MESSAGE_VERSION,
                req_data=ctypes.addressof(request),
                resp_data=ctypes.addressof(response),
            )
        )
        try:
            fd = self._system.open(DEVICE, os.O_RDWR)
        except FileNotFoundError:
            raise UnsupportedPlatformError(
                f"snp: no {DEVICE}", hint="this is no SEV-SNP guest, or its kernel lacks the module sev-guest"
            ) from None
        except OSError as error:
            raise UnsupportedPlatformError(
                f"snp: opening {DEVICE}: {os.strerror(error.errno or 0).lower()}", hint="run as root"
            ) from None
        try:
            ioctl(fd, GET_DERIVED_KEY, raw)
        except OSError as error:
            told = GuestRequest.from_buffer(raw)
            raise EnclaveError(
                f"snp: deriving the key failed: {os.strerror(error.errno or 0).lower()} (firmware "
                f"{told.fw_error:#x}, host {told.vmm_error:#x})",
                hint=f"a kernel that does not run at VMPL {vmpl} or above it may not ask for that level: --vmpl",
            ) from None
        finally:
            self._system.close(fd)
        key = bytes(response.key)
        ctypes.memset(ctypes.addressof(response.key), 0, KEY_SIZE)
        if response.status or not any(key):
            raise EnclaveError(f"snp: deriving the key failed with status {response.status:#x}")
        return key


def _system_ioctl() -> Ioctl:
    try:
        from fcntl import ioctl  # not on Windows
    except ImportError:
        raise UnsupportedPlatformError(f"snp: this system has no {DEVICE}") from None
    return ioctl
