"""From a run to a statement beside each output."""

from types import SimpleNamespace

import pytest

from strongroom import vault
from strongroom.crypto import content_digest
from strongroom.enclave import sandbox, witness
from strongroom.enclave.config import BootConfig, VaultMount
from strongroom.errors import BindingError, FormatError, TamperedError, UsageError
from strongroom.lineage.tree import vault_tree
from strongroom.lineage.verify import verify_lineage
from strongroom.sealed import NO_FRESHNESS
from tests.enclave.conftest import DATA, OUT, World

TRAIN = """
import pathlib, sys
data, out = map(pathlib.Path, sys.argv[1:3])
(out / "model").write_bytes(data.joinpath("numbers").read_bytes() * 2)
(out / "deep").mkdir(exist_ok=True)
(out / "deep" / "report").write_text("the same each time")
"""
PATHS = ("{vault:data}", "{vault:out}")


def contents(job, name="out"):
    """What is in a vault now, by path."""
    sealed = job.vaults[name]
    with job.world.owner() as client:
        root = client.anchor(job.policy.name, name).read()
    if root is not None and root.comes_after(sealed.anchor.read()):
        sealed.anchor.advance(sealed.anchor.read(), root)
    with sealed.open() as opened:
        return {path: opened.read_bytes(path) for path in opened.files()}


def verify(job, held, path):
    found = content_digest([held[path]], sha256=True)
    return verify_lineage(
        held[f"{path}.lineage.json"],
        found,
        cas_root=job.world.cas.cas_root,
        allow_simulated=job.world.home.vendor().root_digest,
    )


@pytest.fixture(scope="module")
def trained(home_and_cas, tmp_path_factory):
    """A job that ran, and what it left."""
    world = World(tmp_path_factory.mktemp("trained"), *home_and_cas)
    vaults = {"data": world.seal("data", numbers=b"1234" * 1000), "out": world.seal("out")}
    job = world.job(TRAIN, *PATHS, rules=(DATA, OUT), vaults=vaults)
    assert job.run()[0] == 0
    return job, contents(job)


def test_a_run_states_where_each_output_comes_from(trained):
    job, held = trained
    assert sorted(held) == ["deep/report", "deep/report.lineage.json", "model", "model.lineage.json"]
    lineage = verify(job, held, "model")
    assert verify(job, held, "deep/report").run.invocation == lineage.run.invocation
    lineage.require_policy([job.policy.name], digest=job.policy.digest)
    lineage.require_measurement(job.policy.reference.measurements)
    assert list(lineage.run.boot["command"]) == ["python", "job.py", *PATHS]
    with job.vaults["data"].open() as opened:
        read = lineage.require_data(vault_tree(opened), "data.vault")
        assert (read.name, read.access, read.files, read.root) == ("data", "read-only", 1, str(opened.root))
    began_with = lineage.run.data[1]
    assert (began_with.name, began_with.access, began_with.files) == ("out", "read-write", 0)


def test_the_next_run_on_swapped_data_states_that_data_and_all_that_it_wrote(trained):
    job, held = trained
    first, sealed = verify(job, held, "model"), job.vaults["data"]
    with sealed.open() as opened:
        before = vault_tree(opened)
    with sealed.open("r+") as opened:
        opened.write_bytes("numbers", b"9999" * 1000)
    with job.world.owner() as client:
        anchor = client.anchor(job.policy.name, "data")
        anchor.advance(anchor.read(), sealed.anchor.read())
    assert job.run()[0] == 0
    after = contents(job)
    second = verify(job, after, "model")
    first.require_data(before, "data.vault")
    with pytest.raises(TamperedError, match=r"data\.vault holds"):
        second.require_data(before, "data.vault")
    assert second.run.data[1].files == 2  # what the first run left was there to be read
    assert after["deep/report"] == held["deep/report"]
    assert verify(job, after, "deep/report").run.invocation == second.run.invocation != first.run.invocation


def test_a_program_can_neither_forge_nor_keep_nor_see_a_statement(trained, world, monkeypatch):
    """Without a sandbox, so that this way of showing vaults is stated as well."""
    job, held = trained
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    source = f"""
import os, pathlib, sys
data, out = map(pathlib.Path, sys.argv[1:3])
assert sorted(os.listdir(out)) == ["deep", "model"], os.listdir(out)
(out / "model").write_bytes(b"another model")
(out / "model.lineage.json").write_bytes({held["model.lineage.json"]!r})
(out / "never-made.lineage.json").write_bytes(b"{{}}")
(out / "deep" / "report.lineage.json").symlink_to("/etc/passwd")
(data / "numbers").write_bytes(b"made up afterwards")
"""
    vaults = {"data": world.seal("data", numbers=b"5"), "out": world.seal("out", **held)}
    forger = world.job(source, *PATHS, rules=(DATA, OUT), vaults=vaults)
    assert forger.run()[0] == 0
    after = contents(forger)
    assert sorted(after) == sorted(held)
    assert after["deep/report.lineage.json"] == held["deep/report.lineage.json"]  # that file was not touched
    lineage = verify(forger, after, "model")
    with pytest.raises(BindingError):
        lineage.require_policy([job.policy.name])
    with vaults["data"].open() as opened:
        assert lineage.require_data(vault_tree(opened), "data").delivery == "memory"


