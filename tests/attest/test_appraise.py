from __future__ import annotations

from dataclasses import replace

import pytest

from strongroom.attest.appraise import AttestationResult, ReferenceValues, appraise
from strongroom.attest.claims import Claims
from strongroom.attest.verify.anchors import INTEL_ROOT, VENDORS
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    MeasurementError,
    PolicyError,
    SimulatedEnclaveError,
    TcbError,
    UsageError,
)

NOW = 1_750_000_000
GOOD, OTHER = "ab" * 48, "cd" * 48
VENDOR = "sha256:" + "12" * 32
DATA = b"d" * 64

CLAIMS = Claims(
    tee="tdx",
    measurement=GOOD,
    registers={},
    report_data=DATA,
    debug=False,
    tcb_status="UpToDate",
    advisories=(),
    vendor_root=INTEL_ROOT,
    hardware_id="",
)
SIMULATED = replace(CLAIMS, tee="simulated", vendor_root=VENDOR)
REFERENCE = ReferenceValues(tees=("tdx",), measurements=(OTHER, GOOD))
ALLOWING = ReferenceValues(tees=("tdx", "simulated"), measurements=(GOOD,), allow_simulated=VENDOR)


def judge(claims: Claims, reference: ReferenceValues = REFERENCE) -> AttestationResult:
    return appraise(claims, reference, expected_report_data=DATA, now=NOW)


def test_what_the_policy_wants_gives_a_result():
    result = judge(CLAIMS)
    assert (result.tee, result.measurement, result.vendor_root) == ("tdx", GOOD, INTEL_ROOT)
    assert (result.tcb_status, result.appraised_at) == ("UpToDate", NOW)
    assert judge(SIMULATED, ALLOWING).vendor_root == VENDOR


def test_a_result_comes_from_appraise_alone():
    with pytest.raises(TypeError, match="only appraise makes one"):
        AttestationResult("tdx", GOOD, INTEL_ROOT, "UpToDate", NOW)
    with pytest.raises(TypeError, match="only appraise makes one"):
        AttestationResult("tdx", GOOD, INTEL_ROOT, "UpToDate", NOW, object())


@pytest.mark.parametrize(
    ("claims", "reference", "error", "message"),
    [
        (SIMULATED, REFERENCE, SimulatedEnclaveError, f"got vendor root {VENDOR}, wanted no simulated enclave"),
        (
            replace(SIMULATED, vendor_root=INTEL_ROOT),
            ALLOWING,
            SimulatedEnclaveError,
            f"got vendor root {INTEL_ROOT}, wanted {VENDOR}",
        ),
        (replace(CLAIMS, debug=True), REFERENCE, DebugEnclaveError, "enclave: debug is on, wanted off"),
        (CLAIMS, replace(ALLOWING, tees=("simulated",)), AttestationError, "tee: got tdx, wanted simulated"),
        (SIMULATED, replace(ALLOWING, tees=("tdx",)), AttestationError, "tee: got simulated, wanted tdx"),
        (CLAIMS, replace(REFERENCE, tees=()), AttestationError, "tee: got tdx, wanted one, but the list is empty"),
        (replace(CLAIMS, vendor_root=VENDOR), ALLOWING, AttestationError, f"vendor root of tdx: got {VENDOR}, wanted"),
        (replace(CLAIMS, report_data=b"e" * 64), REFERENCE, BindingError, "report data: got 6565"),
        (replace(CLAIMS, report_data=b""), REFERENCE, BindingError, "report data: got "),
        (CLAIMS, replace(REFERENCE, measurements=(OTHER,)), MeasurementError, f"got {GOOD}, wanted {OTHER}"),
        (
            CLAIMS,
            replace(REFERENCE, measurements=()),
            MeasurementError,
            f"got {GOOD}, wanted one, but the",
        ),
        (replace(CLAIMS, tcb_status="OutOfDate"), REFERENCE, TcbError, "tcb status: got OutOfDate, wanted UpToDate"),
        (CLAIMS, replace(REFERENCE, tcb_statuses=()), TcbError, "tcb status: got UpToDate, wanted one, but"),
        (
            replace(CLAIMS, advisories=("INTEL-SA-1",)),
            REFERENCE,
            TcbError,
            "advisories: got INTEL-SA-1, wanted none",
        ),
    ],
)
def test_each_refusal_has_its_error(claims, reference, error, message):
    with pytest.raises(error) as caught:
        judge(claims, reference)
    assert type(caught.value) is error
    assert message in caught.value.message
    assert "\n" not in caught.value.message + (caught.value.hint or "")


def test_the_first_failure_is_the_one_raised():
    # Everything is wrong; mended one by one, the errors come in the order that the module's docstring promises.
    claims = replace(
        SIMULATED, debug=True, report_data=b"e" * 64, measurement=OTHER, tcb_status="Revoked", advisories=("SA",)
    )
    reference = ReferenceValues(tees=("tdx",), measurements=(GOOD,))
    mended = []
    for side, change in (
        (1, {"allow_simulated": VENDOR}),
        (0, {"debug": False}),
        (1, {"tees": ("simulated",)}),
        (0, {"report_data": DATA}),
        (0, {"measurement": GOOD}),
        (0, {"tcb_status": "UpToDate"}),
        (1, {"advisories_allowed": ("SA",)}),
    ):
        with pytest.raises(AttestationError) as caught:
            judge(claims, reference)
        mended.append(caught.value.code)
        if side:
            reference = replace(reference, **change)
        else:
            claims = replace(claims, **change)
    assert mended == ["simulated-enclave", "debug-enclave", "attestation", "binding", "measurement", "tcb", "tcb"]
    judge(claims, reference)


