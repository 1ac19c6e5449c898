"""`strongroom run --mirror`: an unmodified script in an enclave that is killed, and what goes on with it."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("torch")

from strongroom.cli.workspace import SealedVault  # skipped without torch
from strongroom.enclave import sandbox

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
def place(tmp_path, monkeypatch):
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
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
    assert f"strongroom: mirror: resumes from step {events[0]['step']}\n" in second.stderr
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
