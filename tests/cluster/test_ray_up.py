"""`strongroom ray up`: what it refuses, what it hands to `run`, and an unmodified Ray Train script on two enclaves."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from strongroom.cli.main import main
from strongroom.cli.parser import Parser
from strongroom.cli.ray import up
from strongroom.enclave import sandbox
from strongroom.errors import UsageError

EXAMPLES = Path(__file__).parents[2] / "examples"


def parsed(*arguments: str) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(prog="up")
    up.configure(parser)
    args = parser.parse_args(arguments)
    return args, args.command[1:] if args.command[:1] == ["--"] else args.command


def test_it_is_a_run_of_several_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    args, script = parsed(
        *("--nodes", "2", "--slots", "1", "--store", "100", "--patience", "9.5", "--data", "a.vault", "--cpus", "2"),
        *("--", "python", "train.py", "--fast"),
    )
    up.check(args, script)
    assert up.words(args, script) == [
        *("--replicas", "2", "--data", "a.vault", "--cpus", "2", "--", "python", "-m", "strongroom.cluster.node"),
        *("--slots", "1", "--store", "104857600", "--patience", "9.5", "--", "python", "train.py", "--fast"),
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--nodes", "2"], "command: give a script"),
        (["--nodes", "0", "--", "python", "train.py"], "--nodes: got 0"),
        (["--nodes", "1", "--slots", "0", "--", "python", "train.py"], "--slots: got 0"),
        (["--nodes", "1", "--store", "10", "--", "python", "train.py"], "--store: got 10 MB, wanted 80"),
        (["--nodes", "1", "--patience", "nan", "--", "python", "train.py"], "--patience: got nan"),
        (["--nodes", "1", "--", "bash", "-c", "true"], "command: got bash, wanted python"),
        (["--nodes", "1", "--", "python", "absent.py"], "absent.py is no file below this directory"),
        (["--nodes", "1", "--", "python", "/etc/elsewhere.py"], "is no file below this directory"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    with pytest.raises(UsageError, match=named):
        up.check(*parsed(*arguments))


POLICY = """\
[policy]
name = "my/ray"
version = 1
owner = "sha256:{zeros}"
role = "program"
instances = 2

[reference]
tees = ["simulated"]
measurements = ["{zeros}"]
allow_simulated = "sha256:{zeros}"

[program]
command = {command}
files = ["train.py"]

[mesh]
"""


def test_a_policy_that_starts_no_node_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").write_text(POLICY.format(zeros="0" * 64, command='["python", "train.py"]'))
    with pytest.raises(UsageError, match=r"policy my/ray: program\.command: starts no Ray node"):
        up.check(*parsed("--nodes", "2", "--policy", "policy.toml"))
    command = json.dumps(["python", "-m", up.NODE, "--", "python", "train.py"])
    Path("policy.toml").write_text(POLICY.format(zeros="0" * 64, command=command))
    up.check(*parsed("--nodes", "2", "--policy", "policy.toml"))
    with pytest.raises(UsageError, match="--slots: is part of a policy's command"):
        up.check(*parsed("--nodes", "2", "--slots", "1", "--policy", "policy.toml"))


def test_without_ray_it_says_which_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    monkeypatch.setattr(up, "find_spec", lambda name: None)
    assert main(["ray", "up", "--nodes", "2", "--", "python", "train.py"]) == 3
    assert "strongroom[ray]" in capsys.readouterr().err


# From here on with Ray, which is an extra, and in enclaves.
needs_ray = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("ray", "torch", "pyarrow", "pandas")) or sandbox.bubblewrap() is None,
    reason="needs the extra ray, Ray Train's packages (`STRONGROOM_EXTRAS=ray make setup`) and bubblewrap",
)


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STRONGROOM_HOME": str(directory / "home")}
    command = [sys.executable, "-m", "strongroom", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


@needs_ray
def test_ray_train_on_two_enclaves_ends_with_the_weights_of_outside(tmp_path: Path, warm_home: Path) -> None:
    import torch

    program = tmp_path / "program"
    program.mkdir()
    (program / "train_ray.py").write_bytes((EXAMPLES / "train_ray.py").read_bytes())
    digits = [sys.executable, EXAMPLES / "digits_files.py", tmp_path / "digits", "--train", "100", "--test", "50"]
    subprocess.run(digits, check=True, capture_output=True)
    outside = [sys.executable, program / "train_ray.py", tmp_path / "digits", tmp_path, "--epochs", "2"]
    subprocess.run(outside, check=True, capture_output=True, cwd=tmp_path)

    assert run(program, "seal", "../digits", "../digits.vault").returncode == 0
    inside = run(
        *(program, "ray", "up", "--nodes", "2", "--slots", "1", "--patience", "600", "--data", "../digits.vault"),
        *("--out", "../weights.vault", "--", "python", "train_ray.py", "/data", "/out", "--epochs", "2"),
    )
    assert inside.returncode == 0, inside.stderr
    assert "on 2 nodes" in inside.stdout
    assert run(program, "unseal", "../weights.vault", "../weights").returncode == 0
    ours, theirs = torch.load(tmp_path / "weights" / "weights.pt"), torch.load(tmp_path / "weights.pt")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow  # it waits for a minute
@needs_ray
def test_a_node_that_never_comes_is_an_error_and_no_hang(tmp_path: Path, warm_home: Path) -> None:
    (tmp_path / "job.py").write_text("")
    node = ["python", "-m", up.NODE, "--patience", "60", "--", "python", "job.py"]
    assert run(tmp_path, "policy", "init", "--name", "my/ray", "--", *node).returncode == 0
    policy = tmp_path / "policy.toml"
    text = policy.read_text().replace('role = "program"', 'role = "program"\ninstances = 2')
    policy.write_text(f"{text}\n[mesh]\n")
    assert run(tmp_path, "measure", "--policy", "policy.toml", "--write").returncode == 0
    assert run(tmp_path, "policy", "apply", "policy.toml").returncode == 0
    alone = run(tmp_path, "ray", "up", "--nodes", "1", "--policy", "policy.toml")
    assert alone.returncode == 60, alone.stderr
    assert "no word of node 1 within" in alone.stdout + alone.stderr
