"""Where a program on secrets runs: one party of three, what it may reveal and what it revealed.

Each party runs the whole program, in a thread of its own process or, for tests and notebooks, of one process. The
world says which party this thread is.

- A server asks its owners' policy and writes its audit log before a share leaves. Both see shapes, names and lines.
- The keys are ratcheted after every outermost call of a module of secrets: who takes a server later opens nothing that
  went by before. What is open stays usable.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.overrides import TorchFunctionMode

import strongroom
from strongroom.crypto import digest
from strongroom.errors import RefusedError, StrongroomError, UsageError
from strongroom.mpc.audit import AuditLog
from strongroom.mpc.party import Party
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import Enforcement, Policy, Reveal
from strongroom.mpc.ring import Words
from strongroom.mpc.shared import Shared

if TYPE_CHECKING:
    from strongroom.mpc.tensor.storage import Folded

_here = threading.local()
_enforced: WeakKeyDictionary[Party, Enforcement | None] = WeakKeyDictionary()


def _directory(library: str) -> Iterator[str]:
    """Where a library lies that a user's program may call, and that calls us; it is not imported."""
    spec = None if library in sys.modules and sys.modules[library].__spec__ is None else find_spec(library)
    if spec is not None and spec.origin:
        yield f"{Path(spec.origin).parent}{os.sep}"


_LIBRARIES = (
    *(f"{Path(module.__file__ or '').parent}{os.sep}" for module in (strongroom, torch)),
    *chain.from_iterable(map(_directory, ("numpy", "keras", "transformers"))),
    contextlib.__file__,
)


class Serving(Protocol):
    """A client's request, as a reveal to that client sees it."""

    client: str

    def answer(self, words: Words | None, shape: tuple[int, ...]) -> None:
        """Send this server's share of the answer; nothing at the dealer."""


