"""What anybody may send a CAS, and what it lets out."""

from __future__ import annotations

import base64
import datetime as dt
import json
import logging

import pytest

from strongroom.cas.policy.version import sign_policy
from strongroom.cas.wire import b64
from strongroom.channel import HttpClient, Identity
from strongroom.errors import (
    ChannelError,
    FormatError,
    PolicyError,
    StrongroomError,
    VerificationError,
)
from tests.attacks.cas.conftest import is_not_attested
from tests.cas.world import TOKEN, VAULT_KEY, cas_in, world_in

# What leaks


def test_secrets_appear_nowhere_but_in_the_enclave(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        with world.session() as session:
            got = session.attest()
            shown = [repr(x) for x in (session, got, world.policy, world.client, world.client.log())]
        for request in (
            lambda: world.client.put_secret(world.name, "nothing", TOKEN),
            lambda: world.client.put_secret(world.name, "token", TOKEN + b"\0"),
            lambda: world.client.put_vault_key(world.name, "data", VAULT_KEY + b"x"),
            lambda: world.client._put(f"/v1/policies/{world.name}/secrets/token", {"value": TOKEN.decode() + "*"}),
            lambda: world.client._put(f"/v1/policies/{world.name}/secrets/token", TOKEN.decode()),
        ):
            with pytest.raises(StrongroomError) as caught:
                request()
            shown += [repr(caught.value), str(caught.value.to_wire())]
        secrets = [TOKEN, VAULT_KEY, got.environment["SEED"].encode(), (cas.directory / "master.key").read_bytes()]
        files = {p.name: p.read_bytes() for p in cas.directory.iterdir() if p.name != "master.key"}
    text = "\n".join([caplog.text, *shown]).encode()
    for secret in secrets:
        for form in (secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()):
            assert form not in text
            assert not [name for name, content in files.items() if form in content]


BODIES = [
    b"",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{",
    b"\xff\xfe",
    b"{}",
    b"[" * 100_000,
    b'{"policy":' * 50_000,
    b'{"policy":' + b"1" * 10_000 + b"}",
    b'{"policy":1e999}',
    b'{"policy":"\\ud800","text":"\\ud800","signature":"\\ud800","value":"\\ud800","claims":"\\ud800","new":"\\ud800"}',
    b'{"policy":"\\u0000","text":"\\u0000","signature":"","value":"\xc3\xbc","claims":"e30=","new":"\\u0000"}',
    b'{"policy":null,"text":null,"signature":null,"value":null,"claims":null,"old":7,"new":null,"evidence":null}',
    b'{"policy":{},"text":[],"signature":{},"value":[],"claims":{},"old":{},"new":[],"evidence":[],"time_token":{}}',
    b'{"policy":"acme/x","text":"a = 0x' + b"f" * 9000 + b'","signature":"AA==","value":"AA==","claims":"AA=="}',
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/nonce"),
        ("POST", "/v1/attest"),
        ("POST", "/v1/time-token"),
        ("POST", "/v1/service"),
        ("PUT", "/v1/policies/{name}"),
        ("PUT", "/v1/policies/{name}/secrets/token"),
        ("PUT", "/v1/policies/{name}/anchors/out"),
        ("POST", "/v1/log/cosignatures"),
    ],
)
def test_no_body_brings_a_cas_to_fall(world, caplog, method, path):
    with world.enclave() as attested, world.enclave() as asked, world.cas.owner(world.owner) as owner:
        attested.attest()
        for http in (attested.http, asked.http, owner._http):
            for body in [*BODIES, b'{"value":"' + b"A" * (1 << 20) + b'"}']:
                if http is asked.http:
                    asked.nonce()
                headers = {"content-type": "application/json"}
                answer = http.request(method, path.format(name=world.name), body=body, headers=headers)
                if answer.status == 200:
                    assert path == "/v1/time-token" and http is attested.http
                    continue
                assert 400 <= answer.status < 500
                assert set(answer.json()) <= {"error", "code", "hint"}
                assert "Traceback" not in answer.body.decode()
    assert "request failed" not in caplog.text


def test_a_body_over_the_limit_is_not_taken_in(world):
    for size in (1 << 20, 3 << 20):
        with pytest.raises(FormatError, match="request: longer than 1048576 bytes"):
            world.client.put_secret(world.name, "token", b"x" * size)
    world.client.put_secret(world.name, "token", b"x" * 700_000)


def test_evidence_of_wrong_types_is_refused(enclave):
    claims = enclave.claims()
    good = enclave.evidence(enclave.nonce(), claims).to_wire()
    changes = [{"tee": 7}, {"tee": "sgx"}, {"quote": "%"}, {"quote": ""}, {"quote": None}, {"endorsements": "AAAA"}]
    for evidence in ({}, [], "x", good | {"more": 1}, *(good | change for change in changes)):
        enclave.nonce()
        with pytest.raises((FormatError, VerificationError)):
            enclave.http.post("/v1/attest", {"evidence": evidence, "claims": b64(claims)}, fresh=True)
    assert is_not_attested(enclave)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/cas/",
        "/v1/policies/",
        "/v1/policies/acme",
        "/v1/policies//x",
        "/v1/policies/acme/..",
        "/v1/policies/acme/%2e%2e/anchors/out",
        "/v1/policies/acme%2Fx/y",
        "/v1/policies/acme/x%00",
        "/v1/policies/acme/%ff%fe",
        "/v1/policies/acme/%ed%a0%80",
        "/v1/policies/acme/x%0d%0aSet-Cookie:y",
        "/v1/policies/" + "a" * 5000 + "/x",
        "/v1/policies/../../etc/passwd/x",
        "/v1/log?after=-1",
        "/v1/log?after=1e3",
        "/v1/log?after=" + "9" * 19,
        "/v1/log?after=%C2%B2",
        "/v1/log?after=%D9%A3",
        "/v1/log?after=",
        "/v1/log?proofs=",
        "/v1/log?proofs=" + "9" * 19,
        "/v1/log/",
        "/v1/log/consistency",
        "/v1/log/consistency?from=1&to=-1",
        "/v1/log/consistency?from=2&to=1",
        "/v1/log/consistency?from=0&to=" + "9" * 18,
        "//evil.example/v1/cas",
    ],
)
def test_no_path_leads_elsewhere(world, caplog, path):
    answer = world.client._http.request("GET", path)
    assert answer.status in (400, 404)
    assert set(answer.json()) <= {"error", "code", "hint"}
    assert len(answer.body) < 1000
    assert "location" not in answer.headers
    assert "request failed" not in caplog.text


