"""Attacks on leases: copies of enclaves, writers whose time is over, hosts that turn clocks, the revoked who go on."""

from __future__ import annotations

import json
import queue
import time
from contextlib import contextmanager

import pytest

from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas.enclaves.clock import ForwardClock
from strongroom.cas.enclaves.leases import Leases
from strongroom.cas.enclaves.revocations import Revocations, Selection
from strongroom.cas.state.store import Store
from strongroom.cas.wire import b64
from strongroom.errors import (
    ConflictError,
    ExpiredError,
    FormatError,
    InstanceLimitError,
    RevokedError,
    UnauthorizedError,
    UsageError,
    VerificationError,
)
from strongroom.sealed import Root
from tests.cas.world import MEASURED, PROGRAM, Clock, cas_in, world_in

FIRST, SECOND, THIRD = (Root(number, bytes([number]) * 32) for number in (1, 2, 3))
DEPOSITED = PROGRAM + '[[secrets]]\nname = "found"\ndeposited = true\n'


@pytest.fixture(scope="module")
def cas(tmp_path_factory):
    with cas_in(tmp_path_factory.mktemp("leases")) as running:
        yield running


@pytest.fixture
def world(cas):
    with world_in(cas) as made:
        yield made


@pytest.fixture
def timed(tmp_path):
    clock = Clock(float(int(time.time())))
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world:
        yield world, clock


def logged(world, event):
    return [json.loads(entry["detail"]) for entry in world.client.log() if entry["event"] == event]


def anchor(enclave, old, new):
    said = {"old": None if old is None else str(old), "new": str(new)}
    return enclave.put(f"/v1/policies/{enclave.policy}/anchors/out", said)


# Copies


def test_an_enclave_that_is_started_twice_is_refused_beyond_the_limit(world):
    world.renew(instances=1)
    with world.session() as honest, world.session() as clone:
        honest.attest()
        with pytest.raises(InstanceLimitError):
            clone.attest()
        honest.renew()
    assert world.refusals() == ["instance-limit"]


@contextmanager
def copied(world, enclave):
    """The same enclave once more: its keys, and what it knows of its lease."""
    with world.enclave(identity=enclave.identity) as copy:
        copy.hpke, copy.lease = enclave.hpke, dict(enclave.lease)
        yield copy


@pytest.mark.parametrize("first", ["original", "copy"])
@pytest.mark.parametrize("more", [0, 2])
def test_copies_of_a_running_enclave_end_both(world, first, more):
    """Whichever renews first, and however often: the other one's token is stale, and both are out."""
    with world.enclave() as original:
        original.attest()
        with copied(world, original) as copy:
            goes, comes = (original, copy) if first == "original" else (copy, original)
            for _ in range(1 + more):
                goes.attest()
            if more:
                with pytest.raises(RevokedError, match="two enclaves of policy"):
                    comes.attest()
            else:
                comes.attest()  # as if the answer to it had been lost
                with pytest.raises(RevokedError, match="two enclaves of policy"):
                    goes.attest()
            for enclave in (original, copy):
                with pytest.raises((RevokedError, UnauthorizedError)):
                    enclave.time_token()
                with pytest.raises(RevokedError):
                    enclave.attest()
    number = original.lease["number"]
    assert logged(world, "clone") == [{"lease": number, "key": original.identity.key.public.fingerprint}]
    assert world.client.leases(world.name)["leases"] == []


def test_a_copy_from_before_the_first_attestation_is_found_too(world):
    with world.enclave() as original, world.enclave(identity=original.identity) as copy:
        original.attest()
        copy.attest()
        with pytest.raises(RevokedError):
            original.attest()


def test_a_copy_cannot_make_the_cas_believe_in_lost_answers_for_ever(world):
    """A host that keeps every answer from one copy cannot keep both alive."""
    with world.enclave() as original:
        original.attest()
        original.attest()
        with copied(world, original) as copy:
            old = dict(copy.lease)
            with pytest.raises(RevokedError):
                for _ in range(10):
                    copy.lease = dict(old)
                    copy.attest()


@pytest.mark.parametrize(
    ("shown", "kind"), [("", RevokedError), ("00" * 16, RevokedError), ("00", RevokedError), ("zz", FormatError)]
)
def test_a_token_that_the_cas_never_gave(world, shown, kind):
    with world.enclave() as enclave:
        enclave.attest()
        enclave.attest()
        enclave.lease["token"] = shown
        with pytest.raises(kind, match=r"two enclaves|not lower-case hexadecimal"):
            enclave.attest()


