"""`strongroom mirror`, as a user types it."""

import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from strongroom import mirror
from strongroom.cli import main as command_line
from strongroom.cli.mirror.reading import time
from strongroom.cli.mirror.show import statistics
from strongroom.cli.mirror.verb import _EXAMPLES
from strongroom.mirror.manifest import Entry
from strongroom.sealed import NO_FRESHNESS, FileAnchor, create_key, load_key
from strongroom.sealed.file import SealedFile
from strongroom.sealed.layout import SLOTS_SIZE

BLOCK = 4096
NOW = 1_700_000_000
main = command_line.main


@pytest.fixture
def do(capfd, monkeypatch):
    """Runs an action; its standard output, of which `errors` has the rest."""
    monkeypatch.setitem(command_line.VERBS, "mirror", "look into the mirror of a training")

    def run(*argv, status=0):
        assert main(["mirror", *(str(word) for word in argv)]) == status, capfd.readouterr()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        run.errors = err
        if status and "--json" not in argv:
            assert err.count("strongroom: error: ") >= 1
        return out

    return run


def state_of(step):
    """Arrays of more than a block and of less, and what else a training has."""
    rng = np.random.default_rng(step)
    weight = rng.normal(size=(50, 60)).astype(np.float32)
    return {
        "model": {"0.weight": weight, "0.bias": np.full(3, step, np.float64)},
        "optimizer": {"groups": [{"lr": 0.1, "betas": (0.9, 0.999)}], "best": float("inf"), "name": "adam"},
        "losses": [1.0 / i for i in range(1, step + 1)],
    }


class Run:
    """A mirror of a training beside its key and its anchor."""

    def __init__(self, directory):
        self.path = directory / "run.mirror"
        self.key_path, self.anchor_path = directory / "run.mirror.key", directory / "run.mirror.anchor"
        self.key = create_key(self.key_path)

    def open(self, **options):
        options = {"keep": 4, "block_size": BLOCK, "clock": lambda: NOW} | options
        return mirror.open(self.path, key=self.key, anchor=FileAnchor(self.anchor_path), **options)

    def read(self, step=None):
        return mirror.read(self.path, key=self.key, anchor=FileAnchor(self.anchor_path), step=step)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Run(tmp_path)
    with made.open() as opened:
        for step in (10, 20, 30):
            opened.commit(step, state_of(step))
    return made


# Looking.


def test_ls(run, do):
    lines = do("ls", "run.mirror").splitlines()
    assert lines[0].split() == ["step", "committed", "arrays", "size", "parts"]
    assert [line.split()[0] for line in lines[1:]] == ["10", "20", "30"]
    assert "2023-11-14 22:13:20 UTC" in lines[1]
    assert lines[3].endswith("model, optimizer, losses")
    listed = json.loads(do("ls", "--json", "run.mirror"))
    assert [(one["step"], one["time"], one["bytes"], one["arrays"]) for one in listed] == [
        (step, NOW, 12_024, 2) for step in (10, 20, 30)
    ]
    assert listed[2]["parts"] == ["model", "optimizer", "losses"]
    assert listed[2]["root"] == str(FileAnchor(run.anchor_path).read())


def test_the_directory_that_run_keeps_a_mirror_in(run, do):
    """The file has another name there, and the key and the anchor lie beside the directory."""
    run.path.rename("mirror")
    run.path.mkdir()
    shutil.move("mirror", run.path)
    assert len(do("ls", "run.mirror").splitlines()) == 4
    assert "model/0.weight" in do("show", "run.mirror")
    do("verify", "run.mirror/")
    do("export", "run.mirror", "out.safetensors", "--part", "model")
    assert "from step 20" in do("restore", "run.mirror", "--step", 20)
    do("ls", "run.mirror", "--key", "another.key", status=2)
    assert "key file: another.key does not exist" in do.errors
    (run.path / "mirror").unlink()
    do("ls", "run.mirror", status=2)
    assert "mirror: run.mirror is a directory without a mirror" in do.errors


def test_a_reader_that_leaves(run):
    """As `head` does: of the result, which ends the command as a shell's would; of the notes, which ends nothing."""
    command = [sys.executable, "-m", "strongroom", "mirror", "show", "run.mirror", "--no-anchor"]
    for stream, status in (("stdout", 141), ("stderr", 0)):
        reading, writing = os.pipe()
        os.close(reading)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writing}
        done = subprocess.run(command, **streams)
        os.close(writing)
        assert done.returncode == status, done
        assert stream == "stdout" or b"model/0.weight" in done.stdout


