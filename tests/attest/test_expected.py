"""What a confidential VM is expected to be: logs of trust domains and their replay, launch digests of SEV-SNP."""

from __future__ import annotations

import errno
import hashlib
import json
import struct
import sys
import types
import uuid
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.claims import Claims, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.launch_digest import snp_launch_digest
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.event_log import Event
from strongroom.attest.parse.td_log import Extension, extended, extensions, parse_td_log, replayed, unpadded
from strongroom.attest.replay import appraise_log
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.verify import VENDORS, verify
from strongroom.cas.policy.version import parse_reference
from strongroom.cli.main import main
from strongroom.enclave.extend import CCEL, extend_program, program_extensions, read_td_log
from strongroom.enclave.measure import Measurement, Part
from strongroom.errors import (
    AttestationError,
    EnclaveError,
    FormatError,
    MeasurementError,
    MissingDependencyError,
    StrongroomError,
    UnsupportedPlatformError,
    UsageError,
    VerificationError,
)
from strongroom.testing.attesters import FakeMachine, FakeRtmrs
from strongroom.testing.event_log import FirmwareLog, variable
from strongroom.testing.machine import FakeFile, Faults

VECTORS = Path(__file__).parents[1] / "vectors" / "tdx"
PROGRAM, BOOT = Extension("program", b"\x11" * 48), Extension("boot configuration", b"\x22" * 48)
ZERO = bytes(48)
NOW = 1_800_000_000


def firmware() -> FirmwareLog:
    """What TDVF and a boot loader measure: variables into RTMR0, the loader into RTMR1, the kernel into RTMR2."""
    log = FirmwareLog(("sha384",))
    log.measure(1, 0x80000001, variable("SecureBoot", b"\1"))
    log.measure(2, 0x80000003, b"where it was loaded from", digested=b"a boot loader")
    log.measure(3, 0xD, b"kernel_cmdline: /vmlinuz ro\0", digested=b"/vmlinuz ro")
    log.measure(1, 0x4, bytes(4))
    return log


def registers(log: FirmwareLog) -> dict[str, bytes]:
    return {
        f"rtmr{index - 1}": value for index, value in (dict.fromkeys(range(1, 5), ZERO) | log.pcrs("sha384")).items()
    }


def extend(value: bytes, digest: bytes) -> bytes:
    return hashlib.sha384(value + digest).digest()


def after(log: FirmwareLog, *added: Extension) -> dict[str, bytes]:
    values = registers(log)
    for each in added:
        values["rtmr3"] = extend(values["rtmr3"], each.digest)
    return values


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> SimulatedVendor:
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=NOW)


@pytest.fixture
def claims_of(vendor: SimulatedVendor) -> Callable[[dict[str, bytes]], Claims]:
    """Verified claims of a quote, in Intel's format, with these registers."""

    def make(values: dict[str, bytes]) -> Claims:
        evidence = vendor.quote({"mrtd": b"\x33" * 48, **values}, bytes(64), debug=False)
        anchors = replace(VENDORS, named=frozenset({vendor.root_digest}))
        return verify(evidence, now=NOW, anchors=anchors)

    return make


def test_a_log_that_ends_with_the_program_is_appraised_by_its_replay(claims_of) -> None:
    log = firmware()
    claims = claims_of(after(log, PROGRAM, BOOT))
    raw = log.to_bytes() + PROGRAM.to_bytes() + BOOT.to_bytes()
    events = appraise_log(claims, raw, (PROGRAM, BOOT))
    assert len(events) == 6 and events[2].said("sha384") == b"/vmlinuz ro"
    assert extensions(events) == (PROGRAM, BOOT)
    # Words count for nothing.
    renamed = log.to_bytes() + Extension("nothing", PROGRAM.digest).to_bytes() + BOOT.to_bytes()
    appraise_log(claims, renamed, (PROGRAM, BOOT))


@pytest.mark.parametrize("padding", [b"\0" * 5000, b"\xff" * 5000, b""])
def test_the_padding_of_the_firmware_s_area_is_no_event(padding: bytes) -> None:
    log = firmware()
    raw = log.to_bytes() + padding
    assert replayed(parse_td_log(raw)) == registers(log)
    # The last event's own zeros stay.
    assert unpadded(raw) == log.to_bytes()


def test_another_program_is_refused(claims_of) -> None:
    log = firmware()
    other = Extension("program", b"\x44" * 48)
    claims = claims_of(after(log, other, BOOT))
    raw = log.to_bytes() + other.to_bytes() + BOOT.to_bytes()
    with pytest.raises(MeasurementError, match=r"rtmr3: program: got 4444.*wanted 1111"):
        appraise_log(claims, raw, (PROGRAM, BOOT))
    # Nor does a log help that says what is wanted, and not what was measured.
    with pytest.raises(VerificationError, match="replays rtmr3"):
        appraise_log(claims, log.to_bytes() + PROGRAM.to_bytes() + BOOT.to_bytes(), (PROGRAM, BOOT))


