"""What is read or looked at before the launcher has imported anything, and only what it may believe."""

import hashlib
import os
import sys
import time
from pathlib import Path

import pytest

from strongroom.cli import early
from strongroom.cli.main import main
from strongroom.enclave.digests import Digests, Looked, walk
from strongroom.enclave.reader import NO_STDLIB, RECORD, told
from strongroom.enclave.unchanged import Seen, check_unchanged
from strongroom.errors import MeasurementError

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
    early.end()


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
    assert not early._looking


@pytest.fixture
def remembered(site, tmp_path):
    (tmp_path / "home" / early.DIGESTS).write_bytes(b"")
    return site


def test_where_digests_are_remembered_files_are_looked_at_as_measuring_does(remembered):
    (remembered / "gone").symlink_to("nowhere")
    (remembered / "here").symlink_to(".")
    (remembered / "shared").write_bytes(b"")
    (remembered / "shared").chmod(0o666)
    early.begin(["run", "--policy", "policy.toml"])
    assert not early._reading
    looked = Looked(early.looked())
    assert early.looked() == b""
    stdlib, package = str(Path(os.__file__).parent), str(Path(early.__file__).parent.parent)
    for of in ((stdlib, NO_STDLIB, ""), (package, (), ""), (str(remembered), (), package)):
        found = looked.walk(*of)
        assert found == walk(*of)
        assert {path: looked.told[path] for _, path in found} == {path: told(path) for _, path in found}
    paths = [path for _, path in walk(str(remembered))]
    assert len(paths) == 5
    assert Digests().stamp(paths, looked.told) == Digests().stamp(paths)


def test_a_look_that_failed_or_was_cut_counts_for_nothing(remembered):
    early.begin(["run", "--policy", "policy.toml"])
    raw = early.looked()
    remembered.rename(remembered.with_name("elsewhere"))
    early.begin(["run", "--policy", "policy.toml"])
    assert early.looked() == b""
    (remembered.with_name("elsewhere")).rename(remembered)
    cut = Looked(raw[:-1])
    assert str(remembered / "large") not in cut.told
    (remembered / "new").write_bytes(b"")
    assert "new" in [name for name, _ in cut.walk(str(remembered))]


def test_what_changes_after_the_look_is_a_change(remembered):
    path = remembered / "large"
    early.begin(["run", "--policy", "policy.toml"])
    known = Digests()
    stamp = known.stamp([str(path)], Looked(early.looked()).told)
    path.write_bytes(b"other" * SIZE)
    seen = Seen.of([str(path)], stamp, known)
    with pytest.raises(MeasurementError, match="large was changed"):
        check_unchanged([seen])
    known.of([str(path)])
    assert not known.counts(stamp)


def test_a_run_that_measures_nothing_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path))
    begun = []
    begin = early.begin
    monkeypatch.setattr(early, "begin", lambda words: (begin(words), begun.extend(early._reading + early._looking)))
    assert main(["run", "--policy", str(tmp_path / "none.toml")]) == 2
    (tmp_path / early.DIGESTS).write_bytes(b"")
    assert main(["run", "--policy", str(tmp_path / "none.toml")]) == 2
    assert [each.process.returncode is not None for each in begun] == [True, True]
    assert not early._reading
    assert not early._looking
