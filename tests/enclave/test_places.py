"""Vaults within vaults, what is no vault within them, and vaults that are authenticated only, as programs find them."""

from __future__ import annotations

import errno
import json
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.run.verb import boot_config, check_launchable
from strongroom.cli.workspace import SealedVault, entrust
from strongroom.enclave import launch, mounts, sandbox
from strongroom.enclave.config import BootConfig, VaultMount
from strongroom.enclave.enforce import check_enforced
from strongroom.enclave.gramine import gramine_config
from strongroom.errors import EnclaveError, FormatError, PolicyError, TamperedError, UsageError
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from strongroom.vault.vault import Vault
from tests.enclave.conftest import Job, measured

POLICY = """
[policy]
name = "acme/{name}"
version = 1
owner = "{owner}"
role = "program"
[reference]
tees = ["simulated"]
measurements = ["{measurement}"]
allow_simulated = "{vendor}"
[program]
command = ["python", "job.py"]
files = ["job.py"]
"""


@pytest.fixture(params=["mounted", "unpacked"])
def delivery(request, monkeypatch, bubblewrap):
    """With FUSE and without."""
    if request.param == "unpacked":
        monkeypatch.setattr(sandbox, "fuse_available", lambda: False)
    elif not sandbox.fuse_available():
        pytest.skip("no FUSE here")
    return request.param


def sealed(world, name, *, encrypted=True, **files):
    made = replace(SealedVault.at(world.directory / f"{name}.vault"), encrypted=encrypted)
    with made.create() as opened:
        for path, content in files.items():
            opened.write_bytes(path.replace("__", "/"), content)
    return made


def job_of(world, name, tables, source, vaults, client):
    """A program under a policy with these tables, approved, and its vaults entrusted."""
    script = world.directory / "job.py"
    script.write_text(source)
    values = {"name": name, "owner": world.home.owner().public.fingerprint, "vendor": world.home.vendor().root_digest}
    draft = parse_policy(POLICY.format(**values, measurement="0" * 96) + tables)
    check_launchable(draft)
    config = boot_config(draft.name, world.cas, draft.program, draft.vaults, policy=draft)
    value = measured(config, {"job.py": script}).value
    policy = client.apply(POLICY.format(**values, measurement=value) + tables)
    entrust(client, policy, vaults)
    return Job(world, {"job.py": script}, config, policy, vaults)


def run(job, **options):
    """Exit status and standard output."""
    return job.run(**options)


def now(client, job, name) -> dict[str, bytes]:
    """What a vault holds by the CAS's anchor, without statements of lineage."""
    anchor, thing = client.anchor(job.policy.name, name), job.vaults[name]
    thing.anchor.advance(thing.anchor.read(), anchor.read())
    with thing.open() as opened:
        return {path: opened.read_bytes(path) for path in opened.files() if not path.endswith(".lineage.json")}


NESTED = """
[[vaults]]
name = "data"
mount = "/data"
access = "read-only"
[[vaults]]
name = "cache"
mount = "/data/cache"
access = "read-write"
[[vaults]]
name = "deep"
mount = "/data/a/b/deep"
access = "read-only"
[[vaults]]
name = "inner"
access = "read-write"
[[paths]]
path = "/data/cache/sub/inner"
rule = "encrypted"
vault = "inner"
[[paths]]
path = "/data/cache/scratch"
rule = "ephemeral"
[[paths]]
path = "/data/raw"
rule = "host"
"""
NESTED_PROGRAM = """
import json, os, pathlib
data = pathlib.Path("/data")
told = {
    "x": (data / "x").read_text(), "listed": sorted(os.listdir(data)), "above": sorted(os.listdir(data / "a")),
    "cache": sorted(os.listdir(data / "cache")), "deep": (data / "a/b/deep/d").read_text(),
    "inner": (data / "cache/sub/inner/i").read_text(), "raw": (data / "raw/r").read_text(),
    "scratch": os.listdir(data / "cache/scratch"), "ciphertext": os.listdir("/run/strongroom"),
}
refused = []
for path in ("new", "a/new", "a/b/deep/new"):
    try:
        (data / path).write_text("")
    except OSError as error:
        refused.append(error.strerror)
told["refused"] = refused
(data / "raw/w").write_text("to the host")
(data / "cache/scratch/gone").write_text("gone")
(data / "cache/sub/inner/i").write_text("inner again")
(data / "cache/made").write_text("made")
(data / "cache/old").unlink(missing_ok=True)
if (data / "raw/move").exists():
    os.rename(data / "cache/sub", data / "cache/moved")
    os.makedirs(data / "cache/sub/inner")
print(json.dumps(told))
"""


