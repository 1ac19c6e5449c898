"""The directory that `run --mirror` keeps a mirror in: what lies where, and what a person is told of it.

The enclave knows the directory by another name, and nothing of the key file and the anchor file beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from strongroom.enclave.config import MIRROR_DIRECTORY
from strongroom.enclave.mirrored import FILE
from strongroom.errors import LockedError, RollbackError, StrongroomError, UsageError, WrongKeyError
from strongroom.sealed.keyfile import create_key, load_key

if TYPE_CHECKING:
    from strongroom.cli.workspace import SealedVault


def places(mirror: Path) -> tuple[Path, Path, Path]:
    """The file of a mirror, its key file and its anchor file, where `mirror` is the file or such a directory."""
    file = mirror / FILE if (mirror / FILE).is_file() else mirror
    named = mirror.resolve() if mirror.name in ("", "..") else mirror  # of ".", from inside
    return file, Path(f"{named}.key"), Path(f"{named}.anchor")


def mirror_key(mirror: SealedVault) -> bytes:
    """The key of a mirror, which is made if nothing of the mirror is there yet.

    Raises:
        UsageError: there is something of it, but no key.
    """
    if mirror.path.exists() and not mirror.path.is_dir():
        raise UsageError(f"mirror: {mirror.path} is a file, wanted a directory")
    if mirror.key_path.exists():
        return load_key(mirror.key_path)
    left = next((path for path in (mirror.path / FILE, mirror.anchor.path) if path.exists()), None)
    if left is not None:
        raise UsageError(
            f"key file: {mirror.key_path} does not exist, and {left} is there",
            hint=f"put the key back; {_to_begin_anew(mirror)}",
        )
    mirror.key_path.parent.mkdir(parents=True, exist_ok=True)
    return create_key(mirror.key_path)


def make_directory(mirror: SealedVault) -> bool:
    """Make the directory, for a first commit; False if it is there.

    Raises:
        RollbackError: there was a commit, and it is gone.
    """
    gone = not any((mirror.path / name).exists() for name in (FILE, f"{FILE}.new"))
    if gone and mirror.anchor.read() is not None:
        raise RollbackError(
            f"mirror {mirror.path}: is missing, and its anchor holds a commit",
            hint=f"put its newest copy back; {_to_begin_anew(mirror)}",
        )
    if mirror.path.exists():
        return False
    mirror.path.mkdir(mode=0o700, parents=True)
    return True


def seen_from_outside(error: StrongroomError, mirror: SealedVault) -> StrongroomError:
    """What an enclave says of its mirror, in the names that lead there on the host, with what to do there."""
    message, hint = error.message, error.hint
    for inside in (Path(MIRROR_DIRECTORY), mirror.path.resolve()):  # the second in an enclave without a sandbox
        name = str(inside / FILE)
        if message.startswith(f"{name}: "):
            message = f"mirror {mirror.path}: {message.removeprefix(f'{name}: ')}"
            hint = _hint(error, mirror)
        message = message.replace(name, str(mirror.path))
    return type(error)(message, hint=hint)


def _hint(error: StrongroomError, mirror: SealedVault) -> str | None:
    match error:
        case LockedError():
            return "another run is training with it: wait until that has ended, or use another directory"
        case RollbackError():
            return f"put its newest copy back; {_to_begin_anew(mirror)}"
        case WrongKeyError():
            return f"put the key that it was made with back into {mirror.key_path}; {_to_begin_anew(mirror)}"
    return error.hint


def _to_begin_anew(mirror: SealedVault) -> str:
    """The CAS's anchor is of one key, and the anchor file is given to the anchor of any: all of them have to go."""
    there = [str(path) for path in (mirror.path, mirror.key_path, mirror.anchor.path) if path.exists()]
    return f"to begin anew, delete {', '.join(there[:-1])}{' and ' * (len(there) > 1)}{there[-1]}"
