"""The examples of docs/how-to/distributed.md: replicas in enclaves of their own end as processes outside do.

Each program runs once as processes on this machine's loopback and once as replicas behind their meshes' proxies, and
knows nothing of either. The same bits where workers wait for each other; what is asynchronous must learn as well.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from strongroom.cli.run.replicas import Replicas, listener_of
from strongroom.enclave.config import SANDBOX_ENVIRONMENT
from strongroom.enclave.launch import Enclave
from tests.enclave.conftest import DATA, OUT, Job, World
from tests.enclave.test_frameworks import EXAMPLES, needs, results

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
SMALL = ("--epochs", "2")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("sklearn", "PIL")
    place = tmp_path_factory.mktemp("plain")
    command = [sys.executable, EXAMPLES / "digits_files.py", place, "--train", "300", "--test", "100"]
    subprocess.run(command, check=True, capture_output=True)
    return place


def ports(count: int) -> list[int]:
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def outside(command: Sequence[str | Path], ranks: Sequence[Mapping[str, str]], home: Path) -> None:
    """Run a command in several processes at once, each with variables of its own."""
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=SANDBOX_ENVIRONMENT | QUIET | {"HOME": str(home), "TMPDIR": str(home)} | rank,
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    try:
        said = [process.communicate() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(ranks), said


def inside(world: World, digits: Path, command: Sequence[str], count: int, **options: object) -> dict[str, bytes]:
    """What replicas of the example that a command names have sealed."""
    (script,) = [word for word in command if word.endswith(".py")]
    contents = {name: (digits / name).read_bytes() for name in ("train.csv", "test.csv")}
    job = world.job_of(
        ("python", *command),
        {script: EXAMPLES / script},
        rules=(DATA, OUT),
        vaults={"data": world.seal("data", **contents), "out": world.seal("out")},
        environment=QUIET,
        replicas=count,
        **options,
    )
    assert together(job, count) == 0
    return results(job)


def together(job: Job, count: int) -> int:
    def start(number: int, stdout: int | None, stderr: int | None) -> Enclave:
        listener, endpoint = listener_of(None, job.world.cas)
        return job.launch(replica=number, listener=listener, endpoint=endpoint, stdout=stdout, stderr=stderr)

    return Replicas(range(count), start).wait()


def arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as archive:
        return dict(archive)


def assert_same(ours: bytes, theirs: bytes) -> None:
    found, wanted = arrays(ours), arrays(theirs)
    assert found.keys() == wanted.keys() and len(found) >= 4
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_torchrun_with_three_replicas(world: World, bubblewrap: None, digits: Path, tmp_path: Path) -> None:
    needs("torch")
    run = ("-m", "torch.distributed.run")
    outside(
        [*run, "--nproc-per-node", "3", EXAMPLES / "distributed_torch.py", digits, tmp_path, *SMALL], [{}], tmp_path
    )
    found = inside(world, digits, [*run, "distributed_torch.py", "/data", "/out", *SMALL], 3)
    assert sorted(found) == ["predictions.csv", "weights.pt"]
    for name, content in found.items():
        assert content == (tmp_path / name).read_bytes(), name


@pytest.mark.slow  # TensorFlow starts four times
def test_tensorflow_with_two_workers(world: World, bubblewrap: None, digits: Path, tmp_path: Path) -> None:
    needs("tensorflow")
    script = "distributed_tensorflow.py"
    workers = [f"127.0.0.1:{port}" for port in ports(2)]
    tasks = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in (0, 1)]
    outside(
        [EXAMPLES / script, digits, tmp_path, *SMALL], [{"TF_CONFIG": json.dumps(task)} for task in tasks], tmp_path
    )
    found = inside(world, digits, [script, "/data", "/out", *SMALL], 2)
    assert_same(found["weights.npz"], (tmp_path / "weights.npz").read_bytes())


@pytest.mark.slow  # TensorFlow starts four times
def test_tensorflow_with_a_parameter_server(world: World, bubblewrap: None, digits: Path) -> None:
    """Whose workers do not wait for each other: not the same bits, but as good."""
    needs("tensorflow")
    command = ["distributed_parameters.py", "/data", "/out", "--epochs", "20"]
    found = arrays(inside(world, digits, command, 4, tasks=("chief", "worker", "worker", "ps"))["weights.npz"])
    rows = np.loadtxt(digits / "test.csv", delimiter=",", dtype=np.float32)
    hidden = np.maximum(rows[:, 1:] / 16 @ found["hidden"] + found["hidden_bias"], 0)
    right = ((hidden @ found["out"] + found["out_bias"]).argmax(1) == rows[:, 0]).mean()
    assert right > 0.8  # outside: 0.88 and 0.89


@pytest.mark.slow
@pytest.mark.parametrize("script", ["distributed_jax.py", "distributed_keras.py"])
def test_jax_and_keras_with_two_processes(script, world, bubblewrap, digits, tmp_path) -> None:
    needs("jax", "keras")
    (port,) = ports(1)
    shared = {"WORLD_SIZE": "2", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    ranks = [shared | {"RANK": str(rank)} for rank in (0, 1)]
    outside([EXAMPLES / script, digits, tmp_path, *SMALL], ranks, tmp_path)
    found = inside(world, digits, [script, "/data", "/out", *SMALL], 2)
    assert_same(found["weights.npz"], (tmp_path / "weights.npz").read_bytes())
