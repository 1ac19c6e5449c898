"""Going back to a backup of a vault whose anchor a CAS keeps, as its administrator and its owners type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import main
from strongroom.cli.workspace import Home, SealedVault
from strongroom.crypto import SigningKey
from tests.cas.owners import KEYS, signed_by, table
from tests.cas.world import document

DATA = '[program]\ncommand = ["true"]\n[[vaults]]\nname = "data"\nmount = "/data"\naccess = "read-write"\n'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes").write_text("one\n")
    (tmp_path / "two").write_text("two\n")
    for name, key in KEYS.items():
        key.save(tmp_path / f"{name}.key")
    return tmp_path


@pytest.fixture
def do(capfd):
    """Runs a command; what it answers in JSON, or, of one that fails, what it says."""

    def run(*words: object, status: int = 0):
        got = main([*map(str, words), "--json"])
        out, said = capfd.readouterr()
        assert got == status, said
        return json.loads(out) if not status else out + said

    return run


def apply(owner: SigningKey, owners: str, *names: str) -> None:
    """The policy, of which owners sign."""
    with Home.open().cas() as address, Home.open().owner_client(address, owner) as client:
        text = document(owner, vendor_root="sha256:" + "0f" * 32, more=owners + DATA)
        client.apply(text, signed_by(parse_policy(text), *names))


def go_on_and_back(do) -> None:
    """Entrust version 1, back it up, entrust version 2, and restore version 1."""
    do("seal", "data")
    do("cas", "entrust", "acme/train", "data", "data.vault")
    do("vault", "backup", "data.vault", "backup.vault")
    do("vault", "cp", "two", "data.vault:two")
    do("cas", "entrust", "acme/train", "data", "data.vault")
    do("vault", "restore", "backup.vault", "data.vault", "--reason", "disk failed")


def logged(do) -> list[dict[str, object]]:
    details = [(each["event"], each["detail"]) for each in do("cas", "log")]
    return [
        json.loads(detail) if isinstance(detail, str) else detail for event, detail in details if event == "restored"
    ]


ENTRUST = ("cas", "entrust", "acme/train", "data", "data.vault")


def test_an_administrator_says_why(do):
    apply(Home.open().owner(), "")
    go_on_and_back(do)
    said = do(*ENTRUST, status=24)
    assert "--restore --reason TEXT" in said
    assert "wants a reason" in do(*ENTRUST, "--restore", status=2)
    assert logged(do) == []
    do(*ENTRUST, "--restore", "--reason", "disk failed")
    (entry,) = logged(do)
    assert (entry["vault"], entry["reason"]) == ("data", "disk failed")
    assert str(entry["root"]).endswith("@1")
    assert "was not restored since" in do(*ENTRUST, "--restore", "--reason", "again", status=2)
    do("vault", "cp", "two", "data.vault:two")
    do(*ENTRUST)  # and it goes on


def test_owners_sign_one_after_the_other(do):
    apply(Home.open().owner(), table(2, ["alice", "bob", "carol"]), "alice", "bob")
    go_on_and_back(do)
    restore = (*ENTRUST, "--restore", "--reason", "disk failed")
    assert do(*restore)["not_yet"] == ["alice", "bob", "carol"]
    assert do("cas", "sign-restore", "data.vault.restore", "--key", "alice.key")["reason"] == "disk failed"
    assert do(*restore)["not_yet"] == ["bob", "carol"]
    assert "another reason" in do(*ENTRUST, "--restore", "--reason", "other", status=43)
    do("cas", "sign-restore", "data.vault.restore", "--key", "carol.key")
    assert logged(do) == []
    assert do(*restore)["vault"] == "data"
    (entry,) = logged(do)
    assert entry["signed"] == [KEYS[name].public.fingerprint for name in ("alice", "carol")]


def test_a_stranger_s_signature_is_in_nobody_s_favour(do):
    apply(Home.open().owner(), table(1, ["alice"]), "alice")
    go_on_and_back(do)
    restore = (*ENTRUST, "--restore", "--reason", "disk failed")
    do(*restore)
    do("cas", "sign-restore", "data.vault.restore", "--key", "dave.key")
    assert "no owner" in do(*restore, status=42)


def test_the_anchor_follows_when_a_slot_for_the_cas_is_made_or_goes(do):
    owner = Home.open().owner()
    apply(owner, "")
    do("seal", "data")
    do(*ENTRUST)
    slot = ("--new-cas", "acme/train")
    for words in (
        ("add", *slot),
        ("rotate", "--cas-slot", "acme/train", *slot),
        ("remove", "cas acme/train", "--force"),
    ):
        action, *rest = words
        do("vault", "keys", action, "data.vault", *rest)
        with Home.open().cas() as address, Home.open().owner_client(address, owner) as client:
            assert client.anchor("acme/train", "data").read() == SealedVault.at(Path("data.vault")).anchor.read()


def test_a_vault_that_is_newer_than_its_anchor_is_not_called_rolled_back(do):
    do("seal", "data")
    old = Path("data.vault.anchor").read_text()
    for _ in range(3):
        do("vault", "cp", "two", "data.vault:two")
    Path("data.vault.anchor").write_text(old)
    said = do("vault", "ls", "data.vault", status=24)
    assert "newer than its anchor" in said
    assert "cas entrust" in said