def test_nothing_may_be_measured_before_the_program_or_after_it(claims_of) -> None:
    log, other = firmware(), Extension("shell", b"\x55" * 48)
    for order in ((PROGRAM, BOOT, other), (other, PROGRAM, BOOT), (BOOT, PROGRAM), (PROGRAM,), ()):
        raw = log.to_bytes() + b"".join(each.to_bytes() for each in order)
        with pytest.raises(MeasurementError):
            appraise_log(claims_of(after(log, *order)), raw, (PROGRAM, BOOT))


def test_a_log_of_another_boot_is_refused(claims_of) -> None:
    log, other = firmware(), FirmwareLog(("sha384",))
    claims = claims_of(after(log, PROGRAM, BOOT))
    other.measure(3, 0xD, b"/vmlinuz init=/bin/sh")
    with pytest.raises(VerificationError, match="replays rtmr0"):
        appraise_log(claims, other.to_bytes() + PROGRAM.to_bytes() + BOOT.to_bytes(), (PROGRAM, BOOT))


def test_claims_of_another_kind_are_refused(claims_of) -> None:
    with pytest.raises(AttestationError, match="got evidence of snp"):
        appraise_log(replace(claims_of(registers(firmware())), tee="snp"), firmware().to_bytes(), ())


def test_real_quotes_whose_program_register_is_untouched() -> None:
    """A quote of Intel's hardware: no log of it is public, and none but its own replays."""
    case = json.loads((VECTORS / "cases.json").read_text())["v4_up_to_date"]
    quote = parse_quote((VECTORS / "v4_up_to_date.quote.bin").read_bytes()[:-70]).raw
    claims = verify(Evidence("tdx", quote, (VECTORS / "v4_up_to_date.collateral.json").read_bytes()), now=case["now"])
    with pytest.raises(VerificationError, match="replays rtmr"):
        appraise_log(claims, firmware().to_bytes(), ())


@pytest.mark.parametrize("register", [0, 5, 7])
def test_registers_that_no_trust_domain_has(register: int) -> None:
    log = FirmwareLog(("sha384",))
    log.measure(register, 0x4, b"x")
    with pytest.raises(FormatError, match=f"got register {register}"):
        parse_td_log(log.to_bytes())


def test_a_log_without_sha384_says_nothing_of_a_trust_domain() -> None:
    log = FirmwareLog(("sha256",))
    log.measure(1, 0x4, b"x")
    with pytest.raises(FormatError, match="no digests of bank sha384"):
        replayed(parse_td_log(log.to_bytes()))


def test_a_log_larger_than_any_firmware_s_is_refused() -> None:
    with pytest.raises(FormatError, match="wanted at most"):
        parse_td_log(firmware().to_bytes() + bytes(1 << 20))


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 600), junk=st.binary(max_size=40), at=st.integers(0, 600))
def test_a_hostile_log_raises_nothing_else(cut: int, junk: bytes, at: int) -> None:
    raw = bytearray(firmware().to_bytes() + PROGRAM.to_bytes())
    raw[at : at + len(junk)] = junk
    try:
        events = parse_td_log(bytes(raw[: len(raw) - cut]))
        replayed(events), extensions(events), unpadded(bytes(raw[: len(raw) - cut]))
    except FormatError:
        pass


