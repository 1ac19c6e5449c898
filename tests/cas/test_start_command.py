"""`strongroom cas start`, its file of options, and what its operators and users do with it on the command line."""

from __future__ import annotations

import argparse
import json
import signal

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas.client.address import CasAddress
from strongroom.cas.service.server import prepare
from strongroom.cas.start.mode import Restart
from strongroom.cli.cas import attester as cas_attester
from strongroom.cli.cas import config as cas_config
from strongroom.cli.cas import start as cas_start
from strongroom.cli.main import main
from strongroom.cli.workspace import Home
from strongroom.crypto import SigningKey
from strongroom.errors import FormatError, UsageError
from tests.cas.world import MEASURED

KEYS = ["sha256:" + digit * 64 for digit in "abc"]
VKEY = "w.example/1+855e2dec+BMHBbmivUDzGlPZirXXbtbg02kREB8w3DbEWpVu9i+wB"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    return Home.open()


def parsed(*words):
    parser = argparse.ArgumentParser()
    cas_start.configure(parser)
    return cas_config.read(parser.parse_args(words), cas_start.options)


def from_file(tmp_path, text, *words):
    path = tmp_path / "cas.toml"
    path.write_text(text)
    return parsed("--config", str(path), *words)


def test_a_file_says_what_the_command_line_would(tmp_path):
    text = f"""
        state = "/var/lib/cas"
        port = 8443
        restart = "witness"
        witness = ["{VKEY}"]
        peer = ["https://10.0.0.2:8443", "https://10.0.0.3:8443"]
        fetch-endorsements = true
        """
    words = ["--state", "/var/lib/cas", "--port", "8443", "--restart", "witness", "--witness", VKEY]
    words += ["--peer", "https://10.0.0.2:8443", "--peer", "https://10.0.0.3:8443", "--fetch-endorsements"]
    read = vars(from_file(tmp_path, text)) | {"config": None}
    assert read == vars(parsed(*words))
    assert from_file(tmp_path, text, "--json").json


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("prot = 5", "got an unknown key 'prot'", "did you mean port?"),
        ("json = true", "got an unknown key 'json'", None),
        ("config = 'x'", "got an unknown key 'config'", None),
        ("port = 'abc'", "invalid int value", None),
        ("port = true", "port: got a boolean, wanted a string or a whole number", None),
        ("port = 1.5", "got float", None),
        ("port = [1]", "port: got a list, wanted one value", None),
        ("restart = 'none'", "invalid choice", None),
        ("operator = 'x'", "operator: got a string, wanted a list", None),
        ("operator = [['x']]", "operator: got a list", None),
        ("fetch-endorsements = 1", "got a number, wanted true or false", None),
        ("[port]\na = 1", "port: got a table", None),
        ("port =", "not TOML", None),
        ("host = '\udcff'", "not TOML", None),
        ("#" * 70000, "longer than", None),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, text, problem, hint):
    path = tmp_path / "cas.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=problem) as caught:
        parsed("--config", str(path))
    assert str(path) in str(caught.value)
    assert hint is None or caught.value.hint == hint


def test_nothing_stands_beside_a_file(tmp_path):
    with pytest.raises(UsageError, match="got --port beside it"):
        from_file(tmp_path, "", "--port", "8443")
    with pytest.raises(UsageError, match="got --operator beside it"):
        from_file(tmp_path, "", "--operator", KEYS[0])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", None),
        ("--operator A --operator B --operator C", Restart("trust-disk", tuple(KEYS), 2)),
        ("--restart owner --operator A --operator B", Restart("owner", tuple(KEYS[:2]), 2)),
        ("--restart owner --operator A --operators-needed 1", Restart("owner", tuple(KEYS[:1]), 1)),
        ("--restart witness --witness W", Restart("witness", witnesses=(VKEY,), quorum=1)),
        ("--restart tpm --tpm-index 0x01800001", Restart("tpm", tpm_index=0x01800001)),
        ("--witness W", None),
        ("--operators-needed 1", UsageError),
        ("--witness W --witness-quorum 1", UsageError),
        ("--restart owner --operator A --tpm-index 0x01800001", UsageError),
        ("--restart owner", UsageError),
        ("--restart witness", UsageError),
    ],
)
def test_the_options_of_a_start_mode(words, wanted):
    named = dict(zip("ABC", KEYS, strict=True)) | {"W": VKEY}
    args = parsed(*(named.get(word, word) for word in words.split()))
    if wanted is UsageError:
        with pytest.raises(UsageError):
            cas_start.restart_of(args)
    else:
        assert cas_start.restart_of(args) == wanted


