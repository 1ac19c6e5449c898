"""What a confidential VM is expected to be: logs of trust domains and their replay, launch digests of SEV-SNP."""

from __future__ import annotations

import hashlib
import struct
import sys
import types
import uuid
from enum import Enum
from pathlib import Path

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.launch_digest import snp_launch_digest
from strongroom.attest.parse.launched import event_bytes, program_event
from strongroom.attest.parse.td_log import parse_td_log, replayed, unpadded
from strongroom.cas.policy.version import parse_reference
from strongroom.cli.main import main
from strongroom.errors import (
    FormatError,
    MissingDependencyError,
    StrongroomError,
    UsageError,
)
from strongroom.testing.event_log import FirmwareLog, variable

ZERO = bytes(48)


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


@pytest.mark.parametrize("padding", [b"\0" * 5000, b"\xff" * 5000, b""])
def test_the_padding_of_the_firmware_s_area_is_no_event(padding: bytes) -> None:
    log = firmware()
    raw = log.to_bytes() + padding
    assert replayed(parse_td_log(raw)) == registers(log)
    # The last event's own zeros stay.
    assert unpadded(raw) == log.to_bytes()


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


PROGRAM = "5a" * 48


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a policy, whose program is measured as `PROGRAM`."""
    measured = types.SimpleNamespace(value=PROGRAM)
    monkeypatch.setattr("strongroom.enclave.measure.measure", lambda config, files, known: measured)
    (tmp_path / "train.py").write_text("print(1)")
    root = "sha256:" + "5" * 64
    (tmp_path / "policy.toml").write_text(
        f'[policy]\nname = "lab/train"\nversion = 1\nowner = "{root}"\nrole = "program"\n[reference]\ntees = ["tdx"]\n'
        '[program]\ncommand = ["python", "train.py"]\nfiles = ["train.py"]\n'
    )
    return ["--policy", str(tmp_path / "policy.toml"), "--cas-root", root]


def test_expect_makes_a_trust_domain_the_platform_of_a_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: list[str]
) -> None:
    log, mrtd = firmware(), "33" * 48
    (tmp_path / "ccel").write_bytes(log.to_bytes() + bytes(4000))
    options = ["attest", "expect", "tdx", "--mrtd", mrtd, *policy, "--event-log"]
    assert main([*options, str(tmp_path / "ccel")]) == 0
    reference = parse_reference(capsys.readouterr().out)
    assert (reference.tees, reference.measurements) == (("tdx",), (PROGRAM,))
    booted = registers(log)
    pinned = {"mrtd": (mrtd,)} | {name: (booted[name].hex(),) for name in ("rtmr0", "rtmr1", "rtmr2")}
    assert reference.platforms == {"tdx": pinned}
    # Not of a boot after which something was launched.
    started = event_bytes(program_event(4, PROGRAM, ("sha384",)))
    (tmp_path / "later").write_bytes(log.to_bytes() + started)
    assert main([*options, str(tmp_path / "later")]) == 2
    assert "measured into RTMR3 already" in capsys.readouterr().err


def test_expect_makes_a_machine_with_a_tpm_the_platform_of_a_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: list[str]
) -> None:
    log = FirmwareLog()
    for pcr in (0, 4, 7, 11, 14):
        log.measure(pcr, 0xD, f"measured into {pcr}".encode())
    (tmp_path / "log").write_bytes(log.to_bytes())
    options = ["attest", "expect", "tpm", *policy, "--event-log"]
    assert main([*options, str(tmp_path / "log")]) == 0
    text = capsys.readouterr().out
    reference = parse_reference(text)
    values = log.pcrs("sha256")
    # Not 11, which changes while a system runs.
    assert reference.platforms == {"tpm": {f"pcr{pcr}": (values[pcr].hex(),) for pcr in (0, 4, 7, 14)}}
    assert reference.measurements == (PROGRAM,)
    nothing = FirmwareLog()
    nothing.measure(0, 0xD, b"firmware")
    (tmp_path / "log").write_bytes(nothing.to_bytes())
    assert main([*options, str(tmp_path / "log")]) == 2
    assert "measures nothing into pcr4" in capsys.readouterr().err


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
    double: list[tuple[object, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: list[str]
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
    digests = tuple(hashlib.sha384(str(n).encode()).hexdigest() for n in (2, 4))
    assert reference.measurements == digests
    # As the platform of a program: nothing tells what else runs there, and the policy says so.
    assert main(["attest", "expect", "snp", *options, *policy]) == 0
    reference = parse_reference(capsys.readouterr().out)
    assert (reference.measurements, reference.other_programs) == ((PROGRAM,), ("any",))
    assert reference.platforms == {"snp": {"measurement": digests}}


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
