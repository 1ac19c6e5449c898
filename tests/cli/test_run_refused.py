"""What `strongroom run` says and leaves where a command cannot be run as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from strongroom.cas.policy.version import VaultRule, parse_policy
from strongroom.cli.main import main
from strongroom.cli.run import verb
from strongroom.cli.run.failed import name_vaults, tell_left_out, tell_tools
from strongroom.cli.run.vaults import made_vaults, only_writer
from strongroom.cli.workspace import SealedVault, write_policy
from strongroom.enclave import sandbox
from strongroom.errors import EnclaveError, UsageError, WrongKeyError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="enclaves are Linux's")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_home: Path) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def listed(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_command_that_cannot_be_run_leaves_no_vault(place, capsys):
    assert main(["run", "--", "pythn", "job.py"]) == 2
    assert "pythn is not an executable" in capsys.readouterr().err
    assert listed(place) == []


def test_vaults_go_again_and_what_was_there_stays(place):
    old, new, keyed = (SealedVault.at(place / name) for name in ("old", "new", "keyed"))
    with made_vaults([old]):
        pass
    keyed.key_path.write_bytes(old.key_path.read_bytes())
    before = listed(place)
    with pytest.raises(KeyboardInterrupt), made_vaults([old, new, keyed]):
        raise KeyboardInterrupt
    assert listed(place) == before
    with pytest.raises(KeyboardInterrupt), made_vaults([new]) as keep:
        keep()
        raise KeyboardInterrupt
    new.open().close()


def test_a_vault_has_one_writer_at_a_time(place, capsys):
    out = SealedVault.at(place / "out.vault")
    with made_vaults([out]), only_writer([out]):
        assert main(["run", "--out", "out.vault", "--", "python", "-c", "pass"]) == 25
        assert "another `strongroom run` writes out.vault" in capsys.readouterr().err
    with only_writer([out]):
        pass


def test_a_script_of_ones_own_comes_along(place):
    (place / "jobs").mkdir()
    for name in ("jobs/job.sh", "other.sh"):
        (place / name).write_text("#!/bin/sh\n")
    assert list(verb.program_of(["jobs/job.sh", "x"], [])[1]) == ["jobs/job.sh"]
    assert list(verb.program_of(["./other.sh"], ["other.sh"])[1]) == ["other.sh"]
    assert verb.program_of(["/bin/sh"], [])[1] == {}


@pytest.mark.parametrize(
    ("words", "table"),
    [(["--replicas", "2"], "mesh"), (["--publish", "api=8000"], "mesh"), (["--egress", "a.example:443"], "egress")],
)
def test_what_takes_a_sandbox_says_so_where_there_is_none(place, capsys, monkeypatch, words, table):
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    assert main(["run", *words, "--", "python", "-c", "pass"]) == EnclaveError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert f"{table}: this launcher cannot enforce it" in said and "install bubblewrap" in said
    assert listed(place) == []


def test_a_vault_is_called_read_only_where_none_that_writes_it_starts_here(capsys):
    digest = "sha256:" + "0" * 64
    text = write_policy(
        name="a/b",
        role="program",
        owner=digest,
        measurement="0" * 96,
        vendor_root=digest,
        program=None,
        vaults=[VaultRule("out", "/out", "read-write")],
        replicas=3,
    )
    policy = parse_policy(text)  # of its replicas, number 0 writes
    verb._warn_of_readers(policy, range(3))
    assert capsys.readouterr().err == ""
    for here, which in ((range(1, 3), ""), ([None], "; --replica says which one this is")):
        verb._warn_of_readers(policy, here)
        said = " ".join(capsys.readouterr().err.split())
        assert said.endswith(f"out: read-only here: its writer is replica 0{which}")


def test_ctrl_c_before_the_program_begins_is_said(place, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "_run_approved", interrupted)
    assert main(["run", "--", "python", "-c", "pass"]) == 130
    assert "interrupted before the program began" in capsys.readouterr().err
    assert listed(place) == []


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_hints_for_a_key_name_where_it_has_to_be(place, capsys, option):
    mine, other = SealedVault.at(place / "mine"), SealedVault.at(place / "other")
    with made_vaults([mine, other]):
        pass
    mine.key_path.write_bytes(other.key_path.read_bytes())
    command = ["run", option, "mine", "--", "python", "-c", "pass"]
    assert main(command) == WrongKeyError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert "put the key that it was sealed with back as mine.key" in said
    mine.key_path.unlink()
    assert main(command) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "mine.key does not exist" in said and "put the vault's key back there" in said and "--key" not in said


def test_a_directory_is_included_with_all_that_is_in_it(place):
    for name in ("job.py", "config.yaml", "mypkg/a.txt", "mypkg/deep/b.json", "mypkg/__pycache__/c.pyc"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("")
    _, files = verb.program_of(["python", "job.py"], ["mypkg", "mypkg/a.txt"])
    assert sorted(files) == ["job.py", "mypkg/a.txt", "mypkg/deep/b.json"]
    with pytest.raises(UsageError, match="--include: gone is no file or directory below"):
        verb.program_of(["python", "job.py"], ["gone"])


def test_files_beside_a_program_that_failed_are_named(place, capsys):
    for name in ("job.py", "config.yaml", "out.vault.key", "out.vault.anchor", "out.vault.anchor.lock", ".hidden"):
        (place / name).write_text("")
    tell_left_out({"job.py": place / "job.py"})
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("did not see these files beside the program: config.yaml; --include adds them")
    (place / "config.yaml").unlink()
    tell_left_out({"job.py": place / "job.py"})
    assert capsys.readouterr().err == ""


def test_of_a_program_that_failed_it_is_said_what_it_could_start(capsys):
    tell_tools(("sh", "git"))
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("could start these programs of the system, and no other (--tool): sh, git")
    tell_tools(())
    assert " ".join(capsys.readouterr().err.split()).endswith("(--tool): none")
    tell_tools(None)
    assert capsys.readouterr().err == ""


def test_an_enclaves_error_names_the_vault_as_it_lies_here():
    vaults = {"cifar": Path("enc.vault")}
    error: EnclaveError | WrongKeyError = EnclaveError("vault cifar: no space left on device", hint="make room")
    name_vaults(error, vaults)
    assert (error.message, error.hint) == ("vault cifar (enc.vault): no space left on device", "make room")
    error = WrongKeyError("/run/strongroom/vaults/cifar: meta: sealed under another key")
    name_vaults(error, vaults)
    assert error.message == "vault cifar (enc.vault): meta: sealed under another key"
    assert error.hint is not None and "enc.vault.key" in error.hint
