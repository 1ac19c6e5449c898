"""Digests of the files that are measured, and what spares reading them again.

Rules:

- A digest is remembered by what the kernel says of a file: device, inode, size, and the times of its last change. It
  stands for the content only as far as the kernel that says so is trusted: that is for simulated enclaves, whose
  measurement the same host computes anyway. Whoever measures for hardware starts with `Digests()` and loads nothing.
- A file that another user may write, who is not root, is not remembered: one who has it mapped in memory can change it
  later than its times say. The same holds of this user, whom nothing here is kept from, and of root.
- A file that changed less than two seconds before it was read is not remembered: within the resolution of its times it
  may change once more and look the same.
- A file that changes while it is read is an error, never a digest.
- What was written to disk is taken in again under the same boot of the machine and the same key only: device and inode
  numbers mean nothing else after the next.
- What a whole environment came to is remembered by the same of all its files at once (`stamp`), if the digest of each
  of them is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, NamedTuple

from strongroom.crypto import derive, equal
from strongroom.enclave import reader
from strongroom.enclave.elf import needed
from strongroom.enclave.reader import IDENTITY, LISTED, LOOK, PIECE, RECORD, identity, read_file
from strongroom.enclave.readers import WORTHWHILE, Readers, batches, processors
from strongroom.errors import EnclaveError, FormatError

MAX_CACHE = 1 << 26
_MAGIC = b"strongroom/digests/v2\n"
_HEADER = struct.Struct("<22s16sI")  # magic, the machine's boot, number of entries
_ENTRY = IDENTITY.size + 32
_MAC = 32
_MAX_ENTRIES = 150_000
_YOUNG = 2_000_000_000  # nanoseconds
_BATCH = 64
_MOST_PLATFORMS = 8


class FileDigest(NamedTuple):
    """SHA-256 of a file's content, and its size."""

    sha256: bytes
    size: int


class Stamp(NamedTuple):
    """One digest over paths and what the kernel says of each; and that, of the regular files."""

    digest: bytes
    seen: Mapping[str, bytes]


