"""Files are read in other processes while other things are done, and come to what they come to when read here."""

import hashlib
import importlib.util
import marshal
import os
from pathlib import Path

import pytest

from strongroom.enclave import digests, readers
from strongroom.enclave.compiled import Compiled, sources_of_boot
from strongroom.enclave.config import PROGRAM_ENTRY
from strongroom.enclave.digests import Digests
from strongroom.enclave.readers import Readers
from strongroom.errors import EnclaveError

KEY = b"k" * 32
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="not Linux: files are read by threads")


def later() -> int:
    return 1 << 62


@pytest.fixture
def files(tmp_path):
    sizes = [0, 1, 100, (1 << 18) - 1, 1 << 18, (1 << 20) + 1, (1 << 21) + 77, *range(300)]
    names = [tmp_path / f"f{index} \n\u00e9" for index in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        name.write_bytes(os.urandom(size))
    return [str(name) for name in names]


@pytest.fixture
def apart(monkeypatch):
    """Whatever there is to read is worth processes of its own, and nothing is read here."""
    monkeypatch.setattr(digests, "WORTHWHILE", 1)
    monkeypatch.setattr(digests, "read_file", None)


def expected(names):
    return [hashlib.sha256(Path(name).read_bytes()).digest() for name in names]


def test_files_come_to_the_same_digests(files, apart):
    known = Digests(clock=later)
    assert [each.sha256 for each in known.of(files)] == expected(files)
    assert [each.size for each in known.of(files)] == [Path(name).stat().st_size for name in files]
    assert known.grown


def test_what_was_read_ahead_is_not_read_again(files, apart, monkeypatch):
    known = Digests()  # for which all are young
    with known.reading_ahead(known.stamp(files).seen):
        monkeypatch.setattr(digests, "Readers", None)
        got = known.of(files)
    assert [each.sha256 for each in got] == expected(files)
    assert not known.grown


def test_what_changed_since_is_read_again_once_it_is_over(files, apart):
    known = Digests(clock=later)
    with known.reading_ahead(known.stamp(files).seen):
        known.of(files)
    Path(files[2]).write_bytes(b"changed")
    assert known.of(files)[2].sha256 == hashlib.sha256(b"changed").digest()


def test_a_file_that_cannot_be_read_is_an_error_in_the_end(files, monkeypatch):
    monkeypatch.setattr(digests, "WORTHWHILE", 1)
    known = Digests()
    seen = known.stamp(files).seen
    Path(files[3]).unlink()
    with known.reading_ahead(seen), pytest.raises(EnclaveError, match="no such file"):
        known.of(files)


def test_what_processes_that_ended_have_not_read_is_read_here(files, monkeypatch):
    monkeypatch.setattr(digests, "WORTHWHILE", 1)

    class Ended(Readers):
        def read(self, *args):
            self.stop()
            return super().read(*args)

    monkeypatch.setattr(digests, "Readers", Ended)
    assert [each.sha256 for each in Digests().of(files)] == expected(files)


def test_without_processes_files_are_read_here(files, monkeypatch):
    monkeypatch.setattr(digests, "WORTHWHILE", 1)
    monkeypatch.setattr(readers.sys, "executable", "/nowhere")
    known = Digests()
    with known.reading_ahead(known.stamp(files).seen):
        assert [each.sha256 for each in known.of(files)] == expected(files)


def test_an_error_meanwhile_ends_the_processes(files, apart):
    known = Digests(clock=later)
    with pytest.raises(ZeroDivisionError), known.reading_ahead(known.stamp(files).seen):
        raise ZeroDivisionError
    assert [each.sha256 for each in known.of(files)] == expected(files)


def test_sources_are_compiled_meanwhile(files, tmp_path, apart):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("x = 1\n")
    bad.write_text("x =\n")
    known = Digests(clock=later)
    known.to_compile = lambda: [str(good), str(bad), str(tmp_path / "none.py")]
    with known.reading_ahead(known.stamp(files).seen):
        known.of(files)
    assert list(known.code) == [str(good)]
    source, code = known.code[str(good)]
    assert source == hashlib.sha256(b"x = 1\n").digest()
    assert code[:4] == importlib.util.MAGIC_NUMBER
    space: dict[str, int] = {}
    exec(marshal.loads(code[16:]), space)  # noqa: S102, S302  # made above
    assert space["x"] == 1


def test_code_of_another_source_than_was_measured_is_not_kept(tmp_path):
    path = tmp_path / "mod.py"
    path.write_text("x = 1\n")
    measured = hashlib.sha256(b"x = 1\n").digest()
    kept = Compiled(tmp_path / "kept", KEY, Digests())
    made = {str(path): (hashlib.sha256(b"x = 2\n").digest(), b"planted")}
    assert kept.add(made, {str(path): measured}, seconds=60, made=made) == 0
    assert kept.checked() is None
    made = {str(path): (measured, b"code")}
    assert kept.add(made, {}, seconds=60, made=made) == 0
    assert kept.add(made, {str(path): measured}, seconds=60, made=made) == 1
    assert kept.checked() is not None


def test_what_boot_imports_is_known_beforehand():
    with sources_of_boot(PROGRAM_ENTRY) as told:
        names = [Path(name) for name in told()]
    assert {"program.py", "boot.py", "argparse.py"} <= {name.name for name in names}
    assert all(name.is_absolute() for name in names)
