"""`strongroom spot`, as a user types it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from strongroom.cli.main import VERBS, main


@pytest.fixture
def do(tmp_path, monkeypatch, capfd):
    """Runs a command in a directory with a trace of 10 hours; its standard output, of which `errors` has the rest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VERBS, "spot", VERBS.get("spot", "train on spot instances"))
    (tmp_path / "trace.csv").write_text(("0.1\n" * 50 + "0.3\n" * 10) * 10)

    def run(*argv, status=0):
        assert main(["spot", *argv]) == status, capfd.readouterr()
        out, run.errors = capfd.readouterr()
        assert "Traceback" not in run.errors
        return out

    return run


SIMULATE = ("simulate", "--trace", "trace.csv", "--bid", "0.2", "--steps", "3600", "--commit-seconds", "1")


def test_table_and_picture(do):
    out = do(*SIMULATE, "--every", "60", "--boot-seconds", "0", "--restore-seconds", "0")
    assert out.splitlines()[:2] == [
        "trace.csv: 600 rows, 10.00 hours, 0.1 to 0.3 USD an hour",
        "at a bid of 0.2 USD an hour an instance runs 83.3% of the time, with 10 interruptions in the whole trace",
    ]
    rows = {line[:20].rstrip(): re.split(r"\s{2,}", line[20:].strip()) for line in out.splitlines()[4:15]}
    assert rows["commit every (steps)"] == ["-", "1", "60"]
    assert rows["interruptions"] == ["10", "2", "1"]
    assert rows["  work that counts"] == ["0.00", "1.00", "1.00"]
    assert rows["cost (USD)"] == ["0.83", "0.20", "0.10"]
    assert rows["job done"] == ["no: 0 %", "yes", "yes"]
    # What looks like an emoji's name is printed as it is.
    assert "bid 0.2 |" in out and out.isascii()
    assert max(map(len, out.splitlines()[3:])) <= 80


def test_a_trace_without_prices(do):
    Path("when.csv").write_text("time,available\n" + "".join(f"{600 * i},{int(i % 5 > 0)}\n" for i in range(20)))
    out = do("simulate", "--trace", "when.csv", "--steps", "3600")
    assert "hours, no price known (--price says one)\n" in out
    assert "USD an hour\n" not in out
    assert "hours, 0.5 to 0.5 USD an hour\n" in do("simulate", "--trace", "when.csv", "--price", "0.5")


def test_json_with_the_best(do):
    facts = json.loads(do(*SIMULATE, "--best", "--json"))
    assert facts["trace"] == {
        "rows": 600, "seconds": 36000, "lowest_price": 0.1, "highest_price": 0.3,
        "share": pytest.approx(5 / 6), "interruptions": 10,
    }  # fmt: skip
    ways = facts["ways"]
    assert list(ways) == ["without_mirror", "every_step", "mirror", "best"]
    assert ways["mirror"]["every"] == facts["daly_every"]
    assert ways["best"]["finished"]
    assert ways["best"]["cost_usd"] <= min(ways["mirror"]["cost_usd"], ways["every_step"]["cost_usd"])


def test_deadline_and_budget_choose(do):
    def chosen(*argv):
        return json.loads(do(*SIMULATE, "--json", *argv))["ways"]["best"]

    assert chosen("--deadline", "1.1")["wall_seconds"] <= 1.1 * 3600
    assert chosen("--budget", "0.2")["cost_usd"] <= 0.2
    assert chosen("--budget", "0.2")["wall_seconds"] <= chosen("--best")["wall_seconds"]
    do(*SIMULATE, "--deadline", "0.5", status=2)
    assert "no bid and interval keep within 0.5 hours" in do.errors and "hint: the fastest takes" in do.errors


def test_where_rows_say_only_whether_there_was_an_instance(do, tmp_path):
    (tmp_path / "trace.csv").write_text("time,available\n0,1\n3000,0\n4000,1\n9000,1\n")
    out = do("simulate", "--trace", "trace.csv", "--steps", "4000")
    assert "cost (USD)                        -              -              -" in out
    assert "at any price an instance runs 88.9% of the time, with 1 interruption in" in out
    assert "best" not in out and "USD/h" not in out
    assert (
        json.loads(do("simulate", "--trace", "trace.csv", "--steps", "4000", "--best", "--json"))["ways"]["best"]["bid"]
        is None
    )


def test_start(do):
    assert "trace.csv: 60 rows, 1.00 hours" in do(*SIMULATE, "--start", "9")
    do(*SIMULATE, "--start", "10", status=2)
    assert "start: 36000 s, wanted 0 to less than the trace's 36000 s" in do.errors


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("--trace", "missing.csv"), 2, "missing.csv: no such file"),
        (("--bid", "nan"), 2, "bid: nan, wanted 0 or more"),
        (("--every", "0"), 2, "every: 0, wanted 1"),
        (("--deadline", "-1"), 2, "deadline: -1, wanted more than 0"),
        (("--interval", "0"), 2, "interval: 0 s, wanted more than 0"),
        (("--plot", "x.pdf"), 2, "plot: x.pdf, wanted a name that ends in .png"),
        (("--zone", "us-west-1a"), 2, "a CSV trace has none of them"),
    ],
)
def test_refusals(do, argv, status, message):
    assert do(*SIMULATE, *argv, status=status) == ""
    assert message in do.errors


def test_a_trace_that_is_none(do, tmp_path):
    (tmp_path / "trace.csv").write_text("0.1\noops\n")
    do(*SIMULATE, status=10)
    assert "strongroom: error: line 2: price: oops, wanted a number" in do.errors


