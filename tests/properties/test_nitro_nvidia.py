"""Documents of Nitro enclaves and reports of GPUs: whatever arrives, a value or an error of ours."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.parse.cbor import parse_cbor
from strongroom.attest.parse.nitro import parse_nitro
from strongroom.attest.parse.nvidia import from_nvtrust, from_report, parse_nvidia
from strongroom.errors import FormatError

VECTORS = Path(__file__).parents[1] / "vectors"
DOCUMENT = base64.b64decode((VECTORS / "aws-nitro" / "nitro.b64").read_bytes())
REPORT = bytes.fromhex((VECTORS / "nvidia-gpu" / "hopper_report.hex").read_text())
CHAIN = (VECTORS / "nvidia-gpu" / "hopper_chain.pem").read_bytes()

fuzz = settings(max_examples=100, deadline=None)

integers = st.integers(-(2**64), 2**64 - 1)
items = st.recursive(
    st.none() | st.booleans() | integers | st.binary(max_size=300) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(integers | st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
edits = st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 2), st.binary(max_size=5)), min_size=1, max_size=4)


def edited(raw: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, piece in changes:
        at = len(raw) * place // 10000
        raw = raw[:at] + piece + raw[at + cut * len(piece) :]
    return raw


def same(one: object, other: object) -> bool:
    """Equal, and of the same types: 1 is not True here."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@fuzz
@given(items)
def test_what_the_other_library_writes_is_read_alike(item):
    depth = 0
    level = [item]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each if isinstance(each, list) else each.values())
        ]
    raw = cbor2.dumps(item)
    if depth > 8:
        with suppress(FormatError):
            parse_cbor(raw, "item")
        return
    assert same(parse_cbor(raw, "item"), item)


@fuzz
@given(st.binary(max_size=60))
def test_what_is_read_from_any_bytes_has_that_one_spelling(raw):
    with suppress(FormatError):
        assert cbor2.dumps(parse_cbor(raw, "item")) == raw
    with suppress(FormatError):
        assert same(parse_cbor(raw, "item", indefinite_maps=True), cbor2.loads(raw))


@fuzz
@given(edits)
def test_a_damaged_document_parses_or_is_a_format_error(changes):
    with suppress(FormatError):
        parse_nitro(edited(DOCUMENT, changes))


@fuzz
@given(edits)
def test_a_damaged_report_parses_or_is_a_format_error(changes):
    raw = edited(REPORT, changes)
    with suppress(FormatError):
        assert parse_nvidia(raw).signed == raw[:-96]


@fuzz
@given(st.binary(max_size=200), edits)
def test_files_of_any_content_are_read_or_refused(report, changes):
    for one, chain in (
        (report, CHAIN),
        (edited(REPORT.hex().encode(), changes), CHAIN),
        (REPORT, edited(CHAIN, changes)),
    ):
        with suppress(FormatError):
            from_report(one, chain)


@fuzz
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["evidence", "certificate", "nonce", "arch"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_objects_of_any_form_are_read_or_refused(wire):
    with suppress(FormatError):
        from_nvtrust(wire)
