"""Appraisal goes on after its first failure for whoever wants to see all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strongroom.attest.appraise import Step, appraise, steps
from strongroom.attest.binding import bound_data
from strongroom.attest.claims import Claims
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify.anchors import VENDORS
from strongroom.errors import AttestationError, BindingError, ExpiredError

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
    product="Milan",
    tcb={"bootloader": 4, "tee": 0, "snp": 22, "microcode": 213},
)
GPU = Claims(
    tee="nvidia",
    measurement=OTHER,
    registers={"block1": "11" * 48},
    report_data=bound_data("nvidia", DATA),
    debug=False,
    vendor_root=VENDORS.nvidia.fingerprint,
)
FLOOR = {"bootloader": 3, "tee": 0, "snp": 20, "microcode": 200}
MINIMUM = {"snp": FLOOR}
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
    reference = ReferenceValues(("tdx",), (GOOD,), hardware_ids=("11" * 16,), maximum_age=60)
    refused = [step for step in judged(bad, reference) if step.error]
    assert [(step.number, step.name) for step in refused] == [
        (2, "debug"),
        (2, "weaknesses"),
        (3, "tee"),
        (4, "report data"),
        (5, "measurement"),
        (6, "minimum tcb"),
        (7, "hardware id"),
        (8, "age"),
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
    assert told["age"] == ("no date", "any")


def test_what_is_not_told_is_none_of_the_values_wanted():
    reference = replace(WANTED, registers={"host_data": ("00" * 32,)}, hardware_ids=("11" * 64,))
    refused = {step.name: step.got for step in judged(SNP, reference) if step.error}
    assert refused == {"register host_data": "none", "hardware id": "none"}


def test_evidence_without_a_date_is_refused_where_its_age_is_asked_for():
    (step,) = [step for step in judged(SNP, replace(WANTED, maximum_age=60)) if step.error]
    assert (step.number, step.got) == (8, "no date")
    with pytest.raises(ExpiredError, match="age: not told, wanted at most 60 s") as refusal:
        appraise(SNP, replace(WANTED, maximum_age=60), expected_report_data=DATA, now=NOW)
    assert "snp bears no date" in (refusal.value.hint or "")


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (bytes(64), "got 00000000000000000000000000000000..., wanted 000102"),
        (DATA[:-1] + b"\0", "differ from byte 63 on"),
        (
            DATA[:32],
            "of 32 bytes, wanted ...202122232425262728292a2b2c2d2e2f... of 64 bytes, which differ from byte 32",
        ),
        (b"", "got none of 0 bytes, wanted 000102030405060708090a0b0c0d0e0f... of 64 bytes"),
    ],
)
def test_two_report_data_are_shown_where_they_differ(got, says):
    (step,) = [step for step in judged(replace(SNP, report_data=got), WANTED) if step.error]
    assert step.error is not None
    assert says in step.error.message
    assert (step.got, step.wanted) == (got.hex() or "none", DATA.hex())


@pytest.mark.parametrize(
    ("claims", "reference", "hint"),
    [
        (replace(SNP, tcb={"snp": 1, "microcode": 213}), WANTED, "update the platform's firmware"),
        (replace(SNP, tcb={"snp": 22}), WANTED, "this evidence does not tell it; it tells snp"),
        (SNP, replace(WANTED, signers=("00" * 48,)), "add it to the policy's signers"),
        (replace(SNP, signer=""), replace(WANTED, signers=("00" * 48,)), "nobody signed what was loaded"),
        (SNP, replace(WANTED, hardware_ids=("00" * 64,)), "this evidence does not tell its processor"),
        (replace(SNP, tee="azure-tdx"), ReferenceValues(("azure-tdx",), (GOOD,)), "--endorsements"),
        (replace(SNP, tee="tpm"), ReferenceValues(("tpm",), (GOOD,)), "tpm_roots"),
        (SNP, WITH_GPU, "show a device's evidence"),
    ],
)
def test_the_hint_says_what_mends_it(claims, reference, hint):
    hints = [step.error.hint or "" for step in judged(claims, reference) if step.error]
    assert any(hint in each for each in hints), hints
