from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from strongroom.attest.claims import REGISTERS
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.simulated import SimulatedVendor

VECTORS = Path(__file__).parents[1] / "vectors" / "tdx"
NOW = 1_750_000_000


@dataclass(frozen=True)
class Vector:
    """A real quote with its endorsements, and the moment to verify it at."""

    evidence: Evidence
    now: int
    valid_from: int
    valid_until: int
    error: str | None


@pytest.fixture
def vector():
    """Load a vector by name. `v4_up_to_date` comes padded, as its platform gave it out."""

    def load(name: str) -> Vector:
        case = json.loads((VECTORS / "cases.json").read_text())[name]
        quote = (VECTORS / f"{name}.quote.bin").read_bytes()
        endorsements = (VECTORS / f"{name}.collateral.json").read_bytes()
        return Vector(Evidence("tdx", quote, endorsements), **case)

    return load


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> SimulatedVendor:
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=NOW)


@pytest.fixture(scope="session")
def registers() -> dict[str, bytes]:
    return {name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}
