"""Scripts that know nothing of a mirror, under one: killed, changed, and those that cannot be gone on with."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from strongroom import mirror  # noqa: E402  # skipped without torch
from strongroom.errors import UsageError  # noqa: E402
from strongroom.mirror import hook_loops  # noqa: E402
from strongroom.mirror.hook_loops import Program, rewrite  # noqa: E402
from strongroom.mirror.hook_variables import Variables  # noqa: E402
from strongroom.mirror.torch import CONVERT  # noqa: E402
from strongroom.sealed import NO_FRESHNESS  # noqa: E402
from strongroom.storage import MemoryDirectory  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
HOOKED = "tests/mirror/hooked"


def run(*arguments: str) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", "tests.mirror.kills_hook", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_script_that_is_killed_ends_as_one_that_is_not(tmp_path):
    words = [f"{HOOKED}/{name}" for name in ("loaders.py 2", "plain.py", "trainer.py")]
    for said in run("kill", "--directory", str(tmp_path), "--kills", "2", "--seed", "2", *words):
        assert said["kills"] == 2 and said["lines"] > 50
        assert said["same"], said
        assert said["repeated"] < 8 * 2, said  # it went on from where it was, not from the beginning


SETUP = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
model = nn.Linear(4, {outputs})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=4)
def step(rows):
    model(rows).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
LOADERS = "for epoch in range({epochs}):\n    for (rows,) in loader:\n        step(rows)\n"
BY_HAND = "batches = iter(loader)\nfor _ in range(3):\n    step(next(batches)[0])\n"
LAZY = """
def forever():
    while True:
        yield from loader
loader = DataLoader(loader.dataset, batch_size=4, shuffle=True)
for i, (rows,) in zip(range(7), forever()):
    step(rows)
"""
NO_LOOP = "step(torch.randn(4, 4))\n"


def write(directory: Path, name: str, body: str, outputs: int = 2) -> str:
    path = directory / name
    path.write_text(SETUP.format(outputs=outputs) + body)
    return str(path)


def test_what_cannot_be_gone_on_with_or_committed_is_said(tmp_path):
    for name in ("shorter", "wider"):
        (tmp_path / name).mkdir()
    page = (ROOT / "docs" / "how-to" / "mirror-run.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text(example)
    train = write(tmp_path, "train.py", LOADERS.format(epochs=3))
    shorter = write(tmp_path / "shorter", "train.py", LOADERS.format(epochs=2))
    wider = write(tmp_path / "wider", "train.py", LOADERS.format(epochs=3), outputs=3)
    by_hand, lazy, no_loop = (
        write(tmp_path, f"{name}.py", body) for name, body in (("hand", BY_HAND), ("lazy", LAZY), ("none", NO_LOOP))
    )
    groups = [[train, train, shorter, wider], [by_hand], [lazy], [no_loop], [str(tmp_path / "page.py")] * 2]
    (tmp_path / "runs").mkdir()
    said = run("after", "--directory", str(tmp_path / "runs"), *(" ".join(group) for group in groups))

    whole, again, shorter, wider, by_hand, lazy, no_loop, first, second = said
    assert whole == [["begins", {}], ["ended", {"commits": 9, "step": 9}]]
    assert again == [["resumes", {"step": 9}], ["resumed", {"step": 9}], ["ended", {"commits": 0, "step": 9}]]
    assert shorter[0] == wider[0] == ["resumes", {"step": 9}]
    assert "step 9 cannot be gone on from: train.py:" in shorter[1][1]["message"]
    assert "ended before the place of the commit" in shorter[1][1]["message"]
    assert "model: weight is (3, 4), and the mirror holds (2, 4)" in wider[1][1]["message"]

    # What cannot be committed runs all the same.
    assert [what for what, _ in by_hand] == ["begins", "left-out", "ended"]
    assert "__main__.batches: a _SingleProcessDataLoaderIter" in by_hand[1][1]["why"]
    assert by_hand[2][1] == {"commits": 0, "step": None}
    assert "its items draw from the global random generators as they are made" in lazy[1][1]["why"]
    assert lazy[2][1] == {"commits": 3, "step": 3}  # of the first epoch, before the second was drawn
    assert no_loop[1] == ["left-out", {"why": "the optimizer steps in no loop of the script's own files"}]

    # What the page shows can be gone on with.
    assert first[-1] == ["ended", {"commits": 100, "step": 100}]
    assert second == [["resumes", {"step": 100}], ["resumed", {"step": 100}], ["ended", {"commits": 0, "step": 100}]]


# Rewriting.

LOOPS = """
def plain(n):
    said = []
    for i in range(n):
        if i == 1:
            continue
        for j in "ab":
            if j == "b":
                break
            said.append((i, j))
        else:
            said.append("never")
    else:
        said.append("all")
    while n:
        n -= 1
        if n == 2:
            continue
    else:
        said.append(n)
    for i in []:
        pass
    return said, i

