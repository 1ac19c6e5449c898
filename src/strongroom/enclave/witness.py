"""What boot saw of a run, for the statement of lineage that the CAS signs (docs/spec/lineage.md).

Rules:

- Names that end in ``.lineage.json`` in a vault that a program writes are this module's: the program does not see the
  old ones, and what it writes under such names is not kept.
- What an output is, is read back from the vault that is about to be committed, when the program has ended.
- A statement is written for what a run wrote, be it the same bytes again, if it ended with status 0. Of what it did
  not touch the earlier statement stays; of what it wrote in a run that failed, none does.
- A run whose lineage cannot be signed is sealed all the same, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from strongroom import __version__
from strongroom.attest.binding import parse_canonical
from strongroom.crypto import content_digest, random_bytes
from strongroom.enclave.boot import Booted
from strongroom.enclave.config import VaultMount
from strongroom.errors import EnclaveError, FormatError, UsageError
from strongroom.lineage import SUFFIX
from strongroom.lineage.statement import MAX_NAME, DataSet, MirrorState, Output, Run
from strongroom.lineage.tree import Tree, directory_tree, file_tree, pieces, vault_tree
from strongroom.sealed import Root
from strongroom.vault import Vault

_LONG = 4 << 30  # bytes that take seconds to digest: then it is said
MAX_STATED = 1000  # outputs; each has a statement of its own, signed and logged


def is_lineage(path: str) -> bool:
    """Whether a path in a vault is a statement's, of whatever output."""
    return path.endswith(SUFFIX)


@dataclass(frozen=True)
class _Before:
    """A vault that a program may write, as it was when the run began, and as it appeared at a place."""

    place: Path
    tree: Tree
    statements: dict[str, bytes]
    marks: dict[str, _Mark | None]

    def left_alone(self, path: str, digest: bytes) -> bool:
        """Whether the program has not written that file, whose content is now of this digest."""
        mark = _mark(self.place / path)
        return mark is not None and mark == self.marks.get(path) and self.tree.contents.get(path) == digest


class Written(NamedTuple):
    """How many files of a vault the program wrote and removed, and of how many that is stated."""

    files: int
    removed: int
    stated: int = 0


_Mark = tuple[int, int]


def _mark(plain: Path) -> _Mark | None:
    """What the kernel changes when a file is replaced or written to, and no program can set."""
    try:
        status = plain.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


