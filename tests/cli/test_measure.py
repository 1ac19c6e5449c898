"""`strongroom measure` and `sbom` at the command line, and what a home remembers for them."""

import json
import os
import re
from pathlib import Path

import pytest

from strongroom.cas.client.address import CasAddress
from strongroom.cas.policy.version import Program
from strongroom.cli import remembered
from strongroom.cli.main import main
from strongroom.cli.run.verb import boot_config
from strongroom.cli.workspace import Home, write_policy
from strongroom.enclave.digests import Digests
from strongroom.enclave.listing import Listing
from strongroom.enclave.measure import Environment, measure
from tests.enclave import small

ROOT = "sha256:" + "0" * 64


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A small environment in place of this one, and a home."""
    made = small.environment(tmp_path / "env")
    monkeypatch.setattr(Environment, "current", classmethod(lambda cls: made))
    work = small.write(tmp_path / "work" / "job.py").parent
    monkeypatch.setenv("STRONGROOM_HOME", str(work / "home"))
    monkeypatch.chdir(work)
    return made


def run(capfd, *words, status=0):
    capfd.readouterr()
    assert main([*words]) == status
    return capfd.readouterr()


def arguments(*options):
    return ["measure", "--cas-root", ROOT, *options, "--", "python", "job.py"]


def test_start_up_files_and_what_differs_from_the_records_are_named(here, capfd):
    site = here.site_packages[0]
    small.write(site / "new.pth", "import os\n")
    small.write(site / "dep/__init__.py", "VALUE = 2\n")
    out = run(capfd, *arguments()).out
    assert re.search(r"run at every start of Python:\n  lib/python3.11/site-packages/new.pth  [0-9a-f]{16}", out)
    assert f"changed: {site}/dep/__init__.py (dep 1.0)" in out
    assert f"unlisted: {site}/new.pth" in out
    told = json.loads(run(capfd, *arguments("--json")).out)
    assert [each["file"] for each in told["startup"]] == ["lib/python3.11/site-packages/new.pth"]
    assert [each["what"] for each in told["not_as_recorded"]] == ["unlisted", "changed"]


def test_names_of_files_reach_no_terminal_as_they_are(here, capfd):
    small.write(here.site_packages[0] / "pl\x1b[31mred[bold].py")
    run(capfd, *arguments("--output", "before.json"))
    (here.site_packages[0] / "pl\x1b[31mred[bold].py").unlink()
    shown = run(capfd, *arguments("--diff", "before.json")).out
    small.write(here.site_packages[0] / "pl\x1b[31mred[bold].py")
    shown += run(capfd, *arguments()).out
    assert "\x1b" not in shown
    assert "red[bold].py" in shown


def test_a_difference_from_a_file(here, capfd):
    run(capfd, *arguments("--output", "before.json"))
    assert "nothing differs" in run(capfd, *arguments("--diff", "before.json")).out
    small.write(here.site_packages[0] / "dep/__init__.py", "VALUE = 2\n")
    out = run(capfd, *arguments("--diff", "before.json")).out
    assert "dep 1.0: 1 changed\n  changed lib/python3.11/site-packages/dep/__init__.py\n  -> " in out
    told = json.loads(run(capfd, *arguments("--json", "--diff", "before.json")).out)
    assert told["before"] == json.loads(Path("before.json").read_text())["measurement"] != told["after"]
    assert [each["after"] for each in told["differences"]] == ["dep 1.0"]
    Path("before.json").write_text("{}")
    assert "not one that" in run(capfd, *arguments("--diff", "before.json"), status=10).err


def test_the_last_accepted_measurement_is_what_a_policy_is_compared_with(here, capfd):
    program = Program(("python", "job.py"), ("job.py",))
    text = write_policy(
        name="test/diff", role="program", owner=ROOT, measurement="0" * 96, vendor_root=ROOT, program=program, vaults=()
    )
    Path("policy.toml").write_text(text)
    words = ["measure", "--cas-root", ROOT, "--policy", "policy.toml", "--diff"]
    assert "remembers no measurement of policy test/diff" in run(capfd, *words, status=2).err
    config = boot_config("test/diff", CasAddress("", ROOT), program, ())
    for content in ("print(1)\n", "print(2)\n"):  # the second takes the place of the first
        small.write(Path("job.py"), content)
        accepted = Listing.of(measure(config, {"job.py": Path("job.py")}, known=Digests()), config)
        remembered.remember_accepted(Home.open(), "test/diff", accepted)
    assert len(list(Path("home/measured").iterdir())) == 1
    got = run(capfd, *words)
    assert "nothing differs" in got.out
    assert "the policy does not name what is compared with" in got.err
    assert "the policy names another" in run(capfd, *words[:-1]).err
    small.write(Path("job.py"), "print(3)\n")
    Path("policy.toml").write_text(text.replace("0" * 96, accepted.measurement))
    got = run(capfd, *words)
    assert "program: 1 changed\n  changed job.py" in got.out
    assert "put the new value into the policy's `measurements`" in got.err
    (kept,) = Path("home/measured").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(kept.read_bytes()[:-9])
    assert "listing" in run(capfd, *words, status=10).err


def test_what_was_written_is_compared_with_until_something_was_accepted(here, capfd):
    """A first run that is refused can be explained."""
    program = Program(("python", "job.py"), ("job.py",))
    name = "test/written"
    text = write_policy(
        name=name, role="program", owner=ROOT, measurement="0" * 96, vendor_root=ROOT, program=program, vaults=()
    )
    Path("policy.toml").write_text(text)
    words = ["measure", "--cas-root", ROOT, "--policy", "policy.toml"]
    run(capfd, *words, "--write")
    small.write(Path("job.py"), "print(1)\n")
    assert "program: 1 changed\n  changed job.py" in run(capfd, *words, "--diff").out
    Path("policy.toml").write_text(text)
    assert "changed job.py" in run(capfd, *words, "--write", "--diff").out
    assert "changed" not in run(capfd, *words, "--diff").out  # the policy names this one by now
    config = boot_config(name, CasAddress("", ROOT), program, ())
    accepted = Listing.of(measure(config, {"job.py": Path("job.py")}, known=Digests()), config)
    remembered.remember_accepted(Home.open(), name, accepted)
    small.write(Path("job.py"), "print(2)\n")
    Path("policy.toml").write_text(text)
    run(capfd, *words, "--write")
    assert remembered.last_accepted(Home.open(), name).measurement == accepted.measurement


def test_no_more_than_twenty_are_kept(here):
    config = boot_config("test/many", CasAddress("", ROOT), Program(("python",), ()), ())
    listing = Listing.of(measure(config, {}, known=Digests()), config)
    for number in range(22):
        remembered.remember_accepted(Home.open(), f"test/p{number}", listing)
        (path,) = Path("home/measured").glob(f"{remembered._word(f'test/p{number}')}-*")
        os.utime(path, (number, number))
    assert len(list(Path("home/measured").iterdir())) == 20
    assert remembered.last_accepted(Home.open(), "test/p21") == listing


@pytest.fixture
def known(monkeypatch):
    """A process that knows no digest yet, and takes no file for young."""

    def start():
        fresh = Digests(clock=lambda: 1 << 62)
        monkeypatch.setattr(remembered, "KNOWN", fresh)
        return fresh

    start()
    return start


def test_a_home_remembers_digests_and_drops_a_cache_that_was_forged(here, known, capfd):
    home, read = Home.open(), [str(path) for path in sorted(here.prefix.rglob("*.py"))]
    with remembered.known_digests(home):
        before = remembered.KNOWN.of(read)
    cache = home.path / "digest-cache"
    assert (cache.stat().st_mode | (home.path / "digest-cache.key").stat().st_mode) & 0o777 == 0o600
    again = known()
    remembered.load_digests(home)
    assert again.of(read) == before
    assert not again.grown
    raw = bytearray(cache.read_bytes())
    raw[100] ^= 1
    cache.write_bytes(raw)
    again = known()
    with remembered.known_digests(home):
        assert again.of(read) == before
    assert "digest cache: damaged, forged or of another home; dropped" in capfd.readouterr().err
    known()
    remembered.load_digests(home)  # it was written anew
    assert capfd.readouterr().err == ""


def test_a_home_that_cannot_be_written_is_measured_in_all_the_same(here, known, capfd):
    Path("home/digest-cache.key").mkdir(parents=True)
    assert "measurement" in run(capfd, *arguments()).out


def test_a_bill_of_materials(here, capfd):
    words = ["sbom", "--cas-root", ROOT]
    assert "nothing to do" in run(capfd, *words, "--", "python", "job.py", status=2).err
    run(capfd, *words, "--output", "sbom.json", "--", "python", "job.py")
    assert json.loads(Path("sbom.json").read_text())["specVersion"] == "1.6"
    assert json.loads(run(capfd, *words, "--json", "--", "python", "job.py").out)["trusted"]
    out = run(capfd, *words, "--summary", "--", "python", "job.py").out
    assert re.search(r"Plinius.* 15,900\b", out)
    assert re.search(r"TensorFlow.* 2,500,000\b", out)
    told = json.loads(run(capfd, *words, "--summary", "--json", "--", "python", "job.py").out)
    assert {"Strongroom", "what Strongroom needs", "the program"} <= {each["what"] for each in told["trusted"]}


def test_a_home_that_others_may_write_is_not_believed(here, known, capfd, monkeypatch):
    """Under `sudo -E`, say: what lies there is run by boot, with the rights of who launches."""
    home, read = Home.open(), [str(path) for path in sorted(here.prefix.rglob("*.py"))]
    with remembered.known_digests(home):
        before = remembered.KNOWN.of(read)
    compiled = remembered._compiled(home)
    assert compiled.add(read, {name: each.sha256 for name, each in zip(read, before, strict=True)}, seconds=60.0)
    assert remembered.compiled_code(home)

    def refused():
        again = known()
        remembered.load_digests(home)
        assert "others may write there: no digests or compiled code" in " ".join(capfd.readouterr().err.split())
        assert not again.grown and not again._known
        assert remembered.compiled_code(home) is None

    home.path.chmod(0o777)
    refused()
    home.path.chmod(0o700)
    owner = home.path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # root's home is believed by everybody, as root's files are
        assert remembered.compiled_code(home)
        os.chown(home.path, 1234, 1234)
    refused()
    run(capfd, *arguments())
