"""Values of a program's variables, taken down as plain ones and arrays; `hook_putting` puts them back.

An object is taken where it is met first, under a number; later meetings give the number, so that two names of one
object stay two names of one.
"""

from __future__ import annotations

import argparse
import enum
import functools
import hashlib
import operator
import pathlib
import random
import re
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from inspect import GEN_CREATED, getgeneratorstate
from types import FunctionType, GeneratorType, MethodType
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from strongroom.errors import UsageError
from strongroom.mirror.hook_memory import PLAIN, Base, Kept, flat_bytes, is_kept, settle, size
from strongroom.mirror.hook_names import attributes, described, is_reference, name_of
from strongroom.mirror.hook_parts import generator_state

LARGE: Final = 1000  # entries; a longer container that was there before, and holds the same, is not kept
_CONSTANT: Final = 1 << 20  # bytes; likewise a larger array or tensor
_LEAVES: Final = (bool, int, float, str, bytes)
_Loading: Final = torch.utils.data.dataloader._BaseDataLoaderIter
_ITERATORS: Final[tuple[type, ...]] = (_Loading, type(iter([])), type(iter(())), type(iter(range(0))))
_ADVANCING: Final = (GeneratorType, enumerate, zip, map, filter)  # do not tell how far they are
_OMITTED: Final = ("-",)
_TENSORS: Final = (torch.Tensor, nn.Parameter)
CONTAINERS: Final[dict[str, type]] = {"d": dict, "l": list, "q": deque, "s": set, "z": frozenset}
_MODULE_OWN: Final = frozenset(vars(nn.Module())) - {"training"}
_OF_STATE_DICT: Final = frozenset({"state", "param_groups", "defaults"})  # of an optimizer
_OPEN: Final = (types.SimpleNamespace, argparse.Namespace, Dataset, Sampler)  # walked like the program's own
_OF_C: Final = (int, float, complex, str, bytes, bytearray, BaseException, np.ndarray, torch.Tensor)  # hold more
_STEADY: Final = (  # nothing that goes on changing, or seen to elsewhere
    torch.device, torch.dtype, torch.layout, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler, DataLoader, nn.Module, random.SystemRandom, slice, range, property, staticmethod, classmethod,
    weakref.ref, re.Pattern, functools.partial, np.dtype, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, type(Ellipsis), type(NotImplemented), object,
)  # fmt: skip


class World(Protocol):
    """What the walks ask of the program."""

    def is_own(self, kind: type) -> bool: ...
    def is_part(self, value: Any) -> bool: ...
    def note(self, value: Any, content: Any) -> None: ...
    def noted(self, value: Any) -> Any: ...
    def forget(self, value: Any) -> None: ...
    def place_of(self, value: Any) -> int: ...
    def bases(self) -> Iterator[Base]: ...


# What a large value holds.


def content(value: Any, is_own: Callable[[type], bool]) -> bytes:
    """A digest of all that `Taker` would keep of a value."""
    digest = hashlib.sha256()
    _feed(value, digest.update, is_own, frozenset())
    return digest.digest()


def _feed(value: Any, update: Callable[[Any], None], is_own: Callable[[type], bool], around: frozenset[int]) -> None:
    if type(value) in _LEAVES or value is None:
        update(f"{value!r};".encode())
        return
    if id(value) in around:
        update(b"again;")
        return
    around = around | {id(value)}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        update(f"{type(value).__name__}{value.dtype}{tuple(value.shape)}".encode())
        if is_kept(value):
            update(flat_bytes(value).data)
    elif isinstance(value, dict):
        update(f"dict{len(value)};".encode())
        _feed([*value], update, is_own, around)
        _feed([*value.values()], update, is_own, around)
    elif isinstance(value, (list, tuple, deque)):
        update(f"{type(value).__name__}{len(value)};".encode())
        if all(type(one) in _LEAVES for one in value):
            update(repr([*value]).encode())
            return
        for one in value:
            _feed(one, update, is_own, around)
    elif isinstance(value, (set, frozenset)):
        update(repr(sorted(map(repr, value))).encode())
    elif isinstance(value, (enum.Enum, np.generic, pathlib.PurePath, complex)):
        update(f"{value!r};".encode())
    else:
        update(f"{type(value).__qualname__};".encode())
        if is_own(type(value)) and not isinstance(value, (*_STEADY[:-1], enum.Enum)):
            for name, one in attributes(value).items():
                update(f"{name};".encode())
                _feed(one, update, is_own, around)