@pytest.mark.parametrize("method", ["DELETE", "POST", "PATCH", "OPTIONS", "TRACE"])
def test_no_other_method_does_anything(world, method):
    answer = world.client._http.request(method, f"/v1/policies/{world.name}")
    assert (answer.status, answer.json()["code"]) == (405, "usage")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03 nonsense\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: cas\r\n\r\n",
        b"POST /v1/nonce HTTP/1.1\r\nHost: cas\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/nonce HTTP/1.1\r\nHost: cas\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET /v1/cas HTTP/9.9\r\nHost: cas\r\n\r\n",
    ],
)
def test_what_is_not_http_ends_the_connection_only(world, enclave, request_bytes):
    enclave.stream.send(request_bytes)
    answer = b""
    try:
        while part := enclave.stream.recv():
            answer += part
    except ChannelError:
        pass
    assert answer.startswith(b"HTTP/1.1 400") or not answer
    assert world.client.describe()["service"] == "strongroom-cas"


def test_a_request_that_is_cut_off_is_no_failure(world, enclave, caplog):
    enclave.stream.send(b"POST /v1/nonce HTTP/1.1\r\nHost: cas\r\nContent-Length: 100\r\n\r\n{")
    enclave.http.close()
    # Two more round trips on the same event loop: by then the CAS has seen the end of that connection.
    for _ in range(2):
        world.client.describe()
    assert "request failed" not in caplog.text


def test_a_policy_made_to_be_slow_is_refused_before_it_is_parsed(world):
    text = world.text() + "a." * 60_000 + "b = 1\n"
    with pytest.raises(PolicyError, match="60000 dots in one line outside strings, the limit is 16"):
        signature = b64(sign_policy(text, world.owner))
        world.client._put(f"/v1/policies/{world.name}", {"text": text, "signature": signature})


def test_an_internal_failure_says_nothing(world, caplog, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(f"disk full, while writing {TOKEN.decode()}")

    monkeypatch.setattr("strongroom.cas.state.store.Store.put_secret", fail)
    path, body = f"/v1/policies/{world.name}/secrets/token", json.dumps({"value": b64(TOKEN)}).encode()
    answer = world.client._http.request("PUT", path, body=body, headers={"content-type": "application/json"})
    assert answer.status == 500
    assert answer.json() == {
        "error": "request: the CAS failed to handle it",
        "code": "cas",
        "hint": "its own log says why",
    }
    assert "request failed: PUT" in caplog.text


def test_the_owner_s_key_alone_opens_the_owner_s_doors(world):
    """A self-signed certificate of the owner's name, with another key."""
    impostor = Identity.fresh("Strongroom owner", now=dt.datetime.now(dt.UTC))
    http = HttpClient(world.cas.dial, host="cas", expect=lambda chain: None, identity=impostor)
    with http:
        answer = http.request("GET", f"/v1/policies/{world.name}/anchors/out")
        assert (answer.status, answer.json()["code"]) == (403, "unauthorized")
