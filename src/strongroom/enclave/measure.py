"""The measurement: a digest of everything that runs in an enclave, in parts that a person can compare.

What is measured: the interpreter with its standard library, every distribution of the environment, Strongroom itself,
the system's shared libraries that any of these links to, the program's files, and the boot configuration (command,
environment, vault layout, CAS, policy name). What Python runs without being asked, such as ``.pth`` files, is a part of
its own; so is what lies in site-packages and belongs to nobody.

A distribution comes to the same part on every machine: no time, mode or place of a file enters it, and nothing that an
installer writes for itself. What differs between machines are the interpreter, the system libraries and a command that
is not Python.

Not measured: ``__pycache__`` (the enclave compiles from measured source into memory of its own) and the rest of
``/usr``, which a program can see.

As TDX has it, the platform goes into MRTD at launch and the program extends RTMR3, so `registers_measurement` of the
registers is what evidence shows and a policy names.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import site as sitepackages
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import strongroom
from strongroom.attest.claims import registers_measurement
from strongroom.enclave.config import BootConfig
from strongroom.enclave.digests import Digests, FileDigest, Looked, walk
from strongroom.enclave.distributions import (
    STARTUP,
    UNOWNED,
    Oddity,
    beside_site,
    distributions,
    is_installers_own,
    is_startup,
    may_be_beside_site,
    oddities,
    owners,
)
from strongroom.enclave.elf import system_libraries
from strongroom.enclave.paths import check_interpreter, check_pth
from strongroom.enclave.reader import NO_STDLIB
from strongroom.enclave.scripts import entry_of
from strongroom.enclave.tools import found, started
from strongroom.enclave.unchanged import Seen
from strongroom.errors import EnclaveError, UsageError

_LABEL = b"strongroom/measured-part/v1\0"
_ZERO = bytes(48)
_MAX_PROGRAM_FILES = 5000
_LINKER_CACHE = Path("/etc/ld.so.cache")

PROGRAM_PARTS = ("program", "boot configuration")

Named = list[tuple[str, str]]


class Entry(NamedTuple):
    """One measured file: its name in the measurement, where it lies on this machine, SHA-256 and size."""

    name: str
    path: str
    sha256: bytes
    size: int


@dataclass(frozen=True)
class Part:
    """One measured part: its files, their size, and the SHA-384 over their names and contents.

    Attributes:
        entries: its files, which may be read again when they are first asked for.
    """

    name: str
    files: int
    size: int
    digest: bytes
    entries: Sequence[Entry] = field(default=(), repr=False, compare=False)

    def to_wire(self) -> dict[str, object]:
        return {"part": self.name, "files": self.files, "bytes": self.size, "digest": self.digest.hex()}


class Platform(tuple[Part, ...]):
    """The parts that are there at launch, before the program's, and the files of which they were made."""

    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """The parts, and the registers that they come to.

    Attributes:
        seen: the files of the platform, as they were then.
    """

    parts: tuple[Part, ...]
    registers: Mapping[str, bytes]
    seen: tuple[Seen, ...] = field(default=(), repr=False, compare=False)

    @property
    def value(self) -> str:
        """What a policy lists: 96 hexadecimal digits."""
        return registers_measurement(self.registers)

    @property
    def platform(self) -> Platform:
        """The parts that are there at launch, before the program's."""
        platform = Platform(self.parts[: -len(PROGRAM_PARTS)])
        platform.seen = self.seen
        return platform


@dataclass(frozen=True)
class Environment:
    """The Python installation that enclaves of this process run on: the one that Strongroom is installed in."""

    executable: Path
    prefix: Path
    base_prefix: Path
    stdlib: Path
    beside: tuple[Path, ...]
    site_packages: tuple[Path, ...]
    package: Path

    @classmethod
    def current(cls) -> Environment:
        paths = sysconfig.get_paths()
        site = sorted({Path(paths["purelib"]), Path(paths["platlib"]), *map(Path, sitepackages.getsitepackages())})
        return cls(
            executable=Path(sys.executable),
            prefix=Path(sys.prefix),
            base_prefix=Path(sys.base_prefix),
            stdlib=Path(paths["stdlib"]),
            beside=_beside(),
            site_packages=tuple({p.resolve(): p for p in reversed(site) if p.is_dir()}.values())[::-1],
            package=Path(strongroom.__file__).parent,
        )