def test_it_looks_while_a_training_writes(run, do):
    with run.open() as opened:
        assert len(json.loads(do("ls", "--json", "run.mirror"))) == 3
        opened.commit(40, state_of(40))
        assert [one["step"] for one in json.loads(do("ls", "--json", "run.mirror"))] == [10, 20, 30, 40]
        do("verify", "run.mirror")
        do("restore", "run.mirror", "--step", 20, status=25)


def test_show(run, do):
    shown = do("show", "run.mirror")
    assert "model/0.weight  <f4   50 x 60  11.72 KiB" in shown
    rows = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in shown.splitlines()}
    assert rows["optimizer/groups/0/lr"] == "0.1"
    assert rows["optimizer/groups/0/betas"] == "0.9, 0.999"
    assert rows["optimizer/best"] == "inf"
    assert rows["losses"].endswith("... 30 values")
    found = json.loads(do("show", "run.mirror", "--json", "--step", 20))
    assert found["step"] == 20
    assert found["arrays"][0] == {"name": "model/0.weight", "type": "<f4", "shape": [50, 60], "bytes": 12_000}
    assert len(found["values"]["losses"]) == 20
    assert found["values"]["optimizer/best"] == "inf"
    assert "0.bias" not in do("show", "run.mirror", "optimizer")
    do("show", "run.mirror", "nothing", status=2)
    assert "step 30 holds no nothing" in do.errors
    do("show", "run.mirror", "--step", 11, status=2)
    assert "step: 11 is not kept, wanted one of 10, 20, 30" in do.errors


def test_show_an_array(run, do):
    shown = dict(line.split(maxsplit=1) for line in do("show", "run.mirror", "model/0.bias").splitlines())
    assert (shown["type"], shown["shape"], shown["size"]) == ("<f8", "3", "24 B")
    assert (shown["min"], shown["mean"], shown["max"]) == ("30", "30", "30")
    weight = state_of(30)["model"]["0.weight"]
    found = json.loads(do("show", "run.mirror", "model/0.weight", "--json"))["statistics"]
    assert found["min"] == weight.min() and found["max"] == weight.max() and found["not_finite"] == 0
    assert found["mean"] == pytest.approx(weight.mean(dtype=np.float64))


def test_what_adapters_put_in_parts_is_found_by_its_name(run, do):
    with mirror.open("other", key=run.key, anchor=FileAnchor("other.anchor")) as opened:
        opened.commit(1, {"parts": {"model": {"w": np.arange(3.0)}, "optimizer": {"lr": 1}}, "data": None})
    here = ("--key", run.key_path)
    assert do("ls", "other", *here).endswith("model, optimizer, data\n")
    assert "mean         1\n" in do("show", "other", "model/w", *here)
    assert "parts/model/w" in do("show", "other", "model", *here)
    do("export", "other", "out.safetensors", "--part", "model", *here)
    assert list(load_file("out.safetensors")) == ["w"]


def _entry(dtype, count):
    return Entry("x", "numpy", dtype, (count,), 0, 0, 0, 0)


def test_statistics_of_types_that_numpy_lacks():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        bits = np.arange(256, dtype=np.uint8)
        wanted = bits.view(getattr(ml_dtypes, name)).astype(np.float64)
        wanted = wanted[np.isfinite(wanted)]
        found = statistics(_entry(name, 256), bits)
        assert found["not_finite"] == 256 - len(wanted)
        assert (found["min"], found["mean"], found["max"]) == (wanted.min(), wanted.mean(), wanted.max())
    halves = np.array([1.5, -2.0, np.inf], ml_dtypes.bfloat16).view(np.uint16)
    assert statistics(_entry("bfloat16", 3), halves) == {"min": -2.0, "mean": -0.25, "max": 1.5, "not_finite": 1}


def test_statistics_of_other_types():
    assert statistics(_entry("<u8", 2), np.array([2**64 - 1, 0], np.uint64))["max"] == 2**64 - 1
    assert statistics(_entry("|b1", 4), np.array([True, False, False, False]))["mean"] == 0.25
    assert statistics(_entry("<U1", 1), np.array(["x"])) is None
    assert statistics(_entry("<c8", 1), np.ones(1, np.complex64)) is None
    assert statistics(_entry("<f4", 0), np.empty(0, np.float32)) is None
    assert statistics(_entry("<f4", 2), np.full(2, np.nan, np.float32)) is None
    assert statistics(_entry("<f8", 2), np.full(2, 1.7e308))["max"] == 1.7e308


