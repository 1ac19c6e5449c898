"""A CAS proves what it is, on each connection, before a client sends it anything."""

from __future__ import annotations

import time

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas import OwnerClient
from strongroom.cas.client.own_evidence import CLAIMS
from strongroom.cas.client.verification import verify_cas
from strongroom.cas.start.mode import Restart
from strongroom.cas.threads import Patience
from strongroom.crypto import SigningKey
from strongroom.errors import (
    CasError,
    FormatError,
    MeasurementError,
    PeerIdentityError,
    SimulatedEnclaveError,
    StrongroomError,
)
from tests.cas.world import MEASURED, VAULT_KEY, cas_in, document, world_in


class Counted:
    """An attester that counts."""

    tee = "simulated"

    def __init__(self, attester):
        self.attester, self.count = attester, 0

    def evidence(self, report_data):
        self.count += 1
        return self.attester.evidence(report_data)


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=int(time.time()))


@pytest.fixture(scope="module")
def attester(vendor):
    return Counted(SimulatedAttester(vendor, MEASURED))


@pytest.fixture(scope="module")
def proving(tmp_path_factory, attester):
    with cas_in(tmp_path_factory.mktemp("proving"), attester=attester) as cas:
        yield cas


@pytest.fixture
def wanted(vendor):
    return ReferenceValues(("simulated",), (registers_measurement(MEASURED),), allow_simulated=vendor.root_digest)


def test_its_evidence_names_the_root_to_pin(proving, wanted):
    appraisal = verify_cas(proving.address.url, wanted)
    assert appraisal.cas_root == proving.address.cas_root
    assert (appraisal.result.tee, appraisal.policy, appraisal.restart) == ("simulated", "", "trust-disk")
    assert verify_cas(proving.address.url, wanted, cas_root=proving.address.cas_root) == appraisal


def test_another_root_than_the_pinned_one_is_refused(proving, wanted):
    with pytest.raises(PeerIdentityError):
        verify_cas(proving.address.url, wanted, cas_root=SigningKey.generate().public.fingerprint)


def test_an_owner_s_client_appraises_each_connection_first(proving, wanted, attester):
    before = attester.count
    address = proving.address
    with OwnerClient(address.url, cas_root=address.cas_root, owner=SigningKey.generate(), reference=wanted) as client:
        client.apply(document(client._require_owner(), name="proved/one"))
        client.policy("proved/one")
        assert attester.count == before + 1
        client.close()
        client.policy("proved/one")
        assert attester.count == before + 2


def test_an_enclave_s_session_does_too(proving, wanted, vendor):
    with world_in(proving) as world:
        with world.session(reference=wanted) as session:
            assert session.attest().vault_keys["data"] == VAULT_KEY
        other = ReferenceValues(("simulated",), ("00" * 48,), allow_simulated=vendor.root_digest)
        with world.session(reference=other) as session, pytest.raises(MeasurementError):
            session.attest()
        assert world.events().count("attested") == 1


@pytest.mark.parametrize("error", [MeasurementError, SimulatedEnclaveError])
def test_nothing_is_sent_to_one_that_does_not_convince(proving, wanted, vendor, error):
    other = ("00" * 48,) if error is MeasurementError else wanted.measurements
    root = vendor.root_digest if error is MeasurementError else "sha256:" + "0" * 64
    reference = ReferenceValues(("simulated",), other, allow_simulated=root)
    address, key = proving.address, SigningKey.generate()
    with OwnerClient(address.url, cas_root=address.cas_root, owner=key, reference=reference) as client:
        for _ in range(2):
            with pytest.raises(error):
                client.apply(document(key, name="proved/never"))
    with proving.owner(key) as client, pytest.raises(CasError, match="holds none of the name"):
        client.policy("proved/never")


def test_one_that_has_no_evidence_says_so(cas, wanted):
    with pytest.raises(CasError, match="runs in no enclave"):
        verify_cas(cas.address.url, wanted)


def test_it_proves_itself_before_it_is_ready(tmp_path, attester, wanted):
    key = SigningKey.generate()
    mode = Restart("owner", (key.public.fingerprint,), 1)
    with cas_in(tmp_path, restart=mode, attester=attester) as cas, world_in(cas):
        pass
    with cas_in(tmp_path, attester=attester) as cas:
        assert verify_cas(cas.address.url, wanted).restart == "owner"
        with OwnerClient(cas.address.url, cas_root=cas.address.cas_root, owner=key, reference=wanted) as client:
            assert not client.gate()["ready"]


def test_the_answer_has_its_form(proving):
    with proving.owner() as client:
        http = client._http
        for nonce in ("", "00" * 31, "00" * 33, "zz" * 32):
            with pytest.raises(FormatError):
                http.post("/v1/evidence", {"nonce": nonce})
        answer = http.post("/v1/evidence", {"nonce": "00" * 32})
        assert set(answer) == {"evidence", "claims"}
        assert Evidence.from_wire(answer["evidence"]).tee == "simulated"
    assert len(CLAIMS) == 8


def test_an_attester_that_fails_is_an_error(tmp_path, wanted):
    class Broken:
        tee = "simulated"

        def evidence(self, report_data):
            raise CasError("the platform is broken")

    with cas_in(tmp_path, attester=Broken()) as cas, pytest.raises(StrongroomError, match="the platform is broken"):
        verify_cas(cas.address.url, wanted)


def test_evidence_is_made_for_an_address_in_its_turn(proving, monkeypatch):
    """So that no address takes all places of those who wait for it."""
    asked, call = [], Patience.call

    async def counted(self, function, *, who=""):
        asked.append(who)
        return await call(self, function, who=who)

    monkeypatch.setattr(Patience, "call", counted)
    with proving.owner() as client:
        client._http.post("/v1/evidence", {"nonce": "07" * 32})
    assert asked == ["loopback"]
