"""The enclaves of one version of a model in parts: started, and started again when they end.

- What was loaded and ends, or is killed, is started again at once; what fails to start, or is killed while it starts,
  after a pause that doubles.
- What is revoked or refused ends all. So does an enclave that has failed to start `_TRIES` times in a row, unless
  another one in its role is loaded; and one that was killed `_KILLS` times while it started, if none in its role ever
  was loaded: it may want more memory than there is. Whoever kills later delays answers, and no more.
- With standbys, two enclaves of a part wait at one socket: the front door's next connection finds the other. Of two
  front doors one accepts at a time: the other asked for its turn, and waits for it.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.cas.policy.version import Policy
from strongroom.cli.run.events import describe_event
from strongroom.enclave.config import BootConfig
from strongroom.enclave.launch import Enclave
from strongroom.enclave.measure import Measurement
from strongroom.errors import CasError, ChannelError, EnclaveError, StrongroomError

FRONT = "front"
TURN = "turn"
"""By what name a front door dials what says that it is its turn."""
_TRIES, _KILLS = 5, 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0
_DOUBLED = 8  # times at most: it is the longest by then
_LONGEST_AFTER_KILLS = 2.0  # an enclave that is killed says nothing of whether it could start
_DRAIN_SECONDS = 70.0  # more than a request may take


@dataclass(frozen=True)
class Role:
    """The front door, or a part: what each enclave of it is launched with, and how many there are.

    Attributes:
        policy: None where it is another machine that applied it.
    """

    name: str
    config: BootConfig
    measured: Measurement
    policy: Policy | None
    vaults: Mapping[str, Path]
    listener: socket.socket
    dials: Mapping[str, Callable[[], socket.socket]]
    count: int

    @property
    def loaded(self) -> str:
        """The event by which an enclave says that it is loaded."""
        return "standby" if self.name == FRONT else "part"


Launch = Callable[[Role, Mapping[str, Callable[[], socket.socket]], Callable[[str, dict[str, Any]], None]], Enclave]
"""Launches an enclave of a role, which may dial these besides, and reports events."""


class Fleet:
    """All roles' enclaves.

    Args:
        roles: the front door first, if it is here.
        launch: launches one.
        say: is given a line about each thing that happens.
        on_change: called whenever an enclave comes, has its turn, drains, or ends, from any thread.

    Attributes:
        failure: what ended it all.
    """

    def __init__(
        self, roles: list[Role], launch: Launch, *, say: Callable[[str], None], on_change: Callable[[], None]
    ) -> None:
        self.say, self.launch, self.on_change = say, launch, on_change
        self.failure: StrongroomError | None = None
        self._lock = threading.Lock()
        self._over, self._retired = threading.Event(), threading.Event()
        self._names = {role.name for role in roles}
        self._loaded: set[str] = set()
        self.roles = roles
        self.slots = [Slot(self, role) for role in roles for _ in range(role.count)]

    @property
    def running(self) -> bool:
        return not self._over.is_set()

    @property
    def loaded(self) -> bool:
        """Whether an enclave of each role has been loaded."""
        with self._lock:
            return self._loaded == self._names

    @property
    def fronts(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.role.name == FRONT]

    def start(self) -> None:
        for slot in self.slots:
            slot.start()

    def wants(self, role: Role) -> bool:
        """Whether enclaves in that role are started again."""
        return self.running and not (role.name == FRONT and self._retired.is_set())

    def has(self, role: Role) -> bool:
        """Whether an enclave in that role is loaded."""
        return any(slot.role is role and slot.ready for slot in self.slots)

    def had(self, role: Role) -> bool:
        """Whether an enclave in that role has ever been loaded."""
        with self._lock:
            return role.name in self._loaded

    def retire(self) -> None:
        """Start no front door any more: another version's takes over."""
        self._retired.set()

    def end(self) -> None:
        """The front door answers what it has, then the parts end. Returns when all have."""
        self._over.set()
        for front in (True, False):
            slots = [slot for slot in self.slots if (slot.role.name == FRONT) is front]
            for slot in slots:
                slot.ask_to_end()
            for slot in slots:
                slot.end()

    def signal(self, name: str, number: int, *, which: int = 0) -> None:
        """Send a signal to an enclave of a role: of several to the one that works, or to another."""
        of_role = (slot for slot in self.slots if slot.role.name == name)
        slot = sorted(of_role, key=lambda slot: not (slot.working and slot.alive))[which]
        if slot.enclave is not None:
            slot.enclave.signal(number)

    def fail(self, error: StrongroomError) -> None:
        """Start nothing any more."""
        with self._lock:
            self.failure = self.failure or error
        self._over.set()
        self.on_change()

    def pause(self, seconds: float) -> None:
        self._over.wait(seconds)

    def heard(self, slot: Slot, event: str, detail: dict[str, Any]) -> None:
        if event == slot.role.loaded:
            slot.ready = True
            with self._lock:
                self._loaded.add(slot.role.name)
        slot.working = event in ("serving", "linked") or (slot.working and event not in ("draining", "unlinked"))
        slot.draining = slot.draining or event == "draining"
        if event in (slot.role.loaded, "serving", "draining"):
            self.on_change()
        line = describe_event(event, detail)
        if line:
            self.say(f"{slot.role.name}: {line}")


