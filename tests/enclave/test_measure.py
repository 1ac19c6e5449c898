"""A measurement says what runs: the same for the same, another for anything else."""

import dataclasses
import shutil
import sys

import pytest

from strongroom.enclave.config import PROGRAM_ENTRY, BootConfig, VaultMount
from strongroom.enclave.elf import needed, system_libraries
from strongroom.enclave.measure import Environment, measure, program_files, python_files
from strongroom.errors import EnclaveError, FormatError, UsageError

CONFIG = BootConfig(
    entry=PROGRAM_ENTRY,
    policy="test/measure",
    cas_root="sha256:" + "0" * 64,
    role="program",
    command=("python", "job.py"),
    environment={"A": "1"},
    vaults=(VaultMount("data", "/data", "read-only"),),
)


@pytest.fixture
def environment(tmp_path):
    """A small interpreter: measuring the real one takes seconds."""
    root = tmp_path / "env"
    for name in ("lib/os.py", "site/pkg/__init__.py", "site/pkg/__pycache__/x.pyc", "site/pkg-1.dist-info/RECORD"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "site/pkg-1.dist-info/METADATA").write_text("Name: pkg\nVersion: 1\n")
    (root / "site/pkg-1.dist-info/RECORD").write_text("pkg/__init__.py,,\n")
    (root / "python").write_bytes(b"interpreter")
    package = root / "strongroom"
    package.mkdir()
    (package / "boot.py").write_text("boot")
    return Environment(root / "python", root, root, root / "lib", (), (root / "site",), package)


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.py"
    path.write_text("print(1)\n")
    return path


def value(config, files, environment):
    return measure(config, files, environment).value


def test_the_same_measures_the_same_wherever_it_lies(environment, job, tmp_path):
    first = value(CONFIG, {"job.py": job}, environment)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(environment.prefix, elsewhere)
    moved = Environment(
        elsewhere / "python",
        elsewhere,
        elsewhere,
        elsewhere / "lib",
        (),
        (elsewhere / "site",),
        elsewhere / "strongroom",
    )
    copy = shutil.copy(job, tmp_path / "copy")
    assert value(CONFIG, {"job.py": copy}, moved) == first
    assert len(first) == 96


@pytest.mark.parametrize("name", ["lib/os.py", "site/pkg/__init__.py", "strongroom/boot.py", "python"])
def test_one_byte_of_the_platform_changes_the_launch_register(environment, job, name):
    before = measure(CONFIG, {"job.py": job}, environment)
    path = environment.prefix / name
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    after = measure(CONFIG, {"job.py": job}, environment)
    assert before.registers["mrtd"] != after.registers["mrtd"]
    assert before.registers["rtmr3"] == after.registers["rtmr3"]
    assert before.value != after.value


@pytest.mark.parametrize("name", ["site/new.pth", "site/pkg/extra.pyc", "lib/sitecustomize.py"])
def test_a_file_that_no_distribution_lists_is_measured_too(environment, job, name):
    before = value(CONFIG, {"job.py": job}, environment)
    (environment.prefix / name).write_text("import os")
    assert value(CONFIG, {"job.py": job}, environment) != before


def test_a_renamed_file_changes_the_measurement(environment, job):
    before = value(CONFIG, {"job.py": job}, environment)
    assert value(CONFIG, {"other.py": job}, environment) != before


def test_caches_of_compiled_code_do_not_count(environment, job):
    before = value(CONFIG, {"job.py": job}, environment)
    (environment.prefix / "site/pkg/__pycache__/y.pyc").write_text("another interpreter's")
    assert value(CONFIG, {"job.py": job}, environment) == before


