"""Leases: who lives under a policy, for how long, how many, and who may write."""

from __future__ import annotations

import base64
import datetime as dt
import json
import socket
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas.enclaves.leases import Leases
from strongroom.cas.state.store import Store
from strongroom.cas.wire import b64
from strongroom.channel import Identity
from strongroom.crypto import Certificate
from strongroom.errors import (
    ChannelError,
    ConflictError,
    ExpiredError,
    FormatError,
    InstanceLimitError,
    RevokedError,
    UnauthorizedError,
    UsageError,
)
from strongroom.sealed import Root
from tests.cas.world import MEASURED, PROGRAM, Clock, cas_in, world_in

FIRST, SECOND, THIRD = (Root(number, bytes([number]) * 32) for number in (1, 2, 3))
WRITERS = PROGRAM.replace('access = "read-write"', 'access = "read-write"\nwriters = [1]')


@pytest.fixture
def timed(tmp_path):
    """A world whose clock the test turns."""
    clock = Clock(float(int(time.time())))
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world:
        yield world, clock


def replica(world, number, **changes):
    return world.session(attester=SimulatedAttester(world.cas.vendor, MEASURED), replica=number, **changes)


def live(world):
    return world.client.leases(world.name)["leases"]


def details(world, event):
    return [json.loads(entry["detail"]) for entry in world.client.log() if entry["event"] == event]


def put(enclave, vault, old, new):
    path = f"/v1/policies/{enclave.policy}/anchors/{vault}"
    return enclave.put(path, {"old": None if old is None else str(old), "new": str(new)})


def test_a_lease_is_the_number_of_the_entry_that_granted_it_and_renewing_keeps_it(timed):
    world, clock = timed
    with world.session() as session:
        first = session.attest()
        [shown] = live(world)
        entry = world.client.log()[-1]
        assert (shown["number"], first.lease) == (entry["number"],) * 2
        assert (shown["tee"], shown["measurement"]) == ("simulated", world.policy.reference.measurements[0])
        assert (shown["granted"], shown["expires"]) == (int(clock.now), int(clock.now) + 600)
        clock.now += 300
        assert session.renew().lease == first.lease
        [renewed] = live(world)
        assert (renewed["granted"], renewed["expires"]) == (shown["granted"], shown["expires"] + 300)
        assert renewed["key"] == shown["key"] == session.serving_identity().key.public.fingerprint


def test_a_lease_lasts_as_long_as_the_policy_says(timed):
    world, clock = timed
    world.renew(lease=30)
    with world.enclave() as enclave:
        enclave.attest()
        assert enclave.lease["seconds"] == 30
        clock.now += 29
        enclave.time_token()
        clock.now += 1
        assert live(world) == []
        with pytest.raises(UnauthorizedError, match="attested longer than 30 seconds ago"):
            enclave.time_token()
        number = enclave.lease["number"]
        enclave.attest()
        assert enclave.lease["number"] > number


def test_nothing_attests_or_goes_on_once_the_policy_has_ended(timed):
    world, clock = timed
    end = int(clock.now) + 100
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    text = world.text(version=2, previous=world.policy.digest).replace("[reference]", f"expires = {stamp}\n[reference]")
    world.client.apply(text)
    with world.enclave() as enclave:
        certificate = Certificate(base64.b64decode(str(enclave.attest()["certificate"])))
        assert int(certificate.not_after.timestamp()) == end
        assert enclave.lease["seconds"] == 100
        clock.now += 100
        with pytest.raises(UnauthorizedError, match="attest again"):
            enclave.time_token()
        with pytest.raises(ExpiredError, match="ended 0 seconds ago"):
            enclave.attest()
    assert world.refusals() == ["expired"]


def test_an_enclave_gives_its_lease_back(world):
    world.renew(instances=1)
    with world.session() as one, world.session() as other:
        number = one.attest().lease
        with pytest.raises(InstanceLimitError):
            other.attest()
        one.end()
        assert live(world) == []
        assert details(world, "ended") == [{"lease": number}]
        other.attest()
        one.end()  # once more, on a connection that is attested no more, it does nothing
        assert len(live(world)) == 1


