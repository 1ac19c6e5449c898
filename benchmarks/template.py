"""A template for an area: copy it, and add the copy's name to `AREAS` in `benchmarks/__main__.py`.

State here what is compared and why the comparison is fair: same inputs, same cores, same precision, both warmed up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from benchmarks.harness import Bench, Goal

GOALS: Sequence[Goal] = (
    Goal("hash against copy", 100, "x", "at most"),
    Goal("hash rate", 50, "MiB/s", "at least"),
    Goal("hash of a gibibyte", 60_000, "ms", "at most", full_only=True),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    mebibyte = bytes(1 << 20)

    def hash_it() -> None:
        hashlib.sha256(mebibyte).digest()

    # Ours and the peer in turns; each call returns one figure.
    bench.compare(
        "hash against copy",
        bench.timed(hash_it),
        bench.timed(lambda: bytearray(mebibyte)),
        peer_name="a copy in memory",
        unit="ms",
    )

    # A figure of ours alone, in the goal's unit.
    hash_ms = bench.timed(hash_it)
    bench.measure("hash rate", lambda: 1000 / hash_ms())

    # Ask before preparing something expensive: a quick run wants less.
    if bench.wants("hash of a gibibyte"):
        gibibyte = bytes(1 << 30)
        bench.measure("hash of a gibibyte", bench.timed(lambda: hashlib.sha256(gibibyte).digest()), rounds=3)
