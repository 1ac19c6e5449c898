"""`strongroom vault`, and `seal` and `unseal` with key slots, as a user types them."""

import json
import os
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.cli.main import VERBS, main
from strongroom.cli.vault.files import Place, find_place
from strongroom.cli.vault.verb import ACTIONS
from strongroom.cli.workspace import SealedVault
from strongroom.sealed import NO_FRESHNESS


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def do(capfd):
    """Runs a command; its standard output, of which `errors` has the rest."""

    def run(*argv, status=0):
        assert main([str(word) for word in argv]) == status, capfd.readouterr()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        run.errors = err
        if status:
            assert sum(line.startswith("strongroom: error: ") for line in err.splitlines()) >= 1 or "--json" in argv
        return out

    return run


@pytest.fixture
def sealed(home, do):
    top = home / "data"
    (top / "train" / "empty").mkdir(parents=True)
    (top / "train" / "x").write_bytes(bytes(range(256)) * 1000)
    (top / "notes").write_text("hello\n")
    (top / "latest").symlink_to("train/x")
    do("seal", "data")
    return SealedVault.at(home / "data.vault")


@contextmanager
def descriptor(*lines):
    """A descriptor that holds lines, as a shell's ``3<<<...`` makes one."""
    reader, writer = os.pipe()
    try:
        os.write(writer, "".join(f"{line}\n" for line in lines).encode())
        os.close(writer)
        yield str(reader)
    finally:
        os.close(reader)


def paths(do, place="data.vault"):
    return do("vault", "ls", "-R", place).split()


# Looking.


def test_ls(sealed, do):
    assert do("vault", "ls", "data.vault").split() == ["latest", "notes", "train"]
    assert do("vault", "ls", "data.vault:train").split() == ["empty", "x"]
    assert do("vault", "ls", "data.vault:notes").split() == ["notes"]
    assert paths(do) == ["latest", "notes", "train", "train/empty", "train/x"]
    long = do("vault", "ls", "-l", "data.vault").splitlines()
    assert long[0].startswith("lrwxrwxrwx")
    assert long[0].endswith(" latest -> train/x")
    assert " 6 " in long[1]
    listed = json.loads(do("vault", "ls", "--json", "-R", "data.vault"))
    assert {entry["path"]: entry["size"] for entry in listed if entry["type"] == "file"} == {
        "notes": 6,
        "train/x": 256_000,
    }
    do("vault", "ls", "data.vault:nothing", status=2)
    assert "nothing: no such file" in do.errors


def test_names_cannot_play_with_the_terminal(sealed, do):
    with sealed.open("r+") as opened:
        opened.write_bytes("evil\x1b[2J", b"")
    assert "\x1b" not in do("vault", "ls", "data.vault") + do("vault", "ls", "-l", "data.vault")
    assert "evil\x1b[2J" in [entry["path"] for entry in json.loads(do("vault", "ls", "--json", "data.vault"))]


def test_info(sealed, do):
    shown = do("vault", "info", "data.vault")
    assert "2 in 2 directories, 1 links" in shown
    assert "none: the vault key opens it" in shown
    found = json.loads(do("vault", "info", "--json", "data.vault"))
    assert (found["files"], found["size"], found["links"], found["slots"]) == (2, 256_006, 1, None)
    assert found["root"] == found["anchor"] == str(sealed.anchor.read())
    assert found["seconds_since_commit"] >= 0


@pytest.mark.parametrize("words", [["vault"], ["vault", "keys", "nothing"], ["vault", "cp", "one"]])
def test_what_the_parser_refuses(words, home, capfd):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_help_with_an_example(action, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["vault", action, "--help"])
    assert caught.value.code == 0
    assert f"Example: strongroom vault {action} " in " ".join(capfd.readouterr().out.split())
    assert "vault" in VERBS


def test_places(sealed, home):
    assert find_place("data.vault") == Place(Path("data.vault"), "")
    assert find_place("data.vault:") == Place(Path("data.vault"), "")
    assert find_place("data.vault:/a/b:c/") == Place(Path("data.vault"), "a/b:c")
    assert find_place("missing.vault:x") == Place(Path("missing.vault"), "x")
    assert find_place("data:x") is None
    assert find_place("x/data") is None
    (home / "odd:name.vault").mkdir()
    (home / "odd:name.vault" / "meta").touch()
    assert find_place("odd:name.vault:x") == Place(Path("odd:name.vault"), "x")


