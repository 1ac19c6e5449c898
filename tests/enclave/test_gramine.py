"""Enclaves under Gramine: the manifest against Gramine's documentation, and boot against pseudo-files like Gramine's.

Nothing here has SGX, and nothing here is Gramine.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.cas.policy.version import Program, VaultRule
from strongroom.cli.gramine import sizes_of
from strongroom.cli.main import main
from strongroom.cli.run.verb import boot_config
from strongroom.cli.workspace import SealedVault, apply_development_policy, entrust
from strongroom.enclave import boot, gramine_boot
from strongroom.enclave.config import BootConfig, FileMount, VaultMount
from strongroom.enclave.gramine import (
    gramine_config,
    manifest,
    render,
    trusted_files,
    write,
)
from strongroom.enclave.gramine_sizes import GIB, Sizes, parse_size, size
from strongroom.enclave.measure import Entry, Environment, Measurement, Part, measure, registers_of
from strongroom.errors import EnclaveError, MeasurementError, UsageError
from strongroom.testing.attesters import FakeGramine, FakeMachine
from tests.enclave.conftest import World

CAS_ROOT = "sha256:" + "5" * 64

# Gramine's documentation, "Manifest syntax", 1.9: what may follow, and of what type. A name in <> is anybody's.
_SIZE = "size"
DOCUMENTED: dict[str, Any] = {
    "loader.entrypoint.uri": str,
    "loader.entrypoint.sha256": str,
    "loader.log_level": ("none", "error", "warning", "debug", "trace", "all"),
    "loader.log_file": str,
    "loader.argv": [str],
    "loader.argv_src_file": str,
    "loader.env.<name>": str,
    "loader.env.<name>.value": str,
    "loader.env.<name>.passthrough": (True,),
    "loader.env_src_file": str,
    "loader.uid": int,
    "loader.gid": int,
    "libos.entrypoint": str,
    "libos.check_invalid_pointers": bool,
    "sys.stack.size": _SIZE,
    "sys.brk.max_size": _SIZE,
    "sys.enable_sigterm_injection": bool,
    "sys.experimental__enable_flock": bool,
    "sys.disallow_subprocesses": bool,
    "sys.enable_extra_runtime_domain_names_conf": bool,
    "fs.root.type": ("chroot", "encrypted", "tmpfs"),
    "fs.root.uri": str,
    "fs.start_dir": str,
    "sgx.debug": bool,
    "sgx.edmm_enable": bool,
    "sgx.enclave_size": _SIZE,
    "sgx.max_threads": int,
    "sgx.use_exinfo": bool,
    "sgx.isvprodid": int,
    "sgx.isvsvn": int,
    "sgx.remote_attestation": ("none", "dcap"),
    "sgx.file_check_policy": ("strict", "allow_all_but_log"),
    "sgx.preheat_enclave": bool,
    "sgx.allowed_files": [str],
}
MOUNT = {"type": ("chroot", "encrypted", "tmpfs"), "path": str, "uri": str, "key_name": str}
NEEDED = {"chroot": {"path", "uri"}, "encrypted": {"type", "path", "uri"}, "tmpfs": {"type", "path"}}


def check(name: str, value: object, wanted: Any) -> None:
    if wanted is _SIZE:
        assert isinstance(value, str) and parse_size(value), name
    elif isinstance(wanted, tuple):
        assert value in wanted, name
    elif isinstance(wanted, list):
        assert isinstance(value, list) and all(type(each) is wanted[0] for each in value), name
    else:
        assert type(value) is wanted, name


def keys(table: dict[str, Any], *path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        known = ("<name>",) if path == ("loader", "env") else (key,)
        at = (*path, *known)
        found += keys(value, *at) if isinstance(value, dict) else [(".".join(at), value)]
    return found


def check_documented(table: dict[str, Any]) -> None:
    """Raises AssertionError unless Gramine documents every key, with such a value."""
    for name, value in keys(table):
        if name == "fs.mounts":
            for mount in value:
                kind = mount.get("type", "chroot")
                assert NEEDED[kind] <= set(mount) <= set(MOUNT) and ("key_name" not in mount or kind == "encrypted")
                assert mount["path"].startswith("/")
                for key, each in mount.items():
                    check(f"fs.mounts.{key}", each, MOUNT[key])
        elif name == "sgx.trusted_files":
            for each in value:
                uri = each if isinstance(each, str) else each["uri"]
                assert uri.startswith("file:") and (isinstance(each, str) or set(each) == {"uri", "sha256"})
                assert isinstance(each, str) or len(bytes.fromhex(each["sha256"])) == 32
        else:
            assert name in DOCUMENTED, name
            check(name, value, DOCUMENTED[name])
    assert not any("insecure__" in name for name, _ in keys(table))


@dataclass(frozen=True)
class Made:
    table: dict[str, Any]
    measured: Measurement
    environment: Environment
    directory: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What the command makes of a policy, read back from the manifest."""
    directory = tmp_path_factory.mktemp("policy")
    (directory / "train.py").write_text("print('trained')\n")
    policy = directory / "policy.toml"
    policy.write_text(
        f"""
[policy]
name = "lab/train"
version = 1
owner = "{CAS_ROOT}"
role = "program"
[reference]
tees = ["sgx"]
[program]
command = ["python", "train.py", "--rate", "0.1"]
files = ["train.py"]
environment = {{ MODE = "fast" }}
[[vaults]]
name = "data"
mount = "/data"
access = "read-only"
[[vaults]]
name = "out"
mount = "/out"
access = "read-write"
[[paths]]
path = "/scratch"
rule = "ephemeral"
"""
    )
    output = directory / "enclave"
    # All of an environment takes seconds to read, and is tens of thousands of lines.
    small = replace(Environment.current(), site_packages=())
    patch = pytest.MonkeyPatch()
    patch.setattr(Environment, "current", lambda: small)
    options = ["--cas-root", CAS_ROOT, "--gramine", "/opt/gramine", "--enclave-size", "4G", "--threads", "32"]
    assert main(["gramine", str(policy), "--output", str(output), *options]) == 0
    patch.undo()
    table = tomllib.loads((output / "strongroom.manifest").read_text())
    config = BootConfig.from_bytes((output / "boot.json").read_bytes())
    return Made(table, measure(config, {"train.py": directory / "train.py"}, small), small, output)


