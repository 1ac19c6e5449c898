"""What surrounds the code: versions that agree, and the set-up scripts on machines that we imagine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import strongroom
from strongroom.cli.main import VERBS
from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="the set-up scripts install nothing outside Linux")


def test_the_version_is_written_down_the_same_twice() -> None:
    assert PROJECT["version"] == strongroom.__version__


def test_every_pin_is_a_version_that_the_package_accepts() -> None:
    requirements = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    accepted = {r.name.lower(): r.specifier for r in map(Requirement, requirements)}
    pins = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert pin.name.lower() not in accepted or exact.version in accepted[pin.name.lower()], pin


def test_every_make_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert set(re.findall(r"`make ([a-z-]+)", (ROOT / document).read_text())) <= targets


def test_the_files_that_take_longest_exist() -> None:
    assert len({*LONGEST}) == len(LONGEST)
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module(verb: str) -> None:
    package = ROOT / "src/strongroom/cli"
    assert (package / f"{verb}.py").is_file() != (package / verb / "verb.py").is_file()


# A Python that answers what the scripts ask, makes environments of itself, and lets tests decide how pip fares.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *platform*) echo "${FAKE_VERSION:-3.12.1}" ;;
    *'print(sys.executable)'*) echo "$0" ;;
    *'realpath(sys.executable)'*) echo /opt/python ;;
    *version_info\\[1\\]*) echo 12 ;;
    *'%d.%d'*) echo 3.12 ;;
    *'import venv'*) exit "${FAKE_ENSUREPIP:-0}" ;;
    *'import pyfuse3'*) exit 1 ;;
    *'import tpm2_pytss'*) exit "${FAKE_TPM:-0}" ;;
    '-m venv '*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        for name in pip strongroom pytest ruff; do
            printf '#!/bin/bash\\n# %s/%s/bin/python\\n' "$PWD" "$3" >"$3/bin/$name"
            chmod +x "$3/bin/$name"
        done ;;
    '-m pip '*)
        echo "$*" >>calls
        case "$*" in *fuse*) echo 'no fuse.h'; exit 1 ;; *) echo 'pip says why'; exit "${FAKE_PIP:-0}" ;; esac ;;
esac
"""
NEEDED = "bash env cat cmp cp grep tail sed rm mkdir touch stat uname flock chmod dirname tr"


