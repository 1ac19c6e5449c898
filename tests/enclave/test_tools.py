"""The system's programs that a program starts: measured where they are named, and then no others can be started."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.enclave import tools
from strongroom.enclave.digests import Digests
from strongroom.enclave.elf import linker
from strongroom.enclave.landlock import landlock_version
from strongroom.enclave.measure import measure
from strongroom.errors import UsageError
from tests.enclave import small

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="enclaves are Linux's")

TRUE = os.path.realpath("/usr/bin/true")


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Makes programs in a directory that is the enclave's path."""
    folder = tmp_path / "bin"
    monkeypatch.setitem(tools.SANDBOX_ENVIRONMENT, "PATH", str(folder))

    def script(name, line, mode=0o755):
        path = small.write(folder / name, f"{line}\necho\n")
        path.chmod(mode)
        return str(path)

    return script


def test_first_lines_are_followed(scripts):
    shell = scripts("shell", f"#!{TRUE} -x")
    first = scripts("first", f"#! {shell}")
    named = scripts("named", "#!/usr/bin/env -S shell -e")
    nothing = scripts("nothing", "#!")
    started = tools.started([first, named, nothing]).executables
    assert {shell, first, named, nothing, TRUE, os.path.realpath("/usr/bin/env")} <= {*started}
    assert os.path.realpath(linker(TRUE)) in started


def test_what_an_executable_is_linked_to_belongs_to_it():
    started = tools.started([TRUE])
    assert [path for path in started.libraries if "/libc.so" in path]
    assert not {*started.libraries} & {*started.executables}


def test_a_loop_of_first_lines_ends(scripts):
    one, two = scripts("one", f"#!{Path(scripts('two', '#!'))}"), scripts("two", "#!one")
    Path(two).write_text(f"#!{one}\n")
    assert tools.started([one]).executables == sorted([one, two])


def test_of_a_directory_all_that_can_be_executed(scripts):
    folder = Path(scripts("in/one", "#!")).parent
    scripts("in/two", "#!", 0o644)
    assert tools.found(str(folder)) == [f"{folder}/one"]


@pytest.mark.parametrize("name", ["no-such-program", "/usr/no/such", "in/one", "../true"])
def test_what_the_enclave_would_not_find(scripts, name):
    scripts("in/one", "#!")
    with pytest.raises(UsageError, match=r"program\.tools: .* is not an executable on the enclave's path"):
        tools.found(name, "program.tools")


def command_part(tmp_path, files, **config):
    environment = small.environment(tmp_path / "environment")
    measured = measure(replace(small.CONFIG, **config), files, environment, known=Digests())
    parts = [part for part in measured.platform if part.name == "command"]
    return (measured.value, [entry.path for part in parts for entry in part.entries])


def test_the_interpreter_of_a_programs_own_script_is_measured(tmp_path, scripts):
    shell = scripts("shell", f"#!{TRUE}")
    job = small.write(tmp_path / "job.sh", f"#!{shell}\n")
    before, paths = command_part(tmp_path, {"job.sh": job}, command=("./job.sh",))
    assert {shell, TRUE} <= {*paths} and str(job) not in paths  # which is a part of its own
    shutil.rmtree(tmp_path / "environment")
    Path(shell).write_text(f"#!{TRUE}\n# another\n")
    assert command_part(tmp_path, {"job.sh": job}, command=("./job.sh",))[0] != before


def test_tools_are_measured_with_what_they_start(tmp_path, scripts):
    tool = scripts("tool", f"#!{TRUE}")
    job = small.write(tmp_path / "job.py")
    _, paths = command_part(tmp_path, {"job.py": job}, tools=("tool",))
    assert {tool, TRUE} <= {*paths}
    shutil.rmtree(tmp_path / "environment")
    assert command_part(tmp_path, {"job.py": job})[1] == []


STARTS = """
import json, os, shutil, subprocess, sys
shutil.copy("/usr/bin/true", "/tmp/copy")
def starts(*command):
    try: return subprocess.run(command, capture_output=True).returncode
    except PermissionError: return "refused"
print(json.dumps([starts("sh", "-c", "exit 3"), starts("env", "true"), starts("uname"), starts("/tmp/copy"),
    starts(sys.executable, "-c", "raise SystemExit(4)")]))
"""


@pytest.mark.parametrize(
    ("named", "outcome"),
    [
        (None, [3, 0, 0, 0, 4]),
        (("sh",), [3, "refused", "refused", "refused", 4]),
        (("env", "uname"), ["refused", 126, 0, "refused", 4]),
    ],
)
def test_only_what_is_named_can_be_started(world, bubblewrap, named, outcome):
    if landlock_version() == 0:
        pytest.skip("no Landlock in this kernel")
    status, output = world.job(STARTS, tools=named).run()
    assert (status, json.loads(output)) == (0, outcome)


def test_a_script_of_the_programs_own_starts_its_interpreter(world, bubblewrap):
    script = small.write(world.directory / "job.sh", "#!/bin/sh\necho ran; uname || echo refused\n")
    job = world.job_of(("./job.sh",), {"job.sh": script}, tools=())
    status, output = job.run()
    assert status == 0
    assert output.splitlines()[0] == "ran"
    if landlock_version() > 0:
        assert output.splitlines()[1:] == ["refused"]
