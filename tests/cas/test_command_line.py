"""`strongroom cas` as an owner meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from strongroom.cas import OwnerClient
from strongroom.cli import output
from strongroom.cli.cas import verb as cas
from strongroom.cli.main import main


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104  # nothing is served on it but for a moment
def test_start_prints_one_json_object_and_goes_on_serving(tmp_path, host):
    state = tmp_path / "state"
    command = [sys.executable, "-m", "strongroom", "cas", "start", "--json", "--host", host, "--state", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while not printed.endswith("}\n"):
                line = process.stdout.readline().decode()
                assert line, printed
                printed += line
            told = json.loads(printed)
            assert told.keys() == {"url", "cas_root", "state", "ready", "restart"}
            assert told["url"].startswith("https://127.0.0.1:")
            assert told["state"] == str(state)
            with OwnerClient(told["url"], cas_root=told["cas_root"]) as client:
                assert client.describe()["cas_root"] == told["cas_root"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.mark.parametrize("name", ["flowers", "a/b/c", "Acme/flowers", "", "acme/", "../acme/x"])
@pytest.mark.parametrize("rest", [["show"], ["secret", "token"], ["entrust", "data", "data.vault"]])
def test_a_name_that_no_policy_can_have(capsys, rest, name):
    action, *words = rest
    assert main(["cas", action, name, *words]) == 2
    problem, hint = capsys.readouterr().err.splitlines()
    assert "wanted namespace/name" in problem
    assert hint.startswith("strongroom: hint: ")


def test_an_unknown_policy_and_half_an_address_have_hints(capsys):
    assert main(["cas", "show", "acme/none"]) == 41
    assert "strongroom: hint: " in capsys.readouterr().err
    assert main(["cas", "show", "acme/none", "--cas", "https://127.0.0.1:1"]) == 2
    assert "strongroom: hint: " in capsys.readouterr().err


def test_the_log_fits_80_columns(capsys, monkeypatch):
    digest = "sha256:" + "0123456789abcdef" * 4
    detail = {"role": "job", "tee": "simulated", "measurement": digest, "version": 1}
    entry = {"number": 12, "time": 1_700_000_000, "event": "attested", "policy": "acme/train-flowers-449789d1"}
    entries = [
        entry | {"detail": detail},
        entry | {"event": "refused", "detail": {"reason": "[red]\x1b[2J" + "x" * 200}},
    ]

    class Client:
        def log(self):
            return entries

    monkeypatch.setattr(output, "stdout", Console(width=80, force_terminal=True, color_system=None, highlight=False))
    cas._log(type("Args", (), {"json": False})(), Client())
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    flat = "".join(out.split())
    assert "sha256:0123456789ab..." in out
    assert out.splitlines()[0] == "    12 2023-11-14 22:13:20 attested  acme/train-flowers-449789d1"
    assert digest not in flat
    assert "[red]" in out
    assert "\x1b" not in out
    cas._log(type("Args", (), {"json": True})(), Client())
    assert digest in capsys.readouterr().out
