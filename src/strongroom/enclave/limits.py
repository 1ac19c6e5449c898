"""Limits on what an enclave takes of its machine: control groups of the kernel where this user may make them.

They are the launcher's word, not the policy's, and not measured: a host can starve an enclave anyway.

- Version 1 of the interface (``Documentation/admin-guide/cgroup-v1/memory.rst``, ``scheduler/sched-bwc.rst`` of the
  kernel): a group of each controller below the launcher's own.
- Version 2 (``cgroup-v2.rst``): a process is in one group only, so one group has all the limits. Its parent gives out
  the controllers (``cgroup.subtree_control``), and a group that does so has no processes of its own. The launcher's
  has: a group is made beside it or further up, wherever that is allowed.
- In a unit that systemd has delegated (``Delegate=yes``, its document "Control Group APIs and Delegation") the launcher
  steps into a leaf, if no other processes are there, and makes the group beside that.
- A group counts as made once a process has entered it. Without one, memory is limited by ``RLIMIT_DATA``, for each
  process by itself, and processors by affinity; the run says so.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PERIOD: Final = 100_000  # microseconds, the kernel's default
_PREFIX: Final = "strongroom-"
_ENTER: Final = (
    'ulimit -d "$1"; shift; n=$1; shift; '
    'while [ "$n" -gt 0 ]; do echo $$ > "$1" || exit 125; shift; n=$((n - 1)); done; exec "$@"'
)
_OPTIONAL: Final = ("memory.memsw.limit_in_bytes", "memory.swap.max")  # where the kernel accounts for swap
_TRY: Final = 'echo $$ > "$1"'
_PROC: Final = Path("/proc/self")
_numbers = itertools.count()


@dataclass(frozen=True)
class Limits:
    """Bytes of memory, and processors' worth of time; None for as much as there is."""

    memory: int | None = None
    cpus: float | None = None


@dataclass(frozen=True)
class Group:
    """What holds an enclave's processes to its limits.

    Attributes:
        directories: its control groups, one for each controller or one for all.
        data: RLIMIT_DATA in KiB, where memory has no control group.
        processors: the only ones that it runs on, where they have none.
        notes: what a person should know.
    """

    directories: tuple[Path, ...] = ()
    data: int | None = None
    processors: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def entered(self, command: Sequence[str]) -> list[str]:
        """The command that enters the groups and then becomes `command`, under the same process number."""
        if not self.directories and self.data is None:
            return list(command)
        doors = [str(directory / "cgroup.procs") for directory in self.directories]
        limit = "unlimited" if self.data is None else str(self.data)
        return ["/bin/sh", "-c", _ENTER, "sh", limit, str(len(doors)), *doors, *command]

    @contextmanager
    def processors_of_children(self) -> Iterator[None]:
        """What this thread starts meanwhile runs on these processors."""
        if not self.processors:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.processors)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel has ended a process for taking more memory than the limit."""
        for directory in self.directories:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError):
                    for line in (directory / name).read_text().splitlines():
                        key, _, value = line.partition(" ")
                        if key == "oom_kill" and value.strip() != "0":
                            return True
        return False

    def close(self) -> None:
        """Take the groups away; their processes have ended."""
        for directory in self.directories:
            with suppress(OSError):
                directory.rmdir()


Settings = list[tuple[str, str]]
"""Files of a group, and what is written to them."""


def make_group(limits: Limits, proc: Path = _PROC) -> Group:
    """Groups with these limits, and what stands in for those that cannot be made. To be closed."""
    wanted = {
        name: settings
        for name, settings in (("memory", _memory(limits.memory)), ("cpu", _cpu(limits.cpus)))
        if settings is not None
    }
    made: list[Path] = []
    missing = {}
    for name, (first, second) in wanted.items():
        group = _group_of_one(name, first, proc)
        if group is None:
            missing[name] = second
        else:
            made.append(group)
    group, has = _group_of_all(missing, proc)
    if group is not None:
        made.append(group)
    notes, data, processors = [], None, frozenset[int]()
    if "memory" in missing and "memory" not in has and limits.memory is not None:
        data = limits.memory >> 10
        notes.append("no control group for memory here: the limit counts for each process by itself")
    if "cpu" in missing and "cpu" not in has and limits.cpus is not None:
        count = math.ceil(limits.cpus)
        processors = frozenset(sorted(os.sched_getaffinity(0))[:count])
        notes.append(f"no control group for processors here: the program runs on {len(processors)} of them only")
    return Group(tuple(made), data, processors, tuple(notes))


def places(controllers: Collection[str], proc: Path = _PROC) -> dict[str, tuple[str, Path]]:
    """Where groups for these controllers look as if they could be made: version and parent, by controller."""
    found = {}
    for name in controllers:
        parent = _first_parent(name, proc)
        if parent is not None and _open_to_us(parent):
            found[name] = ("1", parent)
    left = [name for name in controllers if name not in found]
    for place in _second_places(left, proc):
        if _open_to_us(place.parent):
            return found | dict.fromkeys(place.controllers, ("2", place.parent))
    return found


def _open_to_us(parent: Path) -> bool:
    return os.access(parent, os.W_OK | os.X_OK) and os.access(parent / "cgroup.procs", os.W_OK)


def _memory(limit: int | None) -> tuple[Settings, Settings] | None:
    """For either version. Swap counts as memory, where it is counted."""
    if limit is None:
        return None
    return (
        [("memory.limit_in_bytes", str(limit)), ("memory.memsw.limit_in_bytes", str(limit))],
        [("memory.max", str(limit)), ("memory.swap.max", "0")],
    )


def _cpu(count: float | None) -> tuple[Settings, Settings] | None:
    if count is None:
        return None
    quota = max(int(count * _PERIOD), 1000)
    return (
        [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota))],
        [("cpu.max", f"{quota} {_PERIOD}")],
    )


def _group_of_one(controller: str, settings: Settings, proc: Path) -> Path | None:
    """A group of version 1."""
    parent = _first_parent(controller, proc)
    return None if parent is None else _new(parent, settings)


def _group_of_all(wanted: Mapping[str, Settings], proc: Path) -> tuple[Path | None, frozenset[str]]:
    """A group of version 2 with as many of these controllers as can be had, and which."""
    for place in _second_places(list(wanted), proc):
        if place.aside and not _step_aside(place.parent, place.controllers):
            continue
        group = _new(place.parent, [each for name in sorted(place.controllers) for each in wanted[name]])
        if group is not None:
            return group, place.controllers
    return None, frozenset()


def _new(parent: Path, settings: Settings) -> Path | None:
    """A group that a process can enter; None if there can be none."""
    group = parent / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        _clear(parent)
        group.mkdir()
        for file, value in settings:
            if file not in _OPTIONAL or (group / file).exists():
                _tell(group / file, value)
        entering = ["/bin/sh", "-c", _TRY, "sh", str(group / "cgroup.procs")]
        if subprocess.run(entering, stderr=subprocess.DEVNULL, check=False).returncode == 0:  # noqa: S603
            return group
    except OSError:
        pass
    with suppress(OSError):
        group.rmdir()
    return None


def _step_aside(own: Path, controllers: Collection[str]) -> bool:
    """Leave a delegated group for a leaf of it, so that it can give out controllers; whether it does."""
    leaf = own / f"{_PREFIX}{os.getpid()}-launcher"
    moved = []
    try:
        leaf.mkdir(exist_ok=True)
        for process in _processes(own):
            _tell(leaf / "cgroup.procs", str(process))
            moved.append(process)
        _tell(own / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))
    except OSError:
        for process in moved:
            with suppress(OSError):
                _tell(own / "cgroup.procs", str(process))
        with suppress(OSError):
            leaf.rmdir()
        return False
    return True


def _tell(file: Path, value: str) -> None:
    """Write to a file of the kernel's, which is there or the kernel has no such setting."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _clear(parent: Path) -> None:
    """Take away what launchers that were killed have left."""
    for stale in parent.glob(f"{_PREFIX}*"):
        launcher = stale.name.removeprefix(_PREFIX).partition("-")[0]
        if launcher.isdigit() and not Path("/proc", launcher).exists():
            with suppress(OSError):
                stale.rmdir()