def test_every_key_is_one_that_gramine_documents(made: Made) -> None:
    check_documented(made.table)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loader": {"insecure__use_cmdline_argv": True}},
        {"sgx": {"thread_num": 4}},
        {"sgx": {"enclave_size": 4}},
        {"fs": {"mounts": [{"type": "encrypted", "path": "/data"}]}},
        {"sgx": {"trusted_files": [{"uri": "file:/a", "sha256": "00"}]}},
    ],
)
def test_the_table_of_documented_keys_refuses_others(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_documented(wrong)


def test_nothing_of_the_host_s_is_believed(made: Made) -> None:
    sgx, loader = made.table["sgx"], made.table["loader"]
    assert (sgx["debug"], sgx["remote_attestation"], sgx["file_check_policy"]) == (False, "dcap", "strict")
    assert loader["argv"][-2:] == ["-m", "strongroom.enclave.gramine_boot"] and loader["argv"][1] == "-I"
    passed = [name for name, value in loader["env"].items() if isinstance(value, dict)]
    assert passed == ["STRONGROOM_CAS"]
    # Only ciphertext, which Strongroom authenticates itself.
    assert sgx["allowed_files"] == ["file:vaults/data/", "file:vaults/out/"]


def test_trusted_are_the_measured_files_and_what_is_named_here(made: Made) -> None:
    trusted = {e["uri"]: e["sha256"] for e in made.table["sgx"]["trusted_files"] if isinstance(e, dict)}
    measured = {
        f"file:program/{e.name}" if part.name == "program" else f"file:{e.path}": e.sha256.hex()
        for part in made.measured.parts
        for e in part.entries
        if Path(e.path).is_file()
    }
    assert measured.items() <= trusted.items()
    here = made.environment
    extra = (
        set(trusted) - set(measured) - {"file:boot.json", f"file:{here.executable}", f"file:{here.prefix}/pyvenv.cfg"}
    )
    # Other names of the same file, and of nothing else.
    resolved = {
        f"file:{path.removeprefix('file:')}": f"file:{Path(path.removeprefix('file:')).resolve()}" for path in extra
    }
    assert all(measured[resolved[uri]] == trusted[uri] for uri in extra)
    assert "file:/opt/gramine/libsysdb.so" in made.table["sgx"]["trusted_files"]
    # The boot configuration is under the manifest's digest, and so under MRENCLAVE.
    assert trusted["file:boot.json"] == hashlib.sha256((made.directory / "boot.json").read_bytes()).hexdigest()
    assert (made.directory / "program" / "train.py").read_text() == "print('trained')\n"


def test_every_trusted_file_lies_under_a_mount(made: Made) -> None:
    mounts = made.table["fs"]["mounts"]
    uris = tuple(mount["uri"] for mount in mounts if mount.get("type", "chroot") == "chroot")
    below = tuple(f"{uri}/" for uri in uris)
    files = [each["uri"] for each in made.table["sgx"]["trusted_files"] if isinstance(each, dict)]
    assert [uri for uri in files if uri not in uris and not uri.startswith(below)] == []


def test_data_appears_in_mounts_that_gramine_encrypts(made: Made) -> None:
    mounts = {mount["path"]: mount for mount in made.table["fs"]["mounts"]}
    assert mounts["/data"] == {"type": "encrypted", "path": "/data", "uri": "file:work/data", "key_name": "vault-data"}
    assert mounts["/out"]["key_name"] == "vault-out"
    assert mounts["/run/strongroom/vaults/data"]["uri"] == "file:vaults/data"
    assert mounts["/scratch"]["type"] == mounts["/tmp"]["type"] == "tmpfs"
    assert {path.name for path in (made.directory / "work").iterdir()} == {"data", "out"}
    # The program's variables are boot's to set: some are secrets.
    assert "MODE" not in made.table["loader"]["env"]


def test_a_changed_program_is_another_manifest(made: Made) -> None:
    config = BootConfig.from_bytes((made.directory / "boot.json").read_bytes())
    parts = [
        replace(part, entries=tuple(entry._replace(sha256=b"c" * 32) for entry in part.entries))
        if part.name == "program"
        else part
        for part in made.measured.parts
    ]
    changed = replace(made.measured, parts=tuple(parts))
    sizes = Sizes(4 * GIB, 32)
    before, after = (
        manifest(config, measured, made.environment, Path("/opt/gramine"), sizes)
        for measured in (made.measured, changed)
    )
    assert render(before) == (made.directory / "strongroom.manifest").read_text()
    assert before != after


def test_sizes_are_this_machine_s_unless_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(enclave_size=None, threads=None, stack=None, no_edmm=False)
    here = sizes_of(options)
    assert here == Sizes.of_machine(Path("/proc/meminfo").read_text(), os.cpu_count() or 1)
    given = sizes_of(argparse.Namespace(enclave_size="4G", threads=12, stack="16M", no_edmm=True))
    assert given == Sizes(4 * GIB, 12, 16 << 20, edmm=False)
    (tmp_path / "policy.toml").write_text(
        f'[policy]\nname = "lab/x"\nversion = 1\nowner = "{CAS_ROOT}"\nrole = "program"\n[reference]\ntees = ["sgx"]\n'
        '[program]\ncommand = ["bash"]\nfiles = []\n'
    )
    words = ["gramine", str(tmp_path / "policy.toml"), "--output", str(tmp_path / "out"), "--cas-root", CAS_ROOT]
    assert main(words) == 2
    assert "command bash, wanted python" in capsys.readouterr().err
    with (tmp_path / "policy.toml").open("r+") as file:
        text = file.read().replace("bash", "python")
        file.seek(0)
        file.write(text + '[[egress]]\nhost = "files.example.com"\nport = 443\nca = "system"\n')
    assert main(words) == 2
    assert "gramine: egress is not supported there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_fit_the_machine() -> None:
    told = "MemTotal:       16384000 kB\nMemFree: 5 kB\n"
    assert Sizes.of_machine(told, 8) == Sizes(8 * GIB, 40)
    assert Sizes.of_machine(told, 8, edmm=False) == Sizes(2 * GIB, 40, edmm=False)
    assert Sizes.of_machine(None, 1).enclave == 2 * GIB
    assert Sizes.of_machine("MemTotal: 1000 kB\n", 1).enclave == GIB
    assert [size(parse_size(text)) for text in ("8M", "1536K", "4G", "1024M")] == ["8M", "1536K", "4G", "1G"]


@pytest.mark.parametrize("options", [(3 * GIB, 8), (1 << 20, 8), (GIB, 3), (GIB, 8, 1000)])
def test_sizes_that_gramine_would_refuse(options: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        Sizes(*options)


@pytest.mark.parametrize("text", ["", "8", "8 M", "0M", "-1G", "8m", "8GB", "9" * 20 + "G"])
def test_sizes_are_written_as_gramine_writes_them(text: str) -> None:
    with pytest.raises(UsageError, match="wanted a number and K, M or G"):
        parse_size(text)


@pytest.mark.parametrize("text", ['a"b', "back\\slash", "tab\t", "\x7f", "line\nline", "é ∞", "'", "#", "{{ jinja }}"])
def test_any_text_comes_back(text: str) -> None:
    table = {"loader": {"argv": [text], "env": {"NAME.WITH.DOTS": text}}}
    assert tomllib.loads(render(table)) == table


def test_a_file_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="is not Unicode text"):
        render({"a": ["\udcff"]})


BASE = BootConfig("x", "lab/train", CAS_ROOT, "program", ("python", "train.py"))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (replace(BASE, role="service"), "got the role service"),
        (replace(BASE, command=("bash", "-c", "ls")), "command bash, wanted python"),
        (replace(BASE, files=(FileMount("/a", "", 0o600),)), "sealed and given files"),
        (replace(BASE, vaults=(VaultMount("m", "", "mirror"),)), "access mirror"),
    ],
)
def test_what_this_road_does_not_do_is_refused(config: BootConfig, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        gramine_config(config)


def test_links_to_directories_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "python").write_bytes(b"elf")
    parts = (
        Part(
            "interpreter",
            2,
            0,
            b"",
            (Entry("python", f"{tmp_path}/python", b"p" * 32, 3), Entry("d", str(tmp_path), b"d" * 32, 0)),
        ),
    )
    here = replace(Environment.current(), executable=tmp_path / "python", prefix=tmp_path)
    assert {e["uri"] for e in trusted_files(BASE, Measurement(parts, {}), here)} == {
        f"file:{tmp_path}/python",
        "file:boot.json",
    }


