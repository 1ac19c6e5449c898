"""Group commit: requests of one turn share a transaction; no answer is ahead of the disk."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.responses import Response

from strongroom.cas.api.commits import Commits
from strongroom.cas.api.guard import guarded
from strongroom.cas.state.store import Store
from strongroom.channel import TlsInfo
from strongroom.errors import ConflictError, DatabaseError


class Requests:
    """Handlers over a store, run as the server runs them, and what happened in which order."""

    def __init__(self, store, monkeypatch):
        self.store, self.order, self.sessions = store, [], []
        self.commits = Commits(store)
        flush = store.flush

        def flushed():
            self.order.append("commit")
            flush()

        monkeypatch.setattr(store, "flush", flushed)

    async def ask(self, name, handle):
        session = {"attested": name}
        self.sessions.append(session)

        async def handler(request):
            value = handle()
            return Response(str(value))

        tls = TlsInfo.__new__(TlsInfo)
        tls.session = session
        request = SimpleNamespace(scope={"extensions": {"strongroom.tls": tls}})
        response = await self.commits.durable(handler)(request)
        self.order.append(name)
        return response.body.decode()

    def all(self, *asked):
        async def run():
            tasks = [asyncio.ensure_future(self.ask(name, handle)) for name, handle in asked]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return asyncio.run(run())


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "cas")
    yield store
    store.close()


@pytest.fixture
def requests(store, monkeypatch):
    return Requests(store, monkeypatch)


def put(store, name, value):
    return lambda: store.put_secret("a/b", name, value, now=1)


def test_requests_of_one_turn_share_a_commit_and_wait_for_it(store, requests):
    asked = [(f"put {n}", put(store, f"s{n}", b"%d" % n)) for n in range(20)]
    requests.all(*asked, ("read", lambda: store.secret("a/b", "s3")))
    assert requests.order[0] == "commit"
    assert requests.order.count("commit") == 1
    assert set(requests.order[1:]) == {name for name, _ in asked} | {"read"}
    assert store.head().size == 20


def test_a_request_that_fails_takes_back_its_own_changes_only(store, requests):
    def fail():
        with store.transaction():
            store.put_secret("a/b", "x", b"lost", now=1)
            raise ConflictError("no")

    answers = requests.all(("one", put(store, "x", b"1")), ("two", fail), ("three", put(store, "y", b"3")))
    assert isinstance(answers[1], ConflictError)
    assert store.secret("a/b", "x") == b"1"
    assert store.secret("a/b", "y") == b"3"
    assert [entry.number for entry in store.log()] == [1, 2]


def test_what_could_not_be_committed_was_told_to_nobody(store, requests, monkeypatch, caplog):
    put(store, "x", b"old")()
    before = store.head()
    read = []

    def look():
        read.append(store.secret("a/b", "x"))
        return read[-1]

    def full():
        raise DatabaseError("disk: is full")

    with monkeypatch.context() as patched:
        patched.setattr(store._db, "commit", full)
        answers = requests.all(("one", put(store, "x", b"1")), ("two", look))
    assert read == [b"1"]
    assert all(isinstance(answer, DatabaseError) and "did not confirm it" in str(answer) for answer in answers)
    assert "is full" in caplog.text
    assert requests.sessions == [{}, {}]  # nothing is left of what was lost
    assert store.head() == before
    assert store.secret("a/b", "x") == b"old"
    assert requests.all(("three", look)) == ["b'old'"]


def test_an_error_that_tells_of_what_is_not_there_yet_waits_too(store, requests, monkeypatch):
    def refuse():
        raise ConflictError(f"it is {store.secret('a/b', 'x')!r} already")

    def full():
        raise DatabaseError("disk: is full")

    with monkeypatch.context() as patched:
        patched.setattr(store._db, "commit", full)
        answers = requests.all(("one", put(store, "x", b"1")), ("two", refuse))
    assert all(isinstance(answer, DatabaseError) for answer in answers)
    answers = requests.all(("three", put(store, "x", b"1")), ("four", refuse))
    assert isinstance(answers[1], ConflictError)


def test_callers_are_told_to_ask_again(store, requests, monkeypatch, caplog):
    def away(*, write):
        raise DatabaseError("postgresql://db/cas: is away")

    async def handler(request):
        store.put_secret("a/b", "x", b"1", now=1)

    monkeypatch.setattr(store._db, "begin", away)
    request = SimpleNamespace(method="PUT", url=SimpleNamespace(path="/v1"))
    response = asyncio.run(guarded(requests.commits.durable(handler))(request))
    assert response.status_code == 503
    told = json.loads(response.body)
    assert told["code"] == "database"
    assert "db/cas" not in str(told)  # where the CAS keeps its state is nobody's business
    assert "is away" in caplog.text


def test_a_database_that_cannot_be_written_to_fails_those_who_write(store, requests, monkeypatch):
    def locked(*, write):
        raise DatabaseError("locked")

    with monkeypatch.context() as patched:
        patched.setattr(store._db, "begin", locked)
        (answer,) = requests.all(("one", put(store, "x", b"1")))
    assert isinstance(answer, DatabaseError)
    requests.all(("two", put(store, "x", b"2")))
    assert store.secret("a/b", "x") == b"2"
    assert store.head().size == 1


def test_a_caller_that_leaves_holds_nobody_up(store, requests):
    async def run():
        one = asyncio.ensure_future(requests.ask("one", put(store, "x", b"1")))
        two = asyncio.ensure_future(requests.ask("two", put(store, "y", b"2")))
        await asyncio.sleep(0)
        one.cancel()
        return await asyncio.gather(one, two, return_exceptions=True)

    answers = asyncio.run(run())
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1] == "None"
    assert store.head().size == 2


def test_other_threads_and_later_ones_commit_at_once(store, requests):
    requests.all(("one", put(store, "x", b"1")))
    put(store, "y", b"2")()
    assert not store.in_group()
    assert requests.order == ["commit", "one"]
    assert store.head().size == 2


def test_everybody_is_answered_when_transactions_cannot_begin(store, requests, monkeypatch):
    def away(*, write):
        raise DatabaseError("postgresql: is away")

    with monkeypatch.context() as patched:
        patched.setattr(store._db, "begin", away)
        answers = requests.all(*((f"put {n}", put(store, f"s{n}", b"1")) for n in range(3)))
    assert [type(answer) for answer in answers] == [DatabaseError] * 3


def test_one_that_could_not_begin_takes_no_answer_from_those_of_its_turn(store, requests, monkeypatch):
    begin, begun = store._db.begin, []

    def at_first(*, write):
        begun.append(write)
        if len(begun) == 1:
            raise DatabaseError("postgresql: the connection is lost")
        begin(write=write)

    monkeypatch.setattr(store._db, "begin", at_first)
    answers = requests.all(*((f"put {n}", put(store, f"s{n}", b"1")) for n in range(3)))
    assert isinstance(answers[0], DatabaseError)
    assert answers[1:] == ["None", "None"]
    assert store.head().size == 2
