"""What somebody between an enclave and its verifier, or the machine's owner, may try with evidence."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from strongroom.attest.appraise import ReferenceValues, appraise
from strongroom.attest.binding import NO_BINDER, Kind, canonical, report_data
from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import unpadded
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.verify import verify
from strongroom.attest.verify.anchors import INTEL_ROOT
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    MeasurementError,
    SimulatedEnclaveError,
    VerificationError,
)

NOW = 1_750_000_000
DAY = 24 * 3600
VECTORS = Path(__file__).parents[1] / "vectors" / "tdx"
REAL_NOW = json.loads((VECTORS / "cases.json").read_text())["v4_up_to_date"]["now"]

MEASURED = {name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}
FRESH, BINDER = b"n" * 32, b"c" * 32
CLAIMS = canonical({"role": "worker", "spki": "sha256:" + "00" * 32})
BOUND = report_data(Kind.SESSION, fresh=FRESH, binder=BINDER, claims=CLAIMS)

# Where a version 4 quote's parts lie.
HEADER, BODY = range(48), range(48, 632)
SIGNATURE, ATTESTATION_KEY = range(636, 700), range(700, 764)
QE_REPORT, QE_SIGNATURE, QE_AUTHENTICATION = range(770, 1154), range(1154, 1218), range(1220, 1252)


@pytest.fixture(scope="module")
def vendor(tmp_path_factory) -> SimulatedVendor:
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=NOW)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> SimulatedVendor:
    """A vendor of the attacker's own."""
    return SimulatedVendor.open(tmp_path_factory.mktemp("stranger"), now=NOW)


@pytest.fixture(scope="module")
def real() -> Evidence:
    quote = unpadded((VECTORS / "v4_up_to_date.quote.bin").read_bytes())
    return Evidence("tdx", quote, (VECTORS / "v4_up_to_date.collateral.json").read_bytes())


def accept(evidence: Evidence, vendor: SimulatedVendor, *, bound: bytes = BOUND, now: int = NOW) -> None:
    """What a verifier does whose policy allows that simulated vendor."""
    reference = ReferenceValues(("simulated",), (registers_measurement(MEASURED),), allow_simulated=vendor.root_digest)
    appraise(verify(evidence, now=now), reference, expected_report_data=bound, now=now)


def flipped(evidence: Evidence, position: int, bit: int = 1) -> Evidence:
    quote = bytearray(evidence.quote)
    quote[position] ^= bit
    return replace(evidence, quote=bytes(quote))


def edited(evidence: Evidence, **changes: object) -> Evidence:
    """The evidence with parts of its endorsements replaced."""
    return replace(evidence, endorsements=json.dumps(json.loads(evidence.endorsements) | changes).encode())


def test_honest_evidence_is_accepted(vendor):
    accept(vendor.quote(MEASURED, BOUND), vendor)


# Replay and relay


@pytest.mark.parametrize(
    ("kind", "fresh", "binder", "claims"),
    [
        (Kind.SESSION, b"o" * 32, BINDER, CLAIMS),  # another verifier's nonce, or an old one
        (Kind.SESSION, FRESH, b"d" * 32, CLAIMS),  # relayed from another channel
        (Kind.SERVICE, FRESH, NO_BINDER, CLAIMS),  # a service's report shown as a session's
        (Kind.SESSION, FRESH, BINDER, canonical({"role": "cas"})),  # other claims
        (Kind.SESSION, BINDER, FRESH, CLAIMS),  # fields exchanged
    ],
)
def test_evidence_made_for_something_else_is_refused(vendor, kind, fresh, binder, claims):
    other = report_data(kind, fresh=fresh, binder=binder, claims=claims)
    with pytest.raises(BindingError):
        accept(vendor.quote(MEASURED, other), vendor)


def test_another_program_is_refused(vendor):
    for name in REGISTERS:
        with pytest.raises(MeasurementError):
            accept(vendor.quote(MEASURED | {name: b"x" * 48}, BOUND), vendor)


