"""The vault by path, as Python programs use it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from strongroom.errors import FormatError, UsageError, WrongKeyError
from strongroom.sealed import Anchor, NoFreshness
from strongroom.sealed.layout import DEFAULT_BLOCK, MIN_BLOCK, check_block_size
from strongroom.storage import Directory, LocalDirectory
from strongroom.vault.access import VaultKey, check_ring, find_key
from strongroom.vault.engine import META
from strongroom.vault.inodes import Inodes, failure
from strongroom.vault.kind import is_kind, shown
from strongroom.vault.paths import check_path, show, split
from strongroom.vault.rows import ROOT_INODE, Inode
from strongroom.vault.stream import VaultFile

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

DEFAULT_MODE = 0o644
MODE_BITS = 0o7777
_MAX_FOLLOWED = 40

Mode = Literal["r", "r+", "x"]
FileMode = Literal["rb", "wb", "xb", "ab", "r+b"]


@dataclass(frozen=True, slots=True)
class Stat:
    """What a path in a vault is: `size` in bytes and `mode` bits; of a directory the size is 0."""

    size: int
    mode: int
    is_dir: bool
    is_link: bool = False
    mtime: int = field(default=0, compare=False)
    inode: int = field(default=0, compare=False)


def open(  # noqa: A001  # used as `vault.open`
    path: str | os.PathLike[str] | Directory,
    mode: Mode = "r",
    *,
    key: VaultKey,
    anchor: Anchor | NoFreshness,
    encrypted: bool | None = None,
) -> Vault:
    """Open the vault in a directory.

    Nothing that is changed counts before `Vault.commit`, which `close` and the end of a ``with`` block call too; a
    ``with`` block that an exception ends discards what was not committed. Several processes may have one vault open,
    for writing too: a commit that meets another's change of the same file or name raises `ConflictError`.

    Args:
        path: the directory on disk; with mode ``x`` it is made, or must be empty.
        mode: ``r`` to read the version that is the newest now, ``r+`` to change, ``x`` to create.
        key: the vault key, 32 bytes; or what opens one of its key slots: a `KeyFile`, a `Passphrase`, an `AgeIdentity`
            or a `KeySource` (`strongroom.vault.keys`). With ``x`` a `Passphrase`, an `AgeRecipient` or a `SourceKey`
            makes a random vault key and a slot for it.
        anchor: where the latest root is remembered, or `NO_FRESHNESS` to accept any authentic version, however old.
        encrypted: False for a vault that is authenticated only: anybody can read contents on the disk, nobody can
            change them; names and attributes are encrypted all the same. A vault is refused if it is not as stated; by
            default a reader takes either kind, which nobody without the key can exchange for the other, and a writer
            an encrypted one only.

    Raises:
        FileNotFoundError, FileExistsError: there is no vault, or there is one already.
        LockedError: somebody else is writing, where the platform has no byte locks.
        FormatError: it is not a vault, or not `encrypted` as stated.
        WrongKeyError, TruncatedError, RollbackError, TamperedError: as `open_sealed`.
    """
    if mode not in ("r", "r+", "x"):
        raise UsageError(f"mode: {mode!r}, wanted r, r+ or x")
    directory = path if not isinstance(path, (str, os.PathLike)) else LocalDirectory(path)
    what = "vault" if directory is path else os.fspath(path)  # type: ignore[arg-type]
    if mode == "x" and isinstance(path, (str, os.PathLike)):
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(Path(path).iterdir()):
            raise FileExistsError(f"{os.fspath(path)}: is not empty")
        LocalDirectory(Path(path).absolute().parent).sync()
    unlocked = find_key(directory, key, new=mode == "x")
    vault = _open_kind(directory, mode, unlocked.key, anchor, what, encrypted)
    try:
        check_ring(vault, unlocked.ring)
    except BaseException:
        vault.discard()
        raise
    return vault


def _open_kind(
    directory: Directory, mode: Mode, key: bytes, anchor: Anchor | NoFreshness, what: str, encrypted: bool | None
) -> Vault:
    """Open it as the kind that it has to be, or for a reader who has not said, as the kind that it is."""
    wanted = encrypted is not False
    try:
        return Vault(directory, mode, key, anchor, what=what, encrypted=wanted)
    except WrongKeyError:
        if not is_kind(directory, META, key, encrypted=not wanted):
            raise
    if encrypted is None and mode == "r":
        return Vault(directory, mode, key, anchor, what=what, encrypted=not wanted)
    hint = "say encrypted=False (--authenticated) if that is meant: what is written to it, anybody can read"
    raise FormatError(
        f"{what}: is {shown(encrypted=not wanted)}, wanted {shown(encrypted=wanted)}",
        hint=hint if wanted and mode != "r" else None,
    )


class Vault(Inodes):
    """An open vault. Made by `vault.open`; its methods may be called from several threads.

    Paths are relative to the top; symbolic links are followed, unless they are absolute or lead out of the vault.
    """

    # Looking.

    def _find(self, path: str, *, follow: bool = True) -> Inode:
        self._usable()
        left = split(path)[::-1]
        above: list[Inode] = [self.inode(ROOT_INODE)]
        followed = 0
        while left:
            part = left.pop()
            if part in (b"", b"."):
                raise failure(errno.ENOENT, path)
            if part == b"..":
                if len(above) == 1:
                    raise failure(errno.ENOENT, path)
                above.pop()
                continue
            if not above[-1].is_dir:
                raise FileNotFoundError(f"{self._what}: {path}: no such file")
            number = self._state.entry(above[-1].id, part)
            if number is None:
                raise FileNotFoundError(f"{self._what}: {path}: no such file")
            inode = self.inode(number)
            if inode.is_link and (left or follow):
                followed += 1
                target = self.target(number)
                if followed > _MAX_FOLLOWED:
                    raise failure(errno.ELOOP, path)
                if target.startswith(b"/"):
                    raise FileNotFoundError(f"{self._what}: {path}: leads out of the vault, to {show(target)}")
                left += [step for step in target.split(b"/") if step not in (b"", b".")][::-1]
                continue
            above.append(inode)
        return above[-1]

    def _place(self, path: str) -> tuple[Inode, bytes]:
        """The directory and the name for a path that need not exist; directories above it are made."""
        check_path(path)
        *parts, name = split(path)
        above = self.inode(ROOT_INODE)
        done = []
        for part in parts:
            done.append(show(part))
            number = self._state.entry(above.id, part)
            if number is None:
                above = self.make_at(above.id, part, stat.S_IFDIR | 0o755, uid=above.uid, gid=above.gid)
                continue
            below = self.inode(number)
            if below.is_link:
                below = self._find("/".join(done))
            if not below.is_dir:
                raise UsageError(f"path in vault: {path!a}, but {'/'.join(done)!a} is a file")
            above = below
        return above, name

    def files(self) -> list[str]:
        """The paths of everything that is no directory, sorted."""
        return sorted(f"{top}/{name}" if top else name for top, _, names in self.walk() for name in names)

    def listdir(self, path: str = "") -> list[str]:
        """The names in a directory, sorted.

        Raises:
            FileNotFoundError, NotADirectoryError: it is none.
        """
        with self._lock:
            inode = self._find(path)
            if not inode.is_dir:
                raise NotADirectoryError(f"{self._what}: {path} is a file")
            return sorted(show(name) for name, _ in self.entries(inode.id))

    def walk(self, path: str = "") -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`: (directory, its directories, its files and links), the top first."""
        left = [path]
        while left:
            path = left.pop()
            with self._lock:
                inode = self._find(path)
                if not inode.is_dir:
                    raise NotADirectoryError(f"{self._what}: {path} is a file")
                below = [(show(name), found.is_dir) for name, found in self.entries(inode.id)]
            directories = sorted(name for name, is_dir in below if is_dir)
            yield path, directories, sorted(name for name, is_dir in below if not is_dir)
            left += [f"{path}/{name}" if path else name for name in reversed(directories)]

    def stat(self, path: str, *, follow: bool = True) -> Stat:
        """Raises FileNotFoundError if there is nothing at `path`."""
        with self._lock:
            inode = self._find(path, follow=follow)
            size = 0 if inode.is_dir else inode.size
            return Stat(size, stat.S_IMODE(inode.mode), inode.is_dir, inode.is_link, inode.mtime, inode.id)

    def __contains__(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        try:
            return not self.stat(path).is_dir
        except OSError:
            return False

    def read_bytes(self, path: str) -> bytes:
        """The whole content of a file."""
        with self.open(path) as file:
            return file.read()

    def readlink(self, path: str) -> str:
        """Where a symbolic link leads."""
        with self._lock:
            return show(self.target(self._find(path, follow=False).id))

    # Files.

    def open(
        self,
        path: str,
        mode: FileMode = "rb",
        *,
        permissions: int = DEFAULT_MODE,
        block_size: int = DEFAULT_BLOCK,
    ) -> VaultFile:
        """Open a file of the vault. Directories above a new one are made.

        ``wb`` writes a file anew: it takes the path once it is closed, until then readers of the path get the old one,
        and an exception inside its ``with`` block leaves the old one. ``xb`` makes a new file, ``r+b`` and ``ab``
        change the one there: what they write counts from the next commit on, closed or not.

        Args:
            permissions: the mode bits that a new file shall have when it is unpacked or mounted.
            block_size: of a new file larger than 64 KiB; its data file is a multiple of it long.

        Raises:
            FileNotFoundError, FileExistsError, IsADirectoryError: as `open` does.
            UsageError: the path cannot be one.
            LockedError: another process is writing to the file.
            IntegrityError: the data file is not what was committed.
        """
        with self._lock:
            if mode not in ("rb", "wb", "xb", "ab", "r+b"):
                raise UsageError(f"mode: {mode!r}, wanted rb, wb, xb, ab or r+b")
            self._usable(to_write=mode != "rb")
            check_block_size(block_size)
            name = f"{self._what}: {path}"
            if mode in ("rb", "r+b") or (mode == "ab" and self._exists(path)):
                inode = self._find(path)
                if inode.is_dir:
                    raise IsADirectoryError(f"{name} is a directory")
                return VaultFile(self, self.hold(inode.id), mode, name)
            if self._is_dir(path):
                raise UsageError(f"path in vault: {path!a} is a directory")
            above, last = self._place(path)
            bits = stat.S_IFREG | (permissions & MODE_BITS)
            if mode == "wb":
                return VaultFile(self, self._unnamed_file(bits, above, block_size), mode, name, (above.id, last))
            made = self.make_at(above.id, last, bits, uid=above.uid, gid=above.gid)
            node = self.hold(made.id)
            node.block_size = block_size
            return VaultFile(self, node, mode, name)

    def _unnamed_file(self, mode: int, above: Inode, block_size: int):  # type: ignore[no-untyped-def]
        now = self._clock()
        inode = self._state.add(Inode(0, mode, 0, above.uid, above.gid, 0, now, now, now, None, 0))
        node = self.hold(inode.id)
        node.block_size = block_size
        return node

    def adopt(self, number: int, parent: int, name: bytes) -> None:
        """Give a file without a name the name of another, which it replaces."""
        with self._lock:
            self._usable(to_write=True)
            inode = self.inode(number)
            found = self._state.entry(parent, name)
            other = None if found is None else self.inode(found)
            if other is not None and other.is_dir:
                raise failure(errno.EISDIR, name)
            now = self._clock()
            inode.links += 1
            self._state.touch(inode)
            self._state.link(parent, name, number)
            self._ordered.add(number)
            self._touch_directory(self.inode(parent), now)
            if other is not None:
                self._unnamed(other, now)

    def _exists(self, path: str) -> bool:
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True

    def _is_dir(self, path: str) -> bool:
        check_path(path)
        try:
            return self._find(path).is_dir
        except OSError:
            return False

    def write_bytes(self, path: str, data: Buffer, *, permissions: int = DEFAULT_MODE) -> None:
        """Make `data` the whole content of a file."""
        with self.open(path, "wb", permissions=permissions) as file:
            file.write(data)

    # Names.

    def _named(self, path: str) -> tuple[int, bytes]:
        check_path(path)
        above, _, name = path.rpartition("/")
        inode = self._find(above)
        if not inode.is_dir:
            raise FileNotFoundError(f"{self._what}: {path}: no such file")
        return inode.id, name.encode()

    def mkdir(self, path: str, *, permissions: int = 0o755, exist_ok: bool = False) -> None:
        """Make a directory, and those above it. Raises FileExistsError."""
        with self._lock:
            self._usable(to_write=True)
            above, name = self._place(path)
            number = self._state.entry(above.id, name)
            if number is not None and exist_ok and self.inode(number).is_dir:
                return
            self.make_at(above.id, name, stat.S_IFDIR | permissions & MODE_BITS, uid=above.uid, gid=above.gid)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link."""
        with self._lock:
            self._usable(to_write=True)
            above, name = self._place(path)
            self.make_at(above.id, name, stat.S_IFLNK | 0o777, uid=above.uid, gid=above.gid, target=os.fsencode(target))

    def remove(self, path: str) -> None:
        """Take a file or a link out of the vault. Raises FileNotFoundError, IsADirectoryError."""
        with self._lock:
            self._usable(to_write=True)
            self._find(path, follow=False)
            self.unlink_at(*self._named(path))

    def remove_dir(self, path: str, *, recursive: bool = False) -> None:
        """Remove a directory that is empty, or with all that is in it."""
        with self._lock:
            self._usable(to_write=True)
            inode = self._find(path, follow=False)
            left, directories = [inode.id] if recursive and inode.is_dir else [], list[tuple[int, bytes]]()
            while left:
                parent = left.pop()
                for name, below in self.entries(parent):
                    if below.is_dir:
                        directories.append((parent, name))
                        left.append(below.id)
                    else:
                        self.unlink_at(parent, name)
            for parent, name in reversed(directories):
                self.rmdir_at(parent, name)
            self.rmdir_at(*self._named(path))

    def rename(self, old: str, new: str) -> None:
        """Give a file or a directory another path, replacing the file that has it.

        Raises:
            FileNotFoundError: there is nothing at `old`.
            UsageError: `new` cannot be a path here.
        """
        with self._lock:
            self._usable(to_write=True)
            self._find(old, follow=False)
            parent, name = self._named(old)
            above, new_name = self._place(new)
            self.rename_at(parent, name, above.id, new_name)

    def chmod(self, path: str, permissions: int) -> None:
        """Change mode bits."""
        with self._lock:
            self.change(self._find(path).id, mode=permissions)

    # The whole.

    def verify(self) -> int:
        """Read every block of every file from the disk; return the number of files.

        Raises:
            IntegrityError: something is not what was committed; the message names the first such path.
        """
        count = 0
        for top, _, names in self.walk():
            for name in names:
                path = f"{top}/{name}" if top else name
                if self.stat(path, follow=False).is_link:
                    continue
                with self.open(path) as file:
                    file.verify()
                count += 1
        return count

    def __repr__(self) -> str:
        return f"<Vault {self._what!r} mode={self._mode!r} root={self.root}>"


def fit_block(size: int) -> int:
    """A block size that wastes little for a file of `size` bytes."""
    block = MIN_BLOCK
    while block < min(size, DEFAULT_BLOCK):
        block *= 2
    return block


__all__ = ["FormatError", "Mode", "Stat", "Vault", "VaultFile", "open"]