class Digests:
    """What is known of files: made empty, filled by reading them or from what an earlier one gave."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._known: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()
        self._own: set[bytes] = set()  # of what was not known: what nobody else may write
        self._linked: dict[bytes, list[str]] = {}
        self._platforms: dict[str, Any] = {}
        self._ahead: Thread | None = None
        self._fresh: dict[str, FileDigest] = {}
        self._code: dict[str, tuple[bytes, bytes]] = {}
        self.to_compile: Callable[[], Sequence[str]] = tuple
        """Gives the sources that are compiled, once, where other processes read files; see `code`."""
        self.early: Callable[[], tuple[bytes, int]] = lambda: (b"", 0)
        """Gives, once, what somebody has read by now, records as `reader` has them; and when that began."""
        self.look: Callable[[], bytes] = bytes
        """Gives, once, what somebody has seen of directories, as `reader.look` writes it."""
        self.grown = False

    def of(self, paths: Sequence[str]) -> list[FileDigest]:
        """The digests of these files, in their order; of what is no regular file, one that says so.

        Raises:
            EnclaveError: one cannot be read, or changes meanwhile.
        """
        self._await()
        found: list[FileDigest | None] = []
        unknown: dict[int, int] = {}  # and the size of each
        known, used, fresh, regular = self._known, self._used, self._fresh, stat.S_ISREG
        for index, path in enumerate(paths):  # tens of thousands: no call more than it takes
            if path in fresh:
                found.append(fresh[path])
                continue
            try:
                told = os.stat(path)  # noqa: PTH116
            except OSError as error:
                raise _unreadable(path, error) from None
            if not regular(told.st_mode):
                found.append(_irregular(path))
                continue
            now = identity(told)
            digest = known.get(now)
            if digest is None:
                unknown[index] = told.st_size
                if not reader.writable_by_others(told):
                    self._own.add(now)
                found.append(None)
            else:
                used.add(now)
                found.append(FileDigest(digest, told.st_size))
        if sum(unknown.values()) >= WORTHWHILE:
            with suppress(OSError), Readers() as readers:  # else here
                for index, file in self._read_apart(readers, paths, unknown).items():
                    del unknown[index]
                    found[index] = file
        if unknown:
            each = batches(unknown, _BATCH)  # a future for each file would cost more than its digest
            with ThreadPoolExecutor(max_workers=processors()) as pool:
                read = pool.map(lambda batch: self._read_here([paths[index] for index in batch]), each)
                for batch, digests in zip(each, read, strict=True):
                    for index, file in zip(batch, digests, strict=True):
                        found[index] = file
        return [file for file in found if file is not None]

    @contextmanager
    def reading_ahead(self, seen: Mapping[str, bytes]) -> Iterator[None]:
        """Read those of these files that are not known while other things are done, until `of` is asked for them.

        What is `to_compile` is compiled meanwhile.

        Args:
            seen: their paths, and what the kernel says of each.
        """
        self._take_early(seen)
        paths = [path for path, told in seen.items() if told not in self._known]
        sizes = {index: IDENTITY.unpack(seen[path])[2] for index, path in enumerate(paths)}
        if sum(sizes.values()) < WORTHWHILE:
            yield
            return
        try:
            readers = Readers()
        except OSError:  # then `of` reads
            yield
            return

        def read() -> None:
            self._fresh = {paths[i]: file for i, file in self._read_apart(readers, paths, sizes).items()}

        ahead = self._ahead = Thread(target=read, name="reading ahead")
        try:
            ahead.start()
            yield
        finally:
            readers.stop()
            ahead.join()
            readers.close()
            self._ahead, self._fresh = None, {}

    def _take_early(self, seen: Mapping[str, bytes]) -> None:
        raw, began = self.early()
        told = {*seen.values()}
        for now, digest in RECORD.iter_unpack(raw[: len(raw) // RECORD.size * RECORD.size]):
            if now in told:
                self._kept(now, digest, began)

    @property
    def code(self) -> Mapping[str, tuple[bytes, bytes]]:
        """What was compiled ahead: of each source SHA-256 and its code."""
        self._await()
        return self._code

    def _await(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.join()

    def _read_apart(self, readers: Readers, paths: Sequence[str], sizes: Mapping[int, int]) -> dict[int, FileDigest]:
        """Read in other processes those of `paths` that have one of these sizes; without what could not be read so."""
        now = self._clock()  # before they are: what is young by it is no older then
        sources, self.to_compile = self.to_compile, tuple
        digests, code = readers.read(paths, sizes, sources)
        self._code |= code
        return {index: self._kept(told, digest, now) for index, (told, digest) in digests.items()}

    def _read_here(self, paths: Sequence[str]) -> list[FileDigest]:
        found = []
        buffer = bytearray(PIECE)
        for path in paths:
            now = self._clock()
            try:
                before, digest, after = read_file(path, buffer)
            except OSError as error:
                raise _unreadable(path, error) from None
            if before != after:
                raise EnclaveError(
                    f"measure: {path}: changed while it was read", hint="let what writes to it end, and measure again"
                )
            found.append(self._kept(after, digest, now))
        return found

    def _kept(self, told: bytes, digest: bytes, now: int) -> FileDigest:
        _, _, size, modified, changed = IDENTITY.unpack(told)
        if now - modified >= _YOUNG <= now - changed and told in self._own:
            self._known[told] = digest
            self._used.add(told)
            self.grown = True
        return FileDigest(digest, size)

    def stamp(self, paths: Sequence[str], looked: Mapping[str, tuple[int, bytes]] | None = None) -> Stamp:
        """What the kernel says of these files now, or has said of some a moment ago, as `Looked.told` has it."""
        told: list[bytes] = []
        seen: dict[str, bytes] = {}
        looked = looked or {}
        for path in paths:  # tens of thousands: no call more than it takes
            kind, each = looked.get(path) or reader.told(path)
            if kind >= reader.REGULAR:
                seen[path] = each
                told.append(each)
                if kind == reader.OWN and each not in self._known:
                    self._own.add(each)
            else:
                told.append(_irregular(path).sha256 if kind == reader.IRREGULAR else each)
        over = hashlib.sha256(os.fsencode("\0".join(paths)) + b"\0\0")
        over.update(b"".join(told))
        return Stamp(over.digest(), seen)

    @property
    def empty(self) -> bool:
        """Whether no file's digest is remembered."""
        return not self._known

    def remembered(self, told: bytes) -> bytes | None:
        """SHA-256 of a file of which the kernel said this, if it is remembered."""
        return self._known.get(told)

    def counts(self, stamp: Stamp) -> bool:
        """Whether it says something of what the files hold: the digest of each, as it was then, is remembered."""
        return all(told in self._known for told in stamp.seen.values())

    def platform(self, stamp: bytes) -> Any:
        """What was remembered for that stamp, or None."""
        return self._platforms.get(stamp.hex())

    def remember_platform(self, stamp: bytes, value: Any) -> None:
        """Remember a value that JSON can hold."""
        self._platforms = dict([*self._platforms.items()][1 - _MOST_PLATFORMS :]) | {stamp.hex(): value}
        self.grown = True

    def linked(self, path: str, sha256: bytes | None) -> list[str]:
        """The libraries that a file of that content asks for."""
        if sha256 is None:
            return needed(path)
        names = self._linked.get(sha256)
        if names is None:
            names = self._linked[sha256] = needed(path)
            self.grown = True
        return names

    def to_bytes(self, key: bytes, boot: bytes) -> bytes:
        """What `load` takes in; of more than it would, what this object was asked for."""
        entries = self._known
        if len(entries) > _MAX_ENTRIES:
            entries = {identity: digest for identity, digest in entries.items() if identity in self._used}
        body = _HEADER.pack(_MAGIC, boot, len(entries)) + b"".join(i + d for i, d in entries.items())
        linked = {digest.hex(): names for digest, names in self._linked.items()}
        body += json.dumps({"linked": linked, "platforms": self._platforms}).encode()
        return body + _mac(key, body)

    def load(self, raw: bytes, key: bytes, boot: bytes) -> None:
        """Take in what was written under this key and this boot of the machine; of an earlier boot, nothing.

        Raises:
            FormatError: not authentic, or not of this form. Nothing of it was taken in.
        """
        body, mac = raw[:-_MAC], raw[-_MAC:]
        if len(raw) > MAX_CACHE or len(body) < _HEADER.size or not equal(mac, _mac(key, body)):
            raise FormatError("digest cache: damaged, forged or of another home")
        magic, booted, count = _HEADER.unpack_from(body)
        end = _HEADER.size + count * _ENTRY
        if magic != _MAGIC or len(body) < end:
            raise FormatError("digest cache: of another version")
        if booted != boot:
            return
        split = IDENTITY.size
        entries = body[_HEADER.size : end]
        rows = [entries[i : i + _ENTRY] for i in range(0, len(entries), _ENTRY)]
        rest = json.loads(body[end:])
        linked = {bytes.fromhex(digest): list(names) for digest, names in rest["linked"].items()}
        self._known |= {row[:split]: row[split:] for row in rows}
        self._linked |= linked
        self._platforms |= rest["platforms"]


