"""The store over both kinds of database: transactions, parts of them, groups, removed rows, and what others write."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from strongroom.cas.state.postgres import read_url
from strongroom.cas.state.rows import KEYS
from strongroom.cas.state.store import Store
from strongroom.errors import DatabaseError, IntegrityError, RollbackError, UsageError, WrongKeyError
from tests.cas.postgres import binaries, postgres_server


class Place:
    """A CAS's state, of which several instances may be opened."""

    def __init__(self, directory, server=None):
        self.directory, self.server = directory, server
        self.url = server.schema() if server else None
        self.opened = []

    def open(self, *, instance=None):
        directory = self.directory / "cas0"
        if self.url and instance:
            directory = self.directory / f"cas{instance}"
            if not directory.exists():
                shutil.copytree(self.directory / "cas0", directory)
        store = Store(directory, database=self.url)
        self.opened.append(store)
        return store

    def edit(self, statement):
        if self.server:
            assert self.server.sql(statement, self.url) != [0]
        else:
            with sqlite3.connect(self.directory / "cas0" / "cas.sqlite") as db:
                assert db.execute(statement).rowcount > 0
            db.close()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    place = Place(tmp_path, server)
    yield place
    for store in place.opened:
        store.close()


def put(store, name, value, now=1):
    store.put_row("secrets", "a/b", name, value, event="secret", policy="a/b", detail={"name": name}, now=now)


def delete(store, name, now=1):
    return store.delete_row("secrets", "a/b", name, event="removed", policy="a/b", detail={"name": name}, now=now)


def state(store):
    """All that can be seen of it."""
    names = store.row_keys("secrets", "a/b")
    return store.head(), {name: store.row("secrets", "a/b", name) for name in names}, store.log()


def test_rows_come_and_go_with_their_entries(place):
    store = place.open()
    put(store, "x", b"1")
    put(store, "y", b"2")
    put(store, "x", b"3")
    assert delete(store, "y")
    assert not delete(store, "y")
    assert store.row("secrets", "a/b", "y") is None
    assert store.row_keys("secrets", "a/b") == ["x"]
    assert [entry.event for entry in store.log()] == ["secret", "secret", "secret", "removed"]
    assert [entry.previous for entry in store.log()] == [0, 1, 2, 3]
    again = place.open(instance=1)
    assert state(again) == state(store)
    assert again.row("secrets", "a/b", "x") == b"3"
    assert again.verify_all() == 4


def test_a_transaction_is_done_whole_or_not_at_all(place):
    store, other = place.open(), place.open(instance=1)
    put(store, "x", b"kept")
    before = state(store)
    with pytest.raises(ZeroDivisionError), store.transaction():
        put(store, "x", b"lost")
        delete(store, "x")
        put(store, "y", b"lost")
        raise ZeroDivisionError
    assert state(store) == before
    with store.transaction():
        put(store, "x", b"new")
        put(store, "y", b"new")
        assert other.head() == before[0]
    assert [state(each) for each in place.opened] == [state(store)] * len(place.opened)
    assert store.row("secrets", "a/b", "y") == b"new"


def test_a_part_that_fails_takes_back_itself_only(place):
    store = place.open()
    with store.transaction():
        put(store, "x", b"first")
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), store.transaction():
                put(store, "x", b"part")
                with store.transaction():
                    put(store, "y", b"part of the part")
                raise ZeroDivisionError
            assert store.row("secrets", "a/b", "x") == b"first"
        put(store, "z", b"last")
    assert state(place.open(instance=1)) == state(store)
    assert store.row_keys("secrets", "a/b") == ["x", "z"]
    assert [entry.detail for entry in store.log()] == ['{"name":"x"}', '{"name":"z"}']


def test_a_group_is_told_to_nobody_before_it_is_flushed(place):
    store, other = place.open(), place.open(instance=1)
    store.group(lambda: True)
    put(store, "x", b"1")
    with pytest.raises(ZeroDivisionError), store.transaction():
        put(store, "y", b"2")
        raise ZeroDivisionError
    put(store, "z", b"3")
    assert store.in_group()
    assert other.head().size == 0
    store.flush()
    assert not store.in_group()
    assert state(other) == state(store)
    assert other.row_keys("secrets", "a/b") == ["x", "z"]


