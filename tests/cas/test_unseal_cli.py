"""`strongroom cas start --unseal`, `unseal`, `share-key` and `rekey` as operators and holders meet them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.state.root_secret import open_root_secret, read_record
from strongroom.cli.main import main
from strongroom.testing.swtpm import SoftwareTpm, lacking


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))


@contextmanager
def strongroom(*words):
    """A verb that goes on running; its standard output and error are read together."""
    command = [sys.executable, "-u", "-m", "strongroom", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def line_with(process, words):
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return line
    raise AssertionError(said)


def holder(tmp_path, capsys, name):
    assert main(["cas", "share-key", str(tmp_path / f"{name}.key")]) == 0
    return f"{name}={capsys.readouterr().out.strip()}"


def test_from_share_keys_to_a_cas_that_two_of_three_open(tmp_path, capsys):
    state = tmp_path / "state"
    named = [word for name in ("alice", "bob", "carol") for word in ("--holder", holder(tmp_path, capsys, name))]
    start = ["cas", "start", "--state", state, "--unseal", "shares"]
    with strongroom(*start, *named, "--threshold", 2) as cas:
        root = line_with(cas, "root sha256:").split()[1]
    (directory,) = state.glob("shares-*")
    for share in directory.iterdir():
        share.rename(tmp_path / share.name)  # to its holder
    directory.rmdir()
    with strongroom(*start) as cas:
        url = line_with(cas, "sealed: ").split("sealed: ")[1].split()[0]
        give = ["cas", "unseal", "--cas", url, "--without-evidence"]
        alice = [*give, "--share", str(tmp_path / "alice.share"), "--key", str(tmp_path / "alice.key")]
        assert main([*alice, "--json"]) == 0
        said = capsys.readouterr()
        told = json.loads(said.out)
        assert (told["shares"], told["open"], told["appraised"]) == (1, False, None)
        assert "whoever answers at that address" in said.err
        assert main(alice) == 43
        assert main([*alice[:-1], str(tmp_path / "bob.key")]) == 21
        assert main([*give, "--share", str(tmp_path / "bob.share"), "--key", str(tmp_path / "bob.key")]) == 0
        assert "share 2 given; it opens" in capsys.readouterr().out
        url = line_with(cas, "CAS at ").split()[2]
        assert line_with(cas, "root sha256:").split()[1] == root
        with OwnerClient(url, cas_root=root) as client:
            assert client.describe()["cas_root"] == root
        capsys.readouterr()
        assert main([*alice[:3], url, *alice[4:]]) == 43
        assert "it is open already" in capsys.readouterr().err


def test_the_way_changes_with_its_holders_consent(tmp_path, capsys):
    state = tmp_path / "state"
    alice = holder(tmp_path, capsys, "alice")
    secret = open_root_secret(state)
    assert (
        main(["cas", "rekey", "--state", str(state), "--unseal", "shares", "--holder", alice, "--threshold", "1"]) == 0
    )
    assert "kept by shares from now on; by trust-disk before" in capsys.readouterr().out
    assert not (state / "master.key").exists()
    (share,) = state.glob("shares-*/alice.share")
    with strongroom("cas", "rekey", "--state", state, "--unseal", "trust-disk") as rekeying:
        url = line_with(rekeying, "sealed: ").split("sealed: ")[1].split()[0]
        give = ["cas", "unseal", "--cas", url, "--without-evidence", "--share", str(share)]
        give += ["--key", str(tmp_path / "alice.key")]
        assert main(give) == 34
        assert "--allow-rekey" in capsys.readouterr().err
        assert main([*give, "--allow-rekey", "trust-disk"]) == 0
        line_with(rekeying, "kept by trust-disk from now on; by shares before")
        assert rekeying.wait(30) == 0
    assert (state / "master.key").read_bytes() == secret
    assert read_record(state)["unseal"] == "trust-disk"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--unseal", "shares"], 2, "shares: whose, and how many of them unseal it"),
        (["--unseal", "shares", "--holder", "alice", "--threshold", "1"], 10, "share key: got ''"),
        (["--unseal", "sgx"], 61, "sgx: no /dev/attestation/keys/_sgx_mrenclave"),
        (["--unseal", "snp"], 61, "snp: no /dev/sev-guest"),
        (["--unseal", "peer"], 2, "unseal peer: which"),
        (["--unseal", "trust-disk", "--threshold", "2"], 2, "--threshold: belongs to --unseal shares"),
        (["--pin-file", "x"], 2, "--pin-file: belongs to --unseal tpm"),
    ],
)
def test_ways_that_cannot_be(tmp_path, capsys, words, status, said):
    assert main(["cas", "start", "--state", str(tmp_path / "state"), *words]) == status
    problem, hint = capsys.readouterr().err.splitlines()[:2]
    assert said in problem
    assert hint.startswith("strongroom: hint: ")
    assert not (tmp_path / "state" / "unseal.json").exists()


@pytest.mark.skipif(lacking() is not None, reason=f"{lacking()} is not installed: `make setup` says how")
def test_a_tpm_s_pin_changes_and_goes(tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    (tmp_path / "one").write_text("4711\n")
    (tmp_path / "two").write_text("0815\n")
    secret = open_root_secret(state)
    rekey = ["cas", "rekey", "--state", str(state), "--unseal"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    with SoftwareTpm.start(tmp_path / "maker") as swtpm:
        monkeypatch.setenv("STRONGROOM_TPM", swtpm.tcti)
        assert main([*rekey, "tpm", "--pin-file", one]) == 0
        assert main([*rekey, "tpm", "--pin-file", two, "--old-pin-file", two]) == 21
        assert main([*rekey, "tpm", "--pin-file", two, "--old-pin-file", one]) == 0
        assert main([*rekey, "trust-disk"]) == 2
        assert "pin: the root secret is sealed to one" in capsys.readouterr().err
        assert main([*rekey, "trust-disk", "--old-pin-file", two]) == 0
    assert open_root_secret(state) == secret


def test_another_way_than_before_has_a_hint(tmp_path, capsys):
    open_root_secret(tmp_path / "state")
    state = str(tmp_path / "state")
    assert main(["cas", "start", "--state", state, "--unseal", "sgx"]) == 2
    assert "strongroom cas rekey --unseal sgx" in capsys.readouterr().err
    assert main(["cas", "rekey", "--state", str(tmp_path / "none"), "--unseal", "trust-disk"]) == 2
    assert "holds no CAS whose root secret is kept" in capsys.readouterr().err
    assert main(["cas", "rekey", "--state", state, "--unseal", "peer"]) == 2
    assert "peer keeps nothing by itself" in capsys.readouterr().err
