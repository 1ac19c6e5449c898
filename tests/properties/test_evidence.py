"""Whatever bytes arrive, each parser gives a value or an error of ours, and values go there and back."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.attest.claims import REGISTERS
from strongroom.attest.evidence import TEES, Evidence
from strongroom.attest.parse.dcap import parse_quote, unpadded
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.token import sign_token, verify_token
from strongroom.attest.verify import verify
from strongroom.crypto import SigningKey
from strongroom.errors import StrongroomError

NOW = 1_750_000_000
TYP = "strongroom-test+jwt"
KEY = SigningKey.generate()
TOKEN = sign_token(KEY, TYP, {"iat": NOW, "exp": NOW + 600, "x": "y"})

fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

integers = st.integers(-(2**53) + 1, 2**53 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | integers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(text, values, max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    vendor = SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=NOW)
    return vendor.quote({name: bytes(48) for name in REGISTERS}, bytes(64))


@st.composite
def damage(draw) -> list[tuple[str, int, bytes]]:
    """A few edits, at places given in thousandths of the length."""
    edit = st.tuples(st.sampled_from(["set", "insert", "cut"]), st.integers(0, 999), st.binary(min_size=1, max_size=6))
    return draw(st.lists(edit, min_size=1, max_size=3))


def damaged(raw: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for how, place, piece in edits:
        at = len(raw) * place // 1000
        skip = {"set": len(piece), "insert": 0, "cut": len(piece)}[how]
        raw = raw[:at] + (b"" if how == "cut" else piece) + raw[at + skip :]
    return raw


@fuzz
@given(objects)
def test_canonical_goes_there_and_back(value):
    raw = canonical(value)
    assert parse_canonical(raw) == json.loads(raw) == value
    assert canonical(parse_canonical(raw)) == raw


@fuzz
@given(objects, objects)
def test_canonical_bytes_are_equal_only_for_equal_objects(a, b):
    # Python takes True for 1; JSON does not.
    assume(json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True))
    assert canonical(a) != canonical(b)


@fuzz
@given(anything)
def test_canonical_takes_or_refuses_any_value(value):
    with suppress(StrongroomError):
        assert canonical(parse_canonical(canonical(value))) == canonical(value)


@fuzz
@given(st.binary(max_size=200) | anything.map(lambda v: json.dumps(v, default=str).encode("utf-8", "replace")))
def test_parse_canonical_takes_one_spelling_or_refuses(raw):
    with suppress(StrongroomError):
        assert canonical(parse_canonical(raw)) == raw


@fuzz
@given(st.binary(max_size=2000))
def test_quote_parsers_take_or_refuse_any_bytes(raw):
    for parse in (parse_quote, unpadded):
        with pytest.raises(StrongroomError):
            parse(raw)


@fuzz
@given(damage())
def test_quote_parsers_take_or_refuse_damaged_quotes(evidence, edits):
    raw = damaged(evidence.quote, edits)
    for parse in (parse_quote, unpadded):
        with suppress(StrongroomError):
            parse(raw)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["tee", "quote", "endorsements", "x"]), st.sampled_from(TEES) | st.text() | anything
    )
)
def test_wire_form_takes_or_refuses_any_object(wire):
    with suppress(StrongroomError):
        assert Evidence.from_wire(wire).to_wire() == wire


@fuzz
@given(st.sampled_from(TEES), st.binary(max_size=300), st.binary(max_size=300))
def test_wire_form_goes_there_and_back(tee, quote, endorsements):
    evidence = Evidence(tee, quote, endorsements)
    assert Evidence.from_wire(json.loads(json.dumps(evidence.to_wire()))) == evidence


@fuzz
@given(damage(), st.booleans(), st.integers(0, 2**70))
def test_damaged_evidence_says_the_same_or_is_refused(evidence, edits, in_quote, now):
    honest = verify(evidence, now=NOW)
    if in_quote:
        offered = replace(evidence, quote=damaged(evidence.quote, edits))
    else:
        offered = replace(evidence, endorsements=damaged(evidence.endorsements, edits))
    for moment in (NOW, now):
        try:
            claims = verify(offered, now=moment)
        except StrongroomError as error:
            assert error.message.isprintable()
        else:
            assert replace(claims, vendor_root=honest.vendor_root) == honest


@fuzz
@given(st.text(max_size=300) | st.text("ab.=-_", max_size=300))
def test_no_text_is_a_token(token):
    with pytest.raises(StrongroomError):
        verify_token(token, KEY.public, TYP, now=NOW)


@fuzz
@given(damage())
def test_no_damaged_token_is_accepted(edits):
    token = damaged(TOKEN.encode(), edits).decode("latin-1")
    assume(token != TOKEN)
    with pytest.raises(StrongroomError):
        verify_token(token, KEY.public, TYP, now=NOW)


@fuzz
@given(objects)
def test_tokens_go_there_and_back(payload):
    payload |= {"iat": NOW, "exp": NOW + 1}
    assert verify_token(sign_token(KEY, TYP, payload), KEY.public, TYP, now=NOW) == payload
