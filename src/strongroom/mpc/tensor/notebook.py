"""All three parties in one process, led from one thread: for notebooks, where cells are not written three times.

Rules:

- In the block, or between `begin` and `end`, `mpc.share` and `mpc.own` return an `Each`: one value at each party.
  Whatever is done to it, an operator, a method, a call, a function of torch's, all three do in their own threads, each
  to its own.
- Only `mpc.reveal` gives a plain tensor. An `Each` has no truth and no number; its rows and its parts are `Each`
  themselves.
- One trust domain: nothing is secret from whoever runs the process.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import torch

from strongroom.errors import UsageError
from strongroom.mpc.peer import NAMES
from strongroom.mpc.ring import Settings
from strongroom.mpc.tensor.together import Local, Policies
from strongroom.mpc.tensor.world import called_from, current, lead, user_line

T = TypeVar("T")
# What is public, and the same for all.
_PLAIN = (type(None), bool, int, float, str, frozenset, torch.Size, torch.dtype, torch.device)


class Notebook(Local):
    """A world of all three parties that is led from the thread that made it. Made by `local`."""

    def __enter__(self) -> Self:
        lead(self._lead)
        # torch takes an `Each` that is a plain tensor's index for a list at first, and says so.
        warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing", UserWarning)
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        lead(None)
        super().__exit__(kind, error, trace)

    def begin(self) -> Self:
        """Begin without a block, for a world of several cells, which `end` ends."""
        return self.__enter__()

    def end(self) -> None:
        """End what `begin` began. Raises what a party raised, if that was not raised before."""
        self.__exit__(None, None, None)

    def run(self, program: Callable[..., T], *args: Any, **kwargs: Any) -> list[T]:
        """Run a program as each party and return what each returned: P0, P1, the dealer.

        Args:
            args, kwargs: the program's; of an `Each`, wherever it stands in lists and dictionaries, every party gets
                its own.

        Raises:
            BaseException: what the program raised; nothing runs in this world afterwards.
        """
        if _is_compiled():
            raise UsageError("compile: secrets are not traced or compiled", hint="run the module as it is")
        place = user_line()

        def job() -> T:
            rank = current().party.rank
            with called_from(place):
                return program(*_own(args, rank), **_own(kwargs, rank))

        return super().run(job)

    def each(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as each party; what each returned, as `gathered` has it."""
        return self.gathered(self.run(function, *args, **kwargs))

    def gathered(self, values: Sequence[Any]) -> Any:
        """What a value at each party is here: itself, an `Each`, or a tuple of these."""
        first = values[0]
        if all(isinstance(value, _PLAIN) and value == first for value in values):
            return first
        if isinstance(first, tuple) and len({(type(value), len(value)) for value in values}) == 1:
            return _like(first, [self.gathered(parts) for parts in zip(*values, strict=True)])
        return Each(self, values)

    def _lead(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Share, own or reveal as each party. What is revealed is given to this thread as it was to its recipients."""
        values = self.run(function, *args, **kwargs)
        revealed = [value for value in values if type(value) is torch.Tensor]
        return revealed[0] if revealed else Each(self, values)


def _is_compiled() -> bool:
    """Whether this thread runs what `torch.compile` made, or could not make anything of."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return torch._C._dynamo.eval_frame.get_eval_frame_callback() not in (None, False)


class Each:
    """One value at each party; see the module's rules."""

    _world: Notebook
    _values: tuple[Any, ...]
    __array_priority__ = 1000  # as of a tensor: numpy leaves an operator to it

    def __init__(self, world: Notebook, values: Sequence[Any]) -> None:
        vars(self).update(_world=world, _values=tuple(values))

    def __repr__(self) -> str:
        return f"Each({self._values[0]!r} at {NAMES[0]}, and so at the others)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __dir__(self) -> list[str]:
        return dir(self._values[0])

    def __getattr__(self, name: str) -> Any:
        # What is not there ends no world: notebooks ask every value for ways to show it.
        first = self._values[0]
        if name.startswith("__") or not (hasattr(type(first), name) or name in dir(first)):
            raise AttributeError(f"{type(first).__name__!r} object has no attribute {name!r}", name=name)
        return self._world.each(getattr, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._world.run(setattr, self, name, value)

    def __delattr__(self, name: str) -> None:
        self._world.run(delattr, self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._world.each(_call, self, *args, **kwargs)

    def __len__(self) -> int:
        return len(self._values[0])

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._values[0], torch.Tensor) and not self._values[0].ndim:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self._world.each(tuple, self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._world.each(copy.deepcopy, self)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = next(_found((args, kwargs or {})))
        return found._world.each(function, *args, **(kwargs or {}))

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise UsageError("value: is a secret, wanted one that was revealed", hint="mpc.reveal(x, to=0)")

    # Here and not at the parties, where it would end the world.
    __bool__ = __int__ = __float__ = __complex__ = __index__ = __round__ = __contains__ = _refuse
    __array__ = __dlpack__ = __dlpack_device__ = __reduce__ = __reduce_ex__ = _refuse


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, other: function(other, x)


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Each, *others: Any) -> Any:
        return self._world.each(function, self, *others)

    return method


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[Each, Any], Any]:
    def method(self: Each, other: Any) -> Any:
        values = self._world.run(function, self, other)
        written = all(value is own for value, own in zip(values, self._values, strict=True))
        return self if written else self._world.gathered(values)

    return method


_ARITHMETIC = ["add", "sub", "mul", "truediv", "matmul", "pow", "floordiv", "mod"]
for _name in [*_ARITHMETIC, "and", "or", "xor", "lshift", "rshift"]:
    _function = getattr(operator, f"__{_name}__")
    setattr(Each, f"__{_name}__", _operator(_function))
    setattr(Each, f"__r{_name}__", _operator(_swapped(_function)))
    setattr(Each, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))
