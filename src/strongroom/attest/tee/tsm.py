"""One request for a report, through the kernel's configfs-tsm (Linux 6.7 and newer).

Source: Documentation/ABI/testing/configfs-tsm-report of the kernel, and what drivers/virt/coco and fs/configfs/file.c
do beyond it:

- A request is a directory; its files appear with it, and go with it. Nobody else's request is touched.
- `inblob` takes effect when it is closed, and an error there is discarded. `generation` counts what took effect.
- Reading `outblob` makes the report; each other file of the same generation is of that same report.

Steps:

1. Make a directory that nobody else has.
2. Read `provider`, and refuse one whose reports we do not know.
3. Read `generation`.
4. Write `privlevel`, where the caller or the provider asks for one, and the caller's 64 bytes to `inblob`. `generation`
   must have risen by as much. Less: a write was lost. More: somebody else wrote; again from step 3.
5. Read `outblob`, again after a pause while the platform is busy; then `auxblob`, where the provider has one.
6. `generation` must be what it was in step 4: else somebody wrote meanwhile, and the report may be theirs; again from
   step 3.
7. Remove the directory, whatever happened. One that a killed process leaves stays until the machine restarts, and
   disturbs nobody.

Nothing heavy is imported here, so that `strongroom doctor` can ask who the provider is.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from strongroom.attest.tee.system import System, read_whole, write_once
from strongroom.errors import EnclaveError, LockedError, StrongroomError, UnsupportedPlatformError, UsageError

REPORTS = "/sys/kernel/config/tsm/report"

SNP = "sev_guest"
TDX = "tdx_guest"

INBLOB_SIZE = 64
# include/linux/tsm.h: TSM_REPORT_OUTBLOB_MAX was 32 KiB and is 16 MiB now; what today's providers give fits the former.
MAX_BLOB = 256 * 1024
MAX_PRIVLEVEL = 3
# A simple attribute is one page at most (fs/configfs/file.c: SIMPLE_ATTR_SIZE).
_MAX_TEXT = 4096

_BUSY = (errno.EBUSY, errno.EINTR, errno.EAGAIN)
# drivers/virt/coco/tdx-guest: a quote takes seconds, is polled for once a second and given up after 30; an interrupted
# one keeps the next busy for as long.
_PAUSE = 1.0
_PAUSES = 30
_CONFLICTS = 3

# No configfs-tsm; configfs-tsm without a provider.
_NOBODY = (errno.ENOENT, errno.ENXIO)


@dataclass(frozen=True)
class TsmReport:
    """What the provider answered: the report, and what came with it (`auxblob`; empty if nothing did)."""

    provider: str
    outblob: bytes = field(repr=False)
    auxblob: bytes = field(repr=False)


def tsm_provider(system: System = os) -> str | None:
    """Who makes reports on this machine, such as `SNP` or `TDX`; None if nobody does.

    Raises:
        UnsupportedPlatformError: not for this user.
        EnclaveError: the kernel failed.
    """
    try:
        with _request(system) as request:
            return request.provider()
    except OSError as error:
        if error.errno in _NOBODY:
            return None
        raise _unable(error) from None


def tsm_report(
    inblob: bytes,
    *,
    privlevel: int | None = None,
    system: System = os,
    pause: Callable[[float], None] = time.sleep,
) -> TsmReport:
    """A report over `inblob`, by the steps at the top of this file.

    Args:
        inblob: 64 bytes.
        privlevel: for SNP, the VMPL to have the report made for, at most 3; if None, the least that the provider lets
            this kernel ask for.
        system: the calls to make.
        pause: how to wait that many seconds.

    Raises:
        UnsupportedPlatformError: there is no provider, or not for this user, or one that we do not know.
        LockedError: another program kept writing to the request.
        EnclaveError: the provider failed.
        UsageError: `inblob` has another length, or `privlevel` is out of range or means nothing to the provider.
    """
    if len(inblob) != INBLOB_SIZE:
        raise UsageError(f"inblob: {len(inblob)} bytes, wanted {INBLOB_SIZE}")
    if privlevel is not None and not 0 <= privlevel <= MAX_PRIVLEVEL:
        raise UsageError(f"privlevel: got {privlevel}, wanted 0 to {MAX_PRIVLEVEL}")
    try:
        # 1, 7
        with _request(system) as request:
            return _report(request, inblob, privlevel, pause)
    except OSError as error:
        raise _unable(error) from None


def _report(request: _Request, inblob: bytes, privlevel: int | None, pause: Callable[[float], None]) -> TsmReport:
    """Steps 2 to 6."""
    # 2
    provider = request.provider()
    if provider not in (SNP, TDX):
        raise UnsupportedPlatformError(f"configfs-tsm: got provider {provider[:40]!r}, wanted {SNP} or {TDX}")
    level = request.level(provider, privlevel)
    for _ in range(_CONFLICTS):
        # 3
        before = request.generation()
        # 4
        writes = 1
        if level is not None:
            request.write("privlevel", str(level).encode())
            writes += 1
        request.write("inblob", inblob)
        risen = request.generation() - before
        if risen < writes:
            raise EnclaveError(
                f"configfs-tsm: {risen} of {writes} writes took effect",
                hint="the kernel took the request and dropped it; its log may say why",
            )
        if risen > writes:
            continue
        # 5
        outblob = _patiently(lambda: request.read("outblob"), pause)
        auxblob = _patiently(lambda: request.read("auxblob"), pause) if provider == SNP else b""
        # 6
        if request.generation() == before + writes:
            if not outblob:
                raise EnclaveError(f"configfs-tsm: {provider} gave an empty report")
            return TsmReport(provider, outblob, auxblob)
    raise LockedError(
        f"configfs-tsm: another program wrote to our request {_CONFLICTS} times",
        hint=f"find who writes under {REPORTS}: it can get reports in this program's name",
    )


class _Request:
    """A directory under `REPORTS`, and its files."""

    def __init__(self, system: System, path: str) -> None:
        self._system = system
        self._path = path

    def read(self, name: str, limit: int = MAX_BLOB) -> bytes:
        return read_whole(self._system, f"{self._path}/{name}", limit)

    def write(self, name: str, content: bytes) -> None:
        try:
            write_once(self._system, f"{self._path}/{name}", content)
        except OSError as error:
            raise _failed(f"writing {name}", error) from None

    def _text(self, name: str) -> str:
        try:
            return self.read(name, _MAX_TEXT).decode("ascii").strip()
        except UnicodeDecodeError:
            raise EnclaveError(f"configfs-tsm: {name} is not text") from None
        except OSError as error:
            raise _failed(f"reading {name}", error) from None

    def _number(self, name: str) -> int:
        text = self._text(name)
        if not text.isdecimal():
            raise EnclaveError(f"configfs-tsm: got {name} {text[:40]!r}, wanted a number")
        return int(text)

    def provider(self) -> str:
        return self._text("provider")

    def generation(self) -> int:
        return self._number("generation")

    def level(self, provider: str, wanted: int | None) -> int | None:
        """The privilege level to write, None for none."""
        if provider != SNP:
            if wanted is not None:
                raise UsageError(f"privlevel: got {wanted}, wanted none: {provider} has no such levels")
            return None
        floor = self._number("privlevel_floor")
        if wanted is not None and wanted < floor:
            raise UsageError(f"privlevel: got {wanted}, wanted at least {floor}, where this kernel runs")
        # Zero is what the kernel starts with.
        return (floor or None) if wanted is None else wanted


@contextmanager
def _request(system: System) -> Iterator[_Request]:
    """A request of our own. `OSError` if none can be made."""
    path = f"{REPORTS}/strongroom-{os.getpid()}-{os.urandom(8).hex()}"
    system.mkdir(path, 0o700)
    try:
        yield _Request(system, path)
    finally:
        # What was asked for is there, or has failed for a better reason than this.
        with suppress(OSError):
            system.rmdir(path)


def _patiently(read: Callable[[], bytes], pause: Callable[[float], None]) -> bytes:
    paused = 0
    while True:
        try:
            return read()
        except OSError as error:
            if error.errno not in _BUSY or paused == _PAUSES:
                raise _failed("making the report", error) from None
        pause(_PAUSE)
        paused += 1


def _unable(error: OSError) -> StrongroomError:
    """Why no request could be made."""
    reason, hint = {
        errno.ENOENT: (
            "this kernel has none",
            "it takes Linux 6.7 or newer, and configfs: mount -t configfs none /sys/kernel/config",
        ),
        errno.ENXIO: (
            "nobody makes reports on this machine",
            "it takes a confidential VM whose driver is loaded: modprobe sev-guest, or tdx-guest",
        ),
        errno.EACCES: ("not for this user", "run as root"),
        errno.EPERM: ("not for this user", "run as root, outside of a sandbox"),
        errno.EROFS: ("read-only here", "a container needs /sys/kernel/config mounted for writing"),
    }.get(error.errno or 0, (_words(error), None))
    return UnsupportedPlatformError(f"configfs-tsm: {reason}", hint=hint)


def _failed(doing: str, error: OSError) -> StrongroomError:
    hint = {
        errno.EBUSY: "the platform is still at work on another request; try again in a minute",
        errno.ETIMEDOUT: "the machine's owner did not answer in time: is the quoting service running there?",
        errno.EIO: "the platform refused or could not answer; the kernel's log may say why",
        errno.ENXIO: "the provider is gone, or its firmware failed; the kernel's log may say why",
        errno.EINVAL: "the provider does not accept this privilege level",
        errno.EFBIG: "the report is larger than this kernel allows: update it",
        errno.ENOTTY: "the guest's message key is disabled after an earlier failure: restart the machine",
    }.get(error.errno or 0)
    return EnclaveError(f"configfs-tsm: {doing} failed: {_words(error)}", hint=hint)


def _words(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "no number")
    return f"{os.strerror(error.errno or 0).lower()} ({name})"
