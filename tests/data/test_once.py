"""Data that are loaded once, on a disk: by processes that are killed or start together, and on hosts that lie."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from strongroom.data import Normalise, SealedDataset, seal_once
from strongroom.errors import FormatError, RollbackError, TamperedError, TruncatedError, UsageError, WrongKeyError
from strongroom.sealed import NO_FRESHNESS, FileAnchor

KEY = bytes(range(32))
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 1, 28, 28), np.uint8)
LABELS = np.arange(300, dtype=np.uint8)

# Kills itself at the n-th step that a disk or an anchor sees; says so if there is none.
VICTIM = """
import os, signal, sys
import numpy as np
from strongroom.data import seal_once
from strongroom.sealed import FileAnchor
from strongroom.storage.local import FileStorage, LocalDirectory

left = int(sys.argv[2])

def deadly(kind, name):
    plain = getattr(kind, name)
    def step(*args, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **named)
    setattr(kind, name, step)

for kind, name in [(FileStorage, "write_at"), (FileStorage, "sync"), (LocalDirectory, "rename"),
                   (LocalDirectory, "unlink"), (LocalDirectory, "sync"), (FileAnchor, "advance")]:
    deadly(kind, name)
images = np.random.default_rng(0).integers(0, 256, (300, 1, 28, 28), np.uint8)
arrays = {"image": images, "label": np.arange(300, dtype=np.uint8)}
made = seal_once(sys.argv[1], lambda: arrays, key=bytes(range(32)), anchor=FileAnchor(sys.argv[1] + ".anchor"))
print(made, left)
"""


def load(path: Path, make=lambda: {"image": IMAGES, "label": LABELS}, anchor=None) -> bool:
    return seal_once(path, make, key=KEY, anchor=anchor or FileAnchor(f"{path}.anchor"))


def never() -> dict[str, np.ndarray]:
    raise AssertionError("the data were loaded again")


def check(path: Path) -> None:
    with SealedDataset(path, key=KEY, anchor=FileAnchor(f"{path}.anchor"), mapped=True) as dataset:
        images, labels = next(dataset.batches(300, shuffle=False))
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)


def test_loaded_once_and_found_from_then_on(tmp_path):
    assert load(tmp_path / "data")
    assert not load(tmp_path / "data", never)
    check(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o600


def test_killed_at_every_step_one_after_the_other(tmp_path):
    """Each start is killed one step later than the one before, on what that left behind."""
    path, killed, steps = tmp_path / "data", 0, 1
    while True:
        done = subprocess.run([sys.executable, "-c", VICTIM, path, str(steps)], stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        killed, steps = killed + 1, steps + 5
        if path.exists():  # from the moment that it has its name
            check(path)
            assert not load(path, never)
    assert killed > 3
    check(path)
    assert not load(path, never)


def test_whole_but_without_its_name_it_is_not_made_again(tmp_path):
    load(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "data.new")
    assert not load(tmp_path / "data", never)
    check(tmp_path / "data")


def test_what_loading_raises_leaves_nothing(tmp_path):
    def fails() -> dict[str, np.ndarray]:
        raise ConnectionError("no data today")

    with pytest.raises(ConnectionError):
        load(tmp_path / "data", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["data.lock"]
    assert load(tmp_path / "data")


def test_who_comes_second_waits_and_finds_it(tmp_path):
    loading, go, made = threading.Event(), threading.Event(), {}

    def slowly() -> dict[str, np.ndarray]:
        loading.set()
        assert go.wait(60)
        return {"image": IMAGES, "label": LABELS}

    def second() -> None:
        go.set()
        made["second"] = load(tmp_path / "data", never)

    first = threading.Thread(target=lambda: made.update(first=load(tmp_path / "data", slowly)))
    first.start()
    assert loading.wait(60)
    other = threading.Thread(target=second)
    other.start()
    first.join()
    other.join()
    assert made == {"first": True, "second": False}


class TestHostile:
    def test_removed(self, tmp_path):
        load(tmp_path / "data")
        (tmp_path / "data").unlink()
        with pytest.raises(RollbackError, match="is missing, and its anchor holds a root"):
            load(tmp_path / "data", never)

    def test_put_there_before_the_first_start(self, tmp_path):
        load(tmp_path / "planted")
        (tmp_path / "planted").rename(tmp_path / "data")
        with pytest.raises(RollbackError, match="the anchor is empty"):
            load(tmp_path / "data", never)

    def test_put_there_as_if_a_crash_had_left_it(self, tmp_path):
        """It is not believed: without a root in the anchor nothing is whole."""
        seal_once(tmp_path / "planted", lambda: {"image": IMAGES + 1}, key=KEY, anchor=NO_FRESHNESS)
        (tmp_path / "planted").rename(tmp_path / "data.new")
        assert load(tmp_path / "data")
        check(tmp_path / "data")

    def test_another_of_the_same_key(self, tmp_path):
        load(tmp_path / "data")
        load(tmp_path / "other")
        for name in ("data", "data.new"):
            shutil.copy(tmp_path / "other", tmp_path / name)
            with pytest.raises(RollbackError, match="wanted 1:"):
                load(tmp_path / "data", never)
            (tmp_path / "data").unlink(missing_ok=True)

    def test_cut_or_changed(self, tmp_path):
        load(tmp_path / "data")
        content = (tmp_path / "data").read_bytes()
        (tmp_path / "data").write_bytes(content[:70_000])
        with pytest.raises(TruncatedError):
            load(tmp_path / "data", never)
        (tmp_path / "data").write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(TamperedError):
            load(tmp_path / "data", never)
            check(tmp_path / "data")

    def test_key_of_another(self, tmp_path):
        load(tmp_path / "data")
        with pytest.raises(WrongKeyError):
            seal_once(tmp_path / "data", never, key=bytes(32), anchor=FileAnchor(tmp_path / "data.anchor"))


def test_arguments(tmp_path):
    with pytest.raises(FormatError, match="block size: 5, wanted a power of two"):
        seal_once(tmp_path / "data", never, key=KEY, anchor=NO_FRESHNESS, block_size=5)
    with pytest.raises(UsageError, match="anchor: str"):
        seal_once(tmp_path / "data", never, key=KEY, anchor="anchor")
    with pytest.raises(UsageError, match="normalise: 'images', wanted some of image, label"):
        seal_once(
            tmp_path / "data",
            lambda: {"image": IMAGES, "label": LABELS},
            key=KEY,
            anchor=NO_FRESHNESS,
            normalise={"images": Normalise()},
        )
    assert [path.name for path in tmp_path.iterdir()] == ["data.lock"]
