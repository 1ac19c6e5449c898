"""Revocation: administrators end leases, and everybody who needs to know is told."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import queue
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from strongroom.cas.api.leases import first_page
from strongroom.cas.api.waiting import MAX_WAITING, SHARE, Waiting
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.client.watch import RevokedPeers
from strongroom.cas.enclaves.leases import Lease, Leases
from strongroom.cas.enclaves.revocation import Revocation
from strongroom.cas.enclaves.revocations import Revocations, Selection
from strongroom.cas.state.store import Store
from strongroom.cas.wire import CERTIFICATE_SECONDS
from strongroom.channel import Identity, expect_key
from strongroom.crypto import Certificate
from strongroom.errors import (
    FormatError,
    InstanceLimitError,
    PeerIdentityError,
    RevokedError,
    StrongroomError,
    UnauthorizedError,
    UsageError,
)
from strongroom.sealed import Root
from tests.cas.world import Clock, cas_in, world_in

ROOT = Root(1, bytes(32))


def listed(world, after=0, wait=0):
    """What of the list concerns this world's policy."""
    answer = world.client._http.get(f"/v1/revocations?after={after}&wait={wait}")
    return [one for one in answer["revocations"] if one["policy"] == world.name]


def logged(world, event):
    return [json.loads(entry["detail"]) for entry in world.client.log() if entry["event"] == event]


def test_a_revoked_lease_has_no_rights_at_its_next_request(world):
    with world.enclave() as enclave, world.session() as other:
        answer = enclave.attest()
        number = enclave.lease["number"]
        other.attest()
        assert world.client.revoke(world.name, lease=number) == [number]
        with pytest.raises(RevokedError, match=f"its lease under policy {world.name} is revoked"):
            enclave.time_token()
        with pytest.raises(RevokedError):
            enclave.attest()
        other.anchor("out").read()
    [one] = listed(world)
    key, certificate = enclave.identity.key.public.fingerprint, Certificate(enclave_bytes(answer, "certificate"))
    assert (one["key"], one["why"], one["serials"]) == (key, "revoked", [certificate.serial])
    assert one["until"] == int(certificate.not_after.timestamp())
    [said] = logged(world, "revoked")
    assert said == {"leases": [number], "by": world.owner.public.fingerprint}


def enclave_bytes(answer, field):
    return base64.b64decode(answer[field])


def test_by_key_by_measurement_and_all(world):
    measurement = world.policy.reference.measurements[0]
    with world.session() as one, world.session() as two, world.session() as three:
        first, second, third = (session.attest().lease for session in (one, two, three))
        key = one.serving_identity().key.public.fingerprint
        assert world.client.revoke(world.name, key=key) == [first]
        assert world.client.revoke(world.name, everything=True) == [second, third]
        with world.session() as four:
            fourth = four.attest().lease
            assert world.client.revoke(world.name, measurement=measurement) == [fourth]
            for session in (four, two):
                with pytest.raises(RevokedError):
                    session.renew()
        with world.session() as five, pytest.raises(RevokedError, match=f"measurement: {measurement} is revoked"):
            five.attest()
        assert world.client.revoke(world.name, measurement=measurement, lift=True) == []
        with world.session() as six:
            six.attest()
    assert world.refusals() == ["revoked"] * 3
    assert logged(world, "lifted") == [{"measurement": measurement, "by": world.owner.public.fingerprint}]


def test_a_key_that_holds_no_lease_can_be_revoked_before_it_does(world):
    with world.enclave() as enclave:
        world.client.revoke(world.name, key=enclave.identity.key.public.fingerprint)
        with pytest.raises(RevokedError):
            enclave.attest()


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ({}, UsageError, "got nothing, wanted one of"),
        ({"lease": 1, "all": True}, UsageError, "got lease, all, wanted one of"),
        ({"lease": 10**9}, UsageError, "is none of policy"),
        ({"lease": "1"}, FormatError, "wanted a lease's number"),
        ({"lease": True}, FormatError, "wanted a lease's number"),
        ({"key": "SHA256:00"}, FormatError, "wanted sha256:<64 hex>"),
        ({"measurement": "00" * 31}, FormatError, "hexadecimal digits"),
        ({"measurement": "00"}, FormatError, "hexadecimal digits"),
        ({"all": False}, FormatError, "wanted true"),
        ({"measurement": "00" * 32, "lift": True}, UsageError, "is not revoked"),
        ({"all": True, "lift": True}, UsageError, "only a measurement is lifted"),
    ],
)
def test_what_makes_no_sense_revokes_nothing(world, said, kind, message):
    with world.session() as session:
        session.attest()
        with pytest.raises(kind, match=message):
            world.client._http.post(f"/v1/policies/{world.name}/revocations", said)
        session.renew()


def test_a_stranger_revokes_nothing(world):
    with world.session() as session, world.cas.owner() as stranger:
        session.attest()
        with pytest.raises(UnauthorizedError):
            stranger.revoke(world.name, everything=True)
        session.renew()


