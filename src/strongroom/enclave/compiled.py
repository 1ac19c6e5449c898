"""Compiled Python code that enclaves need not make again.

Compiling what boot and a framework import takes longer than running it. Rules:

- It is made by who measures, from bytes that have the measured digest: never taken from an enclave, nor from the
  `__pycache__` beside a source.
- It is kept below this user's home. An index under a MAC says of each file what it holds and of which source it was
  made; before each launch the directory must be exactly what the index says, or it is dropped as a whole. Code of a
  source that has changed is removed.
- An enclave sees it read-only, so that nothing that ran in one is run by the next.
- What there is to compile is said by enclaves, by names: a hint that costs time at worst, since only measured files are
  compiled.
- Where something else lies than was measured, such as a vault over a part of the environment, an enclave's program is
  shown no code: Python would not look at what lies there.
- It stands for the sources only as far as this machine is trusted: as `digests`, it is for simulated enclaves.

The files are unchecked hash-based ones (PEP 552): Python runs them without looking at the source again.
"""

from __future__ import annotations

import hmac
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from strongroom.crypto import derive, digest, equal
from strongroom.enclave.config import PROGRAM_ENTRY
from strongroom.enclave.digests import Digests
from strongroom.enclave.reader import compiled
from strongroom.errors import FormatError

MOST = 20_000
_MAX_INDEX = 1 << 24
_MAC = 32
_SUFFIX = f".{sys.implementation.cache_tag}.pyc"


