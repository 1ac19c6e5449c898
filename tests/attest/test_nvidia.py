"""Reports of GPUs: a real Hopper's, and ones of simulated GPUs in the same format."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.claims import pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.attest.parse.nvidia import from_nvtrust, from_report, parse_nvidia
from strongroom.attest.verify import VENDORS, Anchors, verify
from strongroom.attest.verify import nvidia as verifier
from strongroom.crypto import SigningKey, digest
from strongroom.crypto.chains import RevocationList, VendorCertificate
from strongroom.crypto.p384 import P384Signer
from strongroom.crypto.vendor import Issuer, Validity
from strongroom.errors import ExpiredError, FormatError, StrongroomError, VerificationError
from strongroom.testing.nvidia import SimulatedNvidia

VECTORS = Path(__file__).parents[1] / "vectors" / "nvidia-gpu"
NOW = 1_750_000_000
NONCE = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
# Where the parts of the real report lie (parse/nvidia.py).
REQUEST, RESPONSE, BLOCKS = 37, 45, 45 + 64 * 55
DATA = BLOCKS + 32 + 2
SIGNED = DATA + 422


@pytest.fixture(scope="module")
def hopper() -> Evidence:
    return from_report((VECTORS / "hopper_report.hex").read_bytes(), (VECTORS / "hopper_chain.pem").read_bytes())


@pytest.fixture(scope="module")
def maker() -> SimulatedNvidia:
    return SimulatedNvidia(now=NOW)


def trusting(maker: SimulatedNvidia) -> Anchors:
    return replace(VENDORS, nvidia=maker.root)


def test_a_real_report_verifies(hopper):
    claims = verify(hopper, now=NOW)
    assert (claims.tee, claims.product, claims.hardware_id) == ("nvidia", "GH100", "48b02d92494badf4")
    assert claims.vendor_root == VENDORS.nvidia.fingerprint
    assert claims.report_data.hex() == NONCE
    assert set(claims.registers) == {"firmware_id", *(f"block{index}" for index in range(1, 65))}
    assert claims.registers["block2"].startswith("8048dfd18fe229bf16eb")
    digests = {index: bytes.fromhex(claims.registers[f"block{index}"]) for index in range(1, 65)}
    assert claims.measurement == pcrs_measurement("nvidia-sha384", digests)
    told = ("driver_version", "vbios_version", "project", "project_sku", "chip_sku", "nvdec0", "revocation")
    assert [claims.attributes[name] for name in told] == [
        "550.90.07",
        "96.00.9F.00.01",
        "1010",
        "0200",
        "882",
        "off",
        "not checked",
    ]


def test_the_form_of_nvidias_sdk_gives_the_same_evidence(hopper):
    chain = (VECTORS / "hopper_chain.pem").read_bytes()
    wire = {
        "arch": "HOPPER",
        "evidence": base64.b64encode(hopper.quote).decode(),
        "certificate": base64.b64encode(chain).decode(),
        "nonce": NONCE,
        "version": "1.0",
    }
    assert from_nvtrust(wire) == (hopper,)
    assert from_nvtrust([wire, {name: wire[name] for name in ("evidence", "certificate")}]) == (hopper, hopper)
    assert from_report(hopper.quote, chain) == hopper
    for wrong in (
        [],
        None,
        [None],
        {},
        wire | {"nonce": "00" * 32},
        wire | {"nonce": 1},
        wire | {"evidence": "!"},
        wire | {"evidence": None},
        wire | {"evidence": "A" * 100_000},
        wire | {"certificate": ""},
        wire | {"certificate": wire["evidence"]},
    ):
        with pytest.raises(FormatError):
            from_nvtrust(wrong)
    for report in (b"", b"zz", hopper.quote.hex().encode()[:-1], hopper.quote.hex().encode() * 20):
        with pytest.raises(FormatError):
            from_report(report, chain)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0x12, "request: got version"),
        (1, 0xE1, "request: got version"),
        (2, 0x00, "wanted all blocks signed"),
        (3, 0x01, "wanted all blocks signed"),
        (36, 0x01, "for slot 0, wanted 1"),
        (36, 0x10, "for slot 0, wanted 16"),
        (REQUEST, 0x12, "response: got version"),
        (REQUEST + 1, 0x61, "response: got version"),
        (REQUEST + 3, 0x02, "for slot 2, wanted 0"),
        (REQUEST + 4, 0, "no blocks"),
        (REQUEST + 4, 63, "bytes after it"),
        (REQUEST + 4, 65, "0 bytes of block"),
        (REQUEST + 7, 0xFF, "bytes of blocks, wanted"),
        (RESPONSE, 0, "block 0 after 0"),
        (RESPONSE, 2, "block 2 after 2"),
        (RESPONSE, 3, "block 2 after 3"),
        (RESPONSE + 1, 2, "wanted a digest of 48 bytes"),
        (RESPONSE + 2, 52, "wanted a digest of 48 bytes"),
        (RESPONSE + 5, 47, "wanted a digest of 48 bytes"),
        (DATA - 1, 0xFF, "bytes of vendor's data, wanted"),
        (DATA, 14, "field 14 of the vendor's data twice"),
        (DATA + 3, 0xFF, "bytes of field 6 of the vendor's data, wanted"),
    ],
)
def test_a_report_of_another_form_is_refused(hopper, at, value, message):
    raw = bytearray(hopper.quote)
    raw[at] = value
    with pytest.raises(FormatError, match=message):
        verify(replace(hopper, quote=bytes(raw)), now=NOW)


def test_a_block_that_comes_as_bytes_counts_as_their_digest(hopper):
    """DSP0274: bit 7 of a measurement's type."""
    raw = hopper.quote
    value = raw[RESPONSE + 7 : RESPONSE + 55]
    for given in (value, b"APSKU\1\2"):
        record = raw[RESPONSE + 55 : BLOCKS]
        block = b"\1\1" + (len(given) + 3).to_bytes(2, "little") + b"\x81" + len(given).to_bytes(2, "little") + given
        size = (len(block) + len(record)).to_bytes(3, "little")
        parsed = parse_nvidia(raw[: RESPONSE - 3] + size + block + record + raw[BLOCKS:])
        assert parsed.blocks[1] == hashlib.sha384(given).digest()
        assert parsed.blocks[2] == parse_nvidia(raw).blocks[2]


