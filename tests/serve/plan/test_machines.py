"""Enclaves as a file says them, and sizes as people write them."""

from __future__ import annotations

import pytest

from strongroom.errors import FormatError, UsageError
from strongroom.serve.plan import Enclaves
from strongroom.serve.plan.machines import parse_machines
from strongroom.serve.plan.words import duration, parse_size, size


def test_machines_of_several_kinds():
    raw = b'[[machine]]\nname = "a"\nmemory = "94MiB"\ncount = 2\nspeed = 1.5\n[[machine]]\nmemory = 1000\n'
    assert parse_machines(raw) == (Enclaves(94 << 20, 2, 150, "a"), Enclaves(1000, 1, 100, "machine 1"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no machine"),
        ("machine = []", "none"),
        ("[[machine]]", "has no memory"),
        ('[[machine]]\nmemory = "much"', "wanted a size"),
        ("[[machine]]\nmemory = 5\ncount = 0", "count of 0"),
        ("[[machine]]\nmemory = 5\nspeed = nan", "speed"),
        ("[[machine]]\nmemory = 5\nspeed = true", "speed"),
        ("[[machine]]\nmemory = 5\nram = 6", "unknown field 'ram'"),
        ("[[", "is not TOML"),
    ],
)
def test_files_that_say_no_machines(text: str, words: str):
    with pytest.raises(FormatError, match=words):
        parse_machines(text.encode())


def test_sizes_and_times_in_words():
    assert [parse_size(text, "size") for text in ("94MiB", "1.5 kB", "7", "2gib")] == [94 << 20, 1500, 7, 2 << 30]
    for text in ("", "0", "MiB", "-1", "1e9", "9" * 30):
        with pytest.raises(UsageError):
            parse_size(text, "size")
    assert [size(98566144), size(1023), size(98566145, up=True)] == ["94.0 MiB", "1023 B", "95MiB"]
    assert [duration(999), duration(1_500), duration(12_300_000), duration(2e9)] == [
        "999 ns",
        "1.50 us",
        "12.3 ms",
        "2.00 s",
    ]
