"""What the owner of a machine with SGX or TDX, or somebody on the way, may try with quotes and Intel's endorsements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.collateral import parse_collateral
from strongroom.attest.parse.dcap import parse_quote, unpadded
from strongroom.attest.tee import dcap
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.dcap_chain import follow
from strongroom.attest.verify.dcap_tcb import follow_with
from strongroom.errors import DebugEnclaveError, ExpiredError, FormatError, StrongroomError, TcbError, VerificationError
from tests.attest.intel import NOW, QUOTING, Intel, sgx_body, td_body

VECTORS = Path(__file__).parents[1] / "vectors"
REAL = {
    "sgx": ("dcap-sgx/sgx_v3_icx_automata", 1_756_530_546),
    "tdx": ("dcap-tdx/tdx_v4_gcp_cos113", 1_753_175_614),
}
REFUSED = (VerificationError, FormatError, DebugEnclaveError, ExpiredError, TcbError)


def real(tee: str) -> tuple[Evidence, int]:
    name, now = REAL[tee]
    quote, collateral = (VECTORS / f"{name}.{end}" for end in ("quote.bin", "collateral.json"))
    return Evidence(tee, quote.read_bytes(), collateral.read_bytes()), now


def edited(evidence: Evidence, **changes: object) -> Evidence:
    return replace(evidence, endorsements=json.dumps(json.loads(evidence.endorsements) | changes).encode())


# Bits. No byte of a real quote can change: not in its signed parts, and not in the rest of it.


@pytest.mark.parametrize("tee", REAL)
def test_no_flipped_bit_of_a_real_quote_is_accepted(tee):
    evidence, now = real(tee)
    size = len(unpadded(evidence.quote))
    for position in (*range(0, 1300, 5), *range(1300, size, 17), *range(size, len(evidence.quote), 400)):
        quote = bytearray(evidence.quote)
        quote[position] ^= 1 << position % 8
        with pytest.raises(REFUSED):
            verify(replace(evidence, quote=bytes(quote)), now=now)


@pytest.mark.slow
@pytest.mark.parametrize("tee", REAL)
def test_no_byte_of_a_real_quote_can_change(tee):
    evidence, now = real(tee)
    for position in range(len(unpadded(evidence.quote)) + 8):
        for bit in (1 << position % 8, 0x20):
            quote = bytearray(evidence.quote + bytes(8))
            quote[position] ^= bit
            with pytest.raises(REFUSED):
                verify(replace(evidence, quote=bytes(quote)), now=now)


@pytest.mark.parametrize("tee", REAL)
def test_our_own_chain_alone_refuses_them_as_well(tee):
    evidence, now = real(tee)
    size = len(unpadded(evidence.quote))
    for position in (*range(0, 1300, 7), *range(1300, size, 31)):
        raw = bytearray(evidence.quote)
        raw[position] ^= 1 << position % 8
        with pytest.raises(REFUSED):
            follow(parse_quote(bytes(raw)), VENDORS.intel, now=now)


def test_what_can_be_spelt_otherwise_changes_no_claim():
    """Zero bytes after a quote, and line ends: they are in no digest, since claims have none of them."""
    intel = Intel()
    honest = verify(intel.evidence(td_body()), now=NOW)
    padded = intel.evidence(td_body())
    assert verify(replace(padded, quote=padded.quote + bytes(1000)), now=NOW) == honest
    intel.newline = "\r\n"
    assert verify(intel.evidence(td_body()), now=NOW) == honest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n", b"\r\n"),  # once only: two kinds of line ends
        (b"\n-----END", b"\n\n-----END"),
        (b"-----BEGIN", b" -----BEGIN"),
        (b"MII", b"M\nII"),
        (b"CERTIFICATE-----\n", b"CERTIFICATE-----\nheader: x\n"),
        (b"-----END CERTIFICATE-----\n", b"-----END CERTIFICATE-----\nnote\n"),
        (b"-----END CERTIFICATE-----\n", b"-----END CERTIFICATE-----\0"),
    ],
)
def test_a_chain_in_another_spelling_is_refused(old, new):
    intel = Intel()
    quote = intel.quote(td_body())
    start = quote.index(b"-----BEGIN")
    chain = quote[start:].replace(old, new, 1)
    report = quote[770:1154], quote[1154:1218], quote[1220:1252]
    certification = dcap.certification(report[0], report[1], report[2], chain)
    changed = dcap.td_quote(quote[:632], quote[636:700], quote[700:764], certification)
    with pytest.raises(FormatError, match="quote: "):
        parse_quote(changed)


# Whose quoting enclave it is: PCK signs reports of any enclave that its platform's owner lets it.


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
@pytest.mark.parametrize("quoting", [(b"o" * 32, 2), (QUOTING["sgx"][0], 9), (dcap.QE_SIGNER, 2)])
def test_a_quoting_enclave_of_the_owner_s_is_refused(tee, quoting):
    intel = Intel(quoting=quoting)
    body = sgx_body() if tee == "sgx" else td_body()
    evidence = intel.evidence(body, tee=tee, version=3 if tee == "sgx" else 4)
    with pytest.raises(VerificationError, match="quoting enclave: got signer"):
        follow(parse_quote(evidence.quote), intel.root, now=NOW)
    with pytest.raises(VerificationError):
        verify(evidence, now=NOW, anchors=intel.anchors())


def test_a_quoting_enclave_for_the_other_kind_is_refused():
    intel = Intel(quoting=QUOTING["sgx"])
    with pytest.raises(VerificationError, match="quoting enclave: got signer"):
        verify(intel.evidence(td_body(), tee="tdx"), now=NOW, anchors=intel.anchors())


def test_a_quoting_enclave_that_can_be_debugged_is_refused():
    intel = Intel(qe_flags=0x17)
    evidence = intel.evidence(td_body())
    with pytest.raises(VerificationError, match="quoting enclave: debug is on"):
        follow(parse_quote(evidence.quote), intel.root, now=NOW, intel=False)
    with pytest.raises(VerificationError):
        verify(evidence, now=NOW)


def test_an_attestation_key_that_no_quoting_enclave_vouches_for_is_refused():
    ours, theirs = Intel(), Intel()
    quote, other = ours.quote(td_body()), theirs.quote(td_body())
    mixed = quote[:636] + other[636:764] + quote[764:]
    with pytest.raises(VerificationError, match="attestation key: the quoting enclave vouches for another one"):
        follow(parse_quote(mixed), ours.root, now=NOW, intel=False)
    with pytest.raises(VerificationError):
        verify(Evidence("simulated", mixed, ours.collateral(sgx=False)), now=NOW)


def test_a_platform_of_another_vendor_is_refused():
    ours, theirs = Intel(quoting=QUOTING["tdx"]), Intel(quoting=QUOTING["tdx"])
    evidence = theirs.evidence(td_body(), tee="tdx")
    with pytest.raises(VerificationError):
        verify(evidence, now=NOW, anchors=ours.anchors())
    with pytest.raises(VerificationError):
        verify(evidence, now=NOW)
    with pytest.raises(VerificationError):
        follow(parse_quote(evidence.quote), ours.root, now=NOW)


# Endorsements: dcap-qvl's judgement, and our own.


def both_refuse(evidence: Evidence, intel: Intel, error: type[StrongroomError] = VerificationError) -> None:
    with pytest.raises(error):
        verify(evidence, now=NOW)
    with pytest.raises(error):
        quote = parse_quote(evidence.quote)
        follow_with(parse_collateral(evidence.endorsements), quote, intel.root, now=NOW, intel=False)


@pytest.mark.parametrize("body", [sgx_body(), td_body()])
def test_a_revoked_platform_is_refused(body):
    version = 3 if len(body) == 384 else 4
    intel = Intel()
    verify(intel.evidence(body, version=version), now=NOW)
    intel.revoked = True
    both_refuse(intel.evidence(body, version=version), intel)


def test_a_revocation_list_of_another_issuer_is_refused():
    intel = Intel()
    evidence = intel.evidence(td_body())
    parts = json.loads(evidence.endorsements)
    both_refuse(edited(evidence, pck_crl=parts["root_ca_crl"]), intel)
    both_refuse(edited(evidence, root_ca_crl=parts["pck_crl"]), intel)
    other = Intel()
    other.quote(td_body())
    both_refuse(edited(evidence, pck_crl=json.loads(other.collateral(sgx=False))["pck_crl"]), intel)


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize(
    ("edit", "error"),
    [
        ({"nextUpdate": "2025-06-15T00:00:00Z"}, ExpiredError),
        ({"issueDate": "2025-06-16T00:00:00Z"}, ExpiredError),
        ({"tcbLevels": []}, TcbError),
        ({"version": 9}, StrongroomError),
        ({"id": "X"}, StrongroomError),
    ],
)
def test_endorsements_that_say_no_are_obeyed(part, edit, error):
    intel = Intel(tcb_edits=edit) if part == "tcb_info" else Intel(qe_edits=edit)
    both_refuse(intel.evidence(td_body()), intel, error)


@pytest.mark.parametrize(
    "edit", [{"fmspc": "00806F050000"}, {"pceId": "0001"}, {"tdxModuleIdentities": []}, {"tdxModule": 1}]
)
def test_tcb_information_of_another_platform_is_refused(edit):
    intel = Intel(tcb_edits=edit)
    evidence = intel.evidence(td_body())
    with pytest.raises(StrongroomError):
        follow_with(
            parse_collateral(evidence.endorsements), parse_quote(evidence.quote), intel.root, now=NOW, intel=False
        )
    with pytest.raises(StrongroomError):
        verify(evidence, now=NOW)


@pytest.mark.parametrize("name", ["pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"])
@pytest.mark.parametrize("chain", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_an_issuer_chain_that_is_none_is_refused_even_where_nobody_needs_it(name, chain):
    evidence, now = real("tdx")
    with pytest.raises(StrongroomError):
        verify(edited(evidence, **{name: chain}), now=now)
    with pytest.raises(FormatError, match=f"endorsements: {name}: certificate"):
        parse_collateral(edited(evidence, **{name: chain}).endorsements)


def test_endorsements_cannot_be_edited():
    intel = Intel()
    evidence = intel.evidence(td_body())
    parts = json.loads(evidence.endorsements)
    for part, old, new in (("tcb_info", '"svn": 1', '"svn": 0'), ("qe_identity", '"isvsvn": 1', '"isvsvn": 0')):
        assert old in parts[part]
        both_refuse(edited(evidence, **{part: parts[part].replace(old, new)}), intel)
    for part in ("tcb_info_signature", "qe_identity_signature"):
        both_refuse(edited(evidence, **{part: "00" * 64}), intel)


@pytest.mark.parametrize(
    ("platform", "module", "enclave", "status"),
    [
        ("UpToDate", "UpToDate", "UpToDate", "UpToDate"),
        ("UpToDate", "OutOfDate", "UpToDate", "OutOfDate"),
        ("SWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("UpToDate", "UpToDate", "Revoked", "Revoked"),
        ("OutOfDate", "Revoked", "UpToDate", "Revoked"),
        ("Revoked", "UpToDate", "OutOfDate", "Revoked"),
    ],
)
def test_the_status_is_no_better_than_module_and_quoting_enclave(platform, module, enclave, status):
    intel = Intel()
    info = json.loads(dcap.tcb_info(NOW, NOW + 1))
    for levels, word, advisory in (
        (info["tcbLevels"], platform, "A-1"),
        (info["tdxModuleIdentities"][0]["tcbLevels"], module, "A-2"),
        (json.loads(dcap.qe_identity(NOW, NOW + 1))["tcbLevels"], enclave, "A-3"),
    ):
        levels[0] |= {"tcbStatus": word, "advisoryIDs": [advisory]}
        intel.qe_edits = {"tcbLevels": levels}
    intel.tcb_edits = {name: info[name] for name in ("tcbLevels", "tdxModuleIdentities")}
    evidence = intel.evidence(td_body())
    collateral = parse_collateral(evidence.endorsements)
    _, level = follow_with(collateral, parse_quote(evidence.quote), intel.root, now=NOW, intel=False)
    assert (level.status, set(level.advisories)) == (status, {"A-1", "A-2", "A-3"})
    try:
        claims = verify(evidence, now=NOW)
    except TcbError:
        assert status == "Revoked"  # dcap-qvl refuses these at once
    else:
        assert (claims.tcb_status, set(claims.advisories)) == (status, {"A-1", "A-2", "A-3"})


def test_a_tdx_module_that_intel_did_not_sign_is_refused():
    intel = Intel()
    both_refuse(intel.evidence(td_body(seam_signer=b"o" * 48)), intel)
    both_refuse(intel.evidence(td_body(svn=b"\0\1" + b"\1" * 14)), intel, TcbError)  # too old
    both_refuse(intel.evidence(td_body(svn=b"\1\2" + b"\1" * 14)), intel, TcbError)  # of a version nobody knows


# What the platform's certificate says


GOOD = dcap.pck_extension(b"p" * 16, b"i" * 16)


@pytest.mark.parametrize(
    "extension",
    [
        b"",
        b"\x30\x00",
        GOOD + b"\0",
        GOOD[:-1],
        GOOD + GOOD,
        GOOD.replace(b"\x04\x10" + b"p" * 16, b"\x04\x0f" + b"p" * 15),
        GOOD.replace(b"\x0a\x01\x01", b"\x0a\x01\x03"),  # an unknown kind of memory protection
        GOOD.replace(b"\x0a\x01\x01", b"\x02\x01\x01"),
        GOOD.replace(b"\x01\x01\x00", b"\x01\x01\x01", 1),  # DER has one true
        GOOD.replace(b"\x04\x02\x00\x00", b"\x04\x02\x00"),
        b"\x30\x80" + GOOD[4:] + b"\0\0",
    ],
)
def test_a_platform_s_certificate_with_another_extension_is_refused(extension):
    intel = Intel(extension=extension)
    quote = parse_quote(intel.quote(td_body()))
    with pytest.raises(FormatError, match="PCK certificate: "):
        follow(quote, intel.root, now=NOW, intel=False)


def test_what_intel_adds_to_the_extension_is_left_alone():
    more = dcap._pair("8", dcap._octets(b"new"))
    grown = dcap._sequence(GOOD[4:] + more)
    quote = parse_quote(Intel(extension=grown).quote(td_body()))
    assert quote.certificates[0].extension(dcap.SGX_EXTENSION) == grown
    intel = Intel(extension=grown)
    assert verify(intel.evidence(td_body()), now=NOW).hardware_id == (b"p" * 16).hex()
