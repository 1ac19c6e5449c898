"""The committed versions of one sealed file: its slots, its anchor, its key, and which versions still count."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from strongroom.crypto import BlockCipher, random_bytes
from strongroom.errors import (
    ConflictError,
    FormatError,
    LockedError,
    RollbackError,
    TamperedError,
    TruncatedError,
    UsageError,
)
from strongroom.sealed import layout, slots
from strongroom.sealed.anchor import NO_FRESHNESS, Anchor, Grouped, NoFreshness, Root
from strongroom.sealed.content import Version
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, MAX_RETAINED, SLOTS, Commit, Header, NonceSource, Retained
from strongroom.sealed.pins import Pins
from strongroom.sealed.slots import Slots, version_of
from strongroom.storage import Storage

_logger = logging.getLogger("strongroom.sealed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next commit's slot will hold besides the version itself."""

    retained: tuple[Retained, ...]
    log: tuple[int, bytes]
    retain: bool
    target: int


class History:
    """The slots and the anchor of one open sealed file. Not for use from several threads at once.

    Rules:

    - The live versions are the newest, the one before it while a slot has it, the retained, and those that readers pin.
    - A commit is written on top of the newest only, and only after the anchor has answered for that (or may wait).
    - Without Grouped, the log position that a commit takes in is one that the anchor holds already.

    Args:
        storage: stays the caller's.
        log: the caller looks for `wanted_log` in the log that lies beside the file.
    """

    def __init__(
        self,
        storage: Storage,
        key: bytes,
        anchor: Anchor | NoFreshness,
        pins: Pins,
        *,
        what: str,
        log: bool,
        reader: bool,
    ) -> None:
        self._storage = storage
        self._key = key
        self._anchor = anchor
        self._pins = pins
        self._what = what
        self._log = log
        self._reader = reader
        self._nonces = NonceSource()
        self._slots: Slots
        self.generation = 0  # of the key that is written with
        self._old_key = b""
        self._stale: set[int] = set()  # slots that are sealed under the old key
        self._clean_from: int | None = None  # the first version without a block of the old key
        self._pinned: int | None = None
        self.commit: Commit | None = None
        self.anchored: Root | None = None
        self.behind = 0  # commits that the anchor does not know
        self.notes: list[str] = []

    # Opening.

    def create(self, block_size: int, *, encrypted: bool) -> None:
        """Begin a new file; nothing is written yet. Raises RollbackError if the anchor remembers one."""
        if self._anchor is not NO_FRESHNESS and (latest := self._anchor.read()):
            raise RollbackError(
                f"{self._what}: is new, but the anchor holds {latest}",
                hint="what the anchor remembers was deleted, or the anchor belongs to something else",
            )
        file_id = random_bytes(layout.FILE_ID_SIZE)
        flags = 0 if encrypted else layout.AUTHENTICATED_ONLY
        header = Header(block_size, file_id, layout.commitment(self._key, file_id), flags)
        self._slots = Slots(header, layout.block_cipher(self._key, file_id))

    def load(
        self, *, pin: bool, at: Root | int | None = None, expected: bool = False, encrypted: bool | None = None
    ) -> Retained:
        """Read the slots, check them against the anchor, and take the newest version, or the one that `at` names.

        Args:
            pin: keep the version from being overwritten.
            expected: as `open_in` says.
            encrypted: what the file must be, if not None.

        Raises as `open_sealed`.
        """
        pinned = self._pinned
        try:
            found, commit, version, anchored = self._look(pin=pin, at=at, expected=expected, encrypted=encrypted)
            size, wanted = self._storage.size(), version.places * found.header.block_size
            if size < wanted:
                raise TruncatedError(f"{self._what}: {size} bytes, wanted at least {wanted}", hint=CUT_HINT)
            pinned = version.sequence if pin else None
        finally:
            self._pins.keep(pinned)
        self._pinned = pinned
        self._slots, self.commit, self.anchored, self.behind = found, commit, anchored, 0
        self.generation, self._old_key, self._clean_from = commit.generation, commit.old_key, None
        self._stale = {at for at in range(SLOTS) if commit.old_key and any(found.raw[at]) and not found.commits[at]}
        self.notes = found.notes
        for note in self.notes:
            _logger.warning("%s: %s", self._what, note)
        return version

    def _look(
        self, *, pin: bool, at: Root | int | None, expected: bool, encrypted: bool | None
    ) -> tuple[Slots, Commit, Retained, Root | None]:
        for _ in range(slots.TRIES):
            found, commit = slots.read_slots(self._storage, self._key, self._what, expected=expected)
            if encrypted is not None and encrypted != found.header.encrypted:
                kinds = "authenticated only", "encrypted"
                raise FormatError(f"{self._what}: is {kinds[found.header.encrypted]}, wanted {kinds[encrypted]}")
            version = self._find(found, commit, at)
            if pin:
                self._pins.pin(version.sequence)
                self._pins.keep(version.sequence, self._pinned)
                # The pin counts only if the slots name the version still; another's pin only if it is there still.
                if found.changed(self._storage) or self._find(found, commit, at) != version:
                    continue
            root = commit.root(found.header)
            try:
                anchored = slots.check_fresh(
                    root,
                    commit.previous,
                    self._anchor,
                    self._what,
                    since=commit.since,
                    log=self._log,
                    reader=self._reader,
                )
            except (RollbackError, ConflictError):
                # A writer may have committed since the slots were read. Whatever it wrote lies in them by now.
                if found.changed(self._storage):
                    continue
                raise
            return found, commit, version, anchored
        raise LockedError(f"{self._what}: changes faster than it can be read", hint="try again")

    def _find(self, found: Slots, commit: Commit, at: Root | int | None) -> Retained:
        newest = commit.as_retained(found.header)
        if at is None:
            return newest
        sequence = at if isinstance(at, int) else at.sequence
        version = found.known().get(sequence)
        before = found.before(commit)
        lives = {commit.sequence, *(root.sequence for root in commit.retained)}
        if before:
            lives.add(before.sequence)
        if version is None or (sequence not in lives and sequence not in self._pins.others()):
            kept = ", ".join(map(str, sorted(lives)))
            raise UsageError(f"{self._what}: version {sequence} is not kept, wanted one of {kept}")
        if not isinstance(at, int) and at.digest != version.digest:
            raise RollbackError(
                f"{self._what}: version {sequence} has another digest than {at}",
                hint="it belongs to another history of the file; restore it from a copy",
            )
        return version

    def moved(self) -> bool:
        """Whether somebody else has committed since; reads the slots only.

        Raises:
            RollbackError, TamperedError: what lies there is older, or another version of the same number.
        """
        if self.commit is None:
            return not slots.is_new(self._storage)
        if not self._slots.changed(self._storage):
            return False
        _, commit = slots.read_slots(self._storage, self._key, self._what, expected=True)
        if commit.sequence < self.commit.sequence:
            raise RollbackError(
                f"{self._what}: version {commit.sequence}, wanted at least {self.commit.sequence}", hint=CHANGED_HINT
            )
        if commit.sequence == self.commit.sequence and commit != self.commit:
            raise TamperedError(f"{self._what}: another version {commit.sequence}", hint=CHANGED_HINT)
        return commit.sequence != self.commit.sequence

    # What it is.

    @property
    def header(self) -> Header:
        return self._slots.header

    @property
    def root(self) -> Root | None:
        return self.commit.root(self.header) if self.commit else None

    @property
    def wanted_log(self) -> tuple[int, bytes] | None:
        if self.commit and self.anchored and self.anchored.log != (self.commit.lsn, self.commit.tag):
            return self.anchored.log
        return None

    def ciphers(self) -> dict[int, BlockCipher]:
        """The ciphers of blocks, by generation of the key."""
        found = {self.generation: self._slots.cipher}
        if self._old_key:
            found[(self.generation - 1) % layout.GENERATIONS] = BlockCipher(self._old_key)
        return found

    def live(self, *, after_commit: bool = False) -> dict[int, Retained]:
        """The versions that count, by sequence; or of them those that will still count after the next commit."""
        if self.commit is None:
            return {}
        known = self._slots.known()
        before = self._slots.before(self.commit)
        wanted = {self.commit.sequence, *(root.sequence for root in self.commit.retained), *self._pins.others()}
        if before and not after_commit:
            wanted.add(before.sequence)
        return {sequence: known[sequence] for sequence in sorted(wanted & known.keys())}

    def retains_newest(self) -> bool:
        """Whether the newest version is retained already."""
        commit = self.commit
        return bool(commit and any(r.sequence == commit.sequence and not r.pinned for r in commit.retained))

    def held(self) -> list[Version]:
        """The live versions but the newest."""
        newest = self.commit.sequence if self.commit else 0
        return [version_of(root) for sequence, root in self.live().items() if sequence != newest]

    # Committing.

    def plan(self, *, retain: bool = False, release: Iterable[int] = (), log: tuple[int, bytes] | None = None) -> Plan:
        """What the next slot has to say, before anything is written.

        Raises:
            UsageError: more than 16 versions would have to be kept.
        """
        released, pinned, target = set(release), self._pins.others(), self._slots.target()
        kept: dict[int, Retained] = {}
        if self.commit:
            for root in self.commit.retained:
                drop = root.pinned or root.sequence in released
                if not drop or root.sequence in pinned:
                    kept[root.sequence] = replace(root, pinned=drop)
            # A version that a reader holds must not lose its last slot.
            rest = {slot.sequence for i, slot in enumerate(self._slots.commits) if slot and i != target}
            if self._stale:
                rest = set()  # all of them are about to be overwritten
            for sequence, root in self._slots.known().items():
                if sequence in pinned and sequence not in rest and sequence not in kept:
                    kept[sequence] = replace(root, pinned=True)
        if len(kept) + retain > MAX_RETAINED:
            raise UsageError(
                f"{self._what}: {len(kept) + retain} versions to keep, wanted at most {MAX_RETAINED}",
                hint="release one that is retained, or close a reader of an older version",
            )
        lsn, tag = log or ((self.commit.lsn, self.commit.tag) if self.commit else (0, b""))
        retained = tuple(kept[sequence] for sequence in sorted(kept))
        return Plan(retained, (lsn, tag if lsn else b""), retain, target)

    def write(self, version: Version, plan: Plan, *, twice: bool = False) -> None:
        """Write and sync the slot of `version`, whose blocks are on the disk: the commit."""
        commit = Commit(
            self.commit.sequence + 1 if self.commit else 1,
            version.length,
            version.places,
            version.pointer,
            replace(self.root, epoch=0, lsn=0, tag=b"") if self.root else None,
            self.anchored.epoch if self.anchored else self.commit.epoch if self.commit else 0,
            *plan.log,
            plan.retained,
            self._since(),
            self.generation,
            b"" if self.may_drop_key() else self._old_key,
        )
        if plan.retain:
            commit = replace(commit, retained=(*plan.retained, commit.as_retained(self.header)))
        if self.commit is None and not twice:
            self._slots.reserve(self._storage)
        self._slots.write(self._storage, commit, self._nonces.next(), at=plan.target)
        if twice:
            self._slots.write(self._storage, commit, self._nonces.next())
        self._storage.sync()
        self.commit = commit
        self._old_key = commit.old_key
        self._stale.discard(plan.target)
        self.behind = 0 if self._anchor is NO_FRESHNESS else self.behind + 1

    def pin_newest(self) -> None:
        """Pin the commit just made in place of what was pinned: others may commit before this opening looks again."""
        if self.commit:
            self._pins.pin(self.commit.sequence)
            self._pins.keep(self.commit.sequence)
            self._pinned = self.commit.sequence

    def _since(self) -> tuple[bytes, ...]:
        if not isinstance(self._anchor, Grouped) or self.root is None or self.commit is None:
            return ()
        return (*(self.commit.since if self.behind else ()), self.root.digest)

    def copy_slot(self) -> None:
        """A second copy of the newest slot, so that one damaged sector does not cost the last commit."""
        if self.commit and self._slots.copies(self.commit) < 2:
            victim = self._slots.commits[self._slots.target()]
            kept = {root.sequence for root in self.commit.retained}
            alone = victim is not None and victim.sequence not in kept and self._slots.copies(victim) == 1
            if victim and alone and victim.sequence in self._pins.others():
                return  # a reader holds it, and no other slot names it
            self._slots.write(self._storage, self.commit, self._nonces.next())
            self._storage.sync()

    # The anchor.

    def settle(self, *, wait: bool = False) -> None:
        """Advance the anchor to the newest commit; with `wait`, only if a grouped one may not stay behind.

        Raises:
            ConflictError: it holds something else: another writer was faster.
        """
        if self._anchor is NO_FRESHNESS or not self.behind:
            return
        root = self.root
        assert root is not None  # noqa: S101  # it is behind a commit
        grouped = isinstance(self._anchor, Grouped)
        if wait and self.anchored and isinstance(self._anchor, Grouped) and self._anchor.may_wait(self.behind):
            return
        try:
            self._anchor.advance(self.anchored, root)
        except ConflictError:
            latest = self._anchor.read() if grouped else None
            # A reader may have taken the anchor to one of the roots since.
            if latest is None or not slots.follows(root, None, self.commit.since if self.commit else (), latest):
                raise
            self._anchor.advance(latest, root)
        self.anchored, self.behind = root, 0

    def note_log(self, lsn: int, tag: bytes) -> None:
        """Tell the anchor how far the log reaches beyond the newest commit; a grouped one learns it from commits.

        Raises ConflictError as `settle`.
        """
        if self._anchor is NO_FRESHNESS or isinstance(self._anchor, Grouped):
            return
        self.settle()
        if self.anchored and self.anchored.log != (lsn, tag):
            new = replace(self.anchored, lsn=lsn, tag=tag)
            self._anchor.advance(self.anchored, new)
            self.anchored = new

    # The key.

    def rekey(self, key: bytes) -> None:
        """The next commit is sealed under `key`.

        Raises:
            UsageError: there is no commit yet, it is the same key, or an earlier change of the key is not finished.
        """
        if self.commit is None or self.commit.old_key or self.generation != self.commit.generation:
            raise UsageError(f"{self._what}: its key cannot be changed before the last change of it is committed")
        if self.header.check_key(key):
            raise UsageError(f"{self._what}: is sealed under that key already")
        self._old_key = layout.block_key(self._key, self.header.file_id)
        self._clean_from = None
        self._key = key
        self.generation = (self.generation + 1) % layout.GENERATIONS
        self._slots.header = replace(self.header, commitment=layout.commitment(key, self.header.file_id))
        self._slots.cipher = layout.block_cipher(key, self.header.file_id)
        self._stale = {at for at in range(SLOTS) if any(self._slots.raw[at])}

    @property
    def rekeying(self) -> bool:
        """Whether blocks of an old key may be left."""
        return bool(self._old_key)

    def clean(self) -> None:
        """Note that the version committed next reaches no block of the old key."""
        if self._old_key and self._clean_from is None and self.commit:
            self._clean_from = self.commit.sequence + 1

    def may_drop_key(self) -> bool:
        """Whether no version that will be live after the next commit reaches a block of the old key."""
        if self.commit is None or not self._old_key or self._clean_from is None:
            return False
        return min(self.live(after_commit=True)) >= self._clean_from

    @property
    def stale(self) -> bool:
        """Whether slots are left that the old key opens."""
        return bool(self._stale)

    def overwrite_stale(self) -> bool:
        """Put copies of the newest commit into the slots of the old key, so that it opens nothing any more.

        Returns:
            False if a reader has pinned a version that another commit has to list first.
        """
        if not self._stale or self.commit is None:
            return True
        listed = {self.commit.sequence, *(root.sequence for root in self.commit.retained)}
        if self._pins.others() & self._slots.known().keys() - listed:
            return False
        for at in sorted(self._stale):
            self._slots.write(self._storage, self.commit, self._nonces.next(), at=at)
        self._storage.sync()
        self._stale.clear()
        return True
