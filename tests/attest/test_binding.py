from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from strongroom.attest.binding import MAX_CANONICAL, NO_BINDER, Kind, canonical, parse_canonical, report_data
from strongroom.attest.claims import registers_measurement
from strongroom.attest.token import verify_token
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