def test_as_many_live_as_the_policy_allows(timed):
    world, clock = timed
    world.renew(instances=2)
    with world.session() as one, world.session() as two, world.session() as three:
        first, second = one.attest().lease, two.attest().lease
        with pytest.raises(InstanceLimitError, match=f"leases {first} .*, {second} .*ends in 600 seconds"):
            three.attest()
        assert world.refusals() == ["instance-limit"]
        one.renew()
        two.renew()
        clock.now += 599
        two.renew()
        clock.now += 1
        assert three.attest().lease > second
        with pytest.raises(InstanceLimitError):
            one.renew()


def test_one_too_many_is_a_conflict_and_no_failure(world):
    world.renew(instances=1)
    with world.session() as one, world.enclave() as two:
        one.attest()
        claims = two.claims()
        shown = {"evidence": two.evidence(two.nonce(), claims).to_wire(), "claims": b64(claims)}
        body, headers = json.dumps(shown).encode(), {"content-type": "application/json"}
        assert two.http.request("POST", "/v1/attest", body=body, headers=headers, fresh=True).status == 409


def test_with_a_lower_limit_the_oldest_go_on(world):
    world.renew(instances=3)
    with world.session() as one, world.session() as two:
        one.attest()
        two.attest()
        world.renew(instances=1)
        one.renew()
        with pytest.raises(InstanceLimitError):
            two.renew()


def test_replicas_are_numbered_and_no_two_are_alike(world):
    world.renew(instances=3)
    with replica(world, 0) as zero, replica(world, 2) as two, replica(world, 2) as again, replica(world, 3) as none:
        zero.attest()
        two.attest()
        with pytest.raises(InstanceLimitError, match=r"replica: 2 of policy .* lives: lease"):
            again.attest()
        with pytest.raises(InstanceLimitError, match=r"claims\.replica: got 3, and policy .* has 3"):
            none.attest()
        assert [lease["replica"] for lease in live(world)] == [0, 2]
        two.renew()
        two.end()
        again.attest()


def test_a_policy_without_instances_has_no_replicas(world):
    with replica(world, 0) as session, pytest.raises(InstanceLimitError, match=r"says not how many"):
        session.attest()


@pytest.mark.parametrize("bad", [-1, True, "0"])
def test_a_replica_is_a_number(world, bad):
    world.renew(instances=3)
    with world.enclave() as enclave, pytest.raises(FormatError, match=r"claims\.replica: got"):
        enclave.attest(replica=bad)


def test_an_enclave_does_not_become_another_replica(world):
    world.renew(instances=3)
    with world.enclave() as enclave:
        enclave.attest(replica=1)
        with pytest.raises(UsageError, match="got 2, and lease"):
            enclave.attest(replica=2)


def test_a_replica_that_writes_and_one_that_does_not(world):
    world.renew(instances=3, more=WRITERS)
    with replica(world, 0) as zero, replica(world, 1) as one, world.session() as none:
        assert none.attest().vault_access["out"] == zero.attest().vault_access["out"] == "read-only"
        assert one.attest().vault_access["out"] == "read-write"
        one.anchor("out").advance(None, FIRST)
        assert zero.anchor("out").read() == FIRST
        with pytest.raises(UnauthorizedError, match="may only read it; its writers are the replicas 1"):
            zero.anchor("out").advance(FIRST, SECOND)


def test_a_later_writer_ends_the_earlier_one_s_writing(world):
    with world.session() as earlier, world.session() as later:
        low, high = earlier.attest().lease, later.attest().lease
        earlier.anchor("out").advance(None, FIRST)
        later.anchor("out").advance(FIRST, SECOND)
        with pytest.raises(ConflictError, match=f"moved under lease {high}, and this is lease {low}"):
            earlier.anchor("out").advance(SECOND, THIRD)
        assert earlier.anchor("out").read() == SECOND
        later.anchor("out").advance(SECOND, THIRD)
    assert [detail["lease"] for detail in details(world, "anchor")] == [low, high, high]


def test_an_administrator_fences_only_on_demand(world):
    path = f"/v1/policies/{world.name}/anchors/out"
    with world.session() as session:
        session.attest()
        session.anchor("out").advance(None, FIRST)
        world.client.anchor(world.name, "out").advance(FIRST, SECOND)
        session.anchor("out").advance(SECOND, THIRD)
        back = {"old": str(THIRD), "new": str(FIRST), "restore": {"reason": "another vault"}}
        world.client._put(path, back | {"fence": True})
        with pytest.raises(ConflictError, match="is no writer now"):
            session.anchor("out").advance(FIRST, SECOND)
        with world.session() as later:
            later.attest()
            later.anchor("out").advance(FIRST, SECOND)


