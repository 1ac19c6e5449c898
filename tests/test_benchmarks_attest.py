"""The benchmark of attestation measures what it says: real reports appraised, and an exchange with another process."""

from __future__ import annotations

import pytest

from benchmarks import attest
from strongroom.attest.appraise import AttestationResult
from strongroom.cas.client.enclave import Provisions


@pytest.mark.parametrize(("load", "tee"), [(attest._snp, "snp"), (attest._tdx, "tdx")])
def test_a_real_report_becomes_a_result(load, tee):
    result = attest._appraisal(*load())()
    assert isinstance(result, AttestationResult)
    assert result.tee == tee


def test_a_client_s_exchange_ends_with_a_result():
    with attest._client_exchange() as exchange:
        assert isinstance(exchange(), AttestationResult)


def test_the_exchange_ends_with_what_the_policy_gives():
    with attest._exchange() as exchange:
        for _ in range(2):
            received = exchange()
            assert isinstance(received, Provisions)
            assert set(received.environment) == {"SEED"}
