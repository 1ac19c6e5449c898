from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_cas_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests may work with a CAS, which no test may reach."""
    for name in ("STRONGROOM_CAS", "STRONGROOM_CAS_ROOT"):
        monkeypatch.delenv(name, raising=False)
