"""The variables of a program, in its modules and in the functions that are being called: taken down and put back.

Taken are numbers, text, bytes, arrays, tensors, random generators, and lists, tuples, dicts, sets and deques of them,
also inside objects of the program's own classes. Containers are filled anew where they are, so that whoever else refers
to them sees it. What is of another kind stays as it is: what the program makes of it when it begins again.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import operator
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from inspect import GEN_CREATED, getgeneratorstate
from types import FrameType, GeneratorType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from strongroom.errors import UsageError
from strongroom.mirror.hook_loops import PREFIX, Program
from strongroom.mirror.hook_parts import generator_state, set_generator_state
from strongroom.mirror.torch import pack

_LEAVES: Final = (bool, int, float, str, bytes)
_LARGE: Final = 1000  # entries; a longer container that was there before, and still has as many, is the same
_CONSTANT: Final = 1 << 20  # bytes; a larger array of NumPy's that was there before is the same
_Loading: Final = torch.utils.data.dataloader._BaseDataLoaderIter
_ITERATORS: Final[tuple[type, ...]] = (_Loading, type(iter([])), type(iter(())), type(iter(range(0))))
_ADVANCING: Final = (GeneratorType, enumerate, zip, map, filter)  # do not tell how far they are
_OMITTED: Final = ("-",)
_MISSING: Final[Any] = object()
_MODULE_OWN: Final = frozenset(vars(nn.Module()))
_TENSORS: Final = (torch.Tensor, nn.Parameter)
_PLAIN: Final = "biufcSUmM"  # kinds of NumPy's types that are kept


class _LostError(Exception):
    """Something inside a container is not there to be kept."""


class Variables:
    """The variables of a program.

    Args:
        program: whose modules and functions they are of.
        is_part: whether an object, a parameter or a buffer is seen to elsewhere.
    """

    def __init__(self, program: Program, is_part: Callable[[Any], bool]) -> None:
        self._program = program
        self._is_part = is_part
        self._known: dict[int, tuple[Callable[[], Any], int]] = {}

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
        """Note the arrays and tensors that are there before the training: what stays the same need not be kept."""
        self._known = {}
        taker = _Taker(self, note=True)
        for _, _, names in self._places():
            for _, value in _own(names):
                taker.take(value)

    def take(self) -> dict[str, dict[str, Any]]:
        """Every variable that can be taken, by place and name.

        Raises:
            UsageError: one is an iterator that the program has gone on with, whose place cannot be put back.
        """
        taker = _Taker(self)
        made: dict[str, dict[str, Any]] = {}
        for place, _, names in self._places():
            found: dict[str, Any] = {}
            for name, value in _own(names):
                taken = taker.take(value, f"{place.split()[-1]}.{name}")
                if taken is not _OMITTED:
                    found[name] = taken
            made[place] = found
        return made

    def put_back(self, saved: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Everything that `take` gave; the names of variables that could not be put back.

        Raises:
            UsageError: other functions are being called than there were.
        """
        for place in saved:  # a module may be imported in a pass that was not run again
            name = place.removeprefix("module ")
            if name != place and name not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        places = [one for one in self._places() if one[0] in saved or one[1] is not None]
        if [place for place, _, _ in places] != list(saved):
            odd = sorted({place for place, _, _ in places} ^ {*saved})[:5]
            raise UsageError(
                f"program: {', '.join(odd)}, and the mirror holds others",
                hint="the script must come to the same place when it begins again; has it changed?",
            )
        putter = _Putter()
        lost = []
        for place, frame, names in places:
            new = {}
            for name, value in saved[place].items():
                try:
                    new[name] = putter.put(value, names.get(name, _MISSING))
                except _LostError:
                    lost.append(f"{place.split()[-1]}.{name}")
            if frame is None:
                names.update(new)  # type: ignore[attr-defined]
            else:
                _set_locals(frame, new)
        return lost

    # What the walks ask.

    def is_own(self, kind: type) -> bool:
        """Whether a class is the program's."""
        module = sys.modules.get(kind.__module__)
        return module is not None and self._program.holds(getattr(module, "__file__", None))

    def is_part(self, value: Any) -> bool:
        """Whether an array or tensor is seen to elsewhere."""
        return self._is_part(value)

    def note(self, value: Any) -> None:
        """Note that it is there before the training."""
        try:
            self._known[id(value)] = (weakref.ref(value), _version(value))
        except TypeError:  # lists, and iterators over them: kept, so that no other gets its number
            self._known[id(value)] = ((lambda: value), _version(value))

    def is_as_noted(self, value: Any) -> bool:
        """Whether it was there before the training and, as far as one can see cheaply, has not changed."""
        known = self._known.get(id(value))
        return known is not None and known[0]() is value and known[1] == _version(value)


