"""The examples of docs/how-to/distributed.md: replicas in enclaves of their own end as processes outside do.

Each program runs once as processes on this machine's loopback and once as replicas behind their meshes' proxies, and
knows nothing of either. The same bits where workers wait for each other; what is asynchronous must learn as well.

TensorFlow's processes outside are forked from one that has imported it (`forked.py`), and what that imported is
compiled once for all replicas: both are most of what starting them costs.
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

from strongroom.cli import remembered
from strongroom.cli.run.replicas import Replicas, listener_of
from strongroom.enclave.config import SANDBOX_ENVIRONMENT
from strongroom.enclave.launch import Enclave
from tests.enclave.conftest import DATA, OUT, Job, World, measured
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


def forked(script: str, modules: Sequence[str], processes: Sequence[Mapping[str, object]], home: Path) -> list[str]:
    """Run an example outside as these processes, with modules imported before; the sources of these."""
    told = {"modules": modules, "script": str(EXAMPLES / script), "processes": processes}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("forked.py")],
        input=json.dumps(told),
        env=SANDBOX_ENVIRONMENT | QUIET | {"HOME": str(home), "TMPDIR": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sources: list[str] = json.loads(done.stdout)
    return sources


def inside(
    world: World,
    digits: Path,
    command: Sequence[str],
    count: int,
    *,
    imported: Sequence[str] = (),
    **options: object,
) -> dict[str, bytes]:
    """What replicas of the example that a command names have sealed. Code of what they import is compiled before."""
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
    if imported:
        with pytest.MonkeyPatch.context() as patch:  # all of them: what is left, each replica would do anew
            patch.setattr(remembered, "_COMPILE_SECONDS", 600.0)
            remembered.keep_compiled(world.home, imported, measured(job.config, job.files))
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


@pytest.mark.slow
def test_tensorflow_with_two_workers(world: World, bubblewrap: None, digits: Path, tmp_path: Path) -> None:
    needs("tensorflow")
    script = "distributed_tensorflow.py"
    workers = [f"127.0.0.1:{port}" for port in ports(2)]
    tasks = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in (0, 1)]
    processes = [
        {"arguments": [str(digits), str(tmp_path), *SMALL], "environment": {"TF_CONFIG": json.dumps(task)}}
        for task in tasks
    ]
    imported = forked(script, ["tensorflow", "keras"], processes, tmp_path)
    found = inside(world, digits, [script, "/data", "/out", *SMALL], 2, imported=imported)
    assert_same(found["weights.npz"], (tmp_path / "weights.npz").read_bytes())


@pytest.mark.slow
def test_tensorflow_with_a_parameter_server(world: World, bubblewrap: None, digits: Path, tmp_path: Path) -> None:
    """Its workers do not wait for each other: not the same bits, but as good as runs outside, give or take as much as
    a hundred images say (one standard error)."""
    needs("tensorflow")
    script, epochs = "distributed_parameters.py", ("--epochs", "20")
    kinds = ("chief", "worker", "worker", "ps")
    processes = []
    homes = [tmp_path / f"run-{number}" for number in range(3)]
    for home in homes:
        home.mkdir()
        first, *places = [f"127.0.0.1:{port}" for port in ports(4)]
        cluster = {"chief": [first], "worker": places[:2], "ps": places[2:]}
        for number, kind in enumerate(kinds):
            config = {"cluster": cluster, "task": {"type": kind, "index": int(number == 2)}}
            processes.append(
                {
                    "arguments": [str(digits), str(home), *epochs],
                    "environment": {"TF_CONFIG": json.dumps(config), "TMPDIR": str(home)},
                }
            )
    imported = forked(script, ["tensorflow"], processes, tmp_path)
    found = inside(world, digits, [script, "/data", "/out", *epochs], 4, imported=imported, tasks=kinds)
    rows = np.loadtxt(digits / "test.csv", delimiter=",", dtype=np.float32)

    def right(weights: dict[str, np.ndarray]) -> float:
        hidden = np.maximum(rows[:, 1:] / 16 @ weights["hidden"] + weights["hidden_bias"], 0)
        return float(((hidden @ weights["out"] + weights["out_bias"]).argmax(1) == rows[:, 0]).mean())

    outside = [right(arrays((home / "weights.npz").read_bytes())) for home in homes]
    error = (max(outside) * (1 - max(outside)) / len(rows)) ** 0.5
    assert min(outside) - error <= right(arrays(found["weights.npz"])) <= max(outside) + error, outside
    assert min(outside) > 0.8


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
