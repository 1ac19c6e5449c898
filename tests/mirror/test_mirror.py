"""Commits, restores, what is kept, and what a failure leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from strongroom import mirror
from strongroom.errors import CasError, FormatError, LockedError, StrongroomError, UsageError, WrongKeyError
from strongroom.mirror import MirrorWarning
from strongroom.sealed import NO_FRESHNESS, Grouped, MemoryAnchor, open_sealed
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import Faults, FaultyDirectory

KEY = bytes(range(32))
MODES = [
    pytest.param({"mode": mode, "delta": delta}, id=f"{mode}{'-delta' * delta}")
    for mode in ("synchronous", "overlapped")
    for delta in (False, True)
]


def opened(directory, **options) -> mirror.Mirror:
    return mirror.open(directory, **{"key": KEY, "anchor": NO_FRESHNESS, "block_size": 4096, **options})


def state(step: int) -> dict[str, object]:
    rng = np.random.default_rng(step)
    return {
        "model": {"weight": rng.normal(size=(50, 70)), "bias": rng.normal(size=3).astype(np.float32)},
        "optimizer": {
            "state": {0: {"m": rng.normal(size=3000), "step": step}},
            "groups": [{"lr": 0.1, "betas": (0.9, 1)}],
        },
        "losses": [1 / (step + 1), float("inf")],
        "seed": np.uint64(step),
        "name": "run",
    }


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and list(found) == list(wanted)
            and all(same(found[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, (list, tuple)):
        return type(found) is type(wanted) and len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and found.dtype == wanted.dtype
            and found.shape == wanted.shape
            and found.tobytes() == wanted.tobytes()
        )
    return type(found) is type(wanted) and found == wanted


def holds(restored: mirror.Restored | None, step: int) -> bool:
    assert restored is not None
    with restored:
        return restored.step == step and same(dict(restored), state(step))


@pytest.mark.parametrize("options", MODES)
def test_what_is_committed_comes_back(options):
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    with opened(directory, anchor=anchor, **options) as made:
        assert made.restore() is None and made.step is None and made.steps == []
        for step in (3, 4, 9):
            made.commit(step, state(step)).durable()
        assert holds(made.restore(), 9)
    with opened(directory, anchor=anchor, **options) as again:
        assert again.step == 9 and again.steps == [4, 9]
        assert holds(again.restore(), 9)
        again.commit(10, state(10))
    with opened(directory, anchor=anchor) as last:
        assert holds(last.restore(), 10)
        assert last.root == anchor.read()


@pytest.mark.parametrize("options", MODES)
def test_an_update_in_place_never_leaks_into_a_commit(options):
    weights = np.zeros(500_000)
    started, going_on = threading.Event(), threading.Event()

    class Slow(MemoryDirectory):
        def open(self, name, mode, *, shared=False):
            file = super().open(name, mode, shared=shared)
            write = file.write_at

            def waiting(offset, data):
                started.set()
                assert going_on.wait(60)
                write(offset, data)

            file.write_at = waiting
            return file

    directory = Slow()
    going_on.set()
    with opened(directory, **options) as made:
        made.commit(1, {"w": weights}).durable()
        weights += 1
        if options["mode"] == "overlapped":
            started.clear()
            going_on.clear()
        commit = made.commit(2, {"w": weights, "small": weights[:3]})
        weights += 1  # while it is sealed, if it is overlapped
        if options["mode"] == "overlapped":
            assert started.wait(60) and not commit.done
            weights += 1
            going_on.set()
        commit.durable()
        restored = made.restore()
        assert restored is not None
        assert (restored["w"] == 1).all() and (restored["small"] == 1).all()


def test_at_most_one_commit_is_under_way(tmp_path):
    with opened(tmp_path / "m", mode="overlapped") as made:
        commits = [made.commit(step, state(step)) for step in range(1, 20)]
        assert all(commit.done for commit in commits[:-1])
    assert commits[-1].done


def test_an_exception_in_the_block_commits_nothing():
    with opened(MemoryDirectory()) as made:
        made.commit(1, state(1))
        with pytest.raises(ZeroDivisionError), made.begin(2) as commit:
            commit["model"] = state(2)["model"]
            raise ZeroDivisionError
        with pytest.raises(UsageError, match="step 2: was not made"):
            commit.durable()
        assert holds(made.restore(), 1)
        made.commit(2, state(2))
        assert holds(made.restore(), 2)


def test_steps_rise():
    with opened(MemoryDirectory()) as made:
        made.commit(5, state(5))
        for step in (5, 4, 0):
            with pytest.raises(UsageError, match=f"step: {step}, wanted one above 5"):
                made.commit(step, state(step))
        for step in (-1, 1 << 63, True, 1.5, "6"):
            with pytest.raises(UsageError, match="step"):
                made.commit(step, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", MODES)
def test_shapes_may_change_and_arrays_come_and_go(options):
    rng = np.random.default_rng(1)
    with opened(MemoryDirectory(), **options) as made:
        for step in range(1, 40):
            count = int(rng.integers(0, 6))
            arrays = {
                f"a{name}": rng.integers(0, 255, int(rng.integers(0, 4)) * 4096 + int(rng.integers(0, 50)), np.uint8)
                for name in rng.permutation(8)[:count].tolist()
            }
            made.commit(step, {"arrays": arrays}).durable()
            restored = made.restore()
            assert restored is not None and same(restored["arrays"], arrays)


def test_only_what_changed_is_written():
    weights = np.zeros(1 << 20, np.uint8)
    with opened(MemoryDirectory(), delta=True) as made:
        made.commit(1, {"w": weights})
        assert made.written == 1 << 20
        made.commit(2, {"w": weights})
        assert made.written == 0
        weights[5] = 1
        weights[4096 * 7 : 4096 * 9] = 1
        made.commit(3, {"w": weights, "new": np.ones(3)})
        assert made.written == 1 << 20
        restored = made.restore()
        assert restored is not None and (restored["w"] == weights).all()


def test_a_ring_of_commits_is_kept(tmp_path):
    path = tmp_path / "m"
    with opened(path, keep=4) as made:
        for step in range(1, 11):
            made.commit(step, state(step))
        assert made.steps == [7, 8, 9, 10]
    for step in (7, 8, 9, 10):
        assert holds(mirror.read(path, key=KEY, anchor=NO_FRESHNESS, step=step), step)
    with pytest.raises(UsageError, match="step: 6 is not kept, wanted one of 7, 8, 9, 10"):
        mirror.read(path, key=KEY, anchor=NO_FRESHNESS, step=6)
    with opened(path, keep=2) as fewer:
        fewer.commit(11, state(11))
        assert fewer.steps == [10, 11]


def test_going_back_gives_up_what_came_later():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    with opened(directory, anchor=anchor, keep=5) as made:
        for step in range(1, 6):
            made.commit(step, state(step))
        assert holds(made.restore(step=3), 3)
        assert holds(made.restore(), 3)
        assert made.step == 3 and made.steps == [1, 2, 3]
        made.commit(4, {"another": 4})
        assert made.steps == [1, 2, 3, 4]
        restored = made.restore()
        assert restored is not None and dict(restored) == {"another": 4}
        made.commit(5, state(5))
        assert made.steps == [1, 2, 3, 4, 5]
    with opened(directory, anchor=anchor, keep=5) as again:
        assert again.steps == [1, 2, 3, 4, 5]
        for step in (1, 2, 3, 5):
            assert holds(again.restore(step=step), step) or step != 5
            break
    with opened(directory, anchor=anchor, keep=5) as untouched:
        assert untouched.step == 5  # looking at an older one changes nothing


def test_a_reader_sees_one_commit_while_training_goes_on(tmp_path):
    path = tmp_path / "m"
    with opened(path) as made:
        made.commit(1, state(1))
        with mirror.read(path, key=KEY, anchor=NO_FRESHNESS) as reader:
            for step in range(2, 8):
                made.commit(step, state(step))
            assert holds(reader, 1)


def test_what_is_restored_is_read_before_the_next_commit():
    with opened(MemoryDirectory()) as made:
        made.commit(1, state(1))
        restored = made.restore()
        assert restored is not None
        made.commit(2, state(2))
        with pytest.raises(UsageError, match="the mirror has gone on"):
            _ = restored["model"]


def test_one_writer(tmp_path):
    path = tmp_path / "m"
    with opened(path) as made:
        made.commit(1, state(1))
        with pytest.raises(LockedError):
            opened(path)


def test_a_fork_does_not_commit(tmp_path):
    with opened(tmp_path / "m") as made:
        made.commit(1, state(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, in Python 3.12
            child = os.fork()
        if child == 0:
            code = 1
            try:
                made.commit(2, state(2))
            except UsageError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        made.commit(2, state(2))


def test_a_worker_that_outlives_a_killed_training_does_not_keep_it_from_going_on(tmp_path):
    told, tells = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, in Python 3.12
        training = os.fork()
        if training == 0:
            made = opened(tmp_path / "m", mode="overlapped")
            made.commit(1, state(1)).durable()
            if os.fork() == 0:
                os.write(tells, b"%d" % os.getpid())
            while True:  # also the worker, until somebody ends it
                signal.pause()
    worker = int(os.read(told, 10))
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    try:
        with opened(tmp_path / "m") as again:
            assert holds(again.restore(), 1)
            again.commit(2, state(2))
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(told)
        os.close(tells)


def test_what_cannot_be_kept_is_named():
    with opened(MemoryDirectory()) as made:
        made.commit(1, state(1))
        for value, where in (
            ({"model": {"layer": [object()]}}, "model/layer/0: a object"),
            ({"model": np.array([object()])}, "model: an array of object"),
            ({"model": {3: lambda: None}}, "model/3: a function"),
            ({"model": 1j}, "model: a complex"),
        ):
            with pytest.raises(UsageError, match=where):
                made.commit(2, value)
        assert made.step == 1 and holds(made.restore(), 1)
        made.commit(2, state(2))


@pytest.mark.parametrize("options", MODES)
def test_a_full_disk_leaves_the_last_commit_and_training_goes_on(options):
    directory = FaultyDirectory()
    with opened(directory, **options) as made:
        made.commit(1, state(1)).durable()
        directory.faults.full_from = directory.writes + 3
        with pytest.warns(MirrorWarning, match="no room for step 2; step 1 stays the newest"):
            made.commit(2, state(2))
            made._settle()
        with pytest.warns(MirrorWarning, match="no room for step 3"):
            made.commit(3, state(3))
            made._settle()
        assert made.missed == 2 and made.step == 1
        directory.faults.full_from = None
        made.commit(4, state(4)).durable()
        assert holds(made.restore(), 4) and made.missed == 0
    with opened(directory) as again:
        assert holds(again.restore(), 4)


def test_a_full_disk_is_an_error_if_asked_for():
    directory = FaultyDirectory()
    with opened(directory, when_full="raise") as made:
        made.commit(1, state(1))
        directory.faults.full_from = directory.writes + 2
        with pytest.raises(OSError, match="No space left"):
            made.commit(2, state(2))
        directory.faults.full_from = None
        made.commit(2, state(2))
        assert holds(made.restore(), 2)


@pytest.mark.parametrize("options", MODES)
def test_a_failed_save_is_never_taken_for_success(options):
    directory = FaultyDirectory(faults=Faults())
    made = opened(directory, **options)
    made.commit(1, state(1)).durable()
    directory.faults.fail_sync = directory.syncs + 1
    with pytest.raises(OSError, match="Input/output"):
        made.commit(2, state(2)).durable()
    with pytest.raises(StrongroomError, match="an earlier commit failed"):
        made.commit(3, state(3)).durable()
    assert made.step == 1
    made.close()
    with opened(directory) as again:
        assert again.step in (1, 2)


def test_a_failure_of_the_last_overlapped_commit_is_raised_by_close():
    directory = FaultyDirectory()
    made = opened(directory, mode="overlapped")
    made.commit(1, state(1)).durable()
    directory.faults.fail_sync = directory.syncs + 1
    made.commit(2, state(2))
    with pytest.raises(OSError, match="Input/output"):
        made.close()
    made.close()


def test_opening_something_else_is_refused(tmp_path):
    path = tmp_path / "f"
    with open_sealed(path, "x", key=KEY, anchor=NO_FRESHNESS) as file:
        file.write(b"no mirror" * 100)
    for open_it in (lambda: opened(path), lambda: mirror.read(path, key=KEY, anchor=NO_FRESHNESS)):
        with pytest.raises(FormatError, match="does not end as a mirror does"):
            open_it()
    with pytest.raises(WrongKeyError):
        opened(path, key=bytes(32))
    with pytest.raises(FileNotFoundError):
        mirror.read(tmp_path / "none", key=KEY, anchor=NO_FRESHNESS)
    for options in (
        {"keep": 0},
        {"keep": 15},
        {"mode": "fast"},
        {"durability": "none"},
        {"when_full": "x"},
        {"key": b""},
    ):
        with pytest.raises(UsageError):
            opened(tmp_path / "g", **options)
    assert not (tmp_path / "g").exists()


def test_lazily_synced_commits_reach_the_anchor_synced(tmp_path: Path, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), real(fd))[1])
    anchor = MemoryAnchor()
    with opened(tmp_path / "m", anchor=anchor, durability="process") as made:
        assert "none" in made.region.means
        made.commit(1, state(1))
        first = len(synced)
        for step in range(2, 30):
            made.commit(step, state(step))
        assert len(synced) == first  # no commit waits for the disk
        assert made.root != anchor.read()
    assert len(synced) > first
    assert made.root is not None and anchor.read() == made.root
    with opened(tmp_path / "m", anchor=anchor) as again:
        assert holds(again.restore(), 29)


def test_an_anchor_may_follow_in_groups():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    grouped = Grouped(anchor, every_commits=8, every_seconds=3600, clock=lambda: 0.0)
    with opened(directory, anchor=grouped) as made:
        for step in range(1, 20):
            made.commit(step, state(step))
    with opened(directory, anchor=anchor) as again:
        assert holds(again.restore(), 19)


def test_where_it_rests_is_said(tmp_path):
    with opened(tmp_path / "m") as made:
        assert made.region.kind in ("disk", "memory", "other", "dax")
        assert "power" in made.region.durability and str(made.region)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("failing", ["interrupt", "full"])
def test_nothing_of_a_commit_that_failed_is_ever_committed(options, failing):
    class Failing(MemoryDirectory):
        countdown = -1

        def open(self, name, mode, *, shared=False):
            file = super().open(name, mode, shared=shared)
            write = file.write_at

            def written(offset, data):
                self.countdown -= 1
                if self.countdown == 0:
                    raise KeyboardInterrupt if failing == "interrupt" else OSError(errno.ENOSPC, "No space left")
                write(offset, data)

            file.write_at = written
            return file

    def arrays(step: int) -> dict[str, object]:
        return {name: np.full(5000, step) for name in ("v", "w", "x")}

    directory = Failing()
    for countdown in range(1, 5):
        anchor = MemoryAnchor()
        directory.files.clear()
        directory.countdown = -1
        with contextlib.suppress(KeyboardInterrupt), opened(directory, anchor=anchor, **options) as made:
            made.commit(1, arrays(1)).durable()
            directory.countdown = countdown
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MirrorWarning)
                made.commit(2, arrays(2))
                made._settle()
            directory.countdown = -1
            if made.failed:
                with pytest.raises(StrongroomError, match="open it again"):
                    made.restore()
            else:
                restored = made.restore()
                assert restored is not None
                assert {(array == restored.step).all() for array in restored.values()} == {True}
        directory.countdown = -1
        with opened(directory, anchor=anchor) as again:
            restored = again.restore()
            assert restored is not None
            assert all((array == restored.step).all() for array in restored.values())


def test_a_state_is_not_read_while_the_next_one_is_sealed():
    with opened(MemoryDirectory(), mode="overlapped") as made:
        made.commit(1, state(1)).durable()
        restored = made.restore()
        assert restored is not None
        made.commit(2, state(2))
        with pytest.raises(UsageError, match="the mirror has gone on"):
            _ = restored["model"]


def test_the_last_step_there_can_be():
    with opened(MemoryDirectory()) as made:
        made.commit((1 << 63) - 1, {"a": 1})
        restored = made.restore()
        assert restored is not None and restored["a"] == 1


def test_what_another_thread_writes_behind_a_commit_is_in_the_next(monkeypatch):
    """Also with delta: what is remembered of a commit is what the file got, not what the memory held a moment later."""
    directory = MemoryDirectory()
    array = np.zeros(1 << 20, np.uint8)
    with opened(directory, delta=True) as made:
        write = made._file.write_blocks

        def write_and_change(pieces):
            write(pieces)
            array[:] += 1

        monkeypatch.setattr(made._file, "write_blocks", write_and_change)
        made.commit(1, {"w": array})
        made.commit(2, {"w": array})
        monkeypatch.undo()
        made.commit(3, {"w": array})
    with opened(directory) as made:
        restored = made.restore()
        assert restored is not None
        assert (restored["w"] == 2).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_that_leaves_the_with_block_ends(tmp_path):
    options = {"key": KEY, "anchor": NO_FRESHNESS, "mode": "overlapped"}
    with mirror.open(tmp_path / "m", **options) as made:
        made.commit(1, {"w": np.zeros(1 << 24, np.uint8)})
        child = os.fork()
        if not child:
            signal.alarm(60)  # ends it if it hangs
            made.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        made.commit(2, {"w": np.ones(1 << 24, np.uint8)})
    with mirror.read(tmp_path / "m", key=KEY, anchor=NO_FRESHNESS) as found:
        assert found.step == 2


class TroubledAnchor(MemoryAnchor):
    """An anchor that raises `trouble` as long as there is one, before or after it has taken note."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.after = after
        self.trouble: Exception | None = None

    def advance(self, old, new):
        if self.trouble is None or self.after:
            super().advance(old, new)
        if self.trouble is not None:
            raise self.trouble