def _own(names: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(n, v) for n, v in names.items() if not n.startswith(("__", PREFIX))]


def _version(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return -1 if value.is_inference() else value._version
    if isinstance(value, _Loading):
        return value._num_yielded
    if isinstance(value, _ITERATORS):
        return operator.length_hint(value)
    return len(value)


def _set_locals(frame: FrameType, new: Mapping[str, Any]) -> None:
    names = frame.f_locals
    names.update(new)
    if sys.version_info < (3, 13):  # there they are a view
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))


class _Taker:
    """One walk over variables. An object is taken where it is met first, under a number that later meetings give."""

    def __init__(self, world: Variables, *, note: bool = False) -> None:
        self._world = world
        self._note = note
        self._met: dict[int, int] = {}

    def take(self, value: Any, path: str = "") -> Any:
        if value is None or type(value) in _LEAVES:
            return ("v", value)
        if isinstance(value, np.generic) and value.dtype.kind in _PLAIN:
            return ("v", value)
        if type(value) is complex:
            return ("c", value.real, value.imag)
        if type(value) is tuple:
            return ("u", [self.take(one, f"{path}[{i}]") for i, one in enumerate(value)])
        if id(value) in self._met:
            return ("same", self._met[id(value)])
        if isinstance(value, (*_ITERATORS, *_ADVANCING)) or type(value).__module__ == "itertools":
            return self._iterator(value, path)
        if type(value) in _TENSORS or type(value) is np.ndarray:
            return self._array(value)
        if isinstance(value, (list, dict, set, frozenset, deque)):
            return self._container(value, path)
        state = generator_state(value)
        if state is not None:
            return ("g", self._meet(value), state)
        if not isinstance(value, type) and hasattr(value, "__dict__") and self._world.is_own(type(value)):
            return self._object(value, path)
        return _OMITTED

    def _meet(self, value: Any) -> int:
        number = self._met[id(value)] = len(self._met)
        return number

    def _iterator(self, value: Any, path: str) -> Any:
        known = isinstance(value, _ITERATORS)
        if self._note and known:
            self._world.note(value)
        begun = not isinstance(value, GeneratorType) or getgeneratorstate(value) != GEN_CREATED
        if not self._note and begun and not (known and self._world.is_as_noted(value)):
            raise UsageError(f"{path}: a {type(value).__name__} that the script goes on with by itself")
        return _OMITTED

    def _array(self, value: Any) -> Any:
        if self._world.is_part(value):
            return _OMITTED
        if self._note:
            self._world.note(value)
        small = isinstance(value, np.ndarray) and value.nbytes < _CONSTANT
        if self._note or (not small and self._world.is_as_noted(value)):
            return _OMITTED
        if isinstance(value, np.ndarray):
            return ("n", self._meet(value), value) if value.dtype.kind in _PLAIN else _OMITTED
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            return _OMITTED
        return ("t", self._meet(value), pack(value), value.requires_grad and value.is_leaf)

    def _container(self, value: Any, path: str) -> Any:
        if len(value) > _LARGE:
            if self._note:
                self._world.note(value)
            if self._note or self._world.is_as_noted(value):
                return _OMITTED
        number = self._meet(value)
        if not isinstance(value, dict):
            tag = "l" if isinstance(value, list) else "q" if isinstance(value, deque) else "s"
            return (tag, number, [self.take(one, f"{path}[{i}]") for i, one in enumerate(value)])
        keys = [self.take(key) for key in value]
        if not all(_is_plain(key) for key in keys):
            return _OMITTED
        return (
            "d",
            number,
            [(key, self.take(one, f"{path}[{k!r}]")) for key, (k, one) in zip(keys, value.items(), strict=True)],
        )

    def _object(self, value: Any, path: str) -> Any:
        number = self._meet(value)
        left = _MODULE_OWN if isinstance(value, nn.Module) else ()
        own = {name: self.take(one, f"{path}.{name}") for name, one in list(vars(value).items()) if name not in left}
        return ("o", number, type(value).__qualname__, own)


