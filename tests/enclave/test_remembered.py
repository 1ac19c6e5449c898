"""A platform that was measured is remembered by its files, all of them, and by nothing less."""

import os

import pytest

from strongroom.enclave import measure as measuring
from strongroom.enclave.digests import Digests
from strongroom.enclave.measure import measure
from strongroom.errors import EnclaveError
from tests.enclave import small

KEY, BOOT = b"k" * 32, b"b" * 16
SITE = "lib/python3.11/site-packages"


@pytest.fixture
def here(tmp_path):
    return small.environment(tmp_path / "env")


@pytest.fixture
def job(tmp_path):
    return {"job.py": small.write(tmp_path / "job.py")}


@pytest.fixture
def known(here, job):
    """What knows this platform, as the next process has it from its home."""
    first = Digests(clock=lambda: 1 << 62)  # nothing is young
    measure(small.CONFIG, job, here, known=first)
    again = Digests(clock=lambda: 1 << 62)
    again.load(first.to_bytes(KEY, BOOT), KEY, BOOT)
    return again


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails whoever measures the platform anew."""

    def refuse(*words):
        raise AssertionError("measured anew")

    return lambda: monkeypatch.setattr(measuring, "_measured", refuse)


def test_it_is_the_same_and_is_not_measured_anew(here, job, known, unmeasured):
    fresh = measure(small.CONFIG, job, here, known=Digests())
    unmeasured()
    again = measure(small.CONFIG, job, here, known=known)
    assert again.value == fresh.value
    assert again.parts == fresh.parts
    assert not known.grown


def test_its_files_are_read_when_they_are_asked_for(here, job, known):
    fresh = measure(small.CONFIG, job, here, known=Digests())
    again = measure(small.CONFIG, job, here, known=known)
    for one, other in zip(fresh.parts, again.parts, strict=True):
        assert (len(other.entries), [*other.entries]) == (one.files, [*one.entries])


def test_its_files_are_no_others_by_then(here, job, known):
    again = measure(small.CONFIG, job, here, known=known)
    (here.site_packages[0] / "dep/inner/mod.py").write_text("changed = True\n")
    with pytest.raises(EnclaveError, match=r"dep 1\.0: changed since it was measured"):
        [*next(part for part in again.parts if part.name == "dep 1.0").entries]


def same_size(here):
    path = here.site_packages[0] / "dep/inner/mod.py"
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def new_file(here):
    (here.site_packages[0] / "planted.pth").write_text("import os\n")


def removed_file(here):
    (here.site_packages[0] / "dep/inner/mod.py").unlink()


def renamed_file(here):
    path = here.site_packages[0] / "dep/inner/mod.py"
    path.rename(path.with_name("other.py"))


def swapped_interpreter(here):
    here.executable.resolve().write_text("another")


def another_owner(here):
    record = here.site_packages[0] / "dep-1.0.dist-info/RECORD"
    record.write_text("".join(line for line in record.read_text().splitlines(True) if "mod.py" not in line))


@pytest.mark.parametrize(
    "change", [same_size, new_file, removed_file, renamed_file, swapped_interpreter, another_owner]
)
def test_what_changes_is_measured(here, job, known, change):
    before = measure(small.CONFIG, job, here, known=known).value
    change(here)
    assert measure(small.CONFIG, job, here, known=known).value != before


def test_young_files_are_not_enough(here, job, unmeasured):
    known = Digests()
    measure(small.CONFIG, job, here, known=known)
    unmeasured()
    with pytest.raises(AssertionError, match="measured anew"):
        measure(small.CONFIG, job, here, known=known)


def test_pth_files_are_looked_into_each_time(here, job, tmp_path):
    """What they lead to may come to be without their changing."""
    place = here.prefix / "later"
    (here.site_packages[0] / "more.pth").write_text(f"{place}\n")
    known = Digests(clock=lambda: 1 << 62)
    measure(small.CONFIG, job, here, known=known)
    place.mkdir()
    with pytest.raises(EnclaveError, match="later"):
        measure(small.CONFIG, job, here, known=known)
