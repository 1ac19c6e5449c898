"""How tensors and modules become secret, and how a secret is opened."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import index
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from strongroom.errors import UsageError
from strongroom.mpc.imports.keras_file import of_keras
from strongroom.mpc.party import SERVERS
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import PUBLIC, RESERVED
from strongroom.mpc.protocols.reveal import EVERYBODY, Permit, reveal_outside
from strongroom.mpc.protocols.reveal import reveal as open_shared
from strongroom.mpc.protocols.reveal import share as share_values
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.norms import fold
from strongroom.mpc.tensor.operators.registry import plain
from strongroom.mpc.tensor.shared_tensor import DTYPES, WHOLE, SharedTensor, number_of
from strongroom.mpc.tensor.storage import Folded, Owners, Storage
from strongroom.mpc.tensor.withheld import Withheld
from strongroom.mpc.tensor.world import World, current, led
from strongroom.mpc.transcript import shapes

M = TypeVar("M", bound=nn.Module)
Values = Callable[[], Any]
Source = int | str


@overload
def share(
    values: Values,
    *,
    source: Source,
    shape: int | Sequence[int],
    dtype: torch.dtype = ...,
    classes: int | None = ...,
    owners: Collection[str] | None = ...,
) -> SharedTensor: ...
@overload
def share(values: Values, *, source: Source, like: M, owners: Collection[str] | None = ...) -> M: ...
@led
def share(
    values: Values,
    *,
    source: Source,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    classes: int | None = None,
    like: nn.Module | None = None,
    owners: Collection[str] | None = None,
) -> Any:
    """Share a tensor, or all parameters and buffers of a module, that one server has; no message.

    Args:
        values: called at the source alone; gives a tensor, or a module or its state.
        source: the server's rank, or its name.
        shape: of a tensor; public.
        dtype: of a revealed value; of a floating-point number, or with integers or truths as values, torch.int64 or
            torch.bool.
        classes: of indices, how many there are: they look up what has as many rows, and go in as torch.int64. Each is
            kept as a row of as many elements.
        like: instead of a shape, a module of the same architecture, which every party has; its own values do not
            matter. The result is a copy of it.
        owners: whose secret it is besides the source's.

    Raises:
        UsageError: the values are of other shapes, not finite, or beyond the settings' bound; no index below `classes`.
    """
    return _Giver(values, _server(source), owners, clear=False).give(shape, dtype, like, classes)


@overload
def own(
    values: Values,
    *,
    source: Source,
    shape: int | Sequence[int],
    dtype: torch.dtype = ...,
    owners: Collection[str] | None = ...,
) -> SharedTensor: ...
@overload
def own(values: Values, *, source: Source, like: M, owners: Collection[str] | None = ...) -> M: ...
@led
def own(
    values: Values,
    *,
    source: Source,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    like: nn.Module | None = None,
    owners: Collection[str] | None = None,
) -> Any:
    """As `share`, of weights that the source goes on to hold in the clear: products with them cost half.

    What the other server learns of them is the same: nothing. A tensor so made that is not multiplied by as a weight is
    as any other secret.
    """
    return _Giver(values, _server(source), owners, clear=True).give(shape, dtype, like)


@dataclass
class _Giver:
    """What one server has, on its way to be secret."""

    values: Values
    source: int
    owners: Collection[str] | None
    clear: bool
    world: World = field(default_factory=current)

    def give(
        self, shape: int | Sequence[int] | None, dtype: torch.dtype, like: nn.Module | None, classes: int | None = None
    ) -> Any:
        if isinstance(self.values, nn.Module | torch.Tensor) or not callable(self.values):
            # Also where it would work: what only the source has, only the source is to be asked for.
            hint = "lambda: model" if like is not None else "lambda: values"
            raise UsageError(
                f"values: got {type(self.values).__name__}, wanted a function that gives them", hint=f"such as {hint}"
            )
        _check_owners(self.owners)
        if (shape is None) == (like is None):
            raise UsageError("share: wanted either shape=, of a tensor, or like=, a module of the same architecture")
        if dtype not in DTYPES and (self.clear or dtype not in WHOLE):
            raise UsageError(f"dtype: got {dtype}, wanted torch.float32 or torch.float64")
        if classes is not None and (dtype != torch.int64 or classes < 1):
            raise UsageError(f"classes: got {classes} of {dtype}, wanted at least one of torch.int64")
        if like is not None:
            return self._module(like)
        assert shape is not None  # noqa: S101  # one or the other
        size = _size(shape)
        if dtype in WHOLE:
            return self._whole(size, dtype, classes)
        return self._tensor(lambda: _array(self.values()), size, dtype)

    def _tensor(
        self, values: Callable[[], NDArray[np.float64]], shape: tuple[int, ...], dtype: torch.dtype
    ) -> SharedTensor:
        storage = Storage(
            self.world, self._shared(values, shape), self._names(), holder=self.source if self.clear else None
        )
        return SharedTensor.of(storage, shape, dtype)

    def _whole(self, shape: tuple[int, ...], dtype: torch.dtype, classes: int | None) -> SharedTensor:
        """Numbers without fractional bits; of an index, rows that are 1 at it."""
        frac = self.world.party.settings.frac

        def words() -> NDArray[np.float64]:
            numbers = _array(self.values())
            most = {torch.bool: 2, torch.int64: classes}[dtype]
            wrong = (numbers != np.rint(numbers)) | (most is not None and ((numbers < 0) | (numbers >= (most or 0))))
            if np.any(wrong):
                at = [int(i) for i in np.argwhere(wrong)[0]]
                wanted = "" if most is None else f" of 0 to {most - 1}"
                raise UsageError(f"values: the one at {at} is no integer{wanted}")
            rows = numbers if classes is None else numbers[..., None] == np.arange(classes)
            return np.ldexp(rows.astype(np.float64), -frac)  # as words, the numbers themselves

        value = self._shared(words, shape if classes is None else (*shape, classes)).shifted(0, 0)
        return SharedTensor.of(Storage(self.world, value, self._names(), classes=classes), shape, dtype)

    def _names(self) -> Owners:
        # The source stays one of them: what other owners allow, its own policy must allow too.
        return frozenset({NAMES[self.source], *(self.owners or ())})

    def _shared(self, values: Callable[[], NDArray[np.float64]], shape: tuple[int, ...]) -> Shared:
        party = self.world.party
        if not self.clear:
            return share_values(party, values, source=self.source, shape=shape)
        with party.operation("hold", shapes(shape), f"of {NAMES[self.source]}"):
            if party.rank != self.source:
                return Shared.of_shape(party, shape, party.settings.frac)
            return Shared(party, party.given(values, shape), party.settings.frac)

    def _module(self, like: nn.Module) -> nn.Module:
        here = self.world.party.rank == self.source and not self.world.party.dry
        like = of_keras(like)
        if not isinstance(like, nn.Module):
            raise UsageError(
                f"like: got {type(like).__name__}, wanted a module of the same architecture",
                hint="mpc.load_architecture makes one of a file, and of what torch.export made",
            )
        state: dict[str, NDArray[np.float64]] = _state(of_keras(self.values()), like) if here else {}
        made: dict[int, Any] = {}  # by the original's id, as deepcopy takes what is copied already
        for name, tensor in like.state_dict(keep_vars=True).items():
            if id(tensor) in made or not tensor.is_floating_point():
                continue
            given = partial(self._weight, state, name, tuple(tensor.shape))
            secret = self._tensor(given, tuple(tensor.shape), tensor.dtype)
            made[id(tensor)] = nn.Parameter(secret, requires_grad=False) if isinstance(tensor, nn.Parameter) else secret
        copied = copy.deepcopy(like, made)
        norms = [
            (name, module)
            for name, module in copied.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None
        ]
        for name, norm in norms:
            self._fold(norm, f"{name}." if name else "", state)
        for module in copied.modules() if norms else ():
            if isinstance(module, nn.Conv1d | nn.Conv2d) and isinstance(module.weight, SharedTensor):
                self.world.normalised_after.add(module.weight.rows())
        _ratchet_after(copied, self.world)
        return copied

    def _weight(
        self, state: Mapping[str, NDArray[np.float64]], name: str, shape: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """One of the module's, which can be shared; a message says which cannot."""
        found, settings = state[name], self.world.party.settings
        if found.shape != shape:
            raise UsageError(f"values: {name}: got shape {found.shape}, wanted {shape}", hint="is like= the same code?")
        most = float(np.abs(found).max(initial=0))  # NaN if one is
        if not math.isfinite(most):
            raise UsageError(f"values: {name}: got a number that is not finite", hint="did the training diverge?")
        if most >= 2.0**settings.bound:
            raise UsageError(
                f"values: {name}: one is out of range, wanted magnitudes below 2^{settings.bound}",
                hint="scale the values, or raise the bound in the settings",
            )
        return found

    def _fold(
        self, module: nn.modules.batchnorm._BatchNorm, prefix: str, state: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Share a batch normalisation's factor and summand too, which its source computes in the clear."""

        def folded(which: int) -> NDArray[np.float64]:
            weight, bias = (state.get(prefix + part) for part in ("weight", "bias"))
            return fold(weight, bias, state[prefix + "running_mean"], state[prefix + "running_var"], module.eps)[which]

        scale, shift = (self._shared(lambda i=i: folded(i), (module.num_features,)) for i in (0, 1))  # type: ignore[misc]
        parts = (module.weight, module.bias, module.running_mean)
        values = tuple(each.rows() for each in parts if isinstance(each, SharedTensor))
        assert isinstance(module.running_var, SharedTensor)  # noqa: S101  # made so above
        self.world.folded[module.running_var.rows()] = Folded(
            scale, shift, module.eps, values, self.source if self.clear else None
        )


def _ratchet_after(whole: nn.Module, world: World) -> None:
    """Tell the world when modules are called, whole or in part, and when the call is over, even by an exception."""

    def enter(module: nn.Module, args: Any) -> None:
        world.enter_module(module)

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        world.leave_module(module)

    for module in whole.modules():
        module.register_forward_pre_hook(enter, prepend=True)  # before any that may raise
        module.register_forward_hook(leave, always_call=True)


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
    return {name: _array(state[name], name) for name in wanted}


def _array(values: Any, name: str = "") -> NDArray[np.float64]:
    what = f"values: {name}:" if name else "values:"
    if isinstance(values, SharedTensor):
        raise UsageError(f"{what} got a secret, wanted plain ones")
    if isinstance(values, torch.Tensor) and not values.is_complex():
        return plain(values)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # whose message may quote them
        raise UsageError(f"{what} got {type(values).__name__}, wanted an array of real numbers") from None
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{what} got {array.dtype} values, wanted real numbers")
    return array.astype(np.float64, copy=False)


def _server(source: Source) -> int:
    """A server by its rank or its name."""
    rank = NAMES.index(source) if source in NAMES else source
    if not isinstance(rank, int) or rank not in SERVERS:
        raise UsageError(f"source: got {source!r}, wanted 0 or 1", hint="a client sends its shares to the servers")
    return rank


def _size(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        size = (index(shape),) if not isinstance(shape, Sequence) else tuple(map(index, shape))
    except TypeError:
        size = (-1,)
    if any(each < 0 for each in size):
        raise UsageError(f"shape: got {shape!r}, wanted sizes such as (1, 3, 32, 32)")
    return size


def _check_owners(owners: Collection[str] | None) -> None:
    if owners is None:
        return
    if isinstance(owners, str) or not owners or not all(isinstance(each, str) and each for each in owners):
        raise UsageError(f"owners: got {owners!r}, wanted some names")
    if reserved := sorted(set(owners) & (RESERVED - set(NAMES[:2]))):
        raise UsageError(f"owners: got {reserved[0]!r}, wanted names of owners", hint="that word means something else")


Recipient = int | str


@led
def reveal(x: SharedTensor, *, to: Recipient | Collection[Recipient] | None = None, public: bool = False) -> Any:
    """Open a secret to whom it names, and to nobody else; the only opening of a secret.

    Each server asks its owners' policy and writes its log before its share leaves. It is recorded in the world's
    `reveals`, with the line of the program that asked for it.

    Args:
        to: servers, by rank or name, and the name of the client whose request is being served.
        public: instead, all three parties: only such a value may steer the program. The dealer, which works ahead,
            waits for it.

    Returns:
        a plain tensor at the parties named; elsewhere a `Withheld` that raises when it is used.

    Raises:
        RefusedError: a policy does not allow it; the epoch has ended, for all, and no share has left.
    """
    if not isinstance(x, SharedTensor):
        raise UsageError(f"reveal: got {type(x).__name__}, wanted a secret tensor")
    if (to is None) != public:
        raise UsageError("reveal: wanted either to=, its recipients, or public=True", hint="there is no default")
    world = current()
    if x._storage.world is not world:
        raise UsageError("reveal: the secret is of another world", hint="a new epoch shares its values anew")
    servers, client = ((), None) if to is None else _recipients(to, world)
    names = (PUBLIC,) if public else (*(NAMES[rank] for rank in servers), *([client] if client else []))
    value = x._storage.read(x.place)
    if x.classes is not None:
        value = number_of(value)
    planned = world.planned(x.place.size, x.owners, names)
    facts = ("of", *sorted(x.owners), "for", *names)
    permit: Permit | None = partial(world.permit, planned)
    values = None
    if servers or public:
        values = open_shared(value, to=EVERYBODY if public else servers, facts=facts, permit=permit)
        permit = None  # once
    if client is not None:
        assert world.serving is not None  # noqa: S101  # it is the recipient
        world.serving.answer(reveal_outside(value, facts=facts, permit=permit), x.place.size)
    world.reveals.append(planned)
    if values is None:
        return Withheld(x.place.size, x._dtype, names)
    return torch.from_numpy(values).to(x._dtype)


def _recipients(to: Recipient | Collection[Recipient], world: World) -> tuple[tuple[int, ...], str | None]:
    """Servers by rank, and a client."""
    asked = [to] if isinstance(to, int | str) else list(to)
    servers = {NAMES.index(each) if isinstance(each, str) else each for each in asked if each in (*SERVERS, *NAMES[:2])}
    others = {each for each in asked if each not in (*SERVERS, *NAMES[:2])}
    serving = world.serving.client if world.serving is not None else None
    if not asked or others - {serving}:
        wrong = ", ".join(map(repr, sorted(others - {serving}, key=str))) or "nobody"
        raise UsageError(
            f"to: got {wrong}, wanted 0, 1{f', {serving!r}' if serving else ''} or several of them",
            hint="public=True reveals to the dealer too; a client's name is a recipient while its request is served",
        )
    return tuple(sorted(servers)), serving if others else None
