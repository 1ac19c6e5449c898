"""The head that clients remember, send, and hold the CAS to."""

from __future__ import annotations

import stat

import pytest

from strongroom.cas.log.head import HEAD_HEADER, NO_ENTRIES, FileHead, Head, MemoryHead
from strongroom.cas.state.store import Store
from strongroom.channel import HttpClient, Response
from strongroom.errors import ChannelError, FormatError, RollbackError
from strongroom.sealed import Root

ONE, TWO, FORK = Head(1, b"1" * 32), Head(2, b"2" * 32), Head(2, b"f" * 32)


def test_a_file_remembers_the_highest_head(tmp_path):
    memory = FileHead(tmp_path / "heads" / "cas")
    assert memory.read() == NO_ENTRIES
    for head in (TWO, ONE, FORK):
        memory.advance(head)
        assert memory.read() == TWO
    assert stat.S_IMODE(memory.path.stat().st_mode) == 0o600
    assert FileHead(memory.path).read() == TWO


@pytest.mark.parametrize("text", ["", "2", "2:00", "02:" + "00" * 32, "x" * 300, str(TWO) + "\n\n", "-1:" + "00" * 32])
def test_a_file_of_something_else_is_said_to_be(tmp_path, text):
    path = tmp_path / "head"
    path.write_text(text)
    with pytest.raises(FormatError, match="head: got") as caught:
        FileHead(path).read()
    assert str(path) in caught.value.hint


def test_every_answer_carries_the_head_and_every_request_the_one_seen(world):
    before = world.client._heads.read()
    assert before.size > 0
    world.client.put_secret(world.name, "token", b"new")
    after = world.client._heads.read()
    assert after.size == before.size + 1
    sent = world.client._http.request("GET", "/v1/nowhere")
    assert sent.status == 404
    with world.enclave() as enclave:
        for answer in (
            enclave.http.request("GET", "/v1/cas"),
            enclave.http.request("POST", "/v1/attest", body=b"{}"),
            enclave.http.request("GET", f"/v1/policies/{world.name}x"),
        ):
            assert Head.parse(answer.headers[HEAD_HEADER]).size >= after.size


@pytest.mark.parametrize("text", ["", "x", "1", "1:", "1:" + "0" * 63, "1:" + "0" * 65, "9" * 19])
def test_a_malformed_head_is_a_bad_request(world, text):
    answer = HttpClient.request(world.client._http, "GET", "/v1/cas", headers={HEAD_HEADER: text})
    assert (answer.status, answer.json()["code"]) == (400, "format")
    assert HEAD_HEADER not in answer.headers


def test_a_head_that_is_not_this_log_s_gets_409_and_changes_nothing(world):
    real = world.client._heads.read()
    for seen, says in (
        (Head(real.size + 1, real.root), "rolled back"),
        (Head(10**17, bytes(32)), "rolled back"),
        (Head(real.size, bytes(32)), "forked"),
        (Head(real.size - 1, real.root), "forked"),
        (Head(0, bytes(32)), "forked"),
    ):
        path = f"/v1/policies/{world.name}/secrets/token"
        answer = HttpClient.request(
            world.client._http, "PUT", path, body=b'{"value": "AAAA"}', headers={HEAD_HEADER: str(seen)}
        )
        assert (answer.status, answer.json()["code"]) == (409, "rollback")
        assert says in str(answer.json()["error"])
        assert HEAD_HEADER not in answer.headers
    assert len(world.events()) == 4


def test_the_head_of_any_earlier_size_is_accepted(world):
    heads = []
    for _ in range(9):
        world.client.put_secret(world.name, "token", b"x")
        heads.append(world.client._heads.read())
    for seen in (NO_ENTRIES, *heads):
        answer = HttpClient.request(world.client._http, "GET", "/v1/cas", headers={HEAD_HEADER: str(seen)})
        assert answer.status == 200


class Answers:
    """In place of a connection: a CAS that says what it likes."""

    def __init__(self, monkeypatch, *answers):
        self.answers = list(answers)
        monkeypatch.setattr(HttpClient, "request", lambda *args, **options: self.answers.pop(0))


@pytest.mark.parametrize("told", [Head(1, b"1" * 32), Head(2, b"x" * 32)])
def test_a_cas_that_ignores_what_was_seen_is_found_out_by_its_own_head(world, monkeypatch, told):
    world.client._heads = world.client._http._heads = MemoryHead()
    world.client._heads.advance(TWO)
    Answers(monkeypatch, Response(200, {HEAD_HEADER: str(told)}, b"{}"))
    with pytest.raises(RollbackError, match="log: the CAS's head is"):
        world.client.describe()
    assert world.client._heads.read() == TWO


def test_an_answer_without_a_head_is_none(world, monkeypatch):
    Answers(monkeypatch, Response(200, {}, b"{}"))
    with pytest.raises(ChannelError, match="says nothing of the log's head"):
        world.client.describe()


def test_two_processes_on_one_database_see_each_other_s_entries(tmp_path):
    first = Store(tmp_path)
    second = Store(tmp_path)
    for number in range(1, 8):
        store, other = (first, second) if number % 2 else (second, first)
        store.put_secret("a/b", "s", b"%d" % number, now=number)
        assert other.secret("a/b", "s") == b"%d" % number
        assert other.head() == store.head()
        assert other.head().size == number
    assert [entry.time for entry in first.log()] == list(range(1, 8))
    assert [entry.previous for entry in second.log()] == list(range(7))
    first.close()
    second.close()


def test_a_change_that_fails_leaves_neither_row_nor_entry(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.put_secret("a/b", "s", b"kept", now=1)
    before = store.head()
    for place in ("log_store.Log.seal", "log_store.Log.append", "rows.Rows.put"):
        with monkeypatch.context() as patched:
            patched.setattr(f"strongroom.cas.state.{place}", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.put_secret("a/b", "s", b"lost", now=2)
        assert store.secret("a/b", "s") == b"kept"
        assert store.head() == before
    store.put_secret("a/b", "s", b"next", now=3)
    assert store.head().size == 2
    store.close()
    again = Store(tmp_path)
    assert again.secret("a/b", "s") == b"next"
    again.close()


def test_a_refusal_costs_no_new_look_at_the_whole_database(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.put_secret("a/b", "s", b"1", now=1)
    loads = []
    monkeypatch.setattr("strongroom.cas.state.rows.Rows.load", lambda *args: loads.append(args))
    for _ in range(3):
        with pytest.raises(RollbackError):
            store.advance_anchor("a/b", "v", None, Root(1, bytes(32)), now=2)
            store.advance_anchor("a/b", "v", Root(1, bytes(32)), Root(1, b"x" * 32), now=2)
    assert not loads
    store.close()
