"""A client compares the devices of its own session with those of the service's document."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from strongroom.attest.appraise import appraise
from strongroom.attest.binding import Kind, canonical, report_data
from strongroom.attest.claims import registers_measurement
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify import verify
from strongroom.errors import MeasurementError
from strongroom.serve.attestation import AppraisedService, appraise_session, session_claims
from strongroom.testing.nvidia import SimulatedNvidia
from tests.serve.world import NOW, REGISTERS_OF_OURS, reference, vendor

CLAIMS = canonical({"role": "service"})
NONCE, BINDER = b"n" * 32, b"b" * 32
BOUND = report_data(Kind.SESSION, fresh=NONCE, binder=BINDER, claims=canonical(session_claims(CLAIMS)))


@pytest.mark.parametrize("wait", [0, 1, 599])
def test_a_session_with_a_gpu_need_not_fall_into_the_second_of_the_document(wait):
    maker = SimulatedNvidia(now=NOW)
    gpu, other = maker.gpu(), maker.gpu(blocks={1: b"x" * 48})
    measurements = (gpu.measurement, other.measurement)
    devices = ReferenceValues(("nvidia",), measurements, allow_simulated=maker.root.fingerprint)
    wanted = reference(measurements=(registers_measurement(REGISTERS_OF_OURS),), devices=devices)

    def shown(bound, device):
        return replace(vendor().quote(REGISTERS_OF_OURS, bound), devices=(device.quote(bound),))

    claims = verify(shown(bytes(64), gpu), now=NOW, anchors=wanted.anchors)
    first = appraise(claims, wanted, expected_report_data=bytes(64), now=NOW)
    service = AppraisedService("k", NOW + 600, {}, "p", "d", first)
    said = {"nonce": NONCE, "binder": BINDER, "reference": wanted, "now": NOW + wait}
    session = appraise_session(service, SimpleNamespace(claims=CLAIMS), shown(BOUND, gpu), **said).session
    assert session is not None and session.appraised_at == NOW + wait
    with pytest.raises(MeasurementError, match="session evidence: got devices"):
        appraise_session(service, SimpleNamespace(claims=CLAIMS), shown(BOUND, other), **said)