def test_names_cannot_play_with_the_terminal(tmp_path, do, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Run(tmp_path)
    with made.open() as opened:
        opened.commit(1, {"evil\x1b[2J": {"\x1b]0;": np.zeros(1)}, "v": "\x1b[31m", "s": "\ud800"})
    assert "\x1b" not in do("ls", "run.mirror") + do("show", "run.mirror")
    do("export", "run.mirror", "out.safetensors")


def test_a_clock_that_was_wrong():
    assert time(1e300) == "1e+300 s"


# Verifying.


def test_verify(run, do):
    lines = do("verify", "run.mirror").splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 10", "step 20", "step 30"]
    assert lines[2].endswith(f"root {FileAnchor(run.anchor_path).read()}")
    assert json.loads(do("verify", "--json", "run.mirror"))["exit_status"] == 0


def test_verify_goes_on_after_damage(run, do):
    """A block of an older commit; the others are fine, and it is said which is which."""
    data = bytearray(run.path.read_bytes())
    data[SLOTS_SIZE + 100] ^= 1  # the first commit's first block
    run.path.write_bytes(data)
    out = do("verify", "run.mirror", status=23)
    assert [line.split(":")[0] for line in out.splitlines()] == ["step 20", "step 30"]
    assert "step 10: " in do.errors
    found = json.loads(do("verify", "--json", "run.mirror", status=23))
    assert [one.get("code") for one in found["commits"]] == ["tampered", None, None]
    before = run.path.read_bytes()
    do("restore", "run.mirror", "--step", 10, status=23)
    do("export", "run.mirror", "out.safetensors", "--step", 10, status=23)
    assert not list(run.path.parent.glob("*out.safetensors*"))
    with run.read() as found:
        assert found.step == 30
    assert run.path.read_bytes()[:SLOTS_SIZE] == before[:SLOTS_SIZE]


# Going back.


def test_restore(run, do):
    with run.read() as found:
        old = found.root
    assert do("restore", "run.mirror", "--step", 20) == "training goes on from step 20, in place of 30\n"
    assert "given up: 30" in do.errors
    assert [one["step"] for one in json.loads(do("ls", "--json", "run.mirror"))] == [10, 20]
    do("verify", "run.mirror")
    anchor = FileAnchor(run.anchor_path).read()
    assert anchor.sequence > old.sequence
    with run.open() as opened:
        assert (opened.step, opened.steps, opened.root) == (20, [10, 20], anchor)
        restored = opened.restore()
        assert np.array_equal(restored["model"]["0.weight"], state_of(20)["model"]["0.weight"])
        assert restored["losses"] == state_of(20)["losses"]
        opened.commit(21, state_of(21))
        assert opened.steps == [10, 20, 21]
    for step in (10, 20, 21):
        with run.read(step) as found:
            assert np.array_equal(found["model"]["0.weight"], state_of(step)["model"]["0.weight"])


def test_a_copy_from_before_is_refused_after_a_restore(run, do):
    shutil.copy(run.path, "copy")
    do("restore", "run.mirror", "--step", 10, "--json")
    shutil.copy("copy", run.path)
    do("ls", "run.mirror", status=24)


def test_restore_of_the_newest_changes_nothing(run, do):
    before = FileAnchor(run.anchor_path).read()
    assert "step 30 is the newest already" in do("restore", "run.mirror", "--step", 30)
    assert FileAnchor(run.anchor_path).read() == before
    found = json.loads(do("restore", "run.mirror", "--step", 30, "--json"))
    assert found == {"step": 30, "before": 30, "given_up": [], "root": str(before)}


def test_restore_of_what_is_not_kept(run, do):
    do("restore", "run.mirror", "--step", 15, status=2)
    assert "step: 15 is not kept, wanted one of 10, 20, 30" in do.errors


def test_a_restore_that_is_cut_short_changes_nothing(run, do, monkeypatch):
    """At each of its writes, and before its commit; then it is done, and done wholly."""
    real, calls, stop = SealedFile.write_at, 0, 0

    def fail(self, offset, data):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise OSError(5, "input/output error")
        real(self, offset, data)

    monkeypatch.setattr(SealedFile, "write_at", fail)
    anchor = FileAnchor(run.anchor_path).read()
    for number in (1, 2, 3):
        calls, stop = 0, number
        do("restore", "run.mirror", "--step", 10, status=1)
        with run.read() as found:
            assert (found.step, found.root) == (30, anchor)
            assert np.array_equal(found["model"]["0.weight"], state_of(30)["model"]["0.weight"])
    stop = 0
    do("restore", "run.mirror", "--step", 10)
    do("verify", "run.mirror")
    with run.read() as found:
        assert found.step == 10


def test_restore_of_another_layout(tmp_path, do, monkeypatch):
    """What lay between the older commit's arrays is no longer there."""
    monkeypatch.chdir(tmp_path)
    made = Run(tmp_path)
    states = [
        {"a": np.full(3000, 1.0), "b": np.full(5000, 2.0), "c": np.full(3, 3)},
        {"b": np.full(9000, 4.0)},
        {"a": np.full(10, 5.0), "d": np.full(20_000, 6.0)},
    ]
    with made.open() as opened:
        for step, state in enumerate(states):
            opened.commit(step, state)
    do("restore", "run.mirror", "--step", 0)
    with made.read() as found:
        assert all(np.array_equal(found[name], value) for name, value in states[0].items())
        assert set(found) == set(states[0])
    do("verify", "run.mirror")


# Exporting.


def test_export(run, do):
    assert do("export", "run.mirror", "out.safetensors").startswith("exported 2 tensors of step 30, ")
    assert "warning: out.safetensors is not encrypted" in do.errors
    found = load_file("out.safetensors")
    assert np.array_equal(found["model/0.weight"], state_of(30)["model"]["0.weight"])
    assert stat.S_IMODE((run.path.parent / "out.safetensors").stat().st_mode) == 0o600
    do("export", "run.mirror", "out.safetensors", status=2)
    assert "hint: choose another name, or --overwrite" in do.errors
    told = json.loads(
        do("export", "run.mirror", "out.safetensors", "--overwrite", "--step", 10, "--part", "model", "--json")
    )
    assert told["tensors"] == {"0.bias": "model/0.bias", "0.weight": "model/0.weight"}
    assert (told["step"], told["encrypted"], told["left_out"]) == (10, False, {})
    assert list(load_file("out.safetensors")["0.bias"]) == [10, 10, 10]
    do("export", "run.mirror", "x", "--part", "optimizer", status=2)
    assert "there are: model" in do.errors


def test_export_leaves_out_what_it_cannot_hold(tmp_path, do, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Run(tmp_path).open() as opened:
        opened.commit(1, {"text": np.array(["a"]), "number": np.ones(1)})
    do("export", "run.mirror", "x", status=2)
    assert "array text: of type <U1, which safetensors lacks" in do.errors
    do("export", "run.mirror", "x", "--skip")
    assert "left out: text, of type <U1" in do.errors


# What opens it.


def test_keys_and_anchors(run, do):
    do("ls", "nothing", status=2)
    assert "mirror: nothing does not exist" in do.errors
    do("ls", ".", status=2)
    run.key_path.rename("k")
    run.anchor_path.rename("a")
    do("ls", "run.mirror", status=2)
    assert "run.mirror.key does not exist" in do.errors
    do("ls", "run.mirror", "--key", "k", status=2)
    assert "run.mirror.anchor does not exist" in do.errors
    do("ls", "run.mirror", "--key", "k", "--anchor", "a")
    assert not do.errors
    do("ls", "run.mirror", "--key", "k", "--no-anchor")
    assert "warning: freshness is not checked" in do.errors
    create_key("other")
    do("ls", "run.mirror", "--key", "other", "--anchor", "a", status=21)
    with pytest.raises(SystemExit):
        main(["mirror", "ls", "run.mirror", "--anchor", "a", "--no-anchor"])
    assert load_key("k") == run.key


def test_an_old_copy_is_refused_unless_one_asks_for_any(run, do):
    shutil.copy(run.path, "old")
    with run.open() as opened:
        opened.commit(40, state_of(40))
    for action in (["ls"], ["show"], ["verify"], ["restore", "--step", "10"], ["export", "out"]):
        name, *rest = action
        do(name, "old", *rest, "--key", run.key_path, "--anchor", run.anchor_path, status=24)
    do("verify", "old", "--key", run.key_path, "--no-anchor")


def test_a_sealed_file_that_is_no_mirror(run, do):
    from strongroom.sealed import open_sealed

    with open_sealed("file", "x", key=run.key, anchor=NO_FRESHNESS) as file:
        file.write(b"text")
    do("ls", "file", "--key", run.key_path, "--no-anchor", status=10)
    found = json.loads(do("ls", "file", "--key", run.key_path, "--no-anchor", "--json", status=10))
    assert (found["code"], found["exit_status"]) == ("format", 10)


@pytest.mark.parametrize("action", _EXAMPLES)
def test_every_action_has_help_with_an_example(action, do, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["mirror", action, "--help"])
    assert caught.value.code == 0
    assert f"Example: strongroom mirror {action} " in " ".join(capfd.readouterr().out.split())
