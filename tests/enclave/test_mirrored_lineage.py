"""What boot says of a mirror in a statement of lineage."""

from types import SimpleNamespace

import numpy as np

from strongroom import mirror
from strongroom.enclave.mirrored import FILE, Keeper
from strongroom.sealed import MemoryAnchor

KEY = b"k" * 32


def test_boot_reads_step_root_and_every_return_from_the_mirror_itself(tmp_path):
    anchor = MemoryAnchor()
    booted = SimpleNamespace(
        provisions=SimpleNamespace(vault_keys={"mirror": KEY}, vault_access={"mirror": "mirror"}),
        sandboxed=False,
        layout={"vaults": {"mirror": str(tmp_path)}},
        session=SimpleNamespace(anchor=lambda name: anchor),
        control=None,
    )
    keeper = Keeper(booted, "mirror")
    assert keeper.state() is None
    for step in (1, 2):
        with mirror.open(tmp_path / FILE, key=KEY, anchor=anchor) as opened:
            opened.restore()
            with opened.begin(step) as commit:
                commit["w"] = np.zeros(4, np.float32)
    state = keeper.state()
    assert (state.name, state.step, state.root) == ("mirror", 2, str(anchor.read()))
    assert [one.step for one in state.resumes.listed] == [1]
