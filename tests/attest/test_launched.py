"""Programs that a launcher starts on a machine which is one TEE: what goes into its registers, and what is accepted."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.appraise import appraise, bound, steps
from strongroom.attest.attester import Attester
from strongroom.attest.binding import launched_data
from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain import explain
from strongroom.attest.parse.event_log import log_banks, parse_event_log, replay
from strongroom.attest.parse.launched import empty_log, event_bytes, program_event, programs
from strongroom.attest.parse.td_log import parse_td_log, replayed
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.tee.configfs import ConfigfsAttester
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.verify import VENDORS, verify
from strongroom.cas.policy.version import parse_reference
from strongroom.cli.attest.draft import reference_table
from strongroom.cli.main import main
from strongroom.enclave.machine.find import find_machine, machine_for
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.machine.log import MAX_LOG, LaunchLog, log_directory
from strongroom.enclave.machine.shortened import shortened
from strongroom.enclave.machine.trust_domain import TrustDomain, read_td_log
from strongroom.errors import (
    AttestationError,
    BindingError,
    EnclaveError,
    FormatError,
    LockedError,
    MeasurementError,
    PolicyError,
    UnsupportedPlatformError,
    VerificationError,
)
from strongroom.testing.attesters import FakeGramine, FakeMachine, FakeTsm
from strongroom.testing.event_log import FirmwareLog, variable
from strongroom.testing.trust_domain import FakeTrustDomain
from tests.attest.amd import NOW as AMD_NOW
from tests.attest.amd import Amd

NOW = 1_750_000_000
TRAIN, OTHER = "5a" * 48, "6b" * 48
ASKED = bytes(range(64))


def firmware() -> FirmwareLog:
    """What TDVF and a boot loader measure: variables into RTMR0, the loader into RTMR1, the kernel into RTMR2."""
    log = FirmwareLog(("sha384",))
    log.measure(1, 0x80000001, variable("SecureBoot", b"\1"))
    log.measure(2, 0x80000003, b"where it was loaded from", digested=b"a boot loader")
    log.measure(3, 0xD, b"kernel_cmdline: /vmlinuz ro\0", digested=b"/vmlinuz ro")
    return log


@pytest.fixture
def domain(vendor: SimulatedVendor) -> FakeTrustDomain:
    return FakeTrustDomain(vendor, firmware())


@pytest.fixture
def machine(domain: FakeTrustDomain, tmp_path: Path) -> TrustDomain:
    return TrustDomain(domain.attester, tmp_path / "run", domain.system)


@pytest.fixture
def reference(domain: FakeTrustDomain, vendor: SimulatedVendor) -> ReferenceValues:
    pinned = {name: (value,) for name, value in domain.registers.items()}
    return ReferenceValues(
        ("simulated",), (TRAIN,), allow_simulated=vendor.root_digest, platforms={"simulated": pinned}
    )


@pytest.fixture
def claims_of(reference: ReferenceValues) -> Callable[[Attester], Claims]:
    def claims(attester: Attester) -> Claims:
        evidence = Evidence.from_wire(attester.evidence(ASKED).to_wire())
        return verify(evidence, now=NOW, anchors=reference.anchors)

    return claims


def accept(claims: Claims, reference: ReferenceValues) -> None:
    appraise(claims, reference, expected_report_data=ASKED, now=NOW)


def test_a_program_is_accepted_by_its_measurement_and_its_platform(machine, domain, reference, claims_of) -> None:
    launched = machine.start(TRAIN)
    claims = claims_of(launched)
    result = appraise(claims, reference, expected_report_data=ASKED, now=NOW)
    # What `strongroom measure` prints, as for a simulated enclave; the machine's own beside it.
    assert (result.measurement, result.platform) == (TRAIN, claims.measurement)
    assert claims.programs == (TRAIN,)
    # The register is the firmware's zeros, extended by the digest of the event: by the rules of the log, not by ours.
    log = parse_td_log(firmware().to_bytes() + event_bytes(program_event(4, TRAIN, ("sha384",))))
    assert replayed(log)["rtmr3"] == domain.rtmrs.values[3]
    told = {field.name: field.value for section in explain(launched.evidence(ASKED)) for field in section.fields}
    assert (told["program"], told["started"]) == (TRAIN, TRAIN)


def test_a_draft_of_the_evidence_accepts_it(machine, claims_of) -> None:
    claims = claims_of(machine.start(TRAIN))
    accept(claims, parse_reference(reference_table(claims)))


def test_another_program_is_refused(machine, reference, claims_of) -> None:
    with pytest.raises(MeasurementError, match=f"measurement: got {OTHER}"):
        accept(claims_of(machine.start(OTHER)), reference)


def test_a_second_program_is_refused_unless_the_policy_allows_it(machine, reference, claims_of) -> None:
    first = machine.start(TRAIN)
    accept(claims_of(first), reference)
    machine.start(OTHER)
    # Registers only grow: the first one's evidence shows the second, too.
    with pytest.raises(MeasurementError, match=f"programs: got {OTHER} too"):
        accept(claims_of(first), reference)
    for allowed in ((OTHER,), ("any",)):
        accept(claims_of(first), replace(reference, other_programs=allowed))
    with pytest.raises(MeasurementError, match="programs: got"):
        accept(claims_of(first), replace(reference, other_programs=("7c" * 48,)))
    # The same program twice is no other.
    accept(claims_of(machine.start(TRAIN)), replace(reference, other_programs=(OTHER,)))


def test_a_launcher_s_word_for_a_program_that_never_started_is_refused(machine, reference, claims_of) -> None:
    machine.start(OTHER)
    lie = replace(machine.start(OTHER), program=TRAIN)
    with pytest.raises(MeasurementError, match=f"programs: got {OTHER} too"):
        accept(claims_of(lie), reference)
    with pytest.raises(MeasurementError, match=f"wanted {TRAIN} among them"):
        accept(claims_of(lie), replace(reference, other_programs=(OTHER,)))


def test_one_program_s_evidence_is_not_another_s(machine, reference, claims_of) -> None:
    both = replace(reference, measurements=(TRAIN, OTHER), other_programs=("any",))
    machine.start(TRAIN)
    evidence = machine.start(OTHER).evidence(ASKED)
    accept(verify(evidence, now=NOW, anchors=both.anchors), both)
    with pytest.raises(BindingError):
        accept(verify(replace(evidence, program=TRAIN), now=NOW, anchors=both.anchors), both)
    # Nor does evidence pass that says nothing of a program, where the machine itself asks.
    with pytest.raises((BindingError, MeasurementError)):
        accept(verify(replace(evidence, program="", event_log=b""), now=NOW, anchors=both.anchors), both)


def test_a_replayed_quote_is_refused(machine, reference, claims_of) -> None:
    claims = claims_of(machine.start(TRAIN))
    with pytest.raises(BindingError):
        appraise(claims, reference, expected_report_data=bytes(64), now=NOW)


def test_what_is_measured_unlogged_is_seen(machine, domain, reference, claims_of) -> None:
    launched = machine.start(TRAIN)
    before = launched.evidence(ASKED)
    domain.rtmrs.extend(3, b"\x99" * 48)
    # The launcher's own log does not explain the register any more, and neither does one from before.
    with pytest.raises(EnclaveError, match="register for programs is not what"):
        launched.evidence(ASKED)
    with pytest.raises(EnclaveError, match="register for programs is not what"):
        machine.start(TRAIN)
    quoted = domain.attester.evidence(launched_data(ASKED, TRAIN))
    with pytest.raises(VerificationError, match="event log: replays rtmr3"):
        verify(replace(quoted, program=TRAIN, event_log=before.event_log), now=NOW, anchors=reference.anchors)
    # Logged, it is no program, and `any` is of programs.
    event = replace(program_event(4, OTHER, ("sha384",)), data=b"a shell", digests={"sha384": b"\x99" * 48})
    log = before.event_log + event_bytes(event)
    claims = verify(replace(quoted, program=TRAIN, event_log=log), now=NOW, anchors=reference.anchors)
    assert claims.programs == (TRAIN, f"event:{'99' * 48}")
    with pytest.raises(MeasurementError, match="programs: got event:9999"):
        accept(claims, replace(reference, other_programs=("any",)))


def test_a_log_that_lies_is_refused(machine, domain, reference) -> None:
    machine.start(OTHER)
    quoted = domain.attester.evidence(launched_data(ASKED, TRAIN))
    true = firmware().to_bytes()
    lies = {
        "another program": true + event_bytes(program_event(4, TRAIN, ("sha384",))),
        "no program": true,
        "another boot": FirmwareLog(("sha384",)).to_bytes() + event_bytes(program_event(4, OTHER, ("sha384",))),
    }
    for log in lies.values():
        with pytest.raises(VerificationError, match="event log: replays rtmr"):
            verify(replace(quoted, program=TRAIN, event_log=log), now=NOW, anchors=reference.anchors)
    # Words that were not digested: the measurement of another, beside this one's digest.
    event = program_event(4, OTHER, ("sha384",))
    claimed = replace(event, data=program_event(4, TRAIN, ("sha384",)).data)
    evidence = replace(quoted, program=TRAIN, event_log=true + event_bytes(claimed))
    claims = verify(evidence, now=NOW, anchors=reference.anchors)
    assert claims.programs == (f"event:{event.digests['sha384'].hex()}",)
    with pytest.raises(MeasurementError, match="programs: got event:"):
        accept(claims, reference)


def test_another_boot_is_refused_on_each_register(machine, domain, reference, claims_of) -> None:
    claims = claims_of(machine.start(TRAIN))
    for name in domain.registers:
        pinned = reference.platforms["simulated"] | {name: ("00" * 48,)}
        with pytest.raises(MeasurementError, match=f"platform {name}: got"):
            accept(claims, replace(reference, platforms={"simulated": pinned}))


def test_a_policy_says_which_machines_run_programs(machine, domain, reference, claims_of) -> None:
    claims = claims_of(machine.start(TRAIN))
    # Without a platform no program's evidence counts, not even under a list of whole measurements.
    with pytest.raises(MeasurementError, match="platform: got a program on a machine of simulated"):
        accept(claims, replace(reference, platforms={}, measurements=(TRAIN, claims.measurement)))
    # With one nothing else does: neither the machine as a whole, nor an enclave with that very measurement.
    whole = verify(domain.attester.evidence(ASKED), now=NOW, anchors=reference.anchors)
    with pytest.raises(MeasurementError, match="measurement: got none of a program"):
        accept(whole, replace(reference, measurements=(TRAIN, whole.measurement)))
    # Nor a program of which no log tells what else was started.
    told = verify(replace(machine.start(TRAIN).evidence(ASKED), event_log=b""), now=NOW, anchors=reference.anchors)
    with pytest.raises(MeasurementError, match="programs: not told"):
        accept(told, replace(reference, other_programs=("any",)))
    # A person sees each comparison.
    judged = list(steps(claims, reference, expected=lambda each: None, now=NOW))
    assert [step.name for step in judged if step.number == 5] == [
        "measurement", *(f"platform {name}" for name in domain.registers), "programs", "signer",
    ]  # fmt: skip


def test_hardware_s_own_root_counts_as_ever(domain, tmp_path) -> None:
    """The same quotes by the name `tdx`: nothing about programs makes another root Intel's."""
    real = TrustDomain(ConfigfsAttester(system=domain.system), tmp_path, domain.system)
    endorsements = domain.attester.evidence(ASKED).endorsements
    evidence = replace(real.start(TRAIN).evidence(ASKED), endorsements=endorsements)
    assert (evidence.tee, evidence.program) == ("tdx", TRAIN)
    with pytest.raises(VerificationError):
        verify(evidence, now=NOW)


