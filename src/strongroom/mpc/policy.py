"""What the owners of secrets allow to be revealed, and to whom.

Each server has a policy of its own and asks it before its share leaves. Rules:

- With a policy, nothing is revealed that it does not allow: a value goes to a recipient only if, for each of its
  owners, an entry allows it. Without a policy, a server reveals whatever the program says.
- An owner needs no entry to receive what it owns a part of; the other owners do. An owner and a client of one name are
  one.
- What an entry allows in one epoch is counted, and nothing of a reveal counts that is refused.

As a file::

    version = 1

    [[allow]]
    owner = "clinic"            # or "*": every owner that no entry names
    to = ["P0", "alice"]        # "clients": any client; "public": everybody
    shapes = [["*", 10]]        # of these alone; "*" is any size
    at_most = 1000              # elements of one reveal
    per_epoch = 100000          # elements in all, counted for each recipient
    program = "predict.py"      # or "sha256:..." of the file whose line reveals
    lines = [31, 40]

Only `owner` and `to` must be there. Nothing in it is secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePath
from typing import Any

from strongroom.errors import PolicyError, RefusedError
from strongroom.mpc.documents import parse_toml, read_text

_PARTIES = ("P0", "P1", "D")  # as `peer.NAMES`, which a policy and a log can be read without
PUBLIC, CLIENTS, ANY = "public", "clients", "*"
RESERVED = frozenset({*_PARTIES, PUBLIC, CLIENTS, ANY})
_MOST = 1 << 20  # bytes of a policy's file
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
Size = int | str


@dataclass(frozen=True)
class Reveal:
    """One opening of a secret: of what shape and whose, to whom, and by which line of the program.

    Attributes:
        to: P0, P1, a client's name, or `public` alone, which is all three.
        program: the SHA-256 of the file that the line is in, in hex; empty if it cannot be read.
    """

    shape: tuple[int, ...]
    owners: frozenset[str]
    to: tuple[str, ...]
    file: str
    line: int
    program: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Allow:
    """One entry: an owner's leave. What is None is not limited."""

    owner: str
    to: tuple[str, ...]
    shapes: tuple[tuple[Size, ...], ...] | None = None
    at_most: int | None = None
    per_epoch: int | None = None
    program: str | None = None
    lines: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(
            "owner", self.owner, isinstance(self.owner, str) and self.owner not in RESERVED - {*_PARTIES[:2], ANY, ""}
        )
        # A single name would be taken for its letters.
        names = not isinstance(self.to, str) and all(isinstance(each, str) and each for each in self.to)
        _check(
            "to", self.to, names and len(self.to) > 0 and not {ANY, _PARTIES[2]} & set(self.to), "names of recipients"
        )
        for name in ("at_most", "per_epoch"):
            _check(name, value := getattr(self, name), value is None or _whole(value, 0), "a number of elements")
        shapes = self.shapes is None or all(
            not isinstance(shape, str) and all(size == ANY or _whole(size, 0) for size in shape)
            for shape in self.shapes
        )
        _check("shapes", self.shapes, shapes, 'lists of sizes, or "*"')
        _check("lines", self.lines, self.lines is None or all(_whole(line, 1) for line in self.lines), "line numbers")
        program = self.program is None or (
            isinstance(self.program, str)
            and self.program != ""
            and (not self.program.startswith("sha256:") or _DIGEST.fullmatch(self.program) is not None)
        )
        _check("program", self.program, program, "a file's name, or sha256: and 64 digits")

    def objection(self, reveal: Reveal, recipient: str, spent: int) -> str | None:
        """Why this entry does not allow a recipient a reveal, or None; `spent` elements went out under it before."""
        if not {recipient, PUBLIC} & set(self.to) and not (CLIENTS in self.to and recipient not in RESERVED):
            return f"allows {' and '.join(self.to)}"
        if self.shapes is not None and not any(_fits(reveal.shape, shape) for shape in self.shapes):
            return f"allows shapes {', '.join(_shown(shape) for shape in self.shapes)}"
        if self.at_most is not None and reveal.elements > self.at_most:
            return f"allows {self.at_most} elements at once"
        if self.per_epoch is not None and spent + reveal.elements > self.per_epoch:
            return f"allows {self.per_epoch} elements an epoch, of which {spent} are spent"
        if self.program is not None and not _runs(reveal, self.program):
            return f"allows the program {self.program}"
        if self.lines is not None and reveal.line not in self.lines:
            return f"allows lines {', '.join(map(str, self.lines))}"
        return None


