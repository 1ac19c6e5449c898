"""What runs beside a hooked program: commits, and leads one that begins again to the place of the last commit.

The loops tell it where the program is (`hook_loops`); the four steps of catching up stand in `hook`.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _DatasetKind, _SingleProcessDataLoaderIter

from strongroom.errors import StrongroomError, UsageError
from strongroom.mirror.commit import MirrorWarning
from strongroom.mirror.hook_items import draws_in_the_beginning, fingerprint, passes_on
from strongroom.mirror.hook_loops import Loop, Program
from strongroom.mirror.hook_parts import Parts, generator_state, set_generator_state
from strongroom.mirror.hook_proof import UNPROVED, Proof
from strongroom.mirror.hook_variables import Variables
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.pace import BUDGET, Pace
from strongroom.mirror.restored import Restored
from strongroom.mirror.torch import CONVERT, pack, random_state, set_random_state

Told = Callable[[str, dict[str, Any]], None]
_SAME: Final = (
    "the script must come to the same place when it begins again; has it, or what it was called with, changed?"
)
_NAMED: Final = 20  # variables in a report


class CannotResume(BaseException):
    """The program cannot go on from the commit that there is."""

    def __init__(self, error: StrongroomError) -> None:
        super().__init__(error.message)
        self.error = error


class Hook:
    """Commits what a program trains, and catches up with the newest commit if there is one.

    Args:
        mirror: that is open.
        program: whose loops and variables count.
        every, budget: as `Training` has them.
        told: hears ``begins`` or ``resumes`` {step}, ``resumed`` {step}, ``left-out`` {why}. Where it is to be proved,
            both have {since}, the step that is gone on from, and ``resumed`` has {apart}, plain variables that differ.

    Attributes:
        step: passes of the training's loops in which an optimizer stepped, up to the last commit or the one restored.
        commits: made by this process.
    """

    def __init__(
        self,
        mirror: Mirror,
        program: Program,
        *,
        every: int | Literal["auto"] = "auto",
        budget: float = BUDGET,
        told: Told = lambda what, detail: None,
    ) -> None:
        self._mirror = mirror
        self._told = told
        self._process = os.getpid()
        self._pace = Pace(every, budget=budget)
        self._parts = Parts()
        self._variables = Variables(program, self._parts)
        self._noted_at: set[str] = set()  # sites at whose first loop the variables were noted
        self._opaque: set[str] = set()  # what was said not to be captured
        self._stack: list[Loop] = []
        self._within: dict[str, int] = {}  # loops of each site that no other is around
        self._steps = 0  # of optimizers
        self._committed = 0  # of these
        self._passes = 0
        self._stepping: set[str] = set()  # sites of loops in whose body an optimizer has stepped
        self._around: set[str] = set()  # sites of those that have such a loop inside
        self._quiet: set[str] = set()  # sites of those that came to an end without
        self._drawing: weakref.WeakSet[Loop] = weakref.WeakSet()  # loops whose items draw as they are made
        self._winding = False
        self._why_not: str | None = None
        self.step = 0
        self.commits = 0
        self._restored: Restored | None = mirror.restore()
        self._proof: Proof | None = None  # of the newest commit, which the program has not come to again
        self._path: list[dict[str, Any]] = []
        self._matched = 0
        if self._restored is None:
            self._start = random_state()
            told("begins", {})
            return
        if "place" not in self._restored:
            raise UsageError(
                f"mirror: step {self._restored.step} was committed by a script that sees to its mirror itself",
                hint="run it without, or take another mirror",
            )
        self.step = self._restored.step
        self._go_back()
        place = self._restored.part("place", CONVERT)
        self._path, self._stepping = pack(place["loops"]), set(place["stepping"])
        self._around = {one["site"] for one in self._path[:-1]}
        self._start = pack(self._restored.part("start", CONVERT))
        self._passes = self._restored.step
        self._resumes: dict[str, Any] = {"step": self.step}
        if self._proof is not None:
            self._resumes["since"] = self._proof.since
        told("resumes", self._resumes)

    def _go_back(self) -> None:
        """Go on from the commit before the newest, if there is one, to prove that the newest can be gone on from."""
        newest, steps = self._restored, self._mirror.steps
        if newest is None or len(steps) < 2 or sys._xoptions.get("mirror") == UNPROVED:
            return
        older = self._mirror.look(steps[-2])
        if "place" not in older:
            older.close()
            return
        self._proof, self._restored = Proof(newest, older.step), older

    @property
    def catching_up(self) -> bool:
        """Whether the program has not yet come to the place of the commit that it goes on from."""
        return self._restored is not None

    def install(self) -> None:
        """Hook PyTorch, once in a process, and put the generators to where they were when the program first began."""
        set_random_state(self._start)
        self._parts.watch()
        register_optimizer_step_post_hook(self._stepped)  # type: ignore[no-untyped-call,unused-ignore]
        load: Callable[[Any], Any] = _SingleProcessDataLoaderIter._next_data

        def next_data(loading: Any) -> Any:
            if self._winding and loading._dataset_kind == _DatasetKind.Map:
                loading._next_index()
                return None
            return load(loading)

        _SingleProcessDataLoaderIter._next_data = next_data  # type: ignore[method-assign]
        iterate = DataLoader.__iter__

        def begin(loader: Any) -> Any:
            # Workers that stay go on drawing from where the epoch before left them, and nobody can put them there.
            vars(loader)["persistent_workers"] = False
            return iterate(loader)

        DataLoader.__iter__ = begin  # type: ignore[method-assign]

    def _stepped(self, *_: Any) -> None:
        if os.getpid() == self._process:
            self._steps += 1

    # Loops, as `hook_loops.Watcher` has it.

    def starts(self, loop: Loop) -> None:
        within = self._stack[-1].within if self._stack else self._within
        loop.ordinal = within.get(loop.site, 0)
        within[loop.site] = loop.ordinal + 1
        first = loop.site not in self._noted_at and not any(one.began for one in self._stack)
        if first and not self._steps:  # once for each place: functions with a loop may be called any number of times
            self._noted_at.add(loop.site)
            self._variables.begin()
        self._stack.append(loop)
        loop.steps = self._steps
        loop.quiet = loop.site in self._quiet
        if loop.quiet:
            return
        if self.catching_up:
            if self._is_on_path(loop):
                self._matched += 1
                self._draw_from(self._path[self._matched - 1]["began"])
            else:
                loop.limited = loop.site in self._stepping
        loop.began = self._drawn()

    def _is_on_path(self, loop: Loop) -> bool:
        if len(self._stack) != self._matched + 1 or self._matched == len(self._path):
            return False
        wanted = self._path[self._matched]
        return (loop.site, loop.ordinal) == (wanted["site"], wanted["ordinal"])

    def _leads_on(self, loop: Loop) -> bool:
        """Whether it is the last that was found on the way to the place of the commit."""
        return self.catching_up and 0 < self._matched == len(self._stack) and self._stack[-1] is loop

    def begun(self, loop: Loop) -> None:
        loop.guarded = loop.inner is not None and not draws_in_the_beginning(loop.inner, loop.items)
        if self._leads_on(loop) and self._matched < len(self._path):
            self._wind(loop, self._path[self._matched - 1]["given"] - 1)

    def _wind(self, loop: Loop, count: int) -> None:
        """Let it give so many items to nobody."""
        if loop.inner is None:  # the turns of a `while`, which go by variables
            loop.given += count
            return
        self._winding = passes_on(loop.inner, loop.items)
        try:
            for _ in range(count):
                next(loop.inner)
                loop.given += 1
        except StopIteration:
            self._give_up(f"{loop.site}: has {loop.given} items, and the mirror holds more")
        finally:
            self._winding = False

    def asked(self, loop: Loop) -> None:
        if self._steps > loop.steps:
            self._stepping.add(loop.site)
        if self.catching_up:
            self._catch_up(loop)
        elif self._steps > max(loop.steps, self._committed):
            self._commit(loop)
        if not loop.given or loop.site in self._around:
            loop.passing = self._drawn()
        else:
            loop.passing = None

    def _catch_up(self, loop: Loop) -> None:
        on_path = loop in self._stack[: self._matched]
        if not on_path:
            return
        innermost = self._matched == len(self._path) and self._leads_on(loop)
        number = self._stack.index(loop)
        first = loop.given == (0 if number == len(self._path) - 1 else self._path[number]["given"] - 1)
        if not first:
            if not innermost:
                self._give_up(f"{loop.site}: came to its next pass before the place of the commit")
            self._put_back(loop)
        elif not innermost:
            self._draw_from(self._path[number]["passing"])

    def guard(self, loop: Loop, inner: Iterator[Any]) -> Any:
        """The next item, of items that may draw as they are made.

        Wound on, they would draw from generators that the bodies of the passes before have not drawn from.
        """
        before = fingerprint()
        try:
            return next(inner)
        finally:
            if not self.catching_up and fingerprint() != before:
                self._drawing.add(loop)

    def passes(self, loop: Loop) -> None:
        loop.steps = self._steps
        loop.within = {}

    def ended(self, loop: Loop) -> None:
        if loop not in self._stack:
            return
        if self._steps > loop.steps:
            self._stepping.add(loop.site)
        if loop.site in self._stepping:
            self._quiet.discard(loop.site)
        elif not self.catching_up:
            self._quiet.add(loop.site)
        del self._stack[self._stack.index(loop) :]
        if self.catching_up and len(self._stack) < self._matched and sys.exc_info()[0] is None:
            self._give_up(f"{loop.site}: ended before the place of the commit")

    # Random generators.

    def _drawn(self) -> dict[str, Any]:
        named = dict([*self._parts.generators(), *self._variables.generators()])
        return {"global": random_state(), "own": {name: generator_state(one) for name, one in named.items()}}

    def _draw_from(self, drawn: Mapping[str, Any]) -> None:
        for name, one in [*self._parts.generators(), *self._variables.generators()]:
            if name in drawn["own"]:
                set_generator_state(one, drawn["own"][name])
        set_random_state(drawn["global"])

    # Committing.

    def _commit(self, loop: Loop) -> None:
        around, self._committed = self._stack[:-1], self._steps
        if self._stack[-1] is not loop:  # a loop inside was left by an exception that is still known
            around = self._stack[: self._stack.index(loop)]
        self._passes += 1
        self._around |= {one.site for one in around}
        if self._proof is not None:
            if self._passes == self._proof.step:
                self._prove(self._proof, [*around, loop])
            return  # what there is of the mirror stays until it is proved
        if not self._pace.due():
            return
        if any(one.passing is None for one in around) or loop.began is None:
            return  # the first pass in which a loop turned out to hold the training: from the next one on
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._leave_out("it trains in several processes")
            return
        if drawing := [one for one in (*around, loop) if one in self._drawing]:
            self._leave_out(f"{drawing[0].site}: its items draw from the global random generators as they are made")
            return
        try:
            self._mirror.commit(self._passes, self._state([*around, loop]))
        except UsageError as error:
            self._leave_out(error.message)
            return
        self._tell_opaque()
        self._pace.committed()
        self.step = self._passes
        self.commits += 1

    def _state(self, loops: list[Loop]) -> dict[str, Any]:
        state = self._parts.take()
        state["program"] = self._variables.take()
        state["random"] = self._drawn()
        state["start"] = self._start
        state["place"] = {
            "loops": [
                {
                    "site": one.site,
                    "ordinal": one.ordinal,
                    "given": one.given,
                    "began": one.began,
                    "passing": None if one is loops[-1] else one.passing,
                }
                for one in loops
            ],
            "stepping": sorted(self._stepping),
        }
        return state

    def _prove(self, proof: Proof, loops: list[Loop]) -> None:
        try:
            state = self._state(loops)
            self._tell_opaque()
            apart = proof.check(state)
        except StrongroomError as error:
            raise CannotResume(error) from None
        self._proof = None
        self._told("resumed", {**self._resumes, "apart": apart[:_NAMED]})

    def _tell_opaque(self) -> None:
        opaque = self._variables.opaque
        new = [f"{name} ({kind})" for name, kind in opaque.items() if re.sub(r"\[.*", "", name) not in self._opaque]
        if new:
            self._opaque |= {re.sub(r"\[.*", "", name) for name in opaque}
            more = f" and {len(new) - 10} more" if len(new) > 10 else ""
            self._told("not-captured", {"names": ", ".join(new[:10]) + more})

    def _leave_out(self, why: str) -> None:
        if why != self._why_not:
            self._why_not = why
            self._told("left-out", {"why": why})
            warnings.warn(f"mirror: nothing is committed: {why}", MirrorWarning, stacklevel=2)

    # Catching up.

    def _put_back(self, loop: Loop) -> None:
        restored, saved = self._restored, self._path[-1]
        assert restored is not None  # noqa: S101  # it is catching up
        self._wind(loop, saved["given"] - 1)
        try:
            self._parts.put_back(
                restored.part("parts", CONVERT), restored.part("gradients", CONVERT), restored.part("flags", CONVERT)
            )
            lost = self._variables.put_back(restored.part("program", CONVERT))
        except UsageError as error:
            self._give_up(error.message)
        if lost:
            warnings.warn(f"mirror: not put back: {', '.join(lost[:10])}", MirrorWarning, stacklevel=2)
        self._draw_from(restored.part("random", CONVERT))
        for one, was in zip(self._stack, self._path, strict=False):
            one.began = was["began"]
        self._restored = None
        self._committed = loop.steps = self._steps
        restored.close()
        if self._proof is None:
            self._told("resumed", self._resumes)

    def _give_up(self, why: str) -> NoReturn:
        # Not an Exception: a script that goes on after one must not go on from here.
        raise CannotResume(UsageError(f"mirror: step {self.step} cannot be gone on from: {why}", hint=_SAME))

    def finish(self) -> None:
        """The program has ended by itself.

        Raises:
            UsageError: before it came to the place of the commit that it was to go on from.
        """
        if self.catching_up or self._proof is not None:
            raise UsageError(
                f"mirror: step {self.step} cannot be gone on from: the script ended before the place of the commit",
                hint=_SAME,
            )
        if not self.commits and self._steps and not self._passes:
            self._leave_out("the optimizer steps in no loop of the script's own files")