def test_two_replicas_of_one_number(world):
    world.renew(instances=4)
    vendor = SimulatedAttester(world.cas.vendor, MEASURED)
    with world.session(attester=vendor, replica=1) as one, world.session(attester=vendor, replica=1) as other:
        one.attest()
        with pytest.raises(InstanceLimitError, match="replica: 1"):
            other.attest()
        one.renew()


# Writers whose time is over


def test_a_writer_that_was_paused_writes_nothing_after_another_took_over(timed):
    world, clock = timed
    world.renew(instances=1)
    with world.enclave() as paused:
        paused.attest()
        anchor(paused, None, FIRST)
        clock.now += 601
        with world.enclave() as successor:
            successor.attest()
            anchor(successor, FIRST, SECOND)
            with pytest.raises(UnauthorizedError):
                anchor(paused, SECOND, THIRD)
            with pytest.raises(InstanceLimitError):
                paused.attest()
            anchor(successor, SECOND, THIRD)


def test_a_writer_whose_lease_still_lasts_is_fenced_off(world):
    with world.enclave() as stale, world.enclave() as successor:
        stale.attest(), successor.attest()
        anchor(stale, None, FIRST)
        anchor(successor, FIRST, SECOND)
        for old, new in ((SECOND, THIRD), (FIRST, SECOND)):  # a repetition of what is there is no way in either
            with pytest.raises(ConflictError, match="it is no writer now"):
                anchor(stale, old, new)
        stale.attest()
        with pytest.raises(ConflictError, match="it is no writer now"):
            anchor(stale, SECOND, THIRD)


def test_a_deposit_of_an_enclave_that_was_paused_buries_no_newer_one(world):
    world.renew(more=DEPOSITED)

    def deposit(enclave, value):
        enclave.put(f"/v1/policies/{world.name}/deposits/found", {"value": b64(value)})

    with world.enclave() as stale, world.enclave() as successor:
        stale.attest(), successor.attest()
        deposit(stale, b"early")
        deposit(successor, b"newer")
        for _ in range(2):
            with pytest.raises(ConflictError, match="found: was made under lease"):
                deposit(stale, b"older")
            stale.attest()
        assert successor.open(successor.attest()).secrets["found"] == b"newer"
        deposit(successor, b"newest")
    assert [one["lease"] for one in logged(world, "deposited")] == [stale.lease["number"]] + 2 * [
        successor.lease["number"]
    ]


# Clocks


def test_a_host_that_sets_the_clock_back_gains_no_second(timed):
    world, clock = timed
    with world.enclave() as enclave:
        enclave.attest()
        clock.now += 600
        with pytest.raises(UnauthorizedError):
            enclave.time_token()
        for back in (1, 600, 10**6):
            clock.now -= back
            with pytest.raises(UnauthorizedError, match="attested longer than"):
                enclave.time_token()


def test_a_cas_that_starts_with_an_older_clock_revives_nothing(tmp_path):
    clock = Clock(float(int(time.time())))
    with (
        cas_in(tmp_path, clock) as cas,
        world_in(cas) as world,
        world.enclave(policy=world.service(), role="service") as old,
    ):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock.now + 100))
        text = world.text(version=2, previous=world.policy.digest)
        world.client.apply(text.replace("[reference]", f"expires = {stamp}\n[reference]"))
        old.attest()
        token, claims = old.time_token(), old.claims(models={"m": "sha256:" + "00" * 32})
        clock.now += 601
        with world.session() as session, pytest.raises(ExpiredError):
            session.attest()
        name, owner = world.name, world.owner
        service = old.policy
    clock.now -= 601
    with cas_in(tmp_path, clock) as cas, cas.owner(owner) as client:
        world.cas, world.client = cas, client
        assert client.leases(name)["now"] == int(clock.now) + 601
        assert client.leases(service)["leases"] == []
        with world.session() as session, pytest.raises(ExpiredError, match="ended 501 seconds ago"):
            session.attest()
        with world.enclave(policy=service, role="service") as again:
            again.attest()
            shown = {"evidence": again.service_evidence(token, claims).to_wire(), "claims": "e30=", "time_token": token}
            with pytest.raises((VerificationError, ExpiredError), match=r"signature|expired"):
                again.http.post("/v1/service", shown, fresh=True)


