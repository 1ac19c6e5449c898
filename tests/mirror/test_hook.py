"""Scripts that know nothing of a mirror, under one: killed, changed, and those that cannot be gone on with."""

from __future__ import annotations

import importlib
import json
import random
import re
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

nn = pytest.importorskip("torch.nn")
torch = pytest.importorskip("torch")

from strongroom import mirror  # noqa: E402  # skipped without torch
from strongroom.errors import UsageError  # noqa: E402
from strongroom.mirror import hook_loops  # noqa: E402
from strongroom.mirror.hook_loops import Program, rewrite  # noqa: E402
from strongroom.mirror.hook_parts import Parts  # noqa: E402
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
    words = [f"{HOOKED}/{name}" for name in ("loaders.py 2", "plain.py", "trainer.py", "hidden.py")]
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
HIDDEN = """
import array
import time
heat, took = array.array("d", [1.0]), 0.0
for epoch in range(3):
    for (rows,) in loader:
        heat[0] *= 0.9
        step(rows * heat[0])
        took = time.perf_counter()
"""
CLOCK = HIDDEN.replace("rows * heat[0]", "rows")
ONCE = LOADERS.format(epochs=1)[:-1] + "; break\n"


def write(directory: Path, name: str, body: str, outputs: int = 2) -> str:
    path = directory / name
    path.write_text(SETUP.format(outputs=outputs) + body)
    return str(path)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Of groups of scripts, each run one after another under one mirror; in one process, as PyTorch takes seconds."""
    place = tmp_path_factory.mktemp("scripts")
    for name in ("shorter", "wider", "runs"):
        (place / name).mkdir()
    page = (ROOT / "docs" / "how-to" / "mirror-run.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (place / "page.py").write_text(example)
    train = write(place, "train.py", LOADERS.format(epochs=3))
    shorter = write(place / "shorter", "train.py", LOADERS.format(epochs=2))
    wider = write(place / "wider", "train.py", LOADERS.format(epochs=3), outputs=3)
    alone = {"hand": BY_HAND, "lazy": LAZY, "none": NO_LOOP, "hidden": HIDDEN, "clock": CLOCK, "once": ONCE}
    of = {name: write(place, f"{name}.py", body) for name, body in alone.items()}
    groups = {
        "changed": [train, train, shorter, wider],
        **{name: [of[name]] for name in ("hand", "lazy", "none")},
        "page": [str(place / "page.py")] * 2,
        "hidden": [of["hidden"]] * 3,
        "clock": [of["clock"]] * 2,
        "once": [of["once"]] * 2,
    }
    told = iter(run("after", "--directory", str(place / "runs"), *(" ".join(group) for group in groups.values())))
    return {name: [next(told) for _ in group] for name, group in groups.items()}


def test_what_cannot_be_gone_on_with_or_committed_is_said(said):
    whole, again, shorter, wider = said["changed"]
    assert whole == [["begins", {}], ["ended", {"commits": 9, "step": 9}]]
    since = {"step": 9, "since": 8}
    assert again == [["resumes", since], ["resumed", since | {"apart": []}], ["ended", {"commits": 0, "step": 9}]]
    assert shorter[0] == wider[0] == ["resumes", since]
    assert "step 9 cannot be gone on from: train.py:" in shorter[1][1]["message"]
    assert "ended before the place of the commit" in shorter[1][1]["message"]
    assert "model: weight is (3, 4), and the mirror holds (2, 4)" in wider[1][1]["message"]

    # What cannot be committed runs all the same.
    [by_hand], [lazy], [no_loop] = said["hand"], said["lazy"], said["none"]
    assert [what for what, _ in by_hand] == ["begins", "left-out", "ended"]
    assert "__main__.batches: a _SingleProcessDataLoaderIter" in by_hand[1][1]["why"]
    assert by_hand[2][1] == {"commits": 0, "step": None}
    assert "its items draw from the global random generators as they are made" in lazy[1][1]["why"]
    assert lazy[2][1] == {"commits": 3, "step": 3}  # of the first epoch, before the second was drawn
    assert no_loop[1] == ["left-out", {"why": "the optimizer steps in no loop of the script's own files"}]

    # What the page shows can be gone on with.
    first, second = said["page"]
    assert first[-1] == ["ended", {"commits": 100, "step": 100}]
    since = {"step": 100, "since": 99}
    assert second == [["resumes", since], ["resumed", since | {"apart": []}], ["ended", {"commits": 0, "step": 100}]]


def test_a_script_with_state_out_of_sight_is_refused_and_its_mirror_stays(said):
    _, refused, again = said["hidden"]
    assert refused == again and [what for what, _ in refused] == ["resumes", "not-captured", "failed"]
    assert "__main__.heat" in refused[1][1]["names"]
    message = refused[2][1]["message"]
    assert message.startswith("mirror: step 9 cannot be gone on from: repeated from step 8, it is another in model/")
    assert "holds state that the mirror does not capture" in message

    # A time is no state: it is named, and the script goes on.
    _, sound = said["clock"]
    assert sound[2] == ["resumed", {"step": 9, "since": 8, "apart": ["variable __main__.took"]}]
    # There is nothing to prove it on.
    begun, single = said["once"]
    assert begun[1] == ["ended", {"commits": 1, "step": 1}]
    assert single[:2] == [["resumes", {"step": 1}], ["resumed", {"step": 1}]]


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


MODULE = """
import dataclasses, enum
from collections import namedtuple
Best = namedtuple("Best", "loss step")
class Meter:
    pass
