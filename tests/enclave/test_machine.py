"""Programs on a machine that is one TEE: measured boot with a TPM, and a trust domain, each up to the CAS."""

from __future__ import annotations

import os
import struct
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.appraise import AttestationResult, appraise
from strongroom.attest.attester import Attester
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.event_log import parse_event_log
from strongroom.attest.parse.launched import PROGRAM_PCR
from strongroom.attest.parse.tpm import parse_tpm
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.tee.tpm import Tpm
from strongroom.attest.verify import verify
from strongroom.cas.policy.version import parse_reference
from strongroom.cli.run import evidence as run_evidence
from strongroom.enclave.digests import Digests
from strongroom.enclave.directories import directory_in_memory
from strongroom.enclave.image import ImageCache
from strongroom.enclave.machine.find import find_machine
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.machine.tpm import TpmMachine
from strongroom.enclave.machine.trust_domain import TrustDomain
from strongroom.enclave.measure import KNOWN, Measurement, measure
from strongroom.errors import (
    BindingError,
    EnclaveError,
    MeasurementError,
    TamperedError,
    UnsupportedPlatformError,
    UsageError,
    VerificationError,
)
from strongroom.testing.measured_boot import BootedTpm, pc_firmware
from strongroom.testing.swtpm import lacking
from strongroom.testing.trust_domain import FakeTrustDomain
from tests.attest.test_launched import ASKED, OTHER, TRAIN, firmware
from tests.enclave.conftest import DATA
from tests.enclave.images import Layout, commands, member, tar

needs_tpm = pytest.mark.skipif(lacking() is not None, reason=f"{lacking()} is not installed: `make setup` says how")
PROGRAM = "import os, sys; print(open('/data/patients').read(), *map(os.path.exists, sys.argv[1:]))"
DEVICES = ("/dev/tpmrm0", "/dev/tpm0", "/sys/kernel/config", "/sys/kernel/security", "/sys/devices/virtual/misc")


@pytest.fixture(autouse=True)
def digests_kept(monkeypatch: pytest.MonkeyPatch, bubblewrap: None) -> None:
    """The test's own environment is read once. That a launcher on a machine reads it anew each time is tested below."""
    monkeypatch.setattr("strongroom.enclave.launch.Digests", lambda: KNOWN)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maker")


@pytest.fixture
def booted(maker: Path, tmp_path: Path) -> Iterator[BootedTpm]:
    with BootedTpm.start(maker, tmp_path / "run") as machine:
        yield machine


def booted_as(machine: BootedTpm, monkeypatch: pytest.MonkeyPatch) -> TpmMachine:
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    found = find_machine("here")
    assert isinstance(found, TpmMachine)
    return found


def reference_of(machine: Machine, *more: str) -> ReferenceValues:
    """What accepts `TRAIN` on this machine as it booted."""
    return parse_reference("\n".join(["[reference]", f'measurements = ["{TRAIN}"]', *more, *machine.accepted()]))


def appraised(evidence: Evidence, reference: ReferenceValues) -> AttestationResult:
    now = int(time.time())
    claims = verify(Evidence.from_wire(evidence.to_wire()), now=now, anchors=reference.anchors)
    return appraise(claims, reference, expected_report_data=ASKED, now=now)


@needs_tpm
def test_measured_boot_from_the_firmware_to_the_secret(world, booted, monkeypatch) -> None:
    machine = booted_as(booted, monkeypatch)
    data = {"data": world.seal("data", patients=b"of the hospital")}
    socket = booted.tcti.partition("=")[2]
    assert Path(socket).exists()
    job = world.job(PROGRAM, *DEVICES, socket, rules=(DATA,), vaults=data, accepts=machine.accepted())
    assert job.policy.reference.tees == ("tpm",)
    # The program sees nothing that it could ask for evidence by itself.
    assert job.run(machine=machine) == (0, f"of the hospital{6 * ' False'}\n")
    # Another program on the same machine is told from it, and gets nothing, though its own policy names it.
    other = world.job(PROGRAM, "/another", rules=(DATA,), vaults=data, accepts=machine.accepted())
    with pytest.raises(MeasurementError, match=r"programs: got [0-9a-f]{96} too"):
        other.run(machine=machine)
    assert all(name != "attested" for name, _ in other.events)


