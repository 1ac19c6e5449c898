"""What a bundle lacks beside what it holds, so that who makes one learns of it where there still is a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from strongroom.attest.endorsements import amd
from strongroom.attest.endorsements.endorsement import Endorsement


@dataclass(frozen=True)
class Gap:
    """`name` is not there, as in `endorsement`; `means` says what that means for who verifies with the rest."""

    name: str
    means: str


_REFUSED = "evidence is refused without it"
_AT_AMD = "without it revocation is not checked; it is at {url}"


def gaps(endorsements: Iterable[Endorsement]) -> tuple[Gap, ...]:
    """What is missing in a bundle of these, by name.

    AMD's issuers are part of this software, and Intel's two lists of platforms are for platforms of one kind each, so
    that one of the two will do.
    """
    names = {each.name for each in endorsements}
    return tuple(sorted({gap for name in names for gap in _beside(name, names)}, key=lambda gap: gap.name))


def _beside(name: str, names: set[str]) -> Iterator[Gap]:
    vendor, *path = name.split("/")
    if vendor == "amd" and path[-1] != "crl":
        _, crl = amd.issuer_wants(path[0], "vlek" if path[1] == "vlek" else "vcek")
        if crl.name not in names:
            yield Gap(crl.name, _AT_AMD.format(url=crl.url))
    elif vendor == "intel" and path[1] == "tcb":
        for wanted in (f"intel/{path[0]}/qe", "intel/crl/root"):
            if not names & {wanted, f"{wanted}/early"}:
                yield Gap(wanted, _REFUSED)
        if not names & {"intel/crl/platform", "intel/crl/processor"}:
            yield Gap("intel/crl/platform or intel/crl/processor", _REFUSED)