def _processes(group: Path) -> list[int]:
    return [int(line) for line in (group / "cgroup.procs").read_text().split()]


@dataclass(frozen=True)
class _Place:
    """Where a group of version 2 may be made.

    Attributes:
        controllers: those of the wanted ones that it has.
        aside: the launcher has to leave `parent` first.
    """

    parent: Path
    controllers: frozenset[str]
    aside: bool = False


def _second_places(wanted: Collection[str], proc: Path) -> list[_Place]:
    """The best first: all controllers rather than some, memory rather than processors, near rather than far."""
    own, mounts = _own_groups(proc), _mounts(proc)
    found = []
    for kind, top, _ in mounts:
        if kind != "cgroup2" or not wanted:
            continue
        path = own.get("", "")
        at = top / path if ".." not in path.split("/") else top
        if _delegated(at) and _alone(at):
            found.append(_Place(at, _words(at / "cgroup.controllers") & frozenset(wanted), aside=True))
        for parent in (at, *at.parents):
            if not parent.is_relative_to(top):
                break
            found.append(_Place(parent, _words(parent / "cgroup.subtree_control") & frozenset(wanted)))
    having = [place for place in found if place.controllers]
    return sorted(having, key=lambda place: (-len(place.controllers), "memory" not in place.controllers))


def _delegated(group: Path) -> bool:
    """Whether systemd has left what is below it to others: an attribute of its own says so."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _alone(group: Path) -> bool:
    """Whether this process, with those that descend from it, is all that the group has."""
    ours = os.getpid()
    try:
        return all(ours in _ancestry(process) for process in _processes(group))
    except (OSError, ValueError, IndexError):
        return False


def _ancestry(process: int) -> Iterator[int]:
    """A process and those that it descends from."""
    while process > 0:
        yield process
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _words(file: Path) -> frozenset[str]:
    with suppress(OSError):
        return frozenset(file.read_text().split())
    return frozenset()


def _first_parent(controller: str, proc: Path) -> Path | None:
    """This process's own group of version 1 of a controller, or the topmost that is seen of it."""
    for kind, top, options in _mounts(proc):
        if kind == "cgroup" and controller in options:
            at = top / _own_groups(proc).get(controller, "")
            return at if at.is_dir() else top
    return None


def _own_groups(proc: Path) -> dict[str, str]:
    """This process's group of each controller of version 1, and of version 2 by the empty name."""
    own: dict[str, str] = {}
    with suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            own |= {name: path.strip("/") for name in names.split(",")}
    return own


def _mounts(proc: Path) -> list[tuple[str, Path, set[str]]]:
    """Kind, place and options of each mount."""
    mounts: list[tuple[str, Path, set[str]]] = []
    with suppress(OSError):
        for line in (proc / "mounts").read_text().splitlines():
            _, place, kind, options, *_ = line.split()
            mounts.append((kind, Path(place), set(options.split(","))))
    return mounts