# SNP: no register, and the launcher's word alone.


@pytest.fixture
def guest() -> Machine:
    """A guest whose reports an AMD of the tests' own signs."""
    tsm = FakeTsm("sev_guest", lambda inblob, level: (Amd("Milan").report(version=3, report_data=inblob), b""))
    return find_machine("here", system=FakeMachine(tsm))


def test_of_snp_the_launcher_s_word_binds_the_program(guest) -> None:
    evidence = guest.start(TRAIN).evidence(ASKED)
    assert (evidence.tee, evidence.program, evidence.event_log) == ("snp", TRAIN, b"")
    evidence = replace(evidence, endorsements=Amd("Milan").evidence(version=3).endorsements)
    reference = parse_reference("\n".join(["[reference]", f'measurements = ["{TRAIN}"]', *guest.accepted()]))

    def refused(evidence: Evidence, reference: ReferenceValues) -> list[str]:
        claims = verify(Evidence.from_wire(evidence.to_wire()), now=AMD_NOW, anchors=Amd("Milan").anchors)
        claims = replace(claims, vendor_root=VENDORS.amd["Milan"].fingerprint)
        judged = steps(claims, reference, expected=lambda each: bound(each, ASKED), now=AMD_NOW)
        return [step.name for step in judged if step.error]

    assert refused(evidence, reference) == []
    assert refused(replace(evidence, program=OTHER), reference) == ["report data", "measurement"]
    assert refused(replace(evidence, program=""), reference) == ["report data", "measurement"]
    pinned = {"snp": {"measurement": ("bb" * 48,)}}
    assert refused(evidence, replace(reference, platforms=pinned)) == ["platform measurement"]
    # Without a platform the launch digest alone accepts no program: it would accept any.
    whole = replace(reference, platforms={}, other_programs=(), measurements=(TRAIN, (b"m" * 48).hex()))
    assert refused(evidence, whole) == ["platform", "programs"]