def _beside() -> tuple[Path, ...]:
    """What an interpreter takes in from outside its standard library.

    The library that it is in, every other one beside that (its RUNPATH comes before the system's), the zipped standard
    library that it looks for first, and the file that makes a virtual environment.
    """
    found = []
    directory = Path(str(sysconfig.get_config_var("LIBDIR")))
    if directory.is_relative_to(sys.base_prefix) and sys.base_prefix != "/usr":
        found += [path for path in sorted(directory.glob("*.so*")) if path.is_file()]
    else:
        library = directory / str(sysconfig.get_config_var("INSTSONAME"))
        found += [library] if ".so" in library.name and library.is_file() else []
    zipped = Path(sys.base_prefix, "lib", f"python{sys.version_info.major}{sys.version_info.minor}.zip")
    return (*found, *(path for path in (zipped, Path(sys.prefix, "pyvenv.cfg")) if path.is_file()))


def program_files(base: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files that a policy's `program.files` names, by their names relative to `base`.

    Raises:
        UsageError: one does not exist, or lies outside `base`.
    """
    found = {}
    for name in names:
        path = base / name
        if not path.is_file():
            raise UsageError(f"program file: {path} does not exist")
        if not path.resolve().is_relative_to(base.resolve()):
            raise UsageError(f"program file: {path} leads out of {base}")
        found[name] = path
    return found


def python_files(directory: Path, base: Path) -> list[str]:
    """The names, relative to `base`, of all Python sources below `directory`, without hidden folders and environments.

    Raises:
        UsageError: there are more than 5,000.
    """
    found: list[str] = []
    for root, folders, files in os.walk(directory):
        folders[:] = sorted(
            f
            for f in folders
            if not f.startswith((".", "__pycache__")) and not (Path(root) / f / "pyvenv.cfg").exists()
        )
        found += [(Path(root) / f).relative_to(base).as_posix() for f in sorted(files) if f.endswith(".py")]
        if len(found) > _MAX_PROGRAM_FILES:
            raise UsageError(
                f"program: more than {_MAX_PROGRAM_FILES} Python files below {directory}",
                hint="run it from a directory of its own, or name its files in a policy",
            )
    return found


# For simulated enclaves of this process; the command line takes in what this user's home has.
KNOWN = Digests()


def measure(
    config: BootConfig,
    files: Mapping[str, Path],
    environment: Environment | None = None,
    *,
    known: Digests = KNOWN,
    platform: Sequence[Part] | None = None,
    image: Part | None = None,
) -> Measurement:
    """Measure what an enclave with this configuration and these program files runs.

    Args:
        files: the program's files by their names inside the enclave.
        known: digests that need not be made again; by default those of this process, for simulated enclaves.
        platform: the platform's parts for this command, if they were measured a moment ago.
        image: the tree of the container image that is the program's root, which is measured as the program's.

    Raises:
        EnclaveError: a file could not be read, or the environment takes in packages from elsewhere.
        UsageError: the command is not to be found in the enclave.
    """
    environment = environment or Environment.current()
    check_interpreter(environment.executable, environment.prefix)
    if bool(config.image) != (image is not None):
        raise EnclaveError("image: the boot configuration names one, and none was measured, or the other way round")
    if not config.image and config.command and "/" in config.command[0] and not config.command[0].startswith("/"):
        name = config.command[0].removeprefix("./")
        if config.role == "program" and name not in files:
            raise UsageError(f"command: {config.command[0]} is not one of the program's files", hint="--include it")
    if platform is None:
        platform = _platform(environment, config, files, known)
    raw = config.to_bytes()
    program = _part("program", [(name, os.fspath(path)) for name, path in files.items()], known)
    if image is not None:
        entries = (*image.entries, *program.entries)  # whose names begin with a slash, and no file's does
        digest = part_digest([(e.name, e.sha256) for e in entries])
        program = Part("program", len(entries), image.size + program.size, digest, entries)
    boot = Part("boot configuration", 0, len(raw), boot_digest(raw))
    registers = registers_of([(part.name, part.digest) for part in platform], program.digest, raw)
    return Measurement((*platform, program, boot), registers, platform.seen if isinstance(platform, Platform) else ())


def registers_of(platform: Iterable[tuple[str, bytes]], program: bytes, boot: bytes) -> dict[str, bytes]:
    """The registers that the platform's parts, the program's digest and the boot configuration come to."""
    mrtd = hashlib.sha384(b"".join(_framed(name.encode("utf-8", "surrogateescape")) + d for name, d in platform))
    rtmr3 = _extend(_extend(_ZERO, program), boot_digest(boot))
    return {"mrtd": mrtd.digest(), "rtmr0": _ZERO, "rtmr1": _ZERO, "rtmr2": _ZERO, "rtmr3": rtmr3}


def boot_digest(raw: bytes) -> bytes:
    return hashlib.sha384(_LABEL + raw).digest()


def part_digest(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """The digest of a part: over its files' names and their SHA-256, in the order of the names."""
    listed = sorted([(name.encode("utf-8", "surrogateescape"), digest) for name, digest in entries])
    framed = [b"%b%b%b" % (len(name).to_bytes(4, "little"), name, digest) for name, digest in listed]
    return hashlib.sha384(_LABEL + b"".join(framed)).digest()


def odd_files(measured: Measurement, environment: Environment | None = None) -> list[Oddity]:
    """The files of this environment that differ from what the RECORDs of its distributions say."""
    environment = environment or Environment.current()
    found = [each for site in environment.site_packages for each in distributions(site)]
    roots = tuple(f"{site}/" for site in environment.site_packages)
    present = {e.path: e.sha256 for part in measured.parts for e in part.entries if e.path.startswith(roots)}
    return oddities(found, present)


def _extend(register: bytes, value: bytes) -> bytes:
    """As TDG.MR.RTMR.EXTEND does: the new value is SHA-384(old || extension)."""
    return hashlib.sha384(register + value).digest()


def _platform(environment: Environment, config: BootConfig, program: Mapping[str, Path], known: Digests) -> Platform:
    parts, seen = _remembered(environment, known)
    files = _system_programs(config, program, environment)
    if files:
        stamp = known.stamp(files)
        parts = [*parts, _part("command", [(path, path) for path in files], known)]
        seen = (*seen, Seen.of(files, stamp, known))
    platform = Platform(parts)
    platform.seen = seen
    return platform


def _files(environment: Environment, walked: Callable[..., Named] = walk) -> list[str]:
    """The files of an environment's directories, and those that lie by themselves."""
    paths = [str(path) for path in (*environment.beside, environment.executable.resolve(), _LINKER_CACHE)]
    paths = [path for path in paths if os.path.isfile(path)]  # noqa: PTH113
    paths += [path for _, path in walked(str(environment.stdlib), skip=NO_STDLIB)]
    paths += [path for _, path in walked(str(environment.package))]
    for site in environment.site_packages:
        paths += [path for _, path in walked(str(site), leave_out=str(environment.package))]
    return paths


def _remembered(environment: Environment, known: Digests) -> tuple[list[Part], tuple[Seen, ...]]:
    """The parts of every program's platform; of files that are what they were, as they were measured then."""
    with _uncollected():
        looked = Looked(known.look())
        walked = functools.cache(looked.walk)  # of one look; what changes meanwhile is seen by the stamp, or the next
        paths = _files(environment, walked)
        stamp = known.stamp([repr(environment), *paths], looked.told)  # the first is no file's name
    seen = Seen(lambda: _files(environment), frozenset(paths), stamp.seen, known)
    found = known.platform(stamp.digest)
    if found is not None and (others := known.stamp(found["others"])).digest.hex() == found["stamp"]:
        _check_pth(environment, found["pth"])
        fresh = functools.cache(lambda: {part.name: part for part in _measured(environment, known).parts})
        return [
            Part(name, files, size, bytes.fromhex(digest), _Again(fresh, name, files, digest))
            for name, files, size, digest in found["parts"]
        ], (seen, Seen.of(found["others"], others, known))
    # Also what is not measured, and has a say all the same, such as a RECORD.
    with known.reading_ahead(stamp.seen), _uncollected():
        new = _measured(environment, known, paths, walked)
    others = known.stamp(new.others)
    if known.counts(stamp) and known.counts(others):
        parts = [[part.name, part.files, part.size, part.digest.hex()] for part in new.parts]
        known.remember_platform(
            stamp.digest,
            {"parts": parts, "pth": list(new.pth), "others": list(new.others), "stamp": others.digest.hex()},
        )
    return new.parts, (seen, Seen.of(new.others, others, known))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles, which would look through hundreds of thousands of names, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Again(Sequence[Entry]):
    """The entries of a part that was remembered without them: measured again when they are asked for."""

    def __init__(self, fresh: Callable[[], Mapping[str, Part]], name: str, files: int, digest: str) -> None:
        self._fresh, self._name, self._files, self._digest = fresh, name, files, digest

    def __len__(self) -> int:
        return self._files

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._read())

    def _read(self) -> Sequence[Entry]:
        part = self._fresh().get(self._name)
        if part is None or part.digest.hex() != self._digest:
            raise EnclaveError(f"measure: {self._name}: changed since it was measured")
        return part.entries