def test_gramine_s_own_library_is_pinned_where_it_is_installed(made: Made, tmp_path: Path) -> None:
    config = BootConfig.from_bytes((made.directory / "boot.json").read_bytes())
    (tmp_path / "libsysdb.so").write_bytes(b"libos")
    table = manifest(config, made.measured, made.environment, tmp_path, Sizes(4 * GIB, 32))
    assert table["loader"]["entrypoint"]["sha256"] == hashlib.sha256(b"libos").hexdigest()
    check_documented(table)


def test_a_directory_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="is not empty"):
        write(tmp_path, {}, BASE, {})


# Boot: all of it but the processor. The evidence is simulated; keys go to pseudo-files that answer as Gramine's do.


@dataclass(frozen=True)
class _Hardware:
    vendor: SimulatedVendor
    measured: Measurement
    tee: str = "simulated"

    def evidence(self, report_data: bytes) -> Evidence:
        return self.vendor.quote(self.measured.registers, report_data, debug=False)


def measurement(config: BootConfig, script: Path) -> Measurement:
    """Of the program and its configuration alone: the rest of this machine is the same for all."""
    return Measurement((), registers_of([], hashlib.sha384(script.read_bytes()).digest(), config.to_bytes()))


@dataclass
class Enclave:
    world: World
    config: BootConfig
    measured: Measurement
    vaults: dict[str, SealedVault]
    gramine: FakeGramine

    def run(self, **options: Any) -> int:
        host, port = split_address(self.world.cas.url)
        given = {"attester": _Hardware(self.world.home.vendor(), self.measured), "system": FakeMachine(self.gramine)}
        return gramine_boot.run(self.config, lambda: dial_cas(host, port), **(given | options))


