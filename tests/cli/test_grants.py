"""`strongroom policy request|approve|grants|withdraw`, and key slots that a CAS keeps, as people meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strongroom.cli.main import main
from strongroom.cli.workspace import Home
from strongroom.errors import FormatError, GrantError, UsageError, WrongKeyError

ZERO = "sha256:" + "0" * 64
MEASUREMENT = "ab" * 48


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home whose CAS runs meanwhile."""
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with Home.open().cas():
        yield


def document(name: str, owner: str, more: str, head: str = "") -> Path:
    path = Path(name.replace("/", "-") + ".toml")
    path.write_text(
        f'[policy]\nname = "{name}"\nversion = 1\nowner = "{owner}"\nrole = "program"\n{head}'
        f'[reference]\ntees = ["simulated"]\nmeasurements = ["{MEASUREMENT}"]\nallow_simulated = "{ZERO}"\n{more}'
    )
    return path


def run(*words: str, status: int = 0) -> None:
    assert main(list(words)) == status


def told(capsys, *words: str):
    capsys.readouterr()
    run(*words)
    return json.loads(capsys.readouterr().out)


def requested(capsys, source: str) -> Path:
    owner = Home.open().owner().public.fingerprint
    more = f'[[secrets]]\nname = "db"\nenvironment = "DB"\nfrom = "{source}"\n'
    train = document("acme/train", owner, more, 'purpose = "triage"\nrecipients = ["acme/serve"]\n')
    capsys.readouterr()
    run("policy", "request", str(train))
    path = Path("request.json")
    path.write_text(capsys.readouterr().out)
    return path


def test_a_request_is_looked_at_approved_listed_and_withdrawn(capsys):
    owner = Home.open().owner().public.fingerprint
    run("policy", "apply", str(document("hospital/records", owner, '[[secrets]]\nname = "db"\n')))
    request = requested(capsys, "hospital/records")
    run("policy", "approve", str(request), "--show")
    shown = capsys.readouterr()
    for part in ("hospital/records", "acme/train", "secret:db", "triage", "acme/serve", MEASUREMENT, ZERO):
        assert part in "".join(shown.out.split())  # the table folds what is long
    assert "simulated enclaves may have it" in " ".join(shown.err.split())
    assert told(capsys, "policy", "grants", "hospital/records", "--json") == {"grants": [], "received": []}
    run("policy", "apply", "acme-train.toml")
    run("policy", "approve", str(request), "--expires", "2040-01-31")
    [received] = told(capsys, "policy", "grants", "acme/train", "--json")["received"]
    assert (received["from"], received["state"]) == ("hospital/records", "in force")
    [grant] = told(capsys, "policy", "grants", "hospital/records", "--json")["grants"]
    assert (grant["state"], json.loads(grant["grant"])["expires"]) == ("in force", 2_211_580_800)
    run("policy", "grants", "hospital/records")
    assert "acme/train" in capsys.readouterr().out
    gone = told(capsys, "policy", "withdraw", "hospital/records", "acme/train", "--json")
    assert gone["withdrawn"] == grant["id"]
    [grant] = told(capsys, "policy", "grants", "hospital/records", "--json")["grants"]
    assert grant["state"] == "withdrawn"


def test_owners_sign_one_after_the_other(capsys):
    keys = {name: told(capsys, "policy", "key", f"{name}.key", "--json")["public"] for name in ("alice", "bob")}
    owner = Home.open().owner().public.fingerprint
    owners = "[owners]\nthreshold = 2\n[owners.keys]\n" + "".join(f'{n} = "{k}"\n' for n, k in keys.items())
    records = document("hospital/records", owner, '[[secrets]]\nname = "db"\n' + owners)
    for name in keys:
        run("policy", "sign", str(records), "--key", f"{name}.key")
    run("policy", "apply", str(records))
    request = requested(capsys, "hospital/records")
    for words, missing in (
        (("request.json",), "2 of alice, bob"),
        (("request.json.grant", "--key", "alice.key"), "1 of bob"),
        (("request.json.grant", "--key", "bob.key"), ""),
    ):
        assert told(capsys, "policy", "approve", *words, "--json")["missing"] == missing
    [grant] = told(capsys, "policy", "grants", "hospital/records", "--json")["grants"]
    assert grant["state"] == "in force"
    # Whoever passed the file on cannot have changed what the next one sees.
    changed = json.loads(Path("request.json.grant").read_text())
    changed["reference"]["allow_simulated"] = "sha256:" + "1" * 64
    Path("changed.grant").write_text(json.dumps(changed))
    run("policy", "approve", "changed.grant", "--key", "bob.key", status=FormatError.exit_code)
    run("policy", "key", "carol.key")
    run("policy", "approve", str(request), "--key", "carol.key", status=GrantError.exit_code)
    run("policy", "approve", "request.json.grant", "--expires", "2040-01-31", status=UsageError.exit_code)


def test_a_document_that_imports_nothing_asks_for_nothing(capsys):
    run("policy", "request", str(document("acme/a", ZERO, "")), status=UsageError.exit_code)
    two = '[[secrets]]\nname = "a"\nfrom = "b/c"\n[[secrets]]\nname = "d"\nfrom = "e/f"\n'
    path = document("acme/two", ZERO, two, 'purpose = "p"\n')
    run("policy", "request", str(path), status=UsageError.exit_code)
    capsys.readouterr()
    run("policy", "request", str(path), "--from", "e/f")
    assert json.loads(capsys.readouterr().out)["resources"] == ["secret:d"]


def test_a_vault_is_opened_with_the_slot_that_a_cas_keeps(capsys):
    owner = Home.open().owner().public.fingerprint
    run("policy", "apply", str(document("acme/slots", owner, "")))
    Path("plain").write_bytes(b"content")
    run("seal", "plain", "v.vault")
    run("vault", "keys", "add", "v.vault", "--new-key-file", "me.key")
    run("vault", "keys", "add", "v.vault", "--key", "me.key", "--new-cas", "acme/slots")
    old = Path("v.vault/keys").read_bytes()
    run("vault", "ls", "v.vault", "--cas-slot", "acme/slots")
    run("vault", "keys", "rotate", "v.vault", "--cas-slot", "acme/slots", "--new-cas", "acme/slots")
    assert "forgotten" in " ".join(capsys.readouterr().err.split())
    run("vault", "ls", "v.vault", "--cas-slot", "acme/slots")
    run("vault", "keys", "remove", "v.vault", "cas acme/slots", "--key", "me.key")
    run("vault", "ls", "v.vault", "--cas-slot", "acme/slots", status=WrongKeyError.exit_code)
    Path("v.vault/keys").write_bytes(old)
    run("vault", "ls", "v.vault", "--cas-slot", "acme/slots", status=WrongKeyError.exit_code)


def test_a_secret_comes_from_a_file_byte_by_byte(capsys, monkeypatch):
    owner = Home.open().owner().public.fingerprint
    run("policy", "apply", str(document("acme/blob", owner, '[[secrets]]\nname = "blob"\n')))
    Path("blob").write_bytes(b"\0\n")
    run("cas", "secret", "acme/blob", "blob", "--file", "blob")