def test_time_goes_on_while_the_host_holds_its_clock_still():
    wall, elapsed = Clock(1000.0), Clock(5.0)
    clock = ForwardClock(wall, elapsed=elapsed)
    assert clock() == 1000.0
    elapsed.now += 60
    assert clock() == 1060.0
    wall.now = 0.0
    elapsed.now += 60
    assert clock() == 1120.0
    wall.now = 2000.0
    assert clock() == 2000.0
    assert ForwardClock(wall, no_earlier=3000.0)() == 3000.0


# The revoked


def test_the_revoked_get_nothing_more(world):
    world.renew(more=DEPOSITED)
    with world.enclave() as enclave, world.enclave(policy=world.service(), role="service") as service:
        enclave.attest(), service.attest()
        token, claims = service.time_token(), service.claims(models={"m": "sha256:" + "00" * 32})
        world.client.revoke(world.name, everything=True)
        world.client.revoke(service.policy, everything=True)
        base = f"/v1/policies/{world.name}"
        shown = {"evidence": service.service_evidence(token, claims).to_wire(), "claims": "e30=", "time_token": token}
        for ask in (
            lambda: anchor(enclave, None, FIRST),
            lambda: enclave.http.request("GET", f"{base}/anchors/out", fresh=True).expect_ok(),
            enclave.time_token,
            lambda: enclave.put(f"{base}/deposits/found", {"value": "AAAA"}),
            lambda: enclave.http.post("/v1/lineage", {"run": {}, "outputs": [{}]}, fresh=True),
            lambda: enclave.http.post("/v1/lease/end", {}, fresh=True),
            enclave.attest,
            lambda: service.http.post("/v1/service", shown, fresh=True),
            service.time_token,
        ):
            with pytest.raises((RevokedError, UnauthorizedError)):
                ask()
        assert world.client.anchor(world.name, "out").read() is None
        assert "deposited" not in world.events()


def test_the_revoked_cannot_come_back_on_another_connection(world):
    with world.enclave() as enclave:
        enclave.attest()
        world.client.revoke(world.name, everything=True)
        with copied(world, enclave) as again, pytest.raises(RevokedError):
            again.attest()


def test_a_stranger_who_lists_a_key_under_its_own_policy_ends_nobody(world, cas):
    """Anybody may have a policy, and revoke under it what he likes: others' enclaves and their peers do not care."""
    heard, others = queue.Queue(), queue.Queue()
    with world_in(cas) as stranger, world.session() as session:
        session.attest()
        key = session.serving_identity().key.public.fingerprint
        with session.watch(heard.put, on_revoked=lambda *one: others.put(one)) as watch:
            stranger.client.revoke(stranger.name, key=key)
            while others.get() != (stranger.name, key):
                pass
            assert heard.empty()
            session.renew()
            session.anchor("out").advance(None, FIRST)
            world.client.revoke(world.name, key=key)
            assert isinstance(heard.get(), RevokedError)
        assert not watch._thread.alive


def test_the_list_of_revocations_is_not_filled_by_a_stranger(world, monkeypatch):
    monkeypatch.setattr("strongroom.cas.enclaves.revocations.MAX_LISTED", 2)
    for number in range(2):
        world.client.revoke(world.name, key=f"sha256:{number:064x}")
    with pytest.raises(UsageError, match="has 2 in force"):
        world.client.revoke(world.name, key="sha256:" + "ff" * 32)
    with world.session() as session:
        number = session.attest().lease
        assert world.client.revoke(world.name, everything=True) == [number]


def test_a_revocation_that_was_undone_is_told_to_nobody(tmp_path):
    """A database that fails while it commits: whoever was told in between would have an enclave end itself."""
    store = Store(tmp_path)
    try:
        revocations, now = Revocations(store, Leases(store)), 1000
        measurement = "ab" * 48
        with pytest.raises(RuntimeError), store.transaction():
            revocations.revoke("a/b", Selection(key="sha256:" + "ab" * 32), by={}, now=now)
            assert len(revocations.after(0, now)) == 1
            raise RuntimeError
        assert revocations.after(0, now) == []
        revocations.revoke("a/b", Selection(measurement=measurement), by={}, now=now)
        assert [one.measurement for one in revocations.after(0, now)] == [measurement]
        with pytest.raises(RuntimeError), store.transaction():
            revocations.lift("a/b", measurement, by={}, now=now)
            assert revocations.after(0, now) == []
            raise RuntimeError
        assert [one.measurement for one in revocations.after(0, now)] == [measurement]
    finally:
        store.close()
