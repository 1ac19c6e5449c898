"""How tensors and modules become secret, and how a secret is opened."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from strongroom.errors import UsageError
from strongroom.mpc.party import SERVERS
from strongroom.mpc.peer import NAMES
from strongroom.mpc.protocols.reveal import reveal as open_shared
from strongroom.mpc.protocols.reveal import share as share_values
from strongroom.mpc.ring import encode
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.layers import fold
from strongroom.mpc.tensor.operators import plain
from strongroom.mpc.tensor.shared_tensor import DTYPES, SharedTensor
from strongroom.mpc.tensor.storage import Folded, Owners, Storage
from strongroom.mpc.tensor.world import Reveal, Withheld, World, current, user_line
from strongroom.mpc.transcript import shapes

M = TypeVar("M", bound=nn.Module)
Values = Callable[[], Any]


@overload
def share(
    values: Values, *, source: int, shape: Sequence[int], dtype: torch.dtype = ..., owners: Collection[str] | None = ...
) -> SharedTensor: ...
@overload
def share(values: Values, *, source: int, like: M, owners: Collection[str] | None = ...) -> M: ...
def share(
    values: Values,
    *,
    source: int,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    like: nn.Module | None = None,
    owners: Collection[str] | None = None,
) -> Any:
    """Share a tensor, or all parameters and buffers of a module, that one server has; no message.

    Args:
        values: called at the source alone; gives a tensor, or a module or its state.
        source: the server's rank.
        shape: of a tensor; public.
        dtype: of a revealed value.
        like: instead of a shape, a module of the same architecture, which every party has; its own values do not
            matter. The result is a copy of it.
        owners: whose secret it is; by default the source's.

    Raises:
        UsageError: the values are of other shapes, not finite, or beyond the settings' bound.
    """
    return _Giver(values, source, owners, clear=False).give(shape, dtype, like)


@overload
def own(
    values: Values, *, source: int, shape: Sequence[int], dtype: torch.dtype = ..., owners: Collection[str] | None = ...
) -> SharedTensor: ...
@overload
def own(values: Values, *, source: int, like: M, owners: Collection[str] | None = ...) -> M: ...
def own(
    values: Values,
    *,
    source: int,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    like: nn.Module | None = None,
    owners: Collection[str] | None = None,
) -> Any:
    """As `share`, of weights that the source goes on to hold in the clear: products with them cost half.

    What the other server learns of them is the same: nothing. A tensor so made that is not multiplied by as a weight is
    as any other secret.
    """
    return _Giver(values, source, owners, clear=True).give(shape, dtype, like)


@dataclass
class _Giver:
    """What one server has, on its way to be secret."""

    values: Values
    source: int
    owners: Collection[str] | None
    clear: bool
    world: World = field(default_factory=current)

    def give(self, shape: Sequence[int] | None, dtype: torch.dtype, like: nn.Module | None) -> Any:
        if self.source not in SERVERS:
            raise UsageError(
                f"source: got {self.source}, wanted 0 or 1", hint="a client sends its shares to the servers"
            )
        if isinstance(self.owners, str) or (self.owners is not None and not self.owners):
            raise UsageError(f"owners: got {self.owners!r}, wanted some names")
        if (shape is None) == (like is None):
            raise UsageError("share: wanted either shape=, of a tensor, or like=, a module of the same architecture")
        if dtype not in DTYPES:
            raise UsageError(f"dtype: got {dtype}, wanted torch.float32 or torch.float64")
        if like is not None:
            return self._module(like)
        assert shape is not None  # noqa: S101  # one or the other
        return self._tensor(lambda: _array(self.values()), tuple(shape), dtype)

    def _tensor(
        self, values: Callable[[], NDArray[np.float64]], shape: tuple[int, ...], dtype: torch.dtype
    ) -> SharedTensor:
        storage = Storage(
            self.world, self._shared(values, shape), self._names(), holder=self.source if self.clear else None
        )
        return SharedTensor.of(storage, shape, dtype)

    def _names(self) -> Owners:
        return frozenset(self.owners if self.owners is not None else [NAMES[self.source]])

    def _shared(self, values: Callable[[], NDArray[np.float64]], shape: tuple[int, ...]) -> Shared:
        party = self.world.party
        if not self.clear:
            return share_values(party, values, source=self.source, shape=shape)
        with party.operation("hold", shapes(shape), f"of {NAMES[self.source]}"):
            if party.rank != self.source:
                return Shared.of_shape(party, shape, party.settings.frac)
            words = encode(values(), party.settings.frac, party.settings.bound)
            if words.shape != shape:
                raise UsageError(f"values: got shape {words.shape}, wanted {shape}")
            return Shared(party, words, party.settings.frac)

    def _module(self, like: nn.Module) -> nn.Module:
        here = self.world.party.rank == self.source
        state: dict[str, NDArray[np.float64]] = _state(self.values(), like) if here else {}
        made: dict[int, Any] = {}  # by the original's id, as deepcopy takes what is copied already
        for name, tensor in like.state_dict(keep_vars=True).items():
            if id(tensor) in made or not tensor.is_floating_point():
                continue
            secret = self._tensor(lambda name=name: state[name], tuple(tensor.shape), tensor.dtype)  # type: ignore[misc]
            made[id(tensor)] = nn.Parameter(secret, requires_grad=False) if isinstance(tensor, nn.Parameter) else secret
        copied = copy.deepcopy(like, made)
        for name, module in copied.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                self._fold(module, f"{name}." if name else "", state)
        return copied

    def _fold(
        self, module: nn.modules.batchnorm._BatchNorm, prefix: str, state: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Share a batch normalisation's factor and summand too, which its source computes in the clear."""

        def folded(which: int) -> NDArray[np.float64]:
            weight, bias = (state.get(prefix + part) for part in ("weight", "bias"))
            return fold(weight, bias, state[prefix + "running_mean"], state[prefix + "running_var"], module.eps)[which]

        scale, shift = (self._shared(lambda i=i: folded(i), (module.num_features,)) for i in (0, 1))  # type: ignore[misc]
        parts = (module.weight, module.bias, module.running_mean, module.running_var)
        storages = tuple(each._storage for each in parts if isinstance(each, SharedTensor))
        assert isinstance(module.running_var, SharedTensor)  # noqa: S101  # made so above
        counted = tuple((each, each.writes) for each in storages)
        module.running_var._storage.folded = Folded(scale, shift, module.eps, counted)


