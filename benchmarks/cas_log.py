"""The CAS's audit log at 100,000 entries: what an append costs, how long a proof is, and what reading takes.

Each measured append is one transaction of its own, on the disk before it returns, as the CAS makes it: the entry, the
nodes of the tree, the head. The entries in between are written many to a transaction, only so that the run ends; the
first and the last thousand are measured alike. The disk is whatever holds the temporary directory.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Bench, Goal
from strongroom.cas.log.tree import verify_consistency, verify_inclusion
from strongroom.cas.state.store import Store

ENTRIES, QUICK_ENTRIES, MEASURED = 100_000, 10_000, 1000
_INCLUSION = "hashes in the longest inclusion proof"
_CONSISTENCY = "hashes in the longest consistency proof"
_RATIO = "last 1,000 appends against the first"

GOALS: Sequence[Goal] = (
    Goal(_INCLUSION, 17, "hashes", "at most"),  # ceil(log2 n), RFC 9162, section 2.1.3
    Goal(_CONSISTENCY, 18, "hashes", "at most"),  # one more, section 2.1.4
    Goal(_RATIO, 1.5, "x", "at most"),
    Goal("an inclusion proof, made and verified", 5, "ms", "at most"),
    Goal("opening the database", 1000, "ms", "at most"),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants, on one log."""
    size = QUICK_ENTRIES if bench.quick else ENTRIES
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "cas")
        first = _appends(store, MEASURED)
        fill(store, size - 2 * MEASURED)
        last = _appends(store, MEASURED)
        bench.say(f"{size:,} entries; a durable append takes {statistics.median(last):.2f} ms")
        if bench.wants(_RATIO):
            bench.record(_RATIO, statistics.median(last) / statistics.median(first))
        if bench.wants(_INCLUSION, _CONSISTENCY):
            inclusion, consistency = longest_proofs(store)
            bench.record(_INCLUSION, inclusion)
            bench.record(_CONSISTENCY, consistency)
        head, number = store.head(), size // 3

        def prove() -> None:
            (proof,) = store.inclusion([number], head.size)
            (entry,) = store.log(after=number - 1, limit=1)
            verify_inclusion(entry.leaf, number - 1, head.size, proof, head.root)

        bench.measure("an inclusion proof, made and verified", bench.timed(prove))
        store.close()
        bench.measure("opening the database", bench.timed(lambda: Store(Path(directory) / "cas").close()))


def _appends(store: Store, count: int) -> list[float]:
    """Milliseconds of each of so many appends."""
    taken = []
    for number in range(count):
        began = time.perf_counter()
        store.record("attested", "acme/train", {"measurement": "00" * 48, "number": number}, now=number)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def fill(store: Store, count: int) -> None:
    """Append so many entries, a thousand to a transaction."""
    for start in range(0, count, 1000):
        with store.transaction():
            for number in range(start, min(start + 1000, count)):
                store._append("attested", f"acme/train-{number % 7}", {"number": number}, number)


def longest_proofs(store: Store) -> tuple[int, int]:
    """The most hashes in a proof of inclusion under the head and of consistency with it, over a sample of all sizes.

    Each of them is verified too.
    """
    head = store.head()
    near = {step + side for step in (1 << level for level in range(head.size.bit_length())) for side in (-1, 0, 1)}
    sample = sorted({*range(1, head.size, 997), *range(head.size - 63, head.size + 1), *near} - {0})
    sample = [number for number in sample if number <= head.size]
    inclusions = store.inclusion(sample, head.size)
    for number, proof in zip(sample, inclusions, strict=True):
        (entry,) = store.log(after=number - 1, limit=1)
        verify_inclusion(entry.leaf, number - 1, head.size, proof, head.root)
    with store._reading() as db:
        roots = {size: store._log.root_at(db, size) for size in sample}
    consistencies = [store.consistency(size, head.size) for size in sample]
    for size, proof in zip(sample, consistencies, strict=True):
        verify_consistency(size, roots[size], head.size, head.root, proof)
    return max(map(len, inclusions)), max(map(len, consistencies))
