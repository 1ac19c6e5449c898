"""Instances of one CAS watch each other's logs: a fork closes them, and nothing else does."""

from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from strongroom.cas.api.peers import PeerWatch
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.service.server import prepare
from strongroom.cas.start.mode import TRUST_DISK
from strongroom.crypto import SigningKey
from strongroom.errors import RollbackError, UsageError
from tests.cas.world import document


def client_of(service, key=None):
    return OwnerClient(service.address.url, cas_root=service.address.cas_root, owner=key or SigningKey.generate())


def watch(service, peer, clock=lambda: 7):
    return PeerWatch(service.store, service.gate, service.authority, [peer.address.url], clock=clock)


def create(directory):
    with prepare(directory) as service, client_of(service) as client:
        client.apply(document(client._require_owner(), name="one/first"))


def test_instances_of_one_database_agree_while_both_write(tmp_path):
    create(tmp_path / "cas")
    with prepare(tmp_path / "cas") as one, prepare(tmp_path / "cas") as two:
        watches = [watch(one, two), watch(two, one)]
        done = threading.Event()

        def write(service, word):
            with client_of(service) as client:
                for number in range(30):
                    client.apply(document(client._require_owner(), name=f"{word}/n{number}"))

        def look(each):
            while not done.is_set():
                each.check()

        with ThreadPoolExecutor() as pool:
            looking = [pool.submit(look, each) for each in watches]
            try:
                for writing in [pool.submit(write, one, "ones"), pool.submit(write, two, "twos")]:
                    writing.result()
            finally:
                done.set()
            for each in looking:
                each.result()
        assert one.gate.ready
        assert two.gate.ready
        for each in watches:
            each.check()
            (state,) = each.states
            assert (state.problem, state.size, state.seen) == ("", one.store.head().size, 7)
            each.close()


@pytest.mark.parametrize("diverged", [False, True])
def test_a_fork_closes_the_instances(tmp_path, caplog, diverged):
    """Both forks go on, or one of them stands still where the other has gone on: it was put back."""
    create(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with prepare(tmp_path / "a") as one, prepare(tmp_path / "b") as two:
        assert one.address.cas_root == two.address.cas_root
        with client_of(one) as client:
            client.apply(document(client._require_owner(), name="other-one/second"))
        if diverged:
            with client_of(two) as client:
                client.apply(document(client._require_owner(), name="other-two/second"))
        watching = watch(two, one)
        with caplog.at_level(logging.CRITICAL):
            watching.check()
        assert "nothing is served any more" in caplog.text
        assert watching.states[0].problem == "its log is another"
        assert two.gate.state == "forked"
        with client_of(two) as client:
            with pytest.raises(RollbackError, match="fork: https://"):
                client.policy("one/first")
            with pytest.raises(RollbackError):
                client.log()
            assert client.describe()["cas_root"]
            client.log_head()  # its peers and its owners still see what it has
        watching.close()
        if diverged:
            other = watch(one, two)
            other.check()
            assert one.gate.state == "forked"
            other.close()


def test_a_peer_that_does_not_answer_is_told_once(tmp_path, caplog):
    create(tmp_path / "cas")
    with prepare(tmp_path / "cas") as one:
        with prepare(tmp_path / "cas") as two:
            watching = watch(one, two)
            watching.check()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                watching.check()
        assert sum("peer https" in record.message for record in caplog.records) == 1
        (state,) = watching.states
        assert state.problem
        assert state.seen == 7
        assert one.gate.ready
        watching.close()


def test_another_cas_is_no_peer(tmp_path):
    create(tmp_path / "cas")
    with prepare(tmp_path / "cas") as one, prepare(tmp_path / "other") as other:
        watching = watch(one, other)
        watching.check()
        assert "peer authority" in watching.states[0].problem
        assert one.gate.ready
        watching.close()


def test_an_address_has_its_form(tmp_path):
    with pytest.raises(UsageError, match="wanted https://HOST:PORT"):
        prepare(tmp_path, peers=("http://127.0.0.1:1",))
    service = prepare(tmp_path)
    assert service.gate.restart == TRUST_DISK
    service.close()