class Machine:
    """A tree to set up, and a PATH that holds nothing but what a test puts there."""

    def __init__(self, home: Path) -> None:
        self.tree, self.bin = home / "tree", home / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT / "scripts", self.tree / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.tree)
        for name in NEEDED.split():
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.program("id", "echo 1000")
        self.program("pkg-config", "exit 0")
        for name in ("cc", "bwrap", "fusermount3", "swtpm", "swtpm_setup", "initdb", "softhsm2-util"):
            self.program(name, "exit 0")
        (self.bin / "python3.12").write_text(FAKE_PYTHON)
        (self.bin / "python3.12").chmod(0o755)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def lacks(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink(missing_ok=True)

    def run(self, *command: str, **env: str) -> tuple[int, str]:
        done = subprocess.run(
            command,
            cwd=self.tree,
            env={"PATH": str(self.bin), "TREE": str(self.tree), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    def setup(self, **env: str) -> tuple[int, str]:
        return self.run("scripts/setup", **env)

    @property
    def calls(self) -> list[str]:
        file = self.tree / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@linux
class TestSetup:
    def test_calm_and_then_nothing_to_do(self, machine: Machine) -> None:
        status, said = machine.setup()
        assert status == 0, said
        assert "installing the pinned packages for Python 3.12.1" in said
        assert said.splitlines()[-1].startswith("setup: ready in ")
        assert len(said.splitlines()) <= 4
        calls = machine.calls
        assert "-c constraints.txt -e .[demo,test]" in calls[0]
        assert machine.setup() == (0, "")
        assert machine.calls == calls

    @pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "scripts/setup"])
    def test_a_change_sets_up_again_in_the_same_environment(self, machine: Machine, name: str) -> None:
        machine.setup()
        (machine.tree / ".venv/mine").touch()
        with (machine.tree / name).open("a") as file:
            file.write("# changed\n")
        assert machine.setup()[0] == 0
        assert len(machine.calls) == 4  # two more
        assert (machine.tree / ".venv/mine").exists()

    def test_pyfuse3_that_does_not_build_takes_away_mounts_only(self, machine: Machine) -> None:
        status, said = machine.setup()
        assert status == 0
        assert "no pyfuse3: enclaves will unpack sealed data into memory" in said

    def test_pip_that_fails_shows_the_end_of_its_log(self, machine: Machine) -> None:
        status, said = machine.setup(FAKE_PIP="1")
        assert status == 1
        assert "    pip says why" in said
        assert "installing the packages failed" in said
        assert machine.setup()[0] == 0

    @pytest.mark.parametrize("damage", ["killed", "no interpreter", "moved"])
    def test_a_broken_environment_is_made_anew(self, machine: Machine, damage: str) -> None:
        machine.setup()
        venv = machine.tree / ".venv"
        (venv / "mine").touch()
        if damage == "killed":
            (venv / "strongroom-unfinished").touch()
            (venv / "strongroom-setup").unlink()
        elif damage == "no interpreter":
            (venv / "bin/python").unlink()
        else:
            machine.tree = machine.tree.rename(machine.tree.parent / "moved")
        status, said = machine.setup()
        assert status == 0
        assert ".venv is incomplete, was moved or has another Python: making it anew" in said
        assert not (machine.tree / ".venv/mine").exists()

    def test_no_python(self, machine: Machine) -> None:
        machine.lacks("python3.12")
        status, said = machine.setup()
        assert status == 1
        assert "python: got no python3 that starts; wanted 3.11 to 3.14" in said
        assert "install python3.11 and python3.11-venv or newer" in said

    @pytest.mark.parametrize("version", ["3.9.2", "3.15.0", "2.7.18"])
    def test_an_unsuitable_python(self, machine: Machine, version: str) -> None:
        (machine.bin / "python3.12").rename(machine.bin / "python3")
        status, said = machine.setup(FAKE_VERSION=version)
        assert status == 1
        assert f"python: got python3 {version}; wanted 3.11 to 3.14" in said
        status, said = machine.setup(FAKE_VERSION=version, PYTHON="python3")
        assert status == 1
        assert f"PYTHON: got python3, which is Python {version}; wanted 3.11 to 3.14" in said

    def test_a_python_without_venv_names_the_package(self, machine: Machine) -> None:
        status, said = machine.setup(FAKE_ENSUREPIP="1")
        assert status == 1
        assert "install it: apt-get install python3.12-venv" in said

    def test_python_3_14_serves_where_there_is_no_other(self, machine: Machine) -> None:
        shutil.copy(machine.bin / "python3.12", machine.bin / "python3.14")
        assert machine.setup()[0] == 0
        assert (machine.tree / ".cache/setup.log").read_text().count("bin/python3.12 -m venv") == 1
        shutil.rmtree(machine.tree / ".venv")
        machine.lacks("python3.12")
        status, said = machine.setup(FAKE_VERSION="3.14.2")
        assert status == 0
        assert "for Python 3.14.2" in said

    def test_tpm2_pytss_that_does_not_build_takes_away_making_evidence_only(self, machine: Machine) -> None:
        machine.program("pkg-config", 'case "$*" in *tss2*) exit 1 ;; esac')
        status, said = machine.setup(FAKE_TPM="1")
        assert status == 0
        assert "no tpm2-pytss: evidence from a TPM can be verified here, but not made" in said
        assert not any("[tpm]" in call for call in machine.calls)
        machine.program("pkg-config", "echo 4.0.1")  # once its headers are there
        assert "no tpm2-pytss" not in machine.setup(FAKE_TPM="1")[1]
        assert machine.calls[-1].endswith("-e .[tpm]")

    def test_extras_only_if_asked_for(self, machine: Machine) -> None:
        assert machine.setup()[0] == 0
        assert not any("[ray]" in call for call in machine.calls)
        status, said = machine.setup(STRONGROOM_EXTRAS="ray,tensorflow")
        assert status == 0, said
        assert [call.split()[-1] for call in machine.calls[-2:]] == [".[ray]", ".[tensorflow]"]
        assert machine.setup(STRONGROOM_EXTRAS="ray tensorflow") == (0, "")

    def test_flower_has_an_environment_of_its_own_without_the_pins(self, machine: Machine) -> None:
        status, said = machine.setup(STRONGROOM_EXTRAS="flower,ray")
        assert status == 0, said
        flower, ray = machine.calls[-2:]
        assert "constraints" not in flower and "flwr==" in flower
        assert "constraints" in ray and (machine.tree / ".venv-flower" / "bin" / "python").exists()

    def test_an_extra_that_does_not_install_takes_away_itself_only(self, machine: Machine) -> None:
        status, said = machine.setup(STRONGROOM_EXTRAS="fuse")
        assert status == 0
        assert "no fuse: its packages could not be installed" in said

    def test_an_unknown_extra(self, machine: Machine) -> None:
        status, said = machine.setup(STRONGROOM_EXTRAS="nonsense")
        assert status == 1
        assert "STRONGROOM_EXTRAS: got nonsense, which pyproject.toml does not list" in said
        assert machine.calls == []

    def test_a_wrapper_that_does_not_start_is_passed_over(self, machine: Machine) -> None:
        machine.program("python3.13", "exit 127")
        assert "for Python 3.12.1" in machine.setup()[1]


@linux
class TestSystemPackages:
    def packages(self, machine: Machine, **env: str) -> str:
        status, said = machine.run("scripts/system-packages", "python3.12", LOG="log", **env)
        assert status == 0  # whatever happens
        return said

    def test_nothing_missing_nothing_said(self, machine: Machine) -> None:
        assert self.packages(machine) == ""

    def test_what_tpms_need(self, machine: Machine) -> None:
        machine.program("pkg-config", 'case "$*" in *tss2*) exit 1 ;; esac')
        machine.lacks("swtpm", "swtpm_setup")
        said = self.packages(machine)
        assert "can install: libtss2-dev swtpm swtpm-tools" in said
        assert "no software TPM (swtpm, swtpm-tools): tests of evidence from a TPM will be skipped" in said

    def test_what_tokens_need(self, machine: Machine) -> None:
        machine.lacks("softhsm2-util")
        said = self.packages(machine)
        assert "can install: softhsm2" in said
        assert "no SoftHSM (softhsm2): tests of keys in PKCS#11 tokens will be skipped" in said

    def test_a_plain_user_is_told_the_names(self, machine: Machine) -> None:
        machine.lacks("bwrap", "fusermount3", "cc")
        said = self.packages(machine)
        assert "missing system packages, which your administrator can install: bubblewrap fuse3 gcc libc6-dev" in said
        assert "no bubblewrap: simulated enclaves will run as ordinary processes" in said

    def test_root_installs_what_is_missing_and_updates_only_if_that_fails(self, machine: Machine) -> None:
        machine.lacks("bwrap")
        machine.program("id", "echo 0")
        machine.program("apt-get", 'echo "$*" >>calls; case "$*" in *install*) cp "$(type -P true)" $BIN/bwrap ;; esac')
        (machine.bin / "true").symlink_to(str(shutil.which("true")))
        said = self.packages(machine, BIN=str(machine.bin))
        assert said == "setup: installing system packages: bubblewrap\n"
        assert [call.split()[-1] for call in machine.calls] == ["bubblewrap"]

    def test_root_on_a_fresh_machine(self, machine: Machine) -> None:
        machine.lacks("bwrap")
        machine.program("id", "echo 0")
        machine.program("apt-get", 'echo "$*" >>calls; case "$*" in *update*) ;; *) exit 100 ;; esac')
        said = self.packages(machine)
        assert "could not install: bubblewrap" in said
        assert ["update" in call for call in machine.calls] == [False, True, False, False]

    def test_sudo_only_if_it_asks_for_no_password(self, machine: Machine) -> None:
        machine.lacks("bwrap")
        machine.program("apt-get", 'echo "$*" >>calls')
        machine.program("sudo", '[ "$1" = -n ] || exit 1; shift; [ "$SUDO" = yes ] || exit 1; exec "$@"')
        (machine.bin / "true").symlink_to(str(shutil.which("true")))
        assert "which your administrator can install: bubblewrap" in self.packages(machine, SUDO="no")
        assert machine.calls == []
        assert "installing system packages with sudo: bubblewrap" in self.packages(machine, SUDO="yes")
        assert machine.calls


@linux
def test_the_scripts_parse() -> None:
    for script in [*ROOT.glob("scripts/*"), ROOT / ".ci/run"]:
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", script]).returncode == 0