# What a policy may say.


@pytest.mark.parametrize(
    ("tees", "platforms", "others", "why"),
    [
        (("tdx",), {"tdx": {"mrtd": ("00" * 48,)}}, (), "platforms.tdx: lacks rtmr0, rtmr1, rtmr2"),
        (("tpm",), {"tpm": {"pcr7": ("00" * 32,)}}, (), "platforms.tpm: lacks pcr4"),
        (("tpm",), {"tpm": {"pcr4": ("00" * 32,), "pcr13": ("00" * 32,)}}, (), "platforms.tpm.pcr13: nothing that"),
        (("tdx",), {"tdx": {"rtmr3": ("00" * 48,)}}, (), "platforms.tdx.rtmr3: nothing that a platform"),
        (("tdx",), {"tdx": {"measurement": ("00" * 48,)}}, (), "platforms.tdx.measurement: nothing that"),
        (("tdx",), {"tdx": {"mrtd": ("00" * 32,)}}, (), "platforms.tdx.mrtd: got .*of 32, wanted 48"),
        (("tdx",), {"tdx": {"mrtd": ()}}, (), "platforms.tdx.mrtd: wanted at least one value"),
        (("tdx",), {"snp": {"measurement": ("00" * 48,)}}, ("any",), "platforms.snp: wanted a table for tdx"),
        (("sgx",), {"sgx": {"mrenclave": ("00" * 32,)}}, (), "platforms.sgx: wanted a table for none"),
        (("snp",), {"snp": {"measurement": ("00" * 48,)}}, (), 'got none, wanted "any" for platforms.snp'),
        (("tdx",), {}, ("any",), "other_programs: got some, but no platforms"),
        (("tpm",), {"tpm": {"pcr4": ("00" * 32,)}}, ("any", TRAIN), 'got "any" and others'),
        (("tpm",), {"tpm": {"pcr4": ("00" * 32,)}}, ("all",), "other_programs: got 'all'"),
    ],
)
def test_a_platform_that_pins_too_little_or_nothing_is_a_slip(tees, platforms, others, why) -> None:
    with pytest.raises(PolicyError, match=why):
        ReferenceValues(tees, (TRAIN,), platforms=platforms, other_programs=others)