@needs_tpm
def test_a_tpm_tells_programs_boots_and_lies_apart(maker, tmp_path, monkeypatch) -> None:
    with BootedTpm.start(maker, tmp_path / "1") as booted:
        machine = booted_as(booted, monkeypatch)
        reference = reference_of(machine)
        train = machine.start(TRAIN)
        kept = train.evidence(ASKED)
        assert appraised(kept, reference).measurement == TRAIN
        # Nobody can say that it is another program, or that none asks.
        for program in (OTHER, ""):
            with pytest.raises((BindingError, MeasurementError)):
                appraised(replace(kept, program=program), replace(reference, measurements=(TRAIN, OTHER)))
        # A quote is for one nonce.
        with pytest.raises(BindingError):
            appraised(train.evidence(bytes(64)), reference)
        # A launcher that measured one program and names another.
        other = machine.start(OTHER)
        with pytest.raises(MeasurementError, match=r"programs: got 6b6b[6b]+ too"):
            appraised(replace(other, program=TRAIN).evidence(ASKED), reference)
        # The same register holds both from now on, and the policy says whether that may be.
        with pytest.raises(MeasurementError, match=r"programs: got 6b6b[6b]+ too"):
            appraised(train.evidence(ASKED), reference)
        beside = reference_of(machine, f'other_programs = ["{OTHER}"]')
        assert appraised(train.evidence(ASKED), beside).platform
        # A log that leaves one out, or has none: the quote says otherwise.
        quote = parse_tpm(train.evidence(ASKED).quote)
        firmware_alone = (tmp_path / "1" / "binary_bios_measurements").read_bytes()
        for log in (parse_tpm(kept.quote).event_log, firmware_alone + b"", b""):
            lie = Evidence("tpm", replace(quote, event_log=log).to_bytes(), kept.endorsements, program=TRAIN)
            with pytest.raises((VerificationError, MeasurementError), match=r"replays pcr 13|programs: not told"):
                appraised(lie, beside)
        # Something that nobody logged: the launcher neither starts anything there nor hands out evidence.
        with Tpm.open() as tpm:
            tpm.extend(PROGRAM_PCR, bytes(32))
        for refused in (lambda: machine.start(TRAIN), lambda: train.evidence(ASKED)):
            with pytest.raises(EnclaveError, match="the register for programs is not what"):
                refused()
    with BootedTpm.start(maker, tmp_path / "2", boot=pc_firmware(loader=b"another boot loader")) as booted:
        evidence = booted_as(booted, monkeypatch).start(TRAIN).evidence(ASKED)
        with pytest.raises(MeasurementError, match="platform pcr4: got"):
            appraised(evidence, reference)


@needs_tpm
def test_registers_that_change_unlogged_are_shown_without_a_log(booted, monkeypatch, tmp_path) -> None:
    machine = booted_as(booted, monkeypatch)
    with Tpm.open() as tpm:
        tpm.extend(9, bytes(32))  # as some systems do while they run
    reference = reference_of(machine)
    evidence = machine.start(TRAIN).evidence(ASKED)
    assert appraised(evidence, reference).measurement == TRAIN
    assert {event.pcr for event in parse_event_log(parse_tpm(evidence.quote).event_log)} == {*range(9), 13, 14}
    # A log that was named is there, and of banks that can be extended.
    unknown = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 106, 2, 1) + struct.pack("<HH", 0x27, 32) + b"\0"
    (tmp_path / "sha3").write_bytes(struct.pack("<II20sI", 0, 3, bytes(20), len(unknown)) + unknown)
    for name, why in (("nothing", "no such file"), ("sha3", "has banks sha3_256, wanted sha256")):
        monkeypatch.setenv("STRONGROOM_TPM_LOG", str(tmp_path / name))
        with pytest.raises(UnsupportedPlatformError, match=why):
            machine.start(TRAIN)
    # Without one of the firmware's the registers are pinned all the same.
    monkeypatch.delenv("STRONGROOM_TPM_LOG")
    evidence = machine.start(TRAIN).evidence(ASKED)
    assert appraised(evidence, reference).measurement == TRAIN
    assert {event.pcr for event in parse_event_log(parse_tpm(evidence.quote).event_log)} == {13}


@needs_tpm
def test_which_machine_a_run_takes(booted, monkeypatch, capfd, tmp_path) -> None:
    def asked(evidence: str | None, reference: ReferenceValues | None) -> Machine | None:
        return run_evidence.machine_of(Namespace(evidence=evidence), reference)

    machine = booted_as(booted, monkeypatch)
    both = reference_of(machine)
    both = replace(both, tees=("tpm", "simulated"), allow_simulated="sha256:" + "0" * 64)
    # What the policy names and the machine is comes first, and is said.
    assert asked(None, both) == asked("here", both) == asked("tpm", None) == machine
    told = capfd.readouterr().err
    assert "evidence of this machine by its tpm; the program is measured into PCR 13" in told
    assert "the owner of the machine can read all its memory" in " ".join(told.split())
    assert "simulated" not in told
    # A development policy, under which one tries programs one after the other, minds no others.
    tried = parse_reference("\n".join(["[reference]", f'measurements = ["{TRAIN}"]', *run_evidence.accepted(machine)]))
    assert (tried.tees, tried.other_programs) == (("tpm",), ("any",))
    assert run_evidence.accepted(None) == ()
    # Simulated is what one has to ask for, and is said too.
    assert asked("simulated", both) is None and asked(None, None) is None
    assert "simulated enclave" in capfd.readouterr().err
    # A policy without a platform would refuse whatever is shown.
    with pytest.raises(UsageError, match="--evidence tpm: the policy has no platform for tpm"):
        asked("tpm", replace(both, platforms={}))
    # A TPM that is named and does not answer is no reason to simulate one.
    monkeypatch.setenv("STRONGROOM_TPM", f"swtpm:path={tmp_path / 'nothing'}")
    with pytest.raises(UnsupportedPlatformError, match="tpm: cannot open"):
        asked(None, both)
    with pytest.raises(UnsupportedPlatformError, match="nobody makes reports"):
        asked("tdx", both)
    monkeypatch.setattr("strongroom.enclave.machine.find.machine_for", lambda kinds: None)
    assert asked(None, both) is None
    with pytest.raises(UnsupportedPlatformError, match="this machine is none that it has a platform for"):
        asked(None, replace(both, tees=("tpm",), allow_simulated=None))


