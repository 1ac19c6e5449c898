"""All three parties in one process, led from one thread: for notebooks, where cells are not written three times.

Rules:

- In the block, or between `begin` and `end`, `mpc.share` and `mpc.own` return an `Each`: one value at each party.
  Whatever is done to it, an operator, a method, a call, a function of torch's, all three do in their own threads, each
  to its own.
- Only `mpc.reveal` gives a plain tensor. An `Each` has no truth, no number and no elements to go through.
- One trust domain: nothing is secret from whoever runs the process.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import torch

from strongroom.errors import UsageError
from strongroom.mpc.peer import NAMES
from strongroom.mpc.ring import Settings
from strongroom.mpc.tensor.together import Local, Policies
from strongroom.mpc.tensor.world import called_from, current, lead, user_line

T = TypeVar("T")
_PLAIN = (type(None), bool, int, float, str, torch.Size, torch.dtype, torch.device)  # public, and the same for all


class Notebook(Local):
    """A world of all three parties that is led from the thread that made it. Made by `local`."""

    def __enter__(self) -> Self:
        lead(self._lead)
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
        place = user_line()

        def job() -> T:
            rank = current().party.rank
            with called_from(place):
                return program(*_own(args, rank), **_own(kwargs, rank))

        return super().run(job)

    def each(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as each party; the result is an `Each`, or itself where it is public and the same for all."""
        values = self.run(function, *args, **kwargs)
        if all(isinstance(value, _PLAIN) and value == values[0] for value in values):
            return values[0]
        return Each(self, values)

    def _lead(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Share, own or reveal as each party. What is revealed is given to this thread as it was to its recipients."""
        values = self.run(function, *args, **kwargs)
        revealed = [value for value in values if type(value) is torch.Tensor]
        return revealed[0] if revealed else Each(self, values)


class Each:
    """One value at each party; see the module's rules."""

    def __init__(self, world: Notebook, values: Sequence[Any]) -> None:
        self._world, self._values = world, tuple(values)

    def __repr__(self) -> str:
        return f"Each({self._values[0]!r} at {NAMES[0]}, and so at the others)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._world.each(getattr, self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._world.each(_call, self, *args, **kwargs)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = next(_found((args, kwargs or {})))
        return found._world.each(function, *args, **(kwargs or {}))

    def _refuse(self, *args: object) -> NoReturn:
        raise UsageError("value: is a secret, wanted one that was revealed", hint="mpc.reveal(x, to=0)")

    __bool__ = __int__ = __float__ = __index__ = __iter__ = __len__ = __contains__ = __reduce_ex__ = _refuse


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, other: function(other, x)


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Each, *others: Any) -> Any:
        return self._world.each(function, self, *others)

    return method


for _name in ["add", "sub", "mul", "truediv", "matmul", "pow", "floordiv", "mod"]:
    setattr(Each, f"__{_name}__", _operator(getattr(operator, _name)))
    setattr(Each, f"__r{_name}__", _operator(_swapped(getattr(operator, _name))))
for _name in ["neg", "pos", "abs", "getitem", "setitem", "lt", "le", "gt", "ge"]:
    setattr(Each, f"__{_name}__", _operator(getattr(operator, _name)))


def _own(value: Any, rank: int) -> Any:
    """What one party gets of an argument."""
    if isinstance(value, Each):
        return value._values[rank]
    if type(value) in (list, tuple):
        return type(value)(_own(each, rank) for each in value)
    if type(value) is dict:
        return {name: _own(each, rank) for name, each in value.items()}
    return value


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
