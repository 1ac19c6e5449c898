from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from strongroom.attest.binding import (
    MAX_CANONICAL,
    NO_BINDER,
    Kind,
    bound_data,
    canonical,
    launched_data,
    parse_canonical,
    report_data,
)
from strongroom.attest.claims import layers_measurement, pcrs_measurement, registers_measurement
from strongroom.attest.cwt import MAX_CWT
from strongroom.attest.evidence import MAX_ENDORSEMENTS, MAX_EVENT_LOG, MAX_QUOTE, TEES
from strongroom.attest.parse.launched import event_bytes, program_event
from strongroom.attest.result import verify_result
from strongroom.attest.token import MAX_TOKEN, thumbprint, verify_token
from strongroom.crypto import PublicKey
from strongroom.errors import FormatError

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "evidence.md"
A, B = b"a" * 32, b"b" * 32


@pytest.fixture(scope="module")
def spec() -> dict:
    return json.loads(re.search(r"```json\n(.*?)```", SPEC.read_text(), re.DOTALL)[1])


def test_the_specification_s_vectors_hold(spec):
    claims = bytes.fromhex(spec["canonical"])
    fresh, binder = bytes.fromhex(spec["fresh"]), bytes.fromhex(spec["binder"])
    assert canonical(spec["claims"]) == claims
    assert parse_canonical(claims) == spec["claims"]
    assert report_data(Kind.SESSION, fresh=fresh, binder=binder, claims=claims).hex() == spec["session"]
    assert report_data(Kind.SERVICE, fresh=fresh, binder=NO_BINDER, claims=claims).hex() == spec["service"]
    assert registers_measurement(spec["registers"]) == spec["measurement"]
    token = verify_token(
        spec["token"], PublicKey(bytes.fromhex(spec["spki"])), "strongroom-test+jwt", now=1_700_000_300
    )
    assert token == {"iat": 1_700_000_000, "exp": 1_700_000_600, "head": 7}
    session = bytes.fromhex(spec["session"])
    for tee in ("tpm", "azure-snp", "azure-tdx"):
        assert bound_data(tee, session).hex() == spec["session_tpm"]
    assert bound_data("nvidia", session).hex() == spec["session_nvidia"]
    for tee in ("sgx", "tdx", "snp", "nitro", "simulated"):
        assert bound_data(tee, session) == session
    assert launched_data(session, spec["measurement"]).hex() == spec["launched"]
    assert event_bytes(program_event(4, spec["measurement"], ("sha384",))).hex() == spec["program_event"]
    pcrs = {int(index): bytes.fromhex(value) for index, value in spec["pcrs"].items()}
    assert pcrs_measurement("sha256", pcrs) == spec["pcrs_measurement"]
    assert layers_measurement(*spec["layers"]) == spec["layers_measurement"]


def test_the_specification_s_results_hold(spec):
    key = PublicKey(bytes.fromhex(spec["result_spki"]))
    assert thumbprint(key) == spec["result_kid"]
    jwt, cwt = spec["result_jwt"], bytes.fromhex(spec["result_cwt"])
    said = verify_result(jwt, key, now=1_700_000_300)
    assert verify_result(cwt, key, now=1_700_000_300) == said
    assert (said.tee, said.policy, said.fresh.hex()) == ("snp", "acme/digits", spec["fresh"])
    assert [device.tee for device in said.devices] == ["nvidia"]


def test_every_kind_of_evidence_is_in_the_specification():
    page = SPEC.read_text()
    for tee in TEES:
        assert f"`{tee}`" in page
    for weakness in ("sept-ve", "vmpl", "policy-bits", "pcr-sha1", "pcr-resettable", "migratable"):
        assert f"`{weakness}`" in page
    for size in (MAX_QUOTE, MAX_ENDORSEMENTS, MAX_EVENT_LOG, MAX_CANONICAL, MAX_CWT, MAX_TOKEN):
        assert f"{size:,}" in page


