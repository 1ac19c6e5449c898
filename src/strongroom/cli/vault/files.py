"""`strongroom vault ls`, `cp`, `rm` and `pack`."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from strongroom import vault
from strongroom.cli import output, progress
from strongroom.cli.secrets import sealed_vault
from strongroom.errors import UsageError, printable
from strongroom.vault import Vault
from strongroom.vault.engine import META
from strongroom.vault.paths import check_path, show
from strongroom.vault.rows import Inode
from strongroom.vault.transfer import Progress, get, walk_vault


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a vault; the empty path is its top."""

    vault: Path
    path: str


def find_place(text: str) -> Place | None:
    """What ``VAULT:PATH`` or ``VAULT`` names, or None if it is no such: what stands before a colon decides.

    A path with a colon whose first part happens to be a vault is written with ``./`` before it.
    """
    if (Path(text) / META).exists() and not text.endswith(":"):
        return Place(Path(text), "")
    at = text.find(":")
    while at > 0:
        before = Path(text[:at])
        if (before / META).exists() or (before.suffix == ".vault" and not Path(text).exists()):
            return Place(before, text[at + 1 :].strip("/"))
        at = text.find(":", at + 1)
    return None


def _place(text: str) -> Place:
    return find_place(text) or Place(Path(text), "")


def _open(args: argparse.Namespace, place: Place, mode: str = "r") -> Vault:
    any_version = getattr(args, "no_freshness", False)
    if any_version and mode == "r":
        output.warn("freshness is not checked: this may be an old version of the vault")
    return sealed_vault(place.vault, args).open(mode, any_version=any_version and mode == "r")  # type: ignore[arg-type]


def ls(args: argparse.Namespace) -> int:
    place = _place(args.place)
    with _open(args, place) as opened:
        found = opened.stat(place.path, follow=True)
        if not found.is_dir:
            rows = [(place.path.rpartition("/")[2], opened.inode(opened.stat(place.path, follow=False).inode))]
        elif args.recursive:
            rows = list(walk_vault(opened, found.inode))
        else:
            rows = [(show(name), inode) for name, inode in opened.entries(found.inode)]
        described = [_describe(opened, name, inode) for name, inode in rows]
    if args.json:
        output.result(described)
        return 0
    for entry in described:
        sys.stdout.write(_line(entry) if args.long else f"{printable(entry['path'])}\n")
    return 0


def _describe(opened: Vault, name: str, inode: Inode) -> dict[str, object]:
    kind = "directory" if inode.is_dir else "file" if inode.is_file else "link" if inode.is_link else "other"
    entry: dict[str, object] = {
        "path": name,
        "type": kind,
        "size": inode.size if inode.is_file else 0,
        "mode": stat.S_IMODE(inode.mode),
        "mtime": inode.mtime / 1e9,
    }
    if inode.is_link:
        entry["target"] = os.fsdecode(opened.target(inode.id))
    entry["shown"] = stat.filemode(inode.mode)
    return entry


def _line(entry: dict[str, object]) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(str(entry["mtime"]))))
    target = f" -> {printable(entry['target'])}" if "target" in entry else ""
    return f"{entry['shown']} {entry['size']:>14,} {stamp} {printable(entry['path'])}{target}\n"


def rm(args: argparse.Namespace) -> int:
    places = [_place(text) for text in args.place]
    _same_vault(places)
    with sealed_vault(places[0].vault, args).as_it_is().open("r+") as opened:
        for place in places:
            if not place.path:
                raise UsageError(f"path in vault: {place.vault} is the whole vault", hint="name what is in it")
            if opened.stat(place.path, follow=False).is_dir:
                if not args.recursive:
                    raise UsageError(f"{place.path}: is a directory", hint="-r removes it with all that is in it")
                opened.remove_dir(place.path, recursive=True)
            else:
                opened.remove(place.path)
        root = opened.commit()
    if args.json:
        output.result({"removed": [place.path for place in places], "root": str(root)})
    return 0


def _same_vault(places: list[Place]) -> None:
    other = next((place for place in places if place.vault.resolve() != places[0].vault.resolve()), None)
    if other:
        raise UsageError(
            f"vault: {places[0].vault} and {other.vault} are two, wanted one", hint="use the verb once for each"
        )


def pack(args: argparse.Namespace) -> int:
    place = _place(args.place)
    if not args.source.exists():
        raise UsageError(f"source: {args.source} does not exist")
    sealed = sealed_vault(place.vault, args)
    new = not place.vault.exists()
    new_key = new and not sealed.key_path.exists() and sealed.secret is None
    opened = sealed.create() if new else sealed.open("r+")
    try:
        with opened, progress.bar("packing", _size(args.source)) as advance:
            names = vault.pack(args.source, opened, into=place.path, follow=args.follow_links, progress=advance)
            root = opened.commit()
    except BaseException:
        if new:
            sealed.remove(with_key=new_key)
        raise
    if new_key:
        output.note(f"key written to {sealed.key_path}; nobody can unseal without it")
    _say(args, {"vault": str(place.vault), "files": len(names), "root": str(root)}, f"packed {_count(names)}")
    return 0


def _say(args: argparse.Namespace, result: dict[str, object], line: str) -> None:
    if args.json:
        output.result(result)
    else:
        output.stdout.print(line, markup=False, soft_wrap=True)


def _count(names: list[str]) -> str:
    return f"{len(names):,} file{'s' * (len(names) != 1)}"


