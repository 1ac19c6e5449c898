"""A CAS that does not answer is waited for, as long as that is worth it; what it refuses is not asked again."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from strongroom.enclave import patience
from strongroom.enclave.patience import until_answered
from strongroom.errors import (
    CasUnreachableError,
    ChannelError,
    ConflictError,
    PeerIdentityError,
    RevokedError,
    StrongroomError,
)

AWAY = CasUnreachableError("CAS: 127.0.0.1:1: connection refused")
SILENT = ChannelError("TLS handshake: not complete after 30 s")


class Cas:
    """Answers, in order, with these; then with a word."""

    def __init__(self, *answers: StrongroomError) -> None:
        self.answers = list(answers)
        self.told: list[str] = []

    def ask(self) -> str:
        if self.answers:
            raise self.answers.pop(0)
        return "answer"

    def wait(self, *seconds: float) -> str:
        left = list(seconds)
        return until_answered(self.ask, left=lambda: left.pop(0) if len(left) > 1 else left[0], tell=self.told.append)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_AGAIN", 0.001)


def test_it_is_asked_again_until_it_answers_and_that_is_said_once() -> None:
    cas = Cas(AWAY, SILENT, AWAY)
    assert cas.wait(60.0) == "answer"
    assert cas.told == [
        "CAS: 127.0.0.1:1: connection refused: waiting for the CAS, for 60 seconds at most",
        "the CAS answers again",
    ]


def test_what_is_at_stake_is_said_when_it_waits_and_when_it_gives_up() -> None:
    cas, left = Cas(AWAY, CasUnreachableError(AWAY.message, hint="is it running?")), [60.0, 0.0]
    with pytest.raises(CasUnreachableError) as caught:
        until_answered(cas.ask, left=lambda: left.pop(0), tell=cas.told.append, lost="what was not sealed")
    assert "60 seconds at most; what was not sealed by then is lost" in cas.told[0] and "Ctrl-C" in cas.told[0]
    assert caught.value.hint == "what was not sealed is lost"


def test_nothing_is_said_where_it_answers() -> None:
    cas = Cas()
    assert (cas.wait(60.0), cas.told) == ("answer", [])


@pytest.mark.parametrize("refusal", [PeerIdentityError("another"), RevokedError("revoked"), ConflictError("faster")])
def test_a_refusal_is_an_answer_and_who_is_another_is_not_waited_for(refusal: StrongroomError) -> None:
    cas = Cas(AWAY, refusal, AWAY)
    with pytest.raises(type(refusal)):
        cas.wait(60.0)


def test_it_is_waited_for_until_nothing_is_left() -> None:
    cas = Cas(*[AWAY] * 9)
    with pytest.raises(CasUnreachableError, match="connection refused"):
        cas.wait(2.0, 1.0, 0.0)
    assert len(cas.answers) == 6
    alone = Cas(AWAY)
    with pytest.raises(CasUnreachableError):
        alone.wait(0.0)
    assert alone.told == []


def test_a_signal_gives_up_what_waits_and_is_the_program_s_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cas = Cas(*[AWAY] * 9)

    def tell(text: str) -> None:
        cas.told.append(text)
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.raises(CasUnreachableError):
        until_answered(cas.ask, left=lambda: 1e9 if cas.answers else 0.0, tell=tell)
    assert signal.getsignal(signal.SIGTERM) == before