@pytest.mark.parametrize(
    "change",
    [
        {"entry": "strongroom.serve.inside"},
        {"policy": "test/other"},
        {"cas_root": "sha256:" + "1" * 64},
        {"role": "service"},
        {"isolation": "process"},
        {"command": ("python", "job.py", "-v")},
        {"environment": {"A": "2"}},
        {"environment": {}},
        {"vaults": ()},
        {"vaults": (VaultMount("data", "/data", "read-write"),)},
        {"vaults": (VaultMount("data", "/elsewhere", "read-only"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_the_host_may_choose_is_measured(environment, job, change):
    before = measure(CONFIG, {"job.py": job}, environment)
    after = measure(dataclasses.replace(CONFIG, **change), {"job.py": job}, environment)
    assert before.registers["rtmr3"] != after.registers["rtmr3"]
    assert before.value != after.value


def test_a_distribution_is_a_part_of_its_own(environment, job):
    parts = {part.name: part for part in measure(CONFIG, {"job.py": job}, environment).parts}
    assert parts["pkg 1"].files == 1
    assert parts["program"].files == 1
    assert {"interpreter", "strongroom", "system libraries", "boot configuration"} <= set(parts)


def test_the_boot_configuration_has_one_form_only():
    raw = CONFIG.to_bytes()
    assert BootConfig.from_bytes(raw) == CONFIG
    for bad in (raw + b" ", raw.replace(b'"role"', b'"rule"'), b"{}", b"", raw.replace(b":", b": ", 1)):
        with pytest.raises(FormatError):
            BootConfig.from_bytes(bad)


def test_program_files_stay_below_their_directory(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "link.py").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="leads out"):
        program_files(tmp_path / "in", ["link.py"])
    with pytest.raises(UsageError, match="does not exist"):
        program_files(tmp_path / "in", ["none.py"])


def test_python_files_pass_over_environments_and_hidden_folders(tmp_path):
    for name in ("a.py", "pkg/b.py", ".git/c.py", "venv/pyvenv.cfg", "venv/d.py", "pkg/__pycache__/e.py", "data.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert python_files(tmp_path, tmp_path) == ["a.py", "pkg/b.py"]


def test_libraries_are_followed_through_the_link_tables():
    libraries = {path.name for path in system_libraries([str(Environment.current().executable.resolve())])}
    assert any(name.startswith(("libc.so", "libc-")) for name in libraries)


def test_what_is_not_elf_needs_nothing(tmp_path):
    for content in (
        b"",
        b"\x7fELF",
        b"\x7fELF\x02\x01" + bytes(58),
        b"\x7fELF\x02\x01" + b"\xff" * 200,
        b"#!/bin/sh\n",
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert needed(str(path)) == []


def test_what_a_link_to_a_directory_leads_to_is_measured(environment, job, tmp_path):
    before = value(CONFIG, {"job.py": job}, environment)
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "__init__.py").write_text("print('one')")
    (environment.prefix / "site" / "sitecustomize").symlink_to(tmp_path / "share")
    linked = value(CONFIG, {"job.py": job}, environment)
    (tmp_path / "share" / "__init__.py").write_text("print('two')")
    assert len({before, linked, value(CONFIG, {"job.py": job}, environment)}) == 3


def test_another_name_for_a_measured_directory_is_measured(environment, job):
    before = value(CONFIG, {"job.py": job}, environment)
    (environment.prefix / "site" / "alias").symlink_to(environment.prefix / "site" / "pkg")
    first = value(CONFIG, {"job.py": job}, environment)
    (environment.prefix / "site" / "alias").rename(environment.prefix / "site" / "other")
    assert len({before, first, value(CONFIG, {"job.py": job}, environment)}) == 3


def test_a_loop_of_links_ends(environment, job):
    (environment.prefix / "site" / "pkg" / "loop").symlink_to(environment.prefix / "site")
    value(CONFIG, {"job.py": job}, environment)


def test_an_environment_that_takes_in_unmeasured_packages_is_refused(environment, job):
    (environment.prefix / "pyvenv.cfg").write_text("home = /usr/bin\nInclude-System-Site-Packages = TRUE\n")
    with pytest.raises(EnclaveError, match="not measured"):
        value(CONFIG, {"job.py": job}, environment)


def test_the_real_environment_names_what_lies_beside_its_library():
    names = {path.name for path in Environment.current().beside}
    assert "pyvenv.cfg" in names or sys.prefix == sys.base_prefix
    assert all(path.is_file() for path in Environment.current().beside)


def test_a_command_is_looked_up_as_the_enclave_will(environment, job, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "tool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UsageError, match="enclave's path"):
        value(dataclasses.replace(CONFIG, command=("tool",)), {"job.py": job}, environment)
    parts = measure(dataclasses.replace(CONFIG, command=("true",)), {"job.py": job}, environment).parts
    assert "command" in {part.name for part in parts}


def test_a_command_by_relative_path_is_one_of_the_programs_files(environment, job):
    config = dataclasses.replace(CONFIG, command=("./job.py",))
    assert value(config, {"job.py": job}, environment)
    with pytest.raises(UsageError, match="program's files"):
        value(dataclasses.replace(CONFIG, command=("./other",)), {"job.py": job}, environment)
