"""Which CAS a command went to, what an operator may confirm there, and what each says of the other."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.api.status import StatusApi
from strongroom.cas.log.head import Head
from strongroom.cas.start.mode import Restart
from strongroom.cli.cas import status as cas_status
from strongroom.cli.main import main
from strongroom.cli.output import shortened
from strongroom.cli.workspace import Home
from strongroom.errors import DatabaseError, PeerIdentityError
from tests.cas.world import cas_in


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Home.open()


def name_by_variables(monkeypatch, address) -> None:
    monkeypatch.setenv("STRONGROOM_CAS", address.url)
    monkeypatch.setenv("STRONGROOM_CAS_ROOT", address.cas_root)


def test_variables_name_the_cas_and_the_result_says_which(capsys, monkeypatch, world, tmp_path):
    name_by_variables(monkeypatch, world.cas.address)
    world.owner.save(tmp_path / "owner.key")
    (tmp_path / "secret").write_bytes(b"s3cret")
    words = ["cas", "secret", world.name, "token", "--owner", "owner.key", "--file", "secret"]
    assert main(words) == 0
    assert f"cas              {world.cas.address.url}\n" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cas"], told["cas_root"]) == (world.cas.address.url, world.cas.address.cas_root)


def test_a_root_never_goes_with_the_address_of_another(capsys, monkeypatch, world):
    name_by_variables(monkeypatch, world.cas.address)
    assert main(["policy", "grants", world.name, "--cas", "https://127.0.0.1:1"]) == 2
    assert "--cas, --cas-root" in capsys.readouterr().err
    monkeypatch.delenv("STRONGROOM_CAS_ROOT")
    assert main(["policy", "grants", world.name]) == 2
    assert "STRONGROOM_CAS, STRONGROOM_CAS_ROOT" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["sha256:zz", "sha256:" + "A" * 64, "banana"])
def test_what_is_no_root_is_refused_with_where_to_find_one(capsys, monkeypatch, root, tmp_path):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "none"))
    for words in (["cas", "status", "--cas", "https://localhost:1"], ["measure", "--policy", "policy.toml"]):
        assert main([*words, "--cas-root", root]) == 2
        shown = capsys.readouterr().err
        assert f"--cas-root: got '{root}', wanted sha256:<64 hex digits>" in shown
        assert "hint: `strongroom cas start` prints" in shown
    name_by_variables(monkeypatch, SimpleNamespace(url="https://localhost:1", cas_root=root))
    assert main(["cas", "status"]) == 2
    assert f"STRONGROOM_CAS_ROOT: got '{root}'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--all", "--lift"]])
def test_a_revocation_that_says_not_what_makes_no_key_and_no_cas(capsys, monkeypatch, words, tmp_path):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "none"))
    assert main(["cas", "revoke", "acme/policy", *words]) == 2
    assert "hint:" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_development_cas_is_made_and_used_aloud(capsys, tmp_path):
    (tmp_path / "train.py").write_text("")
    assert main(["policy", "init", "--", "python", "train.py"]) == 0
    assert main(["policy", "init", "--", "python", "train.py"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["policy", "apply", "policy.toml"]) == 0
    said = capsys.readouterr()
    assert "this user's development CAS" in said.out
    assert f"makes this user's development CAS, in {tmp_path}" in "".join(said.err.splitlines())
    assert "reference.measurements: zeros" in said.err


def test_an_empty_secret_is_not_stored_in_silence(capsys, world, monkeypatch, tmp_path):
    name_by_variables(monkeypatch, world.cas.address)
    world.owner.save(tmp_path / "owner.key")
    (tmp_path / "empty").touch()
    assert main(["cas", "secret", world.name, "token", "--owner", "owner.key", "--file", "empty"]) == 0
    assert "the secret is empty" in capsys.readouterr().err


def test_an_operator_does_not_confirm_less_than_was_seen_by_mistake(capsys, monkeypatch, tmp_path, home):
    operator = home.owner()
    with cas_in(tmp_path, restart=Restart("owner", (operator.public.fingerprint,), 1)):
        pass
    with cas_in(tmp_path) as cas:
        name_by_variables(monkeypatch, cas.address)
        with cas.owner(operator) as client:
            head = Head.parse(str(client.status()["head"]))
        seen = Head(head.size + 5, bytes(32))
        home.heads(cas.address.cas_root).advance(seen)
        assert main(["cas", "confirm", "--older"]) == 2
        assert main(["cas", "confirm", "--head", str(head)]) == 2
        assert f"does not reach {shortened(str(seen))}" in capsys.readouterr().err
        with cas.owner(operator) as client:
            assert client.gate()["state"] == "awaiting"  # it heard of nothing
        assert main(["cas", "confirm", "--head", str(head), "--older"]) == 0
        said = capsys.readouterr()
        assert "the CAS is ready" in said.out and "is given up" in said.err


def test_a_plain_confirmation_of_a_restored_cas_says_how_to_go_on(capsys, monkeypatch, tmp_path, home):
    operator = home.owner()
    with cas_in(tmp_path, restart=Restart("owner", (operator.public.fingerprint,), 1)):
        pass
    with cas_in(tmp_path) as cas:
        name_by_variables(monkeypatch, cas.address)
        home.heads(cas.address.cas_root).advance(Head(500, bytes(32)))
        assert main(["cas", "confirm"]) == 24
        assert "--head SIZE:HASH --older" in capsys.readouterr().err


def test_health_tells_strangers_nothing_of_the_database():
    def head():
        raise DatabaseError("postgresql://db.internal/cas: connection refused")

    api = StatusApi(SimpleNamespace(store=SimpleNamespace(head=head), waiting=str))
    answer = asyncio.run(api.health(None))
    assert answer.status_code == 503
    assert b"db.internal" not in answer.body and b"database cannot be used" in answer.body


def test_peers_are_told_apart_and_since_when_one_is_silent():
    silent = {"answers": False, "size": 41, "age": 180}
    assert cas_status._peer(2, silent) == "2: does not answer; seen with 41 entries, 3 min 0 s ago"
    assert cas_status._peer(1, {"answers": False, "size": None, "age": None}) == "1: has never answered"


def test_a_sealed_cas_is_named_among_the_reasons_for_another_root(world):
    with (
        OwnerClient(world.cas.address.url, cas_root="sha256:" + "0" * 64) as client,
        pytest.raises(PeerIdentityError, match="peer authority") as wrong,
    ):
        client.describe()
    assert "cas unseal" in wrong.value.hint
