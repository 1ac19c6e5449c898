"""A trust domain's own measurement registers at run time: RTMR0 to 3 of TDX.

Source: Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest of the kernel (Linux 6.16 and newer). Reading a
file gives the register, writing 48 bytes extends it: the new value is SHA-384(old value || those bytes), as Intel's
"TDX Module ABI Specification" has it for TDG.MR.RTMR.EXTEND. Firmware uses 0 and 1, the boot chain 2; 3 is free.
"""

from __future__ import annotations

import errno
import os

from strongroom.attest.claims import REGISTER_SIZE
from strongroom.attest.tee.system import System, read_whole, write_once
from strongroom.crypto import digest, equal
from strongroom.errors import EnclaveError, LockedError, StrongroomError, UnsupportedPlatformError, UsageError

MEASUREMENTS = "/sys/devices/virtual/misc/tdx_guest/measurements"
RTMRS = range(4)


def read_rtmr(index: int, *, system: System = os) -> bytes:
    """The value of RTMR `index`, 48 bytes.

    Raises:
        UnsupportedPlatformError: this is no trust domain, or its kernel is too old.
        EnclaveError: the kernel failed, or gave something else than a register.
        UsageError: there is no such register.
    """
    path = _path(index)
    try:
        value = read_whole(system, path, REGISTER_SIZE)
    except OSError as error:
        raise _failed(f"reading RTMR{index}", error) from None
    if len(value) != REGISTER_SIZE:
        raise EnclaveError(f"{path}: {len(value)} bytes, wanted {REGISTER_SIZE}")
    return value


def extend_rtmr(index: int, measured: bytes, *, system: System = os) -> bytes:
    """Extend RTMR `index` by the digest `measured`, 48 bytes, and return what it holds then.

    Raises:
        LockedError: somebody else extended it meanwhile; `measured` is in it, but not where the caller thinks.
        UnsupportedPlatformError, EnclaveError: as `read_rtmr` raises them.
        UsageError: there is no such register, or `measured` has another length.
    """
    if len(measured) != REGISTER_SIZE:
        raise UsageError(f"RTMR{index}: a digest of {len(measured)} bytes, wanted {REGISTER_SIZE}")
    before = read_rtmr(index, system=system)
    try:
        write_once(system, _path(index), measured)
    except OSError as error:
        raise _failed(f"extending RTMR{index}", error) from None
    after = read_rtmr(index, system=system)
    if equal(after, before):
        raise EnclaveError(f"RTMR{index}: unchanged after it was extended")
    if not equal(after, digest(before, measured, algorithm="sha384")):
        raise LockedError(
            f"RTMR{index}: extended by another program at the same time",
            hint="its value is none that a verifier expects; restart the machine",
        )
    return after


def _path(index: int) -> str:
    if index not in RTMRS:
        raise UsageError(f"RTMR: got {index}, wanted 0 to {len(RTMRS) - 1}")
    return f"{MEASUREMENTS}/rtmr{index}:sha384"


def _failed(doing: str, error: OSError) -> StrongroomError:
    if error.errno == errno.ENOENT:
        return UnsupportedPlatformError(
            f"{doing} failed: no {MEASUREMENTS}", hint="it needs an Intel TDX guest and Linux 6.16 or newer"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UnsupportedPlatformError(f"{doing} failed: not for this user", hint="run as root")
    return EnclaveError(f"{doing} failed: {os.strerror(error.errno or 0).lower()}")
