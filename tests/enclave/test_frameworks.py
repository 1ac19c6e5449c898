"""The examples of docs/how-to/unmodified.md: frameworks' programs end in an enclave as they do outside, bit for bit.

Each runs once as it is and once as an enclave, with data in a vault, and knows nothing of either.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from strongroom.cas.policy.version import VaultRule
from strongroom.cli.workspace import SealedVault
from strongroom.enclave import sandbox
from strongroom.enclave.config import SANDBOX_ENVIRONMENT
from tests.enclave.conftest import DATA, OUT, Job, World

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = VaultRule("model", "/model", "read-only")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def needs(*modules: str) -> None:
    """Looks for them without importing them, which takes seconds."""
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def alone(script: str, *arguments: str | Path, home: Path) -> str:
    """What an example prints outside of any enclave, with an enclave's variables."""
    environment = SANDBOX_ENVIRONMENT | QUIET | {"HOME": str(home)}
    command = [sys.executable, EXAMPLES / script, *arguments]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("sklearn", "PIL")
    place = tmp_path_factory.mktemp("plain")
    alone("digits_files.py", place / "digits", "--train", "300", "--test", "100", home=place)
    return place / "digits"


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def example(world: World, script: str, *arguments: str, data: Path, **models: SealedVault) -> Job:
    """An example, approved to read a sealed copy of `data`, and what others have written, and to write to /out."""
    vaults = {"data": world.seal("data", **contents(data)), "out": world.seal("out"), **models}
    rules = (DATA, *([MODEL] if models else []), OUT)
    files = {script: EXAMPLES / script}
    return world.job_of(("python", script, *arguments), files, rules=rules, vaults=vaults, environment=QUIET)


def results(job: Job) -> dict[str, bytes]:
    """What a job has sealed."""
    sealed = job.vaults["out"]
    with job.world.owner() as client:
        sealed.anchor.advance(sealed.anchor.read(), client.anchor(job.policy.name, "out").read())
    with sealed.open() as opened:
        return {path: opened.read_bytes(path) for path in opened.files() if not path.endswith(".lineage.json")}


def weights(files: Mapping[str, bytes], name: str) -> dict[str, np.ndarray]:
    """Every array of a ``.keras`` file, the optimizer's too. The file itself has the time in it."""
    import h5py

    found = {}
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        stored = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(stored) as file:
        file.visititems(lambda path, item: found.update({path: item[()]} if hasattr(item, "dtype") else {}))
    return found


def test_pytorch_trains_and_goes_on(world: World, bubblewrap: None, digits: Path, tmp_path: Path, monkeypatch) -> None:
    """Twice: the second run finds the first one's checkpoint, and its data unpacked, without FUSE."""
    needs("torch")
    plain = tmp_path / "plain"
    plain.mkdir()
    job = example(world, "train_torch.py", "/data", "/out", "--epochs", "1", data=digits)
    for again in (False, True):
        said = alone("train_torch.py", digits, plain, "--epochs", "1", home=tmp_path)
        assert ("goes on after epoch 1" in said) == again
        if again:
            monkeypatch.setattr(sandbox, "fuse_available", lambda: False)
        assert job.run() == (0, said)
        assert results(job) == contents(plain)


def test_keras_on_tensorflow_trains_and_litert_classifies(world, bubblewrap, digits, tmp_path) -> None:
    """LiteRT's enclave reads the model from the vault that Keras's has written."""
    needs("tensorflow", "ai_edge_litert", "h5py")
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    plain.mkdir()
    scored.mkdir()
    alone("train_keras.py", digits, plain, "--epochs", "2", home=tmp_path)
    said = alone("classify_litert.py", plain / "digits.tflite", digits, scored, home=tmp_path)

    training = example(world, "train_keras.py", "/data", "/out", "--epochs", "2", data=digits)
    assert training.run()[0] == 0
    inside, outside = results(training), contents(plain)
    assert inside.keys() == outside.keys()
    for name in ("history.csv", "predictions.npy", "digits.tflite"):
        assert inside[name] == outside[name], name
    for name in ("best.keras", "model.keras"):
        ours, theirs = weights(inside, name), weights(outside, name)
        assert len(ours) > 20 and ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)

    (tmp_path / "second").mkdir()
    second = World(tmp_path / "second", world.home, world.cas)
    model = training.vaults["out"]
    classifying = example(
        second, "classify_litert.py", "/model/digits.tflite", "/data", "/out", data=digits, model=model
    )
    assert classifying.run() == (0, said)
    assert results(classifying) == contents(scored)


def test_a_program_sees_how_its_processors_lie_and_cannot_change_that(world: World, bubblewrap: None) -> None:
    source = """
import os, pathlib
print(sorted(os.listdir("/sys/devices/system")), os.listdir("/sys"), os.listdir("/sys/devices"))
def wrote(path):
    try: return bool(path.open("r+"))
    except OSError: return False
print([path for path in pathlib.Path("/sys").rglob("*") if path.is_file() and wrote(path)])
"""
    there = sorted(name for name in ("cpu", "node") if Path("/sys/devices/system", name).is_dir())
    assert world.job(source).run() == (0, f"{there} ['devices'] ['system']\n[]\n")


def test_locks_between_processes_take_a_sandbox(world: World, any_sandbox: str) -> None:
    """Shared memory is one directory of a machine's: without a mount namespace it would be everybody's."""
    source = """
import multiprocessing
try: print(multiprocessing.Lock())
except PermissionError as error: print(error)
"""
    said = {"bubblewrap": "<Lock(owner=None)>\n", "process": "[Errno 13] Permission denied\n"}[any_sandbox]
    assert world.job(source).run() == (0, said)


def test_a_scikit_learn_pipeline_is_chosen_in_several_processes(world, bubblewrap, digits, tmp_path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    said = alone("train_sklearn.py", digits, plain, "--trees", "20", home=tmp_path)
    job = example(world, "train_sklearn.py", "/data", "/out", "--trees", "20", data=digits)
    assert job.run() == (0, said)
    assert results(job) == contents(plain)
