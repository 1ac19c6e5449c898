"""The benchmark of the mesh carries real bytes by each way that it compares, and says which it has not found."""

from __future__ import annotations

import pytest

from benchmarks import mesh, mesh_ways
from benchmarks.harness import Bench
from benchmarks.peers import UnavailableError


@pytest.fixture
def namespaces():
    try:
        mesh_ways.check()
    except UnavailableError as error:
        pytest.skip(str(error))


def _works(way):
    with way() as client:
        assert client.ask("round", 20) > 0
        assert client.ask("stream", 4, 1) > 0
        assert client.ask("stream", 8, 4) > 0


def test_bytes_go_through_two_proxies(namespaces):
    _works(mesh_ways.mesh)


def test_bytes_go_over_plain_interfaces(namespaces):
    _works(mesh_ways.veth)


@pytest.mark.parametrize("way", [mesh_ways.stunnel, mesh_ways.wireguard])
def test_bytes_go_through_what_is_installed(namespaces, way):
    try:
        _works(way)
    except UnavailableError as error:
        pytest.skip(str(error))


def test_what_is_not_found_is_said_and_fails(namespaces, monkeypatch):
    for variable in ("STRONGROOM_BENCH_STUNNEL", "STRONGROOM_BENCH_WIREGUARD_GO"):
        monkeypatch.setenv(variable, "/nowhere")
    said: list[str] = []
    bench = Bench(mesh.GOALS, quick=False, only=[mesh.STUNNEL], say=said.append)
    with pytest.raises(UnavailableError, match="STRONGROOM_BENCH_STUNNEL"):
        mesh.measure(bench)
    assert ["left out: stunnel4" in line for line in said] == [True]
    assert {result.verdict for result in bench.results() if mesh.STUNNEL in result.goal.name} == {"not measured"}
