"""The benchmark of the log measures what it says: proofs that verify, over a log that it filled."""

from __future__ import annotations

from benchmarks.cas_log import fill, longest_proofs
from strongroom.cas.state.store import Store


def test_the_longest_proofs_of_a_small_log(tmp_path):
    store = Store(tmp_path)
    fill(store, 1000)
    assert store.head().size == 1000
    assert longest_proofs(store) == (10, 11)
    store.close()
