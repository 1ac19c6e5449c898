"""Certificates for three parties from a directory, where no CAS gives them out.

``create`` writes one directory for each party, to be taken to that party's host and nowhere else:

- ``party.key``: its private key; nobody else's is there.
- ``party.pem``: its certificate, which names it by URI, and the authority's.

The authority's key is thrown away: nobody can make a fourth certificate.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom.channel import Identity, expect_authority
from strongroom.crypto import Certificate, CertificateAuthority, SigningKey
from strongroom.errors import FormatError, PeerIdentityError, UsageError
from strongroom.mpc.peer import NAMES

_KEY, _CHAIN = "party.key", "party.pem"
_MOST = 1 << 16  # bytes of a certificate file
_END = b"-----END CERTIFICATE-----\n"


def uri(rank: int) -> str:
    """How a certificate names a party."""
    return f"strongroom-mpc:{NAMES[rank]}"


def create(directory: Path, *, now: dt.datetime, days: int = 365) -> list[Path]:
    """Make an authority and a certificate for each party, in new directories P0, P1 and D under `directory`.

    Raises:
        UsageError: one of them exists.
    """
    places = [directory / name for name in NAMES]
    for place in places:
        if place.exists():
            raise UsageError(
                f"certificates: {place} exists", hint="certificates are made once, together; remove all three"
            )
    authority = CertificateAuthority.create("Strongroom MPC", now=now, days=days)
    for rank, place in enumerate(places):
        place.mkdir(parents=True, mode=0o700)
        key = SigningKey.generate()
        lifetime = dt.timedelta(days=days)
        leaf = authority.issue(key.public, NAMES[rank], now=now, lifetime=lifetime, uris=[uri(rank)])
        key.save(place / _KEY)
        (place / _CHAIN).write_bytes(leaf.pem() + authority.certificate.pem())
    return places


@dataclass(frozen=True)
class Credentials:
    """What a party shows the others, and whom it takes for them."""

    identity: Identity
    authority: str  # the fingerprint of its key

    @classmethod
    def load(cls, directory: Path) -> Credentials:
        """Of a directory that `create` made. Raises FormatError or UsageError if it is none."""
        path = directory / _CHAIN
        try:
            with path.open("rb") as file:
                pem = file.read(_MOST)
        except OSError as error:
            raise UsageError(f"certificates: {path}: {(error.strerror or str(error)).lower()}") from None
        chain = tuple(Certificate.from_pem(part + _END) for part in pem.split(_END) if part.strip())
        if len(chain) != 2:
            raise FormatError(f"certificates: {path} holds {len(chain)}, wanted the party's and the authority's")
        return cls(Identity(SigningKey.load(directory / _KEY), chain), chain[1].key.fingerprint)

    def expect(self, ranks: Sequence[int], now: Callable[[], dt.datetime]) -> Callable[[Sequence[Certificate]], None]:
        """A peer that is one of `ranks`."""

        def check(chain: Sequence[Certificate]) -> None:
            rank = named(chain)
            if rank is None or rank not in ranks:
                wanted = " or ".join(NAMES[each] for each in ranks)
                raise PeerIdentityError(f"peer name: got {', '.join(chain[0].uris) or 'none'}, wanted {wanted}")
            expect_authority(self.authority, uri=uri(rank), now=now)(chain)

        return check


def named(chain: Sequence[Certificate]) -> int | None:
    """The party that a chain's leaf names, whoever issued it."""
    return next((rank for rank in range(3) if uri(rank) in chain[0].uris), None)
