"""The mesh as the CAS keeps it: addresses, who is told of whom, and what is no member any more."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas.enclaves import mesh
from strongroom.cas.policy.version import parse_policy
from strongroom.errors import (
    FormatError,
    InstanceLimitError,
    MeasurementError,
    PolicyError,
    StrongroomError,
    TooManyRequestsError,
    UnauthorizedError,
)
from tests.cas.world import MEASURED, Clock, cas_in, world_in

MESH = "[mesh]\n"
OTHER = {name: bytes([i + 100]) * 48 for i, name in enumerate(REGISTERS)}


def told(session: Any) -> list[tuple[str, int, str]]:
    answer = session.join_mesh("127.0.0.1:9")
    return [(each["policy"], each["number"], each["endpoint"]) for each in answer["members"]]


def test_replicas_are_told_of_each_other_at_addresses_by_their_numbers(world):
    world.renew(more=MESH, instances=3)
    with world.session(replica=0) as one, world.session(replica=2) as other:
        one.attest()
        first = one.join_mesh("192.0.2.1:7000")
        assert (first["number"], first["instances"], first["members"]) == (0, 3, [])
        other.attest()
        second = other.join_mesh("[2001:db8::1]:7001")
        assert second["members"] == [
            {
                "policy": world.name,
                "number": 0,
                "address": first["address"],
                "key": one.key,
                "endpoint": "192.0.2.1:7000",
                "ports": [],
            }
        ]
        base, number = first["address"].rsplit(".", 1)
        assert second["address"] == f"{base}.{int(number) + 2}"
        assert second["places"] == [{"policy": world.name, "first": first["address"], "count": 3}]
        assert told(one) == [(world.name, 2, "[2001:db8::1]:7001")]
        other.end()
        assert told(one) == []
    assert "joined" in world.events()


def test_two_policies_are_peers_where_each_names_the_other(cas):
    with world_in(cas, more="") as one, world_in(cas, more="") as other:
        one.renew(more=f'[mesh]\npeers = ["{other.name}"]\n')
        other.renew(more=MESH)
        with one.session() as here, other.session() as there:
            here.attest()
            there.attest()
            assert (told(here), told(there), told(here)) == ([], [], [])
            other.renew(more=f'[mesh]\npeers = ["{one.name}"]\n')
            assert told(there) == [(one.name, 0, "127.0.0.1:9")]
            assert told(here) == [(other.name, 0, "127.0.0.1:9")]
            assert here.join_mesh("127.0.0.1:9")["address"] != there.join_mesh("127.0.0.1:9")["address"]


def test_a_peer_of_another_measurement_than_it_is_held_to_is_told_of_nowhere(cas):
    accepted = {"measurements": [registers_measurement(MEASURED), registers_measurement(OTHER)]}
    with world_in(cas, more="") as one, world_in(cas, more="") as other:
        pin = f'[[mesh.pinned]]\npolicy = "{other.name}"\nmeasurements = ["{registers_measurement(MEASURED)}"]\n'
        one.renew(more=f'[mesh]\npeers = ["{other.name}"]\n{pin}ports = [9093]\n')
        other.renew(more=f'[mesh]\npeers = ["{one.name}"]\n', reference=accepted)
        stranger = SimulatedAttester(cas.vendor, OTHER)
        with one.session() as here, other.session() as held, other.session(attester=stranger) as changed:
            for session in (here, held, changed):
                session.attest()
                session.join_mesh("127.0.0.1:9")
            [member] = here.join_mesh("127.0.0.1:9")["members"]
            assert (member["key"], member["ports"]) == (held.key, [9093])
            assert [name for name, *_ in told(held)] == [other.name, one.name]
            assert [name for name, *_ in told(changed)] == [other.name]


def test_an_enclave_of_another_measurement_is_no_member(cas):
    with world_in(cas, more=MESH) as world, world.session() as one:
        one.attest()
        stranger = SimulatedAttester(cas.vendor, OTHER)
        with world.session(attester=stranger) as changed, pytest.raises(MeasurementError):
            changed.join_mesh("127.0.0.1:10")
        assert told(one) == []
        assert "refused" in world.events()


def test_news_comes_while_an_enclave_waits_and_who_is_no_member_is_refused(world):
    world.renew(more=MESH)
    news: list[Mapping[str, Any]] = []
    came, lost = threading.Semaphore(0), threading.Event()

    def heard(told: Mapping[str, Any]) -> None:
        news.append(told)
        came.release()

    with world.session() as one, world.session() as other:
        one.attest()
        watch = one.watch_mesh(heard, lost.set)
        watch.start()
        assert lost.wait(20)  # it has not joined yet
        one.join_mesh("127.0.0.1:9")
        other.attest()
        other.join_mesh("127.0.0.1:10")
        while not (news and news[-1]["members"]):
            assert came.acquire(timeout=20)
        assert news[-1]["members"][0]["key"] == other.key
        number = next(each["number"] for each in world.client.leases(world.name)["leases"] if each["key"] == other.key)
        world.client.revoke(world.name, lease=number)
        while news[-1]["members"]:
            assert came.acquire(timeout=20)
        watch.close()
        with pytest.raises(StrongroomError):
            other.join_mesh("127.0.0.1:10")
    with world.enclave() as nobody, pytest.raises(UnauthorizedError, match="has no lease of policy"):
        nobody.http.post("/v1/mesh/members", {"policy": world.name})


def test_a_lease_that_has_run_out_is_no_member_and_leaves_its_place(tmp_path):
    clock = Clock(float(int(time.time())))
    with cas_in(tmp_path, clock) as cas, world_in(cas, more=MESH) as world:
        clocked = {"clock": clock}
        with world.session(**clocked) as one, world.session(**clocked) as other, world.session(**clocked) as third:
            one.attest()
            assert told(one) == []
            clock.now += 500
            other.attest()
            assert [number for _, number, _ in told(other)] == [0]
            clock.now += 200
            assert told(other) == []
            third.attest()
            assert third.join_mesh("127.0.0.1:9")["number"] == 0


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "localhost:1", "1.2.3.400:1", "::1:1", "[::g]:1"),
        *("0.0.0.0:1", "224.0.0.1:1", "169.254.169.254:80", "[::]:1", "[fe80::1]:1"),
    ],
)
def test_an_endpoint_is_an_address_and_a_port(world, endpoint):
    world.renew(more=MESH)
    with world.session() as session:
        session.attest()
        with pytest.raises(FormatError, match=r"endpoint: got"):
            session.join_mesh(endpoint)


def test_addresses_of_a_policy_without_living_enclaves_are_given_to_another(tmp_path, monkeypatch):
    monkeypatch.setattr(mesh, "BLOCKS", 2)
    with ExitStack() as held:
        cas = held.enter_context(cas_in(tmp_path, Clock(float(int(time.time())))))
        worlds = [held.enter_context(world_in(cas, more=MESH)) for _ in range(3)]
        one, other, third = (held.enter_context(world.session()) for world in worlds)
        for each in (one, other, third):
            each.attest()
        first, second = (each.join_mesh("127.0.0.1:9")["address"] for each in (one, other))
        with pytest.raises(InstanceLimitError, match="living enclaves of 2 policies"):
            third.join_mesh("127.0.0.1:9")
        other.end()
        assert third.join_mesh("127.0.0.1:9")["address"] == second != first
        assert one.join_mesh("127.0.0.1:9")["address"] == first


def test_an_enclave_moves_once_in_a_while(tmp_path, monkeypatch):
    clock = Clock(float(int(time.time())))
    with cas_in(tmp_path, clock) as cas, world_in(cas, more=MESH) as world, world.session(clock=clock) as one:
        one.attest()
        monkeypatch.setattr(one._http, "_sleep", lambda seconds: None)
        for endpoint in ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:2"):
            one.join_mesh(endpoint)
        with pytest.raises(TooManyRequestsError, match="another endpoint just now"):
            one.join_mesh("127.0.0.1:3")
        clock.now += mesh.MOVE_SECONDS
        one.join_mesh("127.0.0.1:3")
        assert world.events().count("joined") == 3


def test_who_may_be_no_member_any_more_is_told_of_nobody(world):
    world.renew(more=MESH)
    news: list[Mapping[str, Any]] = []
    emptied = threading.Event()

    def heard(told: Mapping[str, Any]) -> None:
        news.append(told)
        if not told["members"]:
            emptied.set()

    with world.session() as one, world.session() as other:
        one.attest()
        other.attest()
        other.join_mesh("127.0.0.1:10")
        one.join_mesh("127.0.0.1:9")
        watch = one.watch_mesh(heard, lambda: one.join_mesh("127.0.0.1:9"))
        watch._step(watch._asking, wait=0)
        assert news[-1]["members"]
        world.renew(more="")
        watch.start()
        assert emptied.wait(20)
        watch.close()


def test_news_that_could_not_be_taken_in_are_asked_for_again(world):
    world.renew(more=MESH)
    heard: list[Mapping[str, Any]] = []

    def fails_once(told: Mapping[str, Any]) -> None:
        heard.append(told)
        if len(heard) == 1:
            raise OSError(105, "no buffer space")

    with world.session() as one:
        one.attest()
        one.join_mesh("127.0.0.1:9")
        watch = one.watch_mesh(fails_once, lambda: None)
        with pytest.raises(OSError, match="no buffer space"):
            watch._step(watch._waiting, wait=20)
        watch._step(watch._waiting, wait=20)
        watch.close()
    assert heard[0] == heard[1]


def test_an_enclave_whose_policy_has_no_mesh_does_not_join(world):
    with world.session() as session:
        session.attest()
        with pytest.raises(UnauthorizedError, match=r"has no table \[mesh\]"):
            session.join_mesh("127.0.0.1:9")


@pytest.mark.parametrize(
    ("more", "instances", "why"),
    [
        ('[[mesh.pinned]]\npolicy = "a/b"\nports = [1]\n', 1, "'a/b' is no peer"),
        ('[mesh]\npeers = ["a/b"]\n[[mesh.pinned]]\npolicy = "a/b"\n', 1, "holds it to nothing"),
        ('[mesh]\npeers = ["a/b"]\n[[mesh.pinned]]\npolicy = "a/b"\nports = [0]\n', 1, "wanted an array of ports"),
        ('[mesh]\npeers = ["a/b"]\n[[mesh.pinned]]\npolicy = "a/b"\nmeasurements = ["x"]\n', 1, "got 'x'"),
        ('[mesh]\ntasks = ["worker"]\n', 2, "1 of them, and policy.instances is 2"),
        ('[mesh]\ntasks = ["boss"]\n', 1, "got 'boss', wanted chief, worker, ps or evaluator"),
    ],
)
def test_what_a_policy_says_of_its_mesh_must_make_sense(world, more, instances, why):
    with pytest.raises(PolicyError, match="mesh"):
        parse_policy(world.text(more=more, instances=instances))
    with pytest.raises(PolicyError) as refused:
        parse_policy(world.text(more=more, instances=instances))
    assert why in refused.value.message


WIRED = f'{MESH}transport = "wireguard"\n'
KEYS = tuple(base64.b64encode(bytes([number]) * 32).decode() for number in range(4))


def test_members_reached_over_devices_are_told_of_with_their_keys(cas):
    with world_in(cas, more=WIRED) as world, world.session() as one, world.session() as other:
        one.attest()
        other.attest()
        with pytest.raises(FormatError, match="wireguard: wanted the key of a device"):
            one.join_mesh("192.0.2.1:7000")
        one.join_mesh("192.0.2.1:7000", base64.b64decode(KEYS[0]))
        with pytest.raises(UnauthorizedError, match="the key is another member's"):
            other.join_mesh("192.0.2.2:7000", base64.b64decode(KEYS[0]))
        for wrong in (b"short", bytes(33)):
            with pytest.raises(FormatError, match="wanted a public key, 32 bytes in base64"):
                other.join_mesh("192.0.2.2:7000", wrong)
        [member] = other.join_mesh("192.0.2.2:7000", base64.b64decode(KEYS[1]))["members"]
        assert (member["key"], member["wireguard"]) == (one.key, KEYS[0])


def test_policies_of_two_transports_are_no_peers(cas):
    with world_in(cas, more="") as one, world_in(cas, more="") as other:
        one.renew(more=f'[mesh]\npeers = ["{other.name}"]\n')
        other.renew(more=f'{WIRED}peers = ["{one.name}"]\n')
        with one.session() as here, other.session() as there:
            here.attest()
            there.attest()
            assert told(here) == []
            assert there.join_mesh("127.0.0.1:9", base64.b64decode(KEYS[2]))["members"] == []
            assert told(here) == []
            with pytest.raises(FormatError, match="wireguard: wanted none"):
                here.join_mesh("127.0.0.1:9", base64.b64decode(KEYS[3]))
            other.renew(more=f'[mesh]\npeers = ["{one.name}"]\n')  # it runs on, and cannot be reached as they are now
            assert told(here) == []
