"""What a mirror rests on, and what is said when a power cut took half of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from strongroom import mirror
from strongroom.errors import StrongroomError, TamperedError, WrongKeyError
from strongroom.mirror import region
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import LocalDirectory

KEY = bytes(range(32))


def test_each_durability_has_its_directory(tmp_path):
    def directory(kind: str, durability: str) -> LocalDirectory:
        return region.directory_of(tmp_path / "m", region.Region(kind, durability, "?"))

    assert type(directory("disk", "power")) is LocalDirectory
    assert type(directory("memory", "power")) is LocalDirectory
    assert isinstance(directory("disk", "process"), region.LazyDirectory)
    assert isinstance(directory("dax", "process"), region.LazyDirectory)
    assert isinstance(directory("dax", "power"), region.PmemDirectory)


def test_what_it_rests_on_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(region, "_kind", lambda path: "dax")
    with mirror.open(tmp_path / "m", key=KEY, anchor=NO_FRESHNESS) as made:
        made.commit(1, {"a": 1})
        assert str(made.region) == "dax, msync: a commit survives a power cut"  # no DAX here, whatever was said
    with mirror.open(tmp_path / "m", key=KEY, anchor=NO_FRESHNESS, durability="process") as made:
        assert str(made.region) == "dax, none: a commit survives the process"
    monkeypatch.setattr(region, "_kind", lambda path: "memory")
    with mirror.open(tmp_path / "m", key=KEY, anchor=NO_FRESHNESS) as made:
        assert "not the machine" in str(made.region)


def mixture(path: Path) -> None:
    """Of two commits that were not synced, the slots and no block."""
    with mirror.open(path, key=KEY, anchor=NO_FRESHNESS, block_size=4096, durability="process") as made:
        made.commit(1, {"w": np.zeros(9000)})
    before = path.read_bytes()
    with mirror.open(path, key=KEY, anchor=NO_FRESHNESS, durability="process") as made:
        made.commit(2, {"w": np.ones(9000)})
        after = path.read_bytes()
    slots = 4 * 4096
    path.write_bytes(after[:slots] + before[slots:].ljust(len(after) - slots, b"\0"))


def test_a_mixture_is_refused_and_a_hint_says_why(tmp_path):
    path = tmp_path / "m"
    mixture(path)
    with pytest.raises(TamperedError) as refused:
        mirror.open(path, key=KEY, anchor=NO_FRESHNESS, durability="process")
    assert "durability is 'process'" in (refused.value.hint or "")
    with pytest.raises(TamperedError) as refused:
        mirror.open(path, key=KEY, anchor=NO_FRESHNESS)
    assert "durability" not in (refused.value.hint or "")


def test_other_refusals_say_nothing_of_it(tmp_path):
    with mirror.open(tmp_path / "m", key=KEY, anchor=NO_FRESHNESS, durability="process") as made:
        made.commit(1, {"a": 1})
    with pytest.raises(StrongroomError) as refused:
        mirror.open(tmp_path / "m", key=bytes(32), anchor=NO_FRESHNESS, durability="process")
    assert isinstance(refused.value, WrongKeyError) and "durability" not in (refused.value.hint or "")
