"""One file with endorsements of many platforms, for verifiers that have no network (docs/spec/evidence.md, bundles).

``{"format": "strongroom/endorsements/v1", "endorsements": {NAME: {"body": ..., "chain": ..., "fetched": ...}}}`` in
JSON: names as in `endorsement`, `body` in base64, `chain` in PEM where the name has one, `fetched` in seconds since
1970. Nothing in it is trusted, so nothing signs it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from strongroom.attest.endorsements.endorsement import Endorsement
from strongroom.errors import FormatError, UsageError

FORMAT = "strongroom/endorsements/v1"
MAX_BUNDLE = 64 * 1024 * 1024


class Bundle:
    """Endorsements by name. Of two of one name the one that was fetched later is kept, or else signed later."""

    def __init__(self, endorsements: Iterable[Endorsement] = ()) -> None:
        self._endorsements: dict[str, Endorsement] = {}
        for each in sorted(endorsements, key=lambda each: (each.fetched, each.valid[0])):
            self._endorsements[each.name] = each

    def get(self, name: str) -> Endorsement | None:
        return self._endorsements.get(name)

    def __iter__(self) -> Iterator[Endorsement]:
        """By name."""
        return iter(sorted(self._endorsements.values(), key=lambda each: each.name))

    def __len__(self) -> int:
        return len(self._endorsements)

    def to_bytes(self) -> bytes:
        """The bundle's file. Equal endorsements are equal bytes."""
        document = {"format": FORMAT, "endorsements": {each.name: each.to_wire() for each in self}}
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Bundle:
        """Read such a file.

        Raises:
            FormatError: it is not one, or too large, or one endorsement in it is not what its name says.
        """
        if len(raw) > MAX_BUNDLE:
            raise FormatError(f"bundle: {len(raw)} bytes, wanted at most {MAX_BUNDLE}")
        try:
            document = json.loads(raw, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            raise FormatError("bundle: not JSON, or an object has a member twice") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            got = document.get("format") if isinstance(document, dict) else None
            raise FormatError(f"bundle: got format {str(got)[:60]!r}, wanted {FORMAT!r}")
        if set(document) != {"format", "endorsements"} or not isinstance(document["endorsements"], dict):
            raise FormatError("bundle: wanted an object of format and endorsements")
        return cls(Endorsement.from_wire(name, wire) for name, wire in document["endorsements"].items())


def write(path: Path, endorsements: Iterable[Endorsement]) -> None:
    """Write a bundle, in place of a file that is there.

    Raises:
        UsageError: it cannot be written there, or would be larger than a reader takes.
    """
    raw = Bundle(endorsements).to_bytes()
    if len(raw) > MAX_BUNDLE:
        raise UsageError(f"bundle: {len(raw)} bytes, wanted at most {MAX_BUNDLE}", hint="write two")
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def read(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        FormatError: as `Bundle.from_bytes`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    try:
        return Bundle.from_bytes(raw)
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}", hint=error.hint) from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found