# Evidence as it travels.


@pytest.mark.parametrize(
    "changes",
    [
        {"program": ""}, {"program": "5A" * 48}, {"program": "5a" * 32}, {"program": 5}, {"event_log": ""},
        {"event_log": "!"}, {"event_log": "AAAA", "program": None}, {"tee": "sgx"}, {"tee": "nitro"},
        {"event_log": "A" * 400_000}, {"more": 1},
    ],
)  # fmt: skip
def test_evidence_of_no_program_is_refused(machine, changes) -> None:
    wire = machine.start(TRAIN).evidence(ASKED).to_wire() | changes
    wire = {name: value for name, value in wire.items() if value is not None}
    with pytest.raises(FormatError):
        Evidence.from_wire(wire)


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 700), junk=st.binary(max_size=40), at=st.integers(0, 700))
def test_a_hostile_log_raises_nothing_else(cut: int, junk: bytes, at: int) -> None:
    raw = bytearray(firmware().to_bytes() + event_bytes(program_event(4, TRAIN, ("sha384",))))
    raw[at : at + len(junk)] = junk
    try:
        events = parse_td_log(bytes(raw[: len(raw) - cut]))
        replayed(events)
        found = programs(events, 4, "sha384")
    except FormatError:
        return
    assert all(each == TRAIN or each.startswith("event:") for each in found)


@given(banks=st.sets(st.sampled_from(["sha1", "sha256", "sha384", "sha512"]), min_size=1))
@settings(max_examples=10, deadline=None)
def test_an_event_is_one_of_any_log_s_banks(banks: set[str]) -> None:
    names = tuple(sorted(banks))
    raw = empty_log(names) + event_bytes(program_event(13, TRAIN, names))
    assert log_banks(raw) == names
    events = parse_event_log(raw)
    assert {bank: programs(events, 13, bank) for bank in names} == dict.fromkeys(names, (TRAIN,))
    assert programs(events, 4, names[0]) == ()


