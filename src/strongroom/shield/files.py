"""The file-system shield: vaults under plain paths, for programs that know nothing of Strongroom.

`mount` shows vaults as a file system on which unmodified programs run: it decrypts a block when it is read and seals
what is written; the kernel keeps the plaintext in its page cache, inside the enclave. `expose` is for machines without
FUSE: it decrypts everything beforehand into a directory that must lie in protected memory. `collect` brings results
back.

Rules for the process that mounts, since it serves the mount from one of its threads:

- It must not `mmap` a mounted file: a page fault waits for the serving thread while it holds the interpreter's lock.
- A program is started through a helper outside the mount (`env`, a shell), and not with its working directory in it:
  `subprocess` holds the lock until the first `exec` has succeeded.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from strongroom.errors import MissingDependencyError, UnsupportedPlatformError, UsageError
from strongroom.storage import LocalDirectory
from strongroom.vault import Vault, put, unpack
from strongroom.vault.transfer import leads_out, walk_files

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_DEVICE = "/dev/fuse"
_MNT_DETACH = 2
_READAHEAD_KIB = 1024
_one_mount = threading.Lock()


class _Session(Protocol):
    def end(self) -> None: ...

    def wait(self, timeout: float | None) -> bool: ...


class MountedVault:
    """A mount, until `unmount` or the end of its ``with`` block. Made by `mount`.

    Attributes:
        path: where it is.
        failure: the first error that a program got as EIO, or None.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: BaseException | None = None
        self._session: _Session | None = None

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until somebody else unmounted it, and what was written is committed; whether that happened."""
        return self._session is None or self._session.wait(timeout)

    def unmount(self) -> None:
        """Take the mount away, even while programs use it, and commit. Doing it twice is fine.

        Raises:
            OSError, StrongroomError: the last commit failed, as `Vault.commit` says.
        """
        session, self._session = self._session, None
        if session:
            atexit.unregister(self.unmount)
            try:
                session.end()
            finally:
                _one_mount.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()


def mount(
    vault: Vault | Mapping[str, Vault],
    mountpoint: str | os.PathLike[str],
    *,
    allow_other: bool = False,
    anybody: bool = False,
    source: str = "strongroom",
    points: Mapping[str, Collection[str]] | None = None,
) -> MountedVault:
    """Show a vault as a file system, served from a thread of this process.

    A vault opened with mode ``r`` is read-only: it shows the version opened, owned by whoever mounts it. One opened
    with ``r+`` or ``x`` can be changed, and has the owners and modes that it stores; for a user other than root, their
    own ids stand for those of the vault's top directory. An fsync is durable when it returns. Besides, everything
    written is committed every 5 seconds, once 64 MiB wait, when another process wants to commit, and at the end.

    The vaults must stay open meanwhile. Should this process be killed, programs get ENOTCONN, and the next `mount`
    there clears the remains away.

    Args:
        vault: one, or several by the name of the directory each shall have: a process has one mount at a time.
        mountpoint: an empty directory.
        allow_other: let other users of the machine see the files, as far as their permission bits allow.
        anybody: let them see and use all of them, whatever these bits say: for an enclave, which has no others.
        source: what `df` and `/proc/self/mountinfo` call it.
        points: by the name of a vault that is read-only, paths in it at which there shall be a directory, be it one
            that the vault does not have, to mount something else over.

    Raises:
        UsageError: this process has a mount already, or `mountpoint` is no directory or holds the vault.
        MissingDependencyError: `pyfuse3` is not installed.
        UnsupportedPlatformError: there is no FUSE here, or no permission to mount.
    """
    if sys.platform != "linux":
        raise UnsupportedPlatformError(f"mount: {sys.platform} has no FUSE, wanted linux", hint="use expose")
    _check_device()
    try:
        from strongroom.shield import _fuse, _session
    except ImportError as error:
        raise MissingDependencyError(
            f"mount: python package {error.name} cannot be imported", hint="pip install 'strongroom[fuse]'"
        ) from None
    path = Path(mountpoint).absolute()
    vaults = {"": vault} if isinstance(vault, Vault) else vault
    for one in vaults.values():
        if isinstance(one.directory, LocalDirectory):
            check_beside(path, one.directory.path)
    clear_stale(path)
    if not path.is_dir():
        raise UsageError(f"mount point: {path} is no directory")
    if any("/" in name or name in (".", "..") or (not name and len(vaults) > 1) for name in vaults):
        raise UsageError(f"mount: directory names {sorted(vaults)}, wanted one part each")
    if not _one_mount.acquire(blocking=False):
        raise UsageError("mount: this process has one already", hint="mount several vaults at once, by name")
    try:
        mounted = MountedVault(path)
        operations = _fuse.VaultOperations(vaults, mounted._fail, points)
        mounted._session = _session.Session(
            operations, str(path), source=source, allow_other=allow_other, anybody=anybody
        )
        atexit.register(mounted.unmount)
    except BaseException:
        _one_mount.release()
        raise
    _tune(path)
    return mounted


def check_beside(mountpoint: Path, *needed: Path) -> None:
    """Refuse a mount over what is needed to serve it: the process would wait for its own answers.

    Raises:
        UsageError: one of the paths is `mountpoint`, or lies below it.
    """
    for path in needed:
        if path.resolve().is_relative_to(mountpoint.resolve()):
            raise UsageError(
                f"mount point: {mountpoint} holds {path}, which would be hidden", hint="choose an empty directory"
            )


def _tune(path: Path) -> None:
    """Ask for larger reads, where the sandbox lets one: most of the time of a request goes into the request itself.

    That the kernel begins to hand over what was written once a hundredth of the memory is dirty is left as it is: so
    programs write, and we encrypt, at the same time.
    """
    with contextlib.suppress(OSError):
        device = path.stat().st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
        (bdi / "read_ahead_kb").write_text(str(_READAHEAD_KIB))


def _check_device() -> None:
    try:
        os.close(os.open(_DEVICE, os.O_RDWR))
    except FileNotFoundError:
        raise UnsupportedPlatformError(
            f"mount: {_DEVICE} is missing", hint="modprobe fuse; in a container: --device /dev/fuse"
        ) from None
    except OSError as error:
        raise UnsupportedPlatformError(
            f"mount: {_DEVICE}: {(error.strerror or str(error)).lower()}",
            hint="run as a user who may open it, or bind it into the sandbox",
        ) from None


def clear_stale(path: Path) -> None:
    """Detach a mount at `path` whose server is dead; anything else is left alone."""
    try:
        os.statvfs(path)  # unlike `stat`, never answered from a cache
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNREFUSED):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
            with contextlib.suppress(FileNotFoundError):
                command = ["fusermount3", "-u", "-z", "--", str(path)]
                subprocess.run(command, check=False, capture_output=True)  # noqa: S603  # no shell


class ExposedVault:
    """A vault decrypted into a directory, which the end of its ``with`` block deletes. Made by `expose`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: BaseException | None = None

    def unmount(self) -> None:
        """Delete the directory. Doing it twice is fine."""
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()


