"""Whatever bytes arrive as an SNP report or as its endorsements, there are claims or an error of ours."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.snp import REPORT_SIZE, parse_snp
from strongroom.attest.verify import verify
from strongroom.crypto.chains import RevocationList, VendorCertificate, VendorKey, pem_certificates
from strongroom.errors import FormatError, StrongroomError
from tests.attest.amd import NOW, Amd, evidence, leaf_of, vector, with_byte

fuzz = settings(max_examples=100, deadline=None)
SHOWN = vector("milan_v3_vlek")
LEAF = leaf_of("milan_v3_vlek")
LIST = Amd().revoking(Amd().issuer, 77)
edits = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4)


def edited(raw: bytes, changes: list[tuple[int, int]]) -> bytes:
    for place, value in changes:
        raw = with_byte(raw, place % len(raw), value)
    return raw


@fuzz
@given(st.binary(max_size=1300) | st.binary(min_size=REPORT_SIZE, max_size=REPORT_SIZE))
def test_any_bytes_as_a_report(raw):
    with suppress(FormatError):
        parse_snp(raw)


@fuzz
@given(edits)
def test_an_edited_report_is_refused(changes):
    raw = edited(SHOWN.quote, changes)
    if raw != SHOWN.quote:
        with pytest.raises(StrongroomError):
            verify(Evidence("snp", raw, SHOWN.endorsements), now=NOW)


@fuzz
@given(edits)
def test_an_edited_certificate_is_refused(changes):
    der = edited(LEAF.der, changes)
    if der != LEAF.der:
        with pytest.raises(StrongroomError):
            verify(evidence(SHOWN.quote, [VendorCertificate(der)]), now=NOW)


@fuzz
@given(edits)
def test_an_edited_revocation_list_is_refused(changes):
    der = edited(LIST.der, changes)
    if der != LIST.der:
        with pytest.raises(StrongroomError):
            RevocationList(der).verify(Amd().issuer.certificate, now=NOW)


@fuzz
@given(st.binary(max_size=200), st.sampled_from([VendorCertificate, RevocationList, VendorKey, pem_certificates]))
def test_any_bytes_as_a_certificate(raw, read):
    for wrapped in (raw, b"\x30\x82" + len(raw).to_bytes(2) + raw, b"-----BEGIN CERTIFICATE-----" + raw):
        with suppress(FormatError):
            read(wrapped)


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes_as_endorsements(raw):
    with pytest.raises(StrongroomError):
        verify(Evidence("snp", SHOWN.quote, raw), now=NOW)