# Taking down.


class Taker:
    """One walk over variables.

    Args:
        note: only note what is large.

    Attributes:
        opaque: the names of what cannot be kept, each with its class.
    """

    def __init__(self, world: World, *, note: bool = False) -> None:
        self._world = world
        self._note = note
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no other gets a number
        self._kept: list[Kept] = []
        self._same: list[Base] = []  # noted, and the same
        self._told: dict[int, Any] = {}
        self.opaque: dict[str, str] = {}

    def meet(self, value: Any) -> int:
        """Give it a number."""
        number = self._met[id(value)] = len(self._met)
        self._alive.append(value)
        return number

    def memory(self) -> list[Any]:
        """What several arrays share; asked for once, when all has been taken.

        Raises:
            UsageError: as `settle`.
        """
        return settle(self._kept, [*self._world.bases(), *self._same])

    def take(self, value: Any, path: str = "") -> Any:
        """A value as plain ones and arrays, as they are once `memory` has been asked for.

        Raises:
            UsageError: in it is an iterator that the program has gone on with, whose place cannot be put back.
        """
        if value is None or type(value) in _LEAVES:
            return ("v", value)
        if isinstance(value, enum.Enum):
            plain = value.value if type(value.value) in _LEAVES else None
            return ("e", described(type(value)), value.name, plain)
        if isinstance(value, np.generic) and value.dtype.kind in PLAIN:
            return ("v", value)
        if type(value) is complex:
            return ("c", value.real, value.imag)
        if type(value) is tuple:
            return ("u", [self.take(one, f"{path}[{i}]") for i, one in enumerate(value)])
        if isinstance(value, tuple):
            return ("y", described(type(value)), [self.take(one, f"{path}[{i}]") for i, one in enumerate(value)])
        if isinstance(value, pathlib.PurePath):
            return ("p", str(value))
        if id(value) in self._met:
            return ("same", self._met[id(value)])
        if isinstance(value, (*_ITERATORS, *_ADVANCING)) or type(value).__module__ == "itertools":
            return self._iterator(value, path)
        if type(value) in _TENSORS or type(value) is np.ndarray:
            return self._array(value, path)
        for tag, kind in CONTAINERS.items():
            if isinstance(value, kind):
                return self._container(tag, value, path)
        state = generator_state(value)
        if state is not None:
            return ("g", self.meet(value), state)
        return self._other(value, path)

    def _other(self, value: Any, path: str) -> Any:
        if isinstance(value, FunctionType) and value.__closure__ and self._world.is_own(value):  # type: ignore[arg-type]
            return self._closure(value, path)
        if isinstance(value, MethodType):
            return ("m", self.take(value.__self__, f"{path}.__self__"), value.__name__)
        own_class = isinstance(value, type) and self._world.is_own(value) and not issubclass(value, enum.Enum)
        if is_reference(value) and not own_class:
            name = name_of(value)
            return ("r", name) if name else _OMITTED
        walked = own_class or isinstance(value, _OPEN) or self._world.is_own(type(value))
        if walked and not isinstance(value, _OF_C):
            return self.object(value, path)
        steady = type(value) in _STEADY or isinstance(value, _STEADY[:-1])
        if not steady and type(value).__module__ not in ("typing", "types", "__future__"):
            self._omit(value, path)
        return _OMITTED

    def _omit(self, value: Any, path: str) -> None:
        if id(value) not in self._told and not self._world.is_part(value):
            self._told[id(value)] = value
            self.opaque[path] = type(value).__name__

    def _iterator(self, value: Any, path: str) -> Any:
        known = isinstance(value, _ITERATORS)
        if self._note:
            if known:
                self._world.note(value, _place(value))
            return _OMITTED
        begun = not isinstance(value, GeneratorType) or getgeneratorstate(value) != GEN_CREATED
        if begun and not (known and self._world.noted(value) == _place(value)):
            raise UsageError(f"{path}: a {type(value).__name__} that the script goes on with by itself")
        return _OMITTED

    def _array(self, value: Any, path: str) -> Any:
        if self._world.is_part(value):
            return _OMITTED
        if not is_kept(value):
            self._omit(value, path)
            return _OMITTED
        if size(value) >= _CONSTANT and (same := self._as_noted(value)):
            if not self._note:
                self._same.append(Base(("noted", self._world.place_of(value)), value))
            return same
        number = self.meet(value)
        made: list[Any] = []
        if not self._note:
            self._kept.append(Kept(made, number, value, path))
        return made

    def _as_noted(self, value: Any) -> Any:
        """What is kept of it if it is as it was noted, or is noted now; None else."""
        if self._note:
            self._world.note(value, content(value, self._world.is_own))
            return ("k", self.meet(value), b"")
        known = self._world.noted(value)
        if known is None:
            return None
        if known != content(value, self._world.is_own):
            self._world.forget(value)  # for good: it may come back to this by chance, and at another place not
            return None
        return ("k", self.meet(value), known)

    def _container(self, tag: str, value: Any, path: str) -> Any:
        if len(value) > LARGE and (same := self._as_noted(value)):
            return same
        if isinstance(value, dict) and not all(_is_plain(key) for key in value):
            self._omit(value, path)
            return _OMITTED
        number = self.meet(value)
        how = self._how(tag, value, path)
        if tag == "d":
            items: list[Any] = [
                (self.take(key), self.take(one, f"{path}[{key!r}]")) for key, one in list(value.items())
            ]
        else:
            items = [self.take(one, f"{path}[{i}]") for i, one in enumerate(value)]
        return (tag, number, how, items)

    def _how(self, tag: str, value: Any, path: str) -> dict[str, Any]:
        """Of what class a container is, and what else it is made with."""
        how: dict[str, Any] = {"class": described(type(value))}
        if type(value) is not CONTAINERS[tag] and hasattr(value, "__dict__"):
            how["own"] = {name: self.take(one, f"{path}.{name}") for name, one in attributes(value).items()}
        if isinstance(value, defaultdict):
            how["factory"] = value.default_factory and name_of(value.default_factory)
        if isinstance(value, deque) and value.maxlen is not None:
            how["maxlen"] = value.maxlen
        return how

    def object(self, value: Any, path: str) -> Any:
        """An object or class, whose attributes are walked."""
        name = described(value if isinstance(value, type) else type(value))
        return ("o", self.meet(value), name, self.within(value, path))

    def within(self, value: Any, path: str) -> dict[str, Any]:
        """The attributes of an object or class."""
        left: frozenset[str] = frozenset()
        if isinstance(value, nn.Module):
            left = _MODULE_OWN
        elif isinstance(value, torch.optim.Optimizer):
            left = _OF_STATE_DICT
        found = attributes(value)
        if isinstance(value, type):
            found = {name: one for name, one in vars(value).items() if _is_variable(name, one)}
        return {name: self.take(one, f"{path}.{name}") for name, one in found.items() if name not in left}

    def _closure(self, value: FunctionType, path: str) -> Any:
        number = self.meet(value)
        cells = {}
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:  # it holds nothing yet
                continue
            cells[name] = self.take(held, f"{path}.{name}")
        return ("f", number, [value.__qualname__, value.__code__.co_firstlineno], cells)


def _is_variable(name: str, value: Any) -> bool:
    """Whether an attribute of a class is one that the program may go on changing."""
    fixed = callable(value) or hasattr(value, "__get__") or isinstance(value, _STEADY[:-1])
    return not fixed and not name.startswith(("__", "_abc_"))


def _place(iterator: Any) -> int:
    return iterator._num_yielded if isinstance(iterator, _Loading) else operator.length_hint(iterator)


def _is_plain(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(_is_plain(one) for one in key)
    leaf = key is None or type(key) in (*_LEAVES, complex) or isinstance(key, (enum.Enum, pathlib.PurePath))
    return leaf or (isinstance(key, np.generic) and key.dtype.kind in PLAIN)