def test_vaults_and_what_is_none_lie_in_each_other_and_the_longest_path_holds(world, delivery):
    vaults = {
        "data": sealed(world, "data", x=b"x", cache__hidden=b"hidden", a__beside=b""),
        "cache": sealed(world, "cache", old=b"old", sub__inner__covered=b"covered"),
        "deep": sealed(world, "deep", d=b"d"),
        "inner": sealed(world, "inner", i=b"i"),
    }
    raw = world.directory / "raw"
    raw.mkdir()
    (raw / "r").write_text("r")
    with world.owner() as client:
        job = job_of(world, f"nested-{delivery}", NESTED, NESTED_PROGRAM, vaults, client)
        status, output = run(job, hosts={"/data/raw": raw})
        assert status == 0
        told = json.loads(output)
        assert (told["x"], told["deep"], told["inner"], told["raw"]) == ("x", "d", "i", "r")
        assert (told["listed"], told["above"]) == (["a", "cache", "raw", "x"], ["b", "beside"])
        assert (told["cache"], told["scratch"]) == (["old", "scratch", "sub"], [])
        assert (told["ciphertext"], len(told["refused"])) == ([], 3)
        assert (raw / "w").read_text() == "to the host"
        # Each vault has what was written to it, and keeps what was covered.
        assert now(client, job, "cache") == {"made": b"made", "sub/inner/covered": b"covered"}
        assert now(client, job, "inner") == {"i": b"inner again"}
        if delivery == "unpacked":
            before = [client.anchor(job.policy.name, name).read() for name in ("cache", "inner")]
            (raw / "move").touch()
            with pytest.raises(EnclaveError, match=r"/data/cache/sub/inner: .* the program has moved it"):
                run(job, hosts={"/data/raw": raw})
            assert [client.anchor(job.policy.name, name).read() for name in ("cache", "inner")] == before
    hows = {d["how"] for n, d in job.events if n == "vault" and d["vault"] == "deep"}
    assert hows == {{"mounted": "decrypted on access (FUSE)", "unpacked": "unpacked to private memory"}[delivery]}


KINDS = """
[[vaults]]
name = "set"
access = "read-only"
[[vaults]]
name = "results"
access = "read-write"
[[vaults]]
name = "private"
mount = "/private"
access = "read-write"
[[paths]]
path = "/set"
rule = "authenticated"
vault = "set"
[[paths]]
path = "/results"
rule = "authenticated"
vault = "results"
"""
COPY = """
content = open("/set/public", "rb").read()
for place in ("/results/copy", "/private/copy"):
    with open(place, "wb") as file:
        file.write(content * 3)
"""
PUBLIC = b"anybody may read this, and nobody may change it unseen; " * 50


def on_disk(thing) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(thing.path.iterdir()))


def test_what_a_policy_calls_authenticated_lies_in_clear_is_verified_and_nothing_else_is(world, bubblewrap):
    vaults = {
        "set": sealed(world, "set", encrypted=False, public=PUBLIC),
        "results": sealed(world, "results", encrypted=False),
        "private": sealed(world, "private"),
    }
    with world.owner() as client:
        job = job_of(world, "kinds", KINDS, COPY, vaults, client)
        assert run(job)[0] == 0
        assert now(client, job, "results") == now(client, job, "private") == {"copy": PUBLIC * 3}
        assert PUBLIC in on_disk(vaults["set"]) and PUBLIC * 3 in on_disk(vaults["results"])
        assert PUBLIC[:30] not in on_disk(vaults["private"])
        told = {d["vault"]: d["how"] for n, d in job.events if n == "vault"}
        assert {name for name, how in told.items() if how.endswith("; in clear on the host's disk")} == {
            "set",
            "results",
        }
        # The host cannot have it write in clear, not even to a vault that its owner made under the same key.
        other = replace(SealedVault(world.directory / "other", vaults["private"].key_path), encrypted=False)
        with other.create() as opened:
            opened.commit()
        with pytest.raises(FormatError, match="is authenticated only, wanted encrypted"):
            run(replace(job, vaults=vaults | {"private": other}))
        # Nor change a byte of what everybody can read.
        [place] = [path for path in vaults["set"].path.iterdir() if PUBLIC in path.read_bytes()]
        place.write_bytes(place.read_bytes().replace(b"nobody may change", b"somebody changed!"))
        with pytest.raises(TamperedError, match="authentication failed"):
            run(job)


class Silent:
    """Boot, and its witness, of whom this asks nothing else."""

    def event(self, name, **detail):
        raise AssertionError(f"{name}: told before every vault was committed")

    control = property(lambda self: self)
    layout = property(lambda self: {})


