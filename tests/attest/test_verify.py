from __future__ import annotations

import json
from dataclasses import replace

import dcap_qvl
import pytest

from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import unpadded
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.anchors import INTEL_ROOT
from strongroom.attest.verify.dcap_claims import TcbLevel
from strongroom.attest.verify.dcap_kept import Answers
from strongroom.crypto.chains import VendorCertificate, pem_certificates
from strongroom.errors import (
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    TcbError,
    UsageError,
    VerificationError,
)

NOW = 1_750_000_000
DAY = 24 * 3600


@pytest.fixture
def real(vector):
    case = vector("v4_up_to_date")
    return replace(case, evidence=replace(case.evidence, quote=unpadded(case.evidence.quote)))


def test_a_real_quote_verifies(real):
    claims = verify(real.evidence, now=real.now)
    assert (claims.tee, claims.tcb_status, claims.advisories, claims.debug) == ("tdx", "UpToDate", (), False)
    assert claims.vendor_root == INTEL_ROOT
    assert claims.hardware_id == "811dca2a26b952e85bb6448b097ba4fd"
    assert claims.measurement == registers_measurement({name: claims.registers[name] for name in REGISTERS})


@pytest.mark.parametrize("name", ["v4_up_to_date", "v4_debug", "v5_no_matching_tcb"])
def test_each_vector_has_its_verdict(vector, name):
    case = vector(name)
    evidence = replace(case.evidence, quote=unpadded(case.evidence.quote))
    if case.error is None:
        verify(evidence, now=case.now)
        return
    with pytest.raises((DebugEnclaveError, TcbError)) as caught:
        verify(evidence, now=case.now)
    assert caught.value.code == case.error
    assert "\n" not in caught.value.message


def test_a_platform_without_a_tcb_level_is_refused_for_that(vector):
    # The quote's signatures hold: dates and signatures are checked before TCB levels.
    case = vector("v5_no_matching_tcb")
    with pytest.raises(TcbError, match="tdx evidence: No matching TCB level found"):
        verify(case.evidence, now=case.now)


def test_real_endorsements_expire(real):
    for now in (real.valid_from, real.valid_until - 1):  # a revocation list ends a second before its date
        verify(real.evidence, now=now)
    for now in (0, real.valid_from - 1, real.valid_until, NOW + 40 * 365 * DAY):
        with pytest.raises(ExpiredError, match="tdx evidence: not valid at "):
            verify(real.evidence, now=now)


def test_simulated_evidence_verifies_under_the_root_it_carries(vendor, registers):
    claims = verify(vendor.quote(registers, b"r" * 64), now=NOW)
    assert (claims.tee, claims.tcb_status, claims.advisories) == ("simulated", "UpToDate", ())
    assert claims.vendor_root == vendor.root_digest
    assert claims.report_data == b"r" * 64
    assert {name: claims.registers[name] for name in registers} == {n: v.hex() for n, v in registers.items()}
    assert claims.measurement == registers_measurement(registers)


def test_simulated_endorsements_expire(vendor, registers):
    evidence = vendor.quote(registers, bytes(64))
    for now in (NOW - DAY, NOW + 90 * DAY - 1):
        verify(evidence, now=now)
    for now in (0, NOW - DAY - 1, NOW + 90 * DAY, NOW + 9000 * DAY):
        with pytest.raises(ExpiredError, match="simulated evidence: not valid at "):
            verify(evidence, now=now)


def test_a_simulated_debug_enclave_is_refused(vendor, registers):
    with pytest.raises(DebugEnclaveError, match="simulated enclave: debug is on, wanted off"):
        verify(vendor.quote(registers, bytes(64), debug=True), now=NOW)


def test_a_pinned_root_excludes_all_others(vendor, registers, real):
    another = replace(VENDORS, intel=VENDORS.nitro, simulated=VENDORS.nitro)
    with pytest.raises(VerificationError, match=f"vendor root: got {vendor.root_digest}, wanted sha256:"):
        verify(vendor.quote(registers, bytes(64)), now=NOW, anchors=another)
    with pytest.raises(VerificationError, match="tdx evidence: "):
        verify(real.evidence, now=real.now, anchors=another)


@pytest.mark.parametrize("tee", ["tdx", "simulated"])
@pytest.mark.parametrize(
    "endorsements",
    [b"", b"{}", b"[]", b"null", b"\xff", b'"' + b"x" * 100, b'{"pck_crl": 1}', b"[" * 10_000],
)
def test_endorsements_that_do_not_parse_are_refused(vendor, registers, tee, endorsements):
    quote = vendor.quote(registers, bytes(64)).quote
    with pytest.raises(FormatError, match="endorsements: "):
        verify(Evidence(tee, quote, endorsements), now=NOW)


