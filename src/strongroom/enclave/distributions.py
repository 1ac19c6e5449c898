"""What is installed: whose each file of a site-packages directory is, and what its RECORD says of it.

A RECORD is written by the installer, and whoever can change a file can change it too: what a file holds is said by the
measurement. Comparing the two finds what was changed by hand, by an accident, or by somebody who forgot that.

Source: the Core metadata specifications of packaging.python.org, "Recording installed projects" (PEP 376, PEP 627) and
"Recording the Direct URL Origin" (PEP 610).
"""

from __future__ import annotations

import base64
import binascii
import csv
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

STARTUP = "start-up files"
UNOWNED = "files of no distribution"

# What an installer writes for itself: another at each place or by each installer, and read by no program.
_INSTALLERS_OWN = frozenset(
    ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json", "provenance_url.json")
)
_SUFFIX = ".dist-info"
_STARTUP_MODULE = re.compile(r"(sitecustomize|usercustomize)(\.[^/]*)?(/.*)?\Z")
_MAX_RECORD = 1 << 25


Kind = Literal["changed", "missing", "unlisted", "without a digest"]


class Listed(NamedTuple):
    """One line of a RECORD: a path relative to site-packages, and ``ALGORITHM=DIGEST`` in base64, or nothing."""

    name: str
    digest: str


@dataclass(frozen=True)
class Distribution:
    """One installed distribution of a site-packages directory, and the text of its RECORD."""

    site: Path
    directory: str
    record: str

    @property
    def title(self) -> str:
        """Name and version, as its directory has them."""
        return self.directory.removesuffix(_SUFFIX).replace("-", " ", 1)

    def names(self) -> list[str]:
        """The paths that its RECORD lists, relative to site-packages."""
        if '"' in self.record:
            return [listed.name for listed in self.listed()]
        # A reader of CSV takes ten times as long.
        return [line.rsplit(",", 2)[0] for line in self.record.split("\n") if line]

    def listed(self) -> Iterator[Listed]:
        """Its RECORD's lines, as far as it can be read."""
        with suppress(csv.Error):
            for row in csv.reader(self.record.split("\n")):
                if row and row[0]:
                    yield Listed(row[0], row[1] if len(row) > 1 else "")


@dataclass(frozen=True)
class Oddity:
    """A file that is not as the RECORDs of its directory say."""

    kind: Kind
    distribution: str
    path: str


def distributions(site: Path) -> list[Distribution]:
    """The distributions of that directory, sorted by its names, whatever order the file system has."""
    found = []
    for directory in sorted(path.name for path in site.iterdir() if path.name.endswith(_SUFFIX)):
        try:
            with (site / directory / "RECORD").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                text = file.read(_MAX_RECORD).replace("\r\n", "\n")
        except OSError:
            text = ""
        found.append(Distribution(site, directory, text))
    return found


def _expected(digest: str) -> tuple[str, bytes] | None:
    algorithm, _, encoded = digest.partition("=")
    if algorithm not in ("sha256", "sha384", "sha512"):
        return None
    try:
        return algorithm, base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None


def owners(found: Iterable[Distribution]) -> dict[str, str]:
    """Whose each path is: of several that list it, the first by name."""
    owner: dict[str, str] = {}
    for distribution in found:
        site, title = str(distribution.site), distribution.title
        for name in distribution.names():
            owner.setdefault(placed(site, name), title)
    return owner


def placed(site: str, name: str) -> str:
    """Where a line of a RECORD says that its file is."""
    if ".." in name or name.startswith("/"):
        return os.path.normpath(os.path.join(site, name))  # noqa: PTH118  # no link may be followed
    return f"{site}/{name}"


def beside_site(owner: Iterable[str], site: Path, prefix: Path, scripts: str = "bin") -> list[str]:
    """Of the paths that distributions own, those in the environment outside of site-packages, such as ``share/``.

    Scripts are not among them: an installer writes them, with the place of the interpreter in their first line.
    """
    return [path for path in may_be_beside_site(owner, site, prefix, scripts) if os.path.isfile(path)]  # noqa: PTH113


def may_be_beside_site(owner: Iterable[str], site: Path, prefix: Path, scripts: str = "bin") -> list[str]:
    """Of the paths that distributions own, those that would be `beside_site` if there is a file."""
    inside, others = f"{prefix}/", (f"{site}/", f"{prefix}/{scripts}/")
    found = [path for path in owner if not path.startswith(others) and path.startswith(inside)]
    return [path for path in found if "/__pycache__/" not in path]


def is_installers_own(name: str) -> bool:
    """Whether a file of that name, relative to site-packages, is the installer's and not the distribution's."""
    directory, slash, file = name.partition("/")
    return bool(slash) and directory.endswith(_SUFFIX) and file in _INSTALLERS_OWN


def is_startup(name: str) -> bool:
    """Whether Python runs a file of that name, relative to a directory of modules, without being asked for it.

    ``.pth`` files and the two modules that `site` imports; and compiled code outside of ``__pycache__``, which is a
    module without a source that a person could read.
    """
    if name.endswith((".pth", ".pyc")):
        return name.endswith(".pyc") or "/" not in name
    return _STARTUP_MODULE.match(name) is not None


def oddities(found: Iterable[Distribution], present: Mapping[str, bytes]) -> list[Oddity]:
    """How these distributions differ from their RECORDs.

    Args:
        present: SHA-256 of every file of site-packages that is measured, by path.
    """
    claimed: set[str] = set()
    matched: set[str] = set()
    odd: dict[str, Oddity] = {}
    for distribution in found:
        site, title = str(distribution.site), distribution.title
        for listed in distribution.listed():
            path = placed(site, listed.name)
            claimed.add(path)
            if "__pycache__/" in path or is_installers_own(listed.name):
                continue
            kind = _compare(path, listed, present.get(path))
            if kind is None:
                matched.add(path)
            elif kind != "without a digest" or not path.endswith(".pyc"):
                odd.setdefault(path, Oddity(kind, title, path))
    # A file of several distributions is as one of them has it.
    result = [oddity for path, oddity in odd.items() if path not in matched]
    result += [Oddity("unlisted", "", path) for path in present if path not in claimed]
    return sorted(result, key=lambda oddity: (oddity.distribution, oddity.path))


def _compare(path: str, listed: Listed, sha256: bytes | None) -> Kind | None:
    if sha256 is None and not os.path.isfile(path):  # noqa: PTH113
        return "missing"
    expected = _expected(listed.digest)
    if expected is None:
        return "without a digest"
    algorithm, digest = expected
    if sha256 is None or algorithm != "sha256":
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                return None if hashlib.file_digest(file, algorithm).digest() == digest else "changed"
        except OSError:
            return "missing"
    return None if sha256 == digest else "changed"


@functools.cache
def normalized(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
