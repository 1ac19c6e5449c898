"""Compiled code that is kept for the next enclave: made from measured bytes, used only as it was written."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sortedcontainers

from strongroom.cas.policy.version import VaultRule
from strongroom.enclave.compiled import Compiled, is_kept, link, sources_of
from strongroom.enclave.digests import Digests
from strongroom.enclave.measure import measure
from strongroom.errors import FormatError

KEY = b"k" * 32
SECONDS = 60.0


@pytest.fixture
def sources(tmp_path):
    directory = tmp_path / "site"
    (directory / "package").mkdir(parents=True)
    for name in ("one.py", "package/__init__.py", "package/two.py"):
        (directory / name).write_text(f"VALUE = {name!r}\n")
    return directory


@pytest.fixture
def kept(tmp_path):
    return Compiled(tmp_path / "home", KEY, Digests())


def measured(directory):
    return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in directory.rglob("*.py")}


def files(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())


def imported(directory, prefix):
    """What ``one.VALUE`` is for a Python that looks for compiled code below `prefix`."""
    program = f"import sys; sys.path.insert(0, {str(directory)!r}); import one; print(one.VALUE)"
    command = [sys.executable, "-I", "-B", "-X", f"pycache_prefix={prefix}", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_what_was_compiled_is_what_python_runs(kept, sources):
    assert kept.checked() is None
    assert kept.add(map(str, sources.rglob("*.py")), measured(sources), seconds=SECONDS) == 3
    shown = kept.checked()
    assert imported(sources, shown) == "one.py"
    compiled = next(shown.rglob("one.*.pyc"))
    assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"  # PEP 552: hash-based, unchecked
    assert is_kept(str(shown), str(sources / "one.py"))
    assert not is_kept(str(shown), str(sources / "three.py"))
    assert kept.add(map(str, sources.rglob("*.py")), measured(sources), seconds=SECONDS) == 0


def test_only_what_was_measured_is_compiled(kept, sources):
    told = measured(sources)
    (sources / "one.py").write_text("VALUE = 'planted'\n")  # since it was measured
    (sources / "three.py").write_text("VALUE = 3\n")  # was not
    (sources / "package/data.txt").write_text("no Python")
    told[str(sources / "package/data.txt")] = hashlib.sha256(b"no Python").digest()
    names = ["one.py", "three.py", "package/two.py", "package/data.txt", "../../../etc/passwd", "gone.py"]
    assert kept.add([str(sources / name) for name in names], told, seconds=SECONDS) == 1
    assert not is_kept(str(kept.checked()), str(sources / "one.py"))


def test_what_is_no_python_is_left_out(kept, sources):
    (sources / "one.py").write_text("print 'of another century'\n")
    assert kept.add([str(sources / "one.py")], measured(sources), seconds=SECONDS) == 0


def test_code_of_a_changed_source_is_removed(kept, sources):
    kept.add(map(str, sources.rglob("*.py")), measured(sources), seconds=SECONDS)
    (sources / "one.py").write_text("VALUE = 'newer'\n")
    (sources / "package/two.py").unlink()
    shown = kept.checked()
    assert len(files(shown)) == 1
    assert imported(sources, shown) == "newer"
    assert kept.add([str(sources / "one.py")], measured(sources), seconds=SECONDS) == 1


def plant_another_file(shown, sources):
    compiled = next(shown.rglob("one.*.pyc"))
    compiled.with_name(compiled.name.replace("one", "os")).write_bytes(compiled.read_bytes())


def change_a_file(shown, sources):
    compiled = next(shown.rglob("one.*.pyc"))
    compiled.write_bytes(compiled.read_bytes().replace(b"one.py", b"two.py"))


def put_a_link(shown, sources):
    compiled = next(shown.rglob("one.*.pyc"))
    compiled.rename(sources / "elsewhere")
    compiled.symlink_to(sources / "elsewhere")


def remove_a_file(shown, sources):
    next(shown.rglob("one.*.pyc")).unlink()


def change_the_index(shown, sources):
    index = shown.parent / "index"
    index.write_bytes(index.read_bytes().replace(b"one.py", b"two.py"))


@pytest.mark.parametrize("attack", [plant_another_file, change_a_file, put_a_link, remove_a_file, change_the_index])
def test_what_was_changed_is_dropped(kept, sources, attack):
    kept.add(map(str, sources.rglob("*.py")), measured(sources), seconds=SECONDS)
    shown = kept.checked()
    attack(shown, sources)
    with pytest.raises(FormatError, match="compiled code: "):
        kept.checked()
    assert not shown.exists()
    assert kept.checked() is None
    assert kept.add([str(sources / "one.py")], measured(sources), seconds=SECONDS) == 1  # and begins anew


def test_another_home_s_key_opens_nothing(tmp_path, kept, sources):
    kept.add(map(str, sources.rglob("*.py")), measured(sources), seconds=SECONDS)
    with pytest.raises(FormatError, match="of another home"):
        Compiled(tmp_path / "home", b"o" * 32, Digests()).checked()


def test_a_prefix_that_takes_in_new_code_finds_what_is_kept(tmp_path, kept, sources):
    kept.add([str(sources / "one.py")], measured(sources), seconds=SECONDS)
    shown, prefix = kept.checked(), tmp_path / "prefix"
    made = link(str(shown), str(prefix))
    assert str(prefix) in made
    assert sources_of(str(prefix)) == []
    assert imported(sources, prefix) == "one.py"
    program = f"import sys; sys.path.insert(0, {str(sources)!r}); import package.two"
    subprocess.run([sys.executable, "-I", "-X", f"pycache_prefix={prefix}", "-c", program], check=True)
    new = [name for name in sources_of(str(prefix)) if name.startswith(str(sources))]
    assert sorted(new) == [str(sources / "package/__init__.py"), str(sources / "package/two.py")]


def test_code_of_what_is_covered_is_not_shown(tmp_path, kept, sources):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("there.py", "linked.py"):
        (elsewhere / name).write_text("VALUE = 1\n")
    (sources / "linked.py").symlink_to(elsewhere / "linked.py")
    (sources / "directory").symlink_to(elsewhere)
    names = [str(path) for path in (*sources.rglob("*.py"), sources / "directory/there.py")]
    told = {name: hashlib.sha256(Path(name).read_bytes()).digest() for name in names}
    assert kept.add(names, told, seconds=SECONDS) == 5

    def shown(*covered):
        prefix = tmp_path / f"prefix{len(list(tmp_path.iterdir()))}"
        link(str(kept.checked()), str(prefix), {str(path) for path in covered})
        return sorted(path.name.partition(".")[0] for path in prefix.rglob("*.pyc"))

    assert shown("/nowhere", sources / "pack") == ["__init__", "linked", "one", "there", "two"]
    assert shown(sources / "one.py") == ["__init__", "linked", "there", "two"]
    assert shown(sources / "package") == ["linked", "one", "there"]
    assert shown(elsewhere) == ["__init__", "one", "two"]
    assert shown(sources) == []


def test_what_a_vault_has_in_place_of_a_module_is_what_runs(world, bubblewrap, kept):
    """In the place of a module is a vault: without this the program would run the host's, as it was measured."""
    place = Path(sortedcontainers.__file__).parent
    if place.is_relative_to("/tmp"):
        pytest.skip("this environment lies in /tmp, where nothing can be mounted: it is the enclave's own")
    rule = VaultRule("data", str(place), "read-only")
    job = world.job(
        "import sortedcontainers; print(sortedcontainers.SAID)",
        rules=(rule,),
        vaults={"data": world.seal("data", **{"__init__.py": b"SAID = 'of the vault'"})},
    )
    digests = {entry.path: entry.sha256 for part in measure(job.config, job.files).platform for entry in part.entries}
    assert kept.add([name for name in digests if "/sortedcontainers/" in name], digests, seconds=SECONDS) > 1
    assert job.run(compiled=kept.checked()) == (0, "of the vault\n")