@dataclass
class Witness:
    """Sees one run. Its methods are called in the order in which they stand here.

    Attributes:
        booted: the enclave.
        status: the program's exit status, once it has ended.
    """

    booted: Booted
    status: int | None = None
    _started: int = field(default_factory=lambda: int(time.time()))
    _invocation: str = field(default_factory=lambda: random_bytes(16).hex())
    _data: dict[str, DataSet] = field(default_factory=dict)
    _mounted: dict[str, Vault] = field(default_factory=dict)
    _before: dict[str, _Before] = field(default_factory=dict)
    _mirrors: list[MirrorState] = field(default_factory=list)

    def unpacked(self, name: str, opened: Vault, place: Path) -> None:
        """A read-only vault was decrypted to `place`: what lies there is what the program can read."""
        self._note(name, opened, directory_tree(place), "memory")

    def mounted(self, name: str, opened: Vault) -> None:
        """A read-only vault is decrypted as it is read. It is digested when the program has ended well."""
        self._mounted[name] = opened

    def writable(self, name: str, opened: Vault, place: Path) -> None:
        """A vault was decrypted to `place`, to be written: take the statements away, remember the rest."""
        statements = {path: opened.read_bytes(path) for path in opened.files() if is_lineage(path)}
        for path in statements:
            (place / path).unlink(missing_ok=True)
        tree = directory_tree(place)
        marks = {path: _mark(place / path) for path in tree.contents}
        self._before[name] = _Before(place, tree, statements, marks)
        self._note(name, opened, tree, "memory")

    def sealed_file(self, name: str, root: Root | None, place: Path) -> None:
        """A sealed file was decrypted to `place`."""
        rule = next(rule for rule in self.booted.config.sealed if rule.name == name)
        self._noted(rule, root, file_tree(place), "memory")

    def mirror(self, state: MirrorState) -> None:
        """The mirror of a training, as it is when the program has ended."""
        self._mirrors.append(state)

    def ended(self, status: int) -> None:
        """The program has ended; the vaults that it read are still open."""
        self.status = status
        if status == 0:
            for name, opened in self._mounted.items():
                size = sum(opened.stat(path, follow=False).size for path in opened.files())
                if size >= _LONG:
                    self._notice(f"vault {name}: is read once more for the lineage, {size >> 30} GiB")
                self._note(name, opened, vault_tree(opened), "mounted")

    def state(self, name: str, opened: Vault) -> Written:
        """Put statements into a vault with the program's outputs, before it is committed; what is new there.

        Whatever the program left there, this does not fail for it.
        """
        foreign = [path for path in opened.files() if is_lineage(path)]
        for path in foreign:
            opened.remove(path)
        if foreign:
            self._notice(f"vault {name}: not kept, as such names are for lineage: {', '.join(foreign[:5])}")
        before, after = self._before[name], vault_tree(opened, leave_out=is_lineage).contents
        same = {path for path, found in after.items() if before.left_alone(path, found)}
        for path, raw in before.statements.items():
            if path.removesuffix(SUFFIX) in same:
                self._write(name, opened, path, raw)
        made = sorted(path for path in after if path not in same and not opened.stat(path, follow=False).is_link)
        written = Written(len(after.keys() - same), len(before.tree.contents.keys() - after.keys()))
        if self.status != 0 or not made:
            return written
        stated = self._statable(name, made)
        try:
            outputs = [_output(opened, path) for path in stated]
            envelopes = self.booted.patiently(lambda: self.booted.session.sign_lineage(self._run(), outputs))
        except (FormatError, UsageError) as error:
            self._notice(f"vault {name}: no lineage: {error.message}")
            return written
        for path, envelope in zip(stated, envelopes, strict=True):
            self._write(name, opened, path + SUFFIX, envelope)
        return written._replace(stated=len(stated))

    def _write(self, name: str, opened: Vault, path: str, raw: bytes) -> None:
        """Put a statement into a vault, unless its name is too long there, or a directory's."""
        try:
            opened.write_bytes(path, raw)
        except UsageError as error:
            self._notice(f"vault {name}: no lineage: {error.message}")

    def _statable(self, name: str, made: Sequence[str]) -> list[str]:
        """Those outputs whose names fit a statement, unless there are too many."""
        if len(made) > MAX_STATED:
            self._notice(f"vault {name}: no lineage: {len(made)} outputs, the limit is {MAX_STATED}")
            return []
        stated = [path for path in made if path.isprintable() and len(path) <= MAX_NAME]
        if len(stated) < len(made):
            self._notice(f"vault {name}: no lineage of {len(made) - len(stated)} outputs, whose names are no text")
        return stated

    def _note(self, name: str, opened: Vault, tree: Tree, delivery: str) -> None:
        rule = next(rule for rule in self.booted.config.vaults if rule.name == name)
        self._noted(rule, opened.root, tree, delivery)

    def _noted(self, rule: VaultMount, root: Root | None, tree: Tree, delivery: str) -> None:
        if root is None:
            raise EnclaveError(f"vault {rule.name}: has no root")
        self._data[rule.name] = DataSet(
            rule.name, rule.mount, rule.access, delivery, str(root), tree.digest.hex(), tree.files, tree.size
        )

    def _run(self) -> Run:
        boot: dict[str, Any] = dict(parse_canonical(self.booted.config.to_bytes()))
        rules = (*self.booted.config.vaults, *self.booted.config.sealed)
        data = tuple(self._data[rule.name] for rule in rules if rule.name in self._data)
        return Run(self._invocation, self._started, __version__, boot, data, tuple(self._mirrors))

    def _notice(self, text: str) -> None:
        self.booted.control.event("notice", text=text)


def _output(opened: Vault, path: str) -> Output:
    with opened.open(path) as file:
        found = content_digest(pieces(file), sha256=True)
    return Output(path, found.sha256.hex(), found.blake3.hex())
