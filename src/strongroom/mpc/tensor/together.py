"""A world of all three parties in one process, which goes on from one run of a program to the next."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from strongroom.errors import MpcError, UsageError
from strongroom.mpc.party import Party
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import Policy, Reveal
from strongroom.mpc.ring import Settings
from strongroom.mpc.tensor.world import World
from strongroom.mpc.threads import run_local

if TYPE_CHECKING:
    from strongroom.mpc.costs.findings import Report

T = TypeVar("T")
Policies = Policy | Path | None | Sequence[Policy | Path | None]


class Local:
    """All three parties in this process, one thread each, from one `run` to the next. Made by `local_world`.

    One trust domain: whoever runs the process can read every secret.
    """

    def __init__(self, settings: Settings | None, policies: Policies, audit: Path | None, *, debug: bool) -> None:
        self._settings, self._audit, self._debug = settings, audit, debug
        self._report: Report | None = None
        self._policies = policies if isinstance(policies, Sequence) else (policies, policies)
        self._jobs: list[queue.SimpleQueue[tuple[int, Callable[[], Any]] | None]] = [queue.SimpleQueue() for _ in NAMES]
        self._results: queue.SimpleQueue[tuple[int, int, Any] | BaseException | None] = queue.SimpleQueue()
        self._number = 0  # of the run
        self._worlds: dict[int, World] = {}
        self._thread = threading.Thread(target=self._live, name="mpc local", daemon=True)
        self._ended = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(all three parties in this process: one trust domain)"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended = True
        for jobs in self._jobs:
            jobs.put(None)
        self._thread.join()
        while isinstance(last := self._results.get(), tuple):
            pass  # of a run that was interrupted
        if error is None and isinstance(last, BaseException):
            raise last

    def run(self, program: Callable[[], T]) -> list[T]:
        """Run a program as each party and return what each returned: P0, P1, the dealer.

        Raises:
            BaseException: what the program raised; nothing runs in this world afterwards.
        """
        if self._ended or not self._thread.is_alive():
            raise MpcError("world: has ended", hint="nothing is tried again where something failed: begin a new one")
        self._number += 1
        for jobs in self._jobs:
            jobs.put((self._number, program))
        results: dict[int, T] = {}
        while len(results) < len(NAMES):
            outcome = self._results.get()
            if not isinstance(outcome, tuple):
                self._ended = True
                self._results.put(None)
                raise outcome or MpcError("world: has ended")
            number, rank, result = outcome
            if number == self._number:  # not what a run came to that was interrupted
                results[rank] = result
        return [results[rank] for rank in sorted(results)]

    @property
    def reveals(self) -> list[Reveal]:
        """Every opening so far."""
        return list(self._worlds[0].reveals) if self._worlds else []

    @property
    def report(self) -> Report:
        """What `debug` found in all runs so far. Raises UsageError if this world does not debug."""
        if self._report is None:
            raise UsageError(
                "report: got none, wanted a world that debugs and has run something",
                hint="`with mpc.local_world(debug=True) as world:`",
            )
        return self._report

    def _live(self) -> None:
        try:
            run_local(self._one, self._settings)
        except BaseException as error:
            self._results.put(error)
        else:
            self._results.put(None)

    def _one(self, party: Party) -> None:
        name = NAMES[party.rank]
        policy = None if party.is_dealer else self._policies[party.rank]
        with World(party, policy=policy, audit=self._audit and self._audit / f"{name}.audit") as world:
            self._worlds[party.rank] = world
            with self._debugging():
                self._work(party)

    @contextlib.contextmanager
    def _debugging(self) -> Iterator[None]:
        if not self._debug:
            yield
            return
        from strongroom.mpc.costs.debug import debug

        with debug() as self._report:
            yield

    def _work(self, party: Party) -> None:
        try:
            while (job := self._jobs[party.rank].get()) is not None:
                number, program = job
                self._results.put((number, party.rank, program()))
        except BaseException:
            # The others may have come to the end of the program and wait for the next.
            for jobs in self._jobs:
                jobs.put(None)
            raise


def local_world(
    settings: Settings | None = None, *, policy: Policies = None, audit: Path | None = None, debug: bool = False
) -> Local:
    """The three parties in this process, for notebooks and tests.

    ::

        with mpc.local_world() as world:
            at_p0, at_p1, at_dealer = world.run(program)

    Args:
        policy: of both servers, or one of each.
        audit: a directory, for the logs `P0.audit` and `P1.audit`.
        debug: look at all values as `debug` does, for the world's `report`.
    """
    return Local(settings, policy, audit, debug=debug)