class _Guard(TorchFunctionMode):
    """Refuses the one assignment that a secret is not asked about: `plain.data = secret` leaves a null pointer."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "__set__" and hasattr(args[1], "owners") > hasattr(args[0], "owners"):
            raise UsageError("assignment: got a secret for a plain tensor, wanted plain values", hint="reveal it first")
        if len(types) == 1 and hasattr(types[0], "owners") and not torch._C._len_torch_function_stack():
            return types[0].__torch_function__(function, types, args, kwargs)  # whom torch would ask next
        return function(*args, **(kwargs or {}))


class World:
    """A party's side of a program on secret tensors; a context, in which `share`, `own` and `reveal` work.

    Args:
        party: this one.
        policy: what the owners of secrets allow, or its file; without one this server reveals what the program says.
        audit: the file to log reveals in, or the log, opened before. The dealer, which has nothing to reveal, looks at
            neither.

    Attributes:
        reveals: every opening so far, at each party alike.
        serving: the client whose request is being worked on, if one is.
        folded: batch normalisations, by their variance.
        normalised_after: weights whose products a batch normalisation may follow.

    Raises:
        PolicyError: the policy makes no sense.
        LockedError, TamperedError: the log is in use, or its chain is broken.
    """

    def __init__(
        self, party: Party, *, policy: Policy | Path | None = None, audit: AuditLog | Path | None = None
    ) -> None:
        self.party = party
        self.reveals: list[Reveal] = []
        self.serving: Serving | None = None
        self.folded: WeakKeyDictionary[Shared, Folded] = WeakKeyDictionary()
        self.normalised_after: WeakSet[Shared] = WeakSet()
        self._policy = None if party.is_dealer else _enforcement(party, policy)
        self._log_or_path = None if party.is_dealer else audit
        self._audit: AuditLog | None = None
        self._start = os.getcwd()  # noqa: PTH109  # what a relative path of a program's file is of, wherever it goes
        self._programs: dict[str, str] = {}
        self._open: list[int] = []  # modules of secrets that are being called, by id
        self._guard = _Guard()
        if main := getattr(sys.modules.get("__main__"), "__file__", None):
            self._program(main)  # before it can be another

    def __enter__(self) -> Self:
        if getattr(_here, "world", None) is not None:
            raise UsageError("world: this thread is in one already")
        if self._log_or_path is not None:
            given = self._log_or_path
            self._audit = given if isinstance(given, AuditLog) else AuditLog.open(given)
            try:
                self._log("begin", **self._facts())
            except BaseException:
                self._audit.close()
                raise
        _here.world = self
        self._guard.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._guard.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        _here.world = None
        if self._audit is None:
            return
        reason = self.party.failed  # which the program may have caught
        if error is not None:
            reason = error.message if isinstance(error, StrongroomError) else type(error).__name__
        try:
            if not self.party.forked:
                self._log("end", reveals=len(self.reveals), error=reason)
        finally:
            self._audit.close()

    def __repr__(self) -> str:
        return f"World({NAMES[self.party.rank]})"

    def planned(self, shape: tuple[int, ...], owners: frozenset[str], to: tuple[str, ...]) -> Reveal:
        """What the running line of the program would reveal."""
        file, line = user_line()
        if not file.startswith("<"):
            file = os.path.join(self._start, file)  # noqa: PTH118  # nothing else of it is to change
        return Reveal(shape, owners, to, file, line, self._program(file))

    def permit(self, reveal: Reveal) -> None:
        """Ask the policy, then log. Raises RefusedError, or OSError where the log cannot be written."""
        facts = {"number": len(self.reveals) + 1, "transcript": self.party.transcript.digest.hex()}
        try:
            if self._policy is not None:
                self._policy.permit(reveal)
        except RefusedError as error:
            if self._audit is not None:
                self._audit.reveal("refused", reveal, {"epoch": self.party.epoch.hex(), **facts, "why": error.message})
            raise
        if self._audit is not None:
            self._audit.reveal("reveal", reveal, {"epoch": self.party.epoch.hex(), **facts})

    def runs(self, file: str, program: bytes) -> None:
        """The program whose digest the parties agreed on is of this file, by its absolute path."""
        self._programs[file] = program.hex()

    def enter_module(self, module: torch.nn.Module) -> None:
        """A module of secrets is called, perhaps by another."""
        self._open.append(id(module))

    def leave_module(self, module: torch.nn.Module) -> None:
        """The call is over, unless something raised before it was entered; the outermost one ratchets the keys."""
        if id(module) not in self._open:
            return
        while self._open.pop() != id(module):
            pass  # called by this one, and over without a word
        if not self._open and self.party.runs:
            self.party.ratchet()

    def _facts(self) -> dict[str, Any]:
        return {
            "party": NAMES[self.party.rank],
            "settings": self.party.settings.describe(),
            "identities": self.party.identities.hex(),
            "program": self.party.program.hex(),
            "policy": self._policy is not None,
        }

    def _log(self, kind: str, **fields: Any) -> None:
        assert self._audit is not None  # noqa: S101  # the caller looked
        self._audit.add(kind, {"epoch": self.party.epoch.hex(), **fields})

    def _program(self, file: str) -> str:
        """The SHA-256 of a program's file as it was when it first revealed something, or of a notebook's cell."""
        if file not in self._programs:
            try:
                text = Path(file).read_bytes()
            except OSError:
                text = "".join(linecache.getlines(file)).encode()
            self._programs[file] = digest(text).hex() if text else ""
        return self._programs[file]


def _enforcement(party: Party, policy: Policy | Path | None) -> Enforcement | None:
    """A server's policy with what was spent of it, which goes on from one world of its epoch to the next."""
    loaded = Policy.load(policy) if isinstance(policy, Path) else policy
    if party not in _enforced:
        _enforced[party] = None if loaded is None else Enforcement(loaded)
    found = _enforced[party]
    if loaded != (None if found is None else found.policy):
        raise UsageError("policy: got another one than before", hint="a policy holds for a whole epoch: connect anew")
    return found


def current() -> World:
    """The world that this thread is in. Raises UsageError if it is in none."""
    world: World | None = getattr(_here, "world", None)
    if world is None:
        raise UsageError(
            "world: there is none here",
            hint="run the program with `strongroom mpc run`; a notebook has `with mpc.local() as world:`",
        )
    return world


def user_line() -> tuple[str, int]:
    """The line of the user's program that is running: the innermost one outside of libraries."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    asked: tuple[str, int] | None = getattr(_here, "asked", None)
    if asked is not None and frame.f_code.co_filename == threading.__file__:
        return asked  # a thread of ours, without a line of the user's
    return frame.f_code.co_filename, frame.f_lineno


P = ParamSpec("P")
T = TypeVar("T")
Leader = Callable[..., Any]


def led(function: Callable[P, T]) -> Callable[P, T]:
    """Where a thread is no party but leads three, have its leader call the function as each."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        leader: Leader | None = getattr(_here, "leader", None)
        return function(*args, **kwargs) if leader is None else leader(function, *args, **kwargs)

    return called


def lead(leader: Leader | None) -> None:
    """Have this thread led so, or no more. Raises UsageError if it is in a world, or led, already."""
    if leader is not None and (getattr(_here, "world", None) or getattr(_here, "leader", None)) is not None:
        raise UsageError("world: this thread is in one already")
    _here.leader = leader


@contextlib.contextmanager
def called_from(place: tuple[str, int]) -> Iterator[None]:
    """Take a line of the user's program for the running one where a thread of ours works for it."""
    _here.asked = place
    try:
        yield
    finally:
        _here.asked = None
