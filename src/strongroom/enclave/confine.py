"""What bounds an enclave's program besides the sandbox around it, put together in boot, entered in `drop.py`.

A service and a dealer have no program to start: they become what one would be started as (`become`).

- A filter of system calls (`seccomp.py`) and rules for files (`landlock.py`), with or without a sandbox; where the
  kernel has one of them not, the run goes on without it and says so.
- Without a sandbox the filter leaves no sockets but Unix ones, since the network would be the host's.
- In one, TCP stays: the network is the enclave's own, with nothing in it but the enclave.
- With a user id of its own, what it may read or change alone is given to that id before it starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from strongroom.enclave.boot import Booted
from strongroom.enclave.config import (
    DEPOSITS_DIRECTORY,
    MIRROR_DIRECTORY,
    PROGRAM_DIRECTORY,
    ROOT_DIRECTORY,
    SANDBOX,
    SANDBOX_ENVIRONMENT,
    BootConfig,
)
from strongroom.enclave.control import Control
from strongroom.enclave.drop import become_user, drop_privileges, enter_ruleset, filter_calls, keep_capabilities
from strongroom.enclave.image_paths import inside
from strongroom.enclave.landlock import CHANGE, DEVICE, EXECUTE, LOOK, READ, WRITE, ruleset
from strongroom.enclave.process import keep_private
from strongroom.enclave.scripts import entry_of
from strongroom.enclave.seccomp import seccomp_filter
from strongroom.enclave.tools import found, started
from strongroom.enclave.users import is_enclave_user
from strongroom.errors import EnclaveError
from strongroom.sealed.threads import end_threads

CIPHERTEXT = "/run/strongroom"  # where the launcher puts the vaults
_EVERYBODY = ["0", "0", str((1 << 32) - 1)]  # the map of user ids where there is no user namespace
_CAP_KILL = 5
_GONE_SECONDS = 2.0  # for which threads that have ended are waited for
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_MEMORY = ("/tmp", "/dev/shm")  # noqa: S108  # the enclave's own
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "dri", "kfd", "nvidiactl", "nvidia-uvm")
_HOST = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/proc", "/sys")

_NO_FILTER, _NO_LANDLOCK = "no filter of system calls for this kind of machine", "no Landlock in this kernel"

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
    if booted.config.image:  # in whose root there is nothing to hide
        arguments = ["--root", ROOT_DIRECTORY, "--directory", booted.config.directory]
    user = enclave_user(booted)
    if user is not None:
        arguments += ["--user", str(user)]
    filtered = seccomp_filter(network=booted.sandboxed)
    if filtered is None:
        _notice(booted.control, _NO_FILTER)
    else:
        arguments += ["--filter", filtered.hex()]
    rights = _rights(booted.config, booted.layout, _own(booted, places))
    if booted.config.tools is not None:
        rights = _startable(booted, rights)
    rules = ruleset(rights, tcp=booted.sandboxed)
    if rules is None:
        if booted.config.tools is not None:
            raise EnclaveError(
                "program.tools: this kernel has no Landlock, and the program could start any other",
                hint="leave program.tools out, or run it where there is Landlock (Linux 5.13 and later)",
            )
        _notice(booted.control, _NO_LANDLOCK)
    booted.control.event("confined", seccomp=filtered is not None, landlock=rules.version if rules else 0, user=user)
    if rules is None:
        yield Confinement(arguments, ())
        return
    try:
        yield Confinement([*arguments, "--ruleset", str(rules.descriptor)], (rules.descriptor,))
    finally:
        rules.close()


def become(control: Control, config: BootConfig, layout: Mapping[str, Any]) -> None:
    """Give up what a program is started without: user id, capabilities, system calls, files; for good.

    For an enclave without a program, which must have read by then what only its boot may read. With a user id of its
    own, this returns in a child of the process that called it.

    Raises:
        EnclaveError: there is no user namespace, and no user id to take; or there are other threads, which keep theirs.
        OSError: the kernel refused.
    """
    end_threads()
    threads, ends = _threads(), time.monotonic() + _GONE_SECONDS
    while threads != 1 and time.monotonic() < ends:
        time.sleep(0.001)  # one that was joined is gone a moment later
        threads = _threads()
    if threads != 1:
        raise EnclaveError(f"privileges: {threads} threads have them, wanted one: each gives up its own alone")
    sandboxed = config.isolation == SANDBOX
    user = _user_of(config, layout)
    if user is not None:
        share_memory()
        _leave_root_behind()
        become_user(user)
        keep_private()  # what has changed its user id is as dumpable as the machine's settings say
    drop_privileges()
    rules = ruleset(_rights(config, layout, ()), tcp=sandboxed)
    if rules is None:
        _notice(control, _NO_LANDLOCK)
    else:
        enter_ruleset(rules.descriptor)
    filtered = seccomp_filter(network=sandboxed)
    if filtered is None:
        _notice(control, _NO_FILTER)
    else:
        filter_calls(filtered)
    control.event("confined", seccomp=filtered is not None, landlock=rules.version if rules else 0, user=user)


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _leave_root_behind() -> None:
    """Go on in a child of this process; it stays as it is, to pass signals on, and to end with its launcher.

    The kernel sends the signal for that in the name of the launcher's sandbox, which has no right to end a process of
    another user; with process 1 all others of the namespace end.
    """
    for number in _PASSED_ON:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)  # as process 1 has it
    child = os.fork()
    if child == 0:
        return
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    keep_capabilities(_CAP_KILL)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    while True:
        process, status = os.waitpid(-1, 0)
        if process == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def enclave_user(booted: Booted) -> int | None:
    """The user id that the launcher has set aside for this enclave's program; None in a user namespace.

    Raises:
        EnclaveError: there is no user namespace, and no id: the program would be the host's root.
    """
    return _user_of(booted.config, booted.layout)


def _user_of(config: BootConfig, layout: Mapping[str, Any]) -> int | None:
    if config.isolation != SANDBOX or Path("/proc/self/uid_map").read_text().split() != _EVERYBODY:
        return None
    user = layout.get("user")
    if not is_enclave_user(user):
        raise EnclaveError("layout: no user id for the program, and no user namespace")
    return user


def give(booted: Booted, path: Path) -> None:
    """Make a file, or a directory with all that is in it, the program's, if that has a user id of its own.

    Before anything remembers when it was last changed.
    """
    user = enclave_user(booted)
    give_alone(booted, path)
    if user is None:
        return
    if path.is_dir() and not path.is_symlink():
        for directory, folders, names in os.walk(path):
            for name in (*folders, *names):
                os.chown(os.path.join(directory, name), user, user, follow_symlinks=False)  # noqa: PTH118


def give_alone(booted: Booted, path: Path) -> None:
    """The same, without what is in it."""
    user = enclave_user(booted)
    if user is not None:
        os.chown(path, user, user, follow_symlinks=False)


def share_memory() -> None:
    """Let the program's user, whoever that is, use the enclave's private memory."""
    os.umask(0o022)
    for place in _MEMORY:
        Path(place).chmod(0o1777)


def _rights(config: BootConfig, layout: Mapping[str, Any], own: Sequence[Path]) -> Rights:
    """What the program may do where: read what the enclave is made of, and change what is its `own`."""
    rights: Rights = [(0, READ), (1, WRITE), (2, WRITE)]  # to open its standard streams by name
    rights += [("/proc", WRITE), *((f"/dev/{name}", DEVICE) for name in _DEVICES)]
    rights += [(str(path), DEVICE) for path in Path("/dev").glob("nvidia[0-9]*")]
    rights += [(str(path), CHANGE) for path in own]
    if config.isolation == SANDBOX:
        # Nothing else is mounted there than what was measured and what is the enclave's.
        root = ROOT_DIRECTORY if config.image else "/"
        return [*rights, (root, READ), *((root.rstrip("/") + place, CHANGE) for place in _MEMORY)]
    from strongroom.enclave.measure import Environment
    from strongroom.enclave.sandbox import visible

    rights += [("/", LOOK), *((place, READ) for place in _HOST), (os.getcwd(), READ)]  # noqa: PTH109
    rights += [(str(root), READ) for root in visible(Environment.current())]
    command = shutil.which(config.command[0], path=SANDBOX_ENVIRONMENT["PATH"]) if config.command else None
    rights += [(os.path.realpath(command), READ)] if command else []
    rights.append((str(layout.get("private_root")), CHANGE))
    mirrors = [v.name for v in config.vaults if v.access == "mirror"]
    return [*rights, *((str(layout.get("vaults", {}).get(name)), CHANGE) for name in mirrors)]


def _startable(booted: Booted, rights: Rights) -> Rights:
    """The same, but that nothing can be executed, except what was measured.

    Scripts of the environment's ``bin`` are not among that; what its distributions hold is.
    """
    from strongroom.enclave.measure import Environment

    config, here = booted.config, Environment.current()
    base = Path(PROGRAM_DIRECTORY if booted.sandboxed else os.getcwd())  # noqa: PTH109
    first = [path for name in config.tools or () for path in found(name, "program.tools")]
    command = config.command[0]
    if "/" in command and not command.startswith("/"):
        first.append(str(base / command))
    elif command not in ("python", "python3") and entry_of(command, here.site_packages) is None:
        first += found(command)
    executables = started([*first, sys.executable]).executables
    measured = [*here.site_packages, here.stdlib, base]
    allowed = [*((path, EXECUTE) for path in executables), *((str(path), EXECUTE) for path in measured)]
    return [*((place, granted & ~EXECUTE) for place, granted in rights), *allowed]


def _own(booted: Booted, places: Mapping[str, Path]) -> list[Path]:
    """What the program may change."""
    config = booted.config
    own = [place for name, place in places.items() if booted.access(name) == "read-write"]
    own += [inside(config, path) for path in (*config.ephemeral, *config.volumes)]
    # As programs do that put a new file in the place of the old one.
    own += [inside(config, rule.mount).parent for rule in config.sealed if booted.access(rule.name) == "read-write"]
    own += [inside(config, path) for path in config.host]
    own = [path for path in own if path not in (Path("/"), Path(ROOT_DIRECTORY))]
    if booted.sandboxed:
        own += [inside(config, DEPOSITS_DIRECTORY)] if booted.provisions.deposits else []
        own.append(Path(MIRROR_DIRECTORY))
    return own


def _notice(control: Control, text: str) -> None:
    control.event("notice", text=text)
