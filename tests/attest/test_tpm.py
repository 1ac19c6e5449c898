"""Quotes of TPMs: real ones, and those of a TPM of the tests' own."""

from __future__ import annotations

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.binding import bound_data
from strongroom.attest.claims import pcrs_measurement
from strongroom.attest.evidence import MAX_QUOTE, Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.tpm import TpmEvidence, parse_quote, parse_tpm
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.tpm import check_pcrs, verify_bare_quote, verify_quote
from strongroom.crypto.chains import VendorKey, pem_certificates
from strongroom.errors import (
    AttestationError,
    BindingError,
    ExpiredError,
    FormatError,
    MeasurementError,
    VerificationError,
)
from tests.attest.tpms import (
    AK_BITS,
    NOW,
    P256,
    PCRS,
    REAL,
    REPORT_DATA,
    RSA,
    VECTORS,
    attest,
    check,
    coco,
    own,
    public_area,
    quoted,
    sign,
    sized,
    spki,
)


@pytest.mark.parametrize("name", REAL)
def test_a_real_quote_verifies_under_its_key(name):
    shown = REAL[name]()
    key = VendorKey(shown.spki)
    claims = check(shown, key)
    assert claims.vendor_root == key.fingerprint
    assert claims.measurement == pcrs_measurement("sha256", shown.pcrs["sha256"])
    assert claims.registers["pcr23"] == shown.pcrs["sha256"][23].hex()
    assert claims.attributes["firmware_version"] == "2019102300163636"
    assert claims.attributes["ak_public_area"] is False


@pytest.mark.parametrize("name", ["ecc256", "rsa2048"])
def test_the_extra_data_is_what_the_quote_is_bound_to(name):
    shown, nonce = own(name)
    assert check(shown, VendorKey(shown.spki)).report_data == nonce


def test_a_quote_by_hardware_verifies_under_the_root_that_certified_its_key():
    case = json.loads((VECTORS / "certified_aisec.json").read_text())
    leaf, root = (pem_certificates(case[name].encode())[0] for name in ("certificate", "root"))
    pcrs = {bank: {int(i): bytes.fromhex(v) for i, v in values.items()} for bank, values in case["pcrs"].items()}
    message, signature = (bytes.fromhex(case[name]) for name in ("message", "signature"))
    shown = TpmEvidence(message, signature, pcrs, spki=leaf.key.spki)
    evidence = Evidence("tpm", shown.to_bytes(), Endorsements((leaf,)).to_bytes())
    claims = verify(evidence, now=case["now"], anchors=dataclasses.replace(VENDORS, tpm=(root,)))
    assert claims.vendor_root == root.fingerprint
    assert claims.revocation == "not checked"
    assert claims.report_data.hex() == case["nonce"]
    with pytest.raises(VerificationError, match="wanted one of 0 roots"):
        verify(evidence, now=case["now"])
    # A policy that names the root by its digest is enough where the evidence brings the root along.
    whole = dataclasses.replace(evidence, endorsements=Endorsements((leaf, root)).to_bytes())
    policy = ReferenceValues(("tpm",), (claims.measurement,), tpm_roots=(root.fingerprint,))
    assert verify(whole, now=case["now"], anchors=policy.anchors).vendor_root == root.fingerprint
    for policy in (ReferenceValues(("tpm",), ()), ReferenceValues(("tpm",), (), tpm_roots=("sha256:" + "0" * 64,))):
        with pytest.raises(VerificationError):
            verify(whole, now=case["now"], anchors=policy.anchors)
    with pytest.raises(ExpiredError):
        verify(evidence, now=case["now"] + 10 * 366 * 24 * 3600, anchors=dataclasses.replace(VENDORS, tpm=(root,)))


def test_a_default_policy_refuses_a_real_quote():
    claims = check(coco(), VendorKey(coco().spki))
    assert claims.revocation == "none: the key itself is enrolled, without certificates"
    reference = ReferenceValues(tees=("tpm",), measurements=(claims.measurement,))
    with pytest.raises(AttestationError, match="vendor root of tpm: got sha256:a517f03f"):
        appraise(claims, reference, expected_report_data=REPORT_DATA, now=NOW)


def test_a_policy_that_names_the_key_wants_the_nonce_and_the_measurement_too():
    shown = quoted(extra=bound_data("tpm", REPORT_DATA))
    claims = check(shown, VendorKey(spki(P256)))
    reference = ReferenceValues(("tpm",), (claims.measurement,), tpm_roots=(claims.vendor_root,))
    result = appraise(claims, reference, expected_report_data=REPORT_DATA, now=NOW)
    assert result.measurement == claims.measurement
    assert verify(Evidence("tpm", shown.to_bytes(), b""), now=NOW, anchors=reference.anchors) == claims
    with pytest.raises(BindingError):
        appraise(claims, reference, expected_report_data=bytes(64), now=NOW)
    other = dataclasses.replace(reference, measurements=("00" * 48,))
    with pytest.raises(MeasurementError):
        appraise(claims, other, expected_report_data=REPORT_DATA, now=NOW)


