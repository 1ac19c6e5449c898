"""Who is started again, whose turn it is, and updates: of enclaves that are played here."""

from __future__ import annotations

import signal
import socket
import threading

import pytest

from strongroom.channel import bind
from strongroom.cli.serve_fleet import FRONT, Fleet, Role
from strongroom.cli.serve_supervisor import Supervisor, Version
from strongroom.errors import EnclaveError, IntegrityError, UsageError


class Played:
    """An enclave: loaded at once, unless it fails; a front door serves when it has its turn."""

    def __init__(self, world, role, dials, on_event):
        self.world, self.role, self.tell, self.killed = world, role, on_event, False
        self.over, self.error = threading.Event(), world.fails.get(role.name)
        self.up = threading.Event()  # once its launch has returned: a real one serves later than that
        self.turn = None
        if self.error is not None:
            self.over.set()
            return
        if world.kills:
            world.kills -= 1
            self.killed = True
            self.over.set()
            return
        world.launched.append(self)
        if role.name == FRONT:
            self.turn = dials["turn"]()
            threading.Thread(target=self.await_turn, daemon=True).start()
        on_event("standby" if role.name == FRONT else "part", {})

    def await_turn(self):
        self.up.wait()
        try:
            told = self.turn.recv(1)
        except OSError:  # it was killed first
            told = b""
        if told:
            self.tell("serving", {})
            with self.world.change:
                self.world.served.append(self)
                self.world.change.notify_all()
        else:
            self.over.set()

    def wait(self):
        self.up.set()
        self.over.wait()
        self.world.drained.wait()
        if self.turn is not None:
            self.turn.close()
        if self.error is not None:
            raise self.error
        if self.killed:
            raise EnclaveError("killed")
        return 0

    def signal(self, number):
        if number == signal.SIGTERM and self.turn is not None:
            self.tell("draining", {})
        self.killed = number == signal.SIGKILL
        if self.killed and self.turn is not None:
            self.turn.shutdown(socket.SHUT_RDWR)
        self.over.set()

    running = property(lambda self: not self.killed and not self.over.is_set())


class Machine:
    """What launches them.

    Attributes:
        fails: with what the starts of a role fail. kills: how many of the next are killed before they are loaded.
        launched, served: enclaves, and front doors that had their turn.
        drained: until it is set, no enclave has answered what it had.
    """

    def __init__(self, listener=None):
        self.fails, self.kills, self.launched, self.served, self.settled = {}, 0, [], [], []
        self.drained = threading.Event()
        self.drained.set()
        self.change = threading.Condition()
        self.said: list[str] = []
        self.supervisor = Supervisor(say=self.said.append, listener=listener)

    def version(self, digest, *, fronts=2):
        roles = [Role(name, None, None, None, {}, None, {}, count) for name, count in ((FRONT, fronts), ("part-1", 2))]
        launch = lambda role, dials, on_event: Played(self, role, dials, on_event)  # noqa: E731
        fleet = Fleet(roles, launch, say=self.said.append, on_change=self.supervisor.changed)
        settle, abandon = (lambda: self.settled.append(digest)), (lambda: self.settled.append(f"not {digest}"))
        return Version(fleet, digest, settle=settle, abandon=abandon)

    def until_served(self, times):
        with self.change:
            assert self.change.wait_for(lambda: len(self.served) >= times, 60)

    def run(self):
        self.supervisor.start(self.version("first"))
        self.ended: list[BaseException] = []

        def wait():
            try:
                self.supervisor.wait()
            except BaseException as error:
                self.ended.append(error)

        self.waiter = threading.Thread(target=wait)
        self.waiter.start()
        self.supervisor.up.wait()

    def end(self):
        self.supervisor.stop()
        self.waiter.join()


@pytest.fixture
def machine():
    made = Machine()
    made.run()
    yield made
    made.end()


def test_one_front_door_accepts_at_a_time_and_the_standby_is_next(machine):
    for times in (1, 2, 3):
        machine.until_served(times)
        assert len({id(each) for each in machine.served}) == times
        machine.supervisor.signal(FRONT, signal.SIGKILL)
    machine.until_served(4)
    alive = [each for each in machine.served if not each.over.is_set()]
    assert alive == [machine.served[-1]] and machine.ended == []