def run(capsys, *words):
    status = main(["cas", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_an_operator_confirms_and_a_user_verifies(tmp_path, home, capsys, monkeypatch):
    monkeypatch.setattr("strongroom.cli.cas.verify.measured", Measured)
    operator = home.owner().public.fingerprint
    state = tmp_path / "state"
    mode = Restart("owner", (operator, KEYS[0]), 1)
    with prepare(state, restart=mode) as service:
        address = CasAddress(service.address.url, service.address.cas_root)
        of = ("--cas", address.url, "--cas-root", address.cas_root)
        status, _, problem = run(capsys, "confirm", *of)
        assert status == 2
        assert "has seen none of this CAS's log" in problem
        assert run(capsys, "log", *of)[0] == 0  # its head is remembered from now on
    attester = SimulatedAttester(home.vendor(), MEASURED)
    with prepare(state, attester=attester) as service:
        of = ("--cas", service.address.url, "--cas-root", address.cas_root)
        status, _, problem = run(capsys, "log", *of)
        assert status == 46
        assert "0 of 1 operators have confirmed" in problem
        other = tmp_path / "other.key"
        other.write_bytes(SigningKey.generate().pem())
        other.chmod(0o600)
        assert run(capsys, "confirm", *of, "--owner", other)[0] == 42
        status, printed, _ = run(capsys, "confirm", *of)
        assert status == 0
        assert "the CAS is ready" in printed
        assert run(capsys, "log", *of)[0] == 0
        assert "owner, 1 of 2 operators" in run(capsys, "restart-mode", *of)[1]
        status, printed, _ = run(capsys, "restart-mode", "trust-disk", *of, "--json")
        assert json.loads(printed) == {
            "restart": {"mode": "trust-disk", "operators": [operator, KEYS[0]], "operators_needed": 1},
            "changed": True,
        }
        # What it shows of itself.
        reference = tmp_path / "cas.toml"
        reference.write_text(run(capsys, "verify", "--draft")[1].replace("ab" * 48, registers_measurement(MEASURED)))
        status, printed, told = run(capsys, "verify", "--cas", service.address.url, "--reference", reference, "--json")
        assert (status, json.loads(printed)["cas_root"]) == (0, address.cas_root)
        assert "protects nothing against the owner of this machine" in told
        assert "nobody confirms that its database is the latest" in told
        assert run(capsys, "log", *of, "--cas-reference", reference)[0] == 0
        reference.write_text(reference.read_text().replace(registers_measurement(MEASURED), "cd" * 48))
        assert run(capsys, "log", *of, "--cas-reference", reference)[0] == 35
        assert run(capsys, "verify", "--cas", service.address.url, "--reference", reference)[0] == 35


def test_a_second_signal_waits_for_no_answer(tmp_path):
    service = prepare(tmp_path)
    server = service._server._server
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server.force_exit) == (True, False)
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit
    service.close()


def test_the_evidence_of_a_cas_is_of_its_own_code(home, monkeypatch):
    asked = []
    monkeypatch.setattr("strongroom.cli.cas.attester.measure", lambda config, files: asked.append(config) or Measured())
    args = argparse.Namespace(evidence="simulated")
    assert cas_attester.cas_attester(args, home).tee == "simulated"
    (config,) = asked
    assert (config.role, config.cas_root, config.policy) == ("cas", "", "")
    assert cas_attester.cas_attester(argparse.Namespace(evidence="none"), home) is None


class Measured:
    registers = MEASURED
    value = "ab" * 48
