"""What stands in deploy/, linted and its commands run, without a Docker engine and without systemd as init."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from strongroom.cli.cas.start import options as cas_options
from strongroom.cli.main import main
from strongroom.cli.parser import Parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"

# Docker's documentation, "Dockerfile reference"; those that this project has a use for.
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT", "CMD"}


@dataclass(frozen=True)
class Instruction:
    name: str
    rest: str
    stage: int


def instructions() -> list[Instruction]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found, stage = [], 0
    for line in filter(None, lines):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        found.append(Instruction(name, rest.strip(), stage))
    return found


def of(name: str) -> list[Instruction]:
    return [each for each in instructions() if each.name == name]


def test_the_dockerfile_has_instructions_that_docker_knows() -> None:
    assert {each.name for each in instructions()} <= INSTRUCTIONS
    assert instructions()[0].rest == "BASE=python:3.12-slim-bookworm"  # a tag, not `latest`; BASE=...@sha256 pins it
    assert [each.rest for each in of("FROM")] == ["${BASE} AS build", "${BASE}"]
    for name in ("ENTRYPOINT", "CMD"):
        (only,) = of(name)
        assert all(isinstance(word, str) for word in json.loads(only.rest))  # no shell in between


def test_the_image_runs_as_nobody_in_particular() -> None:
    *_, user = of("USER")
    last = max(each.stage for each in instructions())
    assert user.stage == last and re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.rest)
    after = instructions()[instructions().index(user) :]
    assert {"RUN", "COPY", "USER"} & {each.name for each in after} == {"USER"}


def test_the_image_is_built_of_files_that_are_there_and_of_no_others() -> None:
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [word for each in of("COPY") if each.stage == 1 for word in each.rest.split()[:-1]]
    assert sorted(allowed) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)
    # The package's own build takes in more than its source.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*build["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"], build["project"]["readme"]]
    assert all(Path(name).parts[0] in copied for name in needed)
    extras = next(each.rest for each in of("ARG") if each.rest.startswith("EXTRAS=")).removeprefix("EXTRAS=")
    assert set(extras.split(",")) <= set(build["project"]["optional-dependencies"])


def test_the_image_s_commands_run(tmp_path: Path) -> None:
    """Each RUN line by a real shell, in a directory of its own, with stand-ins for what needs root or a network."""
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir()
    for name in ("apt-get", "groupadd", "useradd", "python", "pip", "rm"):
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> {log}\n')
        (tools / name).chmod(0o755)
    venv = tmp_path / "opt" / "strongroom" / "bin"
    venv.mkdir(parents=True)
    shutil.copy(tools / "pip", venv / "pip")
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "EXTRAS": "serve,fuse"}
    for each in of("RUN"):
        command = each.rest.replace("/opt/", f"{tmp_path}/opt/").replace("/var/lib/apt/", f"{tmp_path}/apt/")
        subprocess.run(["/bin/sh", "-eu", "-c", command], env=environment, cwd=tmp_path, check=True, timeout=30)
    ran = log.read_text().splitlines()
    installed = [shlex.split(line) for line in ran if line.startswith("apt-get install")]
    assert len(installed) == 2 and all("--no-install-recommends" in words and "--yes" in words for words in installed)
    assert ran.count("apt-get update") == ran.count(f"rm -rf {tmp_path}/apt/lists/*") == 2
    # The same packages as on a host.
    known = (ROOT / "scripts" / "system-packages").read_text()
    packages = [word for words in installed for word in words[2:] if not word.startswith("-")]
    assert packages and all(re.search(rf"\b{re.escape(name)}\b", known) for name in packages)
    assert "pip install --no-cache-dir --constraint constraints.txt .[serve,fuse]" in ran
    (user,) = [line for line in ran if line.startswith("useradd")]
    assert "--uid 10001" in user and "/usr/sbin/nologin" in user


def test_the_image_s_packages_are_pinned() -> None:
    pinned = {re.split(r"[=;\[ ]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *project["optional-dependencies"]["serve"],
        *project["optional-dependencies"]["fuse"],
    ]
    assert {re.split(r"[><=;\[ ]", each)[0].lower() for each in needed} <= pinned


# compose.yaml


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


# The Compose specification, "Services top-level elements"; those that this project has a use for.
SERVICE = {
    "image", "build", "command", "volumes", "ports", "healthcheck", "read_only", "tmpfs", "cap_drop", "security_opt",
    "stop_grace_period", "restart", "profiles", "working_dir", "depends_on", "devices",
}  # fmt: skip


def test_the_services_have_keys_that_compose_knows(compose: dict[str, Any]) -> None:
    assert set(compose) <= {"name", "services", "volumes", "x-image"}
    for service in compose["services"].values():
        assert set(service) <= SERVICE
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert source in compose["volumes"] or source.startswith("./")
    # Compose fills in the whole file, whichever service is asked for.
    assert all(":-" in each for each in re.findall(r"\$\{[^}]*\}", (DEPLOY / "compose.yaml").read_text()))
    assert compose["services"]["enclave"]["depends_on"] == {"cas": {"condition": "service_healthy"}}
    assert all(port.startswith("127.0.0.1:") for port in compose["services"]["cas"]["ports"])


def test_the_services_commands_are_those_of_this_version(
    compose: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for service in compose["services"].values():
        words = [re.sub(r"\$\{CAS_ROOT[^}]*\}", "sha256:" + "0" * 64, word) for word in service["command"]]
        with pytest.raises(SystemExit) as ended:  # argparse has read all before it comes to --help
            main([*words, "--help"])
        assert ended.value.code == 0
    assert capsys.readouterr().out


def test_the_services_cas_starts_is_healthy_and_stops(compose: dict[str, Any], tmp_path: Path) -> None:
    service = compose["services"]["cas"]
    config = tmp_path / "cas.toml"
    text = (DEPLOY / "cas.toml").read_text().replace("/var/lib/strongroom", str(tmp_path))
    # This test's port and address, not those of a container of its own.
    config.write_text(text.replace("8443", "0").replace("0.0.0.0", "127.0.0.1"))  # noqa: S104
    mounted = service["volumes"][1].split(":")[1]
    words = [word.replace(mounted, str(config)) for word in service["command"]]
    environment = {**os.environ, "STRONGROOM_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "strongroom", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        test = service["healthcheck"]["test"]
        probe = test[3].replace("https://127.0.0.1:8443", url)
        assert test[:3] == ["CMD", "/opt/strongroom/bin/python", "-c"]
        subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, "-c", probe], check=True, timeout=60, stderr=subprocess.DEVNULL)


def test_the_cas_s_options_are_those_of_this_version() -> None:
    parser = Parser()
    cas_options(parser)
    known = {name for action in parser._actions for name in action.option_strings}
    assert {f"--{key}" for key in tomllib.loads((DEPLOY / "cas.toml").read_text())} <= known


# The unit.


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, of a program that is there."""
    text = (DEPLOY / "strongroom-cas.service").read_text()
    path = tmp_path / "strongroom-cas.service"
    path.write_text(text.replace("/opt/strongroom/bin/strongroom", f"{sys.executable} -m strongroom"))
    return path


def test_the_unit_says_what_a_service_needs(unit: Path) -> None:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    command = shlex.split(found["ExecStart"][0])
    assert command[3:] == ["cas", "start", "--config", "/etc/strongroom/cas.toml"]
    for key in ("NoNewPrivileges", "DynamicUser", "ProtectHome", "PrivateTmp", "RestrictNamespaces", "LockPersonality"):
        assert found[key] == ["yes"], key
    assert found["CapabilityBoundingSet"] == [""] and found["ProtectSystem"] == ["strict"]
    assert found["LimitCORE"] == ["0"] and found["UMask"] == ["0077"]
    # Python's own compiler of closures, and that of PyTorch, map memory that is written and then run.
    assert "MemoryDenyWriteExecute" not in found


def test_systemd_accepts_the_unit(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit is not verified")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.replace("\n", "")) == (0, "")
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stdout[-200:]  # an exposure of at most 1.5 of 10
