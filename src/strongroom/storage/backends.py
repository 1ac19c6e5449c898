"""Objects on any fsspec file system: whole ones made at once, ranges of them read, and which back ends make one only
if it is absent.

**Create-if-absent.** `pipe_file(mode="create")` promises less than its name: fsspec's own asks whether the object
exists and then writes. So only the back ends of `EXCLUSIVE` are taken to have it, each for its reason, and those that
are servers are asked to refuse a second object of one name first (`Objects.exclusive`), as an old client, an old server
or a bucket of another kind drops the condition and overwrites. Other back ends serve one writer at a time.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from strongroom.errors import MissingDependencyError, StrongroomError, TruncatedError, UsageError

_LOCAL = "fsspec.implementations.local.LocalFileSystem"
_MEMORY = "fsspec.implementations.memory.MemoryFileSystem"
_S3 = "s3fs.core.S3FileSystem"

# Implementations (module and class) that make an object only if it is absent, and why one may believe so.
EXCLUSIVE = {
    _LOCAL: "link(2) of a finished, synced file fails if the name exists; fsspec's own way is not used",
    _MEMORY: "one process, and a lock of ours around asking and writing",
    _S3: "sends If-None-Match: * with PutObject and with CompleteMultipartUpload, and AWS keeps to it (since 2024-11); "
    "other servers of that protocol differ, so those with an endpoint of their own are not taken to",
    "gcsfs.core.GCSFileSystem": "sends ifGenerationMatch=0 with both kinds of upload",
    "gcsfs.extended_gcsfs.ExtendedGcsFileSystem": "as the above; zonal buckets are overwritten, which asking finds out",
    "adlfs.spec.AzureBlobFileSystem": "calls upload_blob(overwrite=False), which sends If-None-Match: *",
}

SPOOLED = 8 << 20  # bytes that one new object may take in memory before they go to a temporary file
_CHUNK = 16 << 20

# Objects of our own that are no files: probes, and files of a local back end that are not finished.
_OWN = ".strongroom-"

_BLOCK = 256 << 10
_BLOCKS = 32

_memory_lock = threading.Lock()


def require_fsspec() -> Any:
    """The module fsspec.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingDependencyError(
            "fsspec: not installed, wanted for object stores", hint="pip install 'strongroom[fsspec]'"
        ) from None
    return fsspec