class _Platform(NamedTuple):
    """The parts of a platform, its ``.pth`` files, and what it depends on besides the files of its directories."""

    parts: list[Part]
    pth: list[str]
    others: list[str]


def _check_pth(environment: Environment, files: Iterable[str]) -> None:
    measured = [*environment.site_packages, environment.stdlib, environment.package]
    visible = [environment.prefix, environment.base_prefix, Path("/usr")]
    check_pth(files, measured, visible)


def _measured(
    environment: Environment, known: Digests, also: Sequence[str] = (), walked: Callable[..., Named] = walk
) -> _Platform:
    """Measure it.

    Args:
        also: more files whose digests are to be known.
        walked: as `walk`.
    """
    interpreter, startup = _interpreter(environment, walked)
    others: list[str] = []
    by_distribution: dict[str, Named] = {}
    for site in environment.site_packages:
        # Which directory a module is in says what it hides, so the directory is in the name; never the machine's own.
        label = site.relative_to(environment.prefix) if site.is_relative_to(environment.prefix) else site
        found = distributions(site)
        owner = owners(found)
        for name, path in walked(str(site), leave_out=str(environment.package)):
            if is_startup(name):
                startup.append((f"{label}/{name}", path))
            elif not is_installers_own(name):
                by_distribution.setdefault(owner.get(path, UNOWNED), []).append((f"{label}/{name}", path))
        others += may_be_beside_site(owner, site, environment.prefix)
        for path in beside_site(owner, site, environment.prefix):
            name = os.path.relpath(path, environment.prefix)
            by_distribution.setdefault(owner[path], []).append((name, path))
    pth = [path for name, path in startup if name.endswith(".pth")]
    _check_pth(environment, pth)
    package = [*walked(str(environment.package))]
    named = [interpreter, package, startup, *by_distribution.values()]
    for each in named:
        each.sort()  # while they are read; it is not done again for what is sorted
    paths = [*{*also, *(path for each in named for _, path in each)}]
    digests = dict(zip(paths, known.of(paths), strict=True))  # at once, for all processors
    parts = [_made("interpreter", interpreter, digests)]
    parts += [_made(name, by_distribution[name], digests) for name in sorted(by_distribution)]
    linking = {e.path: e.sha256 for part in parts for e in part.entries if ".so" in e.name or e.name == "python"}
    libraries = system_libraries(linking, lambda path: known.linked(path, linking.get(path)))
    parts[1:1] = [_made("strongroom", package, digests), _made(STARTUP, startup, digests)]
    parts.append(_part("system libraries", [(str(path), str(path)) for path in libraries], known))
    return _Platform(parts, pth, [*others, *map(str, libraries)])