class Slot(threading.Thread):
    """One enclave after the other in one role, from one thread: an enclave ends with the thread that launched it.

    Attributes:
        ready: whether the present enclave has been loaded.
        working: whether it accepts, or has a link. draining: whether it does so no more.
        turn: the end of what tells the present enclave that it is its turn; None if it did not ask, or is gone.
    """

    def __init__(self, fleet: Fleet, role: Role) -> None:
        super().__init__(name=role.name, daemon=True)
        self.role = role
        self.enclave: Enclave | None = None
        self.ready = self.working = self.draining = self._asked = False
        self.turn: socket.socket | None = None
        self._given: socket.socket | None = None
        self._fleet = fleet

    def run(self) -> None:
        failures, kills, fleet = 0, 0, self._fleet
        dials = {TURN: self._ask_turn} if self.role.name == FRONT else {}
        while fleet.wants(self.role):
            self.ready = self.working = self.draining = self._asked = False
            self.enclave = None
            try:
                self.enclave = fleet.launch(self.role, dials, lambda event, detail: fleet.heard(self, event, detail))
                self.enclave.wait()
                error: StrongroomError = EnclaveError(f"{self.role.name}: ended by itself")
            except StrongroomError as failed:
                error = failed
            except OSError as failed:
                error = EnclaveError(f"{self.role.name}: {failed.strerror or failed}")
            if not fleet.wants(self.role):
                return
            killed = self.enclave is not None and self.enclave.killed
            kills = 0 if self.ready else kills + killed
            failures = 0 if self.ready else failures + (not killed)
            self.ready = False
            # What is refused, or no model, stays so.
            ends = failures >= _TRIES and not fleet.has(self.role)
            ends = ends or (kills >= _KILLS and not fleet.had(self.role))
            if ends or not isinstance(error, EnclaveError | ChannelError | CasError):
                fleet.fail(error)
                return
            fleet.say(f"{self.role.name}: {error.message}; it is started again")
            if not killed and failures:
                fleet.pause(min(_FIRST_PAUSE * 2 ** min(failures, _DOUBLED), _LONGEST_PAUSE))
            elif kills > 1:
                fleet.pause(min(_FIRST_PAUSE * 2 ** min(kills - 2, _DOUBLED), _LONGEST_AFTER_KILLS))

    @property
    def alive(self) -> bool:
        """Whether its enclave runs: what else is known of it lags behind its end."""
        enclave = self.enclave
        return enclave is not None and enclave.running

    @property
    def has_turn(self) -> bool:
        """Whether its present enclave was given the turn, and has it still: not the one before it here."""
        turn = self.turn
        return turn is not None and turn is self._given and not self.draining

    def give_turn(self) -> None:
        """Have the front door accept."""
        self._given = turn = self.turn
        if turn is not None:
            with suppress(OSError):
                turn.send(b"\1")

    def ask_to_end(self) -> None:
        """By a signal once, since a second one would cut off what is being answered."""
        turn = self.turn
        if self.role.name == FRONT and not self.working and not self.draining:
            if turn is not None:
                with suppress(OSError):
                    turn.shutdown(socket.SHUT_RDWR)
        elif self.ready and self.enclave is not None and not self._asked:
            self._asked = True
            self.enclave.signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end; what was not up yet has nothing to finish."""
        ends = time.monotonic() + _DRAIN_SECONDS
        while self.is_alive() and self.ready and time.monotonic() < ends:
            self.ask_to_end()
            self.join(0.2)
        while self.is_alive():
            if self.enclave is not None:
                self.enclave.signal(signal.SIGKILL)
            self.join(0.2)

    def _ask_turn(self) -> socket.socket:
        """A front door dials this once it has attested: one byte comes when it is its turn; its end shows at once."""
        ours, theirs = socket.socketpair()
        self.turn = ours
        threading.Thread(target=self._watch, args=(ours,), name="turn", daemon=True).start()
        return theirs

    def _watch(self, ours: socket.socket) -> None:
        self._fleet.on_change()
        with suppress(OSError):
            while ours.recv(1):
                pass
        if self.turn is ours:
            self.turn = None
        ours.close()
        self._fleet.on_change()