def test_keys_leave_the_list_with_their_certificates(tmp_path):
    clock = Clock(float(int(time.time())))
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world:
        with world.session() as session:
            session.attest()
            clock.now += 300
            session.renew()
        world.client.revoke(world.name, everything=True)
        [one] = listed(world)
        assert len(one["serials"]) == 2
        assert one["until"] == int(clock.now) + CERTIFICATE_SECONDS
        name, owner = world.name, world.owner
    with cas_in(tmp_path, clock) as cas, cas.owner(owner) as client:
        world.client, world.cas = client, cas
        assert listed(world) == [one]  # the list outlives the CAS
        clock.now += CERTIFICATE_SECONDS
        assert listed(world) == []
        with world.session() as session:
            number = session.attest().lease
            client.revoke(name, lease=number)
        assert [each["number"] for each in listed(world)] != [one["number"]]
        assert listed(world, after=number + 1) == []


def test_whoever_waits_is_told_at_once(world):
    told = queue.Queue()
    with world.session() as session:
        number = session.attest().lease

        def wait():
            with OwnerClient(world.cas.address.url, cas_root=world.cas.address.cas_root) as client:
                after = client._http.get("/v1/revocations")["next"]
                told.put("asking")
                told.put(client._http.get(f"/v1/revocations?after={after}&wait=30"))

        thread = threading.Thread(target=wait)
        thread.start()
        assert told.get() == "asking"
        world.client.revoke(world.name, lease=number)
        [one] = told.get()["revocations"]
        thread.join()
    assert one["policy"] == world.name


def test_a_cas_that_ends_answers_those_who_wait(tmp_path):
    answers = queue.Queue()
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        client = OwnerClient(cas.address.url, cas_root=cas.address.cas_root)
        client.describe()
        thread = threading.Thread(target=lambda: answers.put(client._http.get("/v1/revocations?wait=30")))
        thread.start()
        world.client.describe()
    assert answers.get()["revocations"] == []
    thread.join()
    client.close()


def test_no_more_than_so_many_wait():
    async def fill():
        waiting = Waiting()
        tasks = [asyncio.ensure_future(waiting.wait(60, str(at))) for at in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert waiting.full("another")
        waiting.ring()
        await asyncio.gather(*tasks)
        assert not waiting.full("another")
        waiting.end()
        assert waiting.full("another")
        await waiting.wait(60, "another")

    asyncio.run(fill())


def test_no_address_takes_all_places_of_those_who_wait():
    async def fill():
        waiting = Waiting()
        tasks = [asyncio.ensure_future(waiting.wait(60, "mallory")) for _ in range(SHARE)]
        await asyncio.sleep(0)
        assert waiting.full("mallory")
        assert not waiting.full("alice")
        waiting.ring()
        await asyncio.gather(*tasks)
        assert not waiting.full("mallory")
        assert not waiting._of

    asyncio.run(fill())


def test_a_watch_tells_an_enclave_of_itself_and_of_others(world):
    mine, others = queue.Queue(), queue.Queue()
    with world.session() as session, world.session() as other:
        session.attest(), other.attest()
        peers = RevokedPeers()
        identity = other.serving_identity()
        fingerprint = identity.key.public.fingerprint
        expect = peers.refuse(expect_key(fingerprint), world.name)
        elsewhere = peers.refuse(expect_key(fingerprint), "acme/another")
        expect(identity.chain)

        def revoked(policy, key):
            peers.add(policy, key)
            others.put(key)

        watch = session.watch(mine.put, on_revoked=revoked)
        watch.start()
        world.client.revoke(world.name, key=fingerprint)
        while others.get() != fingerprint:  # other tests' keys are on the list of this CAS too
            pass
        with pytest.raises(PeerIdentityError, match="is revoked under policy"):
            expect(identity.chain)
        elsewhere(identity.chain)
        assert mine.empty()
        world.client.revoke(world.name, key=session.serving_identity().key.public.fingerprint)
        assert isinstance(mine.get(), RevokedError)
        watch.close()
        assert not watch._thread.alive


def test_peers_that_are_not_revoked_are_who_they_were_expected_to_be():
    one, other = (Identity.fresh("peer", now=dt.datetime.now(dt.UTC)) for _ in range(2))
    expect = RevokedPeers().refuse(expect_key(one.key.public.fingerprint), "a/b")
    expect(one.chain)
    with pytest.raises(PeerIdentityError, match="peer key: got"):
        expect(other.chain)


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"policy": "a/b", "number": 1},
        {"policy": "a/b", "number": "1", "why": "revoked", "key": "sha256:00"},
        {"policy": "a/b", "number": 1, "why": "revoked", "key": 5},
        {"policy": "a/b", "number": 1, "why": "revoked", "key": "k", "serials": 5},
        {"policy": "a/b", "number": 1, "why": "revoked", "key": "k", "more": 1},
    ],
)
def test_what_is_no_revocation(wire):
    with pytest.raises(FormatError, match="revocation"):
        Revocation.from_wire(wire)


