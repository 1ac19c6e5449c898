"""The certificates of a party of `mpc` that come from a CAS."""

from __future__ import annotations

from pathlib import Path

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.parties import PartyIdentity
from strongroom.channel import Identity
from strongroom.cli.workspace import Home
from strongroom.crypto import SigningKey
from strongroom.mpc.certificates import Credentials
from strongroom.mpc.peers import CasPeers


class CasCredentials(Credentials):
    """What a party shows the others, which a CAS has certified lately, and by which names it knows them."""

    def __init__(self, party: PartyIdentity, cas: CasPeers) -> None:
        super().__init__(party.current(), cas.root, cas.uris)
        self._party = party

    @property
    def identity(self) -> Identity:
        return self._party.current()


def credentials(cas: CasPeers, rank: int, owner: Path | None) -> CasCredentials:
    """Those of a party, by the key of its policy's administrator; by default this user's.

    Raises:
        StrongroomError: the CAS cannot be reached, is another, or refuses.
    """
    key = None if owner is None else SigningKey.load(owner)
    client = Home.open().owner_client(CasAddress(cas.url, cas.root), key)
    return CasCredentials(PartyIdentity(client, cas.policies[rank]), cas)
