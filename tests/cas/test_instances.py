"""Two instances of a CAS over one PostgreSQL: one is killed under load, and whoever asks notices a retry at most."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from strongroom.cas import CasAddress, OwnerClient
from strongroom.cas.service.backup import back_up, restore
from strongroom.cas.state.store import Store
from strongroom.crypto import SigningKey
from strongroom.errors import CasError, ChannelError, RollbackError
from strongroom.sealed import Root
from tests.cas.world import document

_SERVE = """
import json, sys
from pathlib import Path
from strongroom.cas.service.server import prepare
service = prepare(Path(sys.argv[1]), database=sys.argv[2])
print(json.dumps([service.address.url, service.address.cas_root]), flush=True)
service.run()
"""
CLIENTS, MOVES, KILLED_AFTER = 3, 40, 30


class Instance:
    def __init__(self, directory, url):
        self.process = subprocess.Popen([sys.executable, "-c", _SERVE, directory, url], stdout=subprocess.PIPE)
        self.address = CasAddress(*json.loads(self.process.stdout.readline()))

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def instances(postgres, tmp_path_factory):
    base, url = tmp_path_factory.mktemp("instances"), postgres.schema()
    first = Instance(base / "one", url)
    try:
        shutil.copytree(base / "one", base / "two")  # the same root secret, the same CA key
        second = Instance(base / "two", url)
        try:
            yield first, second, base / "one", url
        finally:
            second.end()
    finally:
        first.end()


class Client:
    """An owner behind a balancer: it asks the instances in turn, and the other one if one does not answer."""

    def __init__(self, addresses, number):
        key = SigningKey.generate()
        self.name, self.retries = f"acme-{number}/train", []
        self.clients = [OwnerClient(each.url, cas_root=each.cas_root, owner=key) for each in addresses]
        for client in self.clients[1:]:  # one client, which has seen what it has seen wherever it asks
            client._heads = client._http._heads = self.clients[0]._heads
        self.turn = number
        self.ask(lambda client: client.apply(document(key, name=self.name)))

    def ask(self, what):
        retries = 0
        while True:
            self.turn += 1
            try:
                done = what(self.clients[self.turn % len(self.clients)])
                self.retries.append(retries)
                return done
            except (ChannelError, CasError, OSError):
                retries += 1
                if retries > 1:
                    raise

    def close(self):
        for client in self.clients:
            client.close()


def root(number):
    return Root(number, bytes(32))


def test_what_one_instance_has_confirmed_no_other_denies(instances):
    """Whoever comes from one instance is never shown an older state by the next."""
    first, second, _, _ = instances
    client = Client([first.address, second.address], 9)
    for number in range(1, 11):
        old = root(number - 1) if number > 1 else None
        one, other = client.clients if number % 2 else client.clients[::-1]
        one.anchor(client.name, "out").advance(old, root(number))
        assert other.anchor(client.name, "out").read() == root(number)
    client.close()


def test_instances_on_two_databases_are_found_to_be_a_fork(instances, postgres, tmp_path):
    first, _, directory, url = instances
    client = Client([first.address], 8)
    fork = postgres.schema()
    back_up(directory, tmp_path / "backup", database=url)
    restore(tmp_path / "backup", tmp_path / "forked", database=fork)
    other = Instance(tmp_path / "forked", fork)
    try:
        client.clients[0].anchor(client.name, "out").advance(None, root(1))
        key = SigningKey.generate()
        with OwnerClient(other.address.url, cas_root=other.address.cas_root, owner=key) as forked:
            forked._heads = forked._http._heads = client.clients[0]._heads
            with pytest.raises(RollbackError):
                forked.policy(client.name)
    finally:
        other.end()
    client.close()


def test_an_instance_that_is_killed_under_load_loses_nothing(instances):
    """The last test: it kills the first instance."""
    first, second, directory, url = instances
    assert first.address.cas_root == second.address.cas_root
    clients = [Client([first.address, second.address], number) for number in range(CLIENTS)]
    moved, failed = threading.Semaphore(0), []

    def work(client):
        try:
            for number in range(1, MOVES + 1):
                old, new = root(number - 1) if number > 1 else None, root(number)
                client.ask(lambda each, old=old, new=new: each.anchor(client.name, "out").advance(old, new))
                moved.release()
        except Exception as error:
            failed.append(error)
            for _ in range(KILLED_AFTER):
                moved.release()

    threads = [threading.Thread(target=work, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for _ in range(KILLED_AFTER):
        moved.acquire()
    os.kill(first.process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert not failed, failed
    store = Store(directory, database=url)
    for client in clients:
        assert store.anchor(client.name, "out") == root(MOVES)
        store.check_head(client.clients[0]._heads.read())
        client.close()
    entries = store.log(limit=10_000)
    assert [entry.number for entry in entries] == list(range(1, store.head().size + 1))
    for client in clients:
        roots = [json.loads(e.detail)["root"] for e in entries if e.event == "anchor" and e.policy == client.name]
        assert roots == [str(root(number)) for number in range(1, MOVES + 1)]
    assert store.verify_all() == store.head().size
    store.close()