def hidden_data(world):
    """A job whose program opens a file in a directory that may be entered and not listed."""
    data = world.seal("data", **{"clean": b"1", "hidden/poison": b"2"})
    with data.open("r+") as opened:
        opened.change(opened.stat("hidden").inode, mode=0o311)
    source = "import sys; open(sys.argv[2] + '/model', 'w').write(open(sys.argv[1] + '/hidden/poison').read())"
    return world.job(source, *PATHS, rules=(DATA, OUT), vaults={"data": data, "out": world.seal("out")}), data


def test_data_that_a_program_could_open_but_boot_not_list_is_refused(world, bubblewrap, monkeypatch):
    """Without FUSE, where data is digested as it was unpacked, by no more rights than the program has."""
    monkeypatch.setattr(sandbox, "fuse_available", lambda: False)
    monkeypatch.setattr(sandbox, "separate_users", lambda bwrap: False)
    job, _ = hidden_data(world)
    with pytest.raises(UsageError, match="/data/hidden cannot be listed or read"):
        job.run()


def test_data_that_boot_alone_may_list_is_stated_whole(world, bubblewrap, monkeypatch):
    """With a user id for the program: boot, which is root's, has more rights than the program."""
    if not sandbox.separate_users(bubblewrap or "bwrap"):
        pytest.skip("only root gives programs user ids of their own")
    monkeypatch.setattr(sandbox, "fuse_available", lambda: False)
    job, data = hidden_data(world)
    assert job.run()[0] == 0
    lineage = verify(job, contents(job), "model")
    with data.open() as opened:
        assert lineage.require_data(vault_tree(opened), "data").delivery == "memory"


def test_a_run_that_fails_states_nothing_and_takes_nothing_from_what_it_left_alone(trained, world):
    held = trained[1]
    source = "import sys; open(sys.argv[1] + '/model', 'ab').write(b'!'); open(sys.argv[1] + '/new', 'w'); sys.exit(3)"
    job = world.job(source, PATHS[1], rules=(OUT,), vaults={"out": world.seal("out", **held)})
    assert job.run()[0] == 3
    after = contents(job)
    assert sorted(after) == ["deep/report", "deep/report.lineage.json", "model", "new"]
    assert after["deep/report.lineage.json"] == held["deep/report.lineage.json"]


class Booted:
    """An enclave whose CAS signs anything, or nothing."""

    config = BootConfig(
        "entry", "acme/p", "sha256:" + "00" * 32, "program", vaults=(VaultMount("out", "/out", "read-write"),)
    )

    def __init__(self, refusal=None):
        self.notices, self.refusal = [], refusal
        self.control = SimpleNamespace(event=lambda name, text: self.notices.append(text))
        self.session = SimpleNamespace(sign_lineage=self.sign)
        self.patiently = lambda ask: ask()

    def sign(self, run, outputs):
        if self.refusal:
            raise self.refusal
        return [output.name.encode() for output in outputs]


def after_a_run(booted, tmp_path, *names):
    """What a vault holds when a program has written files of these names."""
    with vault.open(tmp_path / "v", "x", key=b"k" * 32, anchor=NO_FRESHNESS) as opened:
        opened.commit()
        seen = witness.Witness(booted)
        (tmp_path / "place").mkdir()
        seen.writable("out", opened, tmp_path / "place")
        for name in names:
            opened.write_bytes(name, b"")
        seen.ended(0)
        seen.state("out", opened)
        return opened.files()


def test_what_cannot_be_stated_is_sealed_all_the_same_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(witness, "MAX_STATED", 2)
    few, many, refused = Booted(), Booted(), Booted(FormatError("canonical JSON: too long"))
    assert after_a_run(few, tmp_path / "a", "1", "2\a") == ["1", "1.lineage.json", "2\a"]
    assert few.notices == ["vault out: no lineage of 1 outputs, whose names are no text"]
    assert after_a_run(many, tmp_path / "b", "1", "2", "3") == ["1", "2", "3"]
    assert many.notices == ["vault out: no lineage: 3 outputs, the limit is 2"]
    assert after_a_run(refused, tmp_path / "c", "1") == ["1"]
    assert refused.notices == ["vault out: no lineage: canonical JSON: too long"]


def test_names_that_leave_no_room_for_a_statement_cost_no_result(tmp_path):
    long, taken, own = Booted(), Booted(), Booted()
    assert after_a_run(long, tmp_path / "a", "x" * 250) == ["x" * 250]
    assert "no lineage: path in vault" in long.notices[0]
    assert after_a_run(taken, tmp_path / "b", "m", "m.lineage.json/x") == [
        "m",
        "m.lineage.json/x",
        "m.lineage.json/x.lineage.json",
    ]
    assert "is a directory" in taken.notices[0]
    assert after_a_run(own, tmp_path / "c", "m", "other.lineage.json") == ["m", "m.lineage.json"]
    assert own.notices == ["vault out: not kept, as such names are for lineage: other.lineage.json"]
