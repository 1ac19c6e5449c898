"""Several ranks: a commit is global or not at all, wherever one of them, or the power, goes."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from strongroom import mirror
from strongroom.errors import ChannelError, RollbackError, StrongroomError, UsageError
from strongroom.mirror.ranks import RankedMirror
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory

KEY = bytes(range(32))


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count, timeout=60)
        self._said: list[bytes] = [b""] * count

    def of(self, rank: int) -> mirror.ranks.Ranks:  # type: ignore[name-defined]
        whole = self

        class One:
            def __init__(self) -> None:
                self.rank, self.count = rank, whole.count

            def gather(self, data: bytes) -> list[bytes]:
                try:
                    whole._said[rank] = data
                    whole._barrier.wait()
                    heard = list(whole._said)
                    whole._barrier.wait()
                except threading.BrokenBarrierError:
                    raise ChannelError("ranks: one is gone") from None
                return heard

        return One()

    def leave(self) -> None:
        self._barrier.abort()


def together(disks: list, record, anchor, work: Callable[[RankedMirror, int], object]) -> list[object]:
    """What `work` gave, or raised, on each rank."""
    ranks = Threads(len(disks))

    def run(rank: int) -> object:
        try:
            part = mirror.open(disks[rank], key=KEY, anchor=NO_FRESHNESS, block_size=4096)
            records = mirror.open(record, key=KEY, anchor=anchor, block_size=4096) if rank == 0 else None
        except BaseException:
            ranks.leave()  # the others would wait
            raise
        try:
            with RankedMirror(part, records, ranks.of(rank)) as ranked:
                return work(ranked, rank)
        except (OSError, StrongroomError) as error:
            return error

    with ThreadPoolExecutor(len(disks)) as pool:
        return list(pool.map(run, range(len(disks))))


def state(step: int, rank: int) -> dict[str, object]:
    return {"w": np.full(5000, step * 10 + rank), "step": step}


def commits(first: int, last: int) -> Callable[[RankedMirror, int], object]:
    def work(ranked: RankedMirror, rank: int) -> object:
        restored = ranked.restore()
        if restored:
            restored.close()
        for step in range(first, last):
            ranked.commit(step, state(step, rank))
        return ranked.step

    return work


def restored_step(ranked: RankedMirror, rank: int) -> object:
    restored = ranked.restore()
    if restored is None:
        return None
    with restored:
        assert (restored["w"] == restored.step * 10 + rank).all()
        return restored.step


def test_all_commit_and_restore_and_go_on():
    disks, record, anchor = [MemoryDirectory() for _ in range(3)], MemoryDirectory(), MemoryAnchor()
    assert together(disks, record, anchor, restored_step) == [None] * 3
    assert together(disks, record, anchor, commits(1, 5)) == [4] * 3
    assert together(disks, record, anchor, restored_step) == [4] * 3
    assert together(disks, record, anchor, commits(5, 7)) == [6] * 3
    assert together(disks, record, anchor, restored_step) == [6] * 3


@pytest.mark.filterwarnings("ignore::strongroom.mirror.MirrorWarning")  # in threads, where none can be caught
@pytest.mark.parametrize("victim", range(2))
@pytest.mark.parametrize("kind", ["sync", "full"])
def test_one_that_fails_makes_none_commit(victim, kind):
    disks, record, anchor = [FaultyDirectory() for _ in range(2)], MemoryDirectory(), MemoryAnchor()

    def work(ranked: RankedMirror, rank: int) -> object:
        assert ranked.restore() is None
        ranked.commit(1, state(1, rank))
        if rank == victim and kind == "sync":
            disks[rank].faults.fail_sync = disks[rank].syncs + 1
        elif rank == victim:
            disks[rank].faults.full_from = disks[rank].writes + 2
        if kind == "full":
            ranked.commit(2, state(2, rank))
            disks[rank].faults.full_from = None
            assert ranked.step == 1
            ranked.commit(3, state(3, rank))
            return ranked.step
        ranked.commit(2, state(2, rank))
        return ranked.step

    said = together(disks, record, anchor, work)
    if kind == "full":
        assert said == [3, 3]
    else:
        assert all(isinstance(error, (OSError, StrongroomError)) for error in said)
        assert isinstance(said[1 - victim], ChannelError) and f"rank {victim} failed" in str(said[1 - victim])
    assert together(disks, record, anchor, restored_step) == ([3, 3] if kind == "full" else [1, 1])


def test_a_record_that_fails_stops_all_and_stays_restorable():
    disks, record, anchor = [MemoryDirectory() for _ in range(2)], FaultyDirectory(), MemoryAnchor()

    def work(ranked: RankedMirror, rank: int) -> object:
        assert ranked.restore() is None
        ranked.commit(1, state(1, rank))
        if rank == 0:
            record.faults.fail_sync = record.syncs + 2  # of the slot: it may be there or not
        for step in (2, 3, 4):
            with pytest.raises((OSError, StrongroomError)):
                ranked.commit(step, state(step, rank))
        return ranked.step

    assert together(disks, record, anchor, work) == [1, 1]
    for state_of_record in record.crash_states(20, random.Random(1)):  # noqa: S311
        assert together(disks, state_of_record, MemoryAnchor(anchor.read()), restored_step) in ([1, 1], [2, 2])


def test_one_that_is_gone_is_an_error_on_the_others():
    disks, record = [MemoryDirectory() for _ in range(2)], MemoryDirectory()
    ranks = Threads(2)

    def stays() -> object:
        part, records = (mirror.open(at, key=KEY, anchor=NO_FRESHNESS) for at in (disks[0], record))
        with pytest.raises(ChannelError, match="one is gone"), RankedMirror(part, records, ranks.of(0)) as ranked:
            ranked.commit(1, state(1, 0))
        return True

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stays)
        ranks.leave()
        assert waiting.result()


def test_parts_of_another_run_or_number_of_ranks_are_refused():
    anchor, disks, record = MemoryAnchor(), [MemoryDirectory() for _ in range(2)], MemoryDirectory()
    together(disks, record, anchor, commits(1, 4))
    others = [MemoryDirectory() for _ in range(2)]
    together(others, MemoryDirectory(), MemoryAnchor(), commits(1, 4))
    said = together([disks[0], others[1]], record, anchor, restored_step)
    assert isinstance(said[0], ChannelError) and "rank 1 cannot restore" in str(said[0])
    assert isinstance(said[1], RollbackError)
    said = together([*disks, MemoryDirectory()], record, anchor, restored_step)
    assert isinstance(said[0], UsageError) and "committed by 2" in str(said[0])
    said = together(disks[::-1], record, anchor, restored_step)
    assert all(isinstance(one, (RollbackError, ChannelError)) for one in said)


@pytest.mark.parametrize("seed", range(2))
def test_the_power_goes_at_any_step_of_any_rank(seed):
    rng = random.Random(seed)  # noqa: S311
    disks, record, anchor = [FaultyDirectory() for _ in range(2)], FaultyDirectory(), MemoryAnchor()
    lock = threading.RLock()
    acknowledged, begun, explored = [0, 0], [0, 0], 0
    looking = threading.local()

    def look() -> None:
        nonlocal explored
        if getattr(looking, "now", False) or rng.random() < 0.6:
            return
        looking.now = True
        try:
            with lock:
                least, most = min(acknowledged), max(begun)
                states = [next(iter(rng.sample(list(one.crash_states(3, rng)), 1))) for one in (*disks, record)]
                held = MemoryAnchor(anchor.read())
            explored += 1
            said = together(states[:2], states[2], held, restored_step)
            assert said[0] == said[1], said
            assert said[0] in ({None} if not least else set()) | set(range(max(1, least), most + 1)), (
                said,
                least,
                most,
            )
        finally:
            looking.now = False

    failures: list[BaseException] = []
    for disk in (*disks, record):
        take = disk._steps.take

        def watched(take: Callable[[], None] = take) -> None:
            try:
                look()
            except AssertionError as error:
                failures.append(error)
            with lock:
                take()

        disk._steps.take = watched  # type: ignore[method-assign]

    def work(ranked: RankedMirror, rank: int) -> object:
        ranked.restore()
        for step in range(1, 5):
            begun[rank] = step
            ranked.commit(step, state(step, rank))
            acknowledged[rank] = step
        return ranked.step

    assert together(disks, record, anchor, work) == [4, 4]
    assert not failures, failures[0]
    assert explored > 10


@pytest.mark.filterwarnings("ignore::strongroom.mirror.MirrorWarning")
def test_a_record_that_the_anchor_did_not_take_note_of_keeps_what_it_names():
    """It is on the disk, and counts when it is opened again; so no rank may give up its part by going on."""

    class Full(MemoryAnchor):
        full = False

        def advance(self, old, new):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left")
            super().advance(old, new)

    disks, record, anchor = [MemoryDirectory(), MemoryDirectory()], MemoryDirectory(), Full()

    def work(ranked: RankedMirror, rank: int) -> list[str]:
        said = []
        for step in range(1, 6):
            anchor.full = anchor.full or step == 3
            try:
                ranked.commit(step, state(step, rank))
            except (OSError, StrongroomError) as error:
                said.append(str(error))
        return said

    for said in together(disks, record, anchor, work):
        assert len(said) == 3
        assert "commits no more" in said[1] and "commits no more" in said[2]
    anchor.full = False
    assert together(disks, record, anchor, restored_step) == [3, 3]
