"""Enclaves beside the same programs outside: start-up (`enclave_start.py`) and steady work (`enclave_work.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import enclave_start, enclave_work
from benchmarks.harness import Bench, Goal

GOALS: Sequence[Goal] = (*enclave_start.GOALS, *enclave_work.GOALS)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    enclave_start.measure(bench)
    enclave_work.measure(bench)
