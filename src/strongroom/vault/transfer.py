"""Between a vault and plain files: `pack`, `unpack`.

Rules:

- Both look at everything first, and refuse before they write anything.
- Nothing is written outside of the destination: what is unpacked is made anew, symbolic links come last, and none is
  ever followed. One that would lead out of the tree is refused, unless that is asked for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from strongroom.errors import FormatError, UsageError
from strongroom.storage import LocalDirectory
from strongroom.vault.paths import check_path, show
from strongroom.vault.rows import Inode
from strongroom.vault.stream import VaultFile
from strongroom.vault.vault import MODE_BITS, Vault

Progress = Callable[[str, int], None]
"""Is told of a path in the vault and how many more bytes of it were copied."""

_CHUNK = 1 << 20
_MAX_FOLLOWED = 40
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_LINK_TIMES = os.utime in os.supports_follow_symlinks
_KEPT_BITS = 0o777  # what unpacks sets no one's id: a program that wrote the vault could plant that


@dataclass(frozen=True, slots=True)
class _Plain:
    """What lies on the disk: a path below the top, and what `lstat` says (`stat`, where links are followed)."""

    path: str
    plain: Path
    status: os.stat_result


def pack(
    source: str | os.PathLike[str],
    vault: Vault,
    *,
    into: str = "",
    follow: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Put a file, or all that is in a directory, into a writable vault. Does not commit.

    A single file gets its own name, what is in a directory its path below it. Kept are contents, empty directories,
    symbolic links, permission bits and modification times; what has the same path in the vault is replaced.

    Args:
        into: a directory of the vault to put it in, made if it is missing.
        follow: put what symbolic links lead to in their place.
        progress: is told of every chunk that was copied.

    Returns:
        the paths in the vault of files and links, sorted.

    Raises:
        UsageError: there is a device, a pipe or a socket, a symbolic link that leads out of `source`, or `source` holds
            the vault itself. Nothing was changed; nothing is left out in silence.
    """
    top = Path(source)
    prefix = f"{check_path(into)}/" if into else ""
    if not top.is_dir() or (top.is_symlink() and not follow):
        check_path(prefix + top.name)
        put(top.resolve() if follow else top, vault, prefix + top.name, progress=progress)
        return [prefix + top.name]
    if isinstance(vault.directory, LocalDirectory) and vault.directory.path.resolve().is_relative_to(top.resolve()):
        raise UsageError(f"source: {top} holds the vault {vault.directory.path} itself")
    found = sorted(_scan(top, follow=follow), key=lambda item: item.path)
    links = {item.path: _target(item.plain) for item in found if stat.S_ISLNK(item.status.st_mode)}
    for item in found:
        check_path(prefix + item.path)
        _check_kind(item)
    for path in links:
        if leads_out(path, links):
            raise UsageError(
                f"{top / path}: is a symbolic link that leads out of {top}, to {links[path]!a}",
                hint="put what it leads to in its place (follow=True, --follow-links), or remove it",
            )
    packed = []
    for item in found:
        path = prefix + item.path
        if stat.S_ISDIR(item.status.st_mode):
            vault.mkdir(path, exist_ok=True)
            continue
        if item.path in links:
            _put_link(vault, path, links[item.path])
            _set_attributes(vault, path, item.status)
        else:
            put(item.plain, vault, path, progress=progress, follow=follow)
        packed.append(path)
    for item in found:
        # Last: what is made in a directory changes its time.
        if stat.S_ISDIR(item.status.st_mode):
            _set_attributes(vault, prefix + item.path, item.status)
    return packed