def _state(values: Any, like: nn.Module) -> dict[str, NDArray[np.float64]]:
    """A module's values by name, with the names of `like`."""
    state = values.state_dict() if isinstance(values, nn.Module) else values
    if not isinstance(state, Mapping):
        raise UsageError(f"values: got {type(values).__name__}, wanted a module or its state")
    wanted = {name: tensor for name, tensor in like.state_dict().items() if tensor.is_floating_point()}
    missing, more = wanted.keys() - state.keys(), state.keys() - like.state_dict().keys()
    if missing or more:
        raise UsageError(
            f"values: got {sorted(more)[:3]} and not {sorted(missing)[:3]}, wanted the names of like=",
            hint="build both with the same code",
        )
    return {name: _array(state[name]) for name in wanted}


def _array(values: Any) -> NDArray[np.float64]:
    if isinstance(values, SharedTensor):
        raise UsageError("values: got a secret, wanted plain ones")
    return plain(values) if isinstance(values, torch.Tensor) else np.asarray(values, np.float64)


def reveal(x: SharedTensor, *, to: int | Collection[int]) -> Any:
    """Open a secret to the servers named, and to nobody else; the only opening of a secret.

    It is recorded in the world's `reveals`, with the line of the program that asked for it.

    Returns:
        a plain tensor at the servers named; elsewhere, the dealer included, a `Withheld` that raises when it is used.
    """
    if not isinstance(x, SharedTensor):
        raise UsageError(f"reveal: got {type(x).__name__}, wanted a secret tensor")
    world = current()
    receivers = [to] if isinstance(to, int) else sorted(set(to))
    if x._storage.world is not world:
        raise UsageError("reveal: the secret is of another world")
    values = open_shared(x._storage.read(x.place), to=receivers)
    names = tuple(NAMES[rank] for rank in receivers)
    world.reveals.append(Reveal(x.place.size, x.owners, names, *user_line()))
    if values is None:
        return Withheld(x.place.size, x._meta.dtype, names)
    return torch.from_numpy(values).to(x._meta.dtype)