def _size(top: Path) -> int:
    """Bytes to copy, for the bar."""
    if top.is_file():
        return top.stat().st_size
    total = 0
    for directory, _, names in os.walk(top):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(directory) / name).lstat().st_size
    return total


# Copying.


def cp(args: argparse.Namespace) -> int:
    sources = [find_place(text) for text in args.source]
    target = find_place(args.destination)
    inside = [place for place in sources if place]
    if inside and len(inside) != len(sources):
        raise UsageError("source: some are in a vault and some are not", hint="use the verb once for each")
    if not inside and target is None:
        raise UsageError(
            f"destination: neither {args.destination} nor {args.source[0]} is in a vault",
            hint="VAULT:PATH is; VAULT must be a vault already (`strongroom vault pack` makes one)",
        )
    if inside:
        _same_vault([*inside, target] if target else inside)
    with progress.bar("copying") as advance:
        if target is None:
            copied = _out(args, inside, Path(args.destination), advance)
        else:
            copied = _in(args, inside, target, advance)
    _say(args, {"copied": copied}, f"copied {_count(copied)}")
    return 0


def _in(args: argparse.Namespace, inside: list[Place], target: Place, advance: Progress) -> list[str]:
    copied: list[str] = []
    with _open(args, target, "r+") as opened:
        into = args.destination.endswith("/") or not target.path or _is_dir(opened, target.path)
        if len(args.source) > 1 and not into:
            raise UsageError(f"destination: {target.path} is not a directory", hint="several sources want one")
        for text in [place.path for place in inside] or args.source:
            name = PurePosixPath(text).name if inside else Path(text).resolve().name
            path = check_path("/".join(part for part in (target.path, name) if part) if into else target.path)
            if inside:
                copied += _within(opened, text, path, recursive=args.recursive, advance=advance)
            else:
                copied += _from_disk(args, opened, Path(text), path, advance)
        opened.commit()
    return copied


def _from_disk(args: argparse.Namespace, opened: Vault, plain: Path, path: str, advance: Progress) -> list[str]:
    if not plain.exists():
        raise UsageError(f"source: {plain} does not exist")
    if plain.is_dir():
        _wants_recursive(args.recursive, str(plain))
        if path in opened:
            raise UsageError(f"destination: {path} is a file")
        opened.mkdir(path, exist_ok=True)
        return vault.pack(plain, opened, into=path, follow=args.follow_links, progress=advance)
    vault.put(plain, opened, path, progress=advance, follow=args.follow_links)
    return [path]


def _within(opened: Vault, source: str, path: str, *, recursive: bool, advance: Progress) -> list[str]:
    found = opened.stat(source)
    if not found.is_dir:
        if path == source:
            raise UsageError(f"destination: {path} is the source")
        _copy_inside(opened, source, path, advance)
        return [path]
    _wants_recursive(recursive, source)
    if f"{path}/".startswith(f"{source}/"):
        raise UsageError(f"destination: {path} lies in {source}")
    opened.mkdir(path, permissions=found.mode, exist_ok=True)
    copied = []
    for name, inode in list(walk_vault(opened, found.inode)):
        below = f"{path}/{name}"
        if inode.is_dir:
            opened.mkdir(below, permissions=stat.S_IMODE(inode.mode), exist_ok=True)
        elif inode.is_link:
            opened.symlink(os.fsdecode(opened.target(inode.id)), below)
            copied.append(below)
        elif inode.is_file:
            _copy_inside(opened, f"{source}/{name}", below, advance)
            copied.append(below)
    return copied


def _copy_inside(opened: Vault, source: str, path: str, advance: Progress) -> None:
    found = opened.stat(source)
    buffer = memoryview(bytearray(1 << 20))
    with opened.open(source) as old, opened.open(path, "wb", permissions=found.mode) as new:
        while count := old.readinto(buffer):
            new.write(buffer[:count])
            advance(path, count)


def _out(args: argparse.Namespace, inside: list[Place], target: Path, advance: Progress) -> list[str]:
    into = args.destination.endswith("/") or target.is_dir()
    if len(inside) > 1 and not into:
        raise UsageError(f"destination: {target} is not a directory", hint="several sources want one")
    copied: list[str] = []
    with _open(args, inside[0]) as opened:
        for place in inside:
            name = place.path.rpartition("/")[2]
            plain = target / name if into and name else target
            found = opened.stat(place.path)
            if found.is_dir:
                _wants_recursive(args.recursive, place.path or str(place.vault))
                names = vault.unpack(opened, plain, place.path, outside_links=args.outside_links, progress=advance)
                copied += [str(plain / name) for name in names]
            else:
                _replace(opened, place.path, plain, advance)
                copied.append(str(plain))
    return copied


def _replace(opened: Vault, path: str, plain: Path, advance: Progress) -> None:
    """Decrypt a file beside its destination, then give it that name: what was there stays until all of it is right."""
    plain.parent.mkdir(parents=True, exist_ok=True)
    if plain.is_dir():
        raise UsageError(f"destination: {plain} is a directory")
    temporary = plain.with_name(f".{plain.name[:200]}.{os.getpid()}.new")
    inode = opened.inode(opened.stat(path).inode)
    if not inode.is_file:
        raise UsageError(f"{path}: is no regular file")
    get(opened, inode, path, temporary, progress=advance)
    try:
        temporary.replace(plain)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_dir(opened: Vault, path: str) -> bool:
    try:
        return opened.stat(path).is_dir
    except OSError:
        return False


def _wants_recursive(recursive: bool, what: str) -> None:
    if not recursive:
        raise UsageError(f"source: {what} is a directory", hint="-r copies it with all that is in it")
