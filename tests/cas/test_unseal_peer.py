"""A new instance of a CAS gets its root secret from one that runs, if enough owners approved what it is."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas import CasAddress, OwnerClient
from strongroom.cas.policy.owners import sign_version
from strongroom.cas.policy.version import Policy, parse_policy
from strongroom.cas.service.server import Settings, prepare
from strongroom.cas.start.mode import Restart
from strongroom.cas.state.root_secret import open_root_secret, read_record, rekey
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cas.unseal.peer import Peer
from strongroom.crypto import SigningKey
from strongroom.errors import (
    CasUnreachableError,
    IntegrityError,
    MeasurementError,
    PeerIdentityError,
    PolicyError,
    SimulatedEnclaveError,
    UnauthorizedError,
    UnknownPolicyError,
    UsageError,
)
from tests.cas.owners import KEYS, table
from tests.cas.postgres import binaries, postgres_server
from tests.cas.world import MEASURED, document

NEXT = MEASURED | {"rtmr3": b"n" * 48}
OPERATORS = ("alice", "bob", "carol")
NEEDED = 2
NOW = int(time.time())


@dataclass
class Running:
    """A CAS of three operators, two of whom decide, and who may get its root secret."""

    directory: Path
    address: CasAddress
    vendor: SimulatedVendor

    def client(self, owner: SigningKey) -> OwnerClient:
        return OwnerClient(self.address.url, cas_root=self.address.cas_root, owner=owner)

    def text(self, *measured: dict[str, bytes], owners: str = "", **changes: Any) -> str:
        reference = {"measurements": [registers_measurement(each) for each in measured]}
        options: dict[str, Any] = {"name": "strongroom/cas", "role": "cas", "vendor_root": self.vendor.root_digest}
        options |= {"reference": reference | changes.pop("reference", {}), "more": owners or table(NEEDED, OPERATORS)}
        return document(KEYS["alice"], **options | changes)

    def apply(self, text: str, *names: str) -> Policy:
        """A version of the CAS's policy, signed by these owners and sent by alice."""
        policy = parse_policy(text)
        signed = [
            sign_version(KEYS[name], name=policy.name, version=policy.version, digest=policy.digest) for name in names
        ]
        with self.client(KEYS["alice"]) as client:
            return client.apply(text, signed)

    def renew(self, before: Policy, *measured: dict[str, bytes], names: tuple[str, ...], **changes: Any) -> Policy:
        version = {"version": before.version + 1, "previous": before.digest}
        return self.apply(self.text(*measured, **version | changes), *names)

    def peer(self, directory: Path, measured: dict[str, bytes] = NEXT, **changes: Any) -> Peer:
        attester = SimulatedAttester(changes.pop("vendor", self.vendor), measured)
        options = {"url": self.address.url, "cas_root": self.address.cas_root, "attester": attester} | changes
        return Peer(directory, options.pop("url"), options.pop("cas_root"), **options)


@contextmanager
def running(directory: Path, vendor: Path, **changes: Any) -> Iterator[Running]:
    operators = tuple(KEYS[name].public.fingerprint for name in OPERATORS)
    settings = Settings(restart=Restart("trust-disk", operators=operators, needed=NEEDED), **changes)
    with prepare(directory, settings) as service:
        yield Running(directory, service.address, SimulatedVendor.open(vendor, now=NOW))


@pytest.fixture
def old(tmp_path):
    with running(tmp_path / "old", tmp_path / "vendor") as cas:
        yield cas


@pytest.fixture
def new(tmp_path):
    directory = tmp_path / "new"
    directory.mkdir()
    return directory


def test_a_new_measurement_takes_over_when_enough_owners_have_approved_it(old, new, tmp_path):
    first = old.apply(old.text(MEASURED), "alice", "bob")
    with pytest.raises(MeasurementError):
        old.peer(new).recover({})
    with pytest.raises(UnauthorizedError):
        old.renew(first, MEASURED, NEXT, names=("alice",))
    with pytest.raises(MeasurementError):
        old.peer(new).recover({})
    assert not list(new.iterdir())
    old.renew(first, MEASURED, NEXT, names=("alice", "carol"))
    secret = old.peer(new).recover({})
    assert secret == open_root_secret(old.directory)
    # The new one keeps it in its own way, gets a copy of the database, and is the same CAS.
    rekey(new, secret, TrustDisk(new))
    with sqlite3.connect(old.directory / "cas.sqlite") as source, sqlite3.connect(new / "cas.sqlite") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    with old.client(KEYS["alice"]) as client:
        log = client.log()
    assert [entry["event"] for entry in log if entry["policy"] == "strongroom/cas"].count("attested") == 1
    with prepare(new) as service, OwnerClient(service.address.url, cas_root=old.address.cas_root) as client:
        assert service.address.cas_root == old.address.cas_root
        assert client.policy("strongroom/cas").version == 2