def test_a_group_that_cannot_be_committed_was_never_there(place, monkeypatch):
    store = place.open()
    put(store, "x", b"kept")
    before = state(store)
    store.group(lambda: True)
    put(store, "x", b"lost")
    put(store, "y", b"lost")
    with monkeypatch.context() as patched:
        patched.setattr(type(store._db), "commit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.flush()
    assert state(store) == before
    put(store, "y", b"next")
    store.flush()
    assert state(place.open(instance=1)) == state(store)
    assert store.head().size == 2


def test_instances_take_in_each_other_s_changes(place):
    stores = [place.open(instance=number) for number in range(3)]
    for number in range(30):
        store = stores[number % 3]
        put(store, f"s{number % 5}", b"%d" % number, now=number)
        if number % 4 == 3:
            delete(store, f"s{(number + 1) % 5}", now=number)
        if number % 7 == 0:
            assert state(stores[(number + 1) % 3]) == state(store)
    assert state(stores[0]) == state(stores[1]) == state(stores[2]) == state(place.open())
    assert len(stores[0].log()) == stores[0].head().size
    stores[1].check_head(stores[2].head())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE secrets SET name = 'moved' WHERE name = 'x'",
        "UPDATE secrets SET entry = entry + 1 WHERE name = 'x'",
        "UPDATE secrets SET box = (SELECT box FROM secrets WHERE name = 'x') WHERE name = 'y'",
        "DELETE FROM secrets WHERE name = 'x'",
        "INSERT INTO secrets SELECT policy, 'more', entry, box FROM secrets WHERE name = 'x'",
        "INSERT INTO secrets SELECT policy, name, entry, box FROM old",
        "DELETE FROM names",
    ],
)
def test_rows_changed_moved_removed_added_or_put_back_are_found(place, statement):
    store = place.open()
    put(store, "x", b"1")
    put(store, "y", b"1")
    put(store, "z", b"1")
    place.edit("CREATE TABLE old AS SELECT * FROM secrets WHERE name = 'z'") if place.server else _keep_old(place)
    delete(store, "z")
    place.edit(statement)
    with pytest.raises(IntegrityError, match="its rows are not those that its head stands for"):
        place.open(instance=1)


def _keep_old(place):
    with sqlite3.connect(place.directory / "cas0" / "cas.sqlite") as db:
        db.execute("CREATE TABLE old AS SELECT * FROM secrets WHERE name = 'z'")
    db.close()


def test_a_row_put_back_under_a_running_instance_is_found_when_it_is_read(place):
    store = place.open()
    put(store, "x", b"1")
    old = place.server.sql("SELECT entry, box FROM secrets", place.url)[0] if place.server else None
    put(store, "x", b"2")
    if old is None:
        place.edit("UPDATE secrets SET box = zeroblob(64)")
    else:
        place.edit(f"UPDATE secrets SET entry = {old[0]}, box = '\\x{old[1].hex()}'")  # noqa: S608
    with pytest.raises(IntegrityError, match=r"was changed|its rows are not those"):
        store.row("secrets", "a/b", "x")


def test_an_entry_that_somebody_put_after_the_last_stops_the_log(place):
    store = place.open()
    put(store, "x", b"1")
    place.edit("INSERT INTO log SELECT 2, time, event, policy, detail, previous, salt FROM log")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            put(store, "x", b"2")
    place.edit("DELETE FROM log WHERE number = 2")
    put(store, "x", b"3")
    assert state(place.open(instance=1)) == state(store)
    assert store.head().size == 2


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_a_name_that_a_database_cannot_hold_fails_its_request_alone(place, bad):
    store = place.open()
    store.group(lambda: True)
    put(store, "x", b"1")
    assert store.row("secrets", bad, bad) is None
    assert not delete(store, bad)
    for ask in (lambda: put(store, bad, b"2"), lambda: store.record("event", bad, {}, now=1)):
        with pytest.raises(UsageError, match="lone surrogates"):
            ask()
    store.record("event", "a/b", {"detail": bad}, now=1)
    store.flush()
    assert state(place.open(instance=1)) == state(store)
    assert store.head().size == 2


def test_hidden_removals_are_taken_in_all_the_same(place):
    """`gone` is a help, and nobody's word is taken for it."""
    store, other = place.open(), place.open(instance=1)
    put(store, "x", b"1")
    put(store, "y", b"1")
    assert other.row_keys("secrets", "a/b") == ["x", "y"]
    delete(store, "x")
    place.edit("DELETE FROM gone")
    assert other.row_keys("secrets", "a/b") == ["y"]
    put(store, "x", b"2")
    if place.server:
        place.edit("INSERT INTO gone VALUES (99, 'secrets', 'a/b', 'y'), (99, 'nothing', 'a', 'b')")
    assert state(other) == state(store)


