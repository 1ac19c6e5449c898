"""Where a program finds its vaults, directories that begin empty, and directories of the host's: one within another.

Rules:

- They appear in the order of their paths, and are taken away in reverse. So what lies within another covers what that
  has there: of all that fit a file, the one with the longest path holds.
- Vaults that are only read are one FUSE mount, since a process serves one, and are shown at their places from there.
  Where there is none, and for vaults that are written, the content is in the enclave's memory.
- What the program wrote is put into the vaults once everything within them is gone again, and is committed when that is
  done for all: a run that fails before commits none of them. Each commit is of one vault (decision 7).
- A program may rename what it may write, with all that is mounted below. What is not where it was put any more is not
  looked for: the run fails, and commits nothing.
- Without a mount namespace nothing can lie within anything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from strongroom.enclave.boot import Booted
from strongroom.enclave.config import MOUNTED_DIRECTORY, ROOT_DIRECTORY, BootConfig, VaultMount
from strongroom.enclave.confine import enclave_user, give
from strongroom.enclave.drop import bind, mount_memory, overlay, protect, unmount
from strongroom.enclave.image_paths import inside
from strongroom.enclave.nesting import hosts_within, outer_of, staged
from strongroom.enclave.room import Result, until_room
from strongroom.enclave.witness import Witness, Written, is_lineage
from strongroom.errors import EnclaveError, MissingDependencyError, UnsupportedPlatformError, UsageError
from strongroom.shield import files
from strongroom.vault import Vault

_FUSE = Path(MOUNTED_DIRECTORY)
_EMPTY = _FUSE.with_name("empty")  # an overlay wants two directories


@dataclass(frozen=True)
class Mounted:
    """What a program finds.

    Attributes:
        places: where each vault is.
    """

    places: Mapping[str, Path]
    _fuse: files.MountedVault | None = None

    def check(self) -> None:
        """Raises what the program got as an I/O error and may have gone on from: what it made of that is not kept."""
        if self._fuse is not None and self._fuse.failure is not None:
            raise self._fuse.failure


@contextmanager
def mounted(booted: Booted, witness: Witness) -> Iterator[Mounted]:
    """All of it; at the end what was written is sealed and committed.

    Raises:
        EnclaveError: something cannot appear at its path.
    """
    config = booted.config
    rules = [rule for rule in config.vaults if rule.mount]
    places = {rule.name: _place(booted, rule) for rule in rules}
    read = [rule.name for rule in rules if booted.access(rule.name) == "read-only"]
    if not booted.sandboxed:
        _check_apart(config)
    with ExitStack() as shields:
        results = shields.enter_context(_results(booted, witness))
        vaults = {name: shields.enter_context(booted.open_vault(name)) for name in read}
        fuse = _mount(booted, vaults) if vaults and booted.layout.get("fuse") else None
        if fuse is not None:
            shields.enter_context(fuse)
        steps: list[tuple[str, AbstractContextManager[None]]] = [
            *((path, _ephemeral(booted, path)) for path in config.ephemeral),
            *((path, _host(booted, path)) for path in hosts_within(config)),
        ]
        for rule in rules:
            place = places[rule.name]
            if rule.name not in vaults:
                steps.append((rule.mount, _writable(booted, rule, place, witness, results)))
            elif fuse is not None:
                steps.append((rule.mount, _bound(booted, rule, place, vaults[rule.name], witness)))
            else:
                steps.append((rule.mount, _unpacked(booted, rule, place, vaults[rule.name], witness)))
        for _, step in sorted(steps, key=lambda each: inside(config, each[0]).parts):
            shields.enter_context(step)
        yield Mounted(places, fuse)


def _place(booted: Booted, rule: VaultMount) -> Path:
    """Where a vault appears: at its mount inside a mount namespace, else below a private directory."""
    if booted.sandboxed:
        return inside(booted.config, rule.mount)
    return Path(str(booted.layout.get("private_root"))) / rule.name


def seen(booted: Booted, place: Path) -> str:
    """A place as the program sees it."""
    return f"/{place.relative_to(ROOT_DIRECTORY)}" if booted.config.image else str(place)


def _check_apart(config: BootConfig) -> None:
    if config.ephemeral:
        raise EnclaveError(f"paths: {config.ephemeral[0]}: cannot appear there without a mount namespace")
    for rule in config.vaults:
        if rule.mount and (outer := outer_of(config, rule.mount)):
            raise EnclaveError(f"vault {rule.name}: lies in {outer}, which needs a mount namespace")


# Reading.


def _mount(booted: Booted, vaults: Mapping[str, Vault]) -> files.MountedVault | None:
    """One mount for all of them, with a directory for whatever lies within them; None where none is possible."""
    config = booted.config
    inside: dict[str, list[str]] = {}
    for path in (*(rule.mount for rule in config.vaults if rule.mount), *config.ephemeral, *config.host):
        outer = outer_of(config, path)
        for rule in config.vaults:
            if rule.mount and rule.mount == outer and rule.name in vaults:
                inside.setdefault(rule.name, []).append(path.removeprefix(f"{outer}/"))
    try:
        _FUSE.mkdir(parents=True, exist_ok=True)
        return files.mount(vaults, _FUSE, anybody=enclave_user(booted) is not None, points=inside)
    except (MissingDependencyError, UnsupportedPlatformError) as error:
        booted.control.event("notice", text=f"{error.message}; unpacking sealed data to memory")
        return None
    except UsageError as error:
        raise EnclaveError(f"paths: {error.message}") from None


@contextmanager
def _bound(booted: Booted, rule: VaultMount, place: Path, opened: Vault, witness: Witness) -> Iterator[None]:
    _make(booted, place)
    _show(_FUSE / rule.name, place)
    with _held(booted, place, mounted=True):
        witness.mounted(rule.name, opened)
        _tell(booted, rule, place, f"{'decrypted' if opened.encrypted else 'verified'} on access (FUSE)")
        yield


def _show(source: Path, place: Path) -> None:
    """Show a directory of the FUSE mount at a place: through an overlay, where the kernel has one.

    It answers what a file need not be asked for, as whether it is a terminal: of which Python asks whatever it opens,
    and which FUSE would have boot answer each time. What is read and how it is cached stays the same.
    """
    _EMPTY.mkdir(exist_ok=True)
    try:
        overlay(str(source), str(_EMPTY), str(place))
    except OSError:
        bind(str(source), str(place))


@contextmanager
def _unpacked(booted: Booted, rule: VaultMount, place: Path, opened: Vault, witness: Witness) -> Iterator[None]:
    with _covering(booted, rule.mount, place) as covers:
        exposed = files.expose(opened, place)
        mark = _mark(place)
        try:
            give(booted, place)
            if covers:
                protect(str(place))
            witness.unpacked(rule.name, opened, place)
            _tell(booted, rule, place, "unpacked to private memory")
            yield
        finally:
            _check_there(booted, place, mark)  # else what a link leads to would be deleted
            exposed.unmount()


@contextmanager
def _covering(booted: Booted, path: str, place: Path) -> Iterator[bool]:
    """Have an empty directory where the program shall find something; whether it covers what lies there."""
    covers = outer_of(booted.config, path) is not None
    _make(booted, place)
    if covers:
        mount_memory(str(place))
    with _held(booted, place, mounted=covers):
        yield covers


@contextmanager
def _held(booted: Booted, place: Path, *, mounted: bool) -> Iterator[None]:
    """Take away what is mounted at a place at the end.

    Raises:
        EnclaveError: it is another directory by then.
    """
    mark = _mark(place)
    try:
        yield
    finally:
        if mounted:
            _check_there(booted, place, mark)
            unmount(str(place))


def _mark(place: Path) -> tuple[int, int] | None:
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_there(booted: Booted, place: Path, mark: tuple[int, int] | None) -> None:
    if mark is None or _mark(place) != mark:
        raise EnclaveError(
            f"paths: {seen(booted, place)}: is not what was mounted there: the program has moved it",
            hint="nothing of the run is kept; a program must leave the directories above a mount where they are",
        )


def _make(booted: Booted, place: Path) -> None:
    """A directory, and those above it; what is made in a vault's is the program's, as the vault's own are."""
    for link in (path for path in (place, *place.parents) if path.is_symlink()):
        if outer_of(booted.config, seen(booted, link)) is not None:
            raise EnclaveError(
                f"paths: {seen(booted, place)}: leads through {seen(booted, link)}, which is a link",
                hint="name what the link of the vault's leads to",
            )
    missing = [path for path in (place, *place.parents) if not path.exists()]
    try:
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise EnclaveError(
            f"paths: {seen(booted, place)}: cannot be made a directory: {(error.strerror or '').lower()}",
            hint="what it lies in must have a directory there, or none with that name and let one be made",
        ) from None
    if missing and outer_of(booted.config, seen(booted, missing[-1])) is not None:
        give(booted, missing[-1])