@pytest.mark.parametrize(
    "chain",
    ["", "-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", "{chain}junk"],
)
def test_simulated_evidence_must_carry_a_root(vendor, registers, chain):
    evidence = vendor.quote(registers, bytes(64))
    collateral = json.loads(evidence.endorsements)
    collateral["pck_crl_issuer_chain"] = chain.replace("{chain}", collateral["pck_crl_issuer_chain"])
    with pytest.raises(FormatError, match="endorsements: no vendor root at the end of the issuer chain"):
        verify(replace(evidence, endorsements=json.dumps(collateral).encode()), now=NOW)


def test_now_must_be_a_date(vendor, registers):
    for now in (-1, 2**63):
        with pytest.raises(UsageError, match="now: got "):
            verify(vendor.quote(registers, bytes(64)), now=now)


def test_a_verifier_that_panics_is_a_refusal(monkeypatch, vendor, registers):
    class PanicException(BaseException):
        """What PyO3 raises for a panic in Rust."""

    def panic(*_):
        raise PanicException("index out of bounds")

    verifier = type("QuoteVerifier", (), {"__init__": lambda *_: None, "verify_with_policy": panic})
    monkeypatch.setattr("dcap_qvl.QuoteVerifier", verifier)
    monkeypatch.setattr("strongroom.attest.verify.dcap._answers", Answers())
    with pytest.raises(VerificationError, match="simulated evidence: the verifier could not read it"):
        verify(vendor.quote(registers, bytes(64)), now=NOW)


def test_a_root_that_another_issued_is_refused_and_ends_nothing(vendor, registers):
    """dcap-qvl aborts the process when it is given one; stranger's evidence brings its own."""
    evidence = vendor.quote(registers, bytes(64))
    collateral = json.loads(evidence.endorsements)
    *below, root = pem_certificates(collateral["pck_crl_issuer_chain"].encode())
    bent = VendorCertificate(root.der.replace(b"Root CA", b"Boot CA", 1))
    collateral["pck_crl_issuer_chain"] = "".join(each.pem() for each in (*below, bent))
    with pytest.raises(VerificationError, match=r"vendor root: got one issued by .*Boot CA"):
        verify(replace(evidence, endorsements=json.dumps(collateral).encode()), now=NOW)


def test_two_parsers_must_agree(monkeypatch, vendor, registers):
    real = dcap_qvl.QuoteVerifier

    class Verifier:
        """Reads another quote than the one that it is given."""

        def __init__(self, root):
            self._real = real(root)

        def verify_with_policy(self, _, *rest):
            return self._real.verify_with_policy(vendor.quote(registers, b"o" * 64).quote, *rest)

    monkeypatch.setattr("dcap_qvl.QuoteVerifier", Verifier)
    monkeypatch.setattr("strongroom.attest.verify.dcap._answers", Answers())
    with pytest.raises(VerificationError, match="quote: two parsers read it differently"):
        verify(vendor.quote(registers, bytes(64)), now=NOW)


def test_the_worse_of_two_judgements_counts(monkeypatch, vendor, registers):
    for ours in ("OutOfDate", "Revoked", "a word that nobody knows"):
        monkeypatch.setattr("strongroom.attest.verify.dcap._answers", Answers())
        monkeypatch.setattr("strongroom.attest.verify.dcap.judge", lambda *_, word=ours, **__: TcbLevel(word, ("A",)))
        claims = verify(vendor.quote(registers, bytes(64)), now=NOW)
        assert (claims.tcb_status, claims.advisories) == (ours, ("A",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rtmr4": bytes(48)}, "registers: got mrtd, rtmr0, rtmr1, rtmr2, rtmr3, rtmr4"),
        ({"mrtd": bytes(47)}, "register mrtd: 47 bytes, wanted 48"),
        ({"rtmr3": "zz"}, "register rtmr3: not hexadecimal digits"),
    ],
)
def test_a_measurement_is_of_exactly_five_registers(registers, change, message):
    with pytest.raises(UsageError, match=message):
        registers_measurement(registers | change)
    with pytest.raises(UsageError, match="registers: got none, wanted mrtd"):
        registers_measurement({})


def test_every_register_enters_the_measurement(registers):
    measured = {registers_measurement(registers | {name: b"x" * 48}) for name in registers}
    assert len(measured | {registers_measurement(registers)}) == len(registers) + 1
