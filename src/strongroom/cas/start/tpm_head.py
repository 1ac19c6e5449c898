"""The log's head in this machine's TPM, for the start mode `tpm`.

- An index of the TPM's non-volatile memory holds size (u64, big-endian) and root. Its password follows from the CAS's
  root secret and what was drawn when the index was made, so that nobody else writes it, nor a CAS that its host made
  anew under the same secret; its Name is part of the start mode, so that no other is taken for it.
- It is written at most once a second, when the log has grown, and when the CAS ends; never before the CAS is ready. So
  a database put back to a state of the last second before a crash is not seen: that is the window of this mode.
- Before it is written it is read, each second: a CAS whose log does not extend what another one has told the TPM since
  closes, and makes it forget nothing.
- Whoever emulates the TPM, as a virtual machine's host does, puts it back with the disk. The mode is for a machine
  whose TPM is a chip.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from strongroom.attest.tee import tpm_nv
from strongroom.attest.tee.tpm import Tpm
from strongroom.cas.log.head import NO_ENTRIES, Head
from strongroom.cas.log.tree import HASH_SIZE
from strongroom.cas.start.mode import Restart
from strongroom.cas.threads import Repeating
from strongroom.crypto import derive, random_bytes
from strongroom.errors import RollbackError, StrongroomError, WrongKeyError

SECONDS = 1.0
DEFAULT_INDEX = 0x01805243
_SIZE = 8 + HASH_SIZE
_log = logging.getLogger("strongroom.cas")


def _password(root_secret: bytes, made: str) -> bytes:
    return derive(root_secret, f"strongroom/cas/tpm-head/v1/{made}")


def keep_head(restart: Restart, root_secret: bytes, head: Head = NO_ENTRIES) -> Restart:
    """Make the index and have it remember that head; the start mode with its Name, and what was drawn for it.

    Raises:
        UsageError: there is an index of that number.
        EnclaveError, MissingDependencyError: the TPM cannot be used.
    """
    made = random_bytes(16).hex()
    password = _password(root_secret, made)
    with Tpm.open() as tpm:
        tpm_nv.define(tpm, restart.tpm_index, _SIZE, password)
        tpm_nv.write(tpm, restart.tpm_index, password, _encoded(head))
        name = tpm_nv.name(tpm, restart.tpm_index)
        assert name is not None  # noqa: S101  # it was written just now
    return replace(restart, tpm_name=name.hex(), tpm_id=made)


class TpmHead:
    """What the TPM remembers of one CAS's log, and the thread that has it remember more, while the mode is `tpm`.

    Args:
        restart: gives the start mode.
        head: gives the log's head, or None while it is not confirmed.
        hold_to: raises RollbackError, and closes the CAS, if its log does not extend a head that the TPM remembers.
    """

    def __init__(
        self,
        restart: Callable[[], Restart],
        root_secret: bytes,
        head: Callable[[], Head | None],
        *,
        hold_to: Callable[[Head], None],
    ) -> None:
        self._restart, self._root_secret, self._head = restart, root_secret, head
        self._hold_to = hold_to
        self._written: tuple[str, Head] | None = None  # under which identifier, and what
        self._failed = False
        self._thread: Repeating | None = None

    def read(self) -> Head:
        """The head that the TPM remembers.

        Raises:
            RollbackError: it remembers none: it was cleared, is another, or the index was made anew.
            EnclaveError: it cannot be used.
        """
        restart = self._restart()
        index = restart.tpm_index
        with Tpm.open() as tpm:
            name = tpm_nv.name(tpm, index)
            if name is None or name.hex() != restart.tpm_name:
                raise RollbackError(
                    f"tpm: index {index:#x} is {'missing' if name is None else 'another'}; the TPM was cleared, or it "
                    "is another machine's",
                    hint=_LOST,
                )
            try:
                raw = tpm_nv.read(tpm, index, _password(self._root_secret, restart.tpm_id), _SIZE)
            except WrongKeyError:
                raise RollbackError(f"tpm: index {index:#x} was made anew by somebody else", hint=_LOST) from None
        return Head(int.from_bytes(raw[:8], "big"), raw[8:])

    def write(self) -> None:
        """Have it remember the log's head, if that is another than it was told last. A failure is only told.

        A CAS whose log does not extend what the TPM remembers is closed, and the TPM remembers what it did.
        """
        try:
            restart = self._restart()
            head = self._head() if restart.mode == "tpm" else None
            if head is None:
                return
            # Another with the same secret may have written it: a copy that the host started when the log was shorter
            # is confirmed as this one is.
            self._hold_to(self.read())
            if (restart.tpm_id, head) == self._written:
                return
            with Tpm.open() as tpm:
                password = _password(self._root_secret, restart.tpm_id)
                tpm_nv.write(tpm, restart.tpm_index, password, _encoded(head))
        except StrongroomError as error:
            if not self._failed:
                _log.error("TPM: does not remember the log's head any more: %s", error.message)
            self._failed = True
        else:
            self._written, self._failed = (restart.tpm_id, head), False

    def start(self) -> None:
        self._thread = Repeating("TPM", self._step, first=SECONDS, retry=SECONDS)
        self._thread.start()

    def _step(self) -> float:
        self.write()
        return SECONDS

    def close(self) -> None:
        """End the thread, and write what is left."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()
            if not thread.alive:  # else the TPM hangs
                self.write()


_LOST = "its operators can confirm the log's head in its place, if it has some: `strongroom cas confirm`"


def _encoded(head: Head) -> bytes:
    return head.size.to_bytes(8, "big") + head.root