@pytest.mark.parametrize(
    ("key", "options", "signing"),
    [
        (RSA, {}, {"pss": True}),
        (RSA, {"algorithm": "sha384"}, {"algorithm": "sha384"}),
        (P256, {"algorithm": "sha512"}, {"algorithm": "sha512"}),
    ],
)
def test_schemes_and_digests(key, options, signing):
    assert check(quoted(key, signing=signing, **options), VendorKey(spki(key))).registers["pcr1"] == "01" * 32


def test_a_bare_rsa_signature():
    message = attest(PCRS, b"")
    signature = sign(RSA, message)[6:]
    assert verify_bare_quote(message, signature, VendorKey(spki(RSA))) == parse_quote(message)
    with pytest.raises(VerificationError, match="signature"):
        verify_bare_quote(message, sign(RSA, message), VendorKey(spki(RSA)))


def test_a_key_that_nobody_trusts_is_refused():
    with pytest.raises(VerificationError, match="which is not enrolled, and no certificate for it"):
        check(quoted(), VendorKey(spki(RSA)))
    with pytest.raises(VerificationError, match="not enrolled"):
        verify(Evidence("tpm", coco().to_bytes(), b""), now=NOW)


@pytest.mark.parametrize(
    ("bit", "why"),
    [
        (1 << 1, "lacks fixedTPM"),
        (1 << 5, "lacks sensitiveDataOrigin"),
        (1 << 16, "lacks restricted"),
        (1 << 18, "lacks sign"),
        (1 << 17, "decrypts"),
    ],
)
def test_a_key_that_signs_more_than_its_tpms_word_is_refused(bit, why):
    with pytest.raises(VerificationError, match=why):
        check(quoted(bits=AK_BITS ^ bit), VendorKey(spki(P256)))


def test_another_keys_public_area_is_refused():
    shown = dataclasses.replace(quoted(), public=public_area(RSA, AK_BITS))
    with pytest.raises(VerificationError, match="signature: ECDSA, but the key is RSA"):
        check(shown, VendorKey(spki(P256)), VendorKey(spki(RSA)))


def test_firmware_counts_only_where_the_tpm_does_not_obscure_it():
    public = parse_public(public_area(P256, AK_BITS))
    for parent, tcb in ((b"\x40\0\0\x0b", {"firmware": 0x00010002}), (b"\x40\0\0\x01", {})):
        shown = quoted(signer=public.qualified_name(parent))
        assert check(shown, VendorKey(spki(P256))).tcb == tcb


class TestRegisters:
    def test_sha1_alone_is_a_weakness(self):
        claims = check(quoted(pcrs={"sha1": {0: bytes(20)}}), VendorKey(spki(P256)))
        assert claims.weaknesses == ("pcr-sha1",)
        reference = ReferenceValues(("tpm",), (claims.measurement,), tpm_roots=(claims.vendor_root,))
        with pytest.raises(AttestationError, match="weaknesses: got pcr-sha1"):
            appraise(claims, reference, expected_report_data=REPORT_DATA, now=NOW)

    def test_registers_that_any_program_resets_are_a_weakness_alone(self):
        for indices, weaknesses in (((16, 23), ("pcr-resettable",)), ((4, 16), ())):
            pcrs = {"sha256": dict.fromkeys(indices, bytes(32))}
            assert check(quoted(pcrs=pcrs), VendorKey(spki(P256))).weaknesses == weaknesses

    def test_the_strongest_bank_is_measured_and_the_others_are_told(self):
        pcrs = {"sha1": {7: bytes(20)}, "sha256": {7: b"7" * 32}}
        claims = check(quoted(pcrs=pcrs), VendorKey(spki(P256)))
        assert claims.measurement == pcrs_measurement("sha256", {7: b"7" * 32})
        assert dict(claims.registers) == {"pcr7": (b"7" * 32).hex(), "pcr7-sha1": "00" * 20}
        assert claims.weaknesses == ()

    def test_which_registers_are_measured_is_part_of_the_measurement(self):
        fewer = {"sha256": {0: bytes(32)}}
        assert check(quoted(pcrs=fewer), VendorKey(spki(P256))).measurement != pcrs_measurement(
            "sha256", {1: bytes(32)}
        )

    @pytest.mark.parametrize(
        ("pcrs", "why"),
        [
            ({"sha256": PCRS["sha256"] | {3: bytes(32)}}, "their digest is not the one that was quoted"),
            ({"sha256": {i: v for i, v in PCRS["sha256"].items() if i != 3}}, "wanted the quoted ones"),
            ({"sha256": PCRS["sha256"] | {10: bytes(32)}}, "wanted the quoted ones"),
            (PCRS | {"sha1": {0: bytes(20)}}, "wanted the quoted ones"),
            ({"sha384": PCRS["sha256"]}, "wanted the quoted ones"),
            # The same bytes, cut elsewhere: their digest is the quoted one.
            ({"sha256": PCRS["sha256"] | {8: b"\x08" * 31, 9: b"\x08" + b"\t" * 32}}, "pcr sha256:8: 31 bytes"),
            ({}, "got none"),
        ],
    )
    def test_other_registers_than_the_quoted_ones_are_refused(self, pcrs, why):
        with pytest.raises(VerificationError, match=why):
            check(dataclasses.replace(quoted(), pcrs=pcrs), VendorKey(spki(P256)))

    def test_a_quote_of_nothing_is_refused(self):
        for pcrs in ({}, {"sha256": {}}):
            with pytest.raises(VerificationError, match="pcrs: got none"):
                check_pcrs(parse_quote(attest(pcrs, b"")), pcrs)