def test_an_update_gives_the_turn_to_the_next_version(machine):
    machine.until_served(1)
    following = machine.version("second")
    machine.supervisor.update(lambda: following)
    assert machine.supervisor.present is following and machine.settled == ["second"]
    old, new = machine.served
    assert old.over.is_set() and not old.killed and not new.over.is_set()
    assert {each.over.is_set() for each in machine.launched[:4]} == {True}  # the standby and the parts of before too
    machine.supervisor.update(lambda: None)
    assert "already" in machine.said[-1]


def test_an_update_that_fails_changes_nothing(machine):
    machine.until_served(1)
    machine.fails["part-1"] = IntegrityError("part 1: got model 00, wanted 11")
    following = machine.version("second")
    with pytest.raises(IntegrityError):
        machine.supervisor.update(lambda: following)
    assert machine.settled == ["not second"] and machine.supervisor.present is not following
    [served] = machine.served
    assert not served.over.is_set() and machine.ended == []


def test_one_update_at_a_time(machine):
    inside, go = threading.Event(), threading.Event()

    def slowly():
        inside.set()
        go.wait()

    first = threading.Thread(target=machine.supervisor.update, args=(slowly,))
    first.start()
    inside.wait()
    with pytest.raises(UsageError, match="under way"):
        machine.supervisor.update(lambda: None)
    go.set()
    first.join()


def test_an_enclave_that_is_refused_ends_all():
    machine = Machine()
    machine.fails["part-1"] = IntegrityError("part 1: got model 00, wanted 11")
    machine.run()
    machine.waiter.join()
    assert [type(error) for error in machine.ended] == [IntegrityError]


def test_one_that_fails_to_start_is_given_up_unless_another_in_its_role_is_loaded(machine, monkeypatch):
    """A standby that is loaded keeps the role up, however often the other one fails."""
    monkeypatch.setattr("strongroom.cli.serve_fleet._LONGEST_PAUSE", 0.0)
    machine.until_served(1)
    machine.fails["part-1"] = EnclaveError("no memory")
    first, second = (each for each in machine.launched if each.role.name == "part-1")
    first.signal(signal.SIGKILL)
    while len([each for each in machine.said if "no memory" in each]) < 10:
        assert machine.ended == []
    second.signal(signal.SIGKILL)
    machine.waiter.join()
    assert [str(error) for error in machine.ended] == ["no memory"]


def test_one_that_is_killed_while_it_starts_is_started_again_for_as_long_as_it_takes(machine, monkeypatch):
    """Whoever kills front doors faster than they boot ends no service: it goes on once they stop."""
    monkeypatch.setattr("strongroom.cli.serve_fleet._LONGEST_AFTER_KILLS", 0.0)
    monkeypatch.setattr("strongroom.cli.serve_fleet._KILLS", 2)
    machine.until_served(1)
    machine.kills = 30
    for each in [each for each in machine.launched if each.role.name == FRONT]:
        each.signal(signal.SIGKILL)
    machine.until_served(2)
    assert machine.kills == 0 and machine.ended == []


def test_what_is_killed_whenever_it_starts_is_given_up_if_it_never_was_loaded(monkeypatch):
    """As an enclave that wants more memory than there is."""
    monkeypatch.setattr("strongroom.cli.serve_fleet._LONGEST_AFTER_KILLS", 0.0)
    machine = Machine()
    machine.kills = 1000
    machine.run()
    machine.waiter.join()
    assert [str(error) for error in machine.ended] == ["killed"] and machine.launched == []


def test_nobody_waits_at_the_socket_of_what_was_told_to_stop():
    """While the front door answers what it has, others are refused at once, and those that it did not accept too."""
    with bind("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        machine = Machine(listener)
        machine.run()
        machine.until_served(1)
        machine.drained.clear()
        with socket.create_connection(address, timeout=60) as waits:
            machine.supervisor.stop()
            with pytest.raises(ConnectionResetError):
                waits.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        assert machine.waiter.is_alive() and machine.ended == []
        machine.drained.set()
        machine.end()


def test_a_socket_goes_on_listening_while_front_doors_change(machine):
    with bind("127.0.0.1", 0) as listener:
        ours = Machine(listener)
        ours.run()
        ours.until_served(1)
        ours.supervisor.update(lambda: ours.version("second"))
        ours.supervisor.signal(FRONT, signal.SIGKILL)
        ours.until_served(3)
        socket.create_connection(listener.getsockname()).close()
        ours.end()
