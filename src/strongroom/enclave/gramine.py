"""The Gramine manifest of a policy's program: what an SGX enclave may load, and where its data appears.

Rules:

- Nothing of the host's is believed: no argument, no variable but the CAS's address, no file that was not measured.
- What `measure` measured, Gramine trusts, each file by the digest in the measurement; besides only other names of the
  same content, the virtual environment's `pyvenv.cfg`, the boot configuration, and Gramine's own files, which
  `gramine-sgx-sign` digests.
- A vault has two places: its ciphertext, which Gramine lets through and Strongroom authenticates, and where the program
  finds it, a mount that Gramine encrypts under a key which boot draws from the vault's (`gramine_boot`).
- Paths that do not lie in the installation are relative to where Gramine is started: the directory that `write` fills.

Source of every key: Gramine's documentation, "Manifest syntax"; `loader.entrypoint` is a table from version 1.9 on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from strongroom.enclave.config import (
    PROGRAM_DIRECTORY,
    SANDBOX,
    SANDBOX_ENVIRONMENT,
    SANDBOX_PYCACHE,
    VAULTS_DIRECTORY,
    BootConfig,
)
from strongroom.enclave.gramine_sizes import Sizes, size
from strongroom.enclave.measure import Entry, Environment, Measurement
from strongroom.enclave.nesting import outer_of
from strongroom.errors import UsageError

GRAMINE_ENTRY = "strongroom.enclave.gramine_boot"
BOOT_FILE = "/run/strongroom/boot.json"
CAS_VARIABLE = "STRONGROOM_CAS"
MANIFEST = "strongroom.manifest"

_PROGRAM, _VAULTS, _WORK, _ROOT, _BOOT = "program", "vaults", "work", "root", "boot.json"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_name(vault: str) -> str:
    """What the manifest calls the key of a vault's mount."""
    return f"vault-{vault}"


def gramine_config(config: BootConfig) -> BootConfig:
    """The boot configuration of the same program under Gramine.

    Raises:
        UsageError: it asks for what this road does not do.
    """
    if config.role != "program":
        raise UsageError(f"gramine: got the role {config.role}, wanted program: services are not launched there")
    if not config.command or config.command[0] not in ("python", "python3"):
        raise UsageError(
            f"gramine: command {' '.join(config.command[:1]) or 'none'}, wanted python: of others not all that they "
            "load is measured, and Gramine would refuse them the rest"
        )
    if config.sealed or config.files:
        raise UsageError("gramine: sealed and given files are not supported there", hint="put them into a vault")
    if any(rule.access == "mirror" for rule in config.vaults):
        raise UsageError("gramine: access mirror is not supported there", hint="let the program write to a vault")
    if config.host:
        raise UsageError("gramine: files of the host's are not shown there", hint="put them into a vault")
    nested = next((rule.mount for rule in config.vaults if rule.mount and outer_of(config, rule.mount)), None)
    if nested is not None:
        raise UsageError(
            f"gramine: {nested}: vaults within others are not supported there", hint="put them side by side"
        )
    if config.tools is not None:
        raise UsageError("gramine: program.tools: programs of the system are not supported there", hint="leave it out")
    if config.log:
        raise UsageError("gramine: a sealed log is not supported there", hint="let the program write to a vault")
    return replace(config, entry=GRAMINE_ENTRY, isolation=SANDBOX)


def manifest(
    config: BootConfig, measured: Measurement, environment: Environment, gramine: Path, sizes: Sizes
) -> dict[str, Any]:
    """The manifest, as a table of TOML.

    Args:
        config: as `gramine_config` gives it.
        measured: of that configuration.
        gramine: the directory with `libsysdb.so` and `runtime`, where Gramine is installed.

    Raises:
        UsageError: a path has characters that a manifest cannot have.
    """
    executable = str(environment.executable)
    trusted = list(trusted_files(config, measured, environment))
    libraries = _part(measured, "system libraries")
    found = sorted({os.path.dirname(entry.path) for entry in libraries})  # noqa: PTH120
    return {
        "loader": {
            "entrypoint": _entrypoint(gramine / "libsysdb.so"),
            "log_level": "error",
            "argv": [executable, "-I", "-X", f"pycache_prefix={SANDBOX_PYCACHE}", "-m", GRAMINE_ENTRY],
            # Those of the program are set by boot: of what it gets, some are secrets.
            "env": {
                **SANDBOX_ENVIRONMENT,
                "LD_LIBRARY_PATH": ":".join(["/lib", *found]),
                CAS_VARIABLE: {"passthrough": True},
            },
        },
        "libos": {"entrypoint": executable},
        # Opening a vault locks it, and of the kinds of locks that vaults can do with Gramine has this one.
        "sys": {"stack": {"size": size(sizes.stack)}, "experimental__enable_flock": True},
        "fs": {
            "root": {"type": "chroot", "uri": _file(_ROOT)},
            "start_dir": PROGRAM_DIRECTORY,
            "mounts": list(_mounts(config, trusted, gramine)),
        },
        "sgx": {
            "debug": False,
            "remote_attestation": "dcap",
            "file_check_policy": "strict",
            "enclave_size": size(sizes.enclave),
            "max_threads": sizes.threads,
            "edmm_enable": sizes.edmm,
            "use_exinfo": True,  # else a program's own handlers get no fault at all
            "allowed_files": [_file(f"{_VAULTS}/{rule.name}/") for rule in config.vaults],
            "trusted_files": [
                _file(f"{gramine}/libsysdb.so"),
                _file(f"{gramine}/runtime/glibc/"),
                *trusted,
            ],
        },
    }


