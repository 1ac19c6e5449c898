"""The four superblock slots of a sealed file: finding the newest commit, and writing the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from strongroom.crypto import BlockCipher
from strongroom.errors import FormatError, RollbackError, TamperedError, TruncatedError, WrongKeyError
from strongroom.sealed import layout
from strongroom.sealed.anchor import NO_FRESHNESS, Anchor, NoFreshness, Root
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, SLOT_SIZE, SLOTS, SLOTS_SIZE, Commit, Header
from strongroom.storage import Storage


@dataclass(slots=True)
class Slots:
    """What the slots of one file hold: for each the commit, or None where there is no valid one."""

    header: Header
    cipher: BlockCipher
    commits: list[Commit | None] = field(default_factory=lambda: [None] * SLOTS)

    @property
    def newest(self) -> Commit | None:
        found = [commit for commit in self.commits if commit]
        return max(found, key=lambda commit: commit.sequence) if found else None

    def before(self, commit: Commit) -> Commit | None:
        """The commit that `commit` followed, if a slot still holds it."""
        for other in self.commits:
            if other and other.root(self.header) == commit.previous:
                return other
        return None

    def copies(self, commit: Commit) -> int:
        """How many slots hold `commit`."""
        return self.commits.count(commit)

    def write(self, storage: Storage, commit: Commit, nonce: bytes) -> None:
        """Put `commit` into an invalid slot, else into the one with the lowest number: never the only newest."""
        at = min(range(SLOTS), key=lambda i: slot.sequence if (slot := self.commits[i]) else 0)
        self.commits[at] = None
        storage.write_at(at * SLOT_SIZE, layout.seal_slot(self.cipher, self.header, commit, nonce))
        self.commits[at] = commit


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
    """
    raw = _read(storage)
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
    slots = Slots(header, layout.block_cipher(key, header.file_id))
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
    return slots, newest


def check_fresh(root: Root, previous: Root | None, anchor: Anchor | NoFreshness, what: str) -> None:
    """Compare with the anchor, and advance it if a commit reached the disk but not the anchor.

    Raises:
        RollbackError: `root` is neither what the anchor holds nor the one commit that followed it.
    """
    if anchor is NO_FRESHNESS:
        return
    latest = anchor.read()
    if root == latest:
        return
    if previous != latest or root.sequence != (latest.sequence if latest else 0) + 1:
        raise RollbackError(
            f"{what}: root {root}, wanted {latest or 'none, as the anchor is empty'}",
            hint="the data was rolled back or replaced; restore the latest version"
            if latest
            else "give the anchor of this data",
        )
    anchor.advance(latest, root)


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
