"""The variables of a program: in its modules, in the functions that are being called, in what it made of PyTorch.

Taken are numbers, text, bytes, arrays, tensors, random generators, members of enumerations, and lists, tuples, dicts,
sets and deques of them; also inside objects and classes of the program's own, modules, data sets and samplers
(`hook_values`). What is of another kind stays as it is, what the program makes of it when it begins again: it is named.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Final

import numpy as np
import torch

from strongroom.errors import UsageError
from strongroom.mirror.hook_loops import PREFIX, Program
from strongroom.mirror.hook_memory import Base
from strongroom.mirror.hook_names import described
from strongroom.mirror.hook_parts import Parts
from strongroom.mirror.hook_putting import MISSING, ChangedError, LostError, Putter
from strongroom.mirror.hook_values import Taker

_OF_LOADER: Final = ("dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn")


class Variables:
    """The variables of a program.

    Args:
        program: whose modules and functions they are of.
        parts: what it made of PyTorch, whose parameters and buffers are seen to there.

    Attributes:
        opaque: what the last `take` could not keep: names, each with its class.
    """

    def __init__(self, program: Program, parts: Parts) -> None:
        self._program = program
        self._parts = parts
        self._part_numbers: set[int] = set()
        self._known: dict[int, tuple[Callable[[], Any], Any]] = {}
        self._order: list[Callable[[], Any]] = []
        self.opaque: dict[str, str] = {}

    # Where they are.

    def frames(self) -> list[FrameType]:
        """The program's functions that are being called, the outermost first; a module's own code is not among them."""
        found = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name != "<module>" and self._program.holds(frame.f_code.co_filename):
                found.append(frame)
            frame = frame.f_back
        return found[::-1]

    def _places(self) -> Iterator[tuple[str, FrameType | None, Mapping[str, Any]]]:
        for module in self._program.modules():
            yield f"module {module.__name__}", None, vars(module)
        for number, frame in enumerate(self.frames()):
            yield f"function {number} {frame.f_code.co_qualname}", frame, frame.f_locals

    def generators(self) -> Iterator[tuple[str, Any]]:
        """(name, generator) of each random generator that is a variable."""
        kinds = (torch.Generator, np.random.Generator, np.random.RandomState)
        for place, _, names in self._places():
            for name, value in list(names.items()):
                if isinstance(value, kinds) or type(value).__name__ == "Random":
                    yield f"{place} {name}", value

    # Taking down.

    def begin(self) -> None:
        """Note what is large and there before the training: what stays the same need not be kept."""
        self._known, self._order = {}, []
        self._part_numbers = {id(tensor) for _, _, tensor in self._parts.tensors()}
        self._walk(Taker(self, note=True))

    def take(self) -> dict[str, Any]:
        """Every variable that can be taken, by place and name.

        Raises:
            UsageError: one is an iterator that the program has gone on with, whose place cannot be put back; or some
                share memory in a way that cannot be kept.
        """
        self._part_numbers = {id(tensor) for _, _, tensor in self._parts.tensors()}
        taker = Taker(self)
        made = self._walk(taker)
        made["memory"] = taker.memory()
        self.opaque = taker.opaque
        return made

    def _walk(self, taker: Taker) -> dict[str, Any]:
        modules = self._parts.alive("module")
        for module in modules:
            taker.meet(module)
        made: dict[str, Any] = {
            "modules": [[described(type(one)), taker.within(one, type(one).__name__)] for one in modules],
            "loaders": [
                [taker.take(getattr(loader, name, None), f"loader.{name}") for name in _OF_LOADER]
                for loader in self._parts.alive("loader")
            ],
        }
        for place, _, names in self._places():
            found: dict[str, Any] = {}
            for name, value in _own(names):
                taken = taker.take(value, f"{place.split()[-1]}.{name}")
                if taken != ("-",):
                    found[name] = taken
            made[place] = found
        return made

    def put_back(self, saved: Mapping[str, Any]) -> list[str]:
        """Everything that `take` gave; the names of variables that could not be put back.

        Raises:
            UsageError: other functions are being called than there were, or there are other modules; or what
                was not kept, since it had not changed, is another now.
        """
        of_places = {place: names for place, names in saved.items() if " " in place}
        for place in of_places:  # a module may be imported in a pass that was not run again
            name = place.removeprefix("module ")
            if name != place and name not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        places = [one for one in self._places() if one[0] in of_places or one[1] is not None]
        _same("program", [place for place, _, _ in places], list(of_places))
        self._part_numbers = {id(tensor) for _, _, tensor in self._parts.tensors()}
        putter = Putter(self, saved["memory"], self._base)
        lost = self._put_parts(putter, saved)
        for place, frame, names in places:
            new = {}
            for name, value in of_places[place].items():
                with _noted(f"{place.split()[-1]}.{name}", lost):
                    new[name] = putter.put(value, names.get(name, MISSING))
            if frame is None:
                names.update(new)  # type: ignore[attr-defined]
            else:
                _set_locals(frame, new)
        return lost

    def _put_parts(self, putter: Putter, saved: Mapping[str, Any]) -> list[str]:
        modules, loaders = self._parts.alive("module"), self._parts.alive("loader")
        saved_kinds = [".".join(kind) for kind, _ in saved["modules"]]
        # Those made in the rest of a pass that is over, after the loop inside, are the last; they are not there yet.
        both = min(len(modules), len(saved_kinds))
        _same("modules", [".".join(described(type(one))) for one in modules[:both]], saved_kinds[:both])
        lost: list[str] = []
        for number, module in enumerate(modules):
            putter.register(number, module)
        for module, (_, attributes) in zip(modules, saved["modules"], strict=False):
            for name, value in attributes.items():
                with _noted(f"{type(module).__name__}.{name}", lost):
                    putter.fill(module, {name: value})
        for loader, held in zip(loaders, saved["loaders"], strict=False):
            for name, value in zip(_OF_LOADER, held, strict=True):
                with _noted(f"loader.{name}", lost):
                    new = putter.put(value, getattr(loader, name, None))
                    if new is not getattr(loader, name, None):
                        vars(loader)[name] = new
        lost += [f"module {kind}" for kind in saved_kinds[both:]]
        return lost + ["a loader"] * (len(saved["loaders"]) - len(loaders))

    def _base(self, kind: str, index: int) -> Any:
        if kind == "noted":
            return self._order[index]() if index < len(self._order) else None
        tensor = [one for _, _, one in self._parts.tensors()][index]
        return tensor if kind == "part" else tensor.grad

    # What the walks ask.

    def is_own(self, kind: type) -> bool:
        """Whether a class or function is the program's."""
        module = sys.modules.get(kind.__module__)
        return module is not None and self._program.holds(getattr(module, "__file__", None))

    def is_part(self, value: Any) -> bool:
        """Whether an array or tensor is seen to elsewhere."""
        return id(value) in self._part_numbers

    def note(self, value: Any, content: Any) -> None:
        """Note that it is there before the training, and what it holds."""
        try:
            found: Callable[[], Any] = weakref.ref(value)
        except TypeError:  # lists, and iterators over them: kept, so that no other gets its number

            def found() -> Any:
                return value

        self._known[id(value)] = (found, content)
        self._order.append(found)

    def noted(self, value: Any) -> Any:
        """What it held then; None if it was not there."""
        known = self._known.get(id(value))
        return known[1] if known is not None and known[0]() is value else None

    def forget(self, value: Any) -> None:
        """That it was noted."""
        self._known.pop(id(value), None)

    def place_of(self, value: Any) -> int:
        """Which it is among those noted."""
        return next(i for i, found in enumerate(self._order) if found() is value)

    def bases(self) -> Iterator[Base]:
        """The memory of parameters, buffers and gradients."""
        for i, (_, _, tensor) in enumerate(self._parts.tensors()):
            yield Base(("part", i), tensor)
            if tensor.grad is not None:
                yield Base(("grad", i), tensor.grad)


@contextlib.contextmanager
def _noted(name: str, lost: list[str]) -> Iterator[None]:
    try:
        yield
    except LostError:
        lost.append(name)
    except ChangedError:
        raise UsageError(
            f"{name}: is not what it was when the mirror was committed, and had not been changed by the training",
            hint="the script must make the same data when it begins again",
        ) from None


def _same(what: str, got: list[str], wanted: list[str]) -> None:
    if got != wanted:
        odd = sorted({*got} ^ {*wanted})[:5]
        raise UsageError(
            f"{what}: {', '.join(odd) or 'in another order or number'}, and the mirror holds others",
            hint="the script must come to the same place when it begins again; has it changed?",
        )


def _own(names: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(n, v) for n, v in names.items() if not n.startswith(("__", PREFIX))]


def _set_locals(frame: FrameType, new: Mapping[str, Any]) -> None:
    names = frame.f_locals
    names.update(new)
    if sys.version_info < (3, 13):  # there they are a view
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
