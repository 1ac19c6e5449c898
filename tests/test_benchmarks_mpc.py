"""What `benchmarks.mpc` makes of systems that compute nothing, and that its networks are what they say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import mpc, mpc_wan
from benchmarks.mpc_modules import error_of, in_float, module
from benchmarks.mpc_peers.workloads import NETWORKS, ROWS, Convolution, Dense, Layer, Residual, Row
from benchmarks.mpc_systems import OURS, PEERS, Contest, Measured, Plan, System

ROW = Row("A batch 1", "three numbers")
FAST = Plan(rounds=2, turn=1, limit=60)


def fake(variant: str) -> System:
    return System(f"fake {variant}", "tests.fake_mpc_party", 2, variant=variant)


def measure(*systems: System, plan: Plan = FAST) -> dict[System, Measured]:
    pythons = dict.fromkeys(systems, Path(sys.executable))
    return Contest(ROW, pythons, plan, lambda result: float(np.abs(result - 1).max())).measure()


class TestContest:
    def test_a_run_lasts_from_the_first_party_to_the_last_and_two_are_not_counted(self) -> None:
        system = fake("works")
        (got,) = measure(system).values()
        # The third and the fourth run last 3 s and 4 s at each party, of which one begins a second later.
        assert got.seconds == [4.0, 5.0]
        assert got.processor == [[0.5, 0.5]] * 2
        assert (got.sent, got.rounds) == ([100, 101], 7)
        assert got.error == 0.25
        assert got.peaks_mib and min(got.peaks_mib) > 1
        assert got.trouble is None

    def test_a_system_that_fails_says_why_and_the_others_go_on(self) -> None:
        broken, sound = fake("fails"), fake("works")
        got = measure(broken, sound)
        assert got[broken].trouble is not None
        assert "it had enough" in got[broken].trouble
        assert len(got[sound].seconds) == 2

    def test_a_run_without_an_end_is_ended(self) -> None:
        (got,) = measure(fake("hangs"), plan=Plan(rounds=1, limit=2)).values()
        assert got.trouble == "longer than 2 s"
        assert got.seconds == []

    def test_what_is_too_slow_runs_once(self) -> None:
        (got,) = measure(fake("works"), plan=Plan(rounds=3, patience=1)).values()
        assert got.single
        assert got.seconds == [2.0]


class TestVerdict:
    def test_ours_is_held_against_the_fastest_peer(self) -> None:
        good = {"seconds": [0.004, 0.004], "error": 1e-4}
        fast, slow = Measured([0.009, 0.009]), Measured([0.1, 0.1])
        results = {OURS: Measured(**good), PEERS["semi2k"]: slow, PEERS["aby3"]: fast}  # type: ignore[arg-type]
        assert mpc.fastest(results) is PEERS["aby3"]
        assert mpc.holds(ROWS["A batch 1"], results)
        results[PEERS["aby3"]] = Measured([0.007, 0.007])
        assert not mpc.holds(ROWS["A batch 1"], results)

    @pytest.mark.parametrize("ours", [Measured([0.01], error=1e-4), Measured([0.001], error=3e-3), Measured([0.001])])
    def test_too_slow_or_too_wrong_fails_without_a_peer_too(self, ours: Measured) -> None:
        assert not mpc.holds(ROWS["A batch 1"], {OURS: ours})


def parameters(layers: Sequence[Layer]) -> int:
    found = 0
    for layer in layers:
        if isinstance(layer, Residual):
            found += parameters(layer.body) + parameters(layer.shortcut)
        elif isinstance(layer, Convolution | Dense):
            found += layer.weight.size + layer.bias.size
    return found


class TestNetworks:
    @pytest.mark.parametrize(("name", "count"), [("A", 118_282), ("B", 33_542), ("C", 431_080)])
    def test_parameters(self, name: str, count: int) -> None:
        layers = NETWORKS[name][1]()
        assert parameters(layers) == count
        assert sum(each.numel() for each in module(layers).parameters()) == count

    def test_residual_networks_are_those_of_the_paper(self) -> None:
        # The convolutions and the last layer have 0.27 M, 11.7 M and 25.5 M parameters, normalisations left out.
        counts = [parameters(NETWORKS[name][1]()) for name in ("ResNet-20", "ResNet-18", "ResNet-50")]
        assert [round(count / 1e6, 1) for count in counts] == [0.3, 11.7, 25.5]

    @pytest.mark.parametrize("name", ["W1", "exp", "A batch 10", "B batch 1", "ResNet-20"])
    def test_inputs_are_the_same_each_time_and_results_of_moderate_size(self, name: str) -> None:
        row = ROWS[name]
        first, second = in_float(row), in_float(row)
        assert torch.equal(first, second)
        assert 0.05 < float(first.abs().max()) < 200
        assert error_of(row, first, second.numpy()) == 0


class TestWire:
    def test_packets_queue_behind_each_other_and_arrive_late(self) -> None:
        wire = mpc_wan._Wire()
        packet = bytes(1250)  # a tenth of a millisecond at 100 Mbit/s
        assert wire.put(packet, 5.0) and wire.put(packet, 5.0)
        due = [when for when, _ in wire.packets]
        assert due == pytest.approx([5.0201, 5.0202])

    def test_a_full_queue_drops(self) -> None:
        wire = mpc_wan._Wire()
        while wire.put(bytes(1500), 0.0):
            pass
        held = len(wire.packets)
        assert 1 << 20 <= held * 1500 < (1 << 20) + 3000
        wire.take()
        wire.take()
        assert wire.put(bytes(1500), 0.0)