def boot_of_machine() -> bytes:
    """16 bytes that the kernel draws anew at each start."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        return bytes.fromhex(file.read().strip().replace("-", ""))


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(derive(key, "strongroom/digests/v1"), body, "sha256")


def _irregular(path: str) -> FileDigest:
    """A directory behind a link, a pipe, a device: what it is, and where a link leads."""
    target = os.readlink(path) if os.path.islink(path) else ""  # noqa: PTH114, PTH115
    return FileDigest(hashlib.sha256(b"not a regular file\0" + os.fsencode(target)).digest(), 0)


def _unreadable(path: str, error: OSError) -> EnclaveError:
    return EnclaveError(f"measure: {path}: {(error.strerror or str(error)).lower()}")


def walk(root: str, skip: Sequence[str] = (), leave_out: str = "") -> list[tuple[str, str]]:
    """Every file below `root`, as `reader.walk` finds them. Raises EnclaveError: a directory cannot be read."""
    try:
        return reader.walk(root, skip, leave_out)
    except OSError as error:
        raise _unreadable(error.filename or root, error) from None


class Looked:
    """What `reader.look` saw of directories and the files in them, a moment ago.

    Args:
        raw: what it has written; of what is not whole, nothing is taken.

    Attributes:
        told: of each file, its kind and its identity, as `reader.LOOK` has them.
    """

    def __init__(self, raw: bytes = b"") -> None:
        self.told: dict[str, tuple[int, bytes]] = {}
        self._walked: dict[tuple[str, tuple[str, ...], str], list[tuple[str, str]]] = {}
        place = 0
        with suppress(struct.error, ValueError):
            while place < len(raw):
                size, count = LISTED.unpack_from(raw, place)
                place += LISTED.size
                of, names = raw[place : place + size], place + size + count * LOOK.size
                root, leave_out, skip, *found = os.fsdecode(of).split("\0")
                paths = [f"{root}/{name}" for name in found]
                self.told |= zip(paths, LOOK.iter_unpack(raw[place + size : names]), strict=True)
                self._walked[root, tuple(filter(None, skip.split("/"))), leave_out] = [*zip(found, paths, strict=True)]
                place = names

    def walk(self, root: str, skip: Sequence[str] = (), leave_out: str = "") -> list[tuple[str, str]]:
        """As `walk`: what was seen then, or what is there now, if that directory was not looked at."""
        found = self._walked.get((root, tuple(skip), leave_out))
        return walk(root, skip, leave_out) if found is None else found
