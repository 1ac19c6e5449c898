"""A mount while it lasts: the thread that serves it, what it does between requests, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Final

import pyfuse3

from strongroom.errors import UnsupportedPlatformError
from strongroom.shield._direct import Direct
from strongroom.shield._fuse import VaultOperations
from strongroom.shield._loop import Loop
from strongroom.shield._places import Shown
from strongroom.vault import Vault
from strongroom.vault.rows import ROOT_INODE

_logger = logging.getLogger("strongroom.mount")

_COMMIT_EVERY: Final = 5.0
_COMMIT_AT: Final = 64 << 20
_MNT_DETACH: Final = 2


class Session:
    """A mount and the thread that serves it. `pyfuse3` keeps global state, so there is one for each process.

    Commits run in the serving thread: the vault's lock makes requests wait for them anyway, and the kernel's cache
    answers reads and takes writes meanwhile.
    """

    def __init__(
        self, operations: VaultOperations, mountpoint: str, *, source: str, allow_other: bool, anybody: bool = False
    ) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._ended = False
        self._error: BaseException | None = None
        # Requests then have the kernel's largest size, 1 MiB; `max_read` itself cannot be set through pyfuse3.
        options = {f"fsname={source}", "subtype=vault"}
        if not anybody and (allow_other or os.getuid() != 0):
            # Else only root comes in, whom no permission stops: and each change of a directory saves a request.
            options.add("default_permissions")
        if not operations.places.writable:
            options.add("ro")
        if allow_other or anybody:
            options.add("allow_other")
        operations.commit = self._commit_all
        self._shown = [shown for shown in operations.places.shown if shown.writable]
        for shown in self._shown:
            shown.vault.keep_log()
        try:
            pyfuse3.init(operations, mountpoint, options)
        except RuntimeError as error:
            self._leave_logs()
            raise UnsupportedPlatformError(
                f"mount of {mountpoint}: {error}",
                hint="needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace, or fusermount3",
            ) from None
        self._committed = time.monotonic()
        self._invalid = _Invalidator()
        self._loop = Loop(self._tick) if self._shown else Loop(None, Direct(operations))
        # Not `Thread.join`: one that a signal handler's exception interrupts takes the thread for dead.
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="strongroom-fuse", daemon=True)
        self._thread.start()

    def _leave_logs(self) -> None:
        for shown in self._shown:
            shown.vault.leave_log()

    # The serving thread.

    def _run(self) -> None:
        try:
            self._loop.run()
            self._check_unmounted()
        except BaseException as error:
            self._failed("serving", error)
            self._error = error
        finally:
            # Also when somebody else unmounted it.
            try:
                self._operations.close()
                self._commit_all()
                self._leave_logs()
            except BaseException as error:
                self._failed("the last commit", error)
                self._error = error
            self._done.set()

    def _check_unmounted(self) -> None:
        """Raises if what ended was not the mount but its connection, so that the kernel lost what it still held."""
        if self._ended:
            return  # by `end`: then the mount may even be alive, and would want an answer from this thread
        try:
            os.statvfs(self._mountpoint)  # of which the kernel remembers nothing
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                message = "somebody aborted the connection: what the kernel had not handed over is lost"
                raise ConnectionAbortedError(errno.ECONNABORTED, message) from None

    def _failed(self, what: str, error: BaseException) -> None:
        self._operations.fail(error)
        _logger.error("%s: %s", what, error)

    def _tick(self) -> None:
        try:
            now = time.monotonic()
            due = now >= self._committed + _COMMIT_EVERY or self._operations.written > _COMMIT_AT
            for shown in self._shown:
                vault = shown.vault
                vault.refresh()
                self._forget_changes(shown)
                if due or vault.is_wanted():
                    self._commit(vault)
        except Exception as error:
            due = True
            self._failed("commit", error)
        if due:
            self._committed = time.monotonic()
            self._operations.written = 0

    def _commit(self, vault: Vault) -> None:
        if vault.changed or vault.is_wanted():
            vault.commit()

    def _commit_all(self) -> None:
        """Raises, too, if an earlier commit failed so that there can be no other: what it held is lost then."""
        for shown in self._shown:
            shown.vault._usable(to_write=True)
            self._commit(shown.vault)

    def _forget_changes(self, shown: Shown) -> None:
        """Have the kernel ask anew for what other processes changed.

        It keeps the size of a file that is open, whatever we say, so such a program sees the new one when it opens the
        file again.
        """
        changed = shown.vault.overtaken()
        if changed is None:
            return
        for ino, place in self._operations.places.known():
            if place.shown is not shown:
                continue
            itself = place.number in changed
            if place.number != ROOT_INODE:
                for parent, name in place.names:
                    above = parent ^ shown.mask
                    if itself or (above in changed and not self._is_still(shown, above, name, place.number)):
                        self._invalid.entry(parent, name)
            if itself:
                self._invalid.inode(ino)

    @staticmethod
    def _is_still(shown: Shown, parent: int, name: bytes, number: int) -> bool:
        try:
            return shown.vault.lookup(parent, name).id == number
        except OSError:
            return False

    # The end, from another thread.

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until somebody unmounts it; whether that happened."""
        return self._done.wait(timeout)

    def end(self) -> None:
        """Have the kernel write back what it holds, commit, and unmount, even while files are open.

        Who has files open gets ENOTCONN from then on. Raises what the last commit raised.
        """
        if self._ended:
            return
        self._ended = True
        if not self._done.is_set() and self._shown:
            _write_back(self._mountpoint)
            _unmount(self._mountpoint)
        if not self._done.is_set():
            pyfuse3.terminate()
        self._done.wait()
        self._invalid.close()
        pyfuse3.close(unmount=True)
        self._loop.close()
        if self._error:
            raise self._error


def _write_back(mountpoint: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError):
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            libc.syncfs(fd)  # the interpreter's lock is free in here
        finally:
            os.close(fd)


def _unmount(mountpoint: str) -> bool:
    """Unmount if nobody uses it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), 0) == 0:
        return True
    if ctypes.get_errno() != errno.EPERM:
        return False
    try:
        command = ["fusermount3", "-u", "--", mountpoint]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603  # no shell
    except FileNotFoundError:
        return False


class _Invalidator:
    """Tells the kernel what it must ask for anew. The kernel may first want answers from us, hence a thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def entry(self, parent: int, name: bytes) -> None:
        self._put(lambda: pyfuse3.invalidate_entry(parent, name))

    def inode(self, ino: int) -> None:
        self._put(lambda: pyfuse3.invalidate_inode(ino))

    def _put(self, call: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="strongroom-invalidate", daemon=True)
            self._thread.start()
        self._queue.put(call)

    def _run(self) -> None:
        while call := self._queue.get():
            with contextlib.suppress(OSError):  # the kernel does not know it any more
                call()

    def close(self) -> None:
        if self._thread:
            self._queue.put(None)
            self._thread.join(timeout=10)