@contextlib.contextmanager
def _medium(what: str) -> Iterator[None]:
    # Back ends raise errors of their client libraries; a storage promises OSError.
    try:
        yield
    except (OSError, StrongroomError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", what) from error


class Objects:
    """The objects under one path of an fsspec file system. Names hold no separator; contents never change.

    Args:
        exclusive: say True if you know that this back end makes objects only if they are absent, or False to rely on
            nothing; None looks into `EXCLUSIVE`.
    """

    def __init__(self, fs: Any, path: str, *, exclusive: bool | None = None) -> None:
        self.fs = fs
        self.path = str(fs._strip_protocol(path)).rstrip("/")
        self.kind = f"{type(fs).__module__}.{type(fs).__qualname__}"
        self._exclusive = exclusive
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._rooted = False

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    def what(self, name: str) -> str:
        """The object's name for errors."""
        return f"{self}/{name}"

    def _at(self, name: str) -> str:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or name.startswith(_OWN):
            raise UsageError(f"file name: {name!r}, wanted one without a path, not beginning with {_OWN}")
        return f"{self.path}/{name}"

    # Reading.

    def names(self) -> dict[str, int]:
        """The sizes of all objects. Nothing that was made before the call is missing."""
        with _medium(str(self)):
            self.fs.invalidate_cache(self.path)
            try:
                entries = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
        found = {}
        for entry in entries:
            name, size = str(entry["name"]).rsplit("/", 1)[-1], entry["size"]
            if entry["type"] == "file" and name and not name.startswith(_OWN):
                found[name] = size if isinstance(size, int) and size >= 0 else 0
        return found

    def size(self, name: str) -> int:
        """Raises FileNotFoundError."""
        with _medium(self.what(name)):
            self.fs.invalidate_cache(self.path)
            info = self.fs.info(self._at(name))
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return max(0, int(info["size"]))

    def get(self, name: str, start: int, end: int) -> bytes:
        """At most the bytes [`start`, `end`): fewer where the object ends."""
        with _medium(self.what(name)), self._one_at_a_time():
            return bytes(self.fs.cat_file(self._at(name), start=start, end=end)[: end - start])

    def heads(self, names: list[str], size: int) -> list[bytes]:
        """The first `size` bytes of each object, asked for at once where the back end can.

        Raises:
            TruncatedError: one is missing.
        """
        with _medium(str(self)), self._one_at_a_time():
            paths = [self._at(name) for name in names]
            heads = self.fs.cat_ranges(paths, [0] * len(paths), [size] * len(paths), on_error="return")
        for name, head in zip(names, heads, strict=True):
            if isinstance(head, FileNotFoundError):
                raise self.missing(name)
            if isinstance(head, BaseException):
                with _medium(self.what(name)):
                    raise head
        return [bytes(head[:size]) for head in heads]

    def _one_at_a_time(self) -> contextlib.AbstractContextManager[object]:
        # fsspec's files in memory have one position for all their readers.
        return _memory_lock if self.kind == _MEMORY else contextlib.nullcontext()

    def missing(self, name: str) -> TruncatedError:
        return TruncatedError(
            f"object {self.what(name)}: missing",
            hint="open again if another program writes here; else restore it from a copy",
        )

    def read(self, name: str, size: int, at: int, view: memoryview) -> None:
        """Fill `view` from the object's byte `at` on, through the cache. The object's size is `size`.

        Raises:
            TruncatedError: the object is missing or shorter.
        """
        done = 0
        while done < len(view):
            index, start = divmod(at + done, _BLOCK)
            block = self._block(name, size, index, (at + len(view) - 1) // _BLOCK)
            count = min(len(view) - done, len(block) - start)
            if count <= 0:
                raise TruncatedError(
                    f"object {self.what(name)}: ends at {index * _BLOCK + len(block)}, wanted {at + len(view)} bytes",
                    hint="the end of the object is missing; restore it from a copy",
                )
            view[done : done + count] = memoryview(block)[start : start + count]
            done += count

    def _block(self, name: str, size: int, index: int, last: int) -> bytes:
        with self._lock:
            if (block := self._cache.get((name, index))) is not None:
                self._cache.move_to_end((name, index))
                return block
        # One request for all that follows and may stay in the cache with it.
        last = min(last, index + _BLOCKS // 2)
        start, end = index * _BLOCK, min((last + 1) * _BLOCK, size)
        if start >= end:
            return b""
        try:
            data = self.get(name, start, end)
        except FileNotFoundError:
            raise self.missing(name) from None
        if len(data) == end - start:
            self.remember(name, data, first=index)
        return data[:_BLOCK]

    def remember(self, name: str, data: bytes, *, first: int = 0) -> None:
        """Keep what an object holds from block `first` on."""
        with self._lock:
            for i in range(0, min(len(data), _BLOCK * _BLOCKS), _BLOCK):
                self._cache[name, first + i // _BLOCK] = data[i : i + _BLOCK]
            while len(self._cache) > _BLOCKS:
                self._cache.popitem(last=False)

    def forget(self, name: str) -> None:
        with self._lock:
            for key in [key for key in self._cache if key[0] == name]:
                del self._cache[key]

    # Writing.

    def put(self, name: str, file: IO[bytes], size: int) -> None:
        """Make an object of `size` bytes from an open file, durable on return. A name that nobody else uses."""
        path = self._at(name)
        file.seek(0)
        self.forget(name)
        with _medium(self.what(name)):
            self._make_root()
            if self.kind == _LOCAL:
                with self._local_file(file) as temporary:
                    temporary.replace(path)
            elif size <= SPOOLED:
                self.fs.pipe_file(path, file.read())
            else:
                with self.fs.open(path, "wb", block_size=_CHUNK) as target:
                    shutil.copyfileobj(file, target, _CHUNK)

    def create(self, name: str, data: bytes) -> bool:
        """Make an object, durable on return; False if it exists. Atomic where `exclusive` said so.

        `data` differs from what anybody else would write: a back end may have written it although an earlier try of its
        own failed, and calls it existing then.
        """
        path = self._at(name)
        self.forget(name)
        try:
            with _medium(self.what(name)):
                self._make_root()
                self._create(path, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                there = self.get(name, 0, len(data) + 1)
                return there == data
            if isinstance(error, FileExistsError):
                return False
            raise
        return True

    def _create(self, path: str, data: bytes) -> None:
        if self.kind == _LOCAL:
            with self._local_file(io.BytesIO(data)) as temporary:
                Path(path).hardlink_to(temporary)
        elif self._exclusive and self.kind != _MEMORY:
            self.fs.pipe_file(path, data, mode="create")
        else:
            with self._one_at_a_time():
                if self.fs.exists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                self.fs.pipe_file(path, data)

    def exclusive(self) -> bool:
        """Whether two creators of one name cannot both succeed: by the table, and for a server by trying it."""
        if self._exclusive is None:
            self._exclusive = self.kind in EXCLUSIVE and not (self.kind == _S3 and _has_own_endpoint(self.fs))
            if self._exclusive and self.kind not in (_LOCAL, _MEMORY):
                self._exclusive = self._refuses_a_second()
        return self._exclusive

    def _refuses_a_second(self) -> bool:
        path = f"{self.path}/{_OWN}probe-{secrets.token_hex(8)}"
        with _medium(path):
            try:
                self.fs.pipe_file(path, b"1", mode="create")
                self.fs.pipe_file(path, b"2", mode="create")
            except FileExistsError:
                return True
            except TypeError:
                return False  # a version that knows no mode
            finally:
                with contextlib.suppress(Exception):
                    self.fs.rm_file(path)
        return False

    @contextlib.contextmanager
    def _local_file(self, content: IO[bytes]) -> Iterator[Path]:
        # A finished file under a name of its own, synced, that the block renames or links; then the directory's sync.
        path = Path(self.path or "/") / f"{_OWN}{secrets.token_hex(8)}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            with os.fdopen(fd, "wb") as target:
                shutil.copyfileobj(content, target, _CHUNK)
                target.flush()
                os.fsync(target.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)
        if hasattr(os, "O_DIRECTORY"):
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _make_root(self) -> None:
        if not self._rooted and self.kind in (_LOCAL, _MEMORY):  # elsewhere a path is a part of the objects' names
            self.fs.makedirs(self.path, exist_ok=True)
        self._rooted = True

    def rename(self, old: str, new: str) -> None:
        """Replace `new` by `old`; not atomic in most back ends."""
        self.size(old)
        with _medium(self.what(old)):
            if self.kind == _LOCAL:
                Path(self._at(old)).replace(self._at(new))
            else:
                self.fs.cp_file(self._at(old), self._at(new))
                self.fs.rm_file(self._at(old))
        self.forget(old)
        self.forget(new)

    def delete(self, name: str) -> None:
        """Raises FileNotFoundError where the back end tells."""
        with _medium(self.what(name)):
            self.fs.rm_file(self._at(name))
        self.forget(name)


def _has_own_endpoint(fs: Any) -> bool:
    options = getattr(fs, "client_kwargs", None) or {}
    variables = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    return bool(getattr(fs, "endpoint_url", None) or options.get("endpoint_url") or any(map(os.environ.get, variables)))