class Phase(enum.Enum):
    WARM = 1
    MAIN = 2
@dataclasses.dataclass(slots=True)
class Slotted:
    count: int = 0
    def bump(self):
        self.count += 1
def counter():
    count = 0
    def more():
        nonlocal count
        count += 1
        return count
    return more
def call(function):
    return function()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_program.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("some_program")
    del sys.modules["some_program"]


def through_a_mirror(variables: Variables) -> Any:
    with mirror.open(MemoryDirectory(), key=bytes(32), anchor=NO_FRESHNESS) as opened:
        opened.commit(1, {"program": variables.take()})
        return opened.restore().part("program", CONVERT)


def test_variables_come_back_as_they_were_and_in_place(module, tmp_path):
    variables = Variables(Program(tmp_path), Parts())
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
    saved = through_a_mirror(variables)
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


def test_what_is_large_and_the_same_is_not_kept_and_what_is_not_is(module, tmp_path):
    variables = Variables(Program(tmp_path), Parts())
    module.data, module.rows = torch.ones(1 << 18), np.ones(1 << 17)
    module.words, module.losses = [["a", 1]] * 2000, [0.0] * 5000
    module.held = iter([1, 2, 3])

    def kept():
        return {name for name, one in variables.take()["module some_program"].items() if one[0] not in "kro"}

    variables.begin()
    assert kept() == set()
    # None of these moves a version counter or a length.
    module.data.numpy()[3] = 2
    module.rows[5] = 2
    module.losses[7] = 0.5
    assert kept() == {"data", "rows", "losses"}
    module.words[1999][1] = 2
    assert "words" in kept()
    module.data.data.fill_(1)
    assert "data" in kept()  # from now on, whatever it comes back to
    next(module.held)
    with pytest.raises(UsageError, match=r"some_program\.held: a list_iterator that the script goes on with by itself"):
        variables.take()


def test_data_that_the_script_makes_otherwise_are_refused(module, tmp_path):
    variables = Variables(Program(tmp_path), Parts())
    module.rows = np.ones(1 << 17)
    variables.begin()
    saved = through_a_mirror(variables)
    assert variables.put_back(saved) == []
    module.rows = np.zeros(1 << 17)
    with pytest.raises(UsageError, match=r"some_program\.rows: is not what it was when the mirror was committed"):
        variables.put_back(saved)