def test_a_trust_domain_up_to_the_secret(world, tmp_path) -> None:
    domain = FakeTrustDomain(world.home.vendor(), firmware())
    machine = TrustDomain(domain.attester, tmp_path / "run", domain.system)
    tees, *platform = machine.accepted()
    accepts = (tees, f'allow_simulated = "{world.home.vendor().root_digest}"', *platform)
    data = {"data": world.seal("data", patients=b"of the hospital")}
    job = world.job(PROGRAM, rules=(DATA,), vaults=data, accepts=accepts)
    assert set(job.policy.reference.platforms) == {"simulated"}
    assert job.run(machine=machine) == (0, "of the hospital\n")
    assert domain.rtmrs.values[3] != bytes(48)


def test_what_cannot_be_launched_on_a_machine(world, tmp_path, monkeypatch) -> None:
    domain = FakeTrustDomain(world.home.vendor(), firmware())
    machine = TrustDomain(domain.attester, tmp_path / "run", domain.system)
    job = world.job("print(1)")
    with pytest.raises(UsageError, match="--debug-enclave: is for simulated enclaves"):
        job.launch(machine=machine, debug=True)
    with pytest.raises(UsageError, match="wanted a simulated vendor or a machine"):
        job.launch(machine=machine, vendor=world.home.vendor())
    outside = replace(job, config=replace(job.config, isolation="process"))
    monkeypatch.setattr("strongroom.enclave.sandbox.bubblewrap", lambda: None)
    with pytest.raises(UsageError, match="without a sandbox the program could ask for evidence"):
        outside.launch(machine=machine)
    assert domain.rtmrs.values[3] == bytes(48)


def test_what_runs_on_a_machine_is_in_its_memory(world, tmp_path, monkeypatch) -> None:
    domain = FakeTrustDomain(world.home.vendor(), firmware())
    machine = TrustDomain(domain.attester, tmp_path / "run", domain.system)
    tees, *platform = machine.accepted()
    accepts = (tees, f'allow_simulated = "{world.home.vendor().root_digest}"', *platform)
    layout = Layout(tmp_path / "image", {"Entrypoint": ["/bin/sh", "/app/main.sh"], "Cmd": ["x"]})
    layout.of(tar(*commands("sh", "cat"), member("app/main.sh", b"echo honest; cat /program/said\n", mode=0o755)))
    image = ImageCache(tmp_path / "images").unpacked(layout.path)
    said = {"said": tmp_path / "said"}
    said["said"].write_text("as measured\n")
    job = world.job_of((), said, image=image, accepts=accepts)

    class Host:
        """Changes all that is on its disk once it was measured."""

        tee, where = machine.tee, machine.where

        def start(self, program: str) -> Attester:
            attester = machine.start(program)
            for name in (image.tree / "app/main.sh", said["said"]):
                name.chmod(0o755)
                name.write_text("echo stolen\n")
            for blob in (layout.path / "blobs/sha256").iterdir():
                blob.write_bytes(b"stolen")
            return attester

    assert job.run(machine=Host(), image=image) == (0, "honest\nas measured\n")
    assert not [*Path(directory_in_memory()).glob(f"strongroom-*-{os.getpid()}-*")]
    # What is on the disk is not even read any more, but for the layers, by their digests.
    with pytest.raises(TamperedError, match="blob sha256:"):
        job.launch(machine=machine, image=image)
    with pytest.raises(UsageError, match="unpacks it anew, into memory") as caught:
        job.launch(machine=machine, image=replace(image, layout=None))
    assert caught.value.hint == "--image LAYOUT says where it lies"
    monkeypatch.setattr("strongroom.enclave.directories._IN_MEMORY", {"none"})
    with pytest.raises(UnsupportedPlatformError, match="is in memory, and a host may change what is on a disk"):
        job.launch(machine=machine, image=image)


def test_a_machine_takes_no_file_of_the_user_s_for_a_measurement(world, monkeypatch) -> None:
    class Refusing:
        tee, where = "tpm", "PCR 13"

        def start(self, program: str) -> None:
            seen["program"] = program
            raise EnclaveError("no")

    seen: dict[str, object] = {}

    def measured(*arguments: object, **options: object) -> Measurement:
        seen.update(options)
        return before

    job = world.job("print(1)")
    before = measure(job.config, job.files)
    monkeypatch.setattr("strongroom.enclave.launch.Digests", Digests)
    monkeypatch.setattr("strongroom.enclave.launch.measure", measured)
    with pytest.raises(EnclaveError, match="no"):
        job.launch(machine=Refusing(), platform=before.platform)
    assert seen["program"] == before.value
    assert seen["platform"] is None and seen["known"] is not KNOWN
