"""What a server revealed, in a file that is only ever added to.

A record is one line of JSON. Its last two fields tie it to the one before: ``previous`` is that one's ``digest``, and
``digest`` is the SHA-256 of the label below and all of the line that stands before that field. So:

- What is changed, put in or taken out between two records breaks the chain, and is found by `verify`.
- A record is on the disk before the share leaves that it tells of. A crash can cut the last line, or leave holes in it,
  which read as zeros; whoever goes on takes the rest of it off and says so in a record of its own.
- There is no key: whoever can write the file can write another one. That is found by `compare`, since the other server
  has its own, and by whoever kept a digest. So is a log whose end was taken off, an epoch's end being a record.

The format is in `docs/spec/mpc-clients.md`.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from strongroom.crypto import digest
from strongroom.errors import FormatError, TamperedError, TruncatedError, UsageError, printable
from strongroom.mpc.policy import Reveal
from strongroom.storage import FileStorage, LocalDirectory, Storage

VERSION = 1
_LABEL = b"strongroom mpc audit\0"
_NONE = "0" * 64
_TAIL = len(f', "digest": "{_NONE}"}}')
_MOST_LINE = 1 << 18  # bytes
_MOST = 1 << 30
Clock = Callable[[], dt.datetime]
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One verified line.

    Attributes:
        number: its line, from 1.
        kind: `begin` or `end` of an epoch, `reveal`, `refused`, or `mended`: what a crash had cut was taken off.
        fields: all that it says.
    """

    number: int
    kind: str
    fields: Fields
    digest: str

    @property
    def epoch(self) -> str:
        return str(self.fields.get("epoch", ""))

    @property
    def what(self) -> tuple[Any, ...]:
        """Of a reveal, what both servers say of it; paths differ between hosts, the file's digest does not."""
        names = ("number", "shape", "owners", "to", "line", "program")
        return tuple(json.dumps(self.fields.get(name)) for name in names)


