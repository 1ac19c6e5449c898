"""A CAS's database after a power cut: rows, log and head are of one moment, however much of the journal is there."""

from __future__ import annotations

import itertools
import shutil

from strongroom.cas.state.store import Store

CHANGES = 6
GROUPS = (2, 3, 1)


def test_whatever_part_of_the_journal_reached_the_disk(tmp_path):
    store = Store(tmp_path / "running")
    found = cut_off(store, tmp_path, [1] * CHANGES)
    assert found == set(range(CHANGES + 1))


def test_a_group_is_there_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path / "running")
    store.group(lambda: True)
    found = cut_off(store, tmp_path, GROUPS)
    assert found == set(itertools.accumulate(GROUPS, initial=0))


def cut_off(store, tmp_path, groups):
    """Make changes, so many at a time; then look what is there after each part of the journal. The sizes of the log."""
    running = tmp_path / "running"
    heads = [store.head()]
    empty = (running / "cas.sqlite-wal").read_bytes()
    numbers = itertools.count(1)
    for size in groups:
        for number in itertools.islice(numbers, size):
            store.put_secret("a/b", "token", b"%d" % number, now=number)
            heads.append(store.head())
        if store.in_group():
            store.flush()
    journal = (running / "cas.sqlite-wal").read_bytes()
    # Its length was there before; what the changes wrote lies at its start.
    written = max(at for at in range(0, len(journal), 512) if journal[at : at + 512] != empty[at : at + 512]) + 512
    found = set()
    for end in [*range(0, written, 2500), written, len(journal)]:
        after = tmp_path / "after"
        after.mkdir()
        for name in ("cas.sqlite", "master.key"):
            shutil.copy(running / name, after / name)
        (after / "cas.sqlite-wal").write_bytes(journal[:end])
        again = Store(after)
        size = again.head().size
        assert again.head() == heads[size]
        assert again.secret("a/b", "token") == (b"%d" % size if size else None)
        assert [entry.time for entry in again.log()] == list(range(1, size + 1))
        again.put_secret("a/b", "token", b"next", now=99)
        again.check_head(heads[size])
        again.close()
        shutil.rmtree(after)
        found.add(size)
    store.close()
    return found
