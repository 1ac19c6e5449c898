"""A CAS's database after a power cut: rows, log and head are of one moment, however much of the journal is there."""

from __future__ import annotations

import shutil

from strongroom.cas.store import Store

CHANGES = 6


def test_whatever_part_of_the_journal_reached_the_disk(tmp_path):
    running = tmp_path / "running"
    store = Store(running)
    heads = [store.head()]
    empty = (running / "cas.sqlite-wal").read_bytes()
    for number in range(1, CHANGES + 1):
        store.put_secret("a/b", "token", b"%d" % number, now=number)
        heads.append(store.head())
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
    assert found == set(range(CHANGES + 1))
