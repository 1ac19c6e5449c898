"""The benchmark of the CAS measures what it says: attestations that end with secrets, anchors that move."""

from __future__ import annotations

from benchmarks import cas


def test_its_clients_attest_and_move_anchors(monkeypatch):
    monkeypatch.setattr(cas, "CLIENTS", 2)
    monkeypatch.setattr(cas, "PROCESSES", 1)
    with cas.running() as load:
        assert len(load.one_by_one(2)) == 2
        rate, clients, server = load.together("anchor", seconds=0.2)
        assert rate > 0
        assert 0 < clients < 3
        assert 0 < server < 2
        assert load.anchors_moved(seconds=0.05) > 0
        for grouped in (False, True):
            load.commits(2, grouped=grouped)
        assert {name for name, _ in load.phases(1)} >= {"connect, TLS", "nonce", "verify", "log commit", "seal"}
        with load.client() as client:
            events = [entry["event"] for entry in client.log()]
    assert events.count("attested") == 22
    assert events.count("anchor") > 4
