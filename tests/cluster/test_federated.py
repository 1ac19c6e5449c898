"""docs/how-to/federated.md: an unmodified Flower application as four enclaves of four owners.

Flower has an environment of its own, in which Strongroom is installed too: ``.venv-flower`` beside ``.venv``, or what
``STRONGROOM_FLOWER`` names. Without it only the application's own arithmetic is tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from strongroom.enclave import sandbox
from tests.homes import DIGESTS, KEY

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "federated"
PYTHON = Path(os.environ.get("STRONGROOM_FLOWER", ROOT / ".venv-flower")) / "bin" / "python"
HOSPITALS = ("a", "b", "c")
ROUNDS = 2


def records(rows: int, seed: int) -> str:
    """A table in the form of UCI's, of which a tenth has a gap."""
    draw = np.random.default_rng(seed)
    middle = np.array([54, 0.7, 3.2, 131, 247, 0.15, 1, 150, 0.33, 1, 1.6, 0.7, 4.7])
    table = middle * (1 + 0.3 * draw.standard_normal((rows, 13)))
    sick = (table[:, 0] - table[:, 7] / 3 + 4 * draw.standard_normal(rows) > 0).astype(int)
    lines = [",".join(f"{each:.1f}" for each in row) + f",{label}" for row, label in zip(table, sick, strict=True)]
    return "\n".join(line if i % 10 else f"?{line[line.index(',') :]}" for i, line in enumerate(lines)) + "\n"


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number, name in enumerate(HOSPITALS):
        found[name] = tmp_path / f"{name}.csv"
        found[name].write_text(records(60 + 10 * number, number))
    return found


def averaged(tables: dict[str, Path]) -> np.ndarray:
    """What federated averaging comes to, by the application's own steps and without Flower."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        from heart import task
    finally:
        sys.path.remove(str(EXAMPLE))
    parts = [task.records(path) for path in tables.values()]
    weights = np.zeros(task.FEATURES + 1)
    for _ in range(ROUNDS):
        each = [task.fitted(weights, *part) * len(part[1]) for part in parts]
        weights = np.sum(each, axis=0) / sum(len(part[1]) for part in parts)
    right = [((task.disease(weights, part[0]) > 0.5) == part[1]).mean() for part in parts]
    assert min(right) > 0.7
    return np.asarray(weights)


def test_the_application_learns_from_tables_with_gaps(tables: dict[str, Path]) -> None:
    assert np.isfinite(averaged(tables)).all()


class Owner:
    """One of the four: a directory with the application, and a home with a key of its own.

    Args:
        like: one whose home knows the digests of the environment, which all four have: looking takes each seconds.
    """

    def __init__(self, directory: Path, cas: dict[str, str], like: Owner | None = None) -> None:
        self.directory, self._home = directory, directory / ".home"
        self._environment = {**os.environ, **cas, "STRONGROOM_HOME": str(self._home)}
        self._home.mkdir(mode=0o700, parents=True)
        for name in (DIGESTS, KEY) if like else ():
            os.link(like._home / name, self._home / name)
        (directory / "heart").mkdir(parents=True)
        for path in [*EXAMPLE.glob("*.*"), *EXAMPLE.glob("heart/*.py")]:
            (directory / path.relative_to(EXAMPLE)).write_bytes(path.read_bytes())

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(self._command(arguments), capture_output=True, text=True, **self._place())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self._command(arguments), **pipe, **self._place())

    def write(self, tables: str, *vaults: str) -> str:
        """Complete the policy with its tables for the mesh; its measurement."""
        policy = self.directory / "policy.toml"
        policy.write_text(f"{policy.read_text()}\n{tables}")
        self("measure", "--policy", "policy.toml", "--write")
        return policy.read_text().split('measurements = ["')[1].split('"')[0]

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [str(PYTHON), "-m", "strongroom", *arguments]

    def _place(self) -> dict[str, object]:
        return {"cwd": self.directory, "env": self._environment}


@pytest.fixture
def cas(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A CAS of nobody among the four, as the variables that name it."""
    log = tmp_path / "cas.log"
    environment = {**os.environ, "STRONGROOM_HOME": str(tmp_path / "operator")}
    with log.open("w") as stream:
        command = [PYTHON, "-m", "strongroom", "cas", "start", "--port", "0"]
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        while process.poll() is None and "\nroot " not in log.read_text():
            time.sleep(0.1)
        said = log.read_text().split()
        yield {"STRONGROOM_CAS": said[said.index("at") + 1], "STRONGROOM_CAS_ROOT": said[said.index("root") + 1]}
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(
    not PYTHON.exists() or sandbox.bubblewrap() is None,
    reason="needs .venv-flower, with Flower and Strongroom (`STRONGROOM_EXTRAS=flower make setup`), and bubblewrap",
)
def test_three_hospitals_and_an_aggregator_as_enclaves_of_four_owners(
    tmp_path: Path, tables: dict[str, Path], cas: dict[str, str]
) -> None:
    uni = Owner(tmp_path / "uni", cas)
    aggregate = ["python", "aggregate.py", "/out", "--rounds", str(ROUNDS)]
    uni(
        "policy",
        "init",
        *("--name", "uni/aggregate", "--include", "pyproject.toml", "--results", "results.vault", "--", *aggregate),
    )
    peers = ", ".join(f'"{name}/heart"' for name in HOSPITALS)
    measurement = uni.write(f"[mesh]\npeers = [{peers}]\n")
    uni("policy", "apply", "policy.toml")
    uni("cas", "entrust", "uni/aggregate", "out", "results.vault")

    running = []
    for name, table in tables.items():
        hospital = Owner(tmp_path / name, cas, like=uni)
        (hospital.directory / "records").mkdir()
        (hospital.directory / "records" / "records.csv").write_bytes(table.read_bytes())
        hospital("seal", "records")
        command = ["python", "hospital.py", "/data/records.csv", "aggregate.uni.mesh", "--wait", "300"]
        hospital("policy", "init", "--name", f"{name}/heart", "--data", "records.vault", "--", *command)
        pinned = f'[[mesh.pinned]]\npolicy = "uni/aggregate"\nmeasurements = ["{measurement}"]\n'
        hospital.write(f'[mesh]\npeers = ["uni/aggregate"]\n\n{pinned}')
        hospital("policy", "apply", "policy.toml")
        hospital("cas", "entrust", f"{name}/heart", "data", "records.vault")
        running.append(hospital.start("run", "--policy", "policy.toml", "--vault", "data=records.vault"))
    try:
        uni("run", "--policy", "policy.toml", "--vault", "out=results.vault")
    finally:
        for process in running:
            process.terminate()
            process.communicate()
    uni("unseal", "results.vault", "results")
    ours = np.loadtxt(uni.directory / "results" / "weights.txt")
    np.testing.assert_allclose(ours, averaged(tables), rtol=1e-9)
