"""What keeps a model in parts served: one fleet of enclaves, and for a moment the next version's beside it.

- This process has the listening sockets and none of the pipeline's keys in its hands while it serves: what it can do to
  requests is delay them.
- One front door accepts at a time. When it ends, however it does, the next that is loaded has its turn; connections
  wait at the socket meanwhile.
- Told to stop, it has the socket refuse connections as soon as no front door accepts them: nobody waits there in vain.
- An update starts the next version's enclaves beside the present ones. Only when all of them are loaded does the
  present front door stop to accept; it answers what it has, while the next one accepts. An update that fails changes
  nothing.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from strongroom.cas.policy.version import Policy
from strongroom.cli.serve_fleet import Fleet, Slot
from strongroom.errors import StrongroomError, UsageError

_LOOK_SECONDS = 0.5  # between two looks whether it was told to stop


@dataclass(frozen=True)
class Version:
    """A fleet, and what to do at the CAS.

    Attributes:
        digest: of what it serves.
        settle: has the CAS accept this version and no other. abandon: has it accept the one before, and no other.
    """

    fleet: Fleet
    digest: str
    settle: Callable[[], None]
    abandon: Callable[[], None]


class Supervisor:
    """Serves one version, and takes the next.

    Args:
        say: is given a line about each thing that happens.
        listener: the socket that front doors accept on; None if there are none here.

    Attributes:
        up: set once the front door and every part have been up.
    """

    def __init__(self, *, say: Callable[[str], None], listener: socket.socket | None = None) -> None:
        self.up = threading.Event()
        self.say = say
        self._listener = listener
        self._over = threading.Event()
        self._changed = threading.Condition(threading.RLock())
        self._present: Version | None = None
        self._served_by: Slot | None = None
        self._updating = threading.Lock()

    @property
    def present(self) -> Version:
        assert self._present is not None  # noqa: S101  # `start` comes first
        return self._present

    @property
    def policy(self) -> Policy:
        """The front door's."""
        policy = self.present.fleet.roles[0].policy
        assert policy is not None  # noqa: S101  # whoever has a front door here applied it
        return policy

    @property
    def running(self) -> bool:
        return not self._over.is_set() and self.present.fleet.failure is None

    def start(self, version: Version) -> None:
        self._present = version
        version.fleet.start()

    def stop(self) -> None:
        """Drain: the front door accepts no more, and answers what it has; then the parts end. Does not wait."""
        self._over.set()  # in a signal's handler: locks may be held

    def wait(self) -> int:
        """Until it was told to stop, or failed; the exit status.

        Raises:
            StrongroomError: a part was revoked, or could not be started.
        """
        with self._changed:
            while not self._over.is_set() and self.present.fleet.failure is None:
                self._changed.wait(_LOOK_SECONDS)
            self._over.set()
        with self._updating:  # what is being updated sees that it is over, and ends its fleet
            failure = self.present.fleet.failure
            self.changed()
            self.present.fleet.end()
            self._refuse()
        if failure is not None:
            raise failure
        return 0

    def signal(self, name: str, number: int, *, which: int = 0) -> None:
        """Send a signal to an enclave of a role, ``front``, ``part-1`` and so on.

        Args:
            which: of several the one that works, or another.
        """
        self.present.fleet.signal(name, number, which=which)

    def update(self, prepare: Callable[[], Version | None]) -> None:
        """Replace what is served by another version, without a request lost. Returns when the old one has ended.

        Args:
            prepare: makes it, its fleet not started; None if it is the present one.

        Raises:
            UsageError: an update is under way.
            StrongroomError: the next version cannot be served; the present one goes on.
        """
        if not self._updating.acquire(blocking=False):
            raise UsageError("update: one is under way")
        try:
            self._update(prepare)
        finally:
            self._updating.release()

    def _update(self, prepare: Callable[[], Version | None]) -> None:
        following = prepare()
        if following is None:
            self.say("update: this is what is served already")
            return
        old, new = self.present, following.fleet
        new.start()
        with self._changed:
            while not (new.loaded or new.failure or self._over.is_set() or old.fleet.failure):
                self._changed.wait(_LOOK_SECONDS)
            ready = new.loaded and not new.failure and not self._over.is_set() and not old.fleet.failure
            drains = self._served_by
            if ready:
                self._present = following
        if not ready:
            new.end()
            following.abandon()
            if new.failure is not None:
                raise new.failure
            return
        old.fleet.retire()
        if drains is not None:
            drains.ask_to_end()  # says so, and the next one's turn comes
        self.changed()
        with self._changed:
            while not (self._over.is_set() or new.failure or any(slot.working for slot in new.fronts)):
                self._changed.wait(_LOOK_SECONDS)
        old.fleet.end()
        with suppress(StrongroomError):
            following.settle()
        self.say("update: done")

    def changed(self) -> None:
        """Something happened to an enclave: see whose turn it is, and who waits for what."""
        with self._changed:
            if self._present is not None:
                self._take_turns(self._present.fleet)
                fleet = self._present.fleet
                if self._over.is_set() and not any(slot.working and slot.alive for slot in fleet.fronts):
                    self._refuse()
                serves = not fleet.fronts or any(slot.working for slot in fleet.fronts)
                if (fleet.loaded and serves) or fleet.failure is not None:
                    self.up.set()
            self._changed.notify_all()

    def _refuse(self) -> None:
        if self._listener is not None:
            stop_listening(self._listener)

    def _take_turns(self, fleet: Fleet) -> None:
        if self._over.is_set():
            return
        serving = self._served_by
        if serving is not None and serving.has_turn:
            return
        self._served_by = next((slot for slot in fleet.fronts if slot.turn is not None and not slot.draining), None)
        if self._served_by is not None:
            self._served_by.give_turn()


def stop_listening(sock: socket.socket) -> None:
    """Have connections refused from now on, those that wait to be accepted too, whoever else has the socket."""
    with suppress(OSError):  # it does not listen any more
        sock.shutdown(socket.SHUT_RDWR)
