"""The command line of those who run a CAS and of those who administer policies: tables, JSON, keys, tokens."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.cas.api.operation import Operation
from strongroom.cas.callers.oidc import OidcAuthenticator, https_fetch
from strongroom.cli import output
from strongroom.cli.cas import operation as cas_operation
from strongroom.cli.cas import status as cas_status
from strongroom.cli.main import main
from strongroom.crypto import Certificate, SigningKey
from strongroom.testing.oidc import running_issuer
from tests.cas.world import PROGRAM, World, cas_in, world_in

STATUS = {
    "service": str,
    "version": str,
    "cas_root": str,
    "time": int,
    "uptime": int,
    "ready": bool,
    "waiting": str,
    "head": str,
    "witnesses": list,
    "peers": list,
    "about": dict,
    "url": str,
    "owner": str,
    "simulated_vendor": str,
}
POLICY = ["policy", "version", "digest", "role", "rights", "owners", "instances", "live", "expires", "changed"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("STRONGROOM_OIDC_TOKEN_FILE", raising=False)


@pytest.fixture
def command(world: World, tmp_path: Path):
    """Run `strongroom cas WORDS` as the world's owner: status, output, and errors."""
    key = tmp_path / "owner.key"
    world.owner.save(key)
    address = world.cas.address

    def run(capsys, *words: str, owner: Path | None = key) -> tuple[int, str, str]:
        where = ["--cas", address.url, "--cas-root", address.cas_root]
        status = main(["cas", *words, *where, *(["--owner", str(owner)] if owner else [])])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_status_says_how_the_cas_is_and_its_json_keeps_its_form(command, capsys, world):
    status, out, _ = command(capsys, "status", "--json")
    told = json.loads(out)
    assert (status, {name: type(value) for name, value in told.items()}) == (0, STATUS)
    assert set(told["about"]) == {
        *("restart", "evidence", "namespaces", "tokens", "unseal", "database", "endorsements")
    }
    status, out, _ = command(capsys, "status")
    assert status == 0 and "ready    yes\n" in out and f"root     {world.cas.address.cas_root}\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_policies_are_a_table_that_fits_and_json(command, capsys, world, monkeypatch):
    monkeypatch.setattr(output.stdout, "width", 80)
    status, out, _ = command(capsys, "policies")
    assert status == 0 and world.name in out and max(map(len, out.splitlines())) <= 80
    status, out, _ = command(capsys, "policies", "--json")
    (told,) = json.loads(out)
    assert (status, list(told), told["policy"], told["live"]) == (0, POLICY, world.name, 0)


def test_its_root_is_a_certificate_for_tls_clients(command, capsys, world):
    for words in ((), ("--json",)):
        status, out, _ = command(capsys, "root", *words)
        pem = json.loads(out)["certificate"] if words else out
        found = Certificate.from_pem(pem.encode())
        assert (status, found.key.fingerprint) == (0, world.cas.address.cas_root)
        found.verify_issued_by(found, now=dt.datetime.now(dt.UTC))


def test_who_administers_nothing_is_told_so(command, capsys, tmp_path):
    path = tmp_path / "stranger.key"
    SigningKey.generate().save(path)
    status, out, err = command(capsys, "policies", owner=path)
    assert (status, out) == (0, "") and "administers no policy there" in err


def test_a_long_table_of_policies_fits_80_columns():
    one = {
        "policy": "a-namespace-of-some-length/a-policy-of-some-length-too",
        "version": 2_147_483_647,
        "role": "service",
        "live": 10_000,
        "instances": 10_000,
        "owners": {"threshold": 16, "of": 32},
        "rights": ["apply", "secrets", "anchors"],
        "expires": 2_000_000_000,
        "changed": 1_700_000_000,
    }
    table = cas_status.policy_table([one, one | {"expires": 1, "rights": ["x"] * 7, "live": None}], now=1_800_000_000)
    console = type(output.stdout)(width=80)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "expired" in captured.get() and "16/32" in captured.get() and "2033-05-18" in captured.get()


