"""What somebody between a client and a service, or the service's host, may try: no input leaves the client."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import numpy as np
import pytest

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.binding import Kind, canonical, parse_canonical
from strongroom.attest.claims import REGISTERS
from strongroom.channel import Identity
from strongroom.crypto import SigningKey
from strongroom.errors import (
    AttestationError,
    BindingError,
    ExpiredError,
    FormatError,
    MeasurementError,
    PeerIdentityError,
    SimulatedEnclaveError,
    TcbError,
    VerificationError,
)
from strongroom.serve.attestation import ATTESTATION_PATH
from tests.serve.world import MEASUREMENT, MOMENT, NOW, POLICY, Cas, client, reference, serving

CAS = Cas()
OTHER_CAS = Cas()
MODELS = {"digits": "sha256:" + "12" * 32}
EVIL_REGISTERS = dict.fromkeys(REGISTERS, b"\xee" * 48)
CANARY = b"PRIVATE-INPUT-OF-A-CLIENT"


class Recorder:
    """A service that gives any document and writes down every byte of every request."""

    def __init__(self, document):
        self.document = document
        self.paths = []
        self.bytes = b""

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        self.bytes += scope["path"].encode() + b"".join(name + value for name, value in scope["headers"])
        more = True
        while more:
            event = await receive()
            self.bytes += event.get("body", b"")
            more = event.get("more_body", False)
        body = json.dumps(self.document.to_wire()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})


def attempt(attest, error, *, match=None, **options):
    """Offer a client the document that `attest(key)` makes for the key of the connection: it must refuse it."""
    identity = Identity.fresh("service", now=MOMENT)
    service = Recorder(attest(identity.key))
    with serving(service, identity) as server, client(server, CAS, **options) as ours:
        for _ in range(2):
            with pytest.raises(error, match=match) as caught:
                ours.predict({"x": np.frombuffer(CANARY, np.uint8)})
            assert isinstance(caught.value, AttestationError)
    assert set(service.paths) == {ATTESTATION_PATH}
    assert CANARY not in service.bytes


def honest(key, **changes):
    return CAS.attest(key, MODELS, **changes)


def test_the_recorder_does_record_what_a_convinced_client_sends():
    """So that the absence of the canary above means something."""
    identity = Identity.fresh("service", now=MOMENT)
    service = Recorder(honest(identity.key))

    async def answering(scope, receive, send):
        if scope["path"] != "/v2/models/digits":
            return await service(scope, receive, send)
        body = b'{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1]}]}'
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": body})

    with (
        serving(answering, identity) as server,
        client(server, CAS) as ours,
        pytest.raises(FormatError, match="response"),
    ):
        ours.predict({"x": np.frombuffer(CANARY, np.uint8)})
    assert CANARY in service.bytes


def test_a_relayed_document_under_another_tls_key():
    other = SigningKey.generate()
    attempt(lambda key: honest(other), BindingError, match="which this connection showed")


def test_claims_edited_to_name_the_relays_key():
    def forge(key):
        document = honest(SigningKey.generate())
        claims = parse_canonical(document.claims) | {"spki": key.public.fingerprint}
        return replace(document, claims=canonical(claims))

    attempt(forge, BindingError, match="report data")


def test_a_relay_that_swaps_its_key_after_the_appraisal():
    """The appraisal convinces; the next connection leads to somebody else, who shows the same document."""
    identity = Identity.fresh("service", now=MOMENT)
    real, thief = Recorder(honest(identity.key)), Recorder(honest(identity.key))
    with serving(real, identity) as server, serving(thief) as second, client(server, CAS) as ours:
        ours.appraise()
        ours._port = second.port
        with pytest.raises(BindingError):
            ours.predict({"x": np.frombuffer(CANARY, np.uint8)})
    assert set(thief.paths) == {ATTESTATION_PATH}
    assert CANARY not in thief.bytes


def test_an_expired_result():
    attempt(lambda key: honest(key, now=NOW - 600), ExpiredError)


def test_a_fresh_result_over_a_time_token_that_had_expired():
    times = {"iat": NOW - 1300, "exp": NOW - 700}
    attempt(lambda key: honest(key, time=times), ExpiredError, match="time")


def test_a_result_given_before_its_time_token():
    times = {"iat": NOW + 500, "exp": NOW + 1100}
    attempt(lambda key: honest(key, time=times), ExpiredError, match="time")


def test_another_time_token_than_the_evidence_is_bound_to():
    def swap(key):
        return replace(honest(key), time_token=honest(key, time={"jti": "11"}).time_token)

    attempt(swap, BindingError, match="report data")


def test_a_service_of_another_policy():
    said = {"policy": "acme/other"}
    attempt(lambda key: honest(key, claims=said, result=said), BindingError, match="policy")


def test_a_result_for_another_policy():
    attempt(lambda key: honest(key, result={"policy": "acme/other"}), BindingError, match="got policy 'acme/other'")


def test_a_result_for_another_version_of_the_policy():
    other = {"policy_digest": "sha256:" + "00" * 32}
    attempt(lambda key: honest(key, result=other), BindingError, match="policy_digest")


def test_a_result_about_other_claims():
    def swap(key):
        return replace(honest(key), result=CAS.attest(key, {"digits": "sha256:" + "00" * 32}).result)

    attempt(swap, BindingError, match="attestation result: got claims")


def test_another_models_digest_in_the_claims():
    def forge(key):
        document = honest(key)
        claims = parse_canonical(document.claims) | {"models": {"digits": "sha256:" + "00" * 32}}
        return replace(document, claims=canonical(claims))

    attempt(forge, BindingError, match="report data")


def test_an_honest_service_of_another_model_than_the_client_pinned():
    attempt(honest, MeasurementError, match="model digits", model_digest="sha256:" + "00" * 32)


def test_session_evidence_as_service_evidence():
    attempt(lambda key: honest(key, kind=Kind.SESSION), BindingError, match="report data")


def test_another_program_with_a_result_that_says_ours():
    def lie(key):
        return honest(key, registers=EVIL_REGISTERS, result={"measurement": MEASUREMENT})

    attempt(lie, MeasurementError, match="measurement")


def test_a_result_about_another_enclave_than_the_evidence():
    attempt(lambda key: honest(key, result={"measurement": "ee" * 48}), MeasurementError, match="attestation result")
    attempt(lambda key: honest(key, result={"tee": "tdx"}), BindingError, match="got tee 'tdx'")
    other = {"vendor_root": "sha256:" + "00" * 32}
    attempt(lambda key: honest(key, result=other), SimulatedEnclaveError, match="attestation result")


def test_a_forged_cas_of_the_same_name():
    attempt(lambda key: OTHER_CAS.attest(key, MODELS), VerificationError, match="CAS root")
    attempt(lambda key: OTHER_CAS.attest(key, MODELS, claims={"cas_root": CAS.root}), VerificationError)


def test_a_forged_leaf_with_the_real_root_attached():
    def forge(key):
        chain = (OTHER_CAS.leaf, CAS.chain[1])
        return replace(OTHER_CAS.attest(key, MODELS, claims={"cas_root": CAS.root}), cas_chain=chain)

    attempt(forge, VerificationError, match="not issued by")


def test_tokens_signed_by_somebody_else_under_the_real_chain():
    def forge(key):
        return replace(OTHER_CAS.attest(key, MODELS, claims={"cas_root": CAS.root}), cas_chain=CAS.chain)

    attempt(forge, VerificationError, match="token header: wanted exactly alg ES256, kid")


def test_a_leaf_that_the_cas_issued_to_an_enclave():
    """Every enclave holds a certificate of the CAS's root; none of them may sign results."""
    enclave = Cas(CAS.authority, uris=(f"spiffe://strongroom/{POLICY}",))
    attempt(lambda key: enclave.attest(key, MODELS), VerificationError, match="CAS certificate")
    both = Cas(CAS.authority, uris=(f"spiffe://strongroom/{POLICY}", "spiffe://strongroom/cas"))
    attempt(lambda key: both.attest(key, MODELS), VerificationError, match="CAS certificate")


