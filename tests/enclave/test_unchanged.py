"""What was measured and changes while a program runs: its results are not kept, and the error names the file."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from strongroom.enclave.digests import Digests
from strongroom.enclave.measure import measure
from strongroom.enclave.unchanged import check_unchanged
from strongroom.errors import MeasurementError
from tests.enclave import small
from tests.enclave.conftest import OUT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="enclaves are Linux's")

LATER = 10_000_000_000


@pytest.fixture
def environment(tmp_path):
    return small.environment(tmp_path / "environment")


def seen(environment, tmp_path):
    """The environment measured when its files were old enough to be remembered."""
    script = small.write(tmp_path / "job.py", "pass\n")
    known = Digests(lambda: max(p.stat().st_ctime_ns for p in tmp_path.rglob("*")) + LATER)
    return measure(small.CONFIG, {"job.py": script}, environment, known=known).seen


def site(environment):
    return environment.site_packages[0]


def replace(environment):
    path = site(environment) / "dep/__init__.py"
    told = path.stat()
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    return f"{path} was changed"


def add(environment):
    return f"{small.write(site(environment) / 'dep/planted.py')} is new"


def remove(environment):
    path = environment.stdlib / "os.py"
    path.unlink()
    return f"{path} is gone"


def swap_for_a_directory(environment):
    path = environment.package / "mpc.py"
    path.unlink()
    path.mkdir()
    return f"{path} is gone"


def lengthen_the_interpreter(environment):
    path = environment.executable.resolve()
    path.write_text("another")
    return f"{path} was changed"


@pytest.mark.parametrize("change", [replace, add, remove, swap_for_a_directory, lengthen_the_interpreter])
def test_a_change_is_named(environment, tmp_path, change):
    before = seen(environment, tmp_path)
    check_unchanged(before)
    what = change(environment)
    with pytest.raises(MeasurementError) as caught:
        check_unchanged(before)
    assert caught.value.message.startswith(f"environment: {what} while the program ran, ")
    assert "its vaults are as they were" in caught.value.message


def test_another_link_or_mode_is_no_change_and_what_python_keeps_is_none_either(environment, tmp_path):
    before = seen(environment, tmp_path)
    os.link(site(environment) / "dep/__init__.py", tmp_path / "link")
    (site(environment) / "dep/inner/mod.py").chmod(0o600)
    small.write(site(environment) / "dep/__pycache__/mod.cpython-311.pyc")
    check_unchanged(before)


def test_of_many_changes_some_are_named(environment, tmp_path):
    before = seen(environment, tmp_path)
    for number in range(5):
        small.write(site(environment) / f"planted{number}.py")
    with pytest.raises(MeasurementError, match=r"planted2\.py is new, and 2 more while"):
        check_unchanged(before)


def test_nothing_is_sealed_of_a_run_whose_program_was_changed(world, any_sandbox):
    out = world.seal("out", kept=b"kept")
    source = "import sys\nopen(sys.argv[1] + '/new', 'w').write('x')\nprint('ready', flush=True)\nsys.stdin.read()"
    job = world.job(source, "{vault:out}", rules=(OUT,), vaults={"out": out})
    log, go = os.pipe(), os.pipe()
    kept = os.dup(0)
    os.dup2(go[0], 0)
    try:
        enclave = job.launch(stdout=log[1])
    finally:
        os.dup2(kept, 0)
    for each in (log[1], go[0], kept):
        os.close(each)
    with os.fdopen(log[0]) as lines:
        assert lines.readline() == "ready\n"
        # Where the launcher keeps what it has measured; a host may know.
        (copy,) = Path(tempfile.gettempdir()).glob(f"strongroom-program-{os.getpid()}-*/job.py")
        with copy.open("a") as file:
            file.write("# changed\n")
        os.close(go[1])
        with pytest.raises(MeasurementError, match=r"job\.py was changed while the program ran"):
            enclave.wait()
    with out.open() as opened:
        assert opened.files() == ["kept"]
