"""The CAS signs lineage for attested programs, and what it says itself no enclave can say for it."""

from __future__ import annotations

import json

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.dsse import Envelope
from strongroom.cas.wire import MAX_OUTPUTS
from strongroom.errors import FormatError, UnauthorizedError
from strongroom.lineage.statement import PAYLOAD_TYPE, DataSet, Output, Run, Statement
from tests.cas.world import MEASURED

ROOT = "1:" + "ab" * 32


def a_run(world, **changes):
    data = (DataSet("data", "/data", "read-only", "memory", ROOT, "00" * 32, 1, 1),)
    boot = {"cas_root": world.cas.address.cas_root, "policy": world.name} | changes
    return Run("1f" * 16, 1, "1.0", boot, data)


def outputs(count):
    return [Output(f"m{i}", f"{i:064x}", f"{i:064x}") for i in range(count)]


def test_an_attested_program_gets_what_it_wrote_signed(world):
    with world.session() as session:
        session.attest()
        envelopes = session.sign_lineage(a_run(world), outputs(MAX_OUTPUTS + 3))
    stated = [Statement.parse(Envelope.parse(raw).payload) for raw in envelopes]
    assert [one.output for one in stated] == outputs(MAX_OUTPUTS + 3)
    by, policy = stated[0].endorsement, world.policy
    assert (by.policy, by.policy_version, by.policy_digest) == (policy.name, 1, policy.digest)
    assert (by.tee, by.measurement) == ("simulated", registers_measurement(MEASURED))
    assert (by.vendor_root, by.cas_root) == (world.cas.vendor.root_digest, world.cas.address.cas_root)
    assert abs(by.signed - world.cas.clock()) < 60
    key = Envelope.parse(envelopes[0]).chain[0].key
    assert all(Envelope.parse(raw).verify(key, PAYLOAD_TYPE) for raw in envelopes)


def test_every_signature_is_on_the_log(world):
    with world.session() as session:
        session.attest()
        session.sign_lineage(a_run(world), outputs(MAX_OUTPUTS + 1))
    entries = [json.loads(e["detail"]) for e in world.client.log() if e["event"] == "lineage"]
    assert [entry["outputs"] for entry in entries] == [MAX_OUTPUTS, 1]
    assert {(entry["invocation"], entry["version"]) for entry in entries} == {("1f" * 16, 1)}


def test_a_new_version_of_the_policy_is_the_one_that_is_stated(world):
    with world.session() as session:
        session.attest()
        world.renew(more="")
        (envelope,) = session.sign_lineage(a_run(world), outputs(1))
    assert Statement.parse(Envelope.parse(envelope).payload).endorsement.policy_version == 2


def test_who_has_not_attested_gets_nothing(world):
    with world.enclave() as enclave:
        body = {"run": a_run(world).to_wire(), "outputs": [one.to_wire() for one in outputs(1)]}
        with pytest.raises(UnauthorizedError, match="no enclave has attested"):
            enclave.http.post("/v1/lineage", body)
    with pytest.raises(UnauthorizedError, match="no enclave has attested"):
        world.client._http.post("/v1/lineage", body)


def test_a_service_has_no_lineage_to_state(world):
    name = world.service()
    with world.session(policy=name, role="service") as session:
        session.attest()
        with pytest.raises(UnauthorizedError, match="its role is service"):
            session.sign_lineage(a_run(world, policy=name), outputs(1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"outputs": []}, "1 to 32"),
        ({"outputs": [one.to_wire() for one in outputs(MAX_OUTPUTS + 1)]}, "1 to 32"),
        ({"outputs": [one.to_wire() for one in outputs(1)] * 2}, "two of one name"),
        ({"outputs": [{"name": "m", "digest": {"sha256": "00" * 32}}]}, "subject"),
        ({"measurement": "00" * 48}, "unknown field 'measurement'"),
        ({"run": {}}, "run: got nothing"),
    ],
    ids=["none", "too_many", "twice", "one_digest", "more_members", "no_run"],
)
def test_a_malformed_request_is_refused(world, change, match):
    body = {"run": a_run(world).to_wire(), "outputs": [one.to_wire() for one in outputs(1)]} | change
    with world.session() as session:
        session.attest()
        with pytest.raises(FormatError, match=match):
            session.post("/v1/lineage", body)


def test_a_run_under_another_name_is_refused(world):
    with world.session() as session:
        session.attest()
        for change in ({"policy": "acme/other"}, {"cas_root": "sha256:" + "00" * 32}):
            with pytest.raises(FormatError, match=r"run\.boot"):
                session.sign_lineage(a_run(world, **change), outputs(1))


def test_an_enclave_cannot_say_what_the_cas_says(world):
    """Members of the same names in what the enclave says stay where its own words are."""
    lie = {"measurement": "00" * 48, "tee": "tdx", "vendorRoot": "sha256:" + "00" * 32}
    with world.session() as session:
        session.attest()
        (envelope,) = session.sign_lineage(a_run(world, **lie), outputs(1))
    statement = Statement.parse(Envelope.parse(envelope).payload)
    assert (statement.endorsement.tee, statement.endorsement.measurement) == (
        "simulated",
        registers_measurement(MEASURED),
    )


def test_a_statement_that_would_be_too_long_is_refused_whole(world):
    with world.session() as session:
        session.attest()
        with pytest.raises(FormatError, match="at most"):
            session.sign_lineage(a_run(world, environment={"A": "x" * 70_000}), outputs(2))
    assert "lineage" not in world.events()
