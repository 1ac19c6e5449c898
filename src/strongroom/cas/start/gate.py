"""What a CAS may serve: nothing but its own description until the log's head is confirmed, and nothing once it forked.

It awaits a confirmation, then it is ready; and it is shut once a head turns up, an operator's, the TPM's or a peer's,
that the log does not extend.

- The nonce of a start is in all that confirms it: what confirmed an earlier one is of no use. It follows from 32 random
  bytes and from the writing of the start mode, so that a vote is for one change, too.
- The start mode is what its row says at each moment, whichever instance wrote it. What else changes here, changes once
  the transaction is committed that says so; those whose answers wait for that commit see it before.
- `mode.py` says who confirms. A CAS that was created just now has nothing that could have been put back, and opens
  at once; so does `trust-disk`.
- A shut gate stays shut until the CAS is started anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from strongroom.cas.log.head import Head
from strongroom.cas.log.note import Checkpoint, Note, WitnessKey
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.mode import (
    RESERVED,
    TRUST_DISK,
    Restart,
    change,
    confirmation,
    read_restart,
    restart_stamp,
    write_restart,
)
from strongroom.cas.start.operators import Operators, operators_of
from strongroom.cas.state.store import Store
from strongroom.crypto import PublicKey, digest, random_bytes
from strongroom.errors import (
    NotReadyError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
)

START_SIZE = 32
_log = logging.getLogger("strongroom.cas")


class Gate:
    """One start of one CAS. Calls may come from several threads.

    Attributes:
        define: completes a start mode with what this machine has to make for it.
    """

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store, self._authority = store, authority
        self.define: Callable[[Restart], Restart] = lambda restart: restart
        self._nonce = random_bytes(START_SIZE)
        self._lock = threading.RLock()
        self._mode: tuple[object, Restart] = (None, TRUST_DISK)  # as read last, with the stamp of its row
        self._ready = self.restart.mode == "trust-disk"
        self._opening = False  # the transaction is not committed that says so
        self._shut: StrongroomError | None = None
        self._confirmed: dict[str, tuple[Head, bool]] = {}  # by which operators, which head, and whether it was named
        self._cosigned: set[str] = set()  # by which witnesses
        self._changing: tuple[bytes, Restart, set[str]] | None = None  # said to which nonce, what, and by whom
        self._made: tuple[Restart, Restart] | None = None  # a start mode, and that completed

    # What is served

    @property
    def ready(self) -> bool:
        return self._open and self._shut is None

    @property
    def _open(self) -> bool:
        return self._ready or (self._opening and self._store.in_group())

    @property
    def restart(self) -> Restart:
        """The start mode."""
        stamp = restart_stamp(self._store)
        if stamp != self._mode[0]:
            self._mode = stamp, read_restart(self._store) or TRUST_DISK
        return self._mode[1]

    @property
    def start(self) -> bytes:
        """The nonce."""
        return digest(self._nonce + repr(restart_stamp(self._store)).encode())

    @property
    def state(self) -> str:
        """``ready``, ``awaiting`` or ``forked``."""
        return "forked" if self._shut is not None else "ready" if self._open else "awaiting"

    @property
    def awaited(self) -> str:
        """Why it does not serve, for a person; empty if it does."""
        if self._shut is not None:
            return self._shut.message
        if self._open:
            return ""
        by_operators = f"{len(self._confirmed)} of {self.operators().needed} operators have confirmed the log's head"
        if self.restart.mode == "owner":
            return by_operators
        usual = "the TPM has not confirmed the log's head"
        if self.restart.mode == "witness":
            usual = f"{len(self._cosigned)} of {self.restart.quorum} witnesses have cosigned the log's head"
        return f"{usual}; in place of that, {by_operators}" if self._confirmed else usual

    def check(self) -> None:
        """Raise unless the CAS may serve.

        Raises:
            NotReadyError: nobody has confirmed its log's head yet.
            RollbackError: its log is not what was confirmed, or a peer's is another.
        """
        if self._shut is not None:
            raise type(self._shut)(self._shut.message, hint=self._shut.hint)
        if not self._open:
            raise NotReadyError(f"CAS: {self.awaited}", hint=_HINTS[self.restart.mode])

    def open(self, by: Sequence[str] = (), *, now: int | None = None) -> None:
        """The head is confirmed."""
        mode = self.restart.mode

        def opened(committed: bool) -> None:
            self._opening, self._ready = False, self._ready or committed
            if committed:
                _log.info("ready: the log's head is confirmed (%s)", mode)

        if self._open:
            return
        if now is None:
            opened(True)
            return
        with self._store.transaction():
            for operator in by:
                if operator in self._confirmed:
                    head, named = self._confirmed[operator]
                    detail = {"by": operator, "head": str(head), "how": "named" if named else "seen"}
                    self._store.record("confirmed", RESERVED, detail, now=now)
            self._store.record("started", RESERVED, {"restart": mode, "by": list(by)}, now=now)
            self._opening = True
            self._store.afterwards(opened)

    def shut(self, error: StrongroomError) -> None:
        """From now on everything is answered with this error."""
        with self._lock:
            if self._shut is None:
                self._shut = error
                _log.critical("CLOSED, nothing is served any more: %s", error.message)

    # Operators

    def operators(self) -> Operators:
        """Who they are now."""
        return operators_of(self._store)

    def _operator(self, key: PublicKey) -> Operators:
        found = self.operators()
        if key.fingerprint not in found.keys:
            raise UnauthorizedError(
                f"operator: {key.fingerprint} is none of this CAS's", hint="`strongroom cas status` shows who they are"
            )
        return found

    def confirm(self, key: PublicKey, signature: bytes, head: Head, *, now: int, named: bool = False) -> None:
        """Take an operator's word for the highest head that it has seen; in every mode, where the usual way fails.

        Args:
            named: the operator's machine has not seen it: somebody named it. The log says so once the CAS is open.

        Raises:
            UnauthorizedError, VerificationError: it is no operator's, or not for this start.
            RollbackError: the log does not extend that head; from now on nothing is served.
        """
        operators = self._operator(key)
        key.verify(signature, confirmation(self._authority.cas_root, self.start, head, named=named))
        with self._lock:
            self.hold_to(head)
            self._confirmed[key.fingerprint] = head, named
            votes = sorted(self._confirmed.keys() & set(operators.keys))
            if len(votes) >= operators.needed:
                self.open(votes, now=now)

    def hold_to(self, head: Head) -> None:
        """Raises RollbackError, and serves nothing from now on, if the log does not extend a head that was seen."""
        try:
            self._store.check_head(head)
        except RollbackError as error:
            self.shut(error)
            raise

    def vote(self, key: PublicKey, signature: bytes, new: Restart) -> bool:
        """Take an operator's wish for another start mode; whether enough of them had it, so that it may be made.

        Raises:
            UnauthorizedError, VerificationError: it is no operator's, or not for this start.
        """
        operators, start = self._operator(key), self.start
        key.verify(signature, change(self._authority.cas_root, start, self.restart, new))
        with self._lock:
            if self._changing is None or self._changing[:2] != (start, new):
                self._changing = (start, new, set())
            self._changing[2].add(key.fingerprint)
            return len(self._agreed(new, operators)) >= operators.needed

    def _agreed(self, new: Restart, operators: Operators) -> list[str]:
        if self._changing is None or self._changing[:2] != (self.start, new):
            return []
        return sorted(self._changing[2].intersection(operators.keys))

    def make(self, new: Restart) -> None:
        """Make on this machine what a start mode needs. It may take a while, and is called from any thread."""
        if self._made is None or self._made[0] != new:
            self._made = new, self.define(new)

    def change(self, new: Restart, *, now: int) -> bool:
        """Write down a start mode that was voted for and made; whether it still is."""
        operators = self.operators()
        with self._lock:
            agreed, made = self._agreed(new, operators), self._made
            if len(agreed) < operators.needed or made is None or made[0] != new:
                return False

            def changed(committed: bool) -> None:
                if committed:
                    self._made = None
                    self._authority.mark()

            with self._store.transaction():
                write_restart(self._store, made[1], by=agreed, now=now)
                self._store.afterwards(changed)
            return True

    # Witnesses

    @property
    def extension(self) -> tuple[str, ...]:
        """The lines that the head's checkpoint has besides, while witnesses are waited for."""
        if self._open or self.restart.mode != "witness":
            return ()
        return (f"{START_LINE}{self.start.hex()}",)

    def cosigned(self, note: Note, by: Sequence[WitnessKey], *, now: int) -> None:
        """Count cosignatures of a head that the CAS has signed and still extends, verified by the caller."""
        if self._open or self.restart.mode != "witness":
            return
        if Checkpoint.parse(note.text).extension != self.extension:
            return  # of an earlier start
        with self._lock:
            self._cosigned.update(str(one) for one in by if str(one) in self.restart.witnesses)
            if len(self._cosigned) >= self.restart.quorum:
                names = sorted(WitnessKey.parse(vkey).name for vkey in self._cosigned)
                self.open(names, now=now)


START_LINE = "strongroom-start "
"""What the extension line of a checkpoint begins with that holds the nonce of a start, in hexadecimal digits."""

_HINTS = {
    "owner": "its operators confirm it: `strongroom cas confirm`",
    "witness": "its witnesses cosign it: `strongroom cas witness --every 60` keeps doing so",
    "tpm": "the CAS's own messages say why; its operators can confirm it: `strongroom cas confirm`",
    "trust-disk": "",
}
