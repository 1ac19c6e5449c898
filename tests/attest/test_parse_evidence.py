from __future__ import annotations

import pytest

from strongroom.attest.evidence import MAX_ENDORSEMENTS, MAX_QUOTE, Evidence
from strongroom.attest.parse.dcap import parse_quote, unpadded
from strongroom.errors import FormatError


def test_a_version_4_quote_parses(vector):
    quote = parse_quote(vector("v4_up_to_date").evidence.quote)
    report = quote.report
    assert (quote.version, report.debug, report.migratable) == (4, False, False)
    assert report.registers["mrtd"].hex().startswith("91eb2b44d141d4ece09f0c75c2c53d24")
    assert "mrservicetd" not in report.registers
    assert len(report.report_data) == 64
    names = ("Intel SGX PCK Certificate", "Intel SGX PCK Platform CA", "Intel SGX Root CA")
    assert all(name in each.subject for name, each in zip(names, quote.certificates, strict=True))


def test_a_version_5_quote_parses(vector):
    quote = parse_quote(vector("v5_no_matching_tcb").evidence.quote)
    assert (quote.version, quote.report.debug, quote.report.registers["mrservicetd"]) == (5, False, bytes(48))


def test_a_debug_quote_says_so(vector):
    assert parse_quote(vector("v4_debug").evidence.quote).report.debug


def test_zero_bytes_after_a_quote_are_no_part_of_it(vector):
    quote = vector("v4_up_to_date").evidence.quote
    assert len(quote) - len(unpadded(quote)) == 70
    assert parse_quote(quote) == parse_quote(unpadded(quote))
    assert unpadded(unpadded(quote)) == unpadded(quote)
    for parse in (parse_quote, unpadded):
        with pytest.raises(FormatError, match="71 bytes after the signature data, wanted zero bytes or none"):
            parse(quote + b"x")


def test_every_prefix_of_a_quote_is_refused(vendor, registers):
    quote = vendor.quote(registers, bytes(64)).quote
    parse_quote(quote)
    for size in range(len(quote)):
        with pytest.raises(FormatError):
            parse_quote(quote[:size])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 2, "got version 2, wanted 3 or 4 or 5"),
        (0, 3, "got TEE type 129, wanted 0"),
        (2, 3, "got attestation key type 3, wanted 2"),
        (4, 1, "got TEE type 1, wanted 0 or 129"),
        (12, 0, "got QE vendor 00"),
        (48 + 584, 0xFF, "of signature data, wanted"),
        (48 + 584 + 4 + 128, 5, "got certification data 5 of"),
        (48 + 584 + 4 + 128 + 2, 0, "got certification data 6 of"),
        (48 + 584 + 4 + 128 + 6 + 448, 33, "got certification data"),
        (48 + 584 + 4 + 128 + 6 + 448 + 34, 4, "got certification data 4 of"),
    ],
)
def test_a_header_or_length_that_is_off_is_refused(vendor, registers, offset, value, message):
    quote = bytearray(vendor.quote(registers, bytes(64)).quote)
    quote[offset] = value
    with pytest.raises(FormatError, match=message):
        parse_quote(bytes(quote))


def test_other_version_5_bodies_are_refused(vector):
    quote = bytearray(vector("v5_no_matching_tcb").evidence.quote)
    for body_type in (0, 1, 2, 4):  # 1 is of SGX; 2 is known, but has another size
        quote[48] = body_type
        with pytest.raises(FormatError, match=f"got body type {body_type} of 648 bytes, wanted 2 of 584 or 3 of 648"):
            parse_quote(bytes(quote))


def test_wire_form_goes_there_and_back(vendor, registers):
    evidence = vendor.quote(registers, bytes(64))
    assert Evidence.from_wire(evidence.to_wire()) == evidence
    assert "quote" not in repr(evidence)


@pytest.mark.parametrize(
    "change",
    [
        {"tee": "sgx2"},
        {"tee": None},
        {"quote": "AA=A"},
        {"quote": "AB=="},  # stray bits
        {"quote": "AA==\n"},
        {"quote": "A_8="},
        {"quote": "AAé="},
        {"quote": 7},
        {"quote": "AAAA" * (MAX_QUOTE // 3 + 2)},
        {"endorsements": "AAAA" * (MAX_ENDORSEMENTS // 3 + 2)},
        {"extra": ""},
    ],
)
def test_wire_form_is_strict(change):
    wire = {"tee": "tdx", "quote": "AA==", "endorsements": "AA=="}
    Evidence.from_wire(wire)
    with pytest.raises(FormatError):
        Evidence.from_wire(wire | change)


def test_wire_form_must_be_complete():
    for wire in ({}, {"tee": "tdx", "quote": "AA=="}, [], None, "tdx"):
        with pytest.raises(FormatError, match="wanted an object of tee, quote and endorsements"):
            Evidence.from_wire(wire)
