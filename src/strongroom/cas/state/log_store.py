"""The audit log in the CAS's database: entries, the nodes of their tree, and the sealed head.

- An append writes the entry, the nodes that it completes, and the head. It reads nothing: what somebody changed on the
  disk gets into no new entry.
- The head (size, peaks and the sum of `rows.Rows`) is a box under the CAS's key. All else is checked against it: every
  node that is read is traced to a peak, so that no answer stands on a node that somebody changed on the disk.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from strongroom.cas.files import RESTORE
from strongroom.cas.log.entry import SALT_SIZE, LogEntry
from strongroom.cas.log.head import Head
from strongroom.cas.log.tree import HASH_SIZE, Frontier, Node, consistency_proof, inclusion_proof, node_hash
from strongroom.cas.state.database import APPEND, Database, Table, check_text
from strongroom.crypto import BlockCipher, open_box, random_bytes, seal_box
from strongroom.errors import IntegrityError, RollbackError, UsageError

TABLES = (
    Table(
        "log",
        {
            "number": "INTEGER",
            "time": "INTEGER",
            "event": "TEXT",
            "policy": "TEXT",
            "detail": "TEXT",
            "previous": "INTEGER",
            "salt": "BLOB",
        },
        ("number",),
    ),
    Table("nodes", {"level": "INTEGER", "place": "INTEGER", "hash": "BLOB"}, ("level", "place")),
    Table("head", {"id": "INTEGER", "box": "BLOB"}, ("id",)),
)
_HEAD_AAD = b'["head",1]'
_TOP_LEVEL = 63
_KNOWN_ROOTS = 4096


class Log:
    """The log of one database, under one key. The state in memory is that of the last `load` and the appends since."""

    def __init__(self, key: bytes) -> None:
        self._cipher = BlockCipher(key)
        self._frontier = Frontier()
        self._roots: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return self._frontier.size

    def load(self, db: Database) -> int:
        """Take in the head; the sum of the rows that it stands for.

        Raises:
            TamperedError: it was changed, or sealed under another key.
            IntegrityError: it is missing, or the log does not end where it says.
        """
        box = db.head()
        if box is None:
            raise IntegrityError("log: its head is missing", hint=RESTORE)
        size, peaks, total = json.loads(open_box(self._cipher, box, _HEAD_AAD))
        last = db.execute("SELECT max(number) FROM log")[0][0] or 0
        if last != size:
            raise IntegrityError(
                f"log: ends with entry {last}, wanted {size}; entries were removed or added", hint=RESTORE
            )
        self._frontier = Frontier(size, tuple(map(bytes.fromhex, peaks)))
        self._roots.clear()
        self._remember()
        return int(total, 16)

    def seal(self, db: Database, total: int) -> None:
        """Write the head, with the sum of the rows."""
        frontier = self._frontier
        head = [frontier.size, [peak.hex() for peak in frontier.peaks], f"{total:064x}"]
        box = seal_box(self._cipher, json.dumps(head, separators=(",", ":")).encode(), _HEAD_AAD)
        db.put_head(box)

    def append(
        self,
        db: Database,
        time: int,
        event: str,
        policy: str,
        detail: Mapping[str, object],
        previous: int,
    ) -> LogEntry:
        """Add an entry; `seal` follows in the same transaction.

        Args:
            previous: the number of the entry before of the same policy, from somewhere that the head stands for.
        """
        check_text(event, policy)
        text = json.dumps(dict(detail), sort_keys=True, separators=(",", ":"))
        entry = LogEntry(self.size + 1, time, event, policy, text, previous, random_bytes(SALT_SIZE))
        row = (entry.number, time, event, policy, text, previous, entry.salt)
        db.execute(APPEND, row)
        self._frontier, nodes = self._frontier.append(entry.leaf)
        # What lies beyond the head is nobody's: an interrupted transaction leaves nothing, so somebody wrote it.
        db.execute_many(
            "INSERT INTO nodes VALUES (?, ?, ?) ON CONFLICT (level, place) DO UPDATE SET hash = excluded.hash", nodes
        )
        self._remember()
        return entry

    def _remember(self) -> None:
        self._roots[self.size] = self._frontier.root()
        while len(self._roots) > _KNOWN_ROOTS:
            self._roots.popitem(last=False)

    def mark(self) -> Frontier:
        return self._frontier

    def undo(self, mark: Frontier) -> None:
        """Forget the appends since `mark`."""
        while self._roots and next(reversed(self._roots)) > mark.size:
            self._roots.popitem()
        self._frontier = mark
        self._remember()

    # What it answers. `db` is in a transaction that began with the state that is in memory.

    def head(self) -> Head:
        """Size and root of the log now."""
        return Head(self.size, self._roots[self.size])

    def check(self, db: Database, seen: Head) -> None:
        """Check that the log extends what somebody has seen.

        Raises:
            RollbackError: it is shorter, or does not begin so.
        """
        if seen.size > self.size:
            raise RollbackError(
                f"log: has {self.size} entries, and {seen.size} were seen: the CAS's database was rolled back",
                hint="the CAS must have its latest database back; if that is lost, its owners start it anew",
            )
        if self.root_at(db, seen.size) != seen.root:
            raise RollbackError(
                f"log: its first {seen.size} entries are not those that were seen: the CAS's database was forked",
                hint="two copies of the database were written to: run the CAS on one of them, and compare their logs",
            )

    def remembers(self, seen: Head) -> bool:
        """Whether it is known, without a look at the database, that the log extends what somebody has seen."""
        return seen.size <= self.size and self._roots.get(seen.size) == seen.root

    def root_at(self, db: Database, size: int) -> bytes:
        """The root of the first `size` entries."""
        root = self._roots.get(size)
        if root is None:
            root = Frontier.of(self._nodes(db), size).root()
        return root

    def page(self, db: Database, after: int, limit: int) -> list[LogEntry]:
        """At most `limit` entries in order, those after number `after`.

        Raises:
            IntegrityError: an entry is missing or was changed.
        """
        rows = db.execute("SELECT * FROM log WHERE number > ? ORDER BY number LIMIT ?", (after, limit))
        entries, node = [LogEntry(*row) for row in rows], self._nodes(db)
        wanted = max(0, min(limit, self.size - after))
        for number, entry in enumerate(entries, after + 1):
            if entry.number != number or number > self.size or entry.leaf != node(0, number - 1):
                raise IntegrityError(f"log entry {number}: was changed or removed", hint=RESTORE)
        if len(entries) != wanted:
            raise IntegrityError(f"log entry {after + len(entries) + 1}: was changed or removed", hint=RESTORE)
        return entries

    def inclusion(self, db: Database, numbers: Sequence[int], size: int) -> list[list[bytes]]:
        """For each entry the proof that it is among the first `size`. Raises UsageError if there is no such entry."""
        self._check_size(size)
        if any(not 1 <= number <= size for number in numbers):
            raise UsageError(f"number: wanted one of the first {size} entries")
        node = self._nodes(db)
        return [inclusion_proof(node, number - 1, size) for number in numbers]

    def consistency(self, db: Database, old: int, new: int) -> list[bytes]:
        """The proof that the first `new` entries begin with the first `old`. Raises UsageError for sizes beyond it."""
        self._check_size(new)
        if not 0 <= old <= new:
            raise UsageError(f"from: got {old}, wanted at most {new}")
        return consistency_proof(self._nodes(db), old, new)

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise UsageError(f"size: got {size}, and the log has {self.size} entries")

    def _nodes(self, db: Database) -> Node:
        known = dict(zip(self._frontier.peak_levels(), self._frontier.peaks, strict=True))

        def read(level: int, place: int) -> bytes:
            row = db.execute("SELECT hash FROM nodes WHERE level = ? AND place = ?", (level, place))
            return bytes(row[0][0]) if row else b""

        def node(level: int, place: int) -> bytes:
            path = []
            while (level, place) not in known and level < _TOP_LEVEL:
                path.append((level, place))
                level, place = level + 1, place >> 1
            for level, place in reversed(path):
                left, right = read(level, place & ~1), read(level, place | 1)
                whole = len(left) == len(right) == HASH_SIZE
                if not whole or node_hash(left, right) != known.get((level + 1, place >> 1)):
                    raise IntegrityError(f"log: node {place} of level {level} was changed or removed", hint=RESTORE)
                known[level, place & ~1], known[level, place | 1] = left, right
            return known[level, place]

        return node