def test_leases_that_have_run_out_do_not_pile_up(timed):
    world, clock = timed
    for _ in range(20):
        with world.session() as session:
            session.attest()
    clock.now += 601
    for _ in range(3):
        with world.session() as session:
            session.attest()
    assert len(live(world)) == 3
    with closing(Store(world.cas.directory)) as store:
        assert len(store.row_keys("leases", world.name)) == 3


def test_leases_outlive_the_cas(tmp_path):
    clock = Clock(float(int(time.time())))
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world, world.session() as session:
        world.renew(instances=1)
        number = session.attest().lease
        name, owner = world.name, world.owner
    with cas_in(tmp_path, clock) as cas, cas.owner(owner) as client:
        [shown] = client.leases(name)["leases"]
        assert shown["number"] == number


def test_only_those_who_may_see_who_lives(world):
    with world.cas.owner() as stranger, pytest.raises(UnauthorizedError):
        stranger.leases(world.name)


def test_an_answer_that_was_lost_is_no_copy(world):
    with world.enclave() as enclave:
        enclave.attest()
        held, before = enclave.lease, {}
        for lost in (before, before, before):
            enclave.lease = lost
            enclave.attest()
        assert enclave.lease["number"] == held["number"]
        kept = enclave.lease
        enclave.attest()  # renewed; what follows repeats the request that this answered
        for _ in range(3):
            enclave.lease = kept
            enclave.attest()
        enclave.attest()
        assert enclave.lease["number"] == held["number"]
        enclave.time_token()


def test_a_key_may_be_used_again_once_its_lease_is_over(timed):
    world, clock = timed
    identity = Identity.fresh("enclave", now=dt.datetime.now(dt.UTC))
    with world.enclave(identity=identity) as one:
        one.attest()
        clock.now += 600
        with world.enclave(identity=identity) as two:
            two.attest()  # without a token
            with pytest.raises(RevokedError):
                one.attest()


def test_renewing_for_days_takes_no_more_memory(tmp_path):
    result = SimpleNamespace(tee="simulated", measurement="ab" * 48)
    policy = SimpleNamespace(name="a/b", lease=600, expires=None, instances=None)
    with closing(Store(tmp_path / "cas")) as store:
        leases, tokens = Leases(store), {"sha256:k": b"", "sha256:l": b""}
        for now in range(0, 9_000, 300):
            for key, token in tokens.items():
                certificate = (f"{now:x}", now + 3600)
                lease = leases.grant(
                    policy, key, shown=token, replica=None, result=result, certificate=certificate, detail={}, now=now
                )
                tokens[key] = lease.token
        assert [lease.key for lease in leases.live("a/b", now)] == ["sha256:k", "sha256:l"]
        assert len(leases._heap()) == len(leases._in_heap) == 2
        assert len(lease.serials) <= 16
        again = Leases(store)
        again.grant(
            policy, "sha256:m", shown=b"", replica=None, result=result, certificate=("1", 9), detail={}, now=40_000
        )
        assert [lease.key for lease in again.live("a/b", 0)] == ["sha256:m"]


def test_a_session_that_loses_an_answer_is_no_copy_of_itself(world, monkeypatch):
    with world.session() as session:
        number = session.attest().lease
        post, lost = session._http.post, [ChannelError("connection: reset"), ChannelError("connection: reset")]

        def cut_off(path, value, **options):
            answer = post(path, value, **options)
            if path == "/v1/attest" and lost:
                session._http.close()
                raise lost.pop()
            return answer

        monkeypatch.setattr(session._http, "post", cut_off)
        with pytest.raises(ChannelError):
            session.renew()
        for _ in range(2):
            assert session.renew().lease == number
    assert "clone" not in world.events()


@pytest.mark.parametrize("ended_by", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_lease_is_given_back_though_the_cas_has_dropped_the_connection(world, ended_by):
    """As it does with what was idle, or when it is started anew: who kept the connection is told nothing."""
    world.renew(instances=1)
    dialled = []

    def dial():
        dialled.append(world.cas.dial())
        return dialled[-1]

    with world.session(dial=dial) as one:
        one.attest()
        dialled[-1].shutdown(ended_by)
        one.end()
        assert live(world) == []
