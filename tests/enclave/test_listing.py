"""A measurement written down explains itself, and what became of it, in words that say what to do."""

import dataclasses
import hashlib
import json
import shutil
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.enclave.digests import Digests
from strongroom.enclave.listing import Listing, differences, explain
from strongroom.enclave.measure import measure
from strongroom.errors import FormatError, StrongroomError
from tests.enclave import small


@pytest.fixture
def here(tmp_path):
    return small.environment(tmp_path / "env")


@pytest.fixture
def job(tmp_path):
    return {"job.py": small.write(tmp_path / "job.py")}


def listing(here, job, config=small.CONFIG):
    return Listing.of(measure(config, job, here, known=Digests()), config)


def told(before, after):
    return "\n".join(line for each in differences(before, after) for line in explain(each, before, after))


def test_it_is_read_as_it_was_written(here, job):
    small.write(here.site_packages[0] / "dep" / "odd\udcff\u2028 name.py")
    written = listing(here, job)
    assert Listing.from_bytes(written.to_bytes()) == written
    assert differences(written, written) == []


def change(raw, how):
    value = json.loads(raw)
    how(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "how",
    [
        lambda v: v["parts"][0]["files"][0].__setitem__(1, "0" * 64),
        lambda v: v["parts"][0]["files"][0].__setitem__(0, "other"),
        lambda v: v["parts"][0]["files"].pop(),
        lambda v: v["parts"].reverse(),
        lambda v: v["parts"].pop(),
        lambda v: v["boot"].__setitem__("role", "service"),
        lambda v: v.__setitem__("measurement", "0" * 96),
        lambda v: v.__setitem__("measurement", 7),
        lambda v: v.__setitem__("listing", 2),
        lambda v: v.__setitem__("parts", 3),
        lambda v: v.__setitem__("boot", []),
        lambda v: v["parts"].append(v["parts"][0]),
        lambda v: v["parts"][0]["files"].append(["x", "é" * 64, 1]),
        lambda v: v["parts"][0]["files"].append(["\ud800", "0" * 64, 1]),
        lambda v: v["parts"][0].__setitem__("part", "\ud800"),
    ],
)
def test_one_that_was_changed_explains_nothing(here, job, how):
    with pytest.raises(FormatError, match="listing"):
        Listing.from_bytes(change(listing(here, job).to_bytes(), how))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"listing": 1}', b"1e999"])
def test_what_is_no_listing(raw):
    with pytest.raises(StrongroomError):
        Listing.from_bytes(raw)


@given(st.binary(max_size=300) | st.text(alphabet='[]{}":,019ax', max_size=80).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_with_an_error_of_the_tree(raw):
    with pytest.raises(StrongroomError):
        Listing.from_bytes(raw)


def test_the_measurement_by_its_specification(here, job):
    """A second implementation, from docs/spec/measurement.md alone."""

    def sha(*parts):
        return hashlib.sha384(b"".join(parts)).digest()

    def framed(text):
        return struct.pack("<I", len(text.encode())) + text.encode()

    label = b"strongroom/measured-part/v1\0"
    written = json.loads(listing(here, job).to_bytes())
    digests = {
        part["part"]: sha(label, *(framed(name) + bytes.fromhex(digest) for name, digest, _ in sorted(part["files"])))
        for part in written["parts"]
    }
    program = digests.pop("program")
    boot = sha(label, json.dumps(written["boot"], sort_keys=True, separators=(",", ":")).encode())
    mrtd, rtmr3 = sha(*(framed(name) + digest for name, digest in digests.items())), sha(sha(bytes(48), program), boot)
    value = sha(b"strongroom/measurement/v1", mrtd, bytes(3 * 48), rtmr3)
    assert list(digests) == ["interpreter", "strongroom", "start-up files", "dep 1.0", "system libraries"]
    assert value.hex() == written["measurement"] == measure(small.CONFIG, job, here, known=Digests()).value


def test_a_changed_program(here, job):
    before = listing(here, job)
    small.write(job["job.py"], "print('other')\n")
    words = told(before, listing(here, job))
    assert words.splitlines()[:2] == ["program: 1 changed", "  changed job.py"]
    assert "accept its new measurement" in words


def test_another_version_of_a_distribution(here, job, tmp_path):
    before = listing(here, job)
    site = here.site_packages[0]
    shutil.rmtree(site / "dep-1.0.dist-info")
    files = {name.replace("-1.0", "-1.1"): content for name, content in small.DEPENDENCY.items()}
    small.install(site, files, "dep-1.1.dist-info")
    words = told(before, listing(here, job))
    assert words.splitlines() == [
        "dep 1.0: became dep 1.1",
        "  -> install both environments from one lock file: pip install --require-hashes -r FILE",
    ]


def test_files_changed_added_and_removed_in_one_version(here, job):
    before = listing(here, job)
    site = here.site_packages[0]
    small.write(site / "dep/__init__.py", "VALUE = 2\n")
    (site / "dep/inner/mod.py").unlink()
    small.write(site / "planted.py")
    small.write(site / "planted.pth", "import planted\n")
    words = told(before, listing(here, job))
    for line in (
        "dep 1.0: 1 changed, 1 removed",
        "  changed lib/python3.11/site-packages/dep/__init__.py",
        "  removed lib/python3.11/site-packages/dep/inner/mod.py",
        "  -> its files are not as they were installed: pip install --force-reinstall --no-deps dep==1.0",
        "start-up files: 1 added",
        "  -> Python runs these at every start: read them, and remove what you did not put there",
        "files of no distribution: is new, 1 files",
    ):
        assert line in words.splitlines()


def test_what_is_gone_and_what_differs_in_the_configuration(here, job):
    before = listing(here, job)
    shutil.rmtree(here.site_packages[0])
    here.site_packages[0].mkdir()
    config = dataclasses.replace(small.CONFIG, command=("python", "job.py", "-v"), policy="test/other")
    words = told(before, listing(here, job, config)).splitlines()
    assert f"dep 1.0: is gone, {len(small.DEPENDENCY)} files" in words
    assert "boot configuration: differs in command, policy" in words
    assert '  command: ["python", "job.py"] became ["python", "job.py", "-v"]' in words


def test_a_part_of_its_own_for_each_thing_to_do(here, job):
    before = listing(here, job)
    small.write(here.stdlib / "os.py", "# other\n")
    small.write(here.package / "errors.py", "# other\n")
    found = differences(before, listing(here, job))
    assert [(each.before, each.changed) for each in found] == [
        ("interpreter", ("python3.11/os.py",)),
        ("strongroom", ("errors.py",)),
    ]
