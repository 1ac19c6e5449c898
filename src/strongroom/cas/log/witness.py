"""A witness of a CAS's log: cosigns heads that extend the last one it cosigned, and remembers that one first.

As C2SP's tlog-witness asks: per log the latest head is kept; a head is cosigned only with a proof that it extends that
one; and the new one is on the disk before the cosignature is given out. So a witness that is killed at any moment, and
two processes on one state, never cosign two heads of which none extends the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from strongroom.cas.files import create_once, replace
from strongroom.cas.log.head import NO_ENTRIES, Head
from strongroom.cas.log.note import (
    MAX_NOTE,
    Checkpoint,
    Note,
    WitnessKey,
    check_witness_name,
    cosign,
    log_key_id,
    origin_of,
    verify_cas_checkpoint,
)
from strongroom.cas.log.tree import verify_consistency
from strongroom.crypto import PublicKey
from strongroom.crypto.notes import Ed25519Key
from strongroom.errors import ConflictError, FormatError, IntegrityError, RollbackError, VerificationError
from strongroom.storage import OPEN_BYTE, LocalDirectory

_KEY, _LOCK, _KNOWN = "witness.key", "lock", "known"


class Witness:
    """One witness, with its key and what it has cosigned in a directory of mode 0700.

    Args:
        directory: made, with a new key, if it does not exist.
        name: for a new key; later it may be left out.

    Raises:
        FormatError: the state is something else, or the name is no key's name.
        ConflictError: the state is another name's.
    """

    def __init__(self, directory: Path, *, name: str | None = None) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        path = directory / _KEY
        if not path.exists():
            if name is None:
                raise FormatError(f"{path}: does not exist", hint="give the new witness a name: --name")
            create_once(path, f"{check_witness_name(name)}\n".encode() + Ed25519Key.generate().pem())
        first, _, pem = path.read_bytes().partition(b"\n")
        self._key = Ed25519Key.from_pem(pem)
        self.key = WitnessKey(check_witness_name(first.decode("utf-8", "replace")), self._key.public)
        if name not in (None, self.key.name):
            raise ConflictError(
                f"witness: {directory} is the state of {self.key.name}, and {name} was asked for",
                hint="a witness has one name and one state; choose another directory for another",
            )

    def last(self, cas_root: str) -> Head:
        """The last head of that CAS's log that this witness has cosigned, `NO_ENTRIES` before the first.

        Raises:
            IntegrityError: the file that remembers it is not one that this witness wrote.
        """
        path = self._state(cas_root)
        try:
            with path.open("rb") as file:
                text = file.read(MAX_NOTE + 1).decode("utf-8", "replace")
        except FileNotFoundError:
            if path.name not in self._known():
                return NO_ENTRIES
            text = ""
        damaged = IntegrityError(
            f"{path}: is missing, or is not what this witness cosigned last",
            hint="restore the latest copy; a witness that has forgotten must not go on under its old key",
        )
        try:
            note = Note.parse(text)
            checkpoint = Checkpoint.parse(note.text)
            if self.key.verify(note) is None or checkpoint.origin != origin_of(cas_root):
                raise damaged
        except (FormatError, VerificationError):
            raise damaged from None
        return Head(checkpoint.size, checkpoint.root)

    def cosign(
        self, note: Note, cas_root: str, log_key: PublicKey, *, last: Head, proof: Sequence[bytes], now: int
    ) -> Note:
        """Check that a head extends `last`, remember it, and cosign it.

        Args:
            note: the CAS's signed head.
            log_key: the CAS's root key, from anywhere.
            last: what the proof starts from: what `last` gave.
            proof: of consistency, from there to the head.
            now: seconds since 1970.

        Returns:
            the note with the CAS's signature and this witness's.

        Raises:
            VerificationError: it is not signed by that CAS.
            ConflictError: another process has cosigned meanwhile; ask for a proof from there.
            RollbackError: the head does not extend the last one.
        """
        checkpoint = verify_cas_checkpoint(note, cas_root, log_key)
        with self._locked():
            if self.last(cas_root) != last:
                raise ConflictError("witness: has cosigned another head meanwhile", hint="ask again")
            if checkpoint.size < last.size:
                raise RollbackError(
                    f"log: has {checkpoint.size} entries, and {last.size} were cosigned: it was rolled back",
                    hint="keep both heads: they prove it",
                )
            verify_consistency(last.size, last.root, checkpoint.size, checkpoint.root, proof)
            signed = Note(note.text, tuple(note.by(checkpoint.origin, log_key_id(log_key))))
            signed = signed.with_signatures([cosign(note.text, self.key.name, self._key, now=now)])
            replace(self._state(cas_root), str(signed).encode())
            LocalDirectory(self._directory).sync()
            known = self._known()
            if self._state(cas_root).name not in known:
                replace(
                    self._directory / _KNOWN, "".join(f"{n}\n" for n in (*known, self._state(cas_root).name)).encode()
                )
                LocalDirectory(self._directory).sync()
        return signed

    def _known(self) -> list[str]:
        """Of which CAS there is a note: one that is missing was lost."""
        try:
            return (self._directory / _KNOWN).read_text("ascii", "replace").splitlines()
        except FileNotFoundError:
            return []

    def _state(self, cas_root: str) -> Path:
        return self._directory / f"{origin_of(cas_root).rpartition('/')[2]}.note"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for a process that is cosigning with this state now; where there are no such locks, LockedError."""
        directory = LocalDirectory(self._directory)
        locks = directory.locks(_LOCK)
        if locks is None:
            os.close(os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600))
        lock = locks or directory.open(_LOCK, "r+")
        try:
            if locks:
                locks.acquire(OPEN_BYTE, exclusive=True, wait=True)
            yield
        finally:
            lock.close()
