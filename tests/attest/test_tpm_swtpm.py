"""A TPM in software from end to end: enrol, activate, quote, appraise."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.attester import Attester
from strongroom.attest.claims import Claims, pcrs_measurement
from strongroom.attest.enrolment import Challenge, EnrolledKey, EnrolmentRequest, begin_enrolment
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.event_log import parse_event_log
from strongroom.attest.parse.tpm import parse_tpm
from strongroom.attest.tee.here import here
from strongroom.attest.tee.tpm import BOOT_PCRS, Tpm, TpmAttester, read_event_log
from strongroom.attest.verify import VENDORS, verify
from strongroom.errors import (
    BindingError,
    EnclaveError,
    FormatError,
    MeasurementError,
    UnsupportedPlatformError,
    UsageError,
    VerificationError,
)
from strongroom.testing.attesters import FakeMachine
from strongroom.testing.event_log import FirmwareLog
from strongroom.testing.swtpm import SoftwareTpm, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=f"{lacking()} is not installed: `make setup` says how")
REPORT_DATA = bytes(range(64))


@pytest.fixture(scope="module")
def maker(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("maker")


@pytest.fixture(scope="module")
def swtpm(maker):
    with SoftwareTpm.start(maker) as running:
        yield running


@pytest.fixture
def now(swtpm) -> int:
    return int(time.time())  # its certificates were made just now


@pytest.fixture
def tpm(swtpm):
    with Tpm.open(swtpm.tcti) as opened:
        yield opened


@pytest.fixture(scope="module")
def enrolled(swtpm) -> EnrolledKey:
    with Tpm.open(swtpm.tcti) as tpm:
        return enrol(swtpm, tpm, int(time.time()))


def enrol(swtpm: SoftwareTpm, tpm: Tpm, now: int) -> EnrolledKey:
    """Both sides, with what goes between them as bytes."""
    request = EnrolmentRequest.from_bytes(tpm.enrolment_request((swtpm.issuer,)).to_bytes())
    pending = begin_enrolment(request, (swtpm.root,), now=now)
    return pending.finish(tpm.answer(Challenge.from_bytes(pending.challenge.to_bytes())))


def claims_of(evidence: Evidence, enrolled: EnrolledKey, now: int) -> Claims:
    evidence = Evidence.from_wire(evidence.to_wire())
    return verify(evidence, now=now, anchors=dataclasses.replace(VENDORS, tpm_keys=(enrolled.key,)))


def test_enrol_activate_quote_appraise(swtpm, tpm, enrolled, now):
    attester: Attester = TpmAttester(tpm)
    claims = claims_of(attester.evidence(REPORT_DATA), enrolled, now)
    wanted = pcrs_measurement("sha256", tpm.pcrs("sha256", BOOT_PCRS))
    reference = ReferenceValues(("tpm",), (wanted,), tpm_roots=(enrolled.key.fingerprint,))
    result = appraise(claims, reference, expected_report_data=REPORT_DATA, now=now)
    assert (result.tee, result.measurement) == ("tpm", wanted)
    assert claims.attributes["hierarchy"] == "endorsement"
    assert enrolled.ek_root == swtpm.root.fingerprint
    # Evidence for one nonce is none for another.
    with pytest.raises(BindingError):
        appraise(claims, reference, expected_report_data=bytes(64), now=now)


@pytest.mark.parametrize("kind", ["EK-RSA2048", "EK-HIGH-ECC384"])
def test_every_endorsement_key_with_a_certificate_enrols(swtpm, enrolled, now, kind):
    with Tpm.open(swtpm.tcti, kinds=(kind,)) as tpm:
        assert enrol(swtpm, tpm, now).key == enrolled.key


def test_an_endorsement_key_without_a_certificate_needs_one(swtpm):
    for kind, error in (("EK-ECC256", UnsupportedPlatformError), ("EK-HIGH-RSA2048", EnclaveError)):
        with Tpm.open(swtpm.tcti, kinds=(kind,)) as tpm, pytest.raises(error, match="certificate"):
            tpm.enrolment_request()


def test_another_tpm_of_the_same_maker_cannot_answer(swtpm, maker, tpm, enrolled):
    with SoftwareTpm.start(maker, state=maker / "other") as running, Tpm.open(running.tcti) as other:
        now = int(time.time())  # after its certificates were made
        # Its own endorsement key, and the attestation key of the first.
        request = dataclasses.replace(other.enrolment_request((running.issuer,)), ak_public=tpm.ak_public())
        challenge = begin_enrolment(request, (swtpm.root,), now=now).challenge
        for each in (tpm, other):
            with pytest.raises(EnclaveError, match="tpm: cannot activate the credential"):
                each.answer(challenge)
        # And its quotes are nobody's.
        with pytest.raises(VerificationError, match="not enrolled"):
            claims_of(TpmAttester(other).evidence(REPORT_DATA), enrolled, now)


def test_a_register_that_was_reset_is_measured_as_such(tpm, enrolled, now):
    attester = TpmAttester(tpm, pcrs=(4, 16))
    tpm.extend(16, hashlib.sha256(b"a program").digest())
    before = claims_of(attester.evidence(REPORT_DATA), enrolled, now)
    tpm._esapi.pcr_reset(tpm._library.ESYS_TR.PCR16)
    after = claims_of(attester.evidence(REPORT_DATA), enrolled, now)
    assert after.registers["pcr16"] == "00" * 32
    reference = ReferenceValues(("tpm",), (before.measurement,), tpm_roots=(enrolled.key.fingerprint,))
    appraise(before, reference, expected_report_data=REPORT_DATA, now=now)
    with pytest.raises(MeasurementError):
        appraise(after, reference, expected_report_data=REPORT_DATA, now=now)


def test_the_event_log_is_shown_while_it_replays(tpm, enrolled, now):
    log = FirmwareLog(("sha256",))
    log.measure(11, 0xD, b"a kernel")
    raw = log.to_bytes()
    for event in parse_event_log(raw):
        tpm.extend(event.pcr, event.digests["sha256"])
    attester = TpmAttester(tpm, pcrs=(0, 11), event_log=raw)
    evidence = attester.evidence(REPORT_DATA)
    assert claims_of(evidence, enrolled, now).attributes["event000"] == "pcr11 EV_IPL a kernel"
    # One that the firmware did not write is refused.
    other = FirmwareLog(("sha256",))
    other.measure(11, 0xD, b"another kernel")
    tampered = dataclasses.replace(parse_tpm(evidence.quote), event_log=other.to_bytes())
    with pytest.raises(VerificationError, match="event log: replays pcr 11"):
        claims_of(dataclasses.replace(evidence, quote=tampered.to_bytes()), enrolled, now)
    # Something that nobody logged: the log is left out, the register says so.
    tpm.extend(11, bytes(32))
    assert "events" not in claims_of(attester.evidence(REPORT_DATA), enrolled, now).attributes


def test_the_attestation_key_is_the_same_after_a_power_cycle(maker):
    resets = []
    for _ in range(2):
        with SoftwareTpm.start(maker, state=maker / "other") as running, Tpm.open(running.tcti) as tpm:
            now = int(time.time())
            if not resets:
                enrolled = enrol(running, tpm, now)
            claims = claims_of(TpmAttester(tpm).evidence(REPORT_DATA), enrolled, now)
            resets.append(claims.attributes["reset_count"])
    assert resets[1] == resets[0] + 1


def test_what_cannot_be_asked_for(tpm, swtpm, tmp_path, monkeypatch):
    with pytest.raises(UnsupportedPlatformError, match="tpm: has no bank sha1"):
        TpmAttester(tpm, bank="sha1").evidence(REPORT_DATA)
    with pytest.raises(UsageError, match="report data: 32 bytes"):
        TpmAttester(tpm).evidence(bytes(32))
    with pytest.raises(UsageError, match="pcrs: got"):
        TpmAttester(tpm, pcrs=()).evidence(REPORT_DATA)
    monkeypatch.setenv("STRONGROOM_TPM", f"swtpm:path={tmp_path / 'nothing'}")
    with pytest.raises(UnsupportedPlatformError, match="tpm: cannot open swtpm:path="):
        Tpm.open()
    monkeypatch.setenv("STRONGROOM_TPM", str(tmp_path / "nothing"))
    with pytest.raises(UnsupportedPlatformError, match="tpm: cannot open device:"):
        Tpm.open()
    monkeypatch.setenv("STRONGROOM_TPM", swtpm.tcti)
    with Tpm.open() as opened:
        assert opened.ak_public() == tpm.ak_public()


def test_an_event_log_that_cannot_be_read(tmp_path):
    for content in (None, b"", bytes(200_000)):
        path = tmp_path / "log"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UnsupportedPlatformError, match="event log"):
            read_event_log(path)


def test_certificates_go_with_the_evidence(tpm, swtpm, enrolled, now):
    # As an authority that certified the attestation key would be shown.
    endorsements = Endorsements(tpm.enrolment_request((swtpm.issuer,)).endorsements.certificates)
    evidence = TpmAttester(tpm, endorsements).evidence(REPORT_DATA)
    anchors = dataclasses.replace(VENDORS, tpm=(swtpm.root,))
    with pytest.raises(VerificationError, match="the certificate shown is for another key"):
        verify(evidence, now=now, anchors=anchors)
    with pytest.raises(FormatError):
        verify(dataclasses.replace(evidence, endorsements=b"{"), now=now, anchors=anchors)


def test_evidence_of_here_leaves_nothing_in_the_tpm(swtpm, enrolled, now, monkeypatch):
    monkeypatch.setenv("STRONGROOM_TPM", swtpm.tcti)
    for _ in range(5):  # there is room for three keys
        claims = claims_of(here(system=FakeMachine()).evidence(REPORT_DATA), enrolled, now)
    assert claims.report_data == hashlib.sha256(REPORT_DATA).digest()


def test_a_software_tpm_ends_with_a_process_that_is_killed(maker):
    code = (
        "import sys; from pathlib import Path; from strongroom.testing.swtpm import SoftwareTpm\n"
        "maker = Path(sys.argv[1]); swtpm = SoftwareTpm.start(maker, state=maker / 'other')\n"
        "print(swtpm.tcti, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(maker)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        path = Path(child.stdout.readline().strip().removeprefix("swtpm:path="))
        with pytest.raises(EnclaveError, match=r"swtpm ends at once, exit status 1: .*lock") as refusal:
            SoftwareTpm.start(maker, state=maker / "other")
        assert "another swtpm runs on" in (refusal.value.hint or "")
        with socket.socket(socket.AF_UNIX) as watching:
            watching.settimeout(60)
            watching.connect(f"{path}.ctrl")
            child.kill()
            with contextlib.suppress(ConnectionResetError):
                assert watching.recv(1) == b""
    shutil.rmtree(path.parent)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRONGROOM_TPM", "set by the page")
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "tpm.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 8
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, "docs/how-to/tpm.md", "exec"), names)  # noqa: S102
    finally:
        swtpm = names.get("swtpm")
        if isinstance(swtpm, SoftwareTpm):
            swtpm.stop()
    assert len(re.findall("^sha256:[0-9a-f]{64}$", capsys.readouterr().out, re.MULTILINE)) == 2


def test_it_is_shown_by_a_process_that_has_loaded_tensorflow(swtpm):
    """Which loads another cryptographic library under the names that tpm2-tss calls."""
    if find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    source = """
import sys
import tensorflow
from strongroom.attest.tee.tpm import Tpm, TpmAttester
with Tpm.open(sys.argv[1]) as tpm:
    print(TpmAttester(tpm).evidence(bytes(64)).tee)
"""
    done = subprocess.run([sys.executable, "-c", source, swtpm.tcti], capture_output=True, text=True)
    assert done.stdout == "tpm\n", done.stderr[-2000:]
