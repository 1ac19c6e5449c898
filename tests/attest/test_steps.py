"""Appraisal goes on after its first failure for whoever wants to see all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strongroom.attest.appraise import Step, appraise, steps
from strongroom.attest.binding import bound_data
from strongroom.attest.claims import Claims
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify.anchors import VENDORS
from strongroom.errors import AttestationError, BindingError

NOW = 1_750_000_000
DATA = bytes(range(64))
GOOD, OTHER = "ab" * 48, "cd" * 48

SNP = Claims(
    tee="snp",
    measurement=GOOD,
    registers={},
    report_data=DATA,
    debug=False,
    vendor_root=VENDORS.amd["Milan"].fingerprint,
    signer="ef" * 48,
    tcb={"snp": 22, "microcode": 213},
)
GPU = Claims(
    tee="nvidia",
    measurement=OTHER,
    registers={"block1": "11" * 48},
    report_data=bound_data("nvidia", DATA),
    debug=False,
    vendor_root=VENDORS.nvidia.fingerprint,
)
MINIMUM = {"snp": {"snp": 20, "microcode": 200}}
WANTED = ReferenceValues(("snp",), (GOOD,), minimum_tcb=MINIMUM)
WITH_GPU = replace(WANTED, devices=ReferenceValues(("nvidia",), (OTHER,)))


def judged(claims: Claims, reference: ReferenceValues, data: bytes | None = DATA) -> list[Step]:
    def expected(each: Claims) -> bytes | None:
        return None if data is None else bound_data(each.tee, data)

    return list(steps(claims, reference, expected=expected, now=NOW))


def test_all_hold_exactly_where_appraise_accepts():
    assert all(step.error is None for step in judged(SNP, WANTED))
    assert appraise(SNP, WANTED, expected_report_data=DATA, now=NOW).measurement == GOOD
    together = replace(SNP, devices=(GPU,))
    assert all(step.error is None for step in judged(together, WITH_GPU))
    assert {step.device for step in judged(together, WITH_GPU)} == {None, 0}


def test_every_failure_is_there_and_the_first_is_the_one_raised():
    bad = replace(SNP, debug=True, measurement=OTHER, report_data=bytes(64), migratable=True, devices=(GPU,))
    reference = ReferenceValues(("tdx",), (GOOD,), signers=("00" * 48,), hardware_ids=("11" * 64,), maximum_age=60)
    refused = [step for step in judged(bad, reference) if step.error]
    assert [(step.number, step.name) for step in refused] == [
        (2, "debug"),
        (2, "weaknesses"),
        (3, "tee"),
        (4, "report data"),
        (5, "measurement"),
        (5, "signer"),
        (6, "minimum tcb"),
        (7, "hardware id"),
        (9, "devices"),
    ]
    with pytest.raises(AttestationError) as first:
        appraise(bad, reference, expected_report_data=DATA, now=NOW)
    assert refused[0].error is not None
    assert (type(first.value), first.value.message) == (type(refused[0].error), refused[0].error.message)


def test_nothing_to_compare_report_data_with_refuses():
    (step,) = [step for step in judged(SNP, WANTED, None) if step.error]
    assert step.number == 4
    assert isinstance(step.error, BindingError)
    assert "nothing to compare with" in step.error.message


def test_a_step_says_what_it_got_and_wanted():
    told = {step.name: (step.got, step.wanted) for step in judged(replace(SNP, tcb={"snp": 1}), WANTED)}
    assert told["tcb snp"] == ("1", "at least 20")
    assert told["tcb microcode"] == ("none", "at least 200")
    assert told["signer"] == (SNP.signer, "any")
    assert told["age"] == ("not told", "any")


def test_what_is_not_told_is_none_of_the_values_wanted():
    reference = replace(WANTED, registers={"pcr0": ("00",)}, hardware_ids=("11" * 64,))
    refused = {step.name: step.got for step in judged(SNP, reference) if step.error}
    assert refused == {"register pcr0": "none", "hardware id": "none"}
