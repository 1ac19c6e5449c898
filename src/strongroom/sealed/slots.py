"""The four superblock slots of a sealed file: finding the newest commit, and writing the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from strongroom.crypto import BlockCipher
from strongroom.errors import (
    FormatError,
    IntegrityError,
    LockedError,
    RollbackError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from strongroom.sealed import layout
from strongroom.sealed.anchor import NO_FRESHNESS, Anchor, NoFreshness, Root
from strongroom.sealed.content import Version
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, SLOT_SIZE, SLOTS, SLOTS_SIZE, Commit, Header, Retained
from strongroom.storage import Storage

TRIES: Final = 1000


@dataclass(slots=True)
class Slots:
    """What the slots of one file hold: for each the commit, or None where there is no valid one.

    `raw` is what was read or written last; `notes` says what was found damaged and passed over. `cipher` is that of
    the slots and of the blocks of the newest generation.
    """

    header: Header
    cipher: BlockCipher
    commits: list[Commit | None] = field(default_factory=lambda: [None] * SLOTS)
    raw: list[bytes] = field(default_factory=lambda: [bytes(SLOT_SIZE)] * SLOTS)
    notes: list[str] = field(default_factory=list)

    @property
    def newest(self) -> Commit | None:
        found = [commit for commit in self.commits if commit]
        return max(found, key=lambda commit: commit.sequence) if found else None

    def before(self, commit: Commit) -> Commit | None:
        """The commit that `commit` followed, if a slot still holds it."""
        for other in self.commits:
            if other and commit.previous and other.root(self.header).version == commit.previous.version:
                return other
        return None

    def known(self) -> dict[int, Retained]:
        """Every version that the slots can still open, by sequence."""
        newest = self.newest
        known = {root.sequence: root for root in newest.retained} if newest else {}
        return known | {commit.sequence: commit.as_retained(self.header) for commit in self.commits if commit}

    def copies(self, commit: Commit) -> int:
        """How many slots hold `commit`."""
        return self.commits.count(commit)

    def target(self) -> int:
        """The slot that the next commit goes into: an invalid one, else that with the lowest number."""
        return min(range(SLOTS), key=lambda i: slot.sequence if (slot := self.commits[i]) else 0)

    def write(self, storage: Storage, commit: Commit, nonce: bytes, *, at: int | None = None) -> None:
        """Put `commit` into slot `at`, or into `target()`: never into the only one with the newest."""
        at = self.target() if at is None else at
        sealed = layout.seal_slot(self.cipher, self.header, commit, nonce)
        self.commits[at] = None
        storage.write_at(at * SLOT_SIZE, sealed)
        self.commits[at] = commit
        self.raw[at] = sealed

    def reserve(self, storage: Storage) -> None:
        """Get room for all of them in a new file, so that a disk that is full later takes a commit in old places."""
        storage.write_at(0, bytes(SLOTS * SLOT_SIZE))

    def changed(self, storage: Storage) -> bool:
        """Whether the slots on the storage are others than those read or written here last."""
        return _read(storage) != self.raw


def version_of(root: Commit | Retained) -> Version:
    """The version of the block tree that a slot names."""
    return Version(root.pointer, root.length, root.places)


def is_new(storage: Storage) -> bool:
    """Whether nothing was ever committed here: the file is empty, or a crash came before its first commit."""
    slots = _read(storage)
    return not any(any(slot) for slot in slots)


def read_slots(storage: Storage, key: bytes, what: str, *, expected: bool = False) -> tuple[Slots, Commit]:
    """The slots of an existing file, and its newest commit.

    1. Something looks like a slot of this version.   else FormatError; TruncatedError if it is `expected` and too short
    2. The key is the one committed to.               else WrongKeyError
    3. A slot authenticates.                          else TamperedError, TruncatedError
    4. All that do belong to one file and history.    else TamperedError
    5. The file is as long as the newest says.        else TruncatedError

    Where a writer commits meanwhile, what fails is tried again with the slots that it wrote.

    Raises:
        LockedError: it never stops.
    """
    for _ in range(TRIES):
        raw = _read(storage)
        try:
            return _open(raw, storage, key, what, expected=expected)
        except IntegrityError:
            if _read(storage) == raw:
                raise
    raise LockedError(f"{what}: changes faster than it can be read", hint="try again")


def _open(raw: list[bytes], storage: Storage, key: bytes, what: str, *, expected: bool) -> tuple[Slots, Commit]:
    headers = _headers(raw, what, expected=expected)  # 1
    if not any(header.check_key(key) for header in headers if header):  # 2
        raise WrongKeyError(f"{what}: sealed under another key", hint="name the key file that it was sealed with")
    opened: list[tuple[int, Header, Commit]] = []
    for at, header in enumerate(headers):  # 3
        if header and header.check_key(key):
            try:
                opened.append((at, header, layout.open_slot(layout.block_cipher(key, header.file_id), raw[at])))
            except TamperedError:
                continue  # a torn write, or an attack: the newest slot that is left and the anchor decide
    size = storage.size()
    if not opened and size < SLOTS_SIZE:
        raise TruncatedError(f"{what}: {size} bytes, wanted at least {SLOTS_SIZE}", hint=CUT_HINT)
    if not opened:
        raise TamperedError(f"{what}: none of its {SLOTS} slots authenticates", hint=CHANGED_HINT)
    header = opened[0][1]
    slots = Slots(header, layout.block_cipher(key, header.file_id), raw=raw)
    for at, other, commit in opened:  # 4
        if other != header:
            raise TamperedError(f"{what}: its slots belong to different files", hint=CHANGED_HINT)
        twin = next((c for c in slots.commits if c and c.sequence == commit.sequence), commit)
        if twin != commit:
            raise TamperedError(
                f"{what}: two different commits have sequence {commit.sequence}",
                hint="two histories were mixed in it; restore it from a copy",
            )
        slots.commits[at] = commit
    newest = slots.newest
    assert newest is not None  # noqa: S101  # `opened` is not empty
    wanted = newest.places * header.block_size
    if size < wanted:  # 5
        raise TruncatedError(f"{what}: {size} bytes, wanted at least {wanted}", hint=CUT_HINT)
    _note_damage(slots, headers, newest)
    return slots, newest


def _note_damage(slots: Slots, headers: Sequence[Header | None], newest: Commit) -> None:
    for at, commit in enumerate(slots.commits):
        other = headers[at]
        if commit or not any(slots.raw[at]):
            continue
        if other and other.file_id == slots.header.file_id and other.commitment != slots.header.commitment:
            slots.notes.append(f"slot {at} is sealed under another key; version {newest.sequence} is served")
        else:
            copies = slots.copies(newest)
            slots.notes.append(
                f"slot {at} is damaged, by a crash or by a change of the file; version {newest.sequence} is served, "
                f"from {copies} slot{'s' * (copies != 1)}"
            )


def check_fresh(
    root: Root,
    previous: Root | None,
    anchor: Anchor | NoFreshness,
    what: str,
    *,
    since: Sequence[bytes] = (),
    log: bool = False,
    reader: bool = False,
) -> Root | None:
    """Compare the newest commit with the anchor, and advance the anchor if the commit reached the disk but not it.

    Accepted is, where A is what the anchor holds (docs/spec/sealed-file.md, Freshness):

    - (a) A's version itself; A's epoch is the commit's, or a later one if a restore of just this version was authorised
    - (b) the one version that follows A's, if it took in exactly the log that A knows
    - (c) a later one that lists A among its roots since the anchor, if it took in at least that log
    - (d) with (b) and (c), none whose epoch is not A's: after a restore the branch that was left is refused

    Args:
        root: of the newest commit.
        previous, since: of the same commit.
        log: the caller looks for the log position of the result in the log that lies beside the file.
        reader: an empty anchor is refused: it is more likely the wrong one than that of a first commit cut short.

    Returns:
        What the anchor holds now; None under NO_FRESHNESS. With `log` the caller MUST find its (lsn, tag) in the log,
        or raise RollbackError.

    Raises:
        RollbackError: none of these.
    """
    if anchor is NO_FRESHNESS:
        return None
    latest = anchor.read()
    if latest and root.version == latest.version and root.epoch <= latest.epoch and root.lsn <= latest.lsn:  # (a)
        if root.log == latest.log or (log and root.lsn < latest.lsn):
            return latest
        raise RollbackError(
            f"{what}: has log number {root.lsn}, wanted {latest.lsn} with the anchor's tag",
            hint="the log was cut or replaced; restore the latest version",
        )
    if latest is None and reader:
        raise RollbackError(
            f"{what}: root {root}, but the anchor is empty",
            hint="give the anchor of this data; if a crash came right after it was made, open it once for writing",
        )
    if not follows(root, previous, since, latest):  # (b), (c), (d)
        raise RollbackError(
            f"{what}: root {root}, wanted {latest or 'none, as the anchor is empty'}", hint=_hint(root, latest)
        )
    anchor.advance(latest, root)
    return root


def _hint(root: Root, latest: Root | None) -> str:
    if latest is None:
        return "give the anchor of this data"
    if root.comes_after(latest):
        return (
            "it is newer than its anchor: it was changed under another one, or replaced; where a CAS keeps this one, "
            "its owner has it follow with `strongroom cas entrust`"
        )
    return (
        "the data was rolled back or replaced; restore the latest version; if a backup was restored on purpose and a "
        "CAS keeps the anchor: `strongroom cas entrust ... --restore --reason TEXT`"
    )


def follows(root: Root, previous: Root | None, since: Sequence[bytes], latest: Root | None) -> bool:
    """Whether an anchor at `latest` may move to `root`, which the commit with `previous` and `since` has."""
    if latest is None:
        return root.sequence == 1 and previous is None and root.epoch == 0 and root.lsn == 0
    if root.epoch != latest.epoch:
        return False
    steps = root.sequence - latest.sequence
    follows = steps == 1 and previous is not None and previous.version == latest.version
    if follows and root.log == latest.log:  # (b)
        return True
    listed = 1 <= steps <= len(since) and since[-steps] == latest.digest
    return listed and (root.log == latest.log or root.lsn > latest.lsn)  # (c)


def _read(storage: Storage) -> list[bytes]:
    buffer = bytearray(SLOTS_SIZE)
    count = storage.read_into(0, buffer)
    return [bytes(buffer[i : min(i + SLOT_SIZE, count)]) for i in range(0, SLOTS_SIZE, SLOT_SIZE)]


def _headers(raw: list[bytes], what: str, *, expected: bool) -> list[Header | None]:
    headers: list[Header | None] = []
    problem: FormatError | None = None
    for slot in raw:
        try:
            headers.append(layout.parse_header(slot))
        except FormatError as error:
            headers.append(None)
            problem = error
    if not any(headers):
        if problem:
            raise FormatError(f"{what}: {problem.message}", hint=problem.hint)
        size = sum(map(len, raw))
        if size < SLOTS_SIZE and (expected or raw[0].startswith(layout.MAGIC)):
            raise TruncatedError(f"{what}: {size} bytes, wanted at least {SLOTS_SIZE}", hint=CUT_HINT)
        raise FormatError(f"{what}: not a sealed file", hint="check the path; `strongroom seal` makes sealed files")
    return headers