def test_old_evidence_outlives_neither_its_endorsements_nor_its_nonce(vendor):
    evidence = vendor.quote(MEASURED, BOUND)
    with pytest.raises(ExpiredError):
        accept(evidence, vendor, now=NOW + 91 * DAY)
    with pytest.raises(BindingError):
        accept(evidence, vendor, bound=report_data(Kind.SESSION, fresh=b"x" * 32, binder=BINDER, claims=CLAIMS))


# Who vouches


def test_a_vendor_of_the_attacker_s_own_is_refused(vendor, stranger):
    with pytest.raises(SimulatedEnclaveError, match=f"got vendor root {stranger.root_digest}"):
        accept(stranger.quote(MEASURED, BOUND), vendor)


def test_simulated_evidence_is_refused_by_default(vendor):
    claims = verify(vendor.quote(MEASURED, BOUND), now=NOW)
    reference = ReferenceValues(("tdx", "simulated"), (claims.measurement,))
    with pytest.raises(SimulatedEnclaveError):
        appraise(claims, reference, expected_report_data=BOUND, now=NOW)


def test_simulated_evidence_relabelled_as_hardware_is_refused(vendor):
    with pytest.raises(VerificationError):
        verify(replace(vendor.quote(MEASURED, BOUND), tee="tdx"), now=NOW)


def test_hardware_evidence_relabelled_as_simulated_is_refused(real):
    with pytest.raises(VerificationError, match="simulated evidence: got Intel's vendor root"):
        verify(replace(real, tee="simulated"), now=REAL_NOW)


def test_claims_of_hardware_under_another_root_are_refused(real, vendor):
    # verify never makes such claims; appraise does not rely on it.
    claims = replace(verify(real, now=REAL_NOW), vendor_root=vendor.root_digest)
    reference = ReferenceValues(("tdx",), (claims.measurement,), allow_simulated=vendor.root_digest)
    with pytest.raises(AttestationError, match=f"vendor root of tdx: got {vendor.root_digest}, wanted {INTEL_ROOT}"):
        appraise(claims, reference, expected_report_data=claims.report_data, now=REAL_NOW)


def test_a_foreign_root_carried_for_one_s_own_chain_is_refused(vendor, stranger):
    """The allowed root's certificate is public: carrying it does not make another vendor's signatures its own."""
    allowed = json.loads(vendor.quote(MEASURED, BOUND).endorsements)
    evidence = stranger.quote(MEASURED, BOUND)
    for part in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        with pytest.raises(VerificationError):
            accept(edited(evidence, **{part: allowed[part]}), vendor)
    with pytest.raises(VerificationError):
        accept(replace(evidence, endorsements=json.dumps(allowed).encode()), vendor)


def test_endorsements_of_two_vendors_do_not_mix(vendor, stranger):
    evidence = vendor.quote(MEASURED, BOUND)
    other = json.loads(stranger.quote(MEASURED, BOUND).endorsements)
    for part in other:
        if part in ("tcb_info", "qe_identity"):  # the same text at both, each with its own signature
            continue
        with pytest.raises(VerificationError):
            accept(edited(evidence, **{part: other[part]}), vendor)


def test_signed_statements_cannot_be_edited(vendor):
    evidence = vendor.quote(MEASURED, BOUND)
    parts = json.loads(evidence.endorsements)
    for part, old, new in (
        ("tcb_info", '"svn":1', '"svn":0'),
        ("tcb_info", "000053494D00", "000053494D01"),
        ("qe_identity", '"isvprodid":2', '"isvprodid":1'),
        ("qe_identity", '"nextUpdate":"2', '"nextUpdate":"3'),
    ):
        assert old in parts[part]
        with pytest.raises(VerificationError):
            accept(edited(evidence, **{part: parts[part].replace(old, new)}), vendor)