# Copying.


def test_cp_into_a_vault_and_out(sealed, do, home):
    (home / "new").write_text("new")
    do("vault", "cp", "new", "data.vault:train/")
    do("vault", "cp", "new", "data.vault:train")  # which is a directory
    do("vault", "cp", "new", "data.vault:other/name")
    do("vault", "cp", "-r", "new", "data", "data.vault:both/")
    assert set(paths(do)) >= {"train/new", "other/name", "both/new", "both/data/train/x", "both/data/train/empty"}
    do("vault", "cp", "data.vault:train/x", "data.vault:notes", ".")
    assert (home / "x").read_bytes() == bytes(range(256)) * 1000
    do("vault", "cp", "-r", "data.vault:both", "out")
    assert (home / "out" / "data" / "notes").read_text() == "hello\n"
    assert (home / "out" / "data" / "latest").readlink() == Path("train/x")
    assert json.loads(do("vault", "cp", "--json", "data.vault:notes", "again")) == {"copied": ["again"]}


def test_cp_replaces_a_file_only_when_all_of_it_is_right(sealed, do, home):
    (home / "mine").write_text("precious")
    (home / "link").symlink_to("mine")
    do("vault", "cp", "data.vault:notes", "link")
    assert (home / "mine").read_text() == "precious"
    assert (home / "link").read_text() == "hello\n"
    flip(sealed)
    do("vault", "cp", "data.vault:train/x", "mine", status=23)
    assert (home / "mine").read_text() == "precious"
    assert not list(home.glob(".mine*"))


def test_cp_within_a_vault(sealed, do):
    do("vault", "cp", "data.vault:notes", "data.vault:copy")
    do("vault", "cp", "-r", "data.vault:train", "data.vault:more")
    assert set(paths(do)) >= {"copy", "more", "more/x", "more/empty"}
    do("vault", "cp", "-r", "data.vault:train", "data.vault:train/below", status=2)
    do("vault", "cp", "data.vault:notes", "data.vault:notes", status=2)
    with sealed.open() as opened:
        assert opened.read_bytes("copy") == b"hello\n"


def test_copies_that_make_no_sense(sealed, do, home):
    shutil.copytree("data.vault", "second.vault")
    for words, message in (
        (["data", "data.vault:x"], "is a directory"),
        (["data.vault:train", "x"], "is a directory"),
        (["data/notes", "elsewhere"], "neither elsewhere nor data/notes is in a vault"),
        (["data/notes", "data.vault:latest", "out"], "some are in a vault and some are not"),
        (["data.vault:notes", "second.vault:x"], "are two, wanted one"),
        (["nothing", "data.vault:x"], "nothing does not exist"),
        (["data.vault:nothing", "x"], "nothing: no such file"),
        (["data/notes", "data.vault:../x"], "wanted a relative path"),
        (["data/notes", "data/latest", "data.vault:notes"], "is not a directory"),
        (["data/notes", "missing.vault:x"], "missing.vault does not exist"),
    ):
        do("vault", "cp", *words, status=2)
        assert message in do.errors, words
    assert paths(do) == ["latest", "notes", "train", "train/empty", "train/x"]


def test_links_that_lead_out(sealed, do, home):
    (home / "data" / "out").symlink_to("../elsewhere")
    (home / "elsewhere").write_text("content")
    do("vault", "cp", "-r", "data", "data.vault:x", status=2)
    assert "--follow-links" in do.errors
    do("vault", "cp", "-r", "--follow-links", "data", "data.vault:x")
    do("vault", "cp", "data.vault:x/out", "got")
    assert (home / "got").read_text() == "content"
    do("seal", "data", "two.vault", status=2)
    assert not (home / "two.vault").exists()
    do("seal", "--follow-links", "data", "two.vault")
    with sealed.open("r+") as opened:
        opened.symlink("/etc/passwd", "bad")
    do("unseal", "data.vault", "plain", status=2)
    assert "--outside-links" in do.errors
    assert not (home / "plain").exists()
    do("unseal", "--outside-links", "data.vault", "plain")
    assert (home / "plain" / "bad").readlink() == Path("/etc/passwd")


