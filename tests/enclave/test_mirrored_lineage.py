"""What boot says of a mirror in a statement of lineage."""

from types import SimpleNamespace

import numpy as np
import pytest

from strongroom import mirror
from strongroom.enclave.mirrored import FILE, Keeper
from strongroom.errors import RollbackError
from strongroom.sealed import MemoryAnchor

KEY = b"k" * 32


@pytest.fixture
def anchor():
    return MemoryAnchor()


@pytest.fixture
def keeper(tmp_path, anchor):
    booted = SimpleNamespace(
        provisions=SimpleNamespace(vault_keys={"mirror": KEY}, vault_access={"mirror": "mirror"}),
        sandboxed=False,
        layout={"vaults": {"mirror": str(tmp_path)}},
        anchor=lambda name: anchor,
        control=SimpleNamespace(event=lambda name, **detail: None),
    )
    return Keeper(booted, "mirror")


def commit(tmp_path, anchor, *steps):
    for step in steps:
        with mirror.open(tmp_path / FILE, key=KEY, anchor=anchor) as opened:
            opened.restore()
            with opened.begin(step) as commit:
                commit["w"] = np.zeros(4, np.float32)


def test_boot_reads_step_root_and_every_return_from_the_mirror_itself(tmp_path, anchor, keeper):
    assert keeper.state() is None
    commit(tmp_path, anchor, 1, 2)
    state = keeper.state()
    assert (state.name, state.step, state.root) == ("mirror", 2, str(anchor.read()))
    assert [one.step for one in state.resumes.listed] == [1]


def test_a_return_after_which_nothing_is_committed_is_listed(tmp_path, anchor, keeper):
    """A script that was killed as it wrote its results, after the last commit."""
    commit(tmp_path, anchor, 1, 2)
    told = {"op": "told", "what": "resumes", "detail": {"step": 2}}
    keeper._answer(told)
    state = keeper.state()
    assert [(one.step, one.root) for one in state.resumes.listed][1:] == [(2, str(anchor.read()))]
    commit(tmp_path, anchor, 3)  # has it in its manifest
    assert [one.step for one in keeper.state().resumes.listed] == [1, 2]


def test_a_mirror_that_was_taken_away_is_missed(tmp_path, anchor, keeper):
    """Else its returns would be gone from the record with it."""
    commit(tmp_path, anchor, 1)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(RollbackError, match="is missing, and its anchor holds a commit"):
        keeper.state()
