"""Threads that nothing ends in silence, and calls that nobody waits for without end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from strongroom.cas.threads import Patience, Repeating
from strongroom.errors import CasError, CasUnreachableError, TooManyRequestsError


@pytest.mark.parametrize("error", [CasUnreachableError("CAS: away"), ValueError("a bug")])
def test_a_step_that_raises_is_told_and_followed_by_the_next(error, caplog):
    steps, enough = [], threading.Event()

    def step():
        steps.append(1)
        if len(steps) == 3:
            enough.set()
        raise error

    thread = Repeating("peer", step, retry=0.0)
    thread.start()
    assert enough.wait(60)
    thread.close()
    assert not thread.alive
    assert f"peer: {'CAS: away' if isinstance(error, CasError) else 'failed'}" in caplog.text


def test_a_thread_that_waits_is_woken():
    steps, stepped = [], threading.Semaphore(0)

    def step():
        steps.append(1)
        stepped.release()
        return 3600.0

    thread = Repeating("peer", step, retry=0.0)
    thread.start()
    stepped.acquire()
    thread.wake()
    stepped.acquire()
    thread.close()
    assert len(steps) == 2


def test_a_call_that_hangs_is_left_behind_and_its_place_is_not_free():
    hangs = threading.Event()

    async def run():
        brief = Patience("evidence", at_once=1, seconds=0.01)
        for _ in range(2):
            with pytest.raises(CasError, match="evidence: not had within"):
                await brief.call(hangs.wait)

    asyncio.run(run())  # which would join the default executor's threads
    hangs.set()


def test_one_asker_does_not_take_all_places():
    hangs = threading.Event()

    async def run():
        patience = Patience("evidence", at_once=1, waiting=3, of_one=2)
        waiting = [asyncio.ensure_future(patience.call(hangs.wait, who="mallory")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequestsError, match="2 wait for it"):
            await patience.call(hangs.wait, who="mallory")
        waiting.append(asyncio.ensure_future(patience.call(hangs.wait, who="alice")))
        await asyncio.sleep(0)
        hangs.set()
        assert await asyncio.gather(*waiting) == [True, True, True]
        assert await patience.call(lambda: 1, who="mallory") == 1

    asyncio.run(run())


def test_no_more_wait_than_may():
    hangs = threading.Event()

    async def run():
        patience = Patience("evidence", at_once=1, waiting=2)
        waiting = [asyncio.ensure_future(patience.call(hangs.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequestsError, match="2 wait for it"):
            await patience.call(hangs.wait)
        hangs.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await patience.call(lambda: 1) == 1

    asyncio.run(run())
