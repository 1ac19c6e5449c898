"""The README's examples run as written, in order, in one directory.

What a reader replaces is replaced here too: the policy's name by the one that `serve` printed, and the port by a free
one. Its `make` lines are checked against the Makefile only: they are what runs this.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
FILES = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_readme_names_targets_of_the_makefile() -> None:
    named = re.findall(r"make ([a-z-]+)", " ".join(text for kind, text in BLOCKS if kind == "console"))
    assert named == ["demo", "test"]
    assert all(re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for name in named)


def test_readme_shows_every_step() -> None:
    verbs = [line.split()[1] for line in SHELL if line.startswith("strongroom ")]
    assert [verb for verb in verbs if verb in ("seal", "run", "serve", "predict")] == [
        "seal",
        "run",
        "serve",
        "predict",
    ]


def test_readme_seals_and_unseals(tmp_path: Path) -> None:
    """The part that needs no enclave."""
    environment = _environment(tmp_path)
    for line in SHELL[: next(i for i, line in enumerate(SHELL) if line.startswith("strongroom run"))]:
        _shell(line, tmp_path, environment)
    sealed = b"".join(path.read_bytes() for path in (tmp_path / "rooms.vault").iterdir())
    assert b"30,40,310" not in sealed and b"rooms.csv" not in sealed
    assert not (tmp_path / "rooms").exists()
    _shell("strongroom unseal rooms.vault", tmp_path, environment)
    assert (tmp_path / "rooms" / "rooms.csv").read_text().startswith("30,40,310\n")


def test_readme_from_seal_to_predict(tmp_path: Path, warm_home: Path) -> None:
    from strongroom.enclave import sandbox

    pytest.importorskip("onnxruntime")
    if not sys.platform.startswith("linux") or sandbox.bubblewrap() is None:
        pytest.skip("no working bubblewrap: /data and /out need a mount namespace")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    environment = _environment(tmp_path)
    port, policy = _free_port(), ""
    said: dict[str, str] = {}
    serving: list[subprocess.Popen[str]] = []
    try:
        for written in SHELL:
            line = written.replace("8443", str(port))
            if line.endswith(" &"):
                serving.append(_start(line.removesuffix(" &"), tmp_path, environment))
                policy = _policy(serving[-1], seconds=60)
                continue
            said[written] = _shell(re.sub(r"dev/serve-rent-[0-9a-f]{8}", policy, line), tmp_path, environment)
        trained, predicted, shared = (
            next(text for line, text in said.items() if line.startswith(f"strongroom {verb} "))
            for verb in ("run", "predict", "mpc")
        )
        assert "rent: 12.8 a square metre, -4.1 a year of age" in trained
        assert serving and "[[620.0694]]" in predicted
        assert re.search(r"tensor\(\[\[620\.0[67]", shared)
        serving[-1].send_signal(signal.SIGINT)
        assert serving[-1].wait(30) == 0
    finally:
        for process in serving:
            process.kill()
            process.wait()


def _environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STRONGROOM_HOME": str(home / "home"),
        "XDG_DATA_HOME": str(home / "data"),
    }


def _shell(line: str, directory: Path, environment: Mapping[str, str]) -> str:
    assert shutil.which("strongroom", path=environment["PATH"])
    done = subprocess.run(
        ["/bin/sh", "-ec", line], cwd=directory, env=dict(environment), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def _start(line: str, directory: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(line.split(), cwd=directory, env=dict(environment), stdout=subprocess.PIPE, text=True)


def _policy(process: subprocess.Popen[str], *, seconds: float) -> str:
    """The policy that a service says it runs under."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        with process.stdout:
            for line in process.stdout:
                if found := re.search(r"under policy (\S+)", line):
                    return found[1]
    finally:
        timer.cancel()
    pytest.fail("the service ended before it served")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