@dataclass(frozen=True)
class Policy:
    """What owners allow; see the module's rules."""

    allow: tuple[Allow, ...]

    @classmethod
    def load(cls, path: Path) -> Policy:
        """The policy of a file. Raises PolicyError if it is none."""
        text = read_text(path, "policy", _MOST, PolicyError)
        try:
            return cls.parse(text)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error.message}", hint=error.hint) from None

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy that a TOML document says. Raises PolicyError."""
        document = parse_toml(text, "policy: ", PolicyError)
        if document.get("version") != 1 or isinstance(document.get("version"), bool):
            raise PolicyError(f"version: got {document.get('version')!r}, wanted 1")
        more = sorted(document.keys() - {"version", "allow"})
        entries = document.get("allow", [])
        if more or not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise PolicyError(f"policy: got {', '.join(more) or 'another allow'}, wanted version and [[allow]] entries")
        return cls(tuple(_entry(number, entry) for number, entry in enumerate(entries, 1)))

    def of(self, owner: str) -> list[Allow]:
        """The entries that speak for an owner."""
        own = [entry for entry in self.allow if entry.owner == owner]
        return own or [entry for entry in self.allow if entry.owner == ANY]


@dataclass
class Enforcement:
    """A policy in one epoch, with what was spent of it."""

    policy: Policy
    _spent: dict[int, int] = field(default_factory=dict)  # by the entry's place in the policy

    def permit(self, reveal: Reveal) -> None:
        """Count a reveal that the policy allows.

        Raises:
            RefusedError: it does not; nothing is counted.
        """
        spent = dict(self._spent)
        if not reveal.owners:
            raise RefusedError(f"reveal: nobody owns the value; at {_at(reveal)}", hint="share it with owners=")
        for owner in sorted(reveal.owners):
            for recipient in reveal.to:
                if owner != recipient:
                    self._permit(reveal, owner, recipient, spent)
        self._spent = spent

    def _permit(self, reveal: Reveal, owner: str, recipient: str, spent: dict[int, int]) -> None:
        objections = []
        for entry in self.policy.of(owner):
            place = next(place for place, each in enumerate(self.policy.allow) if each is entry)
            objection = entry.objection(reveal, recipient, spent.get(place, 0))
            if objection is None:
                spent[place] = spent.get(place, 0) + reveal.elements
                return
            objections.append(objection)
        raise RefusedError(
            f"reveal: {_shown(reveal.shape)} of {owner} to {recipient} at {_at(reveal)}: "
            f"{owner}'s policy {'; or '.join(dict.fromkeys(objections)) or 'allows nothing'}",
            hint="its owner decides: another recipient, or an entry in this server's policy",
        )


def _entry(number: int, entry: Mapping[str, Any]) -> Allow:
    known = Allow.__dataclass_fields__.keys()
    if more := sorted(entry.keys() - known):
        raise PolicyError(f"allow {number}: got {', '.join(more)}, wanted {', '.join(known)}")
    if missing := [name for name in ("owner", "to") if name not in entry]:
        raise PolicyError(f"allow {number}: {' and '.join(missing)} missing", hint="what is not allowed is refused")
    for name in ("to", "shapes", "lines"):
        if name in entry and not isinstance(entry[name], list):
            raise PolicyError(f"allow {number}: {name}: got {entry[name]!r}, wanted a list")
    if any(not isinstance(shape, list) for shape in entry.get("shapes", [])):
        raise PolicyError(f"allow {number}: shapes: got {entry['shapes']!r}, wanted a list of lists")
    values: dict[str, Any] = {
        name: _tuples(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    try:
        return Allow(**values)
    except PolicyError as error:
        raise PolicyError(f"allow {number}: {error.message}") from None


def _tuples(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_tuples(each) if isinstance(each, list) else each for each in values)


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check(name: str, got: object, good: bool, wanted: str = "a name") -> None:
    if not good:
        raise PolicyError(f"{name}: got {got!r}, wanted {wanted}")


def _fits(shape: Sequence[int], pattern: Sequence[Size]) -> bool:
    return len(shape) == len(pattern) and all(want in (ANY, got) for got, want in zip(shape, pattern, strict=True))


def _runs(reveal: Reveal, program: str) -> bool:
    """Whether the line is of a program that is named by its digest, or by the end of its path."""
    if program.startswith("sha256:"):
        return bool(reveal.program) and program == f"sha256:{reveal.program}"
    wanted = PurePath(program).parts
    return PurePath(reveal.file).parts[-len(wanted) :] == wanted


def _shown(shape: Sequence[Size]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _at(reveal: Reveal) -> str:
    return f"{reveal.file}:{reveal.line}"


def checked_name(name: str) -> str:
    """A name that a client may have. Raises PolicyError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name in RESERVED:
        raise PolicyError(
            f"client: got {name[:80]!r}, wanted up to 64 letters, digits, '.', '_' and '-'",
            hint=f"and none of {', '.join(sorted(RESERVED))}",
        )
    return name