def test_the_specification_s_formulas_give_its_vectors(spec):
    # Computed from the page alone, so that a mistake shared by code and vectors shows.
    claims = hashlib.sha256(bytes.fromhex(spec["canonical"])).digest()
    fresh, binder = bytes.fromhex(spec["fresh"]), bytes.fromhex(spec["binder"])
    session = hashlib.sha512(b"strongroom/evidence/v1\x01" + fresh + binder + claims)
    service = hashlib.sha512(b"strongroom/evidence/v1\x02" + fresh + bytes(32) + claims)
    measured = bytes.fromhex("".join(spec["registers"][n] for n in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")))
    assert session.hexdigest() == spec["session"]
    assert service.hexdigest() == spec["service"]
    assert hashlib.sha384(b"strongroom/measurement/v1" + measured).hexdigest() == spec["measurement"]
    data = bytes.fromhex(spec["session"])
    assert hashlib.sha256(data).hexdigest() == spec["session_tpm"]
    assert hashlib.sha256(b"strongroom/device/v1" + data).hexdigest() == spec["session_nvidia"]
    program = bytes.fromhex(spec["measurement"])
    assert hashlib.sha512(b"strongroom/launched/v1" + data + program).hexdigest() == spec["launched"]
    told = bytes.fromhex("31507253" + "30000000") + program
    event = bytes.fromhex("04000000" + "06000000" + "01000000" + "0c00") + hashlib.sha384(told).digest()
    assert (event + bytes.fromhex("38000000") + told).hex() == spec["program_event"]
    pcrs = b"".join(bytes([int(i), 32]) + bytes.fromhex(value) for i, value in spec["pcrs"].items())
    label = b"strongroom/measurement/v1/pcrs"
    assert hashlib.sha384(label + b"sha256\0" + pcrs).hexdigest() == spec["pcrs_measurement"]
    layers = b"".join(bytes([48]) + bytes.fromhex(each) for each in spec["layers"])
    assert hashlib.sha384(b"strongroom/measurement/v1/layers" + layers).hexdigest() == spec["layers_measurement"]


def test_every_input_changes_the_report_data():
    base = {"fresh": A, "binder": A, "claims": b"{}"}
    variants = [
        report_data(Kind.SESSION, **base),
        report_data(Kind.SERVICE, **base | {"binder": NO_BINDER}),
        report_data(Kind.SESSION, **base | {"fresh": B}),
        report_data(Kind.SESSION, **base | {"binder": B}),
        report_data(Kind.SESSION, **base | {"claims": b'{"a":1}'}),
    ]
    assert len(set(variants)) == len(variants)
    assert all(len(data) == 64 for data in variants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fresh": b"a" * 31}, "fresh: 31 bytes, wanted 32"),
        ({"binder": b"b" * 33}, "binder: 33 bytes, wanted 32"),
        ({"kind": Kind.SERVICE}, "binder: not zero, wanted 32 zero bytes for evidence of kind service"),
        ({"binder": NO_BINDER}, "binder: zero, wanted the channel's exporter for evidence of kind session"),
        ({"kind": 3}, "evidence kind: got 3, wanted one of [1, 2]"),
    ],
)
def test_report_data_refuses(change, message):
    arguments = {"kind": Kind.SESSION, "fresh": A, "binder": B, "claims": b"{}"} | change
    with pytest.raises(FormatError) as caught:
        report_data(arguments.pop("kind"), **arguments)
    assert caught.value.message == message


def test_canonical_is_rfc_8785():
    # Keys by UTF-16 code unit: U+1F600 is a surrogate pair and comes before U+FB33.
    assert canonical({"\ufb33": 1, "\U0001f600": 2, "€": 3, "\r": 4, "1": 5}) == (
        '{"\\r":4,"1":5,"€":3,"\U0001f600":2,"\ufb33":1}'.encode()
    )
    assert canonical({"b": {"d": 1, "c": [True, None]}, "a": '"\\/\x07'}) == (
        rb'{"a":"\"\\/\u0007","b":{"c":[true,null],"d":1}}'
    )


@pytest.mark.parametrize(
    "claims",
    [
        {"a": 1.0},
        {"a": float("nan")},
        {"a": 2**53},
        {"a": b"bytes"},
        {"a": {1}},
        {1: "a"},
        {"a": "\ud800"},
        {"\ud800": 1},
        {"a": "x" * MAX_CANONICAL},
        [],
        "text",
    ],
)
def test_canonical_refuses(claims):
    with pytest.raises(FormatError, match="canonical JSON: "):
        canonical(claims)


def test_canonical_stops_at_sixteen_levels():
    def nested(levels):
        return {"a": nested(levels - 1)} if levels else 0

    canonical(nested(15))
    with pytest.raises(FormatError, match="deeper than 16 levels"):
        canonical(nested(16))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'{"a":1.0}',
        b'{"a":-0}',
        b'{"a":1e2}',
        b'{"a":NaN}',
        b'{"a":"\\u0061"}',
        b'{"a":"\\ud800"}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"a":1',
        b'"a"',
        b"",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b" " * (MAX_CANONICAL + 1),
    ],
)
def test_parse_canonical_refuses_all_but_one_spelling(raw):
    with pytest.raises(FormatError, match="canonical JSON: "):
        parse_canonical(raw)
