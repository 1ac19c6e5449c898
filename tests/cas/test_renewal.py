"""Staying attested, by clocks that the tests turn."""

from __future__ import annotations

import threading
import time

import pytest

from strongroom.cas.client.renewal import RETRY_SECONDS, Renewal
from strongroom.cas.wire import ATTESTED_SECONDS
from strongroom.errors import (
    CasUnreachableError,
    ExpiredError,
    MeasurementError,
    RevokedError,
    RollbackError,
    UnauthorizedError,
)
from tests.cas.world import Clock, cas_in, world_in


class Told:
    """Attests, or fails as it is told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.times = 0
        self.called = threading.Event()

    def __call__(self) -> None:
        self.times += 1
        self.called.set()
        if self.error:
            raise self.error


@pytest.fixture
def kept():
    attest, clock, lines = Told(), Clock(1000.0), []
    return Renewal(attest, lifetime=600, tell=lines.append, clock=clock), attest, clock, lines


def test_it_is_renewed_halfway(kept):
    renewal, attest, clock, lines = kept
    assert renewal.step() == 300
    clock.now += 299
    assert renewal.step() == 1
    assert attest.times == 0
    clock.now += 1
    assert renewal.step() == 300
    clock.now += 599
    renewal.check()
    assert (attest.times, lines) == (1, [])


def test_where_nobody_answers_it_counts_until_it_expires(kept):
    renewal, attest, clock, lines = kept
    attest.error = CasUnreachableError("CAS: 127.0.0.1:1: connection refused")
    clock.now += 300
    assert renewal.step() == RETRY_SECONDS
    clock.now += 299
    renewal.step()
    renewal.check()
    clock.now += 1
    with pytest.raises(ExpiredError, match="could not be renewed within 600 seconds"):
        renewal.check()
    assert set(lines) == {"attestation not renewed: CAS: 127.0.0.1:1: connection refused"}
    attest.error = None
    clock.now += RETRY_SECONDS
    renewal.step()
    renewal.check()


def test_a_refusal_ends_it_at_once_until_it_is_accepted_again(kept):
    renewal, attest, clock, _ = kept
    attest.error = MeasurementError("measurement: got a, wanted b", hint="another program runs there")
    clock.now += 300
    renewal.step()
    for _ in range(2):
        with pytest.raises(MeasurementError, match="got a, wanted b") as caught:
            renewal.check()
        assert caught.value.hint == "another program runs there"
    attest.error = CasUnreachableError("CAS: away")
    clock.now += RETRY_SECONDS
    renewal.step()
    with pytest.raises(MeasurementError):
        renewal.check()
    attest.error = None
    clock.now += RETRY_SECONDS
    renewal.step()
    renewal.check()


def test_a_thread_takes_the_steps_and_ends():
    attest = Told()
    renewal = Renewal(attest, lifetime=0, tell=print)
    renewal.start()
    attest.called.wait()
    renewal.close()
    done = attest.times
    assert not renewal._renewing.alive
    assert attest.times == done


def test_a_connection_stays_attested_for_ten_minutes(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world, world.enclave() as enclave:
        enclave.attest()
        clock.now += ATTESTED_SECONDS - 1
        enclave.time_token()
        for moment in (clock.now + 1, clock.now - ATTESTED_SECONDS - 1):
            clock.now = moment
            with pytest.raises(UnauthorizedError, match="attested longer than 600 seconds ago; attest again"):
                enclave.time_token()
        clock.now += ATTESTED_SECONDS
        enclave.attest()
        enclave.time_token()


def test_a_session_attests_again_without_losing_a_request(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, world_in(cas) as world, world.session() as session:
        session.attest()
        anchor = session.anchor("out")
        assert anchor.read() is None
        for attested in (2, 3):
            clock.now += ATTESTED_SECONDS
            assert anchor.read() is None
            assert world.events().count("attested") == attested
        session.renew()
        assert world.events().count("attested") == 4


def test_a_session_that_is_refused_gets_nothing_more(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world, world.session() as session:
        session.attest()
        world.renew(reference={"measurements": ["ee" * 48]})
        for ask in (session.renew, session.anchor("out").read):
            with pytest.raises(MeasurementError):
                ask()


def test_a_renewal_survives_a_dropped_connection(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world, world.session() as session:
        session.attest()
        session._http.connect()._socket.shutdown(2)
        session.renew()
        assert world.events().count("attested") == 2


def test_it_says_once_that_it_has_expired_and_again_after_it_came_back():
    attest, clock, over = Told(), Clock(1000.0), []
    renewal = Renewal(attest, lifetime=600, left=100, tell=lambda line: None, on_end=over.append, clock=clock)
    attest.error = CasUnreachableError("CAS: away")
    clock.now += 99
    renewal.step()
    assert over == []
    clock.now += 1
    renewal.step(), renewal.step()
    assert [type(error) for error in over] == [ExpiredError]
    attest.error = None
    clock.now += RETRY_SECONDS
    renewal.step()
    renewal.check()
    attest.error = CasUnreachableError("CAS: away")
    clock.now += 600
    renewal.step()
    assert len(over) == 2


def test_a_revocation_is_final(kept):
    _, attest, clock, _ = kept
    over = []
    renewal = Renewal(attest, lifetime=600, tell=lambda line: None, on_end=over.append, clock=clock)
    attest.error = RevokedError("key: revoked")
    clock.now += 300
    renewal.step()
    assert [type(error) for error in over] == [RevokedError]
    attest.error = None
    clock.now += 600
    renewal.step()
    assert (attest.times, len(over)) == (1, 1)
    with pytest.raises(RevokedError):
        renewal.check()


def test_a_cas_that_was_rolled_back_has_refused(kept):
    renewal, attest, clock, _ = kept
    attest.error = RollbackError("log: has 3 entries, and 5 were seen")
    clock.now += 300
    renewal.step()
    with pytest.raises(RollbackError):
        renewal.check()


def test_the_lifetime_is_what_the_last_renewal_says(kept):
    _, _, clock, lines = kept
    renewal = Renewal(lambda: 60, lifetime=600, tell=lines.append, clock=clock)
    clock.now += 300
    assert renewal.step() == 30


def test_its_end_is_seen_while_a_host_keeps_the_renewal_waiting():
    asked, kept_waiting, over = threading.Event(), threading.Event(), threading.Event()

    def renew():
        asked.set()
        kept_waiting.wait()

    renewal = Renewal(renew, lifetime=0, tell=print, on_end=lambda error: over.set())
    renewal.start()
    assert asked.wait(60)
    assert over.wait(60)
    kept_waiting.set()
    renewal.close()


def test_whatever_a_renewal_fails_with_it_is_tried_again_and_ends(kept, caplog):
    _, attest, clock, _ = kept
    over = []
    renewal = Renewal(attest, lifetime=600, tell=print, on_end=over.append, clock=clock)
    attest.error = RecursionError()
    clock.now += 300
    assert renewal.step() == RETRY_SECONDS
    assert "attestation not renewed" in caplog.text
    clock.now += 300
    renewal.step()
    assert (attest.times, [type(error) for error in over]) == (2, [ExpiredError])