def _entrypoint(library: Path) -> dict[str, str]:
    """Gramine's own library, with its digest if it is here; else the tools of Gramine add that when they sign."""
    found = {"uri": _file(str(library))}
    return found | ({"sha256": hashlib.sha256(library.read_bytes()).hexdigest()} if library.is_file() else {})


def trusted_files(config: BootConfig, measured: Measurement, environment: Environment) -> Iterator[dict[str, str]]:
    """What was measured, and what else the enclave needs, each with its SHA-256."""
    digests: dict[str, str] = {}
    for part in measured.parts:
        for entry in part.entries:
            if part.name == "program":
                digests[_file(f"{_PROGRAM}/{entry.name}")] = entry.sha256.hex()
            elif os.path.isfile(entry.path):  # noqa: PTH113  # a link to a directory is measured as one
                digests[_file(entry.path)] = entry.sha256.hex()
    interpreter = next(entry for entry in _part(measured, "interpreter") if entry.name == "python")
    digests[_file(str(environment.executable))] = interpreter.sha256.hex()
    settings = environment.prefix / "pyvenv.cfg"
    if settings.is_file():
        digests[_file(str(settings))] = hashlib.sha256(settings.read_bytes()).hexdigest()
    for alias, entry in _other_names(_part(measured, "system libraries")):
        digests[_file(alias)] = entry.sha256.hex()
    digests[_file(_BOOT)] = hashlib.sha256(config.to_bytes()).hexdigest()
    return ({"uri": uri, "sha256": digests[uri]} for uri in sorted(digests))


def _mounts(config: BootConfig, trusted: Sequence[Mapping[str, str]], gramine: Path) -> Iterator[dict[str, str]]:
    """In the order in which Gramine mounts them."""
    yield {"path": "/lib", "uri": _file(f"{gramine}/runtime/glibc")}
    for root in _roots(each["uri"].removeprefix("file:") for each in trusted):
        yield {"path": root, "uri": _file(root)}
    yield {"path": PROGRAM_DIRECTORY, "uri": _file(_PROGRAM)}
    yield {"path": BOOT_FILE, "uri": _file(_BOOT)}
    for path in ("/tmp", *config.ephemeral):  # noqa: S108  # the enclave's own
        yield {"type": "tmpfs", "path": path}
    for rule in config.vaults:
        yield {"path": f"{VAULTS_DIRECTORY}/{rule.name}", "uri": _file(f"{_VAULTS}/{rule.name}")}
        if rule.mount:
            yield {
                "type": "encrypted",
                "path": rule.mount,
                "uri": _file(f"{_WORK}/{rule.name}"),
                "key_name": key_name(rule.name),
            }


def _roots(paths: Iterable[str]) -> list[str]:
    """The directories of the absolute ones, without those that lie in one another."""
    kept: list[Path] = []
    for directory in sorted({Path(path).parent for path in paths if path.startswith("/")}):
        if not any(directory.is_relative_to(other) for other in kept):
            kept.append(directory)
    return [str(directory) for directory in kept]


def _part(measured: Measurement, name: str) -> Sequence[Entry]:
    return next((part.entries for part in measured.parts if part.name == name), ())


def _other_names(libraries: Sequence[Entry]) -> Iterator[tuple[str, Entry]]:
    """Links beside the system's libraries that lead to them: a loader asks for `libz.so.1`, not for `libz.so.1.2`."""
    by_path = {entry.path: entry for entry in libraries}
    for directory in sorted({os.path.dirname(path) for path in by_path}):  # noqa: PTH120
        with os.scandir(directory) as listing:
            links = sorted(each.path for each in listing if each.is_symlink())
        for link in links:
            entry = by_path.get(os.path.realpath(link))
            if entry is not None:
                yield link, entry


def _file(path: str) -> str:
    return f"file:{path}"


def render(table: Mapping[str, Any]) -> str:
    """A table as TOML 1.0. Raises UsageError if it has text that is not Unicode."""
    return "".join(_lines(table, ()))


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Dotted keys, as Gramine's documentation writes them; lists of tables one table a line."""
    for key, value in table.items():
        at = (*path, key)
        name = ".".join(_key(each) for each in at)
        if isinstance(value, Mapping) and not _is_inline(at):
            yield from _lines(value, at)
        elif isinstance(value, list) and value and len(value) + len(str(value[0])) > 8:
            yield f"{name} = [\n" + "".join(f"  {_value(each)},\n" for each in value) + "]\n"
        else:
            yield f"{name} = {_value(value)}\n"


def _is_inline(path: tuple[str, ...]) -> bool:
    return path[:2] == ("loader", "env") and len(path) == 3


def _key(text: str) -> str:
    return text if _BARE_KEY.fullmatch(text) else _value(text)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"manifest: {ascii(value)[:200]} is not Unicode text", hint="rename that file"
                ) from None
            # JSON's escapes are TOML's too, but that TOML wants one for DEL.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
    raise UsageError(f"manifest: cannot say {type(value).__name__}")


def write(directory: Path, table: Mapping[str, Any], config: BootConfig, files: Mapping[str, Path]) -> Path:
    """Fill a directory with all that the manifest names relative to it, but for the vaults; the manifest's path.

    Raises:
        UsageError: the directory is there and not empty.
    """
    text = render(table)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise UsageError(f"{directory}: is not empty", hint="name a new directory")
    for name in (_PROGRAM, _VAULTS, _WORK, _ROOT):
        (directory / name).mkdir()
    for rule in config.vaults:
        (directory / _WORK / rule.name).mkdir()
    for name, source in files.items():
        target = directory / _PROGRAM / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (directory / _BOOT).write_bytes(config.to_bytes())
    path = directory / MANIFEST
    path.write_text(text, encoding="utf-8")
    return path