def test_another_secret_opens_nothing(place):
    place.open()
    with pytest.raises(WrongKeyError, match="is not the one that"):
        Store(place.directory / "cas0", secret=bytes(32), database=place.url)


# What only a server can do to a CAS


@pytest.fixture
def shared(postgres, tmp_path):
    place = Place(tmp_path, postgres)
    yield place
    for store in place.opened:
        store.close()


def end_sessions(postgres):
    postgres.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'strongroom-cas'"
    )


def test_a_lost_connection_is_made_again(shared, postgres):
    store = shared.open()
    put(store, "x", b"1")
    end_sessions(postgres)
    assert store.row("secrets", "a/b", "x") == b"1"
    end_sessions(postgres)
    put(store, "x", b"2")
    with store.transaction():
        put(store, "y", b"3")
        end_sessions(postgres)
        with store.transaction():
            put(store, "z", b"4")
            end_sessions(postgres)
        end_sessions(postgres)
    assert state(shared.open(instance=1)) == state(store)
    assert store.row_keys("secrets", "a/b") == ["x", "y", "z"]
    assert store.head().size == 4


def test_a_commit_whose_answer_was_lost_is_recognised(shared, postgres, monkeypatch):
    store = shared.open()
    put(store, "x", b"1")
    run, lost = store._db._run, []

    def lose(statement, parameters=()):
        done = run(statement, parameters)
        if statement == "COMMIT" and not lost:
            lost.append(statement)
            end_sessions(postgres)
            run("SELECT 1")
        return done

    monkeypatch.setattr(store._db, "_run", lose)
    put(store, "x", b"2")
    assert lost
    assert store.head().size == 2
    assert state(shared.open(instance=1)) == state(store)


def test_a_commit_whose_answer_was_lost_is_recognised_when_others_wrote_after_it(shared, postgres, monkeypatch):
    store, other = shared.open(), shared.open(instance=1)
    run, lost = store._db._run, []

    def lose(statement, parameters=()):
        done = run(statement, parameters)
        if statement == "COMMIT" and not lost:
            lost.append(statement)
            end_sessions(postgres)
            put(other, "y", b"after")
            run("SELECT 1")
        return done

    put(store, "x", b"1")
    monkeypatch.setattr(store._db, "_run", lose)
    put(store, "x", b"2")
    assert lost
    assert state(store) == state(other)
    assert [entry.detail for entry in store.log()] == ['{"name":"x"}', '{"name":"x"}', '{"name":"y"}']


def test_a_transaction_that_another_instance_overtook_was_never_there(shared, postgres):
    store, other = shared.open(), shared.open(instance=1)
    put(store, "x", b"1")
    with pytest.raises(DatabaseError, match="another instance has written meanwhile"), store.transaction():
        put(store, "x", b"lost")
        end_sessions(postgres)
        put(other, "x", b"2")
        put(store, "y", b"lost")
    assert state(store) == state(other)
    assert store.row("secrets", "a/b", "x") == b"2"
    put(store, "y", b"3")
    assert state(store) == state(other)


def test_a_group_on_a_lost_connection_loses_all_of_it(shared, postgres):
    store, other = shared.open(), shared.open(instance=1)
    store.group(lambda: True)
    put(store, "x", b"lost")
    end_sessions(postgres)
    put(other, "x", b"1")
    put(store, "y", b"lost")
    with pytest.raises(DatabaseError):
        store.row("secrets", "a/b", "x")
    for _ in range(2):
        with pytest.raises(DatabaseError):
            put(store, "z", b"lost")
    with pytest.raises(DatabaseError, match="nothing was changed"):
        store.flush()
    assert state(store) == state(other)
    put(store, "y", b"2")
    store.flush()
    assert state(store) == state(other)


def test_an_instance_that_stops_in_the_middle_does_not_stop_the_others(shared, monkeypatch):
    monkeypatch.setattr("strongroom.cas.state.postgres._OPTIONS", "-c idle_in_transaction_session_timeout=500")
    stopped = shared.open()
    put(stopped, "x", b"1")
    with pytest.raises(DatabaseError, match="another instance has written meanwhile"), stopped.transaction():
        put(stopped, "x", b"lost")
        other = shared.open(instance=1)  # waits, until the server ends the other's session
        put(other, "x", b"2")
    assert state(stopped) == state(other)
    assert other.row("secrets", "a/b", "x") == b"2"


