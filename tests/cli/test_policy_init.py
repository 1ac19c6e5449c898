"""`strongroom policy init` with vaults: from a script to its sealed results by the commands that it prints."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import main
from strongroom.cli.workspace import SealedVault
from strongroom.enclave import sandbox

SCRIPT = """
import os, pathlib, sys
data, out = map(pathlib.Path, sys.argv[1:])
(out / "copy").write_text(os.environ["MARK"] + (data / "word").read_text())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_home: Path) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("train.py").write_text(SCRIPT)
    Path("words").mkdir()
    Path("words", "word").write_text("sealed")
    assert main(["seal", "words"]) == 0
    return tmp_path / "work"


def init(capsys, *words: str, status: int = 0):
    capsys.readouterr()
    assert main(["policy", "init", "--json", *words]) == status
    return json.loads(capsys.readouterr().out)


def test_what_it_prints_leads_to_sealed_results(place, capsys):
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    words = ("--data", "words.vault", "--results", "out.vault", "--env", "MARK=${as it is} ")
    steps = init(capsys, *words, "--", "python", "train.py", "/data", "/out")["next"]
    assert [step.split()[1] for step in steps] == ["measure", "policy", "cas", "cas", "run"]
    for step in steps[:-1]:
        assert main(shlex.split(step)[1:]) == 0
    assert main(shlex.split(steps[0])[1:]) == 0  # once more changes nothing
    done = subprocess.run([sys.executable, "-m", *shlex.split(steps[-1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with SealedVault.at(Path("out.vault")).open() as opened:
        assert opened.read_bytes("copy") == b"${as it is} sealed"


def test_vaults_and_variables_stand_in_the_document(place, capsys):
    words = ("--data", "words.vault:/a/b", "--results", "new.vault", "--env", "OMP_NUM_THREADS=1")
    told = init(capsys, *words, "--", "python", "train.py")
    policy = parse_policy(Path("policy.toml").read_text())
    rules = [(rule.name, rule.mount, rule.access) for rule in policy.vaults]
    assert rules == [("a-b", "/a/b", "read-only"), ("out", "/out", "read-write")]
    assert told["vaults"] == ["a-b", "out"]
    assert policy.program is not None and policy.program.environment == {"OMP_NUM_THREADS": "1"}
    assert Path("new.vault").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "words.vault", "--results", "words.vault"), "vault: words.vault is used twice"),
        (("--results", "a.vault", "--results", "b.vault"), "mount: /out is used twice"),
        (("--data", "none.vault"), "none.vault"),
        (("--env", "MARK"), "--env: got 'MARK', wanted NAME=VALUE"),
        (("--env", "PATH=/elsewhere"), "PATH"),
    ],
)
def test_what_no_policy_could_say_leaves_nothing_behind(place, capsys, words, message):
    before = sorted(path.name for path in place.iterdir())
    capsys.readouterr()
    assert main(["policy", "init", *words, "--", "python", "train.py"]) != 0
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_measurement_is_written_in_the_place_of_zeros_alone(place, capsys):
    init(capsys, "--", "python", "train.py")
    text = Path("policy.toml").read_text()
    Path("policy.toml").write_text(text.replace("00" * 48, "11" * 48))
    assert main(["measure", "--policy", "policy.toml", "--write"]) == 2
    assert "no measurement of zeros" in capsys.readouterr().err
    assert "11" * 48 in Path("policy.toml").read_text()
    assert main(["measure", "--write", "--", "python", "train.py"]) == 2
    assert "--policy" in capsys.readouterr().err


def test_the_guide_shows_what_it_writes(tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[2]
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["seal", "digits"]) == 0
    monkeypatch.chdir(tmp_path / "sklearn")
    Path("train_sklearn.py").write_bytes((root / "examples" / "train_sklearn.py").read_bytes())
    guide = (root / "docs" / "how-to" / "unmodified.md").read_text()
    [command] = re.findall(r"^\$ strongroom (policy init .* train_sklearn.py .*)$", guide, re.M)
    capsys.readouterr()
    assert main(shlex.split(command)) == 0
    printed = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("owner.key")]
    assert "\n".join(printed) in guide
    [shown] = re.findall(r"^```toml\n(.*?)^```$", guide, re.M | re.S)
    said = "\n".join(line for line in Path("policy.toml").read_text().splitlines() if not line.startswith("#"))
    alike = [re.sub(r'"(sha256:)?[0-9a-f]{8,}(\.\.\.)?"', '"..."', text).split() for text in (shown, said)]
    assert alike[0] == alike[1]
