"""Opening a mirror to write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from strongroom.errors import LockedError, TamperedError, TruncatedError, UsageError
from strongroom.mirror import region
from strongroom.mirror.mirror import Mirror, Mode
from strongroom.sealed import NO_FRESHNESS, Anchor, Grouped, NoFreshness
from strongroom.sealed.layout import DEFAULT_BLOCK, check_block_size
from strongroom.sealed.opening import check_anchor, check_key
from strongroom.storage import Directory

MAX_KEPT: Final = 14  # of the 16 versions that a slot lists; two are left to readers
_LOCK_SECONDS: Final = 1.0
_LAZY_COMMITS: Final = 64
_LAZY_SECONDS: Final = 5.0
_MIXTURE: Final = (
    "a power cut can do that to a mirror whose durability is 'process': without a copy, move it and its anchor away "
    "and begin anew"
)

Durability = Literal["power", "process"]


def open(  # noqa: A001  # strongroom.mirror.open, as `vault.open`
    path: str | os.PathLike[str] | Directory,
    *,
    key: bytes,
    anchor: Anchor | NoFreshness,
    keep: int = 2,
    mode: Mode = "synchronous",
    delta: bool = False,
    durability: Durability = "power",
    when_full: Literal["warn", "raise"] = "warn",
    block_size: int = DEFAULT_BLOCK,
    clock: Callable[[], float] = time.time,
) -> Mirror:
    """Open the mirror at a path, or make a new one there.

    Args:
        path: of its file; or a directory of the storage seam, in which the file is ``mirror``.
        key: 32 bytes.
        anchor: where the latest root is remembered, or `NO_FRESHNESS` to accept any authentic version, however old.
        keep: 1 to 14 commits that can be restored; each takes the room of what has changed since.
        mode: ``synchronous``: a commit is durable when its ``with`` block ends. ``overlapped``: a copy is taken then,
            and sealed in a thread while training goes on; memory of one more state.
        delta: seal only blocks that differ from the commit before; memory of one more state. Worth it where much stays
            the same, such as frozen layers.
        durability: ``power``: a commit survives a power cut. ``process``: it survives the process; it is synced when
            the anchor moves, every 64 commits or 5 seconds, and when the mirror is closed.
        when_full: whether a full disk is a `MirrorWarning`, and training goes on, or an error.
        block_size: of a new file.
        clock: seconds since 1970.

    Raises:
        UsageError: a setting that there is not; `path` is a directory.
        LockedError: another process has it open for writing.
        FormatError: the file is no mirror.
        WrongKeyError, TamperedError, RollbackError: as `open_sealed`.
    """
    check_key(key)
    check_anchor(anchor)
    check_block_size(block_size)
    for what, value, choices in (
        ("mode", mode, ("synchronous", "overlapped")),
        ("durability", durability, ("power", "process")),
        ("when_full", when_full, ("warn", "raise")),
    ):
        if value not in choices:
            raise UsageError(f"{what}: {value!r}, wanted {' or '.join(choices)}")
    if not 1 <= keep <= MAX_KEPT:
        raise UsageError(f"keep: {keep} commits, wanted 1 to {MAX_KEPT}")
    if isinstance(path, (str, os.PathLike)):
        real = Path(os.path.realpath(path))
        if real.is_dir():
            raise UsageError(f"{os.fspath(path)}: is a directory, wanted a path for the mirror's file")
        where = region.look(real, durability)
        what, name = os.fspath(path), real.name
        directory: Directory = region.directory_of(real, where)
        if isinstance(directory, region.LazyDirectory) and anchor is not NO_FRESHNESS:
            inner = region.SyncFirst(anchor, directory)
            anchor = Grouped(inner, every_commits=_LAZY_COMMITS, every_seconds=_LAZY_SECONDS, clock=time.monotonic)
    else:
        directory, name, what = path, "mirror", "mirror"
        where = region.Region("other", durability, "the storage's own")
    try:
        made = _patiently(
            lambda: Mirror(
                directory,
                name,
                key=key,
                anchor=anchor,
                keep=keep,
                mode=mode,
                delta=delta,
                when_full=when_full,
                block_size=block_size,
                what=what,
                where=where,
                clock=clock,
            )
        )
    except (TamperedError, TruncatedError) as error:
        if durability == "process":
            error.hint = f"{error.hint}; {_MIXTURE}" if error.hint else _MIXTURE
        raise
    if isinstance(directory, region.PmemDirectory):
        made.region = replace(where, means=directory.means)  # known only now: the kernel tells by mapping the file
    return made


def _patiently(make: Callable[[], Mirror]) -> Mirror:
    """What `make` gives; a training that was just killed may hold its locks for a moment longer than it seems to."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return make()
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)