class TestParsing:
    @pytest.mark.parametrize("name", REAL)
    def test_a_quote_has_one_length(self, name):
        message = REAL[name]().message
        for cut in range(len(message)):
            with pytest.raises(FormatError):
                parse_quote(message[:cut])
        with pytest.raises(FormatError, match="1 bytes after its end"):
            parse_quote(message + b"\0")
        with pytest.raises(FormatError, match="got magic"):
            parse_quote(sized(message))

    def test_what_another_structure_is_for_is_no_quote(self):
        message = attest(PCRS, b"")
        for at, other in ((0, b"\xfeTCG"), (4, b"\x80\x17"), (4, b"\x80\x1a")):
            with pytest.raises(FormatError, match=r"magic|type"):
                parse_quote(message[:at] + other + message[at + len(other) :])

    def test_signatures_over_sha1_and_unknown_schemes_are_refused(self):
        shown, key = quoted(), VendorKey(spki(P256))
        for start, why in ((b"\0\x18\0\x04", "over sha1"), (b"\0\x1a\0\x0b", "algorithm 0x001a")):
            with pytest.raises(FormatError, match=why):
                verify_quote(shown.message, start + shown.signature[4:], key)

    def test_evidence_goes_there_and_back(self):
        for shown in (coco(), dataclasses.replace(quoted(), event_log=b"log")):
            assert parse_tpm(shown.to_bytes()) == shown

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"spki": "00"}, "wanted message, signature, pcrs"),
            ({"public": None}, "wanted message, signature, pcrs"),
            ({"more": "00"}, "wanted message, signature, pcrs"),
            ({"message": "FF"}, "message: not lower-case hexadecimal digits"),
            ({"message": "ff" * 1025}, "message: wanted hexadecimal digits of 1 to 1024 bytes"),
            ({"message": ""}, "message: wanted"),
            ({"signature": 7}, "signature: wanted"),
            ({"pcrs": []}, "pcrs: got a list"),
            ({"pcrs": {"md5": {}}}, "got bank 'md5'"),
            ({"pcrs": {"sha256": {"01": "00"}}}, "got index '01'"),
            ({"pcrs": {"sha256": {"32": "00"}}}, "got index '32'"),
            ({"event_log": "AA"}, "event_log: not base64"),
            ({"event_log": ""}, "event_log: not base64"),
        ],
    )
    def test_other_forms_of_evidence_are_refused(self, change, why):
        wire = json.loads(quoted().to_bytes()) | change
        raw = json.dumps({name: value for name, value in wire.items() if value is not None}, sort_keys=True)
        with pytest.raises(FormatError, match=why):
            parse_tpm(raw.replace(" ", "").encode())

    def test_evidence_is_capped(self):
        with pytest.raises(FormatError, match="bytes, wanted at most 262144"):
            dataclasses.replace(quoted(), event_log=bytes(MAX_QUOTE)).to_bytes()

    def test_a_public_area_has_one_length_and_known_algorithms(self):
        for raw in (public_area(P256, AK_BITS), public_area(RSA, AK_BITS)):
            assert parse_public(raw).raw == raw
            for cut in range(len(raw)):
                with pytest.raises(FormatError):
                    parse_public(raw[:cut])
            with pytest.raises(FormatError, match="after its end"):
                parse_public(raw + b"\0")
        with pytest.raises(FormatError, match="not a point on P-256"):
            parse_public(public_area(P256, AK_BITS)[:-1] + b"\0")

    def test_small_keys_are_refused(self):
        small = rsa.generate_private_key(65537, 1024)  # noqa: S505
        with pytest.raises(FormatError, match="2048 to 8192"):
            parse_public(public_area(small, AK_BITS))
