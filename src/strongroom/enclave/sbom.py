"""The bill of materials of what an enclave trusts: CycloneDX, and the size of it in lines and bytes.

The same measurement gives the same document: no time, no random number, no place of this machine is in it.

Source of every name and form: CycloneDX 1.6 (ECMA-424), its JSON reference; package URLs: the purl specification, type
``pypi``; licences: the Core metadata specification of packaging.python.org.
"""

from __future__ import annotations

import ast
import email.message
import email.parser
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from strongroom import __version__
from strongroom.enclave.config import BootConfig
from strongroom.enclave.distributions import STARTUP, UNOWNED, normalized
from strongroom.enclave.measure import Entry, Measurement, Part

OURS, NEEDED, RUNTIME, PROGRAM, ENVIRONMENT = (
    "Strongroom",
    "what Strongroom needs",
    "interpreter and system libraries",
    "the program",
    "what the program has beside it",
)
UNSEEN = "what boot has beside it, and a program in an image does not see"

# As their authors count: Plinius (DSN '21), its trusted code; secureTF (Middleware '20), TensorFlow.
COMPARED = (("Plinius, inside its enclave", 15_900), ("TensorFlow", 2_500_000))

# A line with something on it that is not a comment.
_CODE = re.compile(rb"^[ \t\f]*[^\s#]", re.MULTILINE)
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)[^;]*(?:;(.*))?\Z", re.DOTALL)
_MAX_LICENCE = 100


@dataclass(frozen=True)
class Component:
    """One trusted part: whose it is, how large, and what its metadata say."""

    part: Part
    group: str
    lines: int
    name: str
    version: str = ""
    metadata: email.message.Message | None = None

    @property
    def reference(self) -> str:
        return self.purl or f"strongroom:{quote(self.part.name)}"

    @property
    def purl(self) -> str:
        """Its package URL, if it has one."""
        if self.part.name == "strongroom" or (self.metadata is not None and self.group != OURS):
            return f"pkg:pypi/{normalized(self.name)}@{quote(self.version, safe='')}"
        return f"pkg:generic/cpython@{self.version}" if self.part.name == "interpreter" else ""


def components(measured: Measurement, python_version: str) -> list[Component]:
    """The measured parts, each with its size and metadata; the boot configuration is no code, and left out."""
    described = {part.name: _metadata(part) for part in measured.parts}
    ours = next((name for name, found in described.items() if found and _name(found) == "strongroom"), None)
    needed = _closure({name: found for name, found in described.items() if found}, ours)
    result = []
    for part in measured.parts[:-1]:
        found, lines = described[part.name], sum(lines_of_code(entry.path) for entry in part.entries)
        if part.name == "strongroom":
            result.append(Component(part, OURS, lines, "strongroom", __version__))
        elif found is not None:
            group = NEEDED if part.name in needed else ENVIRONMENT
            group = OURS if part.name == ours else group
            # Ours was counted above: what is left are its metadata.
            name = "strongroom-metadata" if part.name == ours else str(found["Name"])
            result.append(Component(part, group, lines, name, str(found["Version"]), found))
        else:
            group = {STARTUP: ENVIRONMENT, UNOWNED: ENVIRONMENT, "program": PROGRAM}.get(part.name, RUNTIME)
            version = python_version if part.name == "interpreter" else ""
            result.append(Component(part, group, lines, "cpython" if version else part.name, version))
    return result


def lines_of_code(path: str) -> int:
    """The lines of a Python source that are neither blank nor a comment; none of what is no source."""
    return len(_CODE.findall(Path(path).read_bytes())) if path.endswith(".py") else 0


def boot_closure(package: Iterable[Entry], entry: str) -> list[Entry]:
    """The modules of Strongroom that `entry` imports, those that its functions import when they run among them."""
    modules = {}
    for file in package:
        if file.name.endswith(".py"):
            dotted = "strongroom/" + file.name.removesuffix(".py").removesuffix("/__init__").removesuffix("__init__")
            modules[dotted.strip("/").replace("/", ".")] = file
    found: dict[str, Entry] = {}
    pending = [entry]
    while pending:
        name = pending.pop()
        if name in found or name not in modules:
            continue
        found[name] = modules[name]
        pending.append(name.rpartition(".")[0])
        pending += _imports(Path(modules[name].path).read_text())
    return [found[name] for name in sorted(found)]


def _imports(source: str) -> Iterator[str]:
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse  # what only a type checker reads
        else:
            pending += ast.iter_child_nodes(node)


def _metadata(part: Part) -> email.message.Message | None:
    path = next((e.path for e in part.entries if e.name.endswith(".dist-info/METADATA")), None)
    if path is None:
        return None
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    found = email.parser.Parser().parsestr(text, headersonly=True)
    return found if found["Name"] and found["Version"] else None


def _name(metadata: email.message.Message) -> str:
    return normalized(str(metadata["Name"]))