def _tell(booted: Booted, rule: VaultMount, place: Path, how: str) -> None:
    if rule.name in booted.config.authenticated:
        how += "; in clear on the host's disk"
    booted.control.event("vault", vault=rule.name, mount=seen(booted, place), how=how)


# Writing.


@dataclass
class _Results:
    """The vaults that the program may write, and those of them that hold by now what it wrote."""

    booted: Booted
    witness: Witness
    opened: ExitStack
    ready: list[tuple[str, Vault, Written]] = field(default_factory=list)
    sealed: list[str] = field(default_factory=list)

    def open(self, name: str) -> Vault:
        return self.opened.enter_context(self.booted.open_vault(name))

    def collect(self, name: str, opened: Vault, place: Path) -> None:
        """Put what lies at a place into a vault, whose files are then these."""

        def take() -> tuple[list[str], Written]:
            return files.take(place, opened), self.witness.state(name, opened)

        skipped, written = self._sealed(name, take, lambda: _size(place))
        self.ready.append((name, opened, written))
        if skipped:
            text = f"vault {name}: not sealed, being no files or links within it: {', '.join(skipped)}"
            self.booted.control.event("notice", text=text)

    def commit(self) -> None:
        """Write everything that can fail for want of room or a sound disk, then commit one vault after the other."""
        for name, opened, _ in self.ready:
            self._sealed(name, opened.prepare, partial(_sealed_size, opened))
        for name, opened, written in self.ready:
            self._sealed(name, opened.commit, partial(_sealed_size, opened))
            self.sealed.append(name)
            held = [path for path in opened.files() if not is_lineage(path)]
            told = {"files": held, "count": len(held), "written": written.files, "removed": written.removed}
            self.booted.control.event("sealed", vault=name, **told, lineage=written.stated, root=str(opened.root))

    def _sealed(self, name: str, seal: Callable[[], Result], size: Callable[[], int]) -> Result:
        """Wait for room, or say of which vault it is that the host's disk failed, and what of the results is kept."""
        try:
            return until_room(self.booted, name, seal, size)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kept = f"only {', '.join(self.sealed)} was sealed" if self.sealed else "no result of this run was sealed"
            why = (error.strerror or str(error)).lower()
            raise EnclaveError(
                f"vault {name}: {why}: what the program left for it, {size():,} bytes, "
                f"{'did not fit' if full else 'could not be written'}; {kept}",
                hint="make room where the vault lies, and run it again" if full else "look after that disk",
            ) from None


