"""A process that reads files for who measures: digests of what they hold, or what Python compiles them to.

Standard library only, so that it starts in some milliseconds; `readers.py` starts it. A thread would do the same, but
for the interpreter's lock, which it would give and take several times for each small file.

It takes jobs from its standard input, a pipe that several such processes share: a read of one takes a whole one, since
each was written at once (pipe(7)). What it is to read, and what it has found, are in files that it was given open.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
import signal
import stat
import struct
import sys
import warnings
from collections.abc import Sequence

IDENTITY = struct.Struct("<QQQqq")  # device, inode, size, mtime, ctime (in nanoseconds)
RECORD = struct.Struct(f"<{IDENTITY.size}s32s")  # a file's identity, and SHA-256 of its content
FAILED = bytes(RECORD.size)
COMPILED = struct.Struct("<I32sI")  # the place of a source, its SHA-256, and the length of its code
JOB = struct.Struct("<IIII")  # what is asked for, the first path, how many, and zero
DIGESTS, CODE = 1, 2
ABSENT, IRREGULAR, REGULAR, OWN = range(4)  # kinds of files; own: regular, and nobody else may write there
LOOK = struct.Struct(f"<B{IDENTITY.size}s")  # a file's kind and its identity
LISTED = struct.Struct("<II")  # the length of names, and how many files these are
NO_STDLIB = ("site-packages", "dist-packages")  # directories in that of the standard library which are not part of it
_NOTHING = bytes(IDENTITY.size)
_EARLY = (1 << 15, 1 << 26)  # sizes of what is read before the rest
PIECE = 1 << 18  # stays in a processor's own cache between being read and being hashed
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_WORD = (1 << 64) - 1
_UNCHECKED = (0b01).to_bytes(4, "little")


def identity(told: os.stat_result) -> bytes:
    """What the kernel says of a file. Its inode has 128 bits on some file systems of Windows."""
    return IDENTITY.pack(told.st_dev, told.st_ino & _WORD, told.st_size, told.st_mtime_ns, told.st_ctime_ns)


def read_file(path: str | bytes, buffer: bytearray) -> tuple[bytes, bytes, bytes]:
    """A file's identity, SHA-256 of all that it holds, and its identity then. Raises OSError."""
    descriptor = os.open(path, _READ)
    try:
        before = identity(os.fstat(descriptor))
        digest = hashlib.sha256()
        if hasattr(os, "readv"):  # without a copy
            view, buffers = memoryview(buffer), [buffer]
            while size := os.readv(descriptor, buffers):
                digest.update(view[:size])
        else:
            while piece := os.read(descriptor, len(buffer)):
                digest.update(piece)
        return before, digest.digest(), identity(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def compiled(path: str) -> tuple[bytes, bytes] | None:
    """Of a source: its SHA-256, and its compiled code as an unchecked file of PEP 552; None of what is no Python."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source)
    return hashlib.sha256(source).digest(), head + marshal.dumps(code)


def _digests(paths: list[bytes]) -> bytes:
    buffer = bytearray(PIECE)
    records = []
    for path in paths:
        try:
            before, digest, after = read_file(path, buffer)
        except OSError:
            records.append(FAILED)
        else:
            records.append(before + digest if before == after else FAILED)
    return b"".join(records)


def _code(paths: list[bytes], first: int) -> bytes:
    answer = []
    for place, path in enumerate(paths, first):
        source, code = compiled(os.fsdecode(path)) or (bytes(32), b"")
        answer += [COMPILED.pack(place, source, len(code)), code]
    return b"".join(answer)


def _lines(descriptor: int) -> list[bytes]:
    """The paths in a file, from its beginning, wherever others have read it to."""
    size, raw = os.fstat(descriptor).st_size, b""
    while len(raw) < size:
        raw += os.pread(descriptor, size - len(raw), len(raw))
    return raw.split(b"\0")


def main(paths: int, records: int, sources: int, codes: int) -> None:
    """Work until there are no more jobs.

    Args:
        paths: what has the paths of files.
        records: takes a record for each, at its place.
        sources: what has the paths of sources, once the first job names one.
        codes: takes their code, one after the other; this process's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    listed: dict[int, list[bytes]] = {}
    while job := os.read(0, JOB.size):
        kind, first, count, _ = JOB.unpack(job)
        which = paths if kind == DIGESTS else sources
        if which not in listed:
            listed[which] = _lines(which)
        some = listed[which][first : first + count]
        if kind == DIGESTS:
            os.pwrite(records, _digests(some), first * RECORD.size)
        else:
            os.write(codes, _code(some, first))


def early(records: int, parent: int, roots: list[str]) -> None:
    """Read the large files below some directories, larger ones first, as long as who asked for it lives.

    The largest are left out: who waits for the rest kills this process, and loses what it is reading.

    Args:
        records: takes a record for each.
    """
    sizes: dict[str, int] = {}
    pending = list(roots)
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        pending.append(entry.path)
                elif entry.is_file() and _EARLY[0] <= (size := entry.stat().st_size) <= _EARLY[1]:
                    sizes[entry.path] = size
    for path in sorted(sizes, key=lambda each: -sizes[each]):
        if os.getppid() != parent:
            return
        found = _digests([os.fsencode(path)])
        if found != FAILED:
            os.write(records, found)


def writable_by_others(told: os.stat_result) -> bool:
    """Whether other users than this one and root may write there, as far as its owner and mode say.

    A group of the owner's number is the owner's alone, as systems have it where all that one makes is its group's too.
    """
    if not hasattr(os, "geteuid"):
        return False  # where modes say nothing
    group = told.st_mode & 0o020 and told.st_gid != told.st_uid
    return bool(group or told.st_mode & 0o002) or told.st_uid not in (0, os.geteuid())


def told(path: str) -> tuple[int, bytes]:
    """What kind of file it is for who measures, and the identity of a regular one."""
    try:
        now = os.stat(path)  # noqa: PTH116
    except OSError:
        return ABSENT, _NOTHING
    if not stat.S_ISREG(now.st_mode):
        return IRREGULAR, _NOTHING
    return REGULAR if writable_by_others(now) else OWN, identity(now)


def walk(root: str, skip: Sequence[str] = (), leave_out: str = "") -> list[tuple[str, str]]:
    """Every file below `root` with its name relative to it, but for caches of compiled code.

    A link to a directory is followed, since an import would follow it, after all that lies there by its own name; each
    directory once, so that loops end. The links themselves are named too: one to a directory that was walked already
    gives its modules another name.

    Args:
        skip: directories directly in `root`.
        leave_out: a path below it.

    Raises:
        OSError: a directory cannot be read.
    """
    found: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    links: list[str] = [""]
    for start in links:  # grows as it goes
        pending = [start]
        while pending:
            inside = pending.pop()
            folder = f"{root}/{inside}" if inside else root
            further = []
            told = os.stat(folder)  # noqa: PTH116
            if (told.st_dev, told.st_ino) in seen:
                continue
            seen.add((told.st_dev, told.st_ino))
            with os.scandir(folder) as entries:
                listing = list(entries)
            for entry in listing:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if not entry.is_dir():
                    found.append((name, f"{folder}/{entry.name}"))
                elif entry.name == "__pycache__" or name in skip or f"{folder}/{entry.name}" == leave_out:
                    continue
                elif entry.is_symlink():
                    found.append((name, f"{folder}/{entry.name}"))
                    further.append(name)
                else:
                    pending.append(name)
            links += sorted(further)
    return found


def look(seen: int, of: list[str]) -> None:
    """Walk through directories, and ask what there is to know of each file without reading it.

    Args:
        seen: takes, for each of them, LISTED, its arguments as they were given and the names in it, with zeros between,
            and a LOOK for each name.
        of: three for each: its path, what is left out, and the names that are skipped, with slashes between.
    """
    for root, leave_out, skip in zip(of[::3], of[1::3], of[2::3], strict=True):
        found = walk(root, tuple(filter(None, skip.split("/"))), leave_out)
        names = os.fsencode("\0".join([root, leave_out, skip, *(name for name, _ in found)]))
        rows = [LOOK.pack(*told(path)) for _, path in found]
        with open(seen, "ab", closefd=False) as file:
            file.write(b"".join([LISTED.pack(len(names), len(rows)), names, *rows]))


if __name__ == "__main__":
    if sys.argv[1] == "early":
        early(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1] == "look":
        look(int(sys.argv[2]), sys.argv[3:])
    else:
        main(*map(int, sys.argv[1:]))
