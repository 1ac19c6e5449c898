"""Attacks on what is measured: each changes the measurement, or is refused; what neither catches is asserted too."""

import dataclasses
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.cli.main import main
from strongroom.enclave import reader
from strongroom.enclave.digests import Digests
from strongroom.enclave.measure import Environment, measure, odd_files
from strongroom.errors import EnclaveError, FormatError
from tests.enclave import small

KEY, BOOT = b"k" * 32, b"b" * 16


@pytest.fixture
def here(tmp_path):
    return small.environment(tmp_path / "env")


@pytest.fixture
def job(tmp_path):
    return {"job.py": small.write(tmp_path / "job.py")}


def value(here, job):
    return measure(small.CONFIG, job, here, known=Digests()).value


def told(here, job):
    found = odd_files(measure(small.CONFIG, job, here, known=Digests()), here)
    return {(odd.kind, Path(odd.path).name) for odd in found}


def test_a_dependency_changed_by_one_byte(here, job):
    before = value(here, job)
    assert told(here, job) == set()
    small.write(here.site_packages[0] / "dep/inner/mod.py", "def f():\n    return 3\n")
    assert value(here, job) != before
    assert told(here, job) == {("changed", "mod.py")}


def test_a_dependency_changed_together_with_its_record(here, job):
    before = value(here, job)
    changed = small.DEPENDENCY | {"dep/inner/mod.py": b"def f():\n    return 3\n"}
    small.install(here.site_packages[0], changed, "dep-1.0.dist-info")
    assert told(here, job) == set()  # a RECORD is the attacker's to write
    assert value(here, job) != before  # the measurement is not


def test_a_record_that_disowns_or_adopts_a_file(here, job):
    before = value(here, job)
    path = here.site_packages[0] / "dep-1.0.dist-info/RECORD"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "mod.py" not in line))
    assert value(here, job) != before
    assert told(here, job) == {("unlisted", "mod.py")}


@pytest.mark.parametrize(
    "name",
    [
        "site/new.pth",
        "site/sitecustomize.py",
        "site/usercustomize.py",
        "site/sitecustomize/__init__.py",
        "site/sitecustomize.cpython-311-x86_64-linux-gnu.so",
        "site/dep/beside.pyc",
        "stdlib/sitecustomize.py",
        "stdlib/json.pyc",
    ],
)
def test_what_python_runs_unasked_is_measured_and_named(here, job, name):
    before = value(here, job)
    place, _, rest = name.partition("/")
    small.write({"site": here.site_packages[0], "stdlib": here.stdlib}[place] / rest, "import os\n")
    after = measure(small.CONFIG, job, here, known=Digests())
    assert after.value != before
    (part,) = [part for part in after.parts if part.name == "start-up files"]
    assert [entry.name.endswith(rest) for entry in part.entries] == [True]


