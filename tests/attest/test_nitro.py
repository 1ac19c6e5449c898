"""Documents of Nitro enclaves: real ones, and those of a hypervisor of the tests' own, encoded by another library."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.cbor import byte_string, parse_cbor
from strongroom.attest.parse.nitro import parse_nitro
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify import nitro as verifier
from strongroom.crypto.p384 import P384Signer
from strongroom.crypto.vendor import Validity
from strongroom.errors import (
    BindingError,
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    StrongroomError,
    VerificationError,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "aws-nitro"
MADE, DEBUG_MADE = 1725719859, 1725719886
NOW = 1_750_000_000
HOURS = 3600
PROTECTED = bytes.fromhex("a1013822")
PCRS = {index: bytes([index + 1]) * 48 for index in range(16)}


def document(name: str) -> Evidence:
    return Evidence("nitro", base64.b64decode((VECTORS / f"{name}.b64").read_bytes()), b"")


class Hypervisor:
    """Signs whatever payload it is told to, under a root of its own."""

    def __init__(self) -> None:
        self.root = P384Signer.root("aws.nitro-enclaves", Validity(0, NOW + 9999 * HOURS))
        self.zone = self.root.issue("zonal", Validity(NOW - 24 * HOURS, NOW + 24 * HOURS), ca=True)
        self.leaf = self.zone.issue("i-0123-enc4567", Validity(NOW - HOURS, NOW + 2 * HOURS), ca=False)
        self.anchors = replace(VENDORS, nitro=self.root.chain[-1])

    def payload(self, **changes: object) -> dict[object, object]:
        certificate, *above = (each.der for each in self.leaf.chain)
        fields: dict[object, object] = {
            "module_id": "i-0123-enc4567",
            "digest": "SHA384",
            "timestamp": NOW * 1000 + 345,
            "pcrs": PCRS,
            "certificate": certificate,
            "cabundle": list(reversed(above)),
            "public_key": None,
            "user_data": b"d" * 64,
            "nonce": None,
        }
        return {name: value for name, value in (fields | changes).items() if value is not ...}

    def sign(
        self, payload: bytes, *, protected: bytes = PROTECTED, unprotected: object = None, tag: bool = False
    ) -> bytes:
        signature = self.leaf.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
        sign1 = [protected, {} if unprotected is None else unprotected, payload, signature]
        return cbor2.dumps(cbor2.CBORTag(18, sign1) if tag else sign1)

    def document(self, **changes: object) -> Evidence:
        return Evidence("nitro", self.sign(cbor2.dumps(self.payload(**changes))), b"")


@pytest.fixture(scope="module")
def hypervisor() -> Hypervisor:
    return Hypervisor()


def test_a_real_document_verifies_at_its_own_time():
    claims = verify(document("nitro"), now=MADE)
    assert (claims.tee, claims.debug, claims.issued_at) == ("nitro", False, MADE)
    assert claims.measurement == claims.registers["pcr0"]
    assert claims.measurement.startswith("e72a46ca80a260fb") and len(claims.measurement) == 96
    assert set(claims.registers) == {f"pcr{index}" for index in range(16)}
    assert claims.signer == ""
    assert claims.vendor_root == VENDORS.nitro.fingerprint
    assert claims.report_data == b"\1" * 1024
    assert claims.attributes["module_id"] == "i-0a22e5c5f24d22174-enc0191cceb4289903f"


def test_a_real_document_of_2026_verifies():
    claims = verify(document("nitro_2026"), now=1767472867)
    assert claims.issued_at == 1767472867
    assert claims.measurement.startswith("4b8d4cf2a99e05ce1b5bddaf9d21cb44")
    assert claims.report_data.hex() == "69553adc61d6e9fcdecbe1ea49bb2b52a60238e0"
    assert claims.attributes == {"module_id": "i-0368fa67e156d6d23-enc019b8596b1a9dad6"}


@pytest.mark.parametrize("away", [-2 * HOURS, 3 * HOURS + 60, 365 * 24 * HOURS])
def test_a_real_document_is_refused_outside_its_certificates_three_hours(away):
    with pytest.raises(ExpiredError):
        verify(document("nitro"), now=MADE + away)


def test_a_debug_enclave_verifies_and_is_refused_by_every_policy():
    claims = verify(document("nitro_debug"), now=DEBUG_MADE)
    assert claims.debug and claims.measurement == "0" * 96
    reference = ReferenceValues(tees=("nitro",), measurements=(claims.measurement,))
    with pytest.raises(DebugEnclaveError):
        appraise(claims, reference, expected_report_data=claims.report_data[:64], now=DEBUG_MADE)


def test_a_self_signed_document_is_refused(hypervisor):
    with pytest.raises(FormatError):
        verify(document("selfsigned"), now=1713379906)
    with pytest.raises(VerificationError):
        verify(hypervisor.document(), now=NOW)
    alone = hypervisor.document(cabundle=[hypervisor.leaf.chain[0].der])
    with pytest.raises(VerificationError):
        verify(alone, now=NOW, anchors=hypervisor.anchors)


def test_what_another_library_encodes_verifies_and_is_appraised(hypervisor):
    claims = verify(hypervisor.document(), now=NOW, anchors=hypervisor.anchors)
    assert claims.measurement == "01" * 48
    assert claims.signer == "09" * 48
    assert claims.report_data == b"d" * 64
    genuine = replace(claims, vendor_root=VENDORS.nitro.fingerprint)
    reference = ReferenceValues(
        tees=("nitro",),
        measurements=("01" * 48,),
        signers=("09" * 48,),
        registers={"pcr4": ("05" * 48,)},
        maximum_age=60,
    )
    assert appraise(genuine, reference, expected_report_data=b"d" * 64, now=NOW + 60).tee == "nitro"
    with pytest.raises(BindingError):
        appraise(genuine, reference, expected_report_data=b"e" * 64, now=NOW)
    with pytest.raises(ExpiredError, match="61 s old"):
        appraise(genuine, reference, expected_report_data=b"d" * 64, now=NOW + 61)
    with pytest.raises(ExpiredError, match="made at"):
        appraise(genuine, reference, expected_report_data=b"d" * 64, now=NOW - 61)


def test_a_document_without_user_data_is_bound_to_nothing(hypervisor):
    for absent in (None, ...):
        claims = verify(hypervisor.document(user_data=absent, nonce=b"d" * 64), now=NOW, anchors=hypervisor.anchors)
        assert claims.report_data == b""
        assert claims.attributes["nonce"] == "64" * 64


def test_the_payload_may_be_a_map_of_indefinite_length(hypervisor):
    """As the hypervisor writes it since 2025. Its own length is the one that may be indefinite, and once."""
    payload = cbor2.dumps(hypervisor.payload())
    assert payload[0] == 0xA9
    indefinite = b"\xbf" + payload[1:] + b"\xff"
    document = Evidence("nitro", hypervisor.sign(indefinite), b"")
    assert verify(document, now=NOW, anchors=hypervisor.anchors).report_data == b"d" * 64
    for other in (indefinite[:-1], indefinite + b"\xff", b"\xbf\xff", b"\xbf" + payload[1:] + b"\x00\xff"):
        with pytest.raises(FormatError):
            verify(Evidence("nitro", hypervisor.sign(other), b""), now=NOW, anchors=hypervisor.anchors)


def test_the_document_of_an_instance_is_no_enclaves(hypervisor):
    instance = hypervisor.document(pcrs=..., nitrotpm_pcrs=PCRS)
    with pytest.raises(FormatError, match="NitroTPM"):
        verify(instance, now=NOW, anchors=hypervisor.anchors)


def test_the_tag_is_optional(hypervisor):
    payload = cbor2.dumps(hypervisor.payload())
    tagged = Evidence("nitro", hypervisor.sign(payload, tag=True), b"")
    assert verify(tagged, now=NOW, anchors=hypervisor.anchors).measurement == "01" * 48


@pytest.mark.parametrize(
    "changes",
    [
        {"module_id": ""},
        {"module_id": "i\n"},
        {"module_id": b"i"},
        {"digest": "SHA256"},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": True},
        {"timestamp": 2**63},
        {"pcrs": {}},
        {"pcrs": {1: b"1" * 48}},
        {"pcrs": PCRS | {32: b"1" * 48}},
        {"pcrs": PCRS | {-1: b"1" * 48}},
        {"pcrs": PCRS | {1: b"1" * 47}},
        {"pcrs": PCRS | {"1": b"1" * 48}},
        {"certificate": b""},
        {"certificate": b"0" * 1025},
        {"certificate": b"0" * 100},
        {"cabundle": []},
        {"cabundle": [b"0"] * 9},
        {"cabundle": None},
        {"cabundle": [None]},
        {"public_key": b"0" * 1025},
        {"user_data": "text"},
        {"nonce": b"0" * 1025},
        {"nonce": 1.5},
        {"more": 1},
        {"timestamp": ...},
    ],
)
def test_a_payload_of_another_form_is_refused(hypervisor, changes):
    with pytest.raises(FormatError):
        verify(hypervisor.document(**changes), now=NOW, anchors=hypervisor.anchors)


@pytest.mark.parametrize(
    "header",
    [
        {"protected": bytes.fromhex("a1013823")},
        {"protected": bytes.fromhex("a10126")},
        {"protected": b""},
        {"protected": bytes.fromhex("a201382203401822")},
        {"unprotected": {1: -7}},
        {"unprotected": []},
    ],
)
def test_the_signed_header_says_es384_and_nothing_else_does(hypervisor, header):
    raw = hypervisor.sign(cbor2.dumps(hypervisor.payload()), **header)
    with pytest.raises(FormatError, match="header"):
        verify(Evidence("nitro", raw, b""), now=NOW, anchors=hypervisor.anchors)


def test_a_document_made_before_its_certificate_is_refused(hypervisor):
    early = hypervisor.document(timestamp=(NOW - 2 * HOURS) * 1000)
    with pytest.raises(VerificationError, match="made at"):
        verify(early, now=NOW, anchors=hypervisor.anchors)


def test_a_key_that_is_not_for_signatures_is_refused():
    hypervisor = Hypervisor()
    hypervisor.leaf = hypervisor.zone.issue("leaf", Validity(NOW - HOURS, NOW + HOURS), ca=False, signs=False)
    with pytest.raises(VerificationError, match="for signatures"):
        verify(hypervisor.document(), now=NOW, anchors=hypervisor.anchors)
    hypervisor.leaf = hypervisor.zone
    with pytest.raises(VerificationError, match="CA"):
        verify(hypervisor.document(), now=NOW, anchors=hypervisor.anchors)


def test_a_document_with_endorsements_is_refused():
    with pytest.raises(FormatError, match="wanted none"):
        verify(replace(document("nitro"), endorsements=b"{}"), now=MADE)


def test_anything_cut_or_appended_is_refused():
    raw = document("nitro").quote
    for other in (raw[:-1], raw[1:], raw + b"\0", b"\xd2" + b"\xd2" + raw, b"", b"\xd2", raw[:5], b"\0" * 17 * 1024):
        with pytest.raises(FormatError):
            verify(Evidence("nitro", other, b""), now=MADE)


def flips(raw: bytes, step: int) -> list[bytes]:
    """`raw` with one bit changed in every `step`th byte."""
    return [raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :] for at in range(0, len(raw), step)]


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_the_signature_alone_refuses_every_changed_byte(monkeypatch, step):
    """Also of the certificates in it: no chain is followed here."""
    monkeypatch.setattr(verifier, "verify_chain", lambda *_, **__: None)
    evidence = document("nitro")
    verify(evidence, now=MADE)
    for raw in flips(evidence.quote, step):
        with pytest.raises(StrongroomError):
            verify(replace(evidence, quote=raw), now=MADE)


@pytest.mark.parametrize(
    "raw",
    [
        "1817",  # 23 in two bytes
        "190017",
        "1a0000ffff",
        "1b00000000ffffffff",
        "580161",  # a byte string of 1 with its length in a byte
        "5f4161ff",  # indefinite lengths
        "7f6161ff",
        "9f01ff",
        "bf0102ff",
        "a201020103",  # a key twice
        "a2010218010300",
        "a1410102",  # a key that is bytes
        "a1f502",
        "f93c00",  # floating-point numbers
        "fa3f800000",
        "fb3ff0000000000000",
        "f7",  # undefined
        "f8ff",
        "c101",  # a tag
        "61ff",  # no UTF-8
        "9a7fffffff",  # two thousand million items
        "9bffffffffffffffff",
        "ba7fffffff",
        "5b7fffffffffffffff",
        "7b7fffffffffffffff",
        "81" * 9 + "00",  # too deep
        "81" * 5000 + "00",
        "0000",
        "",
        "1c",
        "3f",
    ],
)
def test_cbor_that_is_not_strict_is_refused(raw):
    with pytest.raises(FormatError, match="thing:"):
        parse_cbor(bytes.fromhex(raw), "thing")


def test_cbor_byte_strings_are_as_the_other_library_writes_them():
    for size in (0, 1, 23, 24, 255, 256, 65535, 65536):
        assert byte_string(bytes(size)) == cbor2.dumps(bytes(size))
        assert parse_cbor(byte_string(bytes(size)), "thing") == bytes(size)


def test_what_is_signed_is_what_the_other_library_writes():
    parsed = parse_nitro(document("nitro").quote)
    protected, _, payload, _ = cbor2.loads(document("nitro").quote)
    assert parsed.signed == cbor2.dumps(["Signature1", protected, b"", payload])