def test_rm(sealed, do):
    before = sealed.anchor.read().sequence
    do("vault", "rm", "data.vault:train", status=2)
    assert "-r removes it" in do.errors
    do("vault", "rm", "data.vault", status=2)
    do("vault", "rm", "data.vault:notes", "data.vault:nothing", status=2)
    assert paths(do) == ["latest", "notes", "train", "train/empty", "train/x"]
    do("vault", "rm", "-r", "data.vault:notes", "data.vault:train", "data.vault:latest")
    assert paths(do) == []
    assert sealed.anchor.read().sequence == before + 1


def test_pack(sealed, do, home):
    do("vault", "pack", "data", "data.vault:again")
    assert "again/train/empty" in paths(do)
    do("vault", "pack", "data", "fresh.vault")
    assert stat.S_IMODE((home / "fresh.vault.key").stat().st_mode) == 0o600
    assert paths(do, "fresh.vault") == ["latest", "notes", "train", "train/empty", "train/x"]
    (home / "data" / "bad").symlink_to("/")
    do("vault", "pack", "data", "third.vault", status=2)
    assert not list(home.glob("third.vault*"))


def test_seal_and_unseal_keep_the_shape(sealed, do, home):
    (home / "data" / "notes").chmod(0o640)
    os.utime(home / "data" / "train", (1_000_000_000, 1_000_000_000))
    do("seal", "data", "two.vault")
    do("unseal", "two.vault", "again")
    assert (home / "again" / "latest").readlink() == Path("train/x")
    assert (home / "again" / "train" / "empty").is_dir()
    assert (home / "again" / "train").stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((home / "again" / "notes").stat().st_mode) == 0o640


# Damage.


