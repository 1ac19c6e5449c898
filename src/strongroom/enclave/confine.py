"""What bounds an enclave's program besides the sandbox around it, put together in boot, entered in `drop.py`.

- A filter of system calls (`seccomp.py`) and rules for files (`landlock.py`), with or without a sandbox; where the
  kernel has one of them not, the run goes on without it and says so.
- Without a sandbox the filter leaves no sockets but Unix ones, since the network would be the host's.
- In one, TCP stays: the network is the enclave's own, with nothing in it but the enclave.
- With a user id of its own, what it may read or change alone is given to that id before it starts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from strongroom.enclave.boot import Booted
from strongroom.enclave.config import DEPOSITS_DIRECTORY, MIRROR_DIRECTORY, SANDBOX_ENVIRONMENT
from strongroom.enclave.landlock import CHANGE, DEVICE, LOOK, READ, WRITE, ruleset
from strongroom.enclave.seccomp import seccomp_filter
from strongroom.enclave.users import is_enclave_user
from strongroom.errors import EnclaveError

CIPHERTEXT = "/run/strongroom"  # where the launcher puts the vaults
_EVERYBODY = ["0", "0", str((1 << 32) - 1)]  # the map of user ids where there is no user namespace
_MEMORY = ("/tmp", "/dev/shm")  # noqa: S108  # the enclave's own
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "dri", "kfd", "nvidiactl", "nvidia-uvm")
_HOST = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/proc", "/sys", "/dev")

Rights = list[tuple[str | int, int]]


@dataclass(frozen=True)
class Confinement:
    """What `drop.py` is told: its arguments, and the descriptors that they name."""

    arguments: list[str]
    descriptors: tuple[int, ...]


@contextmanager
def confinement(booted: Booted, places: Mapping[str, Path]) -> Iterator[Confinement]:
    """For a program that finds its vaults at `places`, all of which are there by now."""
    arguments = ["--hide", CIPHERTEXT] if booted.sandboxed else []
    user = enclave_user(booted)
    if user is not None:
        arguments += ["--user", str(user)]
    filtered = seccomp_filter(network=booted.sandboxed)
    if filtered is None:
        _notice(booted, "no filter of system calls for this kind of machine")
    else:
        arguments += ["--filter", filtered.hex()]
    rules = ruleset(_rights(booted, places), tcp=booted.sandboxed)
    if rules is None:
        _notice(booted, "no Landlock in this kernel")
    booted.control.event("confined", seccomp=filtered is not None, landlock=rules.version if rules else 0, user=user)
    if rules is None:
        yield Confinement(arguments, ())
        return
    try:
        yield Confinement([*arguments, "--ruleset", str(rules.descriptor)], (rules.descriptor,))
    finally:
        rules.close()


def enclave_user(booted: Booted) -> int | None:
    """The user id that the launcher has set aside for this enclave's program; None in a user namespace.

    Raises:
        EnclaveError: there is no user namespace, and no id: the program would be the host's root.
    """
    if not booted.sandboxed or Path("/proc/self/uid_map").read_text().split() != _EVERYBODY:
        return None
    user = booted.layout.get("user")
    if not is_enclave_user(user):
        raise EnclaveError("layout: no user id for the program, and no user namespace")
    return user


def give(booted: Booted, path: Path) -> None:
    """Make a file, or a directory with all that is in it, the program's, if that has a user id of its own.

    Before anything remembers when it was last changed.
    """
    user = enclave_user(booted)
    if user is None:
        return
    os.chown(path, user, user, follow_symlinks=False)
    if path.is_dir() and not path.is_symlink():
        for directory, folders, names in os.walk(path):
            for name in (*folders, *names):
                os.chown(os.path.join(directory, name), user, user, follow_symlinks=False)  # noqa: PTH118


def share_memory() -> None:
    """Let the program's user, whoever that is, use the enclave's private memory."""
    os.umask(0o022)
    for place in _MEMORY:
        Path(place).chmod(0o1777)


def _rights(booted: Booted, places: Mapping[str, Path]) -> Rights:
    """What the program may do where: read what the enclave is made of, and change what is its own."""
    rights: Rights = [(0, READ), (1, WRITE), (2, WRITE)]  # to open its standard streams by name
    rights += [("/proc", WRITE), *((f"/dev/{name}", DEVICE) for name in _DEVICES)]
    rights += [(str(path), DEVICE) for path in Path("/dev").glob("nvidia[0-9]*")]
    rights += [(str(path), CHANGE) for path in _own(booted, places)]
    if booted.sandboxed:
        # Nothing else is mounted there than what was measured and what is the enclave's.
        return [*rights, ("/", READ), *((place, CHANGE) for place in _MEMORY)]
    from strongroom.enclave.measure import Environment
    from strongroom.enclave.sandbox import visible

    rights += [("/", LOOK), *((place, READ) for place in _HOST), (os.getcwd(), READ)]  # noqa: PTH109
    rights += [(str(root), READ) for root in visible(Environment.current())]
    command = (
        shutil.which(booted.config.command[0], path=SANDBOX_ENVIRONMENT["PATH"]) if booted.config.command else None
    )
    rights += [(os.path.realpath(command), READ)] if command else []
    rights.append((str(booted.layout.get("private_root")), CHANGE))
    mirrors = [v.name for v in booted.config.vaults if v.access == "mirror"]
    return [*rights, *((str(booted.layout.get("vaults", {}).get(name)), CHANGE) for name in mirrors)]


def _own(booted: Booted, places: Mapping[str, Path]) -> list[Path]:
    """What the program may change."""
    config = booted.config
    own = [place for name, place in places.items() if booted.access(name) == "read-write"]
    own += [Path(path) for path in config.ephemeral]
    # As programs do that put a new file in the place of the old one.
    own += [Path(rule.mount).parent for rule in config.sealed if booted.access(rule.name) == "read-write"]
    own += [Path(path) for path in config.host]
    own = [path for path in own if path != Path("/")]
    if booted.sandboxed:
        own += [Path(DEPOSITS_DIRECTORY), Path(MIRROR_DIRECTORY)]
    return own


def _notice(booted: Booted, text: str) -> None:
    booted.control.event("notice", text=text)
