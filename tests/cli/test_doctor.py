"""`strongroom doctor` on machines that we imagine, and once on this one."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from strongroom import __version__
from strongroom.cli.doctor import verb as doctor
from strongroom.cli.doctor.probe import Probe, Row, ThisMachine

DEMO_PACKAGES = {
    "torch": "2.13.0",
    "onnx": "1.23.2",
    "onnxruntime": "1.31.1",
    "onnxscript": "0.7",
    "scikit-learn": "1.9",
}
CPUINFO = "processor\t: 0\nflags\t\t: fpu aes vaes avx512f\n\nprocessor\t: 1\nflags\t\t: fpu aes\n"


@dataclass
class FakeMachine:
    """A Linux machine on which the demo runs and nothing else does; tests take away or add."""

    system: str = "Linux"
    release: str = "6.12.0"
    arch: str = "x86_64"
    python: str = "3.12.1"
    files: dict[str, str] = field(default_factory=lambda: {"/proc/cpuinfo": CPUINFO})
    refused: dict[str, str] = field(default_factory=dict)
    programs: set[str] = field(default_factory=lambda: {"bwrap", "unshare"})
    failing: dict[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=lambda: dict(DEMO_PACKAGES))
    tsm: str | None = None
    is_root: bool = False
    closed_to_others: str | None = None
    landlock_version: int = 7
    control: Mapping[str, tuple[str, Path]] = field(default_factory=dict)

    def root(self) -> bool:
        return self.is_root

    def closed(self) -> str | None:
        return self.closed_to_others

    def landlock(self) -> int:
        return self.landlock_version

    def groups(self) -> Mapping[str, tuple[str, Path]]:
        return self.control

    def exists(self, path: str) -> bool:
        return path in self.files

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def refusal(self, path: str) -> str | None:
        return self.refused.get(path)

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.programs else None

    def run(self, *command: str) -> str | None:
        assert command[0] in self.programs
        return self.failing.get(command[0])

    def version(self, package: str) -> str | None:
        return self.packages.get(package)

    def tsm_provider(self) -> str | None:
        return self.tsm


def row(machine: Probe, what: str) -> Row:
    (found,) = [row for row in doctor.examine(machine) if row.what == what]
    return found


def report(machine: Probe, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    status = doctor.run(argparse.Namespace(json=True), machine)
    return status, json.loads(capsys.readouterr().out)


def test_a_machine_with_what_the_demo_needs(capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = report(FakeMachine(), capsys)
    assert status == 0
    assert facts["demo"] is True
    assert facts["machine"] == {
        "strongroom": __version__,
        "system": "Linux 6.12.0",
        "architecture": "x86_64",
        "python": "3.12.1",
    }


@pytest.mark.parametrize("package", DEMO_PACKAGES)
def test_each_package_of_the_demo_decides_the_exit_status(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(packages={k: v for k, v in DEMO_PACKAGES.items() if k != package})
    status, facts = report(machine, capsys)
    assert (status, facts["demo"]) == (3, False)
    assert row(machine, package).status == "missing"


def test_what_the_demo_does_not_need_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert row(FakeMachine(), "tensorflow").status == "missing"
    assert report(FakeMachine(), capsys)[0] == 0


@pytest.mark.parametrize("machine", [FakeMachine(), FakeMachine(system="Darwin"), FakeMachine(tsm="tdx_guest")])
def test_the_simulated_enclave_is_always_there_with_its_caveat(machine: FakeMachine) -> None:
    found = row(machine, "simulated")
    assert found.status == "limited"
    assert "protects nothing against the owner of this machine" in found.detail
    assert "a process of the same user outside the sandbox can read its memory, and root always can" in found.detail


class TestConfidentialVms:
    def test_tdx(self) -> None:
        assert row(FakeMachine(tsm="tdx_guest"), "tdx").status == "ok"
        assert row(FakeMachine(tsm="tdx_guest"), "snp").status == "missing"

    def test_snp(self) -> None:
        assert row(FakeMachine(tsm="sev_guest"), "snp").status == "ok"
        assert row(FakeMachine(tsm="sev_guest"), "tdx").status == "missing"

    def test_a_guest_device_without_configfs_is_limited(self) -> None:
        found = row(FakeMachine(files={"/dev/sev-guest": ""}), "snp")
        assert found.status == "limited"
        assert "configfs" in found.how_to_get

    def test_an_unknown_provider_is_neither(self) -> None:
        assert {row(FakeMachine(tsm="arm_cca_guest"), name).status for name in ("tdx", "snp")} == {"missing"}

    def test_gramine(self) -> None:
        files = {"/dev/attestation": "", "/dev/attestation/attestation_type": "dcap\n"}
        assert row(FakeMachine(files=files), "gramine").status == "ok"
        files["/dev/attestation/attestation_type"] = "none\n"
        found = row(FakeMachine(files=files), "gramine")
        assert (found.status, found.detail) == ("limited", "inside, attestation_type is none")


class TestAttester:
    gramine = types.MappingProxyType({"/dev/attestation": "", "/dev/attestation/attestation_type": "dcap"})
    without = types.MappingProxyType({"/dev/attestation": "", "/dev/attestation/attestation_type": "none"})
    tpm = types.MappingProxyType({"tpm2-pytss": "3.0.0"})

    @pytest.mark.parametrize(
        ("machine", "status", "detail"),
        [
            (FakeMachine(files={}), "missing", "simulated evidence only"),
            (FakeMachine(files=dict(gramine), tsm="tdx_guest"), "ok", "evidence of kind sgx, by Gramine"),
            (FakeMachine(files=dict(without), tsm="tdx_guest"), "missing", "Gramine makes no quotes here"),
            (FakeMachine(tsm="tdx_guest"), "ok", "evidence of kind tdx, by configfs-tsm"),
            (FakeMachine(tsm="sev_guest"), "ok", "evidence of kind snp, by configfs-tsm"),
            (FakeMachine(tsm="arm_cca_guest"), "missing", "arm_cca_guest is not supported"),
            (
                FakeMachine(files={"/dev/tdx_guest": "", "/dev/tpmrm0": ""}),
                "limited",
                "a confidential VM whose configfs-tsm does not answer",
            ),
            (FakeMachine(files={"/dev/nsm": ""}), "ok", "evidence of kind nitro, by /dev/nsm"),
            (
                FakeMachine(files={"/dev/nsm": ""}, refused={"/dev/nsm": "permission denied"}),
                "limited",
                "/dev/nsm does not open: permission denied",
            ),
            (FakeMachine(files={"/dev/tpmrm0": ""}), "limited", "a TPM, without tpm2-pytss"),
            (FakeMachine(files={"/dev/tpmrm0": ""}, packages=tpm), "ok", "evidence of kind tpm, by /dev/tpmrm0"),
        ],
    )
    def test_the_first_that_is_there(self, machine: FakeMachine, status: str, detail: str) -> None:
        found = row(machine, "attester")
        assert (found.status, found.detail) == (status, detail)


@pytest.mark.parametrize(("what", "path"), [("sgx", "/dev/sgx_enclave"), ("nitro", "/dev/nsm"), ("tpm", "/dev/tpmrm0")])
def test_a_device_must_open(what: str, path: str) -> None:
    assert row(FakeMachine(), what).status == "missing"
    assert row(FakeMachine(files={path: ""}), what).status == "ok"
    closed = row(FakeMachine(files={path: ""}, refused={path: "permission denied"}), what)
    assert (closed.status, closed.detail) == ("limited", f"{path} does not open: permission denied")


class TestSandbox:
    def test_without_bubblewrap_the_demo_runs_unisolated(self, capsys: pytest.CaptureFixture[str]) -> None:
        machine = FakeMachine(programs={"unshare"})
        found = row(machine, "bubblewrap")
        assert (found.status, found.detail, found.how_to_get) == ("missing", "not installed", "install bubblewrap")
        assert found.needed_for == "isolating a simulated enclave, without it an ordinary process"
        assert report(machine, capsys)[0] == 0

    def test_bubblewrap_must_really_start_a_sandbox(self) -> None:
        machine = FakeMachine(failing={"bwrap": "bwrap: setting up uid map: Permission denied"})
        found = row(machine, "bubblewrap")
        assert found.status == "limited"
        assert found.detail == "a sandbox fails: bwrap: setting up uid map: Permission denied"
        assert "user namespaces" in found.how_to_get

    @pytest.mark.parametrize(
        ("setting", "value", "remedy"),
        [
            ("kernel.apparmor_restrict_unprivileged_userns", "1\n", "kernel.apparmor_restrict_unprivileged_userns=0"),
            ("kernel.unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone=1"),
            ("user.max_user_namespaces", "0\n", "user.max_user_namespaces=10000"),
            ("user.max_user_namespaces", "95000\n", "in this container"),
        ],
    )
    def test_what_forbids_user_namespaces_is_named(self, setting: str, value: str, remedy: str) -> None:
        path = "/proc/sys/" + setting.replace(".", "/")
        found = row(FakeMachine(files={path: value}, failing={"unshare": "Operation not permitted"}), "namespaces")
        assert found.status == "limited"
        assert found.how_to_get.endswith(remedy)


class TestBounds:
    """User ids, system calls, files, memory and processors."""

    def test_user_ids_take_root_a_sandbox_and_an_open_environment(self) -> None:
        assert row(FakeMachine(is_root=True), "user ids").status == "ok"
        for machine, words in (
            (FakeMachine(), "plain user"),
            (FakeMachine(is_root=True, programs={"unshare"}), "no sandbox"),
            (FakeMachine(is_root=True, closed_to_others="/root/venv"), "/root/venv is closed to other users"),
        ):
            found = row(machine, "user ids")
            assert found.status == "limited"
            assert words in found.detail
            assert "can read its memory" in found.needed_for
        assert found.how_to_get == "chmod -R o+rX /root/venv"

    def test_seccomp_takes_a_kernel_and_a_processor_that_it_is_written_for(self) -> None:
        there = {"/proc/self/status": "Name:\tx\nSeccomp:\t0\n"}
        assert row(FakeMachine(files=there), "seccomp").status == "ok"
        assert row(FakeMachine(files=there, arch="riscv64"), "seccomp").detail == "no filter for riscv64"
        assert row(FakeMachine(files={}), "seccomp").status == "missing"

    @pytest.mark.parametrize(("version", "status"), [(0, "missing"), (5, "limited"), (6, "ok"), (7, "ok")])
    def test_landlock_by_its_version(self, version: int, status: str) -> None:
        assert row(FakeMachine(landlock_version=version), "landlock").status == status

    def test_control_groups_by_controller(self) -> None:
        memory, cpu = ("2", Path("/sys/fs/cgroup/user")), ("1", Path("/sys/fs/cgroup/cpu"))
        whole = row(FakeMachine(control={"memory": memory, "cpu": cpu}), "control groups")
        assert (whole.status, whole.detail) == (
            "ok",
            "memory by version 2, cpu by version 1",
        )
        half = row(FakeMachine(control={"memory": memory}), "control groups")
        assert half.status == "limited"
        assert half.detail.endswith("; none for cpu that this user may make")
        assert "user@.service" in half.how_to_get
        none = row(FakeMachine(programs={"systemd-run"}), "control groups")
        assert (none.status, none.detail) == ("missing", "none for memory and cpu that this user may make")
        assert "Delegate=yes" in none.how_to_get
        assert "as root" in row(FakeMachine(is_root=True), "control groups").how_to_get


class TestFuse:
    ready = FakeMachine(
        files={"/dev/fuse": ""}, programs={"bwrap", "unshare", "fusermount3"}, packages={"pyfuse3": "3.5.0"}
    )

    def test_all_there(self) -> None:
        assert row(self.ready, "fuse").status == "ok"

    def test_nothing_there_is_not_needed_by_the_demo(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = row(FakeMachine(), "fuse")
        assert found.status == "missing"
        assert found.detail == "lacks the package pyfuse3, /dev/fuse, fusermount3 for mounts by plain users"
        assert "modprobe fuse" in found.how_to_get
        assert report(FakeMachine(), capsys)[0] == 0

    def test_a_device_for_root_only(self) -> None:
        machine = FakeMachine(
            files=self.ready.files,
            programs=self.ready.programs,
            packages=self.ready.packages,
            refused={"/dev/fuse": "permission denied"},
        )
        found = row(machine, "fuse")
        assert (found.status, found.detail) == ("missing", "lacks access to /dev/fuse (permission denied)")
        assert found.how_to_get == "as root: chmod 0666 /dev/fuse"

    def test_without_fusermount_enclaves_still_mount(self) -> None:
        found = row(FakeMachine(files=self.ready.files, packages=self.ready.packages), "fuse")
        assert (found.status, found.how_to_get) == ("limited", "install fuse3")


def test_wireguard_loaded_built_in_or_loadable() -> None:
    assert row(FakeMachine(), "wireguard").status == "missing"
    for path, text in (
        ("/sys/module/wireguard", ""),
        ("/lib/modules/6.12.0/modules.builtin", "kernel/drivers/net/wireguard/wireguard.ko\n"),
        ("/lib/modules/6.12.0/modules.dep", "kernel/drivers/net/wireguard/wireguard.ko.xz: kernel/a.ko\n"),
    ):
        assert row(FakeMachine(files={path: text}), "wireguard").status == "ok"


def test_memory_and_processors_say_how_large_an_enclave_may_be() -> None:
    assert row(FakeMachine(), "memory").status == "unknown"
    machine = FakeMachine(files={"/proc/cpuinfo": CPUINFO, "/proc/meminfo": "MemTotal:       16384000 kB\n"})
    assert row(machine, "memory").detail == "15.6 GiB, processors: 2; strongroom gramine takes 8G, 16 threads"


def test_processor_instructions() -> None:
    assert {row(FakeMachine(), name).status for name in ("AES", "VAES", "AVX-512")} == {"ok"}
    arm = FakeMachine(arch="aarch64", files={"/proc/cpuinfo": "Features\t: fp asimd aes sha2\n"})
    assert [row(arm, name).status for name in ("AES", "VAES", "AVX-512")] == ["ok", "missing", "missing"]
    assert row(FakeMachine(files={}), "AES").status == "unknown"


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(system=system, files={}, programs=set())
    found = row(machine, "linux")
    assert (found.status, found.demo) == ("missing", True)
    assert found.detail == f"this is {system}: sealing, attestation and clients work"
    assert row(machine, "AES").status == "unknown"
    assert report(machine, capsys)[0] == 3


@pytest.mark.parametrize("machine", [FakeMachine(), FakeMachine(system="Windows", packages={}), TestFuse.ready])
def test_the_table_fits_80_columns_and_keeps_every_word(machine: FakeMachine) -> None:
    rows = doctor.examine(machine)
    console = Console(file=io.StringIO(), width=80)
    console.print(doctor.table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    words = set(text.split())
    for each in rows:
        assert {*each.what.split(), *each.detail.split(), each.status} <= words | {w.rstrip(";") for w in words}


def test_the_table_says_whether_the_demo_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(argparse.Namespace(json=False), FakeMachine()) == 0
    assert "the demo can run here: strongroom demo" in capsys.readouterr().out
    assert doctor.run(argparse.Namespace(json=False), FakeMachine(system="Darwin", packages={"onnx": "1"})) == 3
    assert "the demo cannot run here: it needs linux, torch, onnxruntime" in capsys.readouterr().out


def test_rows_are_complete_and_unique() -> None:
    rows = doctor.examine(FakeMachine())
    assert len({r.what for r in rows}) == len(rows)
    for each in rows:
        assert all((each.group, each.what, each.detail, each.needed_for, each.how_to_get))


def test_on_this_machine_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from strongroom.cli.main import main; status = main(['doctor', '--json'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'sklearn', 'numpy', 'cryptography', 'pyfuse3'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 3), done.stderr
    assert {r["what"] for r in json.loads(done.stdout)["rows"]} >= {"simulated", "fuse", "torch"}


def test_this_machine_answers_every_question_without_raising() -> None:
    machine = ThisMachine()
    assert machine.read("/does/not/exist") is None
    assert machine.refusal("/does/not/exist") == "no such file or directory"
    assert machine.run(sys.executable, "-c", "import sys; sys.exit('no\\nbecause')") == "because"
    assert machine.run(sys.executable, "-c", "raise SystemExit(7)") == "exit status 7"
    assert machine.run("/does/not/exist") is not None
    assert machine.run(sys.executable, "-c", "") is None
    assert machine.version("no-such-distribution") is None
    assert machine.version("strongroom") is not None
    machine.tsm_provider()
    assert machine.landlock() >= 0
    assert set(machine.groups()) <= {"memory", "cpu"}
    assert machine.closed() is None or Path(machine.closed()).exists()
