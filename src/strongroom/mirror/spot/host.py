"""This machine as the host of a program that is killed and started again. Not on Windows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from strongroom.errors import UnsupportedPlatformError, UsageError

_CHUNK: Final = 1 << 16
_MAX_LINE: Final = 1 << 16  # bytes; what is longer is cut into lines of that length
_LOOK: Final = 0.1  # seconds between two looks whether a program has ended whose output a process of it still holds
_SOON: Final = 0.01  # seconds that a program takes to end which has closed its output
_GRACE: Final = 1.0  # seconds that output is waited for once the program has ended
_ENDS: Final = re.compile(rb"\r\n|\n|\r")


class LocalHost:
    """Runs a command in a process group of its own; what it prints, errors too, is read line by line.

    Python programs get ``PYTHONUNBUFFERED``, without which a killed one takes its last lines with it.

    Args:
        command: the program and its arguments.
        environment: of the program (default: this process's).

    Raises:
        UsageError: there is no such program.
        UnsupportedPlatformError: this operating system has no process groups.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        if not hasattr(os, "killpg"):
            raise UnsupportedPlatformError("this system has no process groups, wanted Linux or macOS")
        if not command:
            raise UsageError("command: none, wanted a program and its arguments")
        if shutil.which(command[0]) is None:
            raise UsageError(
                f"command: {command[0]} is no program that can be started", hint="is it installed, and executable?"
            )
        self._command = list(command)
        self._environment = {"PYTHONUNBUFFERED": "1"} | dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: deque[str] = deque()
        self._rest = b""
        self._open = False  # whether more output may come
        self._ended: float | None = None  # when the program was seen to have ended
        self._status: int | None = None  # that is still to be told

    now = staticmethod(time.monotonic)

    def start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # the user's command, no shell
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches this process alone
            preexec_fn=_end_with_parent if _prctl else None,  # it makes one system call
            bufsize=0,
        )
        self._rest, self._open, self._ended = b"", True, None

    def listen(self, until: float) -> str | int | None:
        while True:
            if self._lines:
                return self._lines.popleft()
            if self._status is not None:
                status, self._status = self._status, None
                return status
            left = max(0.0, until - self.now())
            process = self._process
            if process is None:
                time.sleep(left)
                return None
            # Also when the time is up what there is is read, once.
            if self._open:
                self._take(process, min(left, _LOOK))
            elif _has_ended(process):
                self._leave(process)
            elif left:
                time.sleep(min(left, _SOON))
            if not left and not self._lines and self._status is None:
                return None

    def warn(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()  # nothing outlives SIGKILL; what it printed is still in the pipe

    def _signal(self, number: int) -> None:
        # Until it is waited for, a process keeps the number of its group from being another's.
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: of a group that has ended
                os.killpg(self._process.pid, number)

    def _take(self, process: subprocess.Popen[bytes], wait: float) -> None:
        """Wait for output, or for the end of it, and make lines of it."""
        assert process.stdout is not None  # noqa: S101  # for mypy
        if select.select([process.stdout], [], [], wait)[0]:
            data = os.read(process.stdout.fileno(), _CHUNK)
            self._open = bool(data)
            *whole, self._rest = _ENDS.split(self._rest + data)
            while len(self._rest) > _MAX_LINE:
                whole.append(self._rest[:_MAX_LINE])
                self._rest = self._rest[_MAX_LINE:]
            self._lines += (line.decode(errors="replace") for line in whole)
        elif self._ended is None:
            if _has_ended(process):
                self._signal(signal.SIGKILL)  # what it left behind, and what holds its output
                self._ended = self.now()
        elif self.now() - self._ended >= _GRACE:
            self._open = False

    def _leave(self, process: subprocess.Popen[bytes]) -> None:
        """Nothing more will come of a program that has ended."""
        self._signal(signal.SIGKILL)
        self._status = process.wait()
        assert process.stdout is not None  # noqa: S101  # for mypy
        process.stdout.close()
        self._process = None
        # A signal may have cut the last line: half a number looks like a whole one.
        if self._rest and self._status >= 0:
            self._lines.append(self._rest.decode(errors="replace"))
        self._rest = b""


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the child: be killed when who started it ends, by whatever."""
    assert _prctl is not None  # noqa: S101  # for mypy
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has; where the system can say so, without giving its number free."""
    if process.returncode is None and hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None
