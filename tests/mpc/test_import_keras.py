"""Keras 3 models run on secrets, their own code unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ENVIRONMENT = {**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", "tests.mpc.imported_keras", str(tmp_path_factory.mktemp("keras"))]
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=_ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_model_gives_what_keras_gives(found: Any) -> None:
    assert len(found["errors"]) == 5
    for name, (clear, secret) in found["errors"].items():
        assert clear < 1e-5, name
        assert secret < 1e-3, name


def test_a_model_in_memory_is_given_as_it_is(found: Any) -> None:
    assert found["memory"] < 1e-3


def test_a_file_that_holds_code_is_refused(found: Any) -> None:
    code, none, strange, _, _ = found["refused"]
    assert "has a Lambda, which is code" in code
    assert "holds no Keras model" in none
    assert "System of os, which Keras was not told of" in strange


def test_a_configuration_that_is_too_deep_or_too_large_is_refused(found: Any) -> None:
    *_, deep, large = found["refused"]
    assert "deep.json holds no Keras model" in deep
    assert "Keras cannot load large.json" in large


def test_another_backend_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    program = (
        "from strongroom import mpc\n"
        "from strongroom.errors import StrongroomError\n"
        "try: mpc.load_model('m.keras')\n"
        "except StrongroomError as error: print(error.message, '|', error.hint)\n"
    )
    (tmp_path / "m.keras").write_bytes(b"")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**_ENVIRONMENT, "KERAS_BACKEND": "numpy"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "keras: runs on numpy, wanted torch | set KERAS_BACKEND=torch before" in ran.stdout, ran.stderr[-2000:]
