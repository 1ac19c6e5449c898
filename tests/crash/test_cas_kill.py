"""A CAS killed with SIGKILL under load keeps what it acknowledged; `python -m benchmarks cas` does it 100 times."""

from __future__ import annotations

from benchmarks import cas_kills


def test_what_a_killed_cas_acknowledged_is_there(tmp_path):
    outcome = cas_kills.run(tmp_path, 2, seed=8)
    assert outcome.kills == 2
    assert set(outcome.acknowledged) == {"policy", "secret", "anchor", "attested"}
    assert not outcome.lost
    assert not outcome.failed