def test_a_module_without_a_source_runs_which_is_why_it_is_measured(tmp_path):
    source = small.write(tmp_path / "mod.py", "print('from compiled code')")
    py_compile.compile(str(source), cfile=str(tmp_path / "other.pyc"))
    run = subprocess.run([sys.executable, "-c", "import other"], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "from compiled code\n"


def test_compiled_code_in_a_cache_is_neither_measured_nor_run(here, job):
    before = value(here, job)
    package = here.site_packages[0] / "dep"
    evil = small.write(here.prefix / "evil.py", "VALUE = 666\n")
    cached = package / "__pycache__" / f"__init__.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(evil), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert value(here, job) == before
    show = [sys.executable, "-c", "import dep; print(dep.VALUE)"]
    assert subprocess.run(show, cwd=package.parent, capture_output=True, text=True).stdout == "666\n"
    aside = [show[0], "-X", f"pycache_prefix={here.prefix / 'own'}", *show[1:]]  # as the launcher and boot run it
    assert subprocess.run(aside, cwd=package.parent, capture_output=True, text=True).stdout == "1\n"


def test_a_swapped_interpreter(here, job):
    before = value(here, job)
    (here.prefix / "bin/python").unlink()
    (here.prefix / "bin/python").symlink_to(small.write(here.prefix / "other/python", "another interpreter"))
    assert value(here, job) != before


@pytest.mark.parametrize("name", ["python._pth", "python311._pth", "pybuilddir.txt", "pyvenv.cfg"])
@pytest.mark.parametrize("place", ["bin", "base/bin"])
def test_a_file_beside_the_interpreter_that_leads_it_elsewhere(here, job, name, place):
    small.write(here.prefix / place / name, f"include-system-site-packages = true\n{here.prefix}\n")
    with pytest.raises(EnclaveError, match="not measured"):
        value(here, job)


def test_a_pth_file_that_leads_to_what_the_enclave_sees_and_nobody_measured(here, job):
    hidden = here.base_prefix / "lib/hidden"
    small.write(hidden / "module.py")
    small.write(here.site_packages[0] / "new.pth", f"# comment\nimport os\n\n{hidden}\n")
    with pytest.raises(EnclaveError, match=r"new\.pth has modules imported from .*hidden, which is not measured"):
        value(here, job)
    small.write(here.site_packages[0] / "new.pth", "../site-packages\n/nowhere\ndep\n\0\nimportant\n")
    assert value(here, job)


def test_a_link_to_a_file_is_what_it_leads_to(here, job, tmp_path):
    before = value(here, job)
    one, two = small.write(tmp_path / "one", "1"), small.write(tmp_path / "two", "2")
    link = here.site_packages[0] / "planted.py"
    link.symlink_to(one)
    first = value(here, job)
    link.unlink()
    link.symlink_to(two)
    assert len({before, first, value(here, job)}) == 3


def test_a_link_that_leads_nowhere_is_refused(here, job):
    (here.site_packages[0] / "planted.py").symlink_to("/nowhere/at/all")
    with pytest.raises(EnclaveError, match=r"planted\.py: no such file"):
        value(here, job)


def test_a_link_does_not_take_files_from_their_distribution(here, job):
    (here.site_packages[0] / "a_first").symlink_to("dep")
    parts = {part.name: part.files for part in measure(small.CONFIG, job, here, known=Digests()).parts}
    assert parts["dep 1.0"] == len(small.DEPENDENCY)
    assert parts["files of no distribution"] == 1


def test_a_namespace_package_in_another_site_directory(here, job):
    second = here.prefix / "lib64/python3.11/site-packages"
    second.mkdir(parents=True)
    both = dataclasses.replace(here, site_packages=(*here.site_packages, second))
    before = value(both, job)
    planted = small.write(second / "dep/inner/more.py")
    there = value(both, job)
    moved = small.write(here.site_packages[0] / "dep/inner/more.py")
    planted.unlink()
    assert len({before, there, value(both, job)}) == 3
    assert moved.exists()


def test_the_program_changed_between_two_measurements_of_one_platform(here, job):
    before = measure(small.CONFIG, job, here, known=Digests())
    small.write(job["job.py"], "print('other')\n")
    again = measure(small.CONFIG, job, here, known=Digests(), platform=before.platform)
    assert again.value != before.value
    assert again.registers["mrtd"] == before.registers["mrtd"]


def test_a_file_that_changes_while_it_is_read(here, job, monkeypatch):
    path = here.site_packages[0] / "dep/inner/mod.py"
    real = reader.identity

    def change_it_too(told):
        if os.path.samestat(told, path.stat()):
            path.write_text("def f():\n    return 'later'\n")
        return real(told)

    monkeypatch.setattr(reader, "identity", change_it_too)
    with pytest.raises(EnclaveError, match=r"mod\.py: changed while it was read"):
        value(here, job)


def test_a_change_of_the_same_size_with_its_time_set_back(here, job):
    old = Digests(clock=lambda: 1 << 62)  # nothing is young
    path = here.site_packages[0] / "dep/inner/mod.py"
    before, times = measure(small.CONFIG, job, here, known=old), path.stat()
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert measure(small.CONFIG, job, here, known=old).value != before.value


def cached(path):
    known = Digests(clock=lambda: 1 << 62)
    known.of([str(path)])
    return known.to_bytes(KEY, BOOT)


@pytest.mark.parametrize("at", [0, 30, 50, 90, -40, -1])
def test_a_forged_digest_cache_is_not_taken_in(tmp_path, at):
    raw = bytearray(cached(small.write(tmp_path / "file")))
    raw[at] ^= 1
    with pytest.raises(FormatError, match="digest cache"):
        Digests().load(bytes(raw), KEY, BOOT)


@pytest.mark.parametrize("cut", [0, 10, 32, 60, 100])
def test_a_truncated_or_foreign_digest_cache_is_not_taken_in(tmp_path, cut):
    raw = cached(small.write(tmp_path / "file"))
    for bad, key in ((raw[:cut], KEY), (raw[:-1], KEY), (raw + b"\0", KEY), (raw, b"o" * 32)):
        with pytest.raises(FormatError, match="digest cache"):
            Digests().load(bad, key, BOOT)


def test_strict_records_refuse_what_was_changed_by_hand(here, job, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Environment, "current", classmethod(lambda cls: here))
    arguments = ["measure", "--strict-records", "--cas-root", "sha256:" + "0" * 64, "--", "python", "job.py"]
    assert main(arguments) == 0
    small.write(here.site_packages[0] / "dep/__init__.py", "VALUE = 666\n")
    small.write(here.site_packages[0] / "planted.py")
    capfd.readouterr()
    assert main(arguments) == 60
    assert "2 files are not as the distributions' RECORDs say, of which unlisted" in capfd.readouterr().err