def test_a_long_log_is_shortened_and_replays_the_same() -> None:
    log = FirmwareLog(("sha256",))
    for number in range(20):
        log.measure(number % 8, 0x80000001, bytes([number]) * 20_000)
    raw = log.to_bytes() + event_bytes(program_event(13, TRAIN, ("sha256",)))
    short = shortened(raw)
    assert len(short) < MAX_LOG < len(raw)
    events = parse_event_log(short)
    assert {pcr: replay(events, "sha256")[pcr] for pcr in range(8)} == log.pcrs("sha256")
    assert programs(events, 13, "sha256") == (TRAIN,)
    kept = parse_event_log(shortened(raw, keep=lambda event: event.pcr == 13))
    assert [event.pcr for event in kept] == [13]
    assert shortened(firmware().to_bytes() + bytes(500)) == firmware().to_bytes()


# The commands.


def test_the_commands_show_verify_and_appraise_it(machine, domain, vendor, tmp_path, capsys) -> None:
    evidence = machine.start(TRAIN).evidence(ASKED)
    (tmp_path / "evidence.json").write_text(json.dumps(evidence.to_wire()))
    tees, *platform = machine.accepted()
    lines = ["[reference]", f'measurements = ["{TRAIN}"]', f'allow_simulated = "{vendor.root_digest}"', tees, *platform]
    (tmp_path / "policy.toml").write_text("\n".join(lines))
    asked = ["--report-data", ASKED.hex(), "--at", str(NOW)]
    file, policy = str(tmp_path / "evidence.json"), ["--policy", str(tmp_path / "policy.toml")]
    assert main(["attest", "appraise", file, *policy, *asked]) == 0
    told = capsys.readouterr().out
    assert "platform rtmr2" in told and "programs" in told
    assert main(["attest", "appraise", file, *policy, "--report-data", "00" * 64, "--at", str(NOW)]) == 34
    capsys.readouterr()
    assert main(["attest", "verify", file, "--json", "--at", str(NOW)]) == 0
    told = json.loads(capsys.readouterr().out)
    claims = told.get("claims", told)
    assert (claims["program"], claims["programs"]) == (TRAIN, [TRAIN])
    assert main(["attest", "show", file, "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)["sections"]
    assert [each["value"] for each in sections[-1]["fields"] if each["name"] == "started"] == [TRAIN]


# The launcher's log.


def test_the_log_outlives_launchers_and_not_a_boot(machine, domain, reference, claims_of, vendor, tmp_path) -> None:
    machine.start(TRAIN)
    # Another launcher on the same machine goes on where the first one was.
    later = TrustDomain(domain.attester, tmp_path / "run", domain.system)
    assert claims_of(later.start(OTHER)).programs == (TRAIN, OTHER)
    # After a reboot the registers are new, and what the file says is of the last boot.
    rebooted = FakeTrustDomain(vendor, firmware())
    again = TrustDomain(rebooted.attester, tmp_path / "run", rebooted.system)
    accept(claims_of(again.start(TRAIN)), reference)


def test_a_launcher_that_died_before_it_extended_leaves_no_trace(machine, domain, reference, claims_of) -> None:
    extend = domain.rtmrs.extend

    def fail(index: int, data: bytes) -> None:
        raise OSError(errno.EIO, "input/output error")

    domain.rtmrs.extend = fail
    with pytest.raises(EnclaveError):
        machine.start(OTHER)
    domain.rtmrs.extend = extend
    assert claims_of(machine.start(TRAIN)).programs == (TRAIN,)


def test_a_launcher_that_died_while_it_wrote_leaves_no_trace(machine, tmp_path, claims_of) -> None:
    first = machine.start(OTHER)
    (path,) = (tmp_path / "run").iterdir()
    whole, more = path.read_bytes(), event_bytes(program_event(4, TRAIN, ("sha384",)))
    for size in range(1, len(more) + 1):
        path.write_bytes(whole + more[:size])
        assert claims_of(first).programs == (OTHER,)
        assert path.read_bytes() == whole


def test_a_full_disk_costs_the_start_that_finds_it_full(machine, tmp_path, monkeypatch, claims_of) -> None:
    first = machine.start(OTHER)
    write = os.pwrite

    def full(descriptor: int, raw: bytes, at: int) -> int:
        write(descriptor, raw[:40], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    for fails in (full, lambda descriptor, raw, at: write(descriptor, raw[:40], at)):
        monkeypatch.setattr(os, "pwrite", fails)
        with pytest.raises(EnclaveError, match="no space left on device"):
            machine.start(TRAIN)
        assert claims_of(first).programs == (OTHER,)
    monkeypatch.setattr(os, "pwrite", write)
    assert claims_of(machine.start(TRAIN)).programs == (OTHER, TRAIN)


def test_a_log_somebody_wrote_into_is_refused(machine, tmp_path, claims_of) -> None:
    machine.start(TRAIN)
    (path,) = (tmp_path / "run").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    for lie in (event_bytes(program_event(4, OTHER, ("sha384",))), b"\1" * 50, b"", bytes(MAX_LOG + 1)):
        path.write_bytes(lie)
        with pytest.raises(EnclaveError):
            machine.start(TRAIN)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(EnclaveError), LaunchLog.locked(tmp_path / "run", "rtmr3"):
        pass


def test_more_programs_than_a_log_holds(tmp_path) -> None:
    event = program_event(4, TRAIN, ("sha384",))
    with LaunchLog.locked(tmp_path, "x") as log:
        log.added = bytes(MAX_LOG)
        with pytest.raises(EnclaveError, match="too many programs") as caught:
            log.add(event)
    assert caught.value.hint == "registers only grow: restart the machine"


def test_whoever_extends_at_the_same_time_is_noticed(machine, domain) -> None:
    extend = domain.rtmrs.extend

    def both(index: int, data: bytes) -> None:
        extend(index, data)
        extend(index, b"\x42" * 48)

    domain.rtmrs.extend = both
    with pytest.raises(LockedError, match="RTMR3: extended by another program"):
        machine.start(TRAIN)


def test_the_firmware_s_log_is_read_without_its_padding(domain) -> None:
    assert read_td_log(system=domain.system) == firmware().to_bytes()
    domain.tables.fail("CCEL", errno.EACCES)
    with pytest.raises(UnsupportedPlatformError, match="permission denied"):
        read_td_log(system=domain.system)
    with pytest.raises(UnsupportedPlatformError, match="no such file"):
        read_td_log(system=FakeMachine(domain.rtmrs))


def test_where_the_log_is(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("STRONGROOM_LAUNCHED", str(tmp_path))
    assert log_directory() == tmp_path
    monkeypatch.delenv("STRONGROOM_LAUNCHED")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnsupportedPlatformError, match="is root's"):
        log_directory()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert log_directory() == Path("/run/strongroom")


# Which machine this is.


def test_what_was_asked_for_and_is_not_there_is_refused(domain, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("STRONGROOM_LAUNCHED", str(tmp_path))
    monkeypatch.setenv("STRONGROOM_TPM", f"swtpm:path={tmp_path / 'nothing'}")
    assert find_machine("here", system=domain.system).tee == "tdx"
    assert find_machine("tdx", system=domain.system).tee == "tdx"
    with pytest.raises(UnsupportedPlatformError, match="--evidence snp: this machine is one of tdx"):
        find_machine("snp", system=domain.system)
    nothing = FakeMachine()
    for kind in ("tdx", "snp"):
        with pytest.raises(UnsupportedPlatformError, match="nobody makes reports"):
            find_machine(kind, system=nothing)
    for kind in ("tpm", "here"):
        with pytest.raises((UnsupportedPlatformError, AttestationError), match=r"tpm: cannot open|tpm2-pytss"):
            find_machine(kind, system=nothing)
    monkeypatch.delenv("STRONGROOM_TPM")
    with pytest.raises(UnsupportedPlatformError, match="--evidence here: this machine is no VM"):
        find_machine("here", system=nothing)
    gramine = FakeMachine(FakeGramine(lambda data: b""))
    with pytest.raises(UnsupportedPlatformError, match="this is an SGX enclave"):
        find_machine("here", system=gramine)
    # By what a policy has platforms for.
    guest = FakeMachine(FakeTsm("sev_guest", lambda data, level: (bytes(1184), b"")))
    found = machine_for(("snp", "tpm"), system=guest)
    assert found is not None and found.tee == "snp"
    assert machine_for(("tdx", "tpm"), system=guest) is None
    assert machine_for((), system=domain.system) is None