def test_what_shares_memory_goes_on_sharing_it(module, tmp_path):
    variables = Variables(Program(tmp_path), Parts())
    module.data = torch.zeros(1 << 18)
    module.flat = torch.zeros(8)
    module.counts = np.zeros((2, 3))
    module.seen = torch.zeros(3, 2)
    variables.begin()
    module.head, module.part, module.swapped = module.flat[2:6:2], module.data[4:6], module.counts.T[::-1]
    module.seen_array, module.left, module.right = module.seen.numpy(), *torch.zeros(2, 4).chunk(2, dim=1)
    module.flat.data[2] = 3
    saved = through_a_mirror(variables)
    module.head = module.part = module.swapped = module.seen_array = None
    module.flat.zero_()
    assert variables.put_back(saved) == []
    assert module.flat.tolist() == [0, 0, 3, 0, 0, 0, 0, 0] and module.head.tolist() == [3, 0]
    module.head += 1
    module.part.fill_(5)
    module.swapped[2, 1] = 6
    module.seen_array[2] = 7
    module.left.fill_(8)
    assert module.flat[4] == 1 and module.data[4:7].tolist() == [5, 5, 0]
    assert module.counts[1, 0] == 6 and module.seen[2].tolist() == [7, 7]
    assert module.left.tolist() == [[8, 8]] * 2 and not module.right.any()


def test_what_shares_memory_with_a_parameter_goes_on_doing_so(module, tmp_path):
    parts = Parts()
    variables = Variables(Program(tmp_path), parts)
    module.layer = nn.Linear(2, 2)
    module.layer(torch.ones(2)).sum().backward()
    parts.tensors = lambda: iter([("model", "weight", module.layer.weight)])
    module.shadow, module.slope = module.layer.weight.data, module.layer.weight.grad
    saved = through_a_mirror(variables)
    module.shadow = module.slope = None
    variables.put_back(saved)
    module.shadow.fill_(4)
    module.slope.fill_(5)
    assert module.layer.weight.tolist() == [[4, 4]] * 2 and module.layer.weight.grad.tolist() == [[5, 5]] * 2
    module.all = torch.zeros(6)
    module.layer.weight.data = module.all[:4].view(2, 2)
    with pytest.raises(UsageError, match=r"some_program\.all: shares memory with parameters"):
        variables.take()


def test_objects_classes_and_kinds_of_containers_come_back_as_they_were(module, tmp_path):
    variables = Variables(Program(tmp_path), Parts())
    best, phase, meter, cell = module.Best(0.5, 3), module.Phase.MAIN, module.Slotted(2), module.counter()
    cell()
    module.Meter.made = 4
    names = {
        "best": best,
        "all": [best, {"x": module.Phase.WARM}],
        "phase": phase,
        "meter": meter,
        "meters": [module.Slotted(7)],
        "hist": [defaultdict(int, a=1), Counter("aa"), OrderedDict(b=1), deque([1, 2], maxlen=2), frozenset({3})],
        "cell": cell,
        "where": Path("a/b"),
        "salt": random.SystemRandom(),
        "path": meter.bump,
    }
    vars(module).update(names)
    saved = through_a_mirror(variables)
    vars(module).update(best=None, all=[], phase=module.Phase.WARM, meters=[], hist=[], where=None)
    meter.count, module.Meter.made = 9, 0
    assert cell() == 2
    assert variables.put_back(saved) == []
    assert module.best == best and type(module.best) is module.Best and type(module.all[0]) is module.Best
    assert module.phase is phase and [one.value for one in module.Phase] == [1, 2]
    assert module.all[1]["x"] is module.Phase.WARM
    assert meter.count == 2 and type(module.meters[0]) is module.Slotted and module.meters[0].count == 7
    assert module.Meter.made == 4 and module.cell() == 2 and module.where == Path("a/b")
    assert [type(one) for one in module.hist] == [defaultdict, Counter, OrderedDict, deque, frozenset]
    assert module.hist[0]["missing"] == 0 and module.hist[3].maxlen == 2
    assert variables.opaque == {}
    module.writer = [threading.Lock()]
    variables.take()
    assert variables.opaque == {"some_program.writer[0]": "lock"}