def revoke(certificate: x509.Certificate, directory: Path) -> bytes:
    """The root's revocation list, naming that certificate."""
    pem = (directory / "root.pem").read_bytes()
    start = dt.datetime.fromtimestamp(NOW - DAY, dt.UTC)
    entry = x509.RevokedCertificateBuilder(certificate.serial_number, start).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(certificate.issuer).add_revoked_certificate(entry)
    builder = builder.last_update(start).next_update(start + dt.timedelta(days=30))
    builder = builder.add_extension(x509.CRLNumber(2), critical=False)
    key = serialization.load_pem_private_key(pem, None)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("chain", ["pck_crl_issuer_chain", "tcb_info_issuer_chain"])
def test_a_revoked_authority_is_refused(tmp_path, chain):
    vendor = SimulatedVendor.open(tmp_path, now=NOW)
    evidence = vendor.quote(MEASURED, BOUND)
    revoked, root = x509.load_pem_x509_certificates(json.loads(evidence.endorsements)[chain].encode())
    with pytest.raises(VerificationError, match=r"(?i)revoked"):
        accept(edited(evidence, root_ca_crl=revoke(revoked, tmp_path).hex()), vendor)
    with pytest.raises(VerificationError, match=r"(?i)revoked"):
        accept(edited(evidence, root_ca_crl=revoke(root, tmp_path).hex()), vendor)


# Bits


@pytest.mark.parametrize("part", [HEADER, BODY, SIGNATURE, ATTESTATION_KEY, QE_REPORT, QE_SIGNATURE, QE_AUTHENTICATION])
def test_no_flipped_bit_in_a_signed_part_is_accepted(vendor, part):
    evidence = vendor.quote(MEASURED, BOUND)
    for position in part:
        with pytest.raises((VerificationError, FormatError, DebugEnclaveError)):
            accept(flipped(evidence, position, 1 << position % 8), vendor)


def test_no_flipped_bit_of_a_real_quote_is_accepted(real):
    for position in range(0, 1252, 3):
        if position in range(632, 636) or position in range(764, 770):
            continue  # lengths, refused while parsing
        with pytest.raises((VerificationError, FormatError, DebugEnclaveError)):
            verify(flipped(real, position, 1 << position % 8), now=REAL_NOW)


def test_a_flipped_bit_in_the_chain_changes_no_claim(vendor):
    """Some bytes of PEM carry no meaning; whatever is still accepted must say the same."""
    evidence = vendor.quote(MEASURED, BOUND)
    honest = verify(evidence, now=NOW)
    refused = 0
    for position in range(1258, len(evidence.quote), 5):
        try:
            assert verify(flipped(evidence, position), now=NOW) == honest
        except (VerificationError, FormatError, ExpiredError):
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("junk", [b"\n", b"x" * 70, bytes(69) + b"\1"])
def test_nothing_but_zero_bytes_may_follow_a_quote(vendor, junk):
    evidence = vendor.quote(MEASURED, BOUND)
    with pytest.raises(FormatError, match="after the signature data"):
        accept(replace(evidence, quote=evidence.quote + junk), vendor)
    assert verify(replace(evidence, quote=evidence.quote + bytes(70)), now=NOW) == verify(evidence, now=NOW)


# Debug


def test_a_debug_enclave_is_refused_whoever_signed_it(vendor, real):
    debug = VECTORS / "v4_debug.quote.bin"
    endorsements = (VECTORS / "v4_debug.collateral.json").read_bytes()
    with pytest.raises(DebugEnclaveError):
        verify(Evidence("tdx", debug.read_bytes(), endorsements), now=1_687_939_438)
    with pytest.raises(DebugEnclaveError):
        accept(vendor.quote(MEASURED, BOUND, debug=True), vendor)
    for bit in range(8):  # all of "TD under debug", of which bit 0 is DEBUG
        with pytest.raises(DebugEnclaveError):
            verify(flipped(real, 48 + 120, 1 << bit), now=REAL_NOW)


def test_hiding_the_debug_bit_breaks_the_signature(vendor):
    with pytest.raises(VerificationError):
        accept(flipped(vendor.quote(MEASURED, BOUND, debug=True), 48 + 120), vendor)