def test_namespaces_are_shown_given_and_taken(command, capsys, world):
    name, other = world.name.partition("/")[0], SigningKey.generate().public.fingerprint
    assert command(capsys, "namespace", "allow", name, other)[0] == 0
    _, out, _ = command(capsys, "namespace", "show", name, "--json")
    mine = world.owner.public.fingerprint
    assert json.loads(out) == {"namespace": name, "owners": [mine], "members": [other]}
    _, out, _ = command(capsys, "namespace", "remove", name, other)
    assert "members          nobody" in out
    for words in (["show", name, other], ["allow", name], ["allot", name], ["remove", name, "--to", other]):
        status, _, err = command(capsys, "namespace", *words)
        assert status == 2 and "hint: " in err
    assert command(capsys, "namespace", "show", "elsewhere")[0] == 42


def test_a_token_file_logs_in_and_is_in_no_output(tmp_path, capsys, monkeypatch):
    with running_issuer(tmp_path) as (issuer, ca):
        authenticator = OidcAuthenticator([issuer.url], "cas", fetch=https_fetch(ca))
        with cas_in(tmp_path, operation=Operation(authenticator=authenticator)) as cas, world_in(cas) as world:
            table = f'[[administrators]]\nname = "p"\noidc = "{issuer.url}"\nsubject = "alice"\nmay = ["log"]\n'
            world.renew(more=PROGRAM + table)
            token = issuer.token("alice", "cas", now=cas.clock.now)
            file = tmp_path / "token"
            file.write_text(token + "\n")
            where = ["--cas", cas.address.url, "--cas-root", cas.address.cas_root]
            assert main(["cas", "policies", "--json", *where, "--token-file", str(file)]) == 0
            said = capsys.readouterr()
            assert json.loads(said.out)[0]["rights"] == ["log"] and token not in said.out + said.err
            monkeypatch.setenv("STRONGROOM_OIDC_TOKEN_FILE", str(file))
            assert main(["cas", "log", "--json", *where]) == 0
            assert json.loads(capsys.readouterr().out)
            file.write_text(issuer.token("alice", "other", now=cas.clock.now))
            assert main(["cas", "log", *where]) == 42
            err = capsys.readouterr().err
            assert "it is for other, wanted cas" in err and file.read_text() not in err
            assert main(["cas", "log", *where, "--token-file", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--oidc", "https://x"], "one is useless without the other"),
        (["--oidc-audience", "x"], "one is useless without the other"),
        (["--oidc", "http://x", "--oidc-audience", "x"], "wanted an issuer's https:// address"),
        (["--oidc", "https://x", "--oidc-audience", "x", "--oidc-ca", "/none"], "holds no certificate"),
        (["--metrics-names"], "goes with --metrics"),
        (["--metrics", "127.0.0.1"], "wanted HOST:PORT"),
        (["--metrics", "127.0.0.1:99999"], "wanted HOST:PORT"),
        (["--access-log", "/none/x"], "no such file or directory"),
    ],
)
def test_options_of_start_that_make_no_sense(capsys, tmp_path, words, says):
    assert main(["cas", "start", "--state", str(tmp_path / "cas"), *words]) == 2
    assert says in capsys.readouterr().err


def test_the_options_of_start_say_what_is_limited_counted_and_written(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    cas_operation.options(parser)
    log = tmp_path / "access.log"
    chosen = ["--metrics", "127.0.0.1:0", "--metrics-names", "--access-log", str(log), "--namespaces", "allotted"]
    args = parser.parse_args([*chosen, "--rate", "0", "--policy-rate", "5", "--limit-loopback"])
    operation = cas_operation.operation(args)
    assert operation.allotted and operation.authenticator is None
    assert operation.limits.addresses is None and operation.limits.policies is not None and operation.limits.loopback
    opened = replace(operation, allotted=False)
    with cas_operation.told(args, operation), cas_in(tmp_path, operation=opened) as cas, world_in(cas) as world:
        with world.enclave() as enclave:
            enclave.attest()
        (port,) = re.findall(r"metrics at http://127\.0\.0\.1:([0-9]+)/metrics", capsys.readouterr().err)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert f'policy="{world.name}"' in answer.read().decode()
    assert any(json.loads(line)["path"] == "/v1/attest" for line in log.read_text().splitlines())
