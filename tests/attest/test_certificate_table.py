"""The certificates that an SNP host hands to its guest: a table that nobody signs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.parse.certificate_table import ARK, ASK, VCEK, VLEK, parse_certificate_table
from strongroom.attest.verify import VENDORS
from strongroom.attest.verify.anchors import AMD_INTERMEDIATES
from strongroom.crypto.chains import VendorCertificate
from strongroom.errors import FormatError

LEAF = (Path(__file__).parents[1] / "vectors" / "sev-snp" / "milan_v2.leaf.der").read_bytes()
ASK_DER, ARK_DER = AMD_INTERMEDIATES["Milan"][0].der, VENDORS.amd["Milan"].der
OTHER = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")


def table(certificates: Mapping[UUID, bytes]) -> bytes:
    """A table as hosts make it: entries, one of zeros, and the certificates one after the other."""
    offset = 24 * (len(certificates) + 1)
    entries = b""
    for guid, certificate in certificates.items():
        entries += guid.bytes + struct.pack("<II", offset, len(certificate))
        offset += len(certificate)
    return entries + bytes(24) + b"".join(certificates.values())


def entry(guid: UUID, offset: int, length: int) -> bytes:
    return guid.bytes + struct.pack("<II", offset, length)


@pytest.mark.parametrize("leaf", [VCEK, VLEK])
def test_leaf_first_in_whatever_order_they_come(leaf: UUID) -> None:
    found = parse_certificate_table(table({ARK: ARK_DER, OTHER: b"of another kind", ASK: ASK_DER, leaf: LEAF}))
    assert [each.der for each in found.certificates] == [LEAF, ASK_DER, ARK_DER]
    assert found.revocation_lists == ()


def test_some_hosts_have_pem() -> None:
    pem = VendorCertificate(LEAF).pem().encode()
    found = parse_certificate_table(table({VCEK: pem, ASK: ASK_DER}))
    assert [each.der for each in found.certificates] == [LEAF, ASK_DER]
    with pytest.raises(FormatError, match="2 certificates in one entry"):
        parse_certificate_table(table({VCEK: pem * 2}))
    with pytest.raises(FormatError, match="PEM"):
        parse_certificate_table(table({VCEK: b"-----BEGIN"}))


@pytest.mark.parametrize("empty", [b"", bytes(24), bytes(4096)])
def test_hosts_may_have_none(empty: bytes) -> None:
    assert parse_certificate_table(empty).to_bytes() == b""


def test_zeros_after_the_last_certificate_are_the_page_that_it_lies_in() -> None:
    whole = table({VCEK: LEAF})
    assert parse_certificate_table(whole.ljust(16384, b"\0")).certificates[0].der == LEAF


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"\0", "no entry of zeros"),
        (entry(VCEK, 24, 10), "no entry of zeros"),
        (entry(VCEK, 48, 10) + bytes(23), "no entry of zeros"),
        (entry(VCEK, 0, len(LEAF)) + bytes(24) + LEAF, "at 0 of"),
        (entry(VCEK, 47, len(LEAF)) + bytes(24) + LEAF, "at 47 of"),
        (entry(VCEK, 48, len(LEAF) + 1) + bytes(24) + LEAF, "wanted it within 48 to"),
        (entry(OTHER, 2**32 - 1, 2**32 - 1) + bytes(24), "at 4294967295 of"),
        (entry(VCEK, 72, len(LEAF)) + entry(VCEK, 72, len(LEAF)) + bytes(24) + LEAF, "two certificates of"),
        (table({VCEK: LEAF[:-1]}), "certificate"),
        (table({VCEK: LEAF + b"\0"}), "certificate"),
        (table({VCEK: b""}), "certificate"),
        (bytes(32 * 1024 + 1), "wanted at most"),
    ],
)
def test_what_is_no_table_is_refused(bad: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_certificate_table(bad)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(table({VCEK: LEAF, ASK: ASK_DER})) - 1), st.integers(1, 255)).map(
            lambda flip: bytes(
                each ^ (flip[1] if at == flip[0] else 0) for at, each in enumerate(table({VCEK: LEAF, ASK: ASK_DER}))
            )
        ),
    )
)
def test_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    with suppress(FormatError):
        parse_certificate_table(raw)