def _size(place: Path) -> int:
    """Of the files below a directory, as far as they can be seen."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                total += Path(folder, name).lstat().st_size
    return total


def _sealed_size(opened: Vault) -> int:
    with suppress(OSError):
        return sum(opened.stat(path, follow=False).size for path in opened.files())
    return 0


@contextmanager
def _results(booted: Booted, witness: Witness) -> Iterator[_Results]:
    with ExitStack() as opened:
        results = _Results(booted, witness, opened)
        yield results
        results.commit()


@contextmanager
def _writable(booted: Booted, rule: VaultMount, place: Path, witness: Witness, results: _Results) -> Iterator[None]:
    """A directory in memory with the vault's content, put back into the vault when the program has ended."""
    opened = results.open(rule.name)
    with _covering(booted, rule.mount, place):
        files.expose(opened, place)
        give(booted, place)
        witness.writable(rule.name, opened, place)
        _tell(booted, rule, place, "in memory, sealed when the program ends")
        mark = _mark(place)
        yield
        _check_there(booted, place, mark)
        results.collect(rule.name, opened, place)


# What is no vault.


@contextmanager
def _ephemeral(booted: Booted, path: str) -> Iterator[None]:
    """A directory that begins empty, and is gone again before what it lies in is sealed."""
    place = inside(booted.config, path)
    _make(booted, place)
    mount_memory(str(place))
    give(booted, place)
    with _held(booted, place, mounted=True):
        yield


@contextmanager
def _host(booted: Booted, path: str) -> Iterator[None]:
    """A directory of the host's within something else; the sandbox shows the others by itself."""
    place = inside(booted.config, path)
    _make(booted, place)
    bind(staged(booted.config, path), str(place))
    with _held(booted, place, mounted=True):
        yield
