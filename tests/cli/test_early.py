"""What is read before the launcher has imported anything: in a first run, and only what it may believe."""

import hashlib
import os
import sys
import time

import pytest

from strongroom.cli import early
from strongroom.cli.main import main
from strongroom.enclave.digests import Digests
from strongroom.enclave.reader import RECORD

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux has files in memory")

SIZE = 100_000


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    site = tmp_path / "site-packages"
    (site / "__pycache__").mkdir(parents=True)
    for name in ("large", "__pycache__/cached"):
        (site / name).write_bytes(name.encode() * SIZE)
    (site / "small").write_bytes(b"small")
    monkeypatch.setattr(sys, "path", [str(site)])
    yield site
    early.found()


def everything():
    """What is found once all has been read."""
    if early._reading:
        early._reading[0].process.wait()
    return early.found()


def test_large_files_of_a_first_run_are_read(site):
    early.begin(["run", "--", "python", "job.py"])
    raw, began = everything()
    ((told, digest),) = RECORD.iter_unpack(raw)
    assert digest == hashlib.sha256(b"large" * SIZE).digest()
    assert 0 < began <= time.time_ns()
    assert early.found() == (b"", 0)
    known = Digests()
    known.early = lambda: (raw + b"half", began + 10_000_000_000)
    with known.reading_ahead(known.stamp([str(site / "large")]).seen):
        assert known.remembered(told) == digest


def test_what_changed_since_or_just_before_is_not_believed(site):
    path = site / "large"
    early.begin(["run", "--", "python", "job.py"])
    raw, began = everything()
    for when in (began, began + 10_000_000_000):  # too young; another file by then
        known = Digests()
        known.early = lambda when=when: (raw, when)
        with known.reading_ahead(known.stamp([str(path)]).seen):
            assert known.empty
        path.write_bytes(b"other" * SIZE)


@pytest.mark.parametrize(
    "words", [["run", "--help"], ["run"], ["seal", "--", "x"], ["--help"], [], ["run", "-h", "--", "x"]]
)
def test_nothing_is_read_for_other_commands(site, words):
    early.begin(words)
    assert not early._reading


def test_nothing_is_read_where_digests_are_remembered(site, tmp_path):
    (tmp_path / "home" / early.DIGESTS).write_bytes(b"")
    early.begin(["run", "--policy", "policy.toml"])
    assert not early._reading


def test_a_run_that_measures_nothing_leaves_no_reader(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path))
    begun = []
    begin = early.begin
    monkeypatch.setattr(early, "begin", lambda words: (begin(words), begun.extend(early._reading)))
    assert main(["run", "--policy", str(tmp_path / "none.toml")]) == 2
    assert [each.process.returncode is not None for each in begun] == [True]
    assert not early._reading
