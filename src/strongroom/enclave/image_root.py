"""A container image as the root of a program's file system, put together by boot, entered in `drop.py`.

The image's tree lies at `IMAGE_DIRECTORY`, read-only; what the program will see as its root is made at
`ROOT_DIRECTORY`, and only there does anything of this enclave's appear. Afterwards the program has no way back: the
root that boot lives in, with its Python and Strongroom, is mounted nowhere in the program's namespace.

Rules:

- What is of the image is bound from its tree, and stays read-only. Only the directories above a path of the enclave's
  own are made anew, in memory, with their other entries bound.
- Paths lead as they would with the image as root: a link never leads out of it, and a path of the policy's that a link
  of the image's would lead to `/proc` or `/dev` is refused; as are paths that links lead into one another, or apart.
- A volume is memory that begins with what the image has there; what the policy says of a path goes before. Where
  something of the enclave's will be, nothing of the image's is: no link of it is ever followed by boot.
- Users are the image's, and the program's own beside them, whoever the image wants to run as.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from strongroom.enclave.boot import Booted
from strongroom.enclave.config import (
    DEPOSITS_DIRECTORY,
    IMAGE_DIRECTORY,
    PROGRAM_DIRECTORY,
    ROOT_DIRECTORY,
    SANDBOX_ENVIRONMENT,
)
from strongroom.enclave.confine import enclave_user, give
from strongroom.enclave.drop import bind, mount_memory
from strongroom.enclave.fixed_paths import ROOTS_FILE
from strongroom.enclave.image_paths import KERNEL, Parts, check_nesting, inside, mode_of, remove, resolved
from strongroom.enclave.nesting import outer_of
from strongroom.errors import EnclaveError

_TEMPORARY: Final = "tmp"  # new: in boot's own, a part of the host's environment may be mounted
_NEVER_THE_IMAGES: Final = (*KERNEL, _TEMPORARY)
_USERS: Final = "/etc/passwd"
_HOSTS: Final = "/etc/hosts"
_IDENTITIES: Final = (_USERS, "/etc/group", _HOSTS)
_LOCAL: Final = b"127.0.0.1 localhost enclave\n::1 localhost enclave\n"
_MAX_BOUND: Final = 20_000
_MAX_IDENTITIES: Final = 1 << 20


def make_root(booted: Booted) -> None:
    """Put the root together, with places for all that the configuration names; the vaults and files come afterwards.

    Raises:
        EnclaveError: the image has something in the way.
    """
    config, image, root = booted.config, Path(IMAGE_DIRECTORY), Path(ROOT_DIRECTORY)
    paths = list(_own_paths(booted))
    check_nesting(image, paths, config.volumes)
    own = {resolved(image, path) for path in (*paths, *config.volumes)}
    ends = {(name,) for name in _NEVER_THE_IMAGES} | own
    ends |= {end for name in _IDENTITIES if (end := resolved(image, name)) not in ends}
    ends = {end for end in ends if not any(end[:length] in ends for length in range(1, len(end)))}
    above = {end[:length] for end in ends for length in range(1, len(end))}
    if config.directory != "/":
        start = resolved(image, config.directory)
        if not any(start[:length] in ends for length in range(1, len(start) + 1)) and not mode_of(
            image.joinpath(*start)
        ):
            above |= {start[:length] for length in range(1, len(start) + 1)}
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    _lay(image, root, (), above, ends)
    for name in _NEVER_THE_IMAGES:
        (root / name).mkdir(exist_ok=True)
    for name in KERNEL:
        bind(f"/{name}", str(root / name))
    mount_memory(str(root / _TEMPORARY))
    (root / _TEMPORARY).chmod(0o1777)
    if any(Path(PROGRAM_DIRECTORY).iterdir()):
        place = inside(config, PROGRAM_DIRECTORY)
        place.mkdir(parents=True, exist_ok=True)
        bind(PROGRAM_DIRECTORY, str(place))
    for path in config.volumes:
        _make_volume(booted, image, resolved(image, path), own)
    for path in config.host:
        if outer_of(config, path) is not None:
            continue  # it comes after what it lies in
        place = inside(config, path)
        place.mkdir(parents=True, exist_ok=True)
        bind(path, str(place))
    for path in _IDENTITIES:
        if resolved(image, path) in ends - own:
            _write_identities(booted, image, path)


def _own_paths(booted: Booted) -> Iterator[str]:
    config = booted.config
    yield from (rule.mount for rule in (*config.vaults, *config.sealed) if rule.mount)
    yield from (rule.path for rule in config.files)
    yield from (*config.ephemeral, *config.host)
    if booted.provisions.deposits:
        yield DEPOSITS_DIRECTORY
    if booted.provisions.egress:
        yield ROOTS_FILE
    if any(Path(PROGRAM_DIRECTORY).iterdir()):
        yield PROGRAM_DIRECTORY


def _lay(source: Path | None, target: Path, at: Parts, above: Collection[Parts], ends: Collection[Parts]) -> None:
    """Fill a new directory: what the image has there is bound, but for what the enclave has of its own."""
    entries = sorted(source.iterdir()) if source is not None and mode_of(source) else []
    if len(entries) > _MAX_BOUND:
        raise EnclaveError(
            f"image: /{'/'.join(at)} has {len(entries)} entries, too many to mount something beside them"
        )
    for each in entries:
        here, place, mode = (*at, each.name), target / each.name, mode_of(each)
        if here in ends or here in above:
            continue
        if stat.S_ISLNK(mode):
            place.symlink_to(os.readlink(each))  # noqa: PTH115
            continue
        if stat.S_ISDIR(mode):
            place.mkdir(exist_ok=True)
        else:
            place.touch()
        bind(str(each), str(place))
    for here in sorted(each for each in above if each[:-1] == at):
        below = source / here[-1] if source is not None else None
        place = target / here[-1]
        place.mkdir(exist_ok=True)
        place.chmod(stat.S_IMODE(mode_of(below)) & 0o755 if below is not None and mode_of(below) else 0o755)
        _lay(below, place, here, above, ends)


def _make_volume(booted: Booted, image: Path, parts: Parts, own: Collection[Parts]) -> None:
    place, source = Path(ROOT_DIRECTORY, *parts), image.joinpath(*parts)
    place.mkdir(parents=True, exist_ok=True)
    mount_memory(str(place))
    if stat.S_ISDIR(mode_of(source)):
        shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True)
        place.chmod(0o700)
        for end in own:  # what will be put there is not put where a link leads
            if len(end) > len(parts) and end[: len(parts)] == parts:
                remove(Path(ROOT_DIRECTORY, *end))
    give(booted, place)


def _write_identities(booted: Booted, image: Path, path: str) -> None:
    """The image's users or groups, with the program's own; or the one host that there is."""
    place = Path(ROOT_DIRECTORY, *resolved(image, path))
    if path == _HOSTS:
        content = _LOCAL
    else:
        number = enclave_user(booted) or 0
        name, rest = "enclave" if number else "root", ""
        if path == _USERS:
            rest = f"{number}::{SANDBOX_ENVIRONMENT['HOME']}:/bin/sh"
        content = _regular(image, path)
        if not any(line.split(b":")[2:3] == [str(number).encode()] for line in content.splitlines()):
            content += b"\n" * (content[-1:] not in (b"", b"\n")) + f"{name}:x:{number}:{rest}\n".encode()
    place.write_bytes(content)
    place.chmod(0o644)


def _regular(image: Path, path: str) -> bytes:
    """A small file of the image's; empty if it has none there."""
    place = image.joinpath(*resolved(image, path))
    if not stat.S_ISREG(mode_of(place)):
        return b""
    with place.open("rb") as file:
        return file.read(_MAX_IDENTITIES)