def _is_plain(key: Any) -> bool:
    return key[0] in ("v", "c") or (key[0] == "u" and all(_is_plain(one) for one in key[1]))


class _Putter:
    """One walk that puts back what a `_Taker` took."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}  # by the number that it was taken under
        self._used: dict[int, Any] = {}  # what stands for something by now, and so for nothing else

    def put(self, saved: Any, current: Any) -> Any:
        """What takes the place of `current`. Raises _LostError."""
        tag, *content = saved
        match tag:
            case "-":
                if current is _MISSING:
                    raise _LostError
                return current
            case "v":
                return content[0]
            case "c":
                return complex(*content)
            case "u":
                return tuple(self._items(content[0], current if type(current) is tuple else ()))
            case "same":
                if content[0] not in self._made:
                    raise _LostError
                return self._made[content[0]]
            case "n":
                return self._as(content[0], np.array(content[1]))
            case "t":
                # Never into the tensor that is there: it may be a view of the data.
                device = current.device if isinstance(current, torch.Tensor) else "cpu"
                return self._as(content[0], content[1].clone().to(device).requires_grad_(content[2]))
            case "g":
                if generator_state(current) is None or id(current) in self._used:
                    raise _LostError
                set_generator_state(current, content[1])
                return self._as(content[0], current)
            case "d":
                return self._dict(content[0], content[1], current)
            case "o":
                return self._object(content[0], content[1], content[2], current)
        return self._container(tag, content[0], content[1], current)

    def _as(self, number: int, made: Any) -> Any:
        self._made[number] = self._used[id(made)] = made
        return made

    def _here(self, current: Any, kind: type) -> Any:
        """`current`, to be filled, if it is of that kind and stands for nothing else; else a new one."""
        return current if isinstance(current, kind) and id(current) not in self._used else kind()

    def _items(self, saved: list[Any], current: Any) -> list[Any]:
        return [self.put(one, current[i] if i < len(current) else _MISSING) for i, one in enumerate(saved)]

    def _container(self, tag: str, number: int, saved: list[Any], current: Any) -> Any:
        if tag == "s":
            elements = self._items(saved, ())
            if isinstance(current, frozenset):
                return self._as(number, frozenset(elements))
            made = self._as(number, self._here(current, set))
            made.clear()
            made.update(elements)
            return made
        kind = list if tag == "l" else deque
        made = self._as(number, self._here(current, kind))
        new = self._items(saved, list(current) if isinstance(current, kind) else ())
        made.clear()
        made.extend(new)
        return made

    def _dict(self, number: int, saved: list[Any], current: Any) -> Any:
        made = self._as(number, self._here(current, dict))
        before = dict(current) if isinstance(current, dict) else {}
        new = {}
        for key, value in saved:
            name = self.put(key, _MISSING)
            new[name] = self.put(value, before.get(name, _MISSING))
        if list(new) != list(made):
            made.clear()
        made.update(new)
        return made

    def _object(self, number: int, name: str, saved: Mapping[str, Any], current: Any) -> Any:
        if type(current).__qualname__ != name or id(current) in self._used:
            raise _LostError
        made = self._as(number, current)
        own = vars(made)
        for attribute, value in saved.items():
            before = own.get(attribute, _MISSING)
            if value[0] != "-" or before is not _MISSING:
                own[attribute] = self.put(value, before)
        return made
