"""A measurement written down with every file's digest, and what differs between two of them.

A listing proves itself: its parts are the digests of its files, and its measurement that of its parts. So one that was
kept anywhere explains the measurement that a policy names, and no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.attest.claims import registers_measurement
from strongroom.enclave.config import BootConfig
from strongroom.enclave.distributions import STARTUP, UNOWNED
from strongroom.enclave.measure import Measurement, part_digest, registers_of
from strongroom.errors import FormatError

VERSION = 1
MAX_LISTING = 1 << 26
_MAX_FILES = 500_000
_BOOT = "boot configuration"
_SHOWN = 6
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_WHOLE = {"interpreter", "strongroom", "system libraries", "command", "program", STARTUP, UNOWNED, _BOOT}


@dataclass(frozen=True)
class Listing:
    """The files of each part by their names, with SHA-256 and size; and the boot configuration."""

    measurement: str
    parts: Mapping[str, Mapping[str, tuple[bytes, int]]]
    boot: Mapping[str, Any]

    @classmethod
    def of(cls, measured: Measurement, config: BootConfig) -> Listing:
        parts = {part.name: {e.name: (e.sha256, e.size) for e in part.entries} for part in measured.parts[:-1]}
        return cls(measured.value, parts, parse_canonical(config.to_bytes(), cap=MAX_LISTING))

    def to_bytes(self) -> bytes:
        """JSON, a line for each file."""
        parts = []
        for name, files in self.parts.items():
            rows = [json.dumps([file, digest.hex(), size]) for file, (digest, size) in sorted(files.items())]
            parts.append(f'{{"part": {json.dumps(name)}, "files": [\n' + ",\n".join(rows) + "]}")
        head = json.dumps({"listing": VERSION, "measurement": self.measurement, "boot": self.boot})
        return (head[:-1] + ', "parts": [\n' + ",\n".join(parts) + "]}\n").encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Listing:
        """What `to_bytes` wrote.

        Raises:
            FormatError: it is not that, or its files do not come to its measurement.
        """
        if len(raw) > MAX_LISTING:
            raise FormatError(f"listing: more than {MAX_LISTING >> 20} MiB")
        try:
            value = json.loads(raw)
            if value["listing"] != VERSION:
                raise FormatError(f"listing: of version {value['listing']!r:.20}, wanted {VERSION}")
            parts = {str(part["part"]): _files(part["files"]) for part in value["parts"]}
            if sum(map(len, parts.values())) > _MAX_FILES or len(parts) != len(value["parts"]):
                raise FormatError(f"listing: more than {_MAX_FILES} files, or a part twice")
            boot = canonical(dict(value["boot"]), cap=MAX_LISTING)
            digests = {name: part_digest((f, d) for f, (d, _) in files.items()) for name, files in parts.items()}
            program = digests.pop("program")
            registers = registers_of(digests.items(), program, boot)
            if registers_measurement(registers) != value["measurement"]:
                raise FormatError("listing: its files do not come to its measurement", hint="it was changed")
            return cls(value["measurement"], parts, value["boot"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError("listing: not one that `strongroom measure --output` writes") from None


def _files(rows: Any) -> dict[str, tuple[bytes, int]]:
    files = {}
    for name, digest, size in rows:
        if not (isinstance(name, str) and _DIGEST.match(digest) and isinstance(size, int)) or name in files:
            raise ValueError("listing")
        files[name] = (bytes.fromhex(digest), size)
    return files


@dataclass(frozen=True)
class Difference:
    """How one part differs.

    Attributes:
        before, after: names of the part, which differ if another version of a distribution is there; None for none.
        added, removed, changed: names of files. Empty for a part that is there or gone as a whole.
    """

    before: str | None
    after: str | None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, object]:
        lists = {"added": list(self.added), "removed": list(self.removed), "changed": list(self.changed)}
        return {"before": self.before, "after": self.after, **lists}


def differences(before: Listing, after: Listing) -> list[Difference]:
    """What differs, part by part as they come in `after`; the boot configuration last, with fields for files."""
    found = []
    gone = {_base(name): name for name in before.parts if name not in after.parts}
    for name, files in after.parts.items():
        earlier = name if name in before.parts else gone.pop(_base(name), None)
        if earlier is None:
            found.append(Difference(None, name))
        elif earlier != name or files != before.parts[earlier]:
            found.append(Difference(earlier, name, *_compare(before.parts[earlier], files)))
    found += [Difference(name, None) for name in gone.values()]
    if before.boot != after.boot:
        found.append(Difference(_BOOT, _BOOT, *_compare(before.boot, after.boot)))
    return found


def _base(name: str) -> str:
    """A distribution's name without its version."""
    return name if name in _WHOLE else name.rpartition(" ")[0] or name


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    added = tuple(name for name in after if name not in before)
    removed = tuple(name for name in before if name not in after)
    return added, removed, tuple(name for name in after if name in before and after[name] != before[name])


def explain(difference: Difference, before: Listing, after: Listing) -> Iterator[str]:
    """A difference in words: what it is, the files that tell it, and what a person does about it."""
    old, new = difference.before, difference.after
    name = new or old or ""
    if name == _BOOT:
        yield f"{name}: differs in {', '.join((*difference.changed, *difference.added, *difference.removed))}"
        for field in difference.changed:
            yield f"  {field}: {_short(before.boot[field])} became {_short(after.boot[field])}"
    elif old is None:
        yield f"{name}: is new, {len(after.parts[name])} files"
    elif new is None:
        yield f"{name}: is gone, {len(before.parts[name])} files"
    elif old != new:
        yield f"{old}: became {new}"
    else:
        lists = ((difference.changed, "changed"), (difference.added, "added"), (difference.removed, "removed"))
        yield f"{name}: {', '.join(f'{len(files)} {word}' for files, word in lists if files)}"
        named = [f"  {word} {file}" for files, word in lists for file in files]
        yield from named[:_SHOWN]
        if len(named) > _SHOWN:
            yield f"  and {len(named) - _SHOWN} more; --json lists them"
    yield f"  -> {_advice(name, old, new)}"


def _advice(name: str, old: str | None, new: str | None) -> str:
    advice = {
        "interpreter": "another build of Python, or a changed standard library: use the same one, or install it anew",
        "strongroom": "another version of Strongroom, or a changed one: install the same one",
        STARTUP: "Python runs these at every start: read them, and remove what you did not put there",
        UNOWNED: "nobody installed these: remove what you did not put there",
        "system libraries": "the system was updated, or is another: use the same image on both machines",
        "command": "another build of that program: use the same image on both machines",
        "program": "if you changed the program, accept its new measurement; else take its files from where they were",
        _BOOT: "the policy's name or words for the program, its CAS, or this machine's sandbox: one of them is another",
    }
    if name in advice:
        return advice[name]
    if old and new and old == new:
        wanted = old.replace(" ", "==", 1)
        return f"its files are not as they were installed: pip install --force-reinstall --no-deps {wanted}"
    return "install both environments from one lock file: pip install --require-hashes -r FILE"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
