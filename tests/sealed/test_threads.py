"""Threads of long transfers end when they are told to, and start again."""

import threading

import pytest

from strongroom.sealed import threads


def waiting() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sealed")]


def test_they_end_when_told_to_and_others_begin():
    if threads._THREADS == 1:
        pytest.skip("one processor: transfers take no threads")
    for _ in range(2):
        done: set[range] = set()
        threads.split(64, 1 << 16, lambda start, stop, done=done: done.add(range(start, stop)))
        assert sorted(number for part in done for number in part) == list(range(64))
        assert waiting()
        threads.end_threads()
        assert not waiting()
