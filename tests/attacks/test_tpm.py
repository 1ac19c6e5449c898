"""Whoever carries a TPM's evidence changes it: every byte, and what a host would like to say instead."""

from __future__ import annotations

import dataclasses

import pytest

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.tpm import TpmEvidence, parse_tpm
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.verify import VENDORS, verify
from strongroom.crypto.chains import VendorKey
from strongroom.errors import StrongroomError
from tests.attest.tpms import AK_BITS, NOW, P256, REAL, VECTORS, check, public_area, quoted, sign, spki


def flips(raw: bytes) -> list[bytes]:
    """`raw` with one byte changed: each by its lowest bit, and by all of them."""
    return [raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :] for at in range(len(raw)) for mask in (1, 0xFF)]


@pytest.mark.parametrize("name", REAL)
def test_every_byte_of_message_signature_and_registers(name):
    shown = REAL[name]()
    key = VendorKey(shown.spki)
    check(shown, key)
    tampered = [dataclasses.replace(shown, message=each) for each in flips(shown.message)]
    tampered += [dataclasses.replace(shown, signature=each) for each in flips(shown.signature)]
    for index, value in shown.pcrs["sha256"].items():
        other = shown.pcrs["sha256"] | {index: flips(value)[0]}
        tampered.append(dataclasses.replace(shown, pcrs={"sha256": other}))
    for each in tampered:
        with pytest.raises(StrongroomError):
            check(each, key)


def recorded() -> tuple[TpmEvidence, VendorKey]:
    """Evidence with an event log, and its key."""
    shown = parse_tpm((VECTORS / "enrolled" / "evidence.json").read_bytes())
    return shown, parse_public(shown.public).key


def worth(claims: Claims) -> tuple[object, ...]:
    """What appraisal looks at, but for what may be missing in changed evidence."""
    return claims.measurement, dict(claims.registers), claims.report_data, claims.vendor_root, claims.hardware_id


def test_bytes_of_the_public_area_that_nothing_signs_say_nothing():
    """The key is what counts: its attributes were shown at enrolment. Policy, scheme and attributes are malleable."""
    shown, key = recorded()
    honest = check(shown, key)
    malleable = 0
    for each in flips(shown.public):
        try:
            claims = check(dataclasses.replace(shown, public=each), key)
        except StrongroomError:
            continue
        malleable += 1
        assert worth(claims) == worth(honest)
        # The name is another one than the TPM put into its quote.
        assert (claims.tcb, claims.attributes["hierarchy"]) == ({}, "not told")
    assert 0 < malleable < len(shown.public)


def test_bytes_of_the_event_log_that_were_not_digested_change_no_words():
    shown, key = recorded()
    honest = check(shown, key)
    words = {str(value) for name, value in honest.attributes.items() if name.startswith("event")}
    for each in flips(shown.event_log):
        try:
            claims = check(dataclasses.replace(shown, event_log=each), key)
        except StrongroomError:
            continue
        assert worth(claims) == worth(honest)
        assert claims.attributes.get("secure_boot", True) is True
        for name, value in claims.attributes.items():
            # A digest, where the words are no longer what was digested; a type that nobody digested.
            said = str(value).partition(" ")[2].partition(" ")[2]
            if name.startswith("event") and name != "events" and not said.startswith("sha256:"):
                assert any(each.endswith(said) for each in words)


def test_every_byte_of_evidence_on_the_wire():
    raw = (VECTORS / "enrolled" / "evidence.json").read_bytes()
    key = recorded()[1]
    anchors = dataclasses.replace(VENDORS, tpm_keys=(key,))
    honest = verify(Evidence("tpm", raw, b""), now=NOW, anchors=anchors)
    for at in range(0, len(raw), 3):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            claims = verify(Evidence("tpm", changed, b""), now=NOW, anchors=anchors)
        except StrongroomError:
            continue
        assert worth(claims) == worth(honest)


def test_a_key_outside_of_any_tpm_signs_what_it_likes_and_is_nobodys():
    forged = quoted()
    with pytest.raises(StrongroomError, match="not enrolled"):
        check(forged, recorded()[1])


def test_a_signature_by_the_enrolled_key_over_something_else_is_no_quote():
    # A TPM refuses to sign what begins with its own magic; whatever else a key signed is no quote.
    message = b"certificate request, or anything else"
    shown = TpmEvidence(message, sign(P256, message), {"sha256": {0: bytes(32)}}, public_area(P256, AK_BITS))
    with pytest.raises(StrongroomError, match="got magic"):
        check(shown, VendorKey(spki(P256)))


def test_evidence_of_another_kind_is_no_tpms():
    for tee in ("snp", "nitro", "azure-snp", "sgx", "tdx", "simulated", "nvidia"):
        with pytest.raises(StrongroomError):
            verify(Evidence(tee, quoted().to_bytes(), b""), now=NOW)
