"""A program's standard output and error, sealed into a vault.

Rules:

- Which vault, and whether the host hears of it too, is measured: `BootConfig.log` and `BootConfig.quiet`.
- Each run has a directory of its own in the vault, by its number, with the files ``stdout`` and ``stderr``.
- Until the program has ended, whatever its exit status, they lie in the enclave's private memory; then they are sealed.
  What an enclave that is killed has said is lost.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import BinaryIO, Final

from strongroom.enclave.config import OUTPUTS_DIRECTORY
from strongroom.vault import Vault, put

STREAMS: Final = ("stdout", "stderr")
_PIECE: Final = 1 << 16


class Outputs:
    """Catches both streams, until `seal`.

    Attributes:
        stdout, stderr: what the program's process gets.
    """

    def __init__(self, *, quiet: bool, user: int | None) -> None:
        directory = Path(OUTPUTS_DIRECTORY)  # boot's own: the program does not see it
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._threads: list[threading.Thread] = []
        self._theirs: list[int] = []
        self._folder = ""
        for number, name in enumerate(STREAMS, 1):
            ours, theirs = os.pipe()
            if user is not None:
                os.fchown(theirs, user, user)
            kept = (directory / name).open("wb", buffering=0)
            arguments = (os.fdopen(ours, "rb", buffering=0), kept, None if quiet else number)
            thread = threading.Thread(target=_copy, args=arguments, name=f"log-{name}", daemon=True)
            self._threads.append(thread)
            self._theirs.append(theirs)
            thread.start()
        self.stdout, self.stderr = self._theirs

    def started(self) -> None:
        """The program has them: they end when it has ended with all that it started."""
        while self._theirs:
            os.close(self._theirs.pop())

    @property
    def size(self) -> int:
        """Bytes that they have said by now."""
        return sum((self._directory / name).stat().st_size for name in STREAMS)

    def seal(self, vault: Vault) -> list[str]:
        """Put what they said into a vault and commit; the paths there. What a full disk prevented can be done again."""
        self.started()
        for thread in self._threads:
            thread.join()
        runs = [int(name) for name in vault.listdir("") if name.isascii() and name.isdigit()]
        folder = self._folder = self._folder or f"{max(runs, default=0) + 1:06}"
        for name in STREAMS:
            put(self._directory / name, vault, f"{folder}/{name}")
        vault.commit()
        shutil.rmtree(self._directory, ignore_errors=True)
        return [f"{folder}/{name}" for name in STREAMS]


def _copy(stream: BinaryIO, kept: BinaryIO, shown: int | None) -> None:
    """Until its end; a host that no longer listens stops nothing."""
    with stream, kept:
        while piece := stream.read(_PIECE):
            kept.write(piece)
            while shown is not None and piece:
                try:
                    piece = piece[os.write(shown, piece) :]
                except OSError:
                    shown = None