def test_plot_without_matplotlib(do, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert do(*SIMULATE, "--plot", "x.png", status=3) == ""
    assert "hint: pip install 'strongroom[plot]'" in do.errors
    assert not (tmp_path / "x.png").exists()


def test_plot(do, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    do(*SIMULATE, "--best", "--plot", "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "strongroom: drawn in x.png" in do.errors


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "spot.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(example, "docs/how-to/spot.md", "exec"), {})  # noqa: S102


# `strongroom spot run`.

posix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")

# Under a mirror, without a framework. Twice it stands still between a step and its commit, until it is killed there.
TRAIN = """
import os, pathlib, signal
import numpy as np
from strongroom import FileAnchor, mirror
from strongroom.sealed import create_key, load_key

key = load_key("run.mirror.key") if os.path.exists("run.mirror.key") else create_key("run.mirror.key")
with mirror.open("run.mirror", key=key, anchor=FileAnchor("run.mirror.anchor"), durability="process") as opened:
    restored = opened.restore()
    weights = restored["weights"] if restored else np.linspace(1, 2, 1000)
    for step in range((opened.step or 0) + 1, 13):
        weights = np.sin(weights * step)
        print("step", step, "loss", repr(float(abs(weights).sum())), flush=True)
        if step in (5, 9) and not os.path.exists(f"stood-{step}"):
            pathlib.Path(f"stood-{step}").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        with opened.begin(step) as commit:
            commit["weights"] = weights
"""


@pytest.fixture
def spells(tmp_path):
    """A trace with times that each are longer than the one before, so that a busy machine only takes more of them."""
    rows, time = ["time,price"], 0.0
    for power in range(10):
        rows += [f"{time},0.1", f"{time + 500 * 1.7**power},0.3"]
        time += 500 * 1.7**power + 5
    (tmp_path / "spells.csv").write_text("\n".join([*rows, f"{time},0.1", f"{time + 9e4},0.1"]))


def spot_run(*command, speed="500"):
    return ("run", "--trace", "spells.csv", "--bid", "0.2", "--speed", speed, *command)


@posix
def test_a_training_that_is_really_killed_goes_on(do, tmp_path, spells):
    (tmp_path / "train.py").write_text(TRAIN)
    out = do(
        *spot_run("--json", "--mirror", "run.mirror", "--log", "log", "--plot", "x.png"),
        "--",
        sys.executable,
        "train.py",
    )
    facts = json.loads(out)
    assert (facts["ended"], facts["exit_status"], facts["steps"], facts["same_curve"]) == ("done", 0, 12, True)
    assert facts["steps_again"] >= 2 and facts["starts"] == facts["interruptions"] + 1 >= 3
    assert {5, 9} <= {kill["step"] for kill in facts["kills"]}
    texts = {loss["step"]: loss["loss"] for loss in facts["losses"]}
    assert len(facts["losses"]) >= 14 and len(set(texts.values())) == 12
    assert "step 5; the mirror is at step 4" in do.errors and "step 9; the mirror is at step 8" in do.errors
    assert f"step 9 loss {texts[9]}\n" in (tmp_path / "log").read_text() and "loss" not in do.errors
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


@posix
def test_report(do, spells):
    counts = "for n in 1 2 3; do echo step $n loss 0.$n; done"
    out = do(*spot_run("--", "sh", "-c", counts))
    assert "ended           done, after 0." in out
    assert "steps           3 with a loss, the last 3" in out
    assert "computed twice  no step" in out and "loss: o median, : range" in out
    assert "step 2 loss 0.2" in do.errors
    out = do(*spot_run("--", "sh", "-c", "echo hello"))
    assert "losses          no line of the output had a step and a loss; --loss REGEX" in out


@posix
def test_another_curve_is_an_error(do, spells):
    script = "echo step 1 loss 0.$$; [ -e once ] || { touch once; kill -STOP $$; }"
    out = do(*spot_run("--", "sh", "-c", script), status=1)
    assert "computed twice  1 step, 1 of them with another loss:\n                step 1: 0." in out
    assert "losses: not the same curve: 1 step came out with another loss" in do.errors


@posix
def test_a_command_that_does_not_get_there(do, spells):
    do(*spot_run("--", "sh", "-c", "echo what; exit 3"), status=3)
    assert "command: ended with status 3, in start 1\nstrongroom: hint: it said last: what" in do.errors
    do(*spot_run("--log", "log", "--", "sh", "-c", "kill -TERM $$"), status=128 + 15)
    assert (
        "was ended by SIGTERM, which was not sent here, in start 1\nstrongroom: hint: its output is in log" in do.errors
    )
    do(*spot_run("--", "sh", "-c", "kill -STOP $$", speed="1e6"), status=2)
    assert "command: the trace ended before it did" in do.errors and "hint: a lower --speed" in do.errors
    out = do(*spot_run("--json", "--limit", "0.01", "--", "sh", "-c", "kill -STOP $$"), status=2)
    assert json.loads(out)["ended"] == "limit" and json.loads(out)["error"].startswith("command: the limit of 0.01 s")


@posix
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ((), 2, "command: none, wanted one after --"),
        (("--", "no-such-program"), 2, "command: no-such-program is no program that can be started"),
        (("--loss", "loss", "--", "true"), 2, "loss: 0 groups, wanted two"),
        (("--speed", "0", "--", "true"), 2, "speed: 0, wanted more than 0"),
        (("--plot", "x.pdf", "--", "true"), 2, "plot: x.pdf, wanted a name that ends in .png"),
    ],
)
def test_runs_that_are_refused(do, spells, argv, status, message):
    assert do(*spot_run(*argv), status=status) == ""
    assert message in do.errors