def early(n):
    for i in range(n):
        while True:
            return i

def gives(n):
    for i in range(n):
        yield i * i

class Body:
    squares = []
    for i in range(3):
        squares.append(i)

def fails():
    for i in range(3):
        1 / (1 - i)

result = plain(4), early(2), list(gives(4)), Body.squares, [x for x in gives(3)]
"""


class Counting:
    """A watcher that changes nothing."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.sites: set[str] = set()

    def starts(self, loop: hook_loops.Loop) -> None:
        self.open.append(loop.site)
        self.sites.add(loop.site)

    def ended(self, loop: hook_loops.Loop) -> None:
        assert self.open.pop() == loop.site

    def begun(self, loop: hook_loops.Loop) -> None: ...
    def asked(self, loop: hook_loops.Loop) -> None: ...
    def passes(self, loop: hook_loops.Loop) -> None: ...
    def guard(self, loop: hook_loops.Loop, inner: Iterator[Any]) -> Any:
        return next(inner)


def test_rewritten_loops_do_what_they_did():
    plain: dict[str, Any] = {"__name__": "plain"}
    exec(compile(LOOPS, "loops.py", "exec"), plain)  # noqa: S102
    watcher = Counting()
    watched: dict[str, Any] = {"__name__": "watched", hook_loops.LOOP: hook_loops.maker(watcher)}
    exec(rewrite(LOOPS, "loops.py", "loops.py"), watched)  # noqa: S102
    assert watched["result"] == plain["result"]
    assert watcher.open == []
    assert len(watcher.sites) == 7  # not that of the generator
    with pytest.raises(ZeroDivisionError) as failed:
        watched["fails"]()
    assert failed.traceback[-1].lineno + 1 == LOOPS.splitlines().index("        1 / (1 - i)") + 1
    assert watcher.open == []


# Variables.


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_program.py").write_text(
        "class Meter:\n    pass\n\n\ndef call(function):\n    return function()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("some_program")
    del sys.modules["some_program"]


def test_variables_come_back_as_they_were_and_in_place(module, tmp_path):
    variables = Variables(Program(tmp_path), lambda value: False)
    meter = module.Meter()
    rng = np.random.default_rng(1)
    meter.seen, meter.owner = [1.5, float("inf")], meter
    rows = [[1], [2], [3]]
    names = {
        "meter": meter,
        "chunk": rows[2],
        "rows": rows,
        "alias": meter.seen,
        "plain": (1, "a", None, b"b", True, 2j),
        "counts": {("a", 1): np.int64(3), 2: deque([1, 2])},
        "names": {"x"},
        "array": np.arange(3),
        "weights": torch.ones(2),
        "rng": rng,
        "unknown": object(),
    }
    vars(module).update(names)
    with mirror.open(MemoryDirectory(), key=bytes(32), anchor=NO_FRESHNESS) as opened:
        opened.commit(1, {"program": variables.take()})
        saved = opened.restore().part("program", CONVERT)
    drawn = rng.normal(size=3)
    meter.seen.append(9)
    vars(module).update(chunk=rows[0], plain=(), counts={}, names=set(), array=None, weights=torch.zeros(5))
    assert variables.put_back(saved) == []
    assert module.meter is meter and meter.owner is meter
    assert module.alias is meter.seen and meter.seen == [1.5, float("inf")]
    assert module.rows is rows and rows == [[1], [2], [3]] and module.chunk is rows[2]
    assert module.plain == names["plain"] and module.names == {"x"}
    assert module.counts == names["counts"] and type(module.counts[2]) is deque
    assert module.array.tolist() == [0, 1, 2] and module.weights.tolist() == [1, 1]
    assert np.array_equal(rng.normal(size=3), drawn)
    assert module.unknown is names["unknown"]


def test_what_was_there_before_and_is_the_same_is_not_kept(module, tmp_path):
    variables = Variables(Program(tmp_path), lambda value: False)
    module.data, module.running, module.vocabulary = torch.ones(100), torch.zeros(1), list(range(5000))
    module.held = iter([1, 2, 3])
    variables.begin()
    assert not {"data", "vocabulary", "held"} & variables.take()["module some_program"].keys()
    module.running += 1
    module.vocabulary.append(1)
    assert {"running", "vocabulary"} <= variables.take()["module some_program"].keys()
    next(module.held)
    with pytest.raises(UsageError, match=r"some_program\.held: a list_iterator that the script goes on with by itself"):
        variables.take()
