"""What is installed comes to the same parts on every machine, and what was changed since is told."""

import hashlib
import subprocess
import sys
import sysconfig
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from strongroom.enclave.digests import Digests
from strongroom.enclave.distributions import distributions, is_startup, oddities, owners
from strongroom.enclave.measure import Environment, measure, odd_files
from tests.enclave import small

SECOND = {
    "second/__init__.py": b"",
    "second-2.dist-info/METADATA": b"Metadata-Version: 2.1\nName: second\nVersion: 2\n",
    "second-2.dist-info/WHEEL": small.DEPENDENCY["dep-1.0.dist-info/WHEEL"],
    "second-2.dist-info/entry_points.txt": b"[console_scripts]\nsecond = second:main\n",
    "second-2.data/data/share/second/table.csv": b"1,2\n",
    "second-2.data/scripts/old-style": b"#!python\nprint(1)\n",
}


def made(directory, wheels, *options):
    """A virtual environment with these wheels, seen as the one that Strongroom runs in."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "-q", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", *options, *wheels], check=True)
    stdlib = small.write(directory / "stdlib" / "os.py", "").parent
    package = small.write(directory / "package" / "__init__.py", "").parent
    site = directory / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    return Environment(python, directory, Path(sys.base_prefix), stdlib, (), (site,), package)


def test_two_environments_of_the_same_wheels_are_the_same_parts(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    small.wheel(wheels, small.DEPENDENCY, "dep-1.0.dist-info")
    path = small.wheel(wheels, SECOND, "second-2.dist-info")
    one = made(tmp_path / "one", ["dep", "second"], "--find-links", wheels)
    # As another would: from files, in another order, without compiled code.
    two = made(tmp_path / "another" / "place", [path, wheels / "dep-1.0-py3-none-any.whl"], "--no-compile")
    assert (two.site_packages[0] / "second-2.dist-info/direct_url.json").exists()
    config = small.CONFIG
    first, second = (measure(config, {}, each, known=Digests()) for each in (one, two))
    assert {p.name: p.digest for p in first.parts} == {p.name: p.digest for p in second.parts}
    assert first.value == second.value
    parts = {part.name: {entry.name for entry in part.entries} for part in first.parts}
    assert "share/second/table.csv" in parts["second 2"]
    assert not any("bin/" in name or str(tmp_path) in name for names in parts.values() for name in names)
    assert odd_files(first, one) == odd_files(second, two) == []
    (two.prefix / "share/second/table.csv").write_text("1,3\n")
    assert [(odd.kind, odd.distribution) for odd in odd_files(second, two)] == [("changed", "second 2")]
    changed = {part.name: part.digest for part in measure(config, {}, two, known=Digests()).parts}
    assert {part.name for part in first.parts if changed[part.name] != part.digest} == {"second 2"}


@pytest.fixture
def site(tmp_path):
    small.install(tmp_path, small.DEPENDENCY, "dep-1.0.dist-info")
    return tmp_path


def present(site):
    return {str(p): hashlib.sha256(p.read_bytes()).digest() for p in site.rglob("*") if p.is_file()}


def add(site, text):
    with (site / "dep-1.0.dist-info/RECORD").open("a") as file:
        file.write(text)


def kinds(site):
    return [(odd.kind, Path(odd.path).name) for odd in oddities(distributions(site), present(site))]


def test_what_is_missing_or_has_no_digest_is_told(site):
    (site / "dep/inner/mod.py").unlink()
    small.write(site / "dep/bare.py")
    small.write(site / "dep/bare.pyc")
    add(site, "dep/bare.py,,\ndep/bare.pyc,,\ndep/__pycache__/bare.pyc,,\ndep/odd.py,md5=AAAA,1\n")
    small.write(site / "dep/odd.py")
    assert kinds(site) == [
        ("without a digest", "bare.py"),
        ("missing", "mod.py"),
        ("without a digest", "odd.py"),
    ] or kinds(site) == [("without a digest", "bare.py"), ("missing", "mod.py"), ("without a digest", "odd.py")]


def test_names_in_quotes_and_longer_digests(site):
    path = small.write(site / 'dep/a "b", c.py', "1\n")
    digest = urlsafe_b64encode(hashlib.sha512(b"1\n").digest()).rstrip(b"=").decode()
    add(site, f'"dep/a ""b"", c.py",sha512={digest},2\n')
    assert kinds(site) == []
    assert owners(distributions(site))[str(path)] == "dep 1.0"
    path.write_text("2\n")
    assert kinds(site) == [("changed", 'a "b", c.py')]


def test_a_file_of_two_distributions_is_as_either_has_it(site):
    files = {"dep/__init__.py": b"of another\n", "zoo-1.dist-info/METADATA": b"Name: zoo\nVersion: 1\n"}
    small.install(site, files, "zoo-1.dist-info")
    assert owners(distributions(site))[str(site / "dep/__init__.py")] == "dep 1.0"  # whatever the file system's order
    assert kinds(site) == []
    (site / "dep/__init__.py").write_text("of neither\n")
    assert kinds(site) == [("changed", "__init__.py")]


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", ",,\n", '"unclosed', "a", "a,sha256=!!!,1\n", "../../../../../etc/passwd,,\n", '"' + "a" * 200_000],
)
def test_a_record_that_makes_no_sense_is_no_error(site, text):
    (site / "dep-1.0.dist-info/RECORD").write_text(text)
    assert ("unlisted", "mod.py") in kinds(site)


def test_a_distribution_without_a_record_owns_nothing(site):
    (site / "dep-1.0.dist-info/RECORD").unlink()
    assert owners(distributions(site)) == {}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("x.pth", True),
        ("pkg/x.pth", False),
        ("pkg/x.pyc", True),
        ("sitecustomize.py", True),
        ("usercustomize/__init__.py", True),
        ("sitecustomize", True),
        ("pkg/sitecustomize.py", False),
        ("sitecustomize_not.py", False),
        ("x.py", False),
    ],
)
def test_what_runs_unasked(name, wanted):
    assert is_startup(name) is wanted