@pytest.mark.parametrize("mode", ["synchronous", "overlapped"])
@pytest.mark.parametrize("after", [False, True], ids=["before it noted", "after it noted"])
def test_a_disk_that_is_too_full_for_the_anchor_is_a_warning(mode, after):
    directory, anchor = MemoryDirectory(), TroubledAnchor(after=after)
    with opened(directory, anchor=anchor, mode=mode) as made:
        made.commit(1, {"w": np.full(9, 1)}).durable()
        anchor.trouble = OSError(errno.ENOSPC, "No space left")
        with pytest.warns(MirrorWarning, match="no room for step 2; step 1 stays"):
            made.commit(2, {"w": np.full(9, 2)})
            made._settle()
        with pytest.warns(MirrorWarning, match="no room for step 3"):
            made.commit(3, {"w": np.full(9, 3)})
            made._settle()
        assert made.missed == 2
        anchor.trouble = None
        made.commit(4, {"w": np.full(9, 4)}).durable()
        assert made.steps[-2:] == [2, 4] or made.step == 4
        restored = made.restore()
        assert restored is not None
        assert (restored["w"] == 4).all()
    with opened(directory, anchor=anchor) as again:
        assert again.step == 4


@pytest.mark.parametrize("mode", ["synchronous", "overlapped"])
def test_a_commit_that_the_anchor_does_not_answer_to_is_undecided_and_tried_again(mode, monkeypatch):
    monkeypatch.setattr("strongroom.mirror.mirror._PATIENCE", 0.0)
    directory, anchor = MemoryDirectory(), TroubledAnchor(after=False)
    with opened(directory, anchor=anchor, mode=mode) as made:
        made.commit(1, {"w": np.full(9, 1)}).durable()
        anchor.trouble = CasError("CAS: does not answer")
        with pytest.raises(CasError):
            made.commit(2, {"w": np.full(9, 2)}).durable()
        assert made.step == 1
        anchor.trouble = None
        restored = made.restore()
        assert restored is not None
        assert (restored.step, restored["w"][0]) == (2, 2)
        made.commit(3, {"w": np.full(9, 3)}).durable()
        assert made.step == 3


def test_an_anchor_that_answers_late_is_waited_for(monkeypatch):
    anchor = TroubledAnchor(after=False)
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        anchor.trouble = None

    with opened(MemoryDirectory(), anchor=anchor) as made:
        made.commit(1, {"w": np.full(9, 1)})
        anchor.trouble = CasError("CAS: does not answer")
        monkeypatch.setattr("strongroom.mirror.mirror.time.sleep", sleep)
        made.commit(2, {"w": np.full(9, 2)})
        assert made.step == 2
        assert waited


def test_a_directory_is_no_place_for_a_mirror(tmp_path):
    with pytest.raises(UsageError, match="is a directory, wanted a path for the mirror's file"):
        mirror.open(tmp_path, key=KEY, anchor=NO_FRESHNESS)
    assert list(tmp_path.iterdir()) == []
