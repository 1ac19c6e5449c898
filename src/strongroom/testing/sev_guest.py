"""`/dev/sev-guest` of an SEV-SNP guest, as far as it derives keys; `ioctl` takes the place of `fcntl.ioctl`.

    guest = FakeSevGuest(chip=b"one", measurement=bytes(48), policy=0x30000)
    Snp(system=FakeMachine(guest), ioctl=guest.ioctl)

Copies drivers/virt/coco/sev-guest of Linux and AMD's firmware ABI, section 7.2: what is mixed into a key, and which
levels a guest may ask for. The keys are not those that a processor would derive: nobody outside knows these.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from ctypes import memmove, string_at

from strongroom.testing.machine import FakeFile, Faults, failure

_REQUEST = struct.Struct("<IIQIIQ")  # root_key_select, reserved, guest_field_select, vmpl, guest_svn, tcb_version
_IOCTL = struct.Struct("<B7xQQII")  # msg_version, req_data, resp_data, fw_error, vmm_error
_INVALID_PARAMETER = 0x16


class FakeSevGuest(Faults):
    """One guest on one processor.

    Attributes:
        chip: which processor, in bytes of the test's choice.
        measurement, policy: of the guest.
        vmpl: at which its kernel runs.
        status: what the firmware answers with, if not zero.
    """

    root = "/dev"

    def __init__(self, *, chip: bytes, measurement: bytes, policy: int, vmpl: int = 0) -> None:
        super().__init__()
        self.chip, self.measurement, self.policy, self.vmpl, self.status = chip, measurement, policy, vmpl, 0

    def open(self, name: str, flags: int) -> FakeFile:
        if name != "sev-guest":
            raise failure(errno.ENOENT)
        self._use("open")
        return FakeFile(flags, bytes, lambda data: None)

    def ioctl(self, fd: int, number: int, raw: bytearray) -> int:
        del fd
        self._use("ioctl")
        if number != 0xC0205301:  # _IOWR('S', 1, 32 bytes)
            raise failure(errno.ENOTTY)
        version, request, response, _, _ = _IOCTL.unpack(raw)
        if not version:
            raise failure(errno.EINVAL)
        root, reserved, fields, vmpl, svn, tcb = _REQUEST.unpack(string_at(request, _REQUEST.size))
        if reserved or vmpl < self.vmpl or vmpl > 3:
            _IOCTL.pack_into(raw, 0, version, request, response, _INVALID_PARAMETER, 0)
            raise failure(errno.EIO)
        mixed = [self.chip, struct.pack("<IQIIQ", root, fields, vmpl, svn, tcb)]
        mixed += [self.policy.to_bytes(8, "little")] if fields & 1 else []
        mixed += [self.measurement] if fields & 8 else []
        key = hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in mixed)).digest()
        memmove(response, struct.pack("<I28x32s", self.status, bytes(32) if self.status else key), 64)
        return 0

    def mkdir(self, name: str) -> None:
        raise failure(errno.EPERM)

    def rmdir(self, name: str) -> None:
        raise failure(errno.EPERM)