def test_weaker_platforms_are_accepted_by_name_only():
    claims = replace(CLAIMS, tcb_status="SWHardeningNeeded", advisories=("INTEL-SA-1", "INTEL-SA-2"))
    reference = replace(REFERENCE, tcb_statuses=("UpToDate", "SWHardeningNeeded"), advisories_allowed=("INTEL-SA-1",))
    with pytest.raises(TcbError, match="advisories: got INTEL-SA-2, wanted INTEL-SA-1"):
        judge(claims, reference)
    judge(claims, replace(reference, advisories_allowed=("INTEL-SA-1", "INTEL-SA-2")))


def test_the_hint_for_a_simulated_enclave_says_what_it_costs():
    with pytest.raises(SimulatedEnclaveError) as caught:
        judge(SIMULATED)
    assert f'allow_simulated = "{VENDOR}"' in caught.value.hint
    assert "protects nothing against the machine's owner" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allow_simulated": True}, 'allow_simulated: got True, wanted "sha256:" and 64 hexadecimal digits'),
        ({"allow_simulated": ""}, "allow_simulated: got ''"),
        ({"allow_simulated": "sha256:" + "AB" * 32}, "allow_simulated: got 'sha256:AB"),
        ({"allow_simulated": VENDOR + "\n"}, "allow_simulated: got 'sha256:12"),
        ({"measurements": GOOD}, "measurements: got 'abab"),
        ({"measurements": (GOOD.upper(),)}, "measurements: got 'ABAB"),
        ({"measurements": ("",)}, "measurements: got '', wanted 64, 96 or 128 lower-case hexadecimal digits"),
        ({"measurements": (None,)}, "measurements: got (None,), wanted a list of strings"),
        ({"tees": ("TDX",)}, "tees: got 'TDX', wanted some of sgx, tdx, snp"),
        ({"tcb_statuses": "UpToDate"}, "tcb_statuses: got 'UpToDate', wanted a list of strings"),
        ({"advisories_allowed": None}, "advisories_allowed: got None, wanted a list of strings"),
    ],
)
def test_reference_values_are_strict(change, message):
    with pytest.raises(PolicyError) as caught:
        ReferenceValues(**{"tees": ("tdx",), "measurements": (GOOD,)} | change)
    assert message in caught.value.message


def test_lists_from_a_document_become_tuples():
    assert ReferenceValues(tees=["tdx"], measurements=[GOOD]) == ReferenceValues(tees=("tdx",), measurements=(GOOD,))


@pytest.mark.parametrize("wrong", [b"", DATA[:32], DATA + b"x", "x" * 64, None])
def test_report_data_to_compare_with_is_64_bytes(wrong):
    """Else an enclave that was bound to nothing would do for a caller who forgot to say to what."""
    claims = replace(CLAIMS, report_data=wrong if isinstance(wrong, bytes) else DATA)
    with pytest.raises(UsageError, match=r"expected_report_data: got .*, wanted 64"):
        appraise(claims, REFERENCE, expected_report_data=wrong, now=NOW)


MILAN = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
SNP = Claims("snp", GOOD, {}, DATA, False, VENDORS.amd["Milan"].fingerprint, product="Milan", tcb=MILAN)


def snp(minimum: object, **more: object) -> ReferenceValues:
    return ReferenceValues(("snp",), (GOOD,), minimum_tcb={"snp": minimum} if minimum else {}, **more)


def test_versions_of_one_product_are_no_floor_for_another():
    genoa = replace(SNP, product="Genoa", tcb={**MILAN, "microcode": 72})
    both = snp({"Milan": MILAN, "Genoa": {**MILAN, "microcode": 72}})
    assert judge(SNP, both).tee == judge(genoa, both).tee == "snp"
    assert judge(SNP, snp(MILAN)).tee == "snp"
    with pytest.raises(TcbError, match="tcb microcode: got 72, wanted at least 115"):
        judge(replace(genoa, product="Milan"), both)
    for product in ("Genoa", "Turin", ""):
        with pytest.raises(TcbError, match=f"none for {product or 'an unknown product'} of snp, but for Milan"):
            judge(replace(SNP, product=product), snp({"Milan": MILAN}))
    with pytest.raises(TcbError, match="the policy has none of fmc, which Turin counts"):
        judge(replace(SNP, product="Turin", tcb={"fmc": 1, **MILAN}), snp(MILAN))
    with pytest.raises(TcbError, match="minimum tcb: the policy has none for snp"):
        judge(SNP, snp(None))


@pytest.mark.parametrize("revocation", ["checked", "none: no lists", "partly", "not checked", "none", ""])
def test_a_policy_may_require_that_revocation_was_checked(revocation):
    claims = replace(SNP, revocation=revocation)
    assert judge(claims, snp(MILAN)).tee == "snp"
    required = snp(MILAN, revocation_required=True)
    if revocation in ("checked", "none: no lists"):
        assert judge(claims, required).tee == "snp"
        return
    with pytest.raises(TcbError, match=f"revocation: got {revocation}, wanted every list") as refusal:
        judge(claims, required)
    assert "endorsements fetch" in (refusal.value.hint or "")


def test_a_result_says_what_the_policy_put_up_with():
    weak = replace(SNP, weaknesses=("vmpl",), migratable=True, advisories=("AMD-SB-1",))
    allowing = snp(MILAN, weaknesses_allowed=("vmpl", "migratable"), advisories_allowed=("AMD-SB-1",))
    result = judge(weak, allowing)
    assert (result.weaknesses, result.advisories) == (("vmpl", "migratable"), ("AMD-SB-1",))
