"""A CAS's state in one file, and back: what `strongroom cas backup` and `restore` do (docs/spec/cas.md, Backups).

Rules:

- A backup is of one moment, of a CAS that runs or not, in SQLite or PostgreSQL. It is made without any key: what is
  sealed in the state is sealed in it, and what lies there in plain lies here in plain.
- A restore writes into nothing that is there, and puts the state in its place when all of it has been verified.
- A backup is an older state. Whoever has seen a later one, of clients, witnesses, operators or a TPM, finds that out.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from strongroom.cas.log.entry import LogEntry
from strongroom.cas.log.head import Head
from strongroom.cas.log.tree import Frontier
from strongroom.cas.state.database import Database, Sqlite
from strongroom.cas.state.postgres import Postgres, read_url
from strongroom.cas.state.root_secret import read_record
from strongroom.cas.state.store import Store, tables
from strongroom.cas.state.trust_disk import MASTER_KEY, TrustDisk
from strongroom.errors import ConflictError, FormatError, IntegrityError, UsageError
from strongroom.storage import LocalDirectory

_FORMAT = "strongroom-cas-backup-1"
_ABOUT, _DATABASE = "backup.json", "cas.sqlite"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\.(key|json|pem|sealed)", re.ASCII)
_NOT_STATE = {"cas.json", _ABOUT}  # where it answers is of the machine
_MAX_FILE, _MAX_FILES = 1 << 20, 64
_ROWS = 1000

_OTHER = "not a backup that `strongroom cas backup` made"


@dataclass(frozen=True)
class Backup:
    """What a backup holds: the names of the files, the log's head, whether the root secret lies in plain."""

    files: tuple[str, ...]
    head: Head
    plain: bool
    verified: bool = False
    """After a restore: whether every row was opened. Without the root secret only the log can be looked through."""

    @property
    def entries(self) -> int:
        return self.head.size


def back_up(directory: Path, file: Path, *, database: str | None = None) -> Backup:
    """Write a backup of the CAS with that directory to a new file of mode 0600.

    Raises:
        UsageError: there is no CAS, or the file is there already.
        DatabaseError: its database cannot be reached.
    """
    path = directory / _DATABASE
    if read_record(directory) is None and not (directory / MASTER_KEY).exists():
        raise UsageError(f"{directory}: holds no CAS", hint="give its state: --state DIR")
    if database is None and not path.exists():
        raise UsageError(f"{path}: does not exist", hint="for a CAS over PostgreSQL give --database")
    if file.exists():
        raise UsageError(f"{file}: exists already", hint="choose another name; a backup replaces nothing")
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.absolute().parent) as temporary:
        copy = Path(temporary) / _DATABASE
        # The database first: keys are made before what is sealed under them, and never changed.
        if database is None:
            _copy_sqlite(path, copy)
        else:
            with closing(Postgres(read_url(database))) as source, closing(Sqlite(copy)) as target:
                _copy_rows(source, target)
        files = {each.name: each.read_bytes() for each in sorted(directory.iterdir()) if _is_state(each)}
        with closing(Sqlite(copy)) as db:
            head = _head(db)
            db.execute("PRAGMA journal_mode=DELETE")  # all of it in the one file
        about = json.dumps({"format": _FORMAT, "entries": head.size}).encode()
        whole = Path(temporary) / "whole"
        with whole.open("xb") as written:
            whole.chmod(0o600)
            with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name, content in {_ABOUT: about, **files}.items():
                    _add(tar, name, len(content), io.BytesIO(content))
                with copy.open("rb") as content_of:
                    _add(tar, _DATABASE, copy.stat().st_size, content_of)
            written.flush()
            os.fsync(written.fileno())
        os.link(whole, file)  # and not over one that has come meanwhile
    LocalDirectory(file.absolute().parent).sync()
    return Backup(tuple(files), head, MASTER_KEY in files)


def restore(file: Path, directory: Path, *, database: str | None = None) -> Backup:
    """Make a CAS's directory, and the tables of `database` if one is given, of a backup.

    Raises:
        UsageError: the directory is not empty.
        ConflictError: the database has tables of a CAS.
        FormatError: the file is not a backup.
        IntegrityError: what it holds is not what its CAS wrote; nothing was restored.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory}: is not empty", hint="restore into a new directory; nothing is overwritten")
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    parent = directory.absolute().parent
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=parent) as temporary:
        made = Path(temporary) / "state"
        made.mkdir(mode=0o700)
        _extract(file, made)
        found = _verify(made)
        if database is not None:
            _fill(read_url(database), made / _DATABASE)
            for each in made.glob(f"{_DATABASE}*"):
                each.unlink()
            if found.plain:
                Store(made, database=database).close()
        for each in made.iterdir():
            _sync(each)
        LocalDirectory(made).sync()
        if directory.exists():
            directory.rmdir()
        made.rename(directory)
    LocalDirectory(parent).sync()
    return found


def _is_state(path: Path) -> bool:
    state = _NAME.fullmatch(path.name) and path.name not in _NOT_STATE and path.is_file() and not path.is_symlink()
    if state and path.stat().st_size > _MAX_FILE:
        raise UsageError(f"{path}: longer than {_MAX_FILE} bytes: no file of a CAS's", hint="move it away")
    return bool(state)


def _copy_sqlite(source: Path, target: Path) -> None:
    """A copy of one moment, whoever writes at the same time."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            target.chmod(0o600)
            old.backup(new)
    except sqlite3.Error as error:
        raise IntegrityError(f"{source}: {error}", hint="it is damaged; restore an earlier backup") from None