def test_a_time_token_as_a_result_and_a_result_as_a_time_token():
    attempt(lambda key: replace(honest(key), result=honest(key).time_token), VerificationError, match="typ")
    attempt(lambda key: replace(honest(key), time_token=honest(key).result), VerificationError, match="typ")


def test_claims_that_are_not_canonical():
    def forge(key):
        document = honest(key)
        return replace(document, claims=document.claims.replace(b":", b": ", 1))

    attempt(forge, AttestationError)


def test_simulated_evidence_under_default_reference_values():
    attempt(honest, SimulatedEnclaveError, reference=ReferenceValues(tees=("tdx",), measurements=(MEASUREMENT,)))
    attempt(honest, SimulatedEnclaveError, reference=reference(allow_simulated="sha256:" + "00" * 32))


def test_reference_values_that_accept_nothing():
    attempt(honest, MeasurementError, reference=reference(measurements=()))
    attempt(honest, TcbError, reference=reference(tcb_statuses=()))
    attempt(honest, AttestationError, reference=reference(tees=()))


@pytest.mark.parametrize("field", ["claims", "time_token", "result"])
def test_any_part_of_another_document(field):
    """Two honest documents of one service cannot be mixed."""

    def mix(key):
        old, new = honest(key, claims={"hpke": "00" * 32}), honest(key)
        return replace(new, **{field: getattr(old, field)})

    attempt(mix, BindingError)


def test_a_connection_that_is_replaced_between_two_requests():
    """The pin is checked in each handshake, so that a reconnect in the middle of a request is checked as well."""
    identity = Identity.fresh("service", now=MOMENT)
    thief = Recorder(honest(identity.key))
    with (
        serving(Recorder(honest(identity.key)), identity) as server,
        serving(thief) as second,
        client(server, CAS) as ours,
    ):
        http = ours._take(ours.appraise().key)
        http.connect()
        http.close()
        http._dial = lambda: socket.create_connection(("127.0.0.1", second.port))
        with pytest.raises(PeerIdentityError):
            http.request("POST", "/v2/models/digits/infer", body=CANARY)
    assert not thief.paths
