"""The measurement: a digest of everything that runs in an enclave, in parts that a person can compare.

What is measured, in this version: the interpreter with its standard library, every file of the environment's
site-packages, Strongroom itself, the system's shared libraries that any of these links to, the program's files, and the
boot configuration (command, environment, vault layout, CAS, policy name).

Not measured: ``__pycache__`` (the enclave compiles from measured source into memory of its own) and the rest of
``/usr``, which a program can see.

As TDX has it, the platform goes into MRTD at launch and the program extends RTMR3, so `registers_measurement` of the
registers is what evidence shows and a policy names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import site as sitepackages
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import strongroom
from strongroom.attest.claims import registers_measurement
from strongroom.enclave.config import SANDBOX_ENVIRONMENT, BootConfig
from strongroom.enclave.elf import system_libraries
from strongroom.errors import EnclaveError, UsageError

_LABEL = b"strongroom/measured-part/v1\0"
_ZERO = bytes(48)
_MAX_PROGRAM_FILES = 5000

PROGRAM_PARTS = ("program", "boot configuration")


@dataclass(frozen=True)
class Part:
    """One measured part: its files, their size, and the SHA-384 over their names and contents."""

    name: str
    files: int
    size: int
    digest: bytes

    def to_wire(self) -> dict[str, object]:
        return {"part": self.name, "files": self.files, "bytes": self.size, "digest": self.digest.hex()}


@dataclass(frozen=True)
class Measurement:
    """The parts, and the registers that they come to."""

    parts: tuple[Part, ...]
    registers: Mapping[str, bytes]

    @property
    def value(self) -> str:
        """What a policy lists: 96 hexadecimal digits."""
        return registers_measurement(self.registers)


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
            site_packages=tuple(p for p in site if p.is_dir()),
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


def measure(config: BootConfig, files: Mapping[str, Path], environment: Environment | None = None) -> Measurement:
    """Measure what an enclave with this configuration and these program files runs.

    Args:
        files: the program's files by their names inside the enclave.

    Raises:
        EnclaveError: a file could not be read, or the environment takes in packages from elsewhere.
        UsageError: the command is not to be found in the enclave.
    """
    environment = environment or Environment.current()
    _check_environment(environment)
    if config.command and "/" in config.command[0] and not config.command[0].startswith("/"):
        name = config.command[0].removeprefix("./")
        if config.role == "program" and name not in files:
            raise UsageError(f"command: {config.command[0]} is not one of the program's files", hint="--include it")
    parts = [_part(name, named) for name, named in _platform(environment, config)]
    raw = config.to_bytes()
    program = _part("program", sorted(files.items()))
    boot = Part("boot configuration", 0, len(raw), hashlib.sha384(_LABEL + raw).digest())
    mrtd = hashlib.sha384(b"".join(_framed(p.name.encode()) + p.digest for p in parts)).digest()
    rtmr3 = _extend(_extend(_ZERO, program.digest), boot.digest)
    registers = {"mrtd": mrtd, "rtmr0": _ZERO, "rtmr1": _ZERO, "rtmr2": _ZERO, "rtmr3": rtmr3}
    return Measurement((*parts, program, boot), registers)


def _check_environment(environment: Environment) -> None:
    """Raises EnclaveError if the interpreter would import from directories that are not measured."""
    settings = environment.prefix / "pyvenv.cfg"
    if settings.is_file() and re.search(r"(?im)^\s*include-system-site-packages\s*=\s*true", settings.read_text()):
        raise EnclaveError(
            f"environment: {environment.prefix} takes in the system's packages, which are not measured",
            hint="make one without: python -m venv, and no --system-site-packages",
        )


def _extend(register: bytes, value: bytes) -> bytes:
    """As TDG.MR.RTMR.EXTEND does: the new value is SHA-384(old || extension)."""
    return hashlib.sha384(register + value).digest()


def _platform(environment: Environment, config: BootConfig) -> Iterator[tuple[str, list[tuple[str, str | Path]]]]:
    interpreter: list[tuple[str, str | Path]] = [("python", environment.executable.resolve())]
    interpreter += [(path.name, path) for path in environment.beside]
    interpreter += _walk(environment.stdlib, skip={"site-packages", "dist-packages"})
    yield "interpreter", interpreter
    yield "strongroom", list(_walk(environment.package))
    by_distribution: dict[str, list[tuple[str, str | Path]]] = {}
    for site in environment.site_packages:
        owners = _owners(site)
        for name, path in _walk(site, leave_out=environment.package):
            by_distribution.setdefault(owners.get(name, "files of no distribution"), []).append((name, path))
    for name in sorted(by_distribution):
        yield name, by_distribution[name]
    linked = [
        os.fspath(path)
        for named in (interpreter, *by_distribution.values())
        for name, path in named
        if ".so" in name or name == "python"
    ]
    yield "system libraries", [(str(path), path) for path in system_libraries(linked)]
    command = _system_command(config)
    if command is not None:
        yield "command", [(str(command), command)]


def _system_command(config: BootConfig) -> Path | None:
    """The executable of a command that is no Python: measured too, though not what it loads.

    It is looked up as it will be in the enclave; a name with a slash is a path there.

    Raises:
        UsageError: the enclave would not find it.
    """
    if not config.command or config.role != "program" or config.command[0] in ("python", "python3"):
        return None
    name = config.command[0]
    if "/" in name and not name.startswith("/"):
        return None  # one of the program's own files, or nothing
    found = shutil.which(name, path=SANDBOX_ENVIRONMENT["PATH"])
    if found is None:
        raise UsageError(
            f"command: {name} is not an executable on the enclave's path, {SANDBOX_ENVIRONMENT['PATH']}",
            hint="name it by its absolute path, or make it one of the program's files: --include FILE and ./FILE",
        )
    return Path(found).resolve()


def _owners(site: Path) -> dict[str, str]:
    """Which distribution each file of a site-packages directory belongs to, as its RECORD says."""
    owners = {}
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        record = distribution.read_text("RECORD") or ""
        name = f"{distribution.name} {distribution.version}"
        for line in record.splitlines():
            owners[line.rsplit(",", 2)[0].strip('"')] = name
    return owners


def _walk(root: Path, skip: Iterable[str] = (), leave_out: Path | None = None) -> Iterator[tuple[str, str]]:
    """Every file below `root` with its relative name, sorted by folder, but for caches of compiled code."""
    skip = {"__pycache__", *skip}
    start = len(str(root)) + 1
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # A link to a directory is followed, since an import would follow it; each directory once, so that loops end.
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if f not in skip and f"{folder}/{f}" != str(leave_out))
        inside = folder[start:]
        # The links themselves too: one to a directory that was walked already gives its modules another name.
        links = [f for f in folders if os.path.islink(f"{folder}/{f}")]  # noqa: PTH114
        for name in sorted([*files, *links]):
            yield (f"{inside}/{name}" if inside else name), f"{folder}/{name}"


def _part(name: str, named: Iterable[tuple[str, str | Path]]) -> Part:
    named = list(named)
    with ThreadPoolExecutor() as pool:
        # Batches, since most files are small: a future for each would cost more than its digest.
        batches = [[os.fspath(path) for _, path in named[i : i + 256]] for i in range(0, len(named), 256)]
        digests = [result for batch in pool.map(_digests, batches) for result in batch]
    total = hashlib.sha384(_LABEL)
    for (file, _), (digest, _) in zip(named, digests, strict=True):
        total.update(_framed(file.encode("utf-8", "surrogateescape")) + digest)
    return Part(name, len(named), sum(size for _, size in digests), total.digest())


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


# Digests of this process's lifetime, by what the kernel says of the file. A host that forges these fools only a
# simulated enclave, whose measurement it computes anyway.
_cache: dict[tuple[int, int, int, int, int], bytes] = {}


def _digests(paths: Sequence[str]) -> list[tuple[bytes, int]]:
    return [_digest(path) for path in paths]


def _digest(path: str) -> tuple[bytes, int]:
    """SHA-256 and size of a file; of what is no regular file, a digest that says so."""
    try:
        found = os.stat(path)  # noqa: PTH116  # 27,000 times: a Path object each costs as much as the call
        if not stat.S_ISREG(found.st_mode):
            target = os.readlink(path) if os.path.islink(path) else ""  # noqa: PTH114, PTH115
            return hashlib.sha256(b"not a regular file\0" + os.fsencode(target)).digest(), 0
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        digest = _cache.get(identity)
        if digest is None:
            with open(path, "rb") as file:  # noqa: PTH123
                digest = hashlib.file_digest(file, "sha256").digest()
            _cache[identity] = digest
    except OSError as error:
        raise EnclaveError(f"measure: {path}: {(error.strerror or str(error)).lower()}") from None
    return digest, found.st_size