def _copy_rows(source: Database, target: Database) -> None:
    """All tables of a CAS into a database that has none."""
    if not target.prepare(tables(), new=True):
        target.rollback()
        raise ConflictError(
            f"{target.name}: has tables of a CAS already", hint="give an empty database; nothing is overwritten"
        )
    source.begin(write=False)
    try:
        for table in tables():
            columns, key = ", ".join(table.columns), ", ".join(table.key)
            marks = ", ".join("?" * len(table.columns))
            insert = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608
            rows = source.execute(f"SELECT {columns} FROM {table.name} ORDER BY {key}")  # noqa: S608
            for start in range(0, len(rows), _ROWS):
                target.execute_many(insert, rows[start : start + _ROWS])
    finally:
        source.rollback()
    target.commit()


def _fill(url: str, copy: Path) -> None:
    with closing(Sqlite(copy)) as source, closing(Postgres(url)) as target:
        _copy_rows(source, target)


def _add(tar: tarfile.TarFile, name: str, size: int, content: object) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    tar.addfile(info, content)  # type: ignore[arg-type]


def _extract(file: Path, directory: Path) -> None:
    """The files of a backup, whose names and sizes are anybody's word until then."""
    seen: set[str] = set()
    with _opened(file) as tar:
        for member in tar:
            name = member.name
            known = name in (_ABOUT, _DATABASE) or (_NAME.fullmatch(name) and name not in _NOT_STATE)
            too_long = name != _DATABASE and member.size > _MAX_FILE
            if not (known and member.isfile()) or name in seen or too_long or len(seen) >= _MAX_FILES:
                raise FormatError(f"{file}: holds {name[:80]!r}: {_OTHER}")
            seen.add(name)
            content = tar.extractfile(member)
            assert content is not None  # noqa: S101  # it is a file
            with (directory / name).open("xb") as target:
                (directory / name).chmod(0o600)
                shutil.copyfileobj(content, target)
            if (directory / name).stat().st_size != member.size:
                raise FormatError(f"{file}: ends in the middle of {name}", hint="it was cut off; take another copy")
    if not {_ABOUT, _DATABASE} <= seen:
        raise FormatError(f"{file}: holds no {_DATABASE}: {_OTHER}")


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, mode="r:") as tar:
            yield tar
    except FileNotFoundError:
        raise UsageError(f"{file}: does not exist") from None
    except (tarfile.TarError, EOFError, ValueError):
        raise FormatError(f"{file}: {_OTHER}, or cut off") from None


def _verify(directory: Path) -> Backup:
    """Look through everything, with the root secret if it lies there."""
    try:
        about = json.loads((directory / _ABOUT).read_bytes())
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
        raise FormatError(f"backup: its format is not {_FORMAT}", hint="another version of strongroom made it")
    (directory / _ABOUT).unlink()
    files = tuple(sorted(path.name for path in directory.iterdir() if path.name != _DATABASE))
    record = read_record(directory)
    plain = MASTER_KEY in files and (record is None or record["unseal"] == TrustDisk.way)
    if plain:
        with closing(Store(directory)) as store:
            entries = store.verify_all()
    else:
        with closing(Sqlite(directory / _DATABASE)) as db:
            entries = _verify_log(db)
    if entries != about.get("entries"):
        raise IntegrityError(f"backup: its log has {entries} entries, and it says {about.get('entries')}"[:200])
    with closing(Sqlite(directory / _DATABASE)) as db:
        return Backup(files, _head(db), plain, verified=plain)


def _head(db: Database) -> Head:
    """The head of the log that the nodes of its tree stand for."""

    def node(level: int, place: int) -> bytes:
        found = db.execute("SELECT hash FROM nodes WHERE level = ? AND place = ?", (level, place))
        if not found:
            raise IntegrityError("database: its log's tree has gaps", hint="restore an earlier backup")
        return bytes(found[0][0])

    size = int(db.execute("SELECT count(*) FROM log")[0][0])
    return Head(size, Frontier.of(node, size).root())


def _verify_log(db: Database) -> int:
    """Check that the log's entries are those of its tree. Whether that is the CAS's, the sealed head says."""
    if db.execute("PRAGMA integrity_check") != [("ok",)]:
        raise IntegrityError("backup: its database is damaged", hint="take another copy")
    frontier, size = Frontier(), int(db.execute("SELECT count(*) FROM log")[0][0])
    while frontier.size < size:
        page = db.execute("SELECT * FROM log WHERE number > ? ORDER BY number LIMIT ?", (frontier.size, _ROWS))
        if not page:
            raise IntegrityError("backup: its log has gaps", hint="take another copy")
        for row in page:
            entry = LogEntry(*row)
            frontier, nodes = frontier.append(entry.leaf)
            for level, place, expected in nodes:
                kept = db.execute("SELECT hash FROM nodes WHERE level = ? AND place = ?", (level, place))
                if entry.number != frontier.size or kept != [(expected,)]:
                    raise IntegrityError(f"backup: log entry {entry.number} was changed", hint="take another copy")
    return size


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
