"""Certificates for three parties and their clients from a directory, where no CAS gives them out.

``create`` writes one directory for each, to be taken to that one's host and nowhere else:

- ``party.key``: its private key; nobody else's is there.
- ``party.pem``: its certificate, which names it by URI, and the authority's.

The authority's key is thrown away, so that nobody can make another certificate, unless a place to keep it is named:
then `add_client` can, and so can whoever reads that place.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path

from strongroom.channel import Identity, expect_authority
from strongroom.crypto import Certificate, CertificateAuthority, SigningKey
from strongroom.errors import FormatError, PeerIdentityError, UsageError
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import checked_name

_KEY, _CHAIN = "party.key", "party.pem"
_AUTHORITY_KEY, _AUTHORITY = "authority.key", "authority.pem"
_MOST = 1 << 16  # bytes of a certificate file
_END = b"-----END CERTIFICATE-----\n"
_CLIENT = "strongroom-mpc:client/"


def uri(rank: int) -> str:
    """How a certificate names a party."""
    return f"strongroom-mpc:{NAMES[rank]}"


def client_uri(name: str) -> str:
    """How a certificate names a client."""
    return f"{_CLIENT}{name}"


def create(
    directory: Path,
    *,
    now: dt.datetime,
    days: int = 365,
    clients: Sequence[str] = (),
    authority: Path | None = None,
) -> list[Path]:
    """Make an authority and a certificate for each party, in new directories P0, P1 and D under `directory`.

    Args:
        clients: names that get a certificate too, in client-NAME.
        authority: a new directory to keep the authority's key in.

    Returns:
        the directories of the parties, then of the clients.

    Raises:
        UsageError: one of them exists.
        PolicyError: a client may not have that name.
    """
    names = [checked_name(name) for name in clients]
    places = [directory / name for name in NAMES] + [_client_place(directory, name) for name in names]
    for place in (*places, *filter(None, [authority])):
        if place.exists():
            raise UsageError(
                f"certificates: {place} exists", hint="certificates are made once, together; name another directory"
            )
    issuer = CertificateAuthority.create("Strongroom MPC", now=now, days=days)
    uris = [*map(uri, range(len(NAMES))), *map(client_uri, names)]
    for place, name, named_uri in zip(places, (*NAMES, *names), uris, strict=True):
        _issue(issuer, place, name, named_uri, now=now, days=days)
    if authority is not None:
        authority.mkdir(parents=True, mode=0o700)
        issuer.key.save(authority / _AUTHORITY_KEY)
        (authority / _AUTHORITY).write_bytes(issuer.certificate.pem())
    return places


def add_client(directory: Path, name: str, *, authority: Path, now: dt.datetime, days: int = 365) -> Path:
    """Make a certificate for another client, in client-NAME under `directory`, by an authority that was kept.

    Raises:
        UsageError: it exists, or the authority was not kept.
        PolicyError: a client may not have that name.
    """
    place = _client_place(directory, checked_name(name))
    if place.exists():
        raise UsageError(f"certificates: {place} exists", hint="give the client another name")
    if not (authority / _AUTHORITY_KEY).is_file():
        raise UsageError(
            f"authority: {authority} holds no {_AUTHORITY_KEY}", hint="it was not kept: make all certificates anew"
        )
    pem = _read(authority / _AUTHORITY)
    issuer = CertificateAuthority(SigningKey.load(authority / _AUTHORITY_KEY), Certificate.from_pem(pem))
    _issue(issuer, place, name, client_uri(name), now=now, days=days)
    return place


def _client_place(directory: Path, name: str) -> Path:
    return directory / f"client-{name}"


def _issue(
    issuer: CertificateAuthority, place: Path, name: str, named_uri: str, *, now: dt.datetime, days: int
) -> None:
    place.mkdir(parents=True, mode=0o700)
    key = SigningKey.generate()
    leaf = issuer.issue(key.public, name, now=now, lifetime=dt.timedelta(days=days), uris=[named_uri])
    key.save(place / _KEY)
    (place / _CHAIN).write_bytes(leaf.pem() + issuer.certificate.pem())


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST)
    except OSError as error:
        raise UsageError(f"certificates: {path}: {(error.strerror or str(error)).lower()}") from None


class Credentials:
    """What a party shows the others, and whom it takes for them.

    Args:
        authority: the fingerprint of its key.
        uris: how certificates name the parties, by rank; as `uri` says if none are given.
    """

    def __init__(self, identity: Identity, authority: str, uris: Sequence[str] | None = None) -> None:
        self._identity = identity
        self.authority = authority
        self._uris = tuple(map(uri, range(len(NAMES)))) if uris is None else tuple(uris)

    @property
    def identity(self) -> Identity:
        """What it shows now."""
        return self._identity

    def named(self, chain: Sequence[Certificate]) -> int | None:
        """The party that a chain's leaf names, whoever issued it."""
        return next((rank for rank, each in enumerate(self._uris) if each in chain[0].uris), None)

    @classmethod
    def load(cls, directory: Path) -> Credentials:
        """Of a directory that `create` made. Raises FormatError or UsageError if it is none."""
        path = directory / _CHAIN
        pem = _read(path)
        chain = tuple(Certificate.from_pem(part + _END) for part in pem.split(_END) if part.strip())
        if len(chain) != 2:
            raise FormatError(f"certificates: {path} holds {len(chain)}, wanted the party's and the authority's")
        return cls(Identity(SigningKey.load(directory / _KEY), chain), chain[1].key.fingerprint)

    def expect(self, ranks: Sequence[int], now: Callable[[], dt.datetime]) -> Callable[[Sequence[Certificate]], None]:
        """A peer that is one of `ranks`."""

        def check(chain: Sequence[Certificate]) -> None:
            rank = self.named(chain)
            if rank is None or rank not in ranks:
                wanted = " or ".join(NAMES[each] for each in ranks)
                raise PeerIdentityError(f"peer name: got {', '.join(chain[0].uris) or 'none'}, wanted {wanted}")
            try:
                expect_authority(self.authority, uri=self._uris[rank], now=now)(chain)
            except PeerIdentityError as error:
                raise PeerIdentityError(
                    f"{NAMES[rank]}: {error.message}", hint="the certificates of all three are made together, once"
                ) from None

        return check

    def expect_client(self, now: Callable[[], dt.datetime]) -> Callable[[Sequence[Certificate]], None]:
        """A peer that is any client."""

        def check(chain: Sequence[Certificate]) -> None:
            name = named_client(chain)
            if name is None:
                raise PeerIdentityError(f"peer name: got {', '.join(chain[0].uris) or 'none'}, wanted a client")
            expect_authority(self.authority, uri=client_uri(checked_name(name)), now=now)(chain)

        return check


def named(chain: Sequence[Certificate]) -> int | None:
    """The party that a chain's leaf names, whoever issued it."""
    return next((rank for rank in range(3) if uri(rank) in chain[0].uris), None)


def named_client(chain: Sequence[Certificate]) -> str | None:
    """The client that a chain's leaf names, whoever issued it."""
    return next((each.removeprefix(_CLIENT) for each in chain[0].uris if each.startswith(_CLIENT)), None)