def _scan(top: Path, *, follow: bool, below: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> list[_Plain]:
    found = []
    status = top.stat()
    above |= {(status.st_dev, status.st_ino)}
    with os.scandir(top) as entries:
        for entry in entries:
            plain, path = top / entry.name, below + entry.name
            try:
                status = plain.stat() if follow else plain.lstat()
            except FileNotFoundError:
                if not (follow and plain.is_symlink()):
                    raise
                raise UsageError(f"{plain}: is a symbolic link that leads nowhere", hint="remove it") from None
            found.append(_Plain(path, plain, status))
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in above:
                    raise UsageError(f"{plain}: is a symbolic link to a directory above itself", hint="remove it")
                found += _scan(plain, follow=follow, below=f"{path}/", above=above)
    return found


def _target(plain: Path) -> str:
    return os.readlink(plain)  # noqa: PTH115  # pathlib would respell it


def _check_kind(item: _Plain) -> None:
    mode = item.status.st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise _irregular(item.plain)


def leads_out(path: str, links: Mapping[str, str]) -> bool:
    """Whether whoever follows the symbolic link at `path` leaves the tree, all links of which are `links`."""
    left = path.split("/")[::-1]
    at: list[str] = []
    followed = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                return True
            at.pop()
            continue
        target = links.get("/".join([*at, part]))
        if target is None:
            at.append(part)
            continue
        followed += 1
        if followed > _MAX_FOLLOWED:
            return False  # the system gives up as well
        if target.startswith("/") or (os.sep == "\\" and any(c in target for c in "\\:")):
            return True
        left += target.split("/")[::-1]
    return False


def put(plain: Path, vault: Vault, path: str, *, progress: Progress | None = None, follow: bool = False) -> None:
    """Copy one regular file into a writable vault, with its permission bits and modification time.

    Raises:
        UsageError: `plain` is no regular file.
    """
    # Look first: opening a device or a pipe can do harm. Then open without following links, and look again.
    if not stat.S_ISREG((plain.stat() if follow else plain.lstat()).st_mode):
        raise _irregular(plain)
    flags = os.O_RDONLY | (_NO_FOLLOW & ~getattr(os, "O_NOFOLLOW", 0) if follow else _NO_FOLLOW)
    with os.fdopen(os.open(plain, flags), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _irregular(plain)
        bits = stat.S_IMODE(status.st_mode) & MODE_BITS
        with vault.open(path, "wb", permissions=bits) as sealed:
            buffer = memoryview(bytearray(_CHUNK))
            while count := file.readinto(buffer):
                sealed.write(buffer[:count])
                if progress:
                    progress(path, count)
    _set_attributes(vault, path, status)


def _put_link(vault: Vault, path: str, target: str) -> None:
    try:
        there = vault.stat(path, follow=False)
    except FileNotFoundError:
        pass
    else:
        if there.is_dir:
            raise UsageError(f"path in vault: {path!a} is a directory")
        vault.remove(path)
    vault.symlink(target, path)


def _set_attributes(vault: Vault, path: str, status: os.stat_result) -> None:
    link = stat.S_ISLNK(status.st_mode)
    number = vault.stat(path, follow=False).inode
    vault.change(number, mode=None if link else stat.S_IMODE(status.st_mode) & MODE_BITS, mtime=status.st_mtime_ns)


def unpack(
    vault: Vault,
    destination: str | os.PathLike[str],
    path: str = "",
    *,
    outside_links: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Decrypt all that is in a vault, or in a directory of it, into a directory that is new or empty.

    A `destination` that is made here can be entered by its owner only; one that exists keeps its permission bits, and
    whoever they let in sees names, and what the files' own bits show. What is in it gets its permission bits (but for
    those that set ids) and modification times. Pipes and sockets, which a mount may have left, are passed over.

    Args:
        path: a directory of the vault.
        outside_links: make symbolic links that lead out of `destination` too. They are not followed here, but who uses
            what was unpacked may follow them.
        progress: is told of every chunk that was copied.

    Returns:
        the paths of files and links, sorted, relative to `path`.

    Raises:
        FileExistsError: `destination` is not empty. Nothing is ever overwritten.
        UsageError: a symbolic link leads out. Nothing was written.
        IntegrityError: a data file is not what was committed. What was written before that stays; what failed does not.
    """
    top = Path(destination)
    directory = vault.stat(path)
    if not directory.is_dir:
        raise NotADirectoryError(f"{vault.name}: {path} is a file")
    found = list(walk_vault(vault, directory.inode))
    links = {name: os.fsdecode(vault.target(inode.id)) for name, inode in found if inode.is_link}
    for name in links:
        if not outside_links and leads_out(name, links):
            raise UsageError(
                f"{vault.name}: {name}: is a symbolic link that leads out of the directory, to {links[name]!a}",
                hint="nothing was unpacked; outside_links=True (--outside-links) makes it all the same",
            )
    targets = {name: _below(top, name) for name, _ in found}
    top.mkdir(mode=0o700, parents=True, exist_ok=True)  # the directories above it, as the umask says
    if any(top.iterdir()):
        raise FileExistsError(f"{top}: is not empty, and unpacking overwrites nothing")
    for name, inode in found:
        if inode.is_dir:
            targets[name].mkdir(mode=0o700)
        elif inode.is_file:
            get(vault, inode, name, targets[name], progress=progress)
    for name, inode in found:
        if inode.is_link:
            targets[name].symlink_to(links[name])
            if _LINK_TIMES:
                os.utime(targets[name], ns=(inode.mtime, inode.mtime), follow_symlinks=False)
    for name, inode in reversed(found):
        if inode.is_dir:
            os.utime(targets[name], ns=(inode.mtime, inode.mtime))
            targets[name].chmod(stat.S_IMODE(inode.mode) & _KEPT_BITS)
    return sorted(name for name, inode in found if inode.is_file or inode.is_link)


def get(vault: Vault, inode: Inode, name: str, target: Path, *, progress: Progress | None = None) -> None:
    """Decrypt one file to a path that must not exist. If that fails, nothing is there afterwards."""
    buffer = memoryview(bytearray(_CHUNK))
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
    try:
        with (
            os.fdopen(fd, "wb", buffering=0),
            VaultFile(vault, vault.hold(inode.id), "rb", f"{vault.name}: {name}") as sealed,
        ):
            while count := sealed.readinto(buffer):
                _write_all(fd, buffer[:count])
                if progress:
                    progress(name, count)
        os.utime(target, ns=(inode.mtime, inode.mtime))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    target.chmod(stat.S_IMODE(inode.mode) & _KEPT_BITS)


def walk_vault(vault: Vault, number: int, below: str = "") -> Iterator[tuple[str, Inode]]:
    """(path, inode) of everything below a directory, each directory before what is in it, sorted."""
    left = [(below + show(name), inode) for name, inode in vault.entries(number)][::-1]
    while left:
        path, inode = left.pop()
        yield path, inode
        if inode.is_dir:
            left += [(f"{path}/{show(name)}", found) for name, found in vault.entries(inode.id)][::-1]


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _below(top: Path, path: str) -> Path:
    """The plain path for `path`, which on Windows may hold characters that lead elsewhere."""
    if os.sep == "\\" and any(c in path for c in "\\:"):
        raise FormatError(f"path in vault: {path!a}, wanted no backslash or colon", hint="unpack it on Linux")
    return top.joinpath(*PurePosixPath(path).parts)


def walk_files(top: Path) -> Iterator[tuple[str, Path]]:
    """(path in the vault, plain path) of everything below `top` that is no directory."""
    with os.scandir(top) as entries:
        found = list(entries)
    for entry in found:
        plain = top / entry.name
        if entry.is_dir(follow_symlinks=False):
            for path, below in walk_files(plain):
                yield f"{entry.name}/{path}", below
        else:
            yield entry.name, plain


def _irregular(plain: Path) -> UsageError:
    if plain.is_symlink():
        return UsageError(f"{plain}: is a symbolic link", hint="name what it leads to")
    return UsageError(f"{plain}: is no regular file, directory or symbolic link", hint="remove it")
