"""Digests of the files that are measured, and what spares reading them again.

Rules:

- A digest is remembered by what the kernel says of a file: device, inode, size, and the times of its last change. It
  stands for the content only as far as the kernel that says so is trusted: that is for simulated enclaves, whose
  measurement the same host computes anyway. Whoever measures for hardware starts with `Digests()` and loads nothing.
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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from strongroom.crypto import derive, equal
from strongroom.enclave.elf import needed
from strongroom.errors import EnclaveError, FormatError

MAX_CACHE = 1 << 26
_MAGIC = b"strongroom/digests/v2\n"
_HEADER = struct.Struct("<22s16sI")  # magic, the machine's boot, number of entries
_IDENTITY = struct.Struct("<QQQqq")  # device, inode, size, mtime, ctime (in nanoseconds)
_ENTRY = _IDENTITY.size + 32
_MAC = 32
_WORD = (1 << 64) - 1
_MAX_ENTRIES = 150_000
_YOUNG = 2_000_000_000  # nanoseconds
_BATCH = 64
_LARGE = 1 << 20
_MOST_PLATFORMS = 8
_NOTHING = bytes(_IDENTITY.size)


class FileDigest(NamedTuple):
    """SHA-256 of a file's content, and its size."""

    sha256: bytes
    size: int


class Digests:
    """What is known of files: made empty, filled by reading them or from what an earlier one gave."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._known: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()
        self._linked: dict[bytes, list[str]] = {}
        self._platforms: dict[str, Any] = {}
        self.grown = False

    def of(self, paths: Sequence[str]) -> list[FileDigest]:
        """The digests of these files, in their order; of what is no regular file, one that says so.

        Raises:
            EnclaveError: one cannot be read, or changes meanwhile.
        """
        found: list[FileDigest | None] = []
        unknown: dict[int, int] = {}  # and the size of each
        known, used, pack, regular = self._known, self._used, _IDENTITY.pack, stat.S_ISREG
        for index, path in enumerate(paths):  # tens of thousands: no call more than it takes
            try:
                told = os.stat(path)  # noqa: PTH116
            except OSError as error:
                raise _unreadable(path, error) from None
            if not regular(told.st_mode):
                found.append(_irregular(path))
                continue
            inode = told.st_ino & _WORD  # 128 bits on some file systems of Windows
            identity = pack(told.st_dev, inode, told.st_size, told.st_mtime_ns, told.st_ctime_ns)
            digest = known.get(identity)
            if digest is None:
                unknown[index] = told.st_size
                found.append(None)
            else:
                used.add(identity)
                found.append(FileDigest(digest, told.st_size))
        if unknown:
            # Large ones first, so that no thread begins one when the others are done. The rest in batches: a future for
            # each would cost more than its digest.
            large = sorted((i for i, size in unknown.items() if size >= _LARGE), key=lambda i: -unknown[i])
            small = [i for i, size in unknown.items() if size < _LARGE]
            batches = [[i] for i in large] + [small[i : i + _BATCH] for i in range(0, len(small), _BATCH)]
            with ThreadPoolExecutor(max_workers=_processors()) as pool:
                read = pool.map(lambda batch: [self._read(paths[index]) for index in batch], batches)
                for batch, digests in zip(batches, read, strict=True):
                    for index, file in zip(batch, digests, strict=True):
                        found[index] = file
        return [file for file in found if file is not None]

    def _read(self, path: str) -> FileDigest:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                before, now = _identity(descriptor), self._clock()
                digest = _sha256(descriptor)
                after = _identity(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(path, error) from None
        if before != after:
            raise EnclaveError(
                f"measure: {path}: changed while it was read", hint="let what writes to it end, and measure again"
            )
        _, _, size, *changed = _IDENTITY.unpack(after)
        if now - max(changed) >= _YOUNG:
            self._known[after] = digest
            self._used.add(after)
            self.grown = True
        return FileDigest(digest, size)

    def stamp(self, paths: Sequence[str]) -> tuple[bytes, Callable[[], bool]]:
        """One digest over these paths and what the kernel says of each; what tells whether it counts.

        That is so where the digest of each file is remembered, as it was when this was called.
        """
        told: list[bytes] = []
        identities: list[bytes] = []
        pack, regular = _IDENTITY.pack, stat.S_ISREG
        for path in paths:
            try:
                seen = os.stat(path)  # noqa: PTH116
            except OSError:
                told.append(_NOTHING)
                continue
            if regular(seen.st_mode):
                identity = pack(seen.st_dev, seen.st_ino & _WORD, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
                identities.append(identity)
                told.append(identity)
            else:
                told.append(_irregular(path).sha256)
        over = hashlib.sha256(os.fsencode("\0".join(paths)) + b"\0\0")
        over.update(b"".join(told))
        return over.digest(), lambda: all(identity in self._known for identity in identities)

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
        split = _IDENTITY.size
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


def _identity(descriptor: int) -> bytes:
    told = os.fstat(descriptor)
    return _IDENTITY.pack(told.st_dev, told.st_ino & _WORD, told.st_size, told.st_mtime_ns, told.st_ctime_ns)


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sha256(descriptor: int) -> bytes:
    """Of all that a file holds; most are small, and read at once."""
    content = os.read(descriptor, _LARGE)
    digest = hashlib.sha256(content)
    if content:
        buffer = bytearray(_LARGE if len(content) == _LARGE else 1)  # which finds the end
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            while size := file.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
    return digest.digest()


def _irregular(path: str) -> FileDigest:
    """A directory behind a link, a pipe, a device: what it is, and where a link leads."""
    target = os.readlink(path) if os.path.islink(path) else ""  # noqa: PTH114, PTH115
    return FileDigest(hashlib.sha256(b"not a regular file\0" + os.fsencode(target)).digest(), 0)


def _unreadable(path: str, error: OSError) -> EnclaveError:
    return EnclaveError(f"measure: {path}: {(error.strerror or str(error)).lower()}")


def walk(root: str, skip: Iterable[str] = (), leave_out: str | None = None) -> list[tuple[str, str]]:
    """Every file below `root` with its name relative to it, but for caches of compiled code.

    A link to a directory is followed, since an import would follow it, after all that lies there by its own name; each
    directory once, so that loops end. The links themselves are named too: one to a directory that was walked already
    gives its modules another name.

    Args:
        skip: directories directly in `root`.
        leave_out: a path below it.

    Raises:
        EnclaveError: a directory cannot be read.
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
            try:
                told = os.stat(folder)  # noqa: PTH116
                if (told.st_dev, told.st_ino) in seen:
                    continue
                seen.add((told.st_dev, told.st_ino))
                with os.scandir(folder) as entries:
                    listing = list(entries)
            except OSError as error:
                raise _unreadable(folder, error) from None
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
