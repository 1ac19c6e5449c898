"""Parsers of evidence under inputs that a fuzzer found to matter, and under new ones."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from strongroom.errors import StrongroomError
from tests.fuzz.parsers import CORPUS, PARSERS, seeds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PARSERS)
def test_known_inputs_are_read_or_refused(name):
    for raw in [*seeds(name), b"", b"\0", b"{}", b"\xff" * 64]:
        with suppress(StrongroomError):
            PARSERS[name].check(raw)


def test_every_input_that_is_kept_is_some_parsers():
    assert {path.name for path in CORPUS.iterdir()} <= set(PARSERS)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: it has wheels for Linux on x86-64")
@pytest.mark.parametrize("name", PARSERS)
def test_new_inputs_are_read_or_refused(name, tmp_path):
    # One seed, so that a run can be repeated; `python -m tests.fuzz.harness` tries others.
    flags = [f"-runs={PARSERS[name].runs}", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.fuzz.harness", name, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    for found in tmp_path.iterdir():
        pytest.fail(f"keep in {CORPUS / name} what broke the parser: {found.read_bytes().hex()}\n{done.stdout[-6000:]}")
    assert done.returncode == 0, done.stdout[-6000:]
