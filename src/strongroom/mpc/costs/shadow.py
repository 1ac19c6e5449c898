"""The same operators on float64 tensors, beside the secret ones.

A storage of secrets has a shadow: a flat tensor of float64 that its views see as they see it. What a secret holds is
the sum of both servers' shares, and how far it is from the shadow is its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from strongroom.errors import UsageError
from strongroom.mpc.ring import Words, decode
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.shared_tensor import SharedTensor
from strongroom.mpc.tensor.storage import Storage

Floats = NDArray[np.float64]
Add = Callable[[Words], Words | None]  # this server's share to the value at P0; nothing at P1
See = Callable[[str, Floats, Floats, Shared], None]  # an operator's name, the value, what it should be, and its share


class Shadows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator on secrets in this thread, and computes it on their shadows too.

    Args:
        add: called for the same values in the same order at both servers.
        given: what sources gave, which is what a value is that was shared.
        know, see: told of what was shared and of each result, at P0.
    """

    def __init__(self, add: Add, given: list[Floats], know: Callable[[Floats], None], see: See) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._add, self._given, self._know, self._see = add, given, know, see
        self._shadows: WeakKeyDictionary[Storage, torch.Tensor | None] = WeakKeyDictionary()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = list(_secrets((args, kwargs)))
        for each in operands:
            self._first_seen(each)
        result = op(*args, **kwargs)
        if not operands:
            return result
        before = {each._storage for each in operands}
        made = [each for each in _secrets(result) if not each._storage.empty]
        aliases = [each.alias_info for each in op._schema.arguments]
        writes = any(each is not None and each.is_write for each in aliases)
        if not writes and all(each._storage in before for each in made):
            return result  # views
        # What is pending is not looked at: that would have the servers compute it, and not the dealer.
        values = [None if each._storage.pending else self._add(each._storage._whole().words) for each in made]
        if all(self._shadows.get(each._storage) is None for each in operands):  # not at P0
            for each in made:
                self._shadows[each._storage] = None
            return result
        wanted = op(*tree_map(self._shadow, args), **tree_map(self._shadow, kwargs))
        for secret, value, should in zip(
            tree_iter(result), _spread(result, made, values), tree_iter(wanted), strict=False
        ):
            if not isinstance(secret, SharedTensor) or secret._storage.empty:
                continue
            if secret._storage not in before:
                self._shadows[secret._storage] = _flat(secret, should)
            elif (flat := self._shadows[secret._storage]) is not None:
                _part(secret, flat).copy_(should)
            if value is not None and secret.classes is None:
                share = secret._storage._whole()
                got = _part(secret, torch.from_numpy(decode(value, share.frac).reshape(-1)))
                self._see(op._schema.name.removeprefix("aten::"), got.numpy(), should.to(torch.float64).numpy(), share)
        return result

    def _first_seen(self, secret: SharedTensor) -> None:
        """Give a storage that was not computed here the shadow of what was shared."""
        storage = secret._storage
        if storage in self._shadows or storage.empty:
            return
        if storage.pending is not None:
            raise UsageError("debug: nobody has read a value that was made before", hint="begin to debug before it")
        share = storage._whole()
        value = self._add(share.words)
        if value is None:
            self._shadows[storage] = None
            return
        floats = decode(value, share.frac)
        if storage.classes is not None:
            floats = floats.argmax(-1).astype(np.float64)
        for each in self._given:
            if each.shape == floats.shape and np.abs(each - floats).max(initial=0.0) <= 2.0 ** -(share.frac + 1):
                floats = each
                break
        self._know(floats)
        self._shadows[storage] = torch.from_numpy(np.array(floats, np.float64).reshape(-1))

    def _shadow(self, value: Any) -> Any:
        """What an operand of the operator is for its shadow."""
        if isinstance(value, SharedTensor):
            flat = self._shadows[value._storage]
            assert flat is not None  # noqa: S101  # at P0
            seen = _part(value, flat)
            return seen if value.dtype.is_floating_point else seen.to(value.dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(torch.float64)
        return torch.float64 if value in (torch.float32, torch.float16, torch.bfloat16) else value


def _secrets(values: Any) -> Iterator[SharedTensor]:
    return (each for each in tree_iter(values) if isinstance(each, SharedTensor))


def _spread(result: Any, made: list[SharedTensor], values: list[Any]) -> Iterator[Any]:
    """The values of all leaves of a result: nothing for those that are no secret."""
    of = {id(each): value for each, value in zip(made, values, strict=True)}
    return (of.get(id(each)) for each in tree_iter(result))


def _part(secret: SharedTensor, flat: torch.Tensor) -> torch.Tensor:
    """What a tensor shows of its storage."""
    place = secret.place
    return flat.as_strided(place.size, place.stride, place.offset)


def _flat(secret: SharedTensor, values: torch.Tensor) -> torch.Tensor:
    """Values as a whole storage that a tensor shows so."""
    place = secret.place
    last = sum((n - 1) * step for n, step in zip(place.size, place.stride, strict=True)) if values.numel() else -1
    flat = torch.zeros(place.offset + last + 1, dtype=torch.float64)
    flat.as_strided(place.size, place.stride, place.offset).copy_(values)
    return flat