@dataclass(frozen=True)
class Log:
    """A verified log.

    Attributes:
        cut: bytes of a last line that a crash cut off.
        size: bytes before them.
    """

    records: tuple[Record, ...]
    cut: int
    size: int

    @property
    def head(self) -> str:
        """The last record's digest, which stands for the whole log."""
        return self.records[-1].digest if self.records else _NONE

    def epochs(self) -> dict[str, list[Record]]:
        """Records by epoch, in order."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            if record.epoch:
                found.setdefault(record.epoch, []).append(record)
        return found


def verify(data: bytes, what: str = "audit") -> Log:
    """The records of a log, whose chain holds.

    Raises:
        FormatError: it is no log, or of another version.
        TamperedError: the chain is broken: a record was changed, put in or taken out.
    """
    records: list[Record] = []
    start, previous = 0, _NONE
    while (end := data.find(b"\n", start)) >= 0:
        if end + 1 == len(data) and b"\0" in data[start:end]:
            break  # sectors of the last record that never came to the disk
        record = _parse(data[start:end], len(records) + 1, previous, what)
        records.append(record)
        start, previous = end + 1, record.digest
    cut = len(data) - start
    if cut > _MOST_LINE or (cut and not records and not b'{"version": '.startswith(data[start : start + 12])):
        raise FormatError(f"{what}: is no audit log")
    return Log(tuple(records), cut, start)


def read(path: Path) -> Log:
    """The log of a file. Raises as `verify`, and OSError."""
    with closing(FileStorage(path, "r", shared=True)) as storage:
        return verify(_all(storage, str(path)), str(path))


class AuditLog:
    """A server's log, open to add to. Use `AuditLog.open`.

    Raises:
        LockedError: another process has the file open.
        FormatError, TamperedError: the file is no log whose chain holds; nothing is added to it.
    """

    def __init__(self, storage: Storage, *, what: str = "audit", now: Clock | None = None) -> None:
        self._storage, self._now = storage, now or _utc
        self._process = os.getpid()
        try:
            log = verify(_all(storage, what), what)
            self._size, self._previous, self._count = log.size, log.head, len(log.records)
            if log.cut:
                storage.resize(log.size)
                self.add("mended", {"cut": log.cut})
        except BaseException:
            storage.close()
            raise

    @classmethod
    def open(cls, path: Path, *, now: Clock | None = None) -> Self:
        """The log at `path`, which is made if there is none, readable by its owner alone.

        Raises UsageError if it cannot be opened or made.
        """
        try:
            try:
                storage = FileStorage(path, "r+")
            except FileNotFoundError:
                storage = FileStorage(path, "x")
                LocalDirectory(path.absolute().parent).sync()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = None if path.absolute().parent.is_dir() else f"make the directory: mkdir -p {path.absolute().parent}"
            raise UsageError(f"audit: {path}: {reason}", hint=hint) from None
        return cls(storage, what=str(path), now=now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, kind: str, fields: Fields) -> None:
        """Add a record; it is on the disk when this returns. Raises OSError if it cannot be, UsageError in a fork."""
        if os.getpid() != self._process:
            raise UsageError("audit: the log is the parent process's", hint="no fork: one program, one writer")
        stamp = self._now().astimezone(dt.UTC).isoformat(timespec="milliseconds")
        whole = {"version": VERSION, "kind": kind, "time": stamp, **fields, "previous": self._previous}
        body = json.dumps(whole, ensure_ascii=True)[:-1].encode()
        own = _digest(body)
        line = body + f', "digest": "{own}"}}\n'.encode()
        self._storage.write_at(self._size, line)
        self._storage.sync()
        self._size += len(line)
        self._previous, self._count = own, self._count + 1

    def reveal(self, kind: str, reveal: Reveal, fields: Fields) -> None:
        """Add what is about to be revealed, or was refused."""
        what = {
            "shape": list(reveal.shape),
            "owners": sorted(reveal.owners),
            "to": list(reveal.to),
            "file": reveal.file,
            "line": reveal.line,
            "program": reveal.program,
        }
        self.add(kind, {**fields, **what})

    def close(self) -> None:
        """Let others open it. Nothing is lost without."""
        self._storage.close()


def compare(left: Log, right: Log) -> list[str]:
    """Where the logs of two servers contradict each other, one line each; nothing if they agree.

    What one server allowed and the other refused was not revealed, so both must have ended there, with an error. Of
    such a last reveal two logs cannot tell whether the one that says so took the other's share and gave none.
    Only epochs that both began are compared in full; one that a single log has is a difference by itself.
    """
    parties = [_parties(log) for log in (left, right)]
    if parties[0] & parties[1]:
        return [f"both are of {' and '.join(sorted(parties[0] & parties[1]))}: wanted one of P0 and one of P1"]
    names = [next(iter(found), "first" if i == 0 else "second") for i, found in enumerate(parties)]
    ours, theirs = left.epochs(), right.epochs()
    found: list[str] = []
    for epoch in dict.fromkeys((*ours, *theirs)):
        short = f"epoch {epoch[:12]}"
        if epoch not in ours or epoch not in theirs:
            found.append(f"{short}: only {names[0] if epoch in ours else names[1]} has it")
        else:
            found += (f"{short}: {each}" for each in _differences(ours[epoch], theirs[epoch], names))
    return found


def _differences(left: list[Record], right: list[Record], names: Sequence[str]) -> Iterator[str]:
    for name in ("settings", "identities", "program"):
        values = [
            next((record.fields.get(name) for record in side if record.kind == "begin"), None) for side in (left, right)
        ]
        if values[0] != values[1]:
            yield f"{name}: {names[0]} has {_plain(values[0])}, {names[1]} {_plain(values[1])}"
    sides = [
        {str(record.fields.get("transcript")): record for record in side if record.kind == "reveal"}
        for side in (left, right)
    ]
    refused = [
        {str(record.fields.get("transcript")): record for record in side if record.kind == "refused"}
        for side in (left, right)
    ]
    for transcript in dict.fromkeys((*sides[0], *sides[1])):
        one, other = (side.get(transcript) for side in sides)
        if one is not None and other is not None:
            if one.what != other.what:
                yield f"{_named(one)}: {names[0]} and {names[1]} say other things of it"
            continue
        here = one or other
        assert here is not None  # noqa: S101  # it is of one side
        has, lacks = names if one else names[::-1]
        refusal = refused[1 if one else 0].get(transcript)
        if refusal is None:
            yield f"{_named(here)}: only {has} has it"
        elif refusal.what != here.what:
            yield f"{_named(here)}: {has} says that it was revealed, {lacks} that something else was refused"
        elif not (_last(here, left if one else right) and _last(refusal, right if one else left)):
            yield f"{_named(here)}: {has} says that it was revealed, {lacks} that it was refused, which ends an epoch"
    counts = [
        [record.fields.get("reveals") for record in side if record.kind == "end" and record.fields.get("error") is None]
        for side in (left, right)
    ]
    if counts[0] != counts[1] and len(counts[0]) == len(counts[1]):
        yield f"end: {names[0]} counts {_plain(counts[0])} reveals, {names[1]} {_plain(counts[1])}"
    ends = [any(record.kind == "end" for record in side) for side in (left, right)]
    if not all(ends):
        which = " and ".join(name for name, has in zip(names, ends, strict=True) if not has)
        yield f"{which}: the end is missing: a crash, one that still runs, or a log that was cut"


def _last(record: Record, side: Sequence[Record]) -> bool:
    """Whether it did not come about, nothing was asked of that server after it, and its epoch ended with an error."""
    after = side[side.index(record) + 1 :]
    ends = [each.fields for each in after if each.kind == "end"]
    if not ends or any(each.kind not in ("begin", "end") for each in after):
        return False
    done, number = ends[0].get("reveals"), record.fields.get("number")
    counted = isinstance(done, int) and isinstance(number, int) and done >= number
    return not counted and all(end.get("error") is not None for end in ends)


def _named(record: Record) -> str:
    place = f"{Path(str(record.fields.get('file'))).name}:{record.fields.get('line')}"
    return printable(f"reveal {record.fields.get('number')} at {place}")


def _plain(value: object) -> str:
    return printable(json.dumps(value))[:200]


def _parties(log: Log) -> set[str]:
    return {str(record.fields.get("party")) for record in log.records if record.kind == "begin"}


def _parse(line: bytes, number: int, previous: str, what: str) -> Record:
    where = f"{what}: line {number}"
    try:
        fields = json.loads(line) if len(line) <= _MOST_LINE else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        kind = FormatError if number == 1 else TamperedError
        raise kind(f"{where}: is no record", hint=None if number == 1 else "the log was changed after it was written")
    version = fields.get("version")
    if version != VERSION or isinstance(version, bool):
        raise FormatError(f"{where}: version: got {printable(version)}, wanted {VERSION}")
    own = _digest(line[:-_TAIL])
    if not line.endswith(f', "digest": "{own}"}}'.encode()):
        raise TamperedError(f"{where}: was changed after it was written", hint="compare it with the other server's log")
    if fields.get("previous") != previous:
        raise TamperedError(
            f"{where}: does not follow the line before", hint="records were taken out or put in; compare both logs"
        )
    return Record(number, str(fields.get("kind")), fields, own)


def _digest(body: bytes) -> str:
    return digest(_LABEL, body).hex()


def _all(storage: Storage, what: str) -> bytes:
    size = storage.size()
    if size > _MOST:
        raise FormatError(f"{what}: has {size} bytes, wanted at most {_MOST}")
    data = bytearray(size)
    done = storage.read_into(0, data)
    if done != size:
        raise TruncatedError(f"{what}: got {done} bytes, wanted {size}")
    return bytes(data)


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
