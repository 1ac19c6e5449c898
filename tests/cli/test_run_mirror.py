"""`strongroom run --mirror`: an unmodified script in an enclave that is killed, and what goes on with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from strongroom import mirror  # skipped without torch
from strongroom.cli.main import main
from strongroom.cli.mirror.directory import make_directory, mirror_key, seen_from_outside
from strongroom.cli.workspace import SealedVault
from strongroom.enclave import mirrored, sandbox
from strongroom.errors import LockedError, RollbackError, UsageError, WrongKeyError
from strongroom.sealed import FileAnchor, load_key

# Kernels may add up in another order where there is another number of threads: one, wherever it runs.
SCRIPT = """
import sys
import torch
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
data, labels = torch.randn(64, 4), torch.randint(0, 2, (64,))
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
losses = []
for epoch in range(30):
    for rows in torch.randperm(64).split(16):
        loss = nn.functional.cross_entropy(model(data[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch}", flush=True)
with open(sys.argv[1] + "/weights", "w") as out:
    out.write(repr(([p.tolist() for p in model.parameters()], losses)))
"""


def strongroom(*arguments):
    return [sys.executable, "-m", "strongroom", "run", *arguments]


@pytest.fixture
def place(tmp_path, monkeypatch, warm_home):
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "train.py").write_text(SCRIPT)
    return tmp_path / "work"


def test_a_killed_enclave_is_gone_on_with_by_the_same_command(place):
    command = strongroom("--json", "--mirror", "run.mirror", "--every", "1", "--", "python", "train.py", "/out")
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = []
    for line in first.stderr:
        said.append(line)
        if line == "epoch 5\n":
            break
    assert "strongroom: mirror: begins\n" in said, said
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    events = [one for one in json.loads(second.stdout)["events"] if one["event"] == "mirror"]
    assert [one["what"] for one in events] == ["resumes", "resumed", "ended"]
    assert events[0]["step"] >= 20 and events[-1]["step"] == 120
    assert events[-1]["commits"] == 120 - events[0]["step"]
    proved = f"resumes from step {events[0]['step']} (proved on the steps since {events[0]['since']})"
    assert f"strongroom: mirror: {proved}\n" in second.stderr
    assert "epoch 2\n" not in second.stderr
    (place / "plain").mkdir()
    subprocess.run([sys.executable, "train.py", "plain"], check=True, capture_output=True)
    with SealedVault.at(place / "out.vault").open() as out:
        assert out.read_bytes("weights") == (place / "plain" / "weights").read_bytes()


@pytest.mark.parametrize(
    ("options", "command", "said"),
    [
        ([], ["true"], "command: true, wanted python and a script"),
        ([], ["python", "-c", "pass"], "command: holds no script"),
        (["--every", "0"], ["python", "train.py"], "--every: got '0', wanted a number of steps from 1 on, or auto"),
    ],
)
def test_what_no_mirror_can_be_kept_of_is_refused_before_anything_is_made(place, options, command, said):
    done = subprocess.run(
        strongroom("--mirror", "run.mirror", *options, "--", *command), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["train.py"]


FAILS = """
import torch
from torch import nn
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for i in range(3):
    optimizer.zero_grad()
    model(torch.ones(4)).sum().backward()
    optimizer.step()
def fails():
    raise ValueError("of the script")
fails()
"""


def test_what_is_said_of_a_mirror_is_in_the_users_words(place, capfd):
    """A script that fails, then one mirror for two, then none."""
    (place / "fails.py").write_text(FAILS)
    command = strongroom("--mirror", "my.mirror", "--every", "1", "--", "python", "fails.py")
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 1
    assert "strongroom: made my.mirror; its key is my.mirror.key\n" in first.stderr
    trace = first.stderr.partition("Traceback (most recent call last):\n")[2].partition("ValueError")[0]
    assert [line for line in trace.splitlines() if line.startswith("  File ")] == [
        '  File "/program/fails.py", line 12, in <module>',
        '  File "/program/fails.py", line 11, in fails',
    ]

    assert main(["mirror", "ls", "my.mirror"]) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()[1:]] == ["2", "3"]
    assert main(["mirror", "verify", "my.mirror"]) == 0

    opened = {"key": load_key("my.mirror.key"), "anchor": FileAnchor("my.mirror.anchor")}
    with mirror.open("my.mirror/mirror", **opened):
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == LockedError.exit_code
    assert "strongroom: error: mirror my.mirror: in use by another opener that writes\n" in second.stderr
    assert "strongroom: hint: another run is training with it" in second.stderr
    assert "/run/mirror" not in second.stderr

    shutil.rmtree("my.mirror")
    third = subprocess.run(command, capture_output=True, text=True)
    assert third.returncode == RollbackError.exit_code
    assert "strongroom: error: mirror my.mirror: is missing, and its anchor holds a commit\n" in third.stderr
    assert "to begin anew, delete my.mirror.key and my.mirror.anchor\n" in third.stderr
    assert "made my.mirror" not in third.stderr
    assert not (place / "my.mirror").exists()


@pytest.mark.parametrize("place", ["/run/mirror", "here"])
def test_an_enclave_that_has_another_key(tmp_path, monkeypatch, place):
    """Both where it has a sandbox, and where it sees the host's directory."""
    monkeypatch.chdir(tmp_path)
    directory = SealedVault.at(Path("my.mirror"))
    assert make_directory(directory)
    mirror_key(directory)
    inside = f"{place if place != 'here' else tmp_path / 'my.mirror'}/mirror"
    error = seen_from_outside(WrongKeyError(f"{inside}: sealed under another key", hint="an option"), directory)
    assert isinstance(error, WrongKeyError)
    assert error.message == "mirror my.mirror: sealed under another key"
    assert error.hint == (
        "put the key that it was made with back into my.mirror.key; to begin anew, delete my.mirror and my.mirror.key"
    )
    error = seen_from_outside(RollbackError(f"mirror: {inside} is missing", hint="run it again"), directory)
    assert (error.message, error.hint) == ("mirror: my.mirror is missing", "run it again")


def test_no_new_key_is_made_for_a_mirror_that_has_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = SealedVault.at(Path("my.mirror"))
    make_directory(directory)
    (tmp_path / "my.mirror" / "mirror").write_bytes(b"sealed")
    with pytest.raises(UsageError, match=r"my\.mirror\.key does not exist, and my\.mirror/mirror is there"):
        mirror_key(directory)
    assert not directory.key_path.exists()


def test_how_often_to_commit_to_no_mirror(place, capfd):
    assert main(["run", "--every", "5", "--", "python", "train.py"]) == 2
    assert "--every: says how often to commit, and there is no mirror" in capfd.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["train.py"]


def test_whole_traces_are_there_for_the_asking(monkeypatch):
    monkeypatch.setenv(mirrored.WHOLE_TRACES, "1")
    before = sys.excepthook
    mirrored._shorten_traces()
    assert sys.excepthook is before
