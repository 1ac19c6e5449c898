"""A vault mounted for writing by a process of its own, as programs meet it.

The process that tests may then do with the mount what it likes: map its files, start programs from it. Run as a module,
this file is that process: ``python -m tests.posix.server DIRECTORY MOUNTPOINT [OPTION...]``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom import vault
from strongroom.sealed import NO_FRESHNESS
from strongroom.shield.files import mount
from strongroom.storage import LocalDirectory

KEY = bytes(range(32))
ROOT = Path(__file__).parent.parent.parent


@dataclass
class Server:
    """A running one."""

    process: subprocess.Popen[str]
    point: Path

    def kill(self) -> None:
        """As a crash: nothing is committed any more."""
        self.process.kill()
        self.process.wait()
        detach(self.point)

    def end(self) -> str:
        """Terminate it; what it said at the end."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        return said


def detach(point: Path) -> None:
    """Take away a mount whose server is dead."""
    command = ["fusermount3", "-u", "-z", str(point)]
    subprocess.run(command, check=False, capture_output=True)


@contextlib.contextmanager
def served(directory: Path, point: Path, *options: str) -> Iterator[Server]:
    """Mount a vault, which is made if the directory is empty.

    Args:
        options: ``allow-other``; ``full`` lets the storage run out of room once a file ``full`` lies beside it.
    """
    command = [sys.executable, "-m", "tests.posix.server", str(directory), str(point), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = Server(process, point)
    try:
        line = process.stdout.readline()
        assert line == "mounted\n", f"the server said {line!r}"
        yield server
        if process.poll() is None:
            said = server.end()
            assert process.returncode == 0 and "failure: None" in said, said
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        detach(point)  # whatever happened: nobody could remove the directory
        process.stdout.close()


class _FullDirectory(LocalDirectory):
    """A directory on a disk that is full while a file says so."""

    def open(self, name: str, mode: Any, *, shared: bool = False) -> Any:
        return _FullFile(super().open(name, mode, shared=shared), self.path.with_name("full"))


class _FullFile:
    def __init__(self, file: Any, switch: Path) -> None:
        self._file = file
        self._switch = switch

    def write_at(self, offset: int, data: Any) -> None:
        if self._switch.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.write_at(offset, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def main(directory: str, point: str, *options: str) -> None:
    ended: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, frame: ended.append(number))
    made = _FullDirectory(directory) if "full" in options else LocalDirectory(directory)
    mode = "r+" if any(Path(directory).iterdir()) else "x"
    with (
        vault.open(made, mode, key=KEY, anchor=NO_FRESHNESS) as opened,
        mount(opened, point, allow_other="allow-other" in options) as mounted,
    ):
        print("mounted", flush=True)
        while not ended and not mounted.wait(0.05):
            pass
        try:
            mounted.unmount()
        finally:
            print("failure:", repr(mounted.failure), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