def test_an_instance_that_keeps_nothing_asks_its_peer_at_every_start(old, new):
    old.apply(old.text(MEASURED, NEXT), "alice", "bob")
    for attempt in range(2):
        with sqlite3.connect(old.directory / "cas.sqlite") as source, sqlite3.connect(new / "cas.sqlite") as copy:
            source.backup(copy)
        source.close()
        copy.close()
        # The second time the record says which peer.
        where = {} if attempt == 0 else {"url": None, "cas_root": None}
        with prepare(new, Settings(unsealer=old.peer(new, **where))) as service:
            assert service.address.cas_root == old.address.cas_root
    record = read_record(new)
    assert (record["unseal"], record["peer"]) == ("peer", old.address.url)
    secret = open_root_secret(old.directory)
    for path in new.iterdir():
        assert secret not in path.read_bytes() and secret.hex().encode() not in path.read_bytes()
    with pytest.raises(UsageError, match="this CAS's root secret is kept by peer"):
        open_root_secret(new)


def test_a_peer_alone_makes_no_new_cas(old, new):
    """Without the database a new instance would start another log under the same name."""
    old.apply(old.text(NEXT), "alice", "bob")
    with pytest.raises(IntegrityError, match="is missing or empty, and this CAS had one"):
        prepare(new, Settings(unsealer=old.peer(new)))


def test_who_gets_the_secret_is_for_the_operators_to_say(old, new):
    with pytest.raises(UnknownPolicyError):
        old.peer(new).recover({})
    for names, threshold in ((OPERATORS[:2], 2), (OPERATORS, 1), ((*OPERATORS, "dave"), 2), (("dave",), 1)):
        with pytest.raises(UnauthorizedError, match="its owners are not the 3 operators of this CAS, 2 of whom"):
            old.apply(old.text(NEXT, owners=table(threshold, names)), *names)
    with pytest.raises(UnauthorizedError):
        old.apply(old.text(NEXT), "alice")
    with pytest.raises(PolicyError, match="owners: strongroom/cas has none"):
        old.apply(old.text(NEXT, owners="\n"))
    with pytest.raises(UnknownPolicyError):
        old.peer(new).recover({})


def test_owners_of_the_cas_change_as_those_of_any_policy(old, new):
    first = old.apply(old.text(MEASURED), "alice", "bob")
    with pytest.raises(PolicyError, match="owners: strongroom/cas has none"):
        old.renew(first, NEXT, names=("alice", "bob"), owners="\n")
    second = old.renew(first, MEASURED, names=("alice", "bob", "dave"), owners=table(2, ("bob", "dave")))
    old.renew(second, NEXT, names=("bob", "dave"), owners=table(2, ("bob", "dave")))
    assert old.peer(new).recover({}) == open_root_secret(old.directory)


@pytest.mark.parametrize(
    ("name", "role"), [("strongroom/cas", "program"), ("strongroom/other", "program"), ("acme/cas", "cas")]
)
def test_the_cas_s_own_names_and_role_are_nobody_else_s(old, name, role):
    text = old.text(MEASURED, name=name, role=role)
    with pytest.raises(PolicyError, match=r"policy\.(name|role): got"):
        old.apply(text, "alice", "bob")


def test_a_cas_without_operators_gives_its_secret_to_nobody(tmp_path):
    with prepare(tmp_path / "cas") as service:
        cas = Running(tmp_path / "cas", service.address, SimulatedVendor.open(tmp_path / "vendor", now=NOW))
        with pytest.raises(UnauthorizedError, match="its owners are not the 0 operators of this CAS"):
            cas.apply(cas.text(MEASURED), "alice", "bob")


def test_another_vendor_s_enclave_gets_nothing(old, new, tmp_path):
    old.apply(old.text(NEXT), "alice", "bob")
    stranger = SimulatedVendor.open(tmp_path / "stranger", now=NOW)
    with pytest.raises(SimulatedEnclaveError):
        old.peer(new, vendor=stranger).recover({})
    assert not list(new.iterdir())


def test_a_peer_that_is_not_this_cas_is_not_asked(old, new, tmp_path):
    with running(tmp_path / "host", tmp_path / "vendor") as host, pytest.raises(PeerIdentityError):
        old.peer(new, url=host.address.url).recover({})
    with pytest.raises(CasUnreachableError):
        old.peer(new, url="https://127.0.0.1:1").recover({})
    with pytest.raises(UsageError, match="unseal peer: which"):
        old.peer(new, url=None).recover({})
    with pytest.raises(UsageError, match="this CAS has no evidence to show"):
        old.peer(new, attester=None).recover({})


def test_a_new_version_takes_over_a_shared_database_without_a_stop(new, tmp_path):
    """Both run until the old one ends; what the one writes, the other reads."""
    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed (package postgresql)")
    with postgres_server() as server:
        url = server.schema()
        with running(tmp_path / "old", tmp_path / "vendor", database=url) as old:
            first = old.apply(old.text(MEASURED), "alice", "bob")
            old.renew(first, MEASURED, NEXT, names=("alice", "carol"))
            with prepare(new, Settings(unsealer=old.peer(new), database=url)) as service:
                following = Running(new, service.address, old.vendor)
                assert following.address.cas_root == old.address.cas_root
                with old.client(KEYS["alice"]) as one, following.client(KEYS["alice"]) as other:
                    assert one.policy("strongroom/cas") == other.policy("strongroom/cas")
                third = following.renew(newest(following), NEXT, names=("bob", "carol"))
                with old.client(KEYS["alice"]) as one:
                    assert one.policy("strongroom/cas").digest == third.digest
                with pytest.raises(MeasurementError):
                    following.peer(tmp_path / "other", MEASURED).recover({})


def newest(cas: Running) -> Policy:
    with cas.client(KEYS["alice"]) as client:
        return client.policy("strongroom/cas")