class Compiled:
    """The compiled code that is kept for this interpreter.

    Args:
        directory: where, for its user alone; made if it is not there.
        key: for the MAC.
        known: tells the digests of files.

    Raises:
        OSError: the directory cannot be used.
    """

    def __init__(self, directory: Path, key: bytes, known: Digests) -> None:
        of = digest(b"strongroom/compiled", sys.prefix.encode(), sys.executable.encode(), sys.version.encode())
        self._home = directory / of.hex()[:24]
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tree, self._index = self._home / "code", self._home / "index"
        self._key, self._known = derive(key, "strongroom/compiled/v1"), known

    def checked(self) -> Path | None:
        """The directory, laid out as ``pycache_prefix`` has it, all in it as it was written; None if nothing is.

        Raises:
            FormatError: it was not. It is dropped.
        """
        with self._locked():
            rows = self._rows()
            if not rows:
                return None
            stale = self._stale(rows)
            if stale:
                rows = {source: row for source, row in rows.items() if source not in stale}
                self._write_index(rows)
                for source in stale:
                    self._place(source).unlink(missing_ok=True)
            return self._tree if rows else None

    def add(
        self,
        names: Iterable[str],
        measured: Mapping[str, bytes],
        *,
        seconds: float,
        made: Mapping[str, tuple[bytes, bytes]] | None = None,
    ) -> int:
        """Compile those of these sources that were measured and are not there yet; how many.

        Args:
            names: their absolute paths.
            measured: SHA-256 of each measured file, by its path.
            seconds: after so many, the rest is left for another time.
            made: code that was compiled just now, and SHA-256 of the source that it is of.
        """
        end = time.monotonic() + seconds
        with self._locked():
            rows = self._rows()
            before = len(rows)
            for name in names:
                if time.monotonic() > end or len(rows) >= MOST:
                    break
                if name in rows or name not in measured or not name.endswith(".py"):
                    continue
                source, code = (made or {}).get(name) or compiled(name) or (b"", b"")
                if source == measured[name]:  # else it is another one by now, or no Python
                    self._write(name, code)
                    rows[name] = (source, sha256(code).digest())
            if len(rows) > before:
                self._write_index(rows)
            return len(rows) - before

    def holds(self, module: str) -> bool:
        """Whether code of a module is kept, as far as the directory tells."""
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None and self._place(spec.origin).exists()

    def _rows(self) -> dict[str, tuple[bytes, bytes]]:
        """By each source: its SHA-256, and that of its compiled code.

        Raises:
            FormatError: the directory is not as it was written. It is dropped.
        """
        try:
            rows = self._read_index()
            found = dict(_files(self._tree)) if self._tree.exists() else {}
            if found.keys() != {self._name(source) for source in rows}:
                raise FormatError("compiled code: other files than were kept")
            if not all(found.values()):
                raise FormatError("compiled code: a file is none")
            codes = self._known.of([str(self._place(source)) for source in rows])
            if any(code.sha256 != row[1] for code, row in zip(codes, rows.values(), strict=True)):
                raise FormatError("compiled code: a file has another content than was kept")
        except FormatError as error:
            self._index.unlink(missing_ok=True)
            shutil.rmtree(self._tree, ignore_errors=True)
            raise FormatError(
                error.message, hint=f"it was changed in {self._home}; what was there is removed"
            ) from None
        return rows

    def _stale(self, rows: Mapping[str, tuple[bytes, bytes]]) -> set[str]:
        """The sources that are not what they were."""
        there = [source for source in rows if os.path.isfile(source)]  # noqa: PTH113  # thousands
        now = dict(zip(there, self._known.of(there), strict=True))
        return {source for source, row in rows.items() if source not in now or now[source].sha256 != row[0]}

    def _read_index(self) -> dict[str, tuple[bytes, bytes]]:
        try:
            with self._index.open("rb") as file:
                raw = file.read(_MAX_INDEX + 1)
        except FileNotFoundError:
            return {}
        body, mac = raw[:-_MAC], raw[-_MAC:]
        if len(raw) > _MAX_INDEX or not equal(mac, hmac.digest(self._key, body, "sha256")):
            raise FormatError("compiled code: its index is damaged, forged or of another home")
        return {source: (bytes.fromhex(row[0]), bytes.fromhex(row[1])) for source, row in json.loads(body).items()}

    def _write_index(self, rows: Mapping[str, tuple[bytes, bytes]]) -> None:
        body = json.dumps({source: [each.hex() for each in row] for source, row in rows.items()}).encode()
        _replace(self._index, body + hmac.digest(self._key, body, "sha256"))

    def _write(self, source: str, code: bytes) -> None:
        place = f"{self._tree}/{self._name(source)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            descriptor = os.open(place, flags, 0o644)  # the program's user reads it, too
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120  # hundreds
            descriptor = os.open(place, flags, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(code)

    def _name(self, source: str) -> str:
        return source.removesuffix(".py").lstrip("/") + _SUFFIX

    def _place(self, source: str) -> Path:
        return self._tree / self._name(source)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the directory, of all processes."""
        import fcntl  # which other systems lack

        with (self._home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def sources_of_boot(entry: str) -> Iterator[Callable[[], list[str]]]:
    """What an enclave's boot imports, when it is asked for: as a Python says that imports it, outside any enclave.

    Args:
        entry: the module that boots.
    """
    modules = f"{entry}, strongroom.enclave.program" if entry == PROGRAM_ENTRY else entry
    told = f"import sys, {modules}; print('\\0'.join(str(m.__file__) for m in "
    told += "list(sys.modules.values()) if getattr(m, '__file__', None)))"
    command = [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-c", told]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as asked:  # noqa: S603

        def names() -> list[str]:
            listed = asked.communicate()[0]
            return [name for name in os.fsdecode(listed).strip().split("\0") if name.endswith(".py")]

        try:
            yield names
        finally:
            asked.kill()


def link(shown: str, prefix: str, covered: Collection[str] = ()) -> list[str]:
    """Have a ``pycache_prefix`` that takes new code in find, besides, what the launcher shows; the directories made.

    Each file is a link, so that only directories and names take memory.

    Args:
        covered: paths at which something else lies than was measured there. Code of sources below is not shown.
    """
    made: list[str] = []
    for folder, _, files in os.walk(shown):
        inside = folder.removeprefix(shown)
        ways = {inside, os.path.realpath(inside or "/")}
        if any(f"{way}/".startswith(f"{each}/") for way in ways for each in covered):
            continue
        os.makedirs(prefix + inside, exist_ok=True)  # noqa: PTH103
        made.append(prefix + inside)
        for name in files:
            source = f"{inside}/{name.removesuffix(_SUFFIX)}.py"
            if not (source in covered or (os.path.islink(source) and _leads_below(source, covered))):  # noqa: PTH114
                os.symlink(f"{folder}/{name}", f"{prefix}{inside}/{name}")  # noqa: PTH211
    return made


def _leads_below(path: str, covered: Collection[str]) -> bool:
    end = os.path.realpath(path)
    return any(f"{end}/".startswith(f"{each}/") for each in covered)


def is_kept(shown: str, source: str) -> bool:
    """Whether the launcher shows code of that source."""
    return os.path.isfile(f"{shown}{source.removesuffix('.py')}{_SUFFIX}")  # noqa: PTH113


def sources_of(prefix: str) -> list[str]:
    """The sources whose code was compiled into that ``pycache_prefix``: those of its files that are no links."""
    return [
        "/" + name.removesuffix(_SUFFIX) + ".py"
        for name, regular in (_files(Path(prefix)) if os.path.isdir(prefix) else ())  # noqa: PTH112
        if regular and name.endswith(_SUFFIX)
    ]


def _files(root: Path) -> Iterator[tuple[str, bool]]:
    """Each thing below that is no directory, by its name relative to it, and whether it is a regular file."""
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(f"{root}/{inside}") as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                else:
                    yield name, entry.is_file(follow_symlinks=False)


def _replace(path: Path, content: bytes) -> None:
    """Put that file in the place of what is there. A crash before the index is written loses all: it is made again."""
    new = path.with_name(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    new.replace(path)