def _required(metadata: email.message.Message) -> Iterator[str]:
    """The names that a distribution requires, whatever its environment; without its extras."""
    for line in metadata.get_all("Requires-Dist") or ():
        match = _REQUIREMENT.match(str(line))
        if match and not re.search(r"\bextra\s*==", match[2] or ""):
            yield normalized(match[1])


def _closure(described: Mapping[str, email.message.Message], root: str | None) -> set[str]:
    by_name = {_name(found): part for part, found in described.items()}
    pending, closed = [root] if root else [], set()
    while pending:
        part = pending.pop()
        if part not in closed:
            closed.add(part)
            pending += [by_name[name] for name in _required(described[part]) if name in by_name]
    return closed - {root}


@dataclass(frozen=True)
class Size:
    """How much is trusted under one heading."""

    what: str
    files: int
    lines: int
    size: int


def sizes(found: Iterable[Component], measured: Measurement, config: BootConfig) -> list[Size]:
    """The trusted computing base, ours and the program's apart."""
    found = list(found)
    rows = []
    for group in (OURS, NEEDED, RUNTIME, PROGRAM, ENVIRONMENT):
        inside = [each for each in found if each.group == group]
        rows.append(
            Size(
                UNSEEN if group == ENVIRONMENT and config.image else group,
                sum(each.part.files for each in inside),
                sum(each.lines for each in inside),
                sum(each.part.size for each in inside),
            )
        )
        if group == OURS:
            package = next(part for part in measured.parts if part.name == "strongroom")
            boot = boot_closure(package.entries, config.entry)
            lines = sum(lines_of_code(entry.path) for entry in boot)
            rows.append(Size("  of which booting one imports", len(boot), lines, sum(entry.size for entry in boot)))
    return rows


def cyclonedx(found: Iterable[Component], measured: Measurement, config: BootConfig) -> dict[str, Any]:
    """The document, for `json`."""
    found = list(found)
    by_name = {_name(each.metadata): each.reference for each in found if each.metadata is not None}
    main = f"strongroom:{quote(config.policy)}"
    graph = [{"ref": main, "dependsOn": sorted({each.reference for each in found})}]
    for each in found:
        if each.metadata is not None:
            required = {by_name[name] for name in _required(each.metadata) if name in by_name} - {each.reference}
            graph.append({"ref": each.reference, "dependsOn": sorted(required)})
    properties = [("measurement", measured.value), ("boot-configuration", measured.parts[-1].digest.hex())]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_uuid(measured.value)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "strongroom", "version": __version__}]},
            "component": {
                "type": "application",
                "bom-ref": main,
                "name": config.policy or config.role,
                "properties": _properties(properties),
            },
        },
        "components": [_component(each) for each in found],
        "dependencies": graph,
        # What a program opens by name at run time from the system is visible to it, and not known beforehand.
        "compositions": [{"aggregate": "incomplete", "assemblies": [main]}],
    }


def _uuid(measurement: str) -> uuid.UUID:
    return uuid.UUID(bytes=hashlib.sha256(bytes.fromhex(measurement)).digest()[:16], version=4)


def _component(each: Component) -> dict[str, Any]:
    ours = "strongroom" if each.group in (OURS, NEEDED) else "program" if each.group != RUNTIME else "runtime"
    written: dict[str, Any] = {
        "type": {"interpreter": "platform", "program": "application"}.get(each.part.name, "library"),
        "bom-ref": each.reference,
        "name": each.name,
    }
    if each.version:
        written["version"] = each.version
    if each.metadata is not None and each.metadata["Summary"]:
        written["description"] = str(each.metadata["Summary"])
    written["hashes"] = [{"alg": "SHA-384", "content": each.part.digest.hex()}]
    licences = list(_licences(each.metadata)) if each.metadata is not None else []
    if licences:
        written["licenses"] = licences
    if each.purl:
        written["purl"] = each.purl
    properties = [("trusted-by", ours), ("lines-of-code", str(each.lines)), ("bytes", str(each.part.size))]
    written["properties"] = _properties([*properties, ("files", str(each.part.files))])
    if each.metadata is None and each.part.name not in ("interpreter", "strongroom"):
        written["components"] = [_file(each.reference, entry) for entry in each.part.entries]
    return {key: value for key, value in written.items() if value != []}


def _file(parent: str, entry: Entry) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"{parent}/{quote(entry.name)}",
        "name": entry.name,
        "hashes": [{"alg": "SHA-256", "content": entry.sha256.hex()}],
    }


def _properties(named: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": f"strongroom:{name}", "value": value} for name, value in named]


def _licences(metadata: email.message.Message) -> Iterator[dict[str, Any]]:
    """An SPDX expression, or what the author calls it."""
    expression, text = metadata["License-Expression"], str(metadata["License"] or "").strip()
    if expression:
        yield {"expression": str(expression)}
        return
    classified = [
        str(line).rpartition("::")[2].strip()
        for line in metadata.get_all("Classifier") or ()
        if str(line).startswith("License ::")
    ]
    names = [text] if text and len(text) <= _MAX_LICENCE and "\n" not in text else classified
    yield from ({"license": {"name": name}} for name in dict.fromkeys(names))
