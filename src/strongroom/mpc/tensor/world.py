"""Where a program on secrets runs: one party of three, and what it revealed.

Each party runs the whole program, in a thread of its own process or, for tests and notebooks, of one process. The
world says which party this thread is.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import torch
from torch.overrides import TorchFunctionMode

import strongroom
from strongroom.errors import MpcError, UsageError
from strongroom.mpc.local import run_local
from strongroom.mpc.party import Party
from strongroom.mpc.peer import NAMES
from strongroom.mpc.ring import Settings

T = TypeVar("T")

_here = threading.local()
_LIBRARIES = tuple(f"{Path(module.__file__ or '').parent}{os.sep}" for module in (strongroom, torch))


@dataclass(frozen=True)
class Reveal:
    """One opening of a secret: of what shape and whose, to whom, and by which line of the program."""

    shape: tuple[int, ...]
    owners: frozenset[str]
    to: tuple[str, ...]
    file: str
    line: int


class _Guard(TorchFunctionMode):
    """Refuses the one assignment that a secret is not asked about: `plain.data = secret` leaves a null pointer."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "__set__" and hasattr(args[1], "owners") > hasattr(args[0], "owners"):
            raise UsageError("assignment: got a secret for a plain tensor, wanted plain values", hint="reveal it first")
        return function(*args, **(kwargs or {}))


class World:
    """A party's side of a program on secret tensors; a context, in which `share`, `own` and `reveal` work.

    Attributes:
        party: this one.
        reveals: every opening so far, at each party alike.
    """

    def __init__(self, party: Party) -> None:
        self.party = party
        self.reveals: list[Reveal] = []
        self._guard = _Guard()

    def __enter__(self) -> Self:
        if getattr(_here, "world", None) is not None:
            raise UsageError("world: this thread is in one already")
        _here.world = self
        self._guard.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._guard.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        _here.world = None

    def __repr__(self) -> str:
        return f"World({NAMES[self.party.rank]})"


def current() -> World:
    """The world that this thread is in. Raises UsageError if it is in none."""
    world: World | None = getattr(_here, "world", None)
    if world is None:
        raise UsageError(
            "world: there is none here",
            hint="`with mpc.World(party):`, or in a notebook `with mpc.local_world() as world:`",
        )
    return world


def user_line() -> tuple[str, int]:
    """The line of the user's program that is running: the innermost one outside of this library and torch."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


class Local:
    """All three parties in this process, one thread each, from one `run` to the next. Made by `local_world`.

    One trust domain: whoever runs the process can read every secret.
    """

    def __init__(self, settings: Settings | None) -> None:
        self._settings = settings
        self._jobs: list[queue.SimpleQueue[Callable[[], Any] | None]] = [queue.SimpleQueue() for _ in NAMES]
        self._results: queue.SimpleQueue[tuple[int, Any] | BaseException | None] = queue.SimpleQueue()
        self._worlds: dict[int, World] = {}
        self._thread = threading.Thread(target=self._live, name="mpc local", daemon=True)
        self._ended = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended = True
        for jobs in self._jobs:
            jobs.put(None)
        self._thread.join()
        last = self._results.get()
        if error is None and isinstance(last, BaseException):
            raise last

    def run(self, program: Callable[[], T]) -> list[T]:
        """Run a program as each party and return what each returned: P0, P1, the dealer.

        Raises:
            BaseException: what the program raised; nothing runs in this world afterwards.
        """
        if self._ended or not self._thread.is_alive():
            raise MpcError("world: has ended", hint="nothing is tried again where something failed: begin a new one")
        for jobs in self._jobs:
            jobs.put(program)
        results: dict[int, T] = {}
        while len(results) < len(NAMES):
            outcome = self._results.get()
            if not isinstance(outcome, tuple):
                self._ended = True
                self._results.put(None)
                raise outcome or MpcError("world: has ended")
            results[outcome[0]] = outcome[1]
        return [results[rank] for rank in sorted(results)]

    @property
    def reveals(self) -> list[Reveal]:
        """Every opening so far."""
        return list(self._worlds[0].reveals) if self._worlds else []

    def _live(self) -> None:
        try:
            run_local(self._one, self._settings)
        except BaseException as error:
            self._results.put(error)
        else:
            self._results.put(None)

    def _one(self, party: Party) -> None:
        with World(party) as world:
            self._worlds[party.rank] = world
            try:
                while (job := self._jobs[party.rank].get()) is not None:
                    self._results.put((party.rank, job()))
            except BaseException:
                # The others may have come to the end of the program and wait for the next.
                for jobs in self._jobs:
                    jobs.put(None)
                raise


def local_world(settings: Settings | None = None) -> Local:
    """The three parties in this process, for notebooks and tests.

    ::

        with mpc.local_world() as world:
            at_p0, at_p1, at_dealer = world.run(program)
    """
    return Local(settings)


class Withheld:
    """What `reveal` returns to whoever is no recipient: a shape, and an error at any other use."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, to: tuple[str, ...]) -> None:
        self.shape, self.dtype, self._to = torch.Size(shape), dtype, to

    def __repr__(self) -> str:
        return f"Withheld({tuple(self.shape)}, revealed to {' and '.join(self._to)})"

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise UsageError(
            f"value: was revealed to {' and '.join(self._to)}, not to this party",
            hint="use it only there: `if isinstance(value, torch.Tensor)`; the program must not depend on it",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        found = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Withheld)]
        if found:
            found[0]._refuse()
        raise UsageError("value: was not revealed to this party")

    __eq__ = __ne__ = __hash__ = _refuse
    __reduce_ex__ = _refuse


_DUNDERS = (
    "bool int float complex index len iter getitem setitem contains array format call neg pos abs invert "
    "lt le gt ge add radd sub rsub mul rmul truediv rtruediv matmul rmatmul pow rpow mod floordiv and or xor"
)
for _name in _DUNDERS.split():
    setattr(Withheld, f"__{_name}__", Withheld._refuse)
