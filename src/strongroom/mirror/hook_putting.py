"""Values of a program's variables, as `hook_values` takes them down, put back into what the program has now.

Containers and objects are filled anew where they are, so that whoever else refers to them sees it. What is not there is
made anew if it is a container, a named tuple or an object of the program's own classes, of which everything was taken.
"""

from __future__ import annotations

import contextlib
import enum
import pathlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from strongroom.mirror.hook_memory import view
from strongroom.mirror.hook_names import attributes, described, named, set_attribute
from strongroom.mirror.hook_parts import generator_state, set_generator_state
from strongroom.mirror.hook_values import CONTAINERS, World, content

MISSING: Final[Any] = object()


class LostError(Exception):
    """Something inside a container is not there to be kept."""


class ChangedError(Exception):
    """What was not kept, since it had not changed, is another now."""


class Putter:
    """One walk that puts back what a `Taker` took.

    Args:
        memory: the arrays that `Taker.memory` gave.
        base: gives what a `Base` of that ref is now.
    """

    def __init__(self, world: World, memory: list[Any], base: Callable[[str, int], Any]) -> None:
        self._world = world
        self._memory = [np.array(one) for one in memory]
        self._base = base
        self._made: dict[int, Any] = {}  # by the number that it was taken under
        self._used: dict[int, Any] = {}  # what stands for something by now, and so for nothing else

    def register(self, number: int, made: Any) -> Any:
        """That it stands for what was taken under the number."""
        self._made[number] = self._used[id(made)] = made
        return made

    def put(self, saved: Any, current: Any) -> Any:
        """What takes the place of `current`.

        Raises:
            LostError: it is not there to be kept.
            ChangedError: it was not kept since it had not changed, and is another now.
        """
        tag, *held = saved
        match tag:
            case "-":
                if current is MISSING:
                    raise LostError
                return current
            case "v":
                return held[0]
            case "c":
                return complex(*held)
            case "p":
                return pathlib.Path(held[0])
            case "u":
                return tuple(self._items(held[0], current if type(current) is tuple else ()))
            case "y":
                return self._tuple(held[0], held[1], current)
            case "e":
                return _member(held[0], held[1], held[2], current)
            case "r":
                found = named(held[0])
                if found is None and current is MISSING:
                    raise LostError
                return current if found is None else found
            case "m":
                before = current.__self__ if isinstance(current, MethodType) else MISSING
                method = getattr(self.put(held[0], before), held[1], None)
                if method is None:
                    raise LostError
                return method
            case "same":
                if held[0] not in self._made:
                    raise LostError
                return self._made[held[0]]
            case "k":
                if current is MISSING or content(current, self._world.is_own) != held[1]:
                    raise ChangedError
                return self.register(held[0], current)
            case "n":
                return self.register(held[0], np.array(held[1]))
            case "t":
                # Never into the tensor that is there: it may be a view of the data.
                device = current.device if isinstance(current, torch.Tensor) else "cpu"
                return self.register(held[0], held[1].clone().to(device).requires_grad_(held[2]))
            case "w":
                return self._view(*held)
            case "g":
                if generator_state(current) is None or id(current) in self._used:
                    raise LostError
                set_generator_state(current, held[1])
                return self.register(held[0], current)
            case "o":
                return self._object(held[0], held[1], held[2], current)
            case "f":
                return self._closure(held[0], held[1], held[2], current)
        return self._container(tag, held[0], held[1], held[2], current)

    def _items(self, saved: list[Any], current: Any) -> list[Any]:
        return [self.put(one, current[i] if i < len(current) else MISSING) for i, one in enumerate(saved)]

    def _tuple(self, name: Any, saved: list[Any], current: Any) -> Any:
        kind = _class(name, current)
        items = self._items(saved, current if type(current) is kind else ())
        if not issubclass(kind, tuple):
            raise LostError
        with _made_anew():
            return kind._make(items) if hasattr(kind, "_make") else kind(items)

    def _view(self, number: int, ref: Any, library: str, dtype: str, *where: Any) -> Any:
        kind, index = ref
        if kind == "memory":
            base = self._memory[index]
        else:
            base = self._base(kind, index)
            if base is None:
                raise LostError
        shape, strides, at, leaf = where
        made = view(base, library, dtype, list(shape), list(strides), at)
        return self.register(number, made.requires_grad_(True) if leaf else made)

    def _container(self, tag: str, number: int, how: Mapping[str, Any], saved: list[Any], current: Any) -> Any:
        base = CONTAINERS[tag]
        kind: Any = _class(how["class"], current)
        if not issubclass(kind, base):
            raise LostError
        if tag == "z":
            return self.register(number, kind(self._items(saved, ())))
        here = type(current) is kind and id(current) not in self._used
        made = self.register(number, current if here else self._new(kind, how))
        self._world.forget(made)
        if tag == "d":
            self._fill(made, saved, current)
        else:
            new = self._items(saved, [*current] if issubclass(type(current), base) and tag != "s" else ())
            made.clear()
            (made.update if tag == "s" else made.extend)(new)
        self._set(made, how.get("own", {}))
        return made

    def _new(self, kind: Any, how: Mapping[str, Any]) -> Any:
        with _made_anew():
            made = kind.__new__(kind)
        if isinstance(made, deque):
            deque.__init__(made, (), how.get("maxlen"))
        if isinstance(made, defaultdict):
            factory = how["factory"]
            if factory is None or (factory := named(factory)) is None:
                raise LostError
            made.default_factory = factory
        return made

    def _fill(self, made: Any, saved: list[Any], current: Any) -> None:
        before = dict(current) if isinstance(current, dict) else {}
        new = {}
        for key, value in saved:
            name = self.put(key, MISSING)
            new[name] = self.put(value, before.get(name, MISSING))
        kind: Any = OrderedDict if isinstance(made, OrderedDict) else dict
        if list(new) != list(made):
            kind.clear(made)
        kind.update(made, new)

    def _object(self, number: int, name: Any, saved: Mapping[str, Any], current: Any) -> Any:
        if isinstance(current, type) and described(current) == tuple(name):
            self._set(self.register(number, current), saved)
            return current
        kind = _class(name, current)
        if type(current) is not kind or id(current) in self._used:
            whole = all(one[0] != "-" for one in saved.values())
            if not whole or not self._world.is_own(kind) or issubclass(kind, (type, nn.Module)):
                raise LostError
            with _made_anew():
                current = object.__new__(kind)
        self._set(self.register(number, current), saved)
        return current

    def _set(self, made: Any, saved: Mapping[str, Any]) -> None:
        own = {**vars(made)} if isinstance(made, type) else attributes(made)
        for attribute, value in saved.items():
            before = own.get(attribute, MISSING)
            if value[0] != "-" or before is not MISSING:
                new = self.put(value, before)
                if new is not before:
                    set_attribute(made, attribute, new)

    def fill(self, made: Any, saved: Mapping[str, Any]) -> None:
        """Put attributes back into an object that stands for itself."""
        self._set(made, saved)

    def _closure(self, number: int, which: Any, saved: Mapping[str, Any], current: Any) -> Any:
        if not isinstance(current, FunctionType) or id(current) in self._used:
            raise LostError
        if [current.__qualname__, current.__code__.co_firstlineno] != list(which):
            raise LostError
        self.register(number, current)
        for name, cell in zip(current.__code__.co_freevars, current.__closure__ or (), strict=True):
            if name in saved:
                try:
                    before = cell.cell_contents
                except ValueError:
                    before = MISSING
                cell.cell_contents = self.put(saved[name], before)
        return current


@contextlib.contextmanager
def _made_anew() -> Iterator[None]:
    try:
        yield
    except TypeError:  # its class wants arguments
        raise LostError from None


def _class(name: Any, current: Any) -> type:
    """The class of that description: that of what is there, or else the one of that name."""
    if described(type(current)) == tuple(name):
        return type(current)
    found = named(name)
    if not isinstance(found, type):
        raise LostError
    return found


def _member(name: Any, member: str | None, value: Any, current: Any) -> Any:
    kind = _class(name, current)
    if not issubclass(kind, enum.Enum):
        raise LostError
    if member is not None and member in kind.__members__:
        return kind[member]
    try:
        return kind(value)  # several flags at once
    except ValueError:
        raise LostError from None