def _interpreter(environment: Environment, walked: Callable[..., Named]) -> tuple[Named, Named]:
    """The files of the interpreter, and those of its standard library that it runs at every start."""
    # What `pyvenv.cfg` says is not measured but followed: the standard library that it leads to is measured, and one
    # that leads to other packages is refused. It names places of this machine.
    files = [(path.name, str(path)) for path in environment.beside if path.name != "pyvenv.cfg"]
    files.append(("python", str(environment.executable.resolve())))
    startup: Named = []
    for name, path in walked(str(environment.stdlib), skip=NO_STDLIB):
        named = (f"{environment.stdlib.name}/{name}", path)
        (startup if is_startup(name) else files).append(named)
    return files, startup


def _system_programs(config: BootConfig, program: Mapping[str, Path], environment: Environment) -> list[str]:
    """The files of the system's that a command starts which is no Python, and those of the policy's tools.

    Raises:
        UsageError: the enclave would not find one.
    """
    if config.role != "program" or config.image:
        return []
    first = [path for name in config.tools or () for path in found(name, "program.tools")]
    own: list[str] = []
    if config.command and config.command[0] not in ("python", "python3"):
        name = config.command[0]
        if "/" in name and not name.startswith("/"):  # one of the program's own files, which are measured
            copy = program.get(name.removeprefix("./"))
            own = [os.path.realpath(copy)] if copy is not None else []
        elif entry_of(name, environment.site_packages) is None:  # else a measured package's
            first += found(name)
    executables, libraries = started([*first, *own])
    return sorted({*executables, *libraries} - {*own})


def _part(name: str, named: Named, known: Digests) -> Part:
    paths = sorted({path for _, path in named})
    return _made(name, named, dict(zip(paths, known.of(paths), strict=True)))


def _made(name: str, named: Named, digests: Mapping[str, FileDigest]) -> Part:
    files = sorted(dict.fromkeys(named))
    found = [digests[path] for _, path in files]
    entries = tuple([Entry(*file, *digest) for file, digest in zip(files, found, strict=True)])
    total = part_digest([(file[0], digest.sha256) for file, digest in zip(files, found, strict=True)])
    return Part(name, len(entries), sum([digest.size for digest in found]), total, entries)


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data