for _name in ["neg", "pos", "abs", "invert", "getitem", "setitem", "delitem", "lt", "le", "gt", "ge", "eq", "ne"]:
    setattr(Each, f"__{_name}__", _operator(getattr(operator, f"__{_name}__")))
setattr(Each, "__reversed__", _operator(reversed))  # noqa: B010  # as the others
setattr(Each, "__copy__", _operator(copy.copy))  # noqa: B010
setattr(Each, "__hash__", object.__hash__)  # noqa: B010  # by identity, as a tensor's


def _own(value: Any, rank: int) -> Any:
    """What one party gets of an argument."""
    if isinstance(value, Each):
        return value._values[rank]
    if type(value) is list:
        return [_own(each, rank) for each in value]
    if isinstance(value, tuple):
        return _like(value, [_own(each, rank) for each in value])
    if type(value) is dict:
        return {name: _own(each, rank) for name, each in value.items()}
    if type(value) is slice:
        return slice(*(_own(each, rank) for each in (value.start, value.stop, value.step)))
    return value


def _like(kind: tuple[Any, ...], values: Sequence[Any]) -> Any:
    """A tuple of the same type, with or without names."""
    make: Any = type(kind)
    return make(*values) if hasattr(kind, "_fields") else make(values)


def _found(value: Any) -> Any:
    """Every `Each` in an argument."""
    if isinstance(value, Each):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _found(each)
    elif isinstance(value, dict):
        yield from _found(list(value.values()))


def local(
    settings: Settings | None = None, *, policy: Policies = None, audit: Path | None = None, debug: bool = False
) -> Notebook:
    """The three parties in this process, led from this thread.

    ::

        with mpc.local() as world:
            model = mpc.own(lambda: trained, source=1, like=architecture())
            x = mpc.share(lambda: patient, source=0, shape=(1, 4))
            print(mpc.reveal(model(x), to=0))

    Args:
        policy, audit, debug: as for `local_world`.
    """
    return Notebook(settings, policy, audit, debug=debug)