def expose(vault: Vault | Mapping[str, Vault], directory: str | os.PathLike[str]) -> ExposedVault:
    """Decrypt a vault, or several by name, into a directory that only its owner can enter.

    Every block is authenticated before this returns. The plaintext is as safe as the medium of `directory`: use memory
    (tmpfs) inside the enclave.

    Raises:
        FileExistsError: `directory` is there and not empty.
        IntegrityError: a vault is not what was committed. The directory is then deleted.
    """
    path = Path(directory).absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path}: is not empty")
    path.chmod(0o700)
    exposed = ExposedVault(path)
    try:
        for name, one in {"": vault}.items() if isinstance(vault, Vault) else vault.items():
            if "/" in name or name in (".", ".."):
                raise UsageError(f"expose: directory name {name!r}, wanted one part")
            unpack(one, path / name)
    except BaseException:
        exposed.unmount()
        raise
    return exposed


def collect(directory: str | os.PathLike[str], vault: Vault) -> list[str]:
    """Put all regular files below a directory into a writable vault, replacing those of the same path there.

    A program may have left anything in `directory`, so links, devices, and names that a vault cannot hold are passed
    over. Does not commit.

    Returns:
        the paths that were passed over, sorted; most often none.
    """
    skipped = []
    for path, plain in sorted(walk_files(Path(directory))):
        try:
            put(plain, vault, path)
        except UsageError:
            skipped.append(path)
    return skipped


def take(directory: str | os.PathLike[str], vault: Vault) -> list[str]:
    """Have a writable vault hold what is below a directory, and nothing else: files, directories, symbolic links.

    Links are kept as they are, unless they lead out: `expose` would refuse the vault. Does not commit.

    Returns:
        the paths that were passed over, sorted: pipes, sockets, devices, such links, and names that no vault can hold.
    """
    top = Path(directory)
    found = dict(walk_files(top))
    links = {path: os.readlink(plain) for path, plain in found.items() if plain.is_symlink()}  # noqa: PTH115  # as it is
    kept = {path: target for path, target in links.items() if not leads_out(path, links)}
    regular = {path for path, plain in found.items() if path not in links and stat.S_ISREG(plain.lstat().st_mode)}
    for above, _, names in list(vault.walk()):
        for path in (f"{above}/{name}" if above else name for name in names):
            if not vault.stat(path, follow=False).is_link:
                if path in regular:
                    continue
            elif kept.get(path) == vault.readlink(path):
                del kept[path]
                del found[path]  # it stays
                continue
            vault.remove(path)
    directories = {path: plain for path, plain in _directories(top) if path}
    below = [f"{above}/{name}" if above else name for above, names, _ in vault.walk() for name in names]
    for path in sorted(below, key=len, reverse=True):
        if path not in directories:
            vault.remove_dir(path, recursive=True)
    skipped = []
    for path, plain in sorted({**directories, **found}.items()):
        try:
            if path in directories:
                vault.mkdir(path, permissions=stat.S_IMODE(plain.stat().st_mode) & 0o777 | 0o700, exist_ok=True)
            elif path in kept:
                vault.symlink(kept[path], path)
            elif path in regular:
                put(plain, vault, path)
            else:
                skipped.append(path)
        except UsageError:
            skipped.append(path)
    return skipped


def _directories(top: Path) -> Iterator[tuple[str, Path]]:
    for above, _, _ in os.walk(top):
        yield above[len(str(top)) + 1 :], Path(above)