def test_an_enclave_that_is_revoked_says_so_and_not_that_it_was_cut_off(world):
    with world.session() as session:
        session.attest()
        world.client.revoke(world.name, everything=True)
        with pytest.raises(RevokedError) as caught:
            session.anchor("out").advance(None, ROOT)
        assert caught.value.exit_code == 38
        assert isinstance(caught.value, StrongroomError)


def test_where_too_many_wait_one_asks_again_later(world, monkeypatch):
    monkeypatch.setattr("strongroom.cas.api.waiting.MAX_WAITING", 0)
    told = queue.Queue()
    with world.session() as session:
        session.attest()
        watch = session.watch(told.put)
        assert watch.step() >= 0  # what is on the list already
        assert watch.step() == 10
        assert watch._http._stream is None
        world.client.revoke(world.name, everything=True)
        watch.step()
        assert isinstance(told.get_nowait(), RevokedError)
        watch.close()


def test_what_one_instance_revokes_another_refuses(tmp_path):
    result = SimpleNamespace(tee="simulated", measurement="ab" * 48)
    policy = SimpleNamespace(name="a/b", lease=600, expires=None, instances=1)
    with closing(Store(tmp_path / "cas")) as one, closing(Store(tmp_path / "cas")) as other:
        ours, theirs = Leases(one), Leases(other)
        granted = {"shown": b"", "replica": None, "result": result, "certificate": ("01", 4600), "detail": {}}
        lease = ours.grant(policy, "sha256:k", now=1000, **granted)
        assert theirs.lease("a/b", "sha256:k") == lease
        with pytest.raises(InstanceLimitError):
            theirs.grant(policy, "sha256:l", now=1001, **granted)
        revocations = Revocations(other, theirs)
        assert revocations.revoke("a/b", Selection(lease=lease.number), by={}, now=1002) == [lease]
        with pytest.raises(RevokedError):
            Revocations(one, ours).check("a/b", "sha256:k", "ab" * 48, 1003)
        assert ours.lease("a/b", "sha256:k") is None
        assert ours.grant(policy, "sha256:l", now=1004, **granted).number > lease.number


def many_leases(store, number, now):
    """That many leases of a policy that live."""
    key = "sha256:{:064x}".format
    each = (
        Lease(
            "a/b", key(n), n + 1, None, "sgx", "aa" * 20, now, now + 600, b"t" * 16, b"", 0, ((f"{n:x}", now + 3600),)
        )
        for n in range(number)
    )
    changes = [("leases", "a/b", lease.key, lease.to_bytes()) for lease in each]
    store.change_rows(changes, event="word", policy="a/b", detail={}, now=now)


def test_whoever_follows_the_list_is_told_of_all_however_many_ended_at_once(tmp_path):
    store, now = Store(tmp_path), 1000
    revocations = Revocations(store, Leases(store))
    many_leases(store, 1300, now)
    ended = revocations.revoke("a/b", Selection(everything=True), by={}, now=now)
    followed, after = set(), 0
    while page := first_page(revocations.after(after, now)):
        followed.update(one.key for one in page)
        assert len(page) <= 750
        after = page[-1].number
    assert followed == {lease.key for lease in ended}
    assert len(ended) == 1300
    store.close()


def test_a_page_has_all_of_an_entry_that_an_older_cas_wrote():
    old = [Revocation("a/b", 5, "revoked", key=f"{n}") for n in range(700)]
    new = [Revocation("a/b", 6, "revoked", key="last")]
    assert first_page([*old, *new]) == old
    assert first_page([*new, *old][:3]) == [*new, *old][:3]


def test_the_list_is_not_read_again_for_what_it_has_already(tmp_path, monkeypatch):
    store, now = Store(tmp_path), 1000
    revocations = Revocations(store, Leases(store))
    many_leases(store, 20, now)
    revocations.revoke("a/b", Selection(everything=True), by={}, now=now)
    assert len(revocations.after(0, now)) == 20
    read, row = [], store.row
    monkeypatch.setattr(store, "row", lambda *key: (read.append(key), row(*key))[1])
    revocations.revoke("a/b", Selection(key="sha256:" + "ff" * 32), by={}, now=now)
    assert len(revocations.after(0, now)) == 21
    assert [what for table, _, what in read if table == "revocations"] == ["key:sha256:" + "ff" * 32]
    store.close()


def test_the_bound_is_a_namespace_s_and_not_a_policy_s(tmp_path, monkeypatch):
    monkeypatch.setattr("strongroom.cas.enclaves.revocations.MAX_LISTED", 2)
    store = Store(tmp_path)
    revocations = Revocations(store, Leases(store))
    for n in range(2):
        revocations.revoke(f"a/{n}", Selection(key=f"sha256:{n:064x}"), by={}, now=1)
    with pytest.raises(UsageError, match="namespace of policy a/2 has 2 in force"):
        revocations.revoke("a/2", Selection(key="sha256:" + "ff" * 32), by={}, now=1)
    revocations.revoke("b/2", Selection(key="sha256:" + "ff" * 32), by={}, now=1)
    store.close()
