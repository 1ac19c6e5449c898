"""A CPU's and a GPU's evidence together, under one nonce."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strongroom.attest.appraise import AttestationResult, ReferenceValues, appraise
from strongroom.attest.binding import bound_data
from strongroom.attest.claims import Claims, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.verify import VENDORS, verify
from strongroom.cas.policy.reference import reference_values
from strongroom.cas.policy.table import Table
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    FormatError,
    MeasurementError,
    PolicyError,
    SimulatedEnclaveError,
    VerificationError,
)
from strongroom.testing.nvidia import SimulatedGpu, SimulatedNvidia

NOW = 1_750_000_000
DATA, EARLIER = b"d" * 64, b"e" * 64


@pytest.fixture(scope="module")
def maker() -> SimulatedNvidia:
    return SimulatedNvidia(now=NOW)


@pytest.fixture(scope="module")
def gpu(maker) -> SimulatedGpu:
    return maker.gpu()


@pytest.fixture
def cpu(vendor, registers) -> Evidence:
    return vendor.quote(registers, DATA)


@pytest.fixture
def reference(vendor, registers, maker, gpu) -> ReferenceValues:
    devices = ReferenceValues(tees=("nvidia",), measurements=(gpu.measurement,), allow_simulated=maker.root.fingerprint)
    return ReferenceValues(
        tees=("simulated",),
        measurements=(registers_measurement(registers),),
        allow_simulated=vendor.root_digest,
        devices=devices,
    )


@pytest.fixture
def judge(maker, reference):
    """Verify and appraise, under the root of the simulated GPUs, which the policy names."""

    def run(evidence: Evidence, wanted: ReferenceValues = reference, **changes: object) -> AttestationResult:
        claims = verify(evidence, now=NOW, anchors=reference.anchors)
        devices = tuple(replace(each, **changes) for each in claims.devices)
        return appraise(replace(claims, devices=devices), wanted, expected_report_data=DATA, now=NOW)

    return run


def test_both_under_one_nonce_are_accepted(cpu, gpu, maker, judge):
    other = maker.gpu(serial="fedcba9876543210")
    result = judge(replace(cpu, devices=(gpu.quote(DATA), other.quote(DATA))))
    assert [each.measurement for each in result.devices] == [gpu.measurement, other.measurement]


def test_devices_travel_with_the_evidence(cpu, gpu, judge):
    evidence = replace(cpu, devices=(gpu.quote(DATA),))
    assert judge(Evidence.from_wire(evidence.to_wire())).devices[0].measurement == gpu.measurement


@pytest.mark.parametrize("nonce", [bytes(32), DATA[:32], bound_data("nvidia", EARLIER), bound_data("tpm", DATA)])
def test_a_gpu_under_another_nonce_is_refused(cpu, gpu, judge, nonce):
    """Zero, the report data itself, that of an earlier session, and that of another kind of evidence."""
    with pytest.raises(BindingError):
        judge(replace(cpu, devices=(gpu.answer(nonce),)))


def test_one_replayed_gpu_among_good_ones_is_refused(cpu, gpu, maker, judge):
    with pytest.raises(BindingError):
        judge(replace(cpu, devices=(gpu.quote(DATA), maker.gpu(serial="fedcba9876543210").quote(EARLIER))))


def test_a_good_gpu_does_not_help_a_replayed_cpu(vendor, registers, gpu, judge):
    with pytest.raises(BindingError):
        judge(replace(vendor.quote(registers, EARLIER), devices=(gpu.quote(DATA),)))


def test_a_missing_gpu_is_refused(cpu, judge):
    with pytest.raises(AttestationError, match="devices: got none, wanted nvidia"):
        judge(cpu)


def test_an_unwanted_gpu_is_refused(cpu, gpu, judge, reference):
    with pytest.raises(AttestationError, match="devices: got 1, wanted none"):
        judge(replace(cpu, devices=(gpu.quote(DATA),)), replace(reference, devices=None))


def test_a_debugged_or_weak_gpu_is_refused(cpu, gpu, judge):
    evidence = replace(cpu, devices=(gpu.quote(DATA),))
    with pytest.raises(DebugEnclaveError):
        judge(evidence, debug=True)
    with pytest.raises(AttestationError, match="weaknesses: got firmware"):
        judge(evidence, weaknesses=("firmware",))


def test_a_gpu_with_other_firmware_is_refused(cpu, maker, judge, reference, gpu):
    other = maker.gpu(blocks={**gpu.blocks, 2: b"x" * 48})
    with pytest.raises(MeasurementError, match="measurement"):
        judge(replace(cpu, devices=(other.quote(DATA),)))
    wanted = replace(reference.devices, registers={"block2": ("ab" * 48,)})
    with pytest.raises(MeasurementError, match="register block2"):
        judge(replace(cpu, devices=(gpu.quote(DATA),)), replace(reference, devices=wanted))


def test_a_gpu_that_the_policy_does_not_list_is_refused(cpu, gpu, judge, reference):
    wanted = replace(reference.devices, hardware_ids=("fedcba9876543210",))
    with pytest.raises(AttestationError, match="hardware id: got 0123456789abcdef"):
        judge(replace(cpu, devices=(gpu.quote(DATA),)), replace(reference, devices=wanted))


def test_a_simulated_gpu_needs_its_root_in_the_policy(cpu, gpu, judge, reference, vendor):
    evidence = replace(cpu, devices=(gpu.quote(DATA),))
    for allowed, message in (
        (None, "wanted no simulated device"),
        (vendor.root_digest, f"wanted {vendor.root_digest}"),
    ):
        devices = replace(reference.devices, allow_simulated=allowed)
        with pytest.raises(SimulatedEnclaveError, match=f"simulated device: got vendor root .*, {message}"):
            judge(evidence, replace(reference, devices=devices))


def test_a_simulated_gpu_never_verifies_as_nvidias(cpu, gpu):
    with pytest.raises(VerificationError):
        verify(replace(cpu, devices=(gpu.quote(DATA),)), now=NOW)


def test_the_root_of_simulated_gpus_vouches_for_no_enclave(cpu, gpu, reference, maker):
    """A device's root in `devices.allow_simulated` says nothing about the enclave, nor the enclave's about devices."""
    claims = verify(replace(cpu, devices=(gpu.quote(DATA),)), now=NOW, anchors=replace(VENDORS, nvidia=maker.root))
    for other in (
        replace(claims, vendor_root=maker.root.fingerprint),
        replace(claims, tee="tdx", vendor_root=reference.allow_simulated),
        replace(claims, devices=(replace(claims.devices[0], vendor_root=claims.vendor_root),)),
        replace(claims, devices=(replace(claims, devices=()),)),
    ):
        with pytest.raises(AttestationError):
            appraise(
                other,
                replace(reference, tees=("simulated", "tdx")),
                expected_report_data=DATA,
                now=NOW,
            )


def test_a_broken_device_refuses_the_whole(cpu, gpu, judge):
    quote = gpu.quote(DATA)
    for broken in (
        replace(quote, quote=quote.quote[:-1] + bytes([quote.quote[-1] ^ 1])),
        replace(quote, endorsements=b""),
    ):
        with pytest.raises((VerificationError, FormatError)):
            judge(replace(cpu, devices=(quote, broken)))


def test_devices_of_a_policy_are_devices(reference):
    for tees in (("tdx",), (), ("nvidia", "simulated")):
        with pytest.raises(PolicyError, match=r"tees: got"):
            replace(reference, devices=ReferenceValues(tees=tees, measurements=()))


def test_real_silicon_needs_no_line_about_simulation(cpu, gpu, reference, maker):
    """Claims as of a real GPU: only the root differs."""
    claims = verify(replace(cpu, devices=(gpu.quote(DATA),)), now=NOW, anchors=replace(VENDORS, nvidia=maker.root))
    real: Claims = replace(claims.devices[0], vendor_root=VENDORS.nvidia.fingerprint)
    wanted = replace(reference, devices=replace(reference.devices, allow_simulated=None))
    result = appraise(replace(claims, devices=(real,)), wanted, expected_report_data=DATA, now=NOW)
    assert [each.measurement for each in result.devices] == [gpu.measurement]


def test_a_policy_names_the_root_of_simulated_gpus_by_digest(gpu, maker):
    table = {
        "tees": ["tdx"],
        "measurements": ["ab" * 48],
        "devices": {"tees": ["nvidia"], "measurements": [gpu.measurement], "allow_simulated": maker.root.fingerprint},
    }
    read = reference_values(Table(table, "reference"))
    assert read.devices is not None and read.devices.allow_simulated == maker.root.fingerprint
    assert read.allow_simulated is None
    for wrong in (True, "sha256:00", "any"):
        changed = table | {"devices": table["devices"] | {"allow_simulated": wrong}}
        with pytest.raises(PolicyError, match=r"reference\.devices\.allow_simulated"):
            reference_values(Table(changed, "reference"))


def test_one_gpu_shown_twice_is_not_two(cpu, gpu, judge):
    with pytest.raises(VerificationError, match="wanted different ones"):
        judge(replace(cpu, devices=(gpu.quote(DATA), gpu.quote(DATA))))


def test_a_policy_may_say_how_many_devices_there_are(cpu, gpu, maker, judge, reference):
    evidence = replace(cpu, devices=(gpu.quote(DATA), maker.gpu(serial="fedcba9876543210").quote(DATA)))
    for count in (2, None):
        assert len(judge(evidence, replace(reference, devices=replace(reference.devices, count=count))).devices) == 2
    for count in (1, 3):
        with pytest.raises(AttestationError, match=f"devices: got 2, wanted {count}"):
            judge(evidence, replace(reference, devices=replace(reference.devices, count=count)))


def test_a_device_by_itself_is_no_enclave(gpu, maker, reference):
    claims = verify(gpu.quote(DATA), now=NOW, anchors=reference.anchors)
    for wanted in (reference, reference.devices):
        with pytest.raises(AttestationError):
            appraise(claims, wanted, expected_report_data=DATA, now=NOW)
    with pytest.raises(AttestationError, match="nvidia evidence: a device by itself, wanted an enclave"):
        appraise(claims, reference.devices, expected_report_data=DATA, now=NOW)


def test_two_appraisals_of_the_same_devices_are_equal_whenever_they_were_made(cpu, gpu, reference):
    """A client compares those of a service's document with those of its own session."""
    claims = verify(replace(cpu, devices=(gpu.quote(DATA),)), now=NOW, anchors=reference.anchors)
    first, later = (appraise(claims, reference, expected_report_data=DATA, now=NOW + wait) for wait in (0, 1))
    assert (first.devices, first) == (later.devices, later)
    assert later.devices[0].appraised_at == NOW + 1
