"""What a CAS counts for its operator, and what it says of itself."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from strongroom.cas.api.metrics import Prometheus
from strongroom.cas.api.operation import Operation
from strongroom.cas.client.address import cas_expectation
from strongroom.cas.log.witness import Witness
from strongroom.cas.service.server import prepare
from strongroom.cas.start.mode import Restart
from strongroom.channel import HttpClient
from strongroom.cli.cas.witness import cosign_head
from strongroom.crypto import SigningKey
from strongroom.errors import MeasurementError, NotReadyError, PortInUseError, UnknownPolicyError
from tests.cas.world import MEASURED, Cas, World, cas_in, world_in


@pytest.fixture
def counted(tmp_path) -> Iterator[tuple[Cas, Prometheus]]:
    metrics = Prometheus()
    with cas_in(tmp_path, operation=Operation(metrics=metrics, access_log=True)) as cas:
        yield cas, metrics


LABELS = ("method", "path", "tee", "outcome", "policy", "status", "code")


def samples(metrics: Prometheus, name: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text()):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in LABELS if label in sample.labels)] = sample.value
    return found


def test_requests_and_attestations_are_counted_without_names(counted):
    cas, metrics = counted
    with world_in(cas) as world:
        with world.enclave() as enclave:
            enclave.attest()
        with world.enclave(registers=MEASURED | {"rtmr1": bytes(48)}) as enclave, pytest.raises(MeasurementError):
            enclave.attest()
        with pytest.raises(UnknownPolicyError):
            world.client.policy("acme/secret-project")
        attestations = samples(metrics, "strongroom_cas_attestations_total")
        assert attestations == {("simulated", "ok"): 1, ("simulated", "measurement"): 1}
        assert samples(metrics, "strongroom_cas_errors_total") == {("measurement",): 1, ("unknown-policy",): 1}
        requests = samples(metrics, "strongroom_cas_requests_total")
        assert requests["POST", "/v1/attest", "200"] == requests["POST", "/v1/attest", "403"] == 1
        assert requests["GET", "/v1/policies/{namespace}/{name}", "404"] == 1
        assert samples(metrics, "strongroom_cas_request_seconds_count")["POST", "/v1/attest"] == 2
        assert "acme" not in metrics.text()


def test_names_are_labels_where_the_operator_says_so(tmp_path):
    metrics = Prometheus(names=True)
    with cas_in(tmp_path, operation=Operation(metrics=metrics)) as cas, world_in(cas) as world:
        with world.enclave() as enclave:
            enclave.attest()
        assert samples(metrics, "strongroom_cas_attestations_total") == {("simulated", "ok", world.name): 1}


def test_states_are_those_of_the_moment(counted):
    cas, metrics = counted
    before = samples(metrics, "strongroom_cas_log_entries")[()]
    with world_in(cas) as world:
        assert samples(metrics, "strongroom_cas_log_entries")[()] > before
        assert samples(metrics, "strongroom_cas_policies")[()] == 1
        assert samples(metrics, "strongroom_cas_ready")[()] == 1
        with world.enclave() as enclave:
            enclave.attest()
            assert samples(metrics, "strongroom_cas_live_leases")[()] == 1


def test_a_state_that_cannot_be_had_hides_no_other():
    metrics = Prometheus()

    def closed():
        raise ValueError("Cannot operate on a closed database.")

    metrics.watch("leases", "Leases", (), closed)
    metrics.watch("ready", "Ready", (), lambda: {(): 1})
    assert samples(metrics, "strongroom_cas_ready") == {(): 1}
    assert samples(metrics, "strongroom_cas_leases") == {}


def test_metrics_end_before_the_database_that_they_ask(tmp_path):
    service, seen = prepare(tmp_path / "cas"), []
    service.at_end.callback(lambda: seen.append(service.store.head().size))
    with service:
        pass
    assert seen == [0]


def test_they_are_served_in_plain_http_on_a_port_of_their_own(counted):
    _, metrics = counted
    with metrics.serving("127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"strongroom_cas_ready 1.0" in answer.read()
        with pytest.raises(PortInUseError, match=f"--metrics: 127.0.0.1:{port}"), metrics.serving("127.0.0.1", port):
            pass


def test_the_access_log_has_a_line_for_each_answer_and_no_names(counted, caplog):
    cas, _ = counted
    with caplog.at_level(logging.INFO, "strongroom.cas.access"), world_in(cas) as world:
        lines = [json.loads(record.message) for record in caplog.records if record.name == "strongroom.cas.access"]
        assert {"method": "PUT", "path": "/v1/policies/{namespace}/{name}", "status": 200}.items() <= lines[0].items()
        assert lines[0]["address"] == "127.0.0.1"
        assert world.name not in caplog.text


def anonymous(world: World) -> HttpClient:
    return HttpClient(world.cas.dial, host="cas", expect=cas_expectation(world.cas.address.cas_root))


def test_health_and_status_are_for_anybody(world):
    with anonymous(world) as http:
        assert http.get("/v1/health") == {"live": True, "ready": True, "waiting": ""}
        status = http.get("/v1/status")
    assert status["cas_root"] == world.cas.address.cas_root and status["ready"] is True
    assert status["time"] == int(world.cas.clock.now) and status["uptime"] >= 0
    assert status["witnesses"] == []
    assert status["head"].startswith(f"{world.client.log()[-1]['number']}:")


def test_a_cas_that_waits_says_so_to_balancers_and_in_its_status(tmp_path):
    operator = SigningKey.generate()
    restart = Restart("owner", (operator.public.fingerprint,), 1)
    with cas_in(tmp_path, restart=restart) as cas, world_in(cas):
        pass
    metrics = Prometheus()
    with cas_in(tmp_path, operation=Operation(metrics=metrics)) as cas:
        expect = cas_expectation(cas.address.cas_root)
        with HttpClient(cas.dial, host="cas", expect=expect) as http:
            answer = http.request("GET", "/v1/health")
            told = answer.json()
            assert (answer.status, told["live"], told["ready"]) == (503, True, False) and told["waiting"]
            status = http.get("/v1/status")
            assert (status["ready"], status["waiting"]) == (False, told["waiting"])
            assert status["about"]["restart"] == "owner, 1 of 1 operators"
            with pytest.raises(NotReadyError):
                http.get("/v1/policies/acme/none")
        assert samples(metrics, "strongroom_cas_ready")[()] == 0


def test_a_cas_says_what_its_witnesses_have_seen_and_how_long_ago(tmp_path):
    seen, absent = Witness(tmp_path / "seen", name="seen"), Witness(tmp_path / "absent", name="absent")
    with cas_in(tmp_path, witnesses=[seen.key, absent.key]) as cas, world_in(cas) as world:
        size = world.client.log()[-1]["number"]
        note = cosign_head(seen, world.client, cas.address.cas_root, now=int(cas.clock.now))
        world.client.put_cosigned(note)
        cas.clock.now += 90
        told = world.client.status()["witnesses"]
    assert told == [{"name": "seen", "size": size, "age": 90}, {"name": "absent", "size": None, "age": None}]