def flip(sealed):
    path = max((p for p in sealed.path.iterdir() if len(p.name) == 32), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[100_000] ^= 1
    path.write_bytes(content)


def test_verify(sealed, do):
    assert "all as committed" in do("vault", "verify", "data.vault")
    (sealed.path.parent / "data" / "more").write_bytes(os.urandom(100_000))
    do("vault", "cp", "data/more", "data.vault:more")
    for path in sealed.path.iterdir():
        if len(path.name) == 32:
            os.truncate(path, 10)
    do("vault", "verify", "data.vault", status=22)
    assert do.errors.count("strongroom: error: ") == 2
    assert "more: " in do.errors
    assert "train/x: " in do.errors
    found = json.loads(do("vault", "verify", "--json", "data.vault", status=22))
    assert [problem["path"] for problem in found["problems"]] == ["more", "train/x"]
    assert found["exit_status"] == 22
    next(path for path in sealed.path.iterdir() if len(path.name) == 32).unlink()
    do("vault", "verify", "data.vault", status=20)  # of two kinds


@pytest.mark.parametrize("verb", [["vault", "ls"], ["vault", "verify"], ["vault", "info"], ["unseal"]])
def test_what_cannot_be_opened(verb, sealed, do, home):
    do(*verb, "nowhere.vault", *["x"] * (verb == ["unseal"]), status=2)
    do(*verb, "data", *["x"] * (verb == ["unseal"]), status=2)
    assert "did you mean data.vault?" in do.errors
    (home / "other").write_text("x")
    do("seal", "other")
    last = ["x"] * (verb == ["unseal"])
    do(*verb, "data.vault", *last, "--key", "other.vault.key", status=21)
    do(*verb, "data.vault", *last, "--key", "data/notes", status=10)
    shutil.copytree("data.vault", "old.vault")
    for _ in range(2):
        do("vault", "cp", "data/notes", "data.vault:n")
    arguments = ["--key", "data.vault.key", "--anchor", "data.vault.anchor"]
    do(*verb, "old.vault", *last, *arguments, status=24)
    do(*verb, "old.vault", *last, "--key", "data.vault.key", status=2)
    assert "--no-freshness" in do.errors
    do(*verb, "old.vault", *last, *arguments, "--no-freshness")
    assert "freshness is not checked" in do.errors


# Backups.


def test_backup_and_restore(sealed, do, home):
    assert "backed up version 1" in do("vault", "backup", "data.vault", "copy.vault")
    do("vault", "rm", "data.vault:notes")
    shown = do("vault", "restore", "copy.vault", "data.vault", "--reason", "rm was a mistake")
    assert "restored version 1, in place of 2" in shown
    assert "data.vault.replaced-1" in do.errors
    assert "notes" in paths(do)
    assert "rm was a mistake" in (home / "data.vault.anchor.history").read_text()
    shutil.rmtree("data.vault")
    found = json.loads(do("vault", "restore", "--json", "copy.vault", "data.vault", "--reason", "disk failed"))
    assert found["replaced"] is None
    assert "notes" in paths(do)
    do("vault", "backup", "data.vault", "copy.vault", status=2)
    do("vault", "restore", "nothing", "data.vault", "--reason", "x", status=2)
    do("vault", "restore", "copy.vault", "data.vault", "--reason", "", status=2)


def test_a_damaged_backup_is_not_restored(sealed, do):
    do("vault", "backup", "data.vault", "copy.vault", "--json")
    flip(SealedVault.at(Path("copy.vault")))
    do("vault", "restore", "copy.vault", "data.vault", "--reason", "x", status=23)
    assert "train/x" in do.errors
    assert "all as committed" in do("vault", "verify", "data.vault")


def test_a_backup_of_a_vault_that_is_being_written(sealed, do):
    with sealed.open("r+") as opened:
        opened.write_bytes("notes", b"not yet")
        opened.write_bytes("new", bytes(100_000))
        do("vault", "backup", "data.vault", "copy.vault")
    with vault.open("copy.vault", key=sealed.key(), anchor=NO_FRESHNESS) as copy:
        assert copy.read_bytes("notes") == b"hello\n"


# Key slots.


def slots(do):
    return [slot["label"] for slot in json.loads(do("vault", "keys", "list", "--json", "data.vault"))]


def test_key_slots(sealed, do, home):
    do("vault", "keys", "list", "data.vault")
    assert "has no key slots" in do.errors
    with descriptor("open sesame") as fd:
        do("vault", "keys", "add", "data.vault", "--new-passphrase-fd", fd)
    do("vault", "keys", "add", "data.vault", "--new-key-file", "bob.key", "--label", "bob")
    assert "key written to bob.key" in do.errors
    assert slots(do) == ["passphrase", "bob"]
    assert "key-file" in do("vault", "keys", "list", "data.vault")
    with descriptor("open sesame") as fd:
        assert "notes" in do("vault", "ls", "data.vault", "--passphrase-fd", fd)
    with descriptor("open barley") as fd:
        do("vault", "ls", "data.vault", "--passphrase-fd", fd, status=21)
    assert "notes" in do("vault", "ls", "data.vault", "--key", "bob.key")
    assert "notes" in do("vault", "ls", "data.vault")  # the vault key itself
    with descriptor("open sesame", "new and longer") as fd:
        do("vault", "keys", "rotate", "data.vault", "--passphrase-fd", fd, "--new-passphrase-fd", fd)
    with descriptor("open sesame") as fd:
        do("vault", "ls", "data.vault", "--passphrase-fd", fd, status=21)
    with descriptor("new and longer") as fd:
        do("vault", "keys", "remove", "data.vault", "bob", "--passphrase-fd", fd)
    assert "can still open copies" in do.errors
    do("vault", "ls", "data.vault", "--key", "bob.key", status=21)
    do("vault", "keys", "remove", "data.vault", "0", status=2)
    assert "is the last" in do.errors
    do("vault", "keys", "remove", "data.vault", "0", "--force")
    do("vault", "keys", "remove", "data.vault", "x", status=2)
    assert "notes" in do("vault", "ls", "data.vault")


def test_an_old_keys_file_that_was_put_back(sealed, do, home):
    do("vault", "keys", "add", "data.vault", "--new-key-file", "bob.key", "--label", "bob")
    do("vault", "keys", "add", "data.vault", "--new-key-file", "eve.key", "--label", "eve")
    old = (home / "data.vault" / "keys").read_bytes()
    do("vault", "keys", "remove", "data.vault", "eve")
    (home / "data.vault" / "keys").write_bytes(old)
    do("vault", "ls", "data.vault", "--key", "eve.key", status=24)
    do("vault", "ls", "data.vault", "--key", "bob.key", status=24)


def test_slots_for_age(sealed, do, home):
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    (home / "me.age").write_text(f"# mine\n{identity}\n")
    do("vault", "keys", "add", "data.vault", "--new-age", identity.to_public())
    assert "notes" in do("vault", "ls", "data.vault", "--age-identity", "me.age")
    (home / "other.age").write_text(f"{pyrage.x25519.Identity.generate()}\n")
    do("vault", "ls", "data.vault", "--age-identity", "other.age", status=21)
    do("seal", "data", "two.vault", "--new-age", identity.to_public())
    assert not (home / "two.vault.key").exists()
    do("unseal", "two.vault", "again", "--age-identity", "me.age")
    assert (home / "again" / "notes").read_text() == "hello\n"


def test_rekey(sealed, do, home):
    do("vault", "keys", "add", "data.vault", "--new-key-file", "bob.key", "--label", "bob")
    do("vault", "rekey", "data.vault", "--new-key-file", "data.vault.key", status=2)
    do("vault", "rekey", "data.vault", "--new-key-file", "new.key", "--key", "bob.key")
    assert "its key slots are gone" in do.errors
    for key in ("data.vault.key", "bob.key"):
        do("vault", "ls", "data.vault", "--key", key, status=21)
    assert "all as committed" in do("vault", "verify", "data.vault", "--key", "new.key")
    do("vault", "keys", "add", "data.vault", "--key", "new.key", "--new-key-file", "bob.key")
    assert "notes" in do("vault", "ls", "data.vault", "--key", "bob.key")


def test_compact(sealed, do, home):
    (home / "more").mkdir()
    for number in range(20):
        (home / "more" / str(number)).write_bytes(os.urandom(50_000))
    do("vault", "pack", "more", "data.vault:more")
    do("vault", "rm", *(f"data.vault:more/{number}" for number in range(1, 20)))
    assert json.loads(do("vault", "compact", "--json", "data.vault"))["bytes"] > 500_000
    assert "all as committed" in do("vault", "verify", "data.vault")


def test_seal_with_a_passphrase(sealed, do, home):
    with descriptor("open sesame") as fd:
        do("seal", "data", "two.vault", "--new-passphrase-fd", fd)
    assert not (home / "two.vault.key").exists()
    with descriptor("open sesame") as fd:
        do("unseal", "two.vault", "again", "--passphrase-fd", fd)
    assert (home / "again" / "notes").read_text() == "hello\n"
    do("unseal", "two.vault", "more", status=2)
    assert "--passphrase" in do.errors
    with descriptor("open sesame") as fd:
        do("seal", "data", "three.vault", "--new-passphrase-fd", fd, "--key", "x.key", status=2)
    with descriptor("") as fd:
        do("seal", "data", "three.vault", "--new-passphrase-fd", fd, status=2)
    assert "passphrase: is empty" in do.errors
    assert not (home / "three.vault").exists()


def test_the_passphrase_is_asked_for_at_the_terminal(sealed, do, monkeypatch):
    with descriptor("open sesame") as fd:
        do("vault", "keys", "add", "data.vault", "--new-passphrase-fd", fd)
    asked = []

    def answer(prompt):
        asked.append(prompt)
        return "open sesame"

    monkeypatch.setattr("getpass.getpass", answer)
    assert "notes" in do("vault", "ls", "data.vault", "--passphrase")
    sealed.key_path.rename("elsewhere")
    do("vault", "ls", "data.vault", status=2)  # standard input is no terminal
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert "notes" in do("vault", "ls", "data.vault")
    assert asked == ["passphrase of data.vault: "] * 2
    do("vault", "keys", "rotate", "data.vault", "--new-passphrase")
    assert asked[-2:] == ["new passphrase: ", "again, new passphrase: "]


def test_no_secret_is_shown(sealed, do, home):
    secret = "correct horse battery staple"
    shown = ""
    with descriptor(secret) as fd:
        shown += do("vault", "keys", "add", "data.vault", "--new-passphrase-fd", fd, "--json") + do.errors
    with descriptor(secret) as fd:
        shown += do("vault", "info", "data.vault", "--passphrase-fd", fd) + do.errors
    with descriptor(secret + "!") as fd:
        shown += do("vault", "info", "data.vault", "--passphrase-fd", fd, status=21) + do.errors
    key = (home / "data.vault.key").read_text().split()[-1]
    assert secret not in shown
    assert key not in shown