@given(word=st.text(max_size=70), digest=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_an_extension_comes_back_or_is_refused(word: str, digest: bytes) -> None:
    try:
        raw = Extension(word, digest).to_bytes()
    except UsageError:
        return
    assert extensions(parse_td_log(FirmwareLog(("sha384",)).to_bytes() + raw)) == (Extension(word, digest),)


def test_words_that_are_not_ours_are_not_told() -> None:
    for data in (b"", b"\x31\x4d\x72\x53\xff\xff\0\0x", b"\0" * 8, struct.pack("<II", 0x53724D31, 2) + b"\x1b["):
        event = Event(4, 0x6, {"sha384": ZERO}, data)
        assert extensions([event]) == (Extension("", ZERO),)


# Extending, as the kernel lets one.


def measured() -> Measurement:
    parts = (
        Part("strongroom", 1, 1, b"\x99" * 48),
        Part("program", 1, 1, PROGRAM.digest),
        Part("boot configuration", 0, 9, BOOT.digest),
    )
    return Measurement(parts, {})


class Ccel(Faults):
    """`/sys/firmware/acpi/tables/data`, as drivers/acpi/sysfs.c of Linux has it: the firmware's whole area."""

    root = "/sys/firmware/acpi/tables/data"

    def open(self, name: str, flags: int) -> FakeFile:
        self._use(name)
        return FakeFile(flags, lambda: firmware().to_bytes() + bytes(60_000))


def test_the_firmware_s_log_is_read_without_its_padding() -> None:
    assert read_td_log(system=FakeMachine(Ccel())) == firmware().to_bytes()
    refused = Ccel()
    refused.fail("CCEL", errno.EACCES)
    with pytest.raises(UnsupportedPlatformError, match="permission denied"):
        read_td_log(system=FakeMachine(refused))


def test_the_program_is_measured_before_it_starts(claims_of) -> None:
    rtmrs = FakeRtmrs()
    log = FirmwareLog(("sha384",))
    raw = extend_program(measured(), log.to_bytes(), system=FakeMachine(rtmrs))
    assert program_extensions(measured()) == (PROGRAM, BOOT)
    claims = claims_of(after(log, PROGRAM, BOOT))
    appraise_log(claims, raw, program_extensions(measured()))
    with pytest.raises(EnclaveError, match="rtmr3: is not what the event log says"):
        extend_program(measured(), log.to_bytes(), system=FakeMachine(rtmrs))


def test_no_log_where_there_is_no_trust_domain() -> None:
    with pytest.raises(UnsupportedPlatformError, match="no such file") as caught:
        read_td_log(system=FakeMachine(FakeRtmrs()))
    assert CCEL in caught.value.message


# The command.


def test_expect_prints_what_a_policy_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, mrtd = firmware(), "33" * 48
    (tmp_path / "ccel").write_bytes(log.to_bytes() + bytes(4000))
    assert main(["attest", "expect", "tdx", "--event-log", str(tmp_path / "ccel"), "--mrtd", mrtd]) == 0
    text = capsys.readouterr().out
    reference = parse_reference(text)
    values = {"mrtd": mrtd, **{name: value.hex() for name, value in registers(log).items()}}
    assert (reference.tees, reference.measurements) == (("tdx",), (registers_measurement(values),))
    assert reference.registers == {"mrtd": (mrtd,), "rtmr3": ("00" * 48,)}


def test_expect_takes_the_program_of_a_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strongroom.enclave.measure.measure", lambda config, files, known: measured())
    (tmp_path / "train.py").write_text("print(1)")
    root = "sha256:" + "5" * 64
    (tmp_path / "policy.toml").write_text(
        f'[policy]\nname = "lab/train"\nversion = 1\nowner = "{root}"\nrole = "program"\n[reference]\ntees = ["tdx"]\n'
        '[program]\ncommand = ["python", "train.py"]\nfiles = ["train.py"]\n'
    )
    (tmp_path / "ccel").write_bytes(firmware().to_bytes())
    (tmp_path / "run").write_bytes(firmware().to_bytes() + PROGRAM.to_bytes())
    options = ["--mrtd", "33" * 48, "--policy", str(tmp_path / "policy.toml"), "--cas-root", root, "--json"]
    assert main(["attest", "expect", "tdx", "--event-log", str(tmp_path / "ccel"), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = after(firmware(), PROGRAM, BOOT)
    assert told["registers"] == {"mrtd": "33" * 48, **{name: value.hex() for name, value in expected.items()}}
    assert expected == extended(registers(firmware()), (PROGRAM, BOOT))
    assert [each["what"] for each in told["extensions"]] == ["program", "boot configuration"]
    assert main(["attest", "expect", "tdx", "--event-log", str(tmp_path / "run"), *options]) == 2


@pytest.mark.parametrize("mrtd", ["", "33", "zz" * 48, "33" * 49])
def test_expect_wants_a_whole_register(tmp_path: Path, mrtd: str) -> None:
    (tmp_path / "ccel").write_bytes(firmware().to_bytes())
    assert main(["attest", "expect", "tdx", "--event-log", str(tmp_path / "ccel"), "--mrtd", mrtd]) == 2


# AMD's. The package is not one of ours: where it is not installed, a double of its interface stands in.


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def ovmf() -> bytes:
    """The smallest image that has what SEV-SNP needs, by OvmfPkg/ResetVector of edk2: metadata and a reset vector."""
    metadata = b"ASEV" + struct.pack("<III", 16 + 2 * 12, 1, 2)
    metadata += struct.pack("<III", 0x800000, 0x1000, 1) + struct.pack("<III", 0x80D000, 0x1000, 2)
    entries = struct.pack("<I", 0x80B004) + struct.pack("<H", 22) + guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
    end = 4096
    start = 1024
    entries += struct.pack("<I", end - start) + struct.pack("<H", 22) + guid("dc886566-984a-4798-a75e-5585a7bf67cc")
    footer = struct.pack("<H", len(entries) + 18) + guid("96b582de-1fb2-45f7-baea-a366c55a082d")
    image = bytearray(end)
    image[start : start + len(metadata)] = metadata
    image[end - 32 - 18 - len(entries) : end - 32] = entries + footer
    return bytes(image)


def test_a_launch_digest_by_the_package_itself(tmp_path: Path) -> None:
    pytest.importorskip("sevsnpmeasure", reason="the package sev-snp-measure is not installed")
    (tmp_path / "OVMF.fd").write_bytes(ovmf())
    one, two = (snp_launch_digest(tmp_path / "OVMF.fd", vcpus=n, vcpu_type="EPYC-v4") for n in (1, 2))
    assert (
        one.hex() == "2c1fdbc29be865c3b63f36a040b6ab20706eaf9dde93d32b28a4ca4bfa9041619c45e9c61607ce8b6f372163fcfea744"
    )
    assert one != two


class _Mode(Enum):
    SEV_SNP = 1


class _Vmm(Enum):
    QEMU = 1


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def calc(*arguments: object, vmm_type: object) -> bytes:
        calls.append((*arguments, vmm_type))
        if b"bad" in Path(str(arguments[3])).read_bytes():
            raise RuntimeError("Wrong SEV metadata signature")
        return hashlib.sha384(str(arguments[1]).encode()).digest()

    for name, contents in {
        "": {},
        ".guest": {"calc_launch_digest": calc},
        ".vcpu_types": {"CPU_SIGS": {"EPYC-v4": 0x800F12}},
        ".vmm_types": {"VMMType": _Vmm},
        ".sev_mode": {"SevMode": _Mode},
    }.items():
        module = types.ModuleType(f"sevsnpmeasure{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_launch_digests_become_lines_of_a_policy(
    double: list[tuple[object, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OVMF.fd", "vmlinuz"):
        (tmp_path / name).write_bytes(name.encode())
    options = ["--firmware", str(tmp_path / "OVMF.fd"), "--kernel", str(tmp_path / "vmlinuz"), "--append", "ro"]
    options += ["--vcpu-type", "EPYC-v4", "--vcpus", "2", "--vcpus", "4"]
    assert main(["attest", "expect", "snp", *options]) == 0
    kernel = str(tmp_path / "vmlinuz")
    firmware = str(tmp_path / "OVMF.fd")
    assert double == [(_Mode.SEV_SNP, n, 0x800F12, firmware, kernel, None, "ro", 1, _Vmm.QEMU) for n in (2, 4)]
    text = capsys.readouterr().out
    assert "# 4 processors, EPYC-v4, QEMU" in text
    reference = parse_reference(text + "[reference.minimum_tcb.snp]\nbootloader = 1\ntee = 0\nsnp = 1\nmicrocode = 1\n")
    assert reference.measurements == tuple(hashlib.sha384(str(n).encode()).hexdigest() for n in (2, 4))


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sevsnpmeasure", None)
    for name in ("guest", "vcpu_types", "vmm_types", "sev_mode"):
        monkeypatch.setitem(sys.modules, f"sevsnpmeasure.{name}", None)
    with pytest.raises(MissingDependencyError, match="sev-snp-measure is not installed") as caught:
        snp_launch_digest(tmp_path / "OVMF.fd", vcpus=1, vcpu_type="EPYC-v4")
    assert caught.value.hint == "pip install sev-snp-measure"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vcpus": 0}, "vcpus: got 0"),
        ({"vcpu_type": "Pentium"}, "vcpu type: got 'Pentium'"),
        ({"vmm": "kvmtool"}, "vmm: got 'kvmtool'"),
        ({"append": "ro"}, "kernel: there is none"),
        ({"guest_features": -1}, "guest features"),
        ({"kernel": Path("/nonexistent")}, "is no file"),
    ],
)
def test_what_no_vm_has_is_refused(double: object, tmp_path: Path, options: dict[str, object], why: str) -> None:
    (tmp_path / "OVMF.fd").write_bytes(b"firmware")
    given: dict[str, object] = {"vcpus": 1, "vcpu_type": "EPYC-v4"}
    with pytest.raises(UsageError, match=why):
        snp_launch_digest(tmp_path / "OVMF.fd", **(given | options))  # type: ignore[arg-type]


def test_firmware_that_is_none_is_a_format_error(double: object, tmp_path: Path) -> None:
    (tmp_path / "OVMF.fd").write_bytes(b"bad")
    with pytest.raises(FormatError, match="Wrong SEV metadata signature"):
        snp_launch_digest(tmp_path / "OVMF.fd", vcpus=1, vcpu_type="EPYC-v4")
    assert issubclass(FormatError, StrongroomError)
