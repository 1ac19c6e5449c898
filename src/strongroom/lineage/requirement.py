"""What a service requires of its models' lineage: a word of its command, so that the measurement covers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.crypto import ContentDigest, content_digest
from strongroom.errors import FormatError, VerificationError
from strongroom.lineage import SUFFIX
from strongroom.lineage.verify import Lineage, verify_lineage

_OPTION = "--require-lineage="


@dataclass(frozen=True)
class Requirement:
    """Whose word counts.

    Attributes:
        cas_root: fingerprint of the root key of the CAS that signed.
        policies: names of the policies that a model may have been trained under; an empty tuple means any of that CAS.
        allow_simulated: the one simulated vendor root to accept; empty for none.
    """

    cas_root: str
    policies: tuple[str, ...] = ()
    allow_simulated: str = ""

    def to_word(self) -> str:
        """The first word of a service's command."""
        value = {"cas_root": self.cas_root, "policies": list(self.policies), "allow_simulated": self.allow_simulated}
        return _OPTION + canonical(value).decode()

    @classmethod
    def split(cls, command: Sequence[str]) -> tuple[Requirement | None, Sequence[str]]:
        """The requirement in a service's command, if there is one, and the rest of it.

        Raises:
            FormatError: the word is not one that `to_word` gives.
        """
        if not command or not command[0].startswith(_OPTION):
            return None, command
        value = parse_canonical(command[0].removeprefix(_OPTION).encode())
        try:
            requirement = cls(str(value["cas_root"]), tuple(value["policies"]), str(value["allow_simulated"]))  # type: ignore[arg-type]
            same = requirement.to_word() == command[0]
        except (KeyError, TypeError):
            same = False
        if not same:
            raise FormatError(f"command: {command[0][:200]!r}, wanted a requirement of lineage")
        return requirement, command[1:]

    def check(self, name: str, content: ContentDigest, raw: bytes | None) -> Lineage:
        """The lineage of some content.

        Args:
            name: of the file, for messages.
            content: of the very bytes that will be used, SHA-256 included.
            raw: the file with its statement; None if there is none.

        Raises:
            VerificationError: it has none.
            as `verify_lineage` and `Lineage.require_policy`.
        """
        if raw is None:
            raise VerificationError(
                f"model: {name} has no lineage, wanted {name}{SUFFIX} beside it",
                hint="`strongroom run` writes it beside what a program makes; keep both together",
            )
        lineage = verify_lineage(raw, content, cas_root=self.cas_root, allow_simulated=self.allow_simulated or None)
        if self.policies:
            lineage.require_policy(self.policies)
        return lineage


class LineageReader:
    """Reads the files that make up one model: each must have its lineage, and all must be of one run.

    No output of the run may stand in for another: the first file must lie at the path at which the run wrote it, the
    others where the run wrote them as seen from the first.

    Attributes:
        found: the lineage of each file read so far, by its path. Who puts the first one there has checked its path.

    Args:
        requirement: whose word counts.
        read: the bytes of a file by its path; raises FileNotFoundError if there is none.
    """

    def __init__(self, requirement: Requirement, read: Callable[[str], bytes]) -> None:
        self._requirement = requirement
        self._read = read
        self.found: dict[str, Lineage] = {}

    def __call__(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            VerificationError: the file is of another run than those before, or another output of it than its path says.
            as `Requirement.check`.
        """
        content = self._read(path)
        try:
            raw = self._read(path + SUFFIX)
        except FileNotFoundError:
            raw = None
        lineage = self._requirement.check(path, content_digest([content], sha256=True), raw)
        for other, known in self.found.items():
            if known.run.invocation != lineage.run.invocation:
                raise VerificationError(
                    f"model: {path} is of another run than {other}",
                    hint="keep a model and its weights as one run wrote them",
                )
        wanted = self._name_of(path)
        if PurePosixPath(lineage.output.name) != wanted:
            raise VerificationError(
                f"model: {path} is what the run wrote as {lineage.output.name}, wanted {wanted}",
                hint="keep a model and its weights under the paths at which the run wrote them",
            )
        self.found[path] = lineage
        return content

    def _name_of(self, path: str) -> PurePosixPath:
        """What the run must have called the file that lies there."""
        place = PurePosixPath(path)
        first = next(iter(self.found), None)
        if first is None or not place.is_relative_to(folder := PurePosixPath(first).parent):
            return place
        return PurePosixPath(self.found[first].output.name).parent / place.relative_to(folder)