@pytest.fixture
def enclave(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a program: its directory is the working one, its vaults lie where the manifest would mount them."""
    monkeypatch.chdir(tmp_path)
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr(boot, "VAULTS_DIRECTORY", str(places))

    def make(source: str, *, link: bool = False, **environment: str) -> Enclave:
        script = tmp_path / "job.py"
        script.write_text(source)
        rules = (VaultRule("data", "/data", "read-only"), VaultRule("out", "/out", "read-write"))
        vaults = {"data": world.seal("data", numbers=b"1 2 3"), "out": world.seal("out", old=b"old")}
        if link:
            with vaults["out"].open("r+") as opened:
                opened.symlink("old", "link")
                opened.commit()
        for name, sealed in vaults.items():
            (places / name).symlink_to(sealed.path)
        program = Program(("python", "job.py", "{vault:data}"), ("job.py",), environment)
        name = f"dev/{hashlib.sha256(f'{tmp_path}{source}'.encode()).hexdigest()[:16]}"
        config = gramine_config(boot_config(name, world.cas, program, rules))
        # This process's root is not the enclave's.
        mounts = tuple(replace(vault, mount=f"{tmp_path}{vault.mount}") for vault in config.vaults)
        config = replace(config, vaults=mounts)
        measured = measurement(config, script)
        with world.owner() as client:
            policy = apply_development_policy(
                client,
                name=name,
                role="program",
                owner=world.home.owner().public.fingerprint,
                measurement=measured.value,
                vendor_root=world.home.vendor().root_digest,
                program=program,
                vaults=rules,
            )
            entrust(client, policy, vaults)
        gramine = FakeGramine(lambda _: b"", keys=("vault-data", "vault-out"))
        return Enclave(world, config, measured, vaults, gramine)

    return make


SUM = """
import json, os, sys
from pathlib import Path
total = sum(map(int, Path(sys.argv[1], "numbers").read_text().split()))
out = Path(sys.argv[1]).with_name("out")
(out / "total").write_text(str(total))
(out / "old").unlink()
(out / "seen").write_text(json.dumps(dict(os.environ)))
"""


def test_boot_receives_keys_and_seals_what_was_written(enclave: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_THE_HOST", "x")
    job = enclave(SUM, MODE="fast")
    assert job.run() == 0
    with job.vaults["out"].open() as opened:
        contents = {path: opened.read_bytes(path) for path in opened.files() if not path.endswith(".lineage.json")}
    assert contents.pop("total") == b"6"
    seen = json.loads(contents.pop("seen"))
    assert seen["MODE"] == "fast" and "LD_PRELOAD_OF_THE_HOST" not in seen
    assert not contents
    # Nothing is left in clear, and each mount had a key of its own.
    assert not (Path.cwd() / "data").exists() and not (Path.cwd() / "out").exists()
    first = dict(job.gramine.keys)
    assert len(set(first.values())) == 2 and all(len(key) == 16 for key in first.values())


def test_each_run_has_keys_of_its_own(enclave: Any) -> None:
    job = enclave("import sys; sys.exit(3)")
    seen = []
    for _ in range(2):
        assert job.run() == 3
        seen.append(dict(job.gramine.keys))
    assert not set(seen[0].values()) & set(seen[1].values())


def test_another_program_receives_nothing(enclave: Any, tmp_path: Path) -> None:
    job = enclave("print(1)")
    (tmp_path / "job.py").write_text("print('mine')")
    job.measured = measurement(job.config, tmp_path / "job.py")
    with pytest.raises(MeasurementError):
        job.run()
    assert job.gramine.keys == {"vault-data": b"", "vault-out": b""}
    assert not (tmp_path / "data").exists()


def test_what_a_killed_run_left_is_not_taken_for_data(enclave: Any, tmp_path: Path) -> None:
    job = enclave("print(1)")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers").write_text("9 9 9")
    with pytest.raises(EnclaveError, match="is not empty") as caught:
        job.run()
    assert "empty work/data" in str(caught.value.hint)


def test_links_that_gramine_does_not_have_are_said(enclave: Any, tmp_path: Path) -> None:
    job = enclave("print(1)", link=True)
    with pytest.raises(EnclaveError, match="link: is a link, of which Gramine has none"):
        job.run()
    assert not (tmp_path / "data").exists() and not (tmp_path / "out").exists()


def test_a_key_that_gramine_does_not_take_ends_the_boot(enclave: Any, tmp_path: Path) -> None:
    job = enclave("print(1)")
    job.gramine.fail("keys/vault-data", errno.EACCES)
    with pytest.raises(EnclaveError, match="setting key vault-data failed"):
        job.run()
    assert not (tmp_path / "data").exists()


def test_only_a_configuration_for_gramine_boots(enclave: Any) -> None:
    job = enclave("print(1)")
    job.config = replace(job.config, entry="strongroom.enclave.program")
    with pytest.raises(EnclaveError, match="not one for Gramine"):
        job.run()


def test_outside_of_gramine_the_entry_says_so(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "boot.json").write_bytes(gramine_config(BASE).to_bytes())
    monkeypatch.setattr(gramine_boot, "BOOT_FILE", str(tmp_path / "boot.json"))
    assert gramine_boot.main() == 2
    monkeypatch.setenv("STRONGROOM_CAS", "https://127.0.0.1:9")
    assert gramine_boot.main() == 61
    assert "not in an SGX enclave" in capfd.readouterr().err