def test_what_takes_too_long_is_left_for_another_time(kept, sources):
    assert kept.add(map(str, sources.rglob("*.py")), measured(sources), seconds=-1.0) == 0


def test_files_are_named_as_python_names_them(kept, sources, monkeypatch):
    kept.add([str(sources / "one.py")], measured(sources), seconds=SECONDS)
    shown = kept.checked()
    monkeypatch.setattr(sys, "pycache_prefix", str(shown))
    assert os.path.isfile(importlib.util.cache_from_source(str(sources / "one.py")))  # noqa: PTH113


PROGRAM = """
import os, sortedcontainers
print(os.path.realpath(sortedcontainers.__cached__).startswith("/run/compiled/"))
try:
    open("/run/compiled/planted", "w")
except OSError as error:
    print(error.strerror)
"""


def imports(job):
    """What the job's enclaves told the launcher that they had compiled themselves."""
    return {name for event, detail in job.events if event == "imported" for name in detail["sources"]}


def test_an_enclave_runs_what_was_kept_and_changes_none_of_it(world, bubblewrap, kept):
    job = world.job(PROGRAM)
    assert job.run(compiled=None) == (0, "False\nNo such file or directory\n")
    names = imports(job)
    digests = {entry.path: entry.sha256 for part in measure(job.config, job.files).platform for entry in part.entries}
    assert {"boot.py", "sortedlist.py"} <= {name.rpartition("/")[2] for name in names}
    kept.add(names, digests, seconds=SECONDS)
    job.events.clear()
    assert job.run(compiled=kept.checked()) == (0, "True\nRead-only file system\n")
    assert not imports(job) & set(digests)  # nothing is left to compile
    assert kept.checked()


def test_what_is_compiled_within_an_enclave_is_not_kept(world, bubblewrap, kept):
    """It could have written any code there: what is kept is made of the measured source, by who measures."""
    plant = "import os, sys\nbase = '/tmp/.pycache' + os.path.dirname(os.__file__)\n"
    plant += "open(base + '/colorsys.cpython-%d%d.pyc' % sys.version_info[:2], 'wb').write(b'planted')\n"
    job = world.job(plant)
    assert job.run(compiled=None)[0] == 0
    told = {name for name in imports(job) if name.endswith("/colorsys.py")}
    assert told
    digests = {entry.path: entry.sha256 for part in measure(job.config, job.files).platform for entry in part.entries}
    assert kept.add(told, digests, seconds=SECONDS) == 1
    assert b"planted" not in next(kept.checked().rglob("colorsys.*.pyc")).read_bytes()