def test_where_there_are_no_overlays_a_mount_is_bound_to_its_place(monkeypatch, tmp_path):
    def refused(*places):
        raise OSError(errno.ENODEV, "No such device")

    bound = []
    monkeypatch.setattr(mounts, "_EMPTY", tmp_path / "empty")
    monkeypatch.setattr(mounts, "overlay", refused)
    monkeypatch.setattr(mounts, "bind", lambda *places: bound.append(places))
    mounts._show(tmp_path / "mounted", tmp_path / "place")
    assert bound == [(str(tmp_path / "mounted"), str(tmp_path / "place"))]


def test_results_of_which_one_finds_no_room_are_not_committed_at_all():
    disks = {"one": MemoryDirectory(), "two": FaultyDirectory()}
    with ExitStack() as stack:
        results = mounts._Results(Silent(), None, stack)
        opened = {
            name: stack.enter_context(Vault(disk, "x", bytes(32), NO_FRESHNESS, what=name))
            for name, disk in disks.items()
        }
        for name, vault in opened.items():
            vault.write_bytes("made", bytes(100_000))
            results.ready.append((name, vault, []))
        disks["two"].faults.full_from = disks["two"].writes + 1
        lost = "what the program left for it, 100,000 bytes, did not fit; no result of this run was sealed"
        with pytest.raises(EnclaveError, match=f"^vault two: no space left on device: {lost}"):
            results.commit()
        assert [vault.root for vault in opened.values()] == [None, None]
        stack.pop_all()


CONFIG = BootConfig(
    "m",
    "a/b",
    "sha256:" + "0" * 64,
    "program",
    ("python",),
    vaults=(VaultMount("data", "/data", "read-only"), VaultMount("inner", "/data/in", "read-write")),
    authenticated=("data",),
)
AUTHENTICATED = ("/data", "authenticated", "data")


def test_what_is_authenticated_is_what_the_policy_says():
    assert BootConfig.from_bytes(CONFIG.to_bytes()) == CONFIG
    check_enforced(CONFIG, [AUTHENTICATED, ("/data/in", "encrypted", "inner")], ())
    with pytest.raises(EnclaveError, match="vault data: is launched as authenticated only"):
        check_enforced(CONFIG, [("/data", "encrypted", "data")], ())
    with pytest.raises(EnclaveError, match="the policy says authenticated"):
        check_enforced(replace(CONFIG, authenticated=()), [AUTHENTICATED], ())


def test_where_vaults_cannot_lie_in_each_other(monkeypatch):
    with pytest.raises(UsageError, match="gramine: /data/in: vaults within others"):
        gramine_config(CONFIG)
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    with pytest.raises(UsageError, match="vault inner: cannot lie in /data without a mount namespace"):
        launch._check_isolation(
            replace(CONFIG, isolation="process", command=("{vault:data}",)), launch.Isolation.here()
        )


@pytest.mark.parametrize(
    ("tables", "wrong"),
    [
        ('[[vaults]]\nname = "a"\nmount = "/d"\naccess = "read-only"\n'
         '[[vaults]]\nname = "b"\nmount = "/d"\naccess = "read-only"\n', "appears twice"),
        ('[[vaults]]\nname = "a"\nmount = "/d"\naccess = "read-only"\n'
         '[[sealed]]\nname = "b"\npath = "/d/file"\naccess = "read-only"\n', "lies in '/d'"),
    ],
)  # fmt: skip
def test_what_lies_in_a_vault_is_a_vault_or_a_rule(tables, wrong):
    with pytest.raises(PolicyError, match=wrong):
        parse_policy(
            POLICY.format(name="a", owner=f"sha256:{'0' * 64}", vendor=f"sha256:{'0' * 64}", measurement="0" * 96)
            + tables
        )


def test_nothing_lies_in_a_directory_of_the_host_s():
    tables = '[[paths]]\npath = "/h"\nrule = "host"\n[[vaults]]\nname = "a"\nmount = "/h/in"\naccess = "read-only"\n'
    values = {"name": "a", "owner": f"sha256:{'0' * 64}", "vendor": f"sha256:{'0' * 64}", "measurement": "0" * 96}
    with pytest.raises(EnclaveError, match="/h/in lies in /h, where this launcher shows the host's"):
        check_launchable(parse_policy(POLICY.format(**values) + tables))


def test_nothing_is_put_where_a_link_of_a_vault_leads(tmp_path):
    vault = str(tmp_path / "vault")
    config = replace(CONFIG, vaults=(VaultMount("out", vault, "read-write"),), ephemeral=(f"{vault}/scratch",))
    (tmp_path / "vault/kept").mkdir(parents=True)
    (tmp_path / "vault/scratch").symlink_to("kept")
    booted = SimpleNamespace(config=config)
    for path in ("scratch", "scratch/deeper"):
        with pytest.raises(EnclaveError, match=rf"vault/{path}: leads through .*/vault/scratch, which is a link"):
            mounts._make(booted, tmp_path / "vault" / path)
    assert not list((tmp_path / "vault/kept").iterdir())
