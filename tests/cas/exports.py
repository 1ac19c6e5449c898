"""A hospital that has something, a policy that imports it, and the grants between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from strongroom.cas import OwnerClient
from strongroom.cas.policy.grant_files import GrantRequest
from strongroom.cas.policy.grants import Grant, SignedGrant
from strongroom.crypto import SigningKey
from tests.cas.world import Cas, World, world_in

PURPOSE = "train the triage model"
RECORDS = """
[[vaults]]
name = "patients"
access = "read-only"
[[secrets]]
name = "db"
[[secrets]]
name = "drawn"
generate = 16
"""
KEY = b"the key of the patients' vault!!"


def importing(source: str) -> str:
    """Tables of a policy that imports those of `RECORDS`."""
    return f"""
[program]
command = ["python", "train.py"]
[[vaults]]
name = "patients"
mount = "/patients"
access = "read-only"
from = "{source}"
[[secrets]]
name = "db"
environment = "DB"
from = "{source}"
"""


@dataclass
class Hospital:
    """A policy with records, and its administrator."""

    name: str
    key: SigningKey
    client: OwnerClient

    def grant(self, importer: World, **changes: Any) -> Grant:
        """All that the importer asks for, but for `changes`."""
        now = int(importer.cas.clock())
        made = GrantRequest.of(importer.policy, self.name).grant(expires=now + 3600, serial=now)
        return replace(made, **changes)

    def signed(self, importer: World, *keys: SigningKey, **changes: Any) -> SignedGrant:
        """A grant that the administrator has signed, and these."""
        policy, signed = self.client.policy(self.name), SignedGrant(self.grant(importer, **changes))
        for key in (self.key, *keys):
            signed = signed.signed_by(key, policy)
        return signed

    def events(self) -> list[str]:
        return [entry["event"] for entry in self.client.log() if entry["policy"] == self.name]


@contextmanager
def hospital_in(cas: Cas, **changes: Any) -> Iterator[Hospital]:
    """A hospital whose secrets are stored."""
    with world_in(cas, more="") as world:
        world.renew(**{"more": RECORDS} | changes)
        world.client.put_vault_key(world.name, "patients", KEY)
        world.client.put_secret(world.name, "db", b"sesame")
        yield Hospital(world.name, world.owner, world.client)


@contextmanager
def importer_in(cas: Cas, hospital: Hospital, **changes: Any) -> Iterator[World]:
    """A policy of somebody else's that imports of the hospital; it has no grant yet."""
    defaults: dict[str, Any] = {"purpose": PURPOSE, "recipients": ["acme/serve"], "more": importing(hospital.name)}
    with world_in(cas, more="") as world:
        world.renew(**defaults | changes)
        yield world