def test_a_lock_that_is_not_given_back_is_an_error(shared, monkeypatch):
    holder = shared.open()
    monkeypatch.setattr("strongroom.cas.state.postgres._OPTIONS", "-c lock_timeout=100")
    waiting = shared.open(instance=1)
    with holder.transaction():
        put(holder, "x", b"1")
        with pytest.raises(DatabaseError, match="holds the head's row for too long"):
            put(waiting, "x", b"lost")
        assert waiting.head().size == 0  # readers wait for nobody
    put(waiting, "y", b"2")
    assert state(waiting) == state(holder)


def test_a_server_that_is_away_is_an_error_until_it_is_back(tmp_path):
    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed (package postgresql)")
    with postgres_server() as server:
        place = Place(tmp_path, server)
        store = place.open()
        put(store, "x", b"1")
        server.stop()
        for ask in (store.head, lambda: put(store, "x", b"2")):
            with pytest.raises(DatabaseError, match=r"^postgresql://") as caught:
                ask()
            assert caught.value.exit_code == 45
        with pytest.raises(DatabaseError):
            place.open(instance=1)
        server.start()
        put(store, "x", b"3")
        assert state(place.open(instance=1)) == state(store)
        assert store.head().size == 2
        store.close()
        for opened in place.opened:
            opened.close()


def test_a_database_put_back_under_running_instances_is_found(shared, postgres):
    store, other = shared.open(), shared.open(instance=1)
    put(store, "x", b"1")
    tables = ("secrets", "names", "log", "nodes", "head")
    for table in tables:
        shared.edit(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")  # noqa: S608
    put(store, "x", b"2")
    put(store, "x", b"3")
    for table in tables:
        shared.edit(f"DELETE FROM {table}")  # noqa: S608
        shared.edit(f"INSERT INTO {table} SELECT * FROM old_{table}")  # noqa: S608
    for ask in (store.head, lambda: put(store, "x", b"4")):
        with pytest.raises(RollbackError, match="rolled back"):
            ask()
    assert other.head().size == 1  # it has seen no more, as its clients will tell it
    with pytest.raises(RollbackError, match="rolled back"):
        other.check_head(store._highest)


def test_tables_that_are_gone_are_not_made_anew(shared):
    shared.open().close()
    shared.opened.clear()
    for table in ("strongroom", "head"):
        shared.edit(f"DROP TABLE {table}")
        with pytest.raises(IntegrityError):
            shared.open()


def test_a_password_stands_in_no_command_line(tmp_path, monkeypatch):
    for url in ("postgresql://cas:hunter2@db/cas", "postgres://db/cas?user=cas&password=hunter2"):
        with pytest.raises(UsageError, match="holds a password") as caught:
            read_url(url)
        assert "hunter2" not in str(caught.value)
    file = tmp_path / "database"
    file.write_text("postgresql://cas:hunter2@db.invalid/cas\n")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="others may read"):
        read_url(str(file))
    file.chmod(0o600)
    assert read_url(str(file)) == "postgresql://cas:hunter2@db.invalid/cas"
    for text in ("", "mysql://db/cas", str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(UsageError, match="wanted postgresql://"):
            read_url(text)


# Versions


def test_a_database_of_version_3_gets_the_tables_that_it_lacks(tmp_path):
    place = Place(tmp_path)
    store = place.open()
    put(store, "x", b"1")
    before = state(store)
    store.close()
    with sqlite3.connect(tmp_path / "cas0" / "cas.sqlite") as db:
        for table in set(KEYS) - {"policies", "secrets", "anchors", "names"} | {"gone"}:
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 3")
    db.close()
    again = place.open()
    assert state(again) == before
    assert delete(again, "x")
    again.put_row("settings", "a", "b", b"c", event="setting", policy="", detail={}, now=1)
    assert place.open().row("settings", "a", "b") == b"c"
    for store in place.opened:
        store.close()
    place.opened.clear()
    with sqlite3.connect(tmp_path / "cas0" / "cas.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (5,)
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(IntegrityError, match="got version 2"):
        place.open()
