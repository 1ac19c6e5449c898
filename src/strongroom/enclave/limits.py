"""Limits on what an enclave takes of its machine: control groups of the kernel where this user may make them.

They are the launcher's word, not the policy's, and not measured: a host can starve an enclave anyway.

- Version 1 and 2 of the interface: ``Documentation/admin-guide/cgroup-v1/memory.rst``, ``scheduler/sched-bwc.rst`` and
  ``cgroup-v2.rst`` of the kernel. A group is made beside or below the launcher's own, wherever that is allowed.
- Without one, memory is limited by ``RLIMIT_DATA``, for each process by itself, and processors by affinity; the run
  says so.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
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


def make_group(limits: Limits) -> Group:
    """Groups with these limits, and what stands in for those that cannot be made. To be closed."""
    wanted = {
        name: settings
        for name, settings in (("memory", _memory(limits.memory)), ("cpu", _cpu(limits.cpus)))
        if settings is not None
    }
    made: list[Path] = []
    missing = [name for name, settings in wanted.items() if not _made(name, settings, made)]
    notes, data, processors = [], None, frozenset[int]()
    if "memory" in missing and limits.memory is not None:
        data = limits.memory >> 10
        notes.append("no control group for memory here: the limit counts for each process by itself")
    if "cpu" in missing and limits.cpus is not None:
        count = math.ceil(limits.cpus)
        processors = frozenset(sorted(os.sched_getaffinity(0))[:count])
        notes.append(f"no control group for processors here: the program runs on {len(processors)} of them only")
    return Group(tuple(made), data, processors, tuple(notes))


def _memory(limit: int | None) -> dict[str, list[tuple[str, str]]] | None:
    """Files and what is written to them, by the interface's version. Swap counts as memory, where it is counted."""
    if limit is None:
        return None
    return {
        "1": [("memory.limit_in_bytes", str(limit)), ("memory.memsw.limit_in_bytes", str(limit))],
        "2": [("memory.max", str(limit)), ("memory.swap.max", "0")],
    }


def _cpu(count: float | None) -> dict[str, list[tuple[str, str]]] | None:
    if count is None:
        return None
    quota = max(int(count * _PERIOD), 1000)
    return {
        "1": [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota))],
        "2": [("cpu.max", f"{quota} {_PERIOD}")],
    }


def _made(controller: str, settings: dict[str, list[tuple[str, str]]], made: list[Path]) -> bool:
    """Make a group of this controller, or use one that is in `made`; whether its limit was set."""
    for version, parent in _parents(controller):
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        ours = next((each for each in made if version == "2" and each.parent == parent), parent / name)
        new = ours not in made
        try:
            if new:
                _clear(parent)
                ours.mkdir()
            for file, value in settings[version]:
                if file not in _OPTIONAL or (ours / file).exists():
                    (ours / file).write_text(value)
        except OSError:
            if new:
                with suppress(OSError):
                    ours.rmdir()
            continue
        if new:
            made.append(ours)
        return True
    return False


def _clear(parent: Path) -> None:
    """Take away what launchers that were killed have left."""
    for stale in parent.glob(f"{_PREFIX}*"):
        launcher = stale.name.removeprefix(_PREFIX).partition("-")[0]
        if launcher.isdigit() and not Path("/proc", launcher).exists():
            with suppress(OSError):
                stale.rmdir()


def _parents(controller: str) -> Iterator[tuple[str, Path]]:
    """Where a group of this controller may be made: this process's own of version 1, then ancestors of version 2."""
    own: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            own |= {name: path.strip("/") for name in names.split(",")}
    mounts: list[tuple[str, Path, set[str]]] = []
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, place, kind, options, *_ = line.split()
            mounts.append((kind, Path(place), set(options.split(","))))
    for kind, top, controllers in mounts:
        if kind == "cgroup" and controller in controllers:
            at = top / own.get(controller, "")
            yield "1", at if at.is_dir() else top
    for kind, top, _ in mounts:
        if kind == "cgroup2":
            at = top / own.get("", "")
            for parent in (at, *at.parents):
                if not parent.is_relative_to(top):
                    break
                with suppress(OSError):
                    if controller in (parent / "cgroup.subtree_control").read_text().split():
                        yield "2", parent
