"""Whatever a TPM's parsers get, they give a value or an error of ours; and evidence and logs go there and back."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.enrolment import Challenge, EnrolmentRequest
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.event_log import parse_event_log, replay, secure_boot
from strongroom.attest.parse.tpm import DIGEST_SIZES, TpmEvidence, parse_quote, parse_signature, parse_tpm
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.verify import verify
from strongroom.errors import StrongroomError
from strongroom.testing.event_log import FirmwareLog

VECTORS = Path(__file__).parents[1] / "vectors" / "tpm2" / "enrolled"
SHOWN = parse_tpm((VECTORS / "evidence.json").read_bytes())
REQUEST = (VECTORS / "request.json").read_bytes()
PARSERS = {
    "quote": (parse_quote, SHOWN.message),
    "signature": (parse_signature, SHOWN.signature),
    "public area": (parse_public, SHOWN.public),
    "event log": (parse_event_log, SHOWN.event_log),
    "evidence": (parse_tpm, SHOWN.to_bytes()),
    "request": (EnrolmentRequest.from_bytes, REQUEST),
    "challenge": (Challenge.from_bytes, Challenge(b"credential", b"seed").to_bytes()),
}
fuzz = settings(max_examples=100, deadline=None)
edits = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "cut"]), st.integers(0, 999), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)


def damaged(raw: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for how, place, piece in changes:
        at = len(raw) * place // 1000
        skip = {"set": len(piece), "insert": 0, "cut": len(piece)}[how]
        raw = raw[:at] + (b"" if how == "cut" else piece) + raw[at + skip :]
    return raw


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_take_or_refuse_any_bytes(name):
    parse, sound = PARSERS[name]
    parse(sound)

    @fuzz
    @given(st.binary(max_size=200) | edits.map(lambda changes: damaged(sound, changes)))
    def run(raw):
        with suppress(StrongroomError):
            parse(raw)

    run()


@fuzz
@given(edits)
def test_damaged_evidence_is_refused_whoever_shows_it(changes):
    with pytest.raises(StrongroomError):
        verify(Evidence("tpm", damaged(SHOWN.to_bytes(), changes), b""), now=0)


@fuzz
@given(
    st.binary(min_size=1, max_size=64),
    st.dictionaries(
        st.sampled_from(sorted(DIGEST_SIZES)),
        st.dictionaries(st.integers(0, 31), st.binary(min_size=1, max_size=64), max_size=4),
    ),
    st.binary(max_size=64),
)
def test_evidence_goes_there_and_back(message, pcrs, event_log):
    shown = TpmEvidence(message, message, pcrs, public=message, event_log=event_log)
    assert parse_tpm(shown.to_bytes()) == shown


@fuzz
@given(
    st.lists(
        st.tuples(
            st.integers(0, 23),
            st.sampled_from([0x1, 0x4, 0xD, 0x80000001, 0x12345678]),
            st.binary(max_size=40),
            st.none() | st.binary(max_size=8),
        ),
        max_size=20,
    )
)
def test_a_log_replays_to_what_was_measured_in_every_bank(measured):
    log = FirmwareLog(("sha1", "sha256", "sha384", "sha512"))
    for pcr, kind, data, digested in measured:
        log.measure(pcr, kind, data, digested=digested)
    events = parse_event_log(log.to_bytes())
    for bank in ("sha1", "sha256", "sha384", "sha512"):
        assert replay(events, bank) == log.pcrs(bank)
        for event in events:
            event.words(bank)
        secure_boot(events, bank)