def test_anything_cut_or_appended_is_refused(hopper):
    raw = hopper.quote
    for end in (*range(60), *range(60, len(raw), 97), len(raw) - 1):
        with pytest.raises(FormatError):
            parse_nvidia(raw[:end])
    for other in (raw + b"\0", raw[1:], raw + bytes(64 * 1024)):
        with pytest.raises(FormatError):
            parse_nvidia(other)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_the_signature_refuses_every_changed_byte(hopper, monkeypatch, step):
    monkeypatch.setattr(verifier, "verify_chain", lambda *_, **__: None)
    raw = hopper.quote
    assert len(raw) == SIGNED + 96
    verify(hopper, now=NOW)
    for at in range(0, len(raw), step):
        changed = raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :]
        with pytest.raises(StrongroomError):
            verify(replace(hopper, quote=changed), now=NOW)


def test_another_gpus_chain_or_none_is_refused(hopper, maker):
    gpu = maker.gpu().answer(bytes(32))
    for endorsements in (gpu.endorsements, parse_chain(hopper, slice(1, None)), parse_chain(hopper, slice(0, 2))):
        with pytest.raises(VerificationError):
            verify(replace(hopper, endorsements=endorsements), now=NOW)
    with pytest.raises(FormatError, match="no certificates"):
        verify(replace(hopper, endorsements=b""), now=NOW)
    with pytest.raises(VerificationError):
        verify(gpu, now=NOW)
    with pytest.raises(VerificationError, match="does not match"):
        verify(replace(gpu, endorsements=maker.gpu().answer(bytes(32)).endorsements), now=NOW, anchors=trusting(maker))


def parse_chain(evidence: Evidence, part: slice) -> bytes:
    return Endorsements(parse_endorsements(evidence.endorsements).certificates[part]).to_bytes()


def test_certificates_have_their_time(maker):
    evidence = maker.gpu().answer(bytes(32))
    verify(evidence, now=NOW, anchors=trusting(maker))
    for now in (NOW - 2 * 24 * 3600, NOW + 91 * 24 * 3600):
        with pytest.raises(ExpiredError):
            verify(evidence, now=now, anchors=trusting(maker))


def test_firmware_that_the_certificate_does_not_name_is_refused(maker):
    fields = {3: b"1.0\0", 20: b"f" * 48}
    with pytest.raises(VerificationError, match="got firmware id 6666"):
        verify(maker.gpu(fields=fields).answer(bytes(32)), now=NOW, anchors=trusting(maker))
    root = P384Signer.root("root", Validity(0, 2 * NOW))
    leaf = root.issue("leaf", Validity(0, 2 * NOW), ca=False)
    unnamed = replace(maker.gpu(), _key=leaf).answer(bytes(32))
    with pytest.raises(VerificationError, match="wanted that of the device's certificate, none"):
        verify(unnamed, now=NOW, anchors=replace(VENDORS, nvidia=root.chain[0]))
    old = replace(maker.gpu(fields={}), _key=leaf).answer(bytes(32))
    claims = verify(old, now=NOW, anchors=replace(VENDORS, nvidia=root.chain[0]))
    assert (claims.product, claims.hardware_id) == ("", "")
    assert "firmware_id" not in claims.registers


def test_a_key_on_another_curve_is_refused(hopper):
    issuer, always = Issuer("root", SigningKey.generate()), Validity(0, 2 * NOW)
    root = VendorCertificate(issuer.certificate("root", issuer.key.public, always, ca=True))
    leaf = VendorCertificate(issuer.certificate("leaf", SigningKey.generate().public, always, ca=False))
    evidence = replace(hopper, endorsements=Endorsements((leaf, root)).to_bytes())
    with pytest.raises(VerificationError, match="kind P-256, wanted P-384"):
        verify(evidence, now=NOW, anchors=replace(VENDORS, nvidia=root))


def test_a_revocation_list_of_a_stranger_is_refused(hopper):
    """Lists come along where somebody fetched them; each must be of this chain."""
    issuer, always = Issuer("root", SigningKey.generate()), Validity(0, 2 * NOW)
    theirs = RevocationList(issuer.revocation_list(always))
    certificates = parse_endorsements(hopper.endorsements).certificates
    with pytest.raises(VerificationError, match="of no issuer in the chain"):
        verify(replace(hopper, endorsements=Endorsements(certificates, (theirs,)).to_bytes()), now=NOW)


def test_fields_that_are_not_known_or_odd_are_no_claims(maker):
    fields = {3: b"\xff\xfe", 6: b"96.10.55.00.01\0", 11: b"\0", 14: b"\1" * 9, 15: b"a\x1bb\0", 36: b"\2\0", 999: b"x"}
    fields[20] = digest(b"simulated firmware", algorithm="sha384")
    claims = verify(maker.gpu(fields=fields).answer(b"n" * 32), now=NOW, anchors=trusting(maker))
    assert claims.report_data == b"n" * 32
    assert dict(claims.attributes) == {
        "nvdec0": "unknown, 00",
        "vbios_version": "96.10.55.00.01",
        "feature": "protected-pcie",
        "revocation": "not checked",
    }
