"""Commands that packages bring, without the files that an installer makes of them."""

from pathlib import Path

import pytest

from strongroom.cli.run.verb import program_of
from strongroom.enclave.scripts import calling, entry_of
from tests.enclave.conftest import World


def package(site: Path, name: str, *entries: str) -> None:
    directory = site / f"{name}-1.0.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (directory / "entry_points.txt").write_text("\n".join(["[console_scripts]", *entries, "[gui_scripts]", "w = b:c"]))


def test_the_first_package_that_has_it(tmp_path: Path) -> None:
    package(tmp_path, "second", "run = second.main:cli")
    package(tmp_path, "first", "run = first:App.run [extra]", "odd = first", "worse = first:run();import os")
    assert entry_of("run", [tmp_path]) == "first:App.run"
    assert calling("run", "first:App.run")[0] == "-c"


@pytest.mark.parametrize("name", ["odd", "worse", "w", "python", "./run", "/usr/bin/run", "absent", ""])
def test_what_is_no_command_of_a_package(tmp_path: Path, name: str) -> None:
    package(tmp_path, "first", "run = first:run", "odd = first", "worse = first:run();import os")
    assert entry_of(name, [tmp_path]) is None


def test_python_files_below_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    for name in ("own.py", "below/more.py", "data.csv"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    command, files = program_of(["pytest", "own.py"], [])
    assert command == ["pytest", "own.py"] and sorted(files) == ["below/more.py", "own.py"]


def test_a_command_of_a_package_in_an_enclave(world: World, any_sandbox: str) -> None:
    """As pip's file calls it: with its name, its arguments, and its exit status."""
    assert world.job_of(("pytest", "--no-such-option"), {}).run() == (4, "")
    status, said = world.job_of(("pytest", "--version"), {}).run()
    assert (status, said) == (0, f"pytest {pytest.__version__}\n")
