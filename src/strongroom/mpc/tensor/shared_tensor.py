"""A `torch.Tensor` whose elements are secret.

- An operator has a protocol or it raises: none falls back to revealing. `reveal` alone opens a secret.
- What PyTorch would write a secret's share into, or read a number from, raises: plain tensors, Python numbers, files.
- Views share a storage, and a write through one is seen by all of them.
- A result is owned by whoever owns an operand.
- A secret of a floating-point dtype is a fixed-point number. One of `bool` or `int64` has no fractional bits: what a
  comparison gave and what was counted. An index, also `int64`, is a row that is 1 at the index and 0 elsewhere, so that
  looking something up is a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch.utils._pytree import tree_iter, tree_map

from strongroom.errors import UsageError
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.pending import Pending
from strongroom.mpc.tensor.storage import Place, Storage
from strongroom.mpc.tensor.world import user_line
from strongroom.mpc.transcript import broadcast, shapes

DTYPES = (torch.float32, torch.float64)
WHOLE = (torch.bool, torch.int64)  # of secrets without fractional bits

_CPU = torch.device("cpu")
_NO_GRADIENT = "no gradient goes through a secret"
_ASK = "reveal it first, to whom may know it"
_TRACERS = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))
_RAW = {"apply_", "map_", "map2_", "set_", "grad"}  # what works on a tensor's memory or its graph, past its operators

Handler = Callable[..., Any]
# Operators by overload: those that rearrange, those that compute, and those that write their first argument's result.
VIEWS: set[object] = set()
HANDLERS: dict[object, Handler] = {}
WRITES: dict[object, object] = {}
HINTS: dict[str, str] = {}
# Operators that torch itself writes in terms of others, where nothing depends on a value.
APART: dict[object, Handler] = {}
# What modules call all the time, as an operator and its operands, past torch's own way to it: that takes longer than
# what a small network computes, as none of it is in the processor's cache by then.
DIRECT: dict[object, Callable[..., tuple[Any, ...]]] = {}


@dataclass(frozen=True)
class Typed:
    """A handler's result whose dtype does not follow from its operands.

    Attributes:
        classes: of an index: how many there are, along the last axis of the value.
    """

    value: Shared
    dtype: torch.dtype
    classes: int | None = None


def _refusing(name: str) -> Callable[..., NoReturn]:
    """A method that a secret does not have."""

    def refuse(self: SharedTensor, *args: object, **kwargs: object) -> NoReturn:
        hint = _NO_GRADIENT if name == "backward" else f"a secret is no number, no array and no file: {_ASK}"
        raise _refused(name, (self, args), hint)

    return refuse


class SharedTensor(torch.Tensor):
    """A secret tensor. Made by `share`, `own` and by computing on others.

    Its shape, dtype and strides are public; the dtype is that of a revealed value.
    """

    _storage: Storage
    _dtype: torch.dtype
    _view: torch.Tensor | None
    _turned: SharedTensor | None
    place: Place

    @staticmethod
    def __new__(
        cls, storage: Storage, place: Place, dtype: torch.dtype, view: torch.Tensor | None = None
    ) -> SharedTensor:
        """A tensor that lies at `place`: all of a storage, or what `view`, a tensor without elements, shows of it."""
        if torch.is_inference_mode_enabled():
            # A secret is never an inference tensor: torch refuses views of those, and writes, outside of that mode.
            with torch.inference_mode(False):
                return SharedTensor(storage, place, dtype, view)
        made: SharedTensor = torch.Tensor._make_wrapper_subclass(
            cls, place.size, strides=place.stride, storage_offset=place.offset, dtype=dtype, device=_CPU
        )
        made._storage, made.place, made._dtype, made._view, made._turned = storage, place, dtype, view, None
        return made

    @classmethod
    def of(cls, storage: Storage, shape: tuple[int, ...], dtype: torch.dtype) -> SharedTensor:
        """All of a storage."""
        return cls(storage, _all_of(tuple(shape)), dtype)

    @classmethod
    def seen(cls, storage: Storage, meta: torch.Tensor) -> SharedTensor:
        """What a tensor without elements shows of a storage."""
        place = Place(tuple(meta.shape), meta.stride(), int(meta.storage_offset()))
        return cls(storage, place, meta.dtype, meta)

    @property
    def _meta(self) -> torch.Tensor:
        """A tensor like this one, without elements."""
        # Kept where it is a view alone: what is made while torch traces or transforms a program must not outlive that.
        return torch.empty(self.place.size, dtype=self._dtype, device="meta") if self._view is None else self._view

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the program believes it to be; its shares are in this process's memory."""
        return self._storage.device or _CPU

    @property
    def owners(self) -> frozenset[str]:
        """Whose secret it is."""
        return self._storage.owners

    @property
    def classes(self) -> int | None:
        """Of an index, how many there are; of anything else nothing."""
        return self._storage.classes

    def read(self, *, raw: bool = False) -> Shared:
        """The value as a number; with `raw`, with as many fractional bits as it happens to have."""
        value = self._storage.read(self.place, raw=raw)
        if self.classes is not None:
            value = number_of(value)
        if raw or self._dtype in DTYPES:
            return value
        frac = value.party.settings.frac
        return value.shifted(frac, frac)

    def read_at(self, frac: int) -> Shared:
        """A fraction with that many fractional bits, or with as many as it has."""
        return self.read() if self._dtype not in DTYPES else self._storage.read_at(self.place, frac)

    def rectified(self) -> Shared:
        """max(value, 0)."""
        return self._storage.rectified(self.place)

    def turned(self) -> SharedTensor:
        """A matrix transposed: the same view each time, as weights are asked for it at every call."""
        if self._turned is None:
            self._turned = SharedTensor.seen(self._storage, self._meta.t())
        return self._turned

    def rows(self) -> Shared:
        """The value as it is kept: an index with its axis of classes, a number with any fractional bits.

        Of all of a storage it is the same object until the next write, and in copies.
        """
        return self._storage.read(self.place, raw=True)

    def as_rows(self) -> SharedTensor:
        """Of an index: rows of 0 and 1 along one more axis, as integers."""
        made = Storage(self._storage.world, self.rows(), self.owners)
        made.device = self._storage.device
        return SharedTensor.of(made, self.rows().shape, torch.int64)

    def on(self, device: torch.device) -> SharedTensor:
        """The same value where the program wants it. Its shares stay where they are: only `device` changes."""
        moved = self._storage.copied(self.place)
        moved.device = None if device == _CPU else device
        return SharedTensor.of(moved, self.place.size, self._dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SharedTensor(shape={self.place.size}, owners={{{', '.join(sorted(self.owners))}}})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    __str__ = __repr__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling() or (torch._C._len_torch_dispatch_stack() and _is_traced()):
            # What is drawn while a program is traced would be drawn once, for every run of what was traced.
            raise UsageError("compile: secrets are not traced or compiled", hint="run the module as it is")
        if getattr(function, "__name__", "") in _RAW:
            raise _refused(function.__name__, args, "a secret has no memory that torch can work in, and no gradient")
        if function in (torch.Tensor.to, torch.Tensor.cpu) and type(args[0]) is cls and args[0].device != _CPU:
            # To torch, which knows no name of a device but the CPU's, this is no move.
            wanted = _CPU if function is torch.Tensor.cpu else torch._C._nn._parse_to(*args[1:], **(kwargs or {}))[0]
            args = (args[0].on(_CPU), *args[1:]) if wanted == _CPU else args
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return cls.__torch_function__(function, types, args, kwargs)
        # No gradient goes through a secret, so none is prepared; and autograd would take operators apart that arrive
        # here whole below it.
        with torch._C.DisableTorchFunctionSubclass(), torch._C._AutoDispatchBelowAutograd():
            direct = DIRECT.get(function)
            if direct is not None and not torch._C._len_torch_dispatch_stack() and not torch._C._is_tracing():
                operands = direct(*args, **(kwargs or {}))
                if all(type(each) is cls for each in operands[1:]):
                    return cls.__torch_dispatch__(operands[0], (cls,), operands[1:])
            if not torch.is_grad_enabled():
                return function(*args, **(kwargs or {}))
            with torch.no_grad():
                return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        for each in types:
            if each is not cls and not issubclass(each, cls) and each not in (torch.Tensor, torch.nn.Parameter):
                raise _refused(str(op), args, f"there is a {each.__name__} too: secrets are not traced or compiled")
        if any(isinstance(each, torch.Tensor) and not each.is_cpu and type(each) is not cls for each in args):
            # What everybody knows may lie on an accelerator; shares are computed on the CPU.
            args, kwargs = tree_map(_at_hand, (args, kwargs))
        if op in VIEWS and isinstance(args[0], cls):
            return _view(op, args, kwargs)
        written = op in WRITES
        handler = HANDLERS.get(WRITES.get(op, op))
        if written and not isinstance(args[0], cls):
            raise _unknown(op, args)
        secrets = [*_secrets(args), *_secrets(kwargs.values())]
        if handler is None and written:
            # What is made of other operators is computed, then written.
            result = WRITES[op](*args, **kwargs)  # type: ignore[operator]
            _write(args[0], result, secrets)
            return args[0]
        if handler is None:
            taken_apart = APART.get(op, op.decompose)
            result = taken_apart(*args, **kwargs)
            if result is NotImplemented:
                raise _unknown(op, args)
            return result
        if any(each._storage.world is not secrets[0]._storage.world for each in secrets):
            raise _refused(f"{op}: secrets of two worlds", args)
        try:
            value = handler(*args, **kwargs)
            if written:
                _write(args[0], value, secrets)
                return args[0]
            return _wrapped(value, secrets, lambda: _dtype_of(op, args, kwargs, secrets))
        except UsageError as error:
            if "; at " in error.message:
                raise  # by an operator that this one is made of
            raise UsageError(f"{error.message}; at {_line()}", hint=error.hint) from None

    # What would show a share, or let the program depend on a secret

    __bool__, __int__, __float__, __complex__, __index__ = map(_refusing, ("bool", "int", "float", "complex", "index"))
    __contains__ = _refusing("in")
    __array__, __dlpack__, __dlpack_device__ = map(_refusing, ("array", "dlpack", "dlpack"))
    __reduce__, __reduce_ex__ = map(_refusing, ("pickle", "pickle"))
    item, tolist, numpy = map(_refusing, ("item", "tolist", "numpy"))
    storage, untyped_storage = map(_refusing, ("storage", "storage"))
    share_memory_, data_ptr = map(_refusing, ("share_memory_", "data_ptr"))
    backward = _refusing("backward")
    __hash__ = torch.Tensor.__hash__

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise _refused("requires_grad", (self,), _NO_GRADIENT)
        return self

    @property
    def requires_grad(self) -> bool:
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def data(self) -> SharedTensor:
        return SharedTensor(self._storage, self.place, self._dtype, self._view)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        # torch would change the shape and dtype outside, and leave the value as it is.
        if not isinstance(value, SharedTensor) or value.place != self.place or value._dtype != self._dtype:
            raise _refused("data", (self, value), "write with copy_ instead")
        self._storage, self._view, self._turned = value._storage, value._view, None

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTensor:
        copied = SharedTensor.of(self._storage.copied(self.place), self.place.size, self._dtype)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        memo[id(self)] = copied
        return copied


def _secrets(values: Iterable[Any]) -> Iterator[SharedTensor]:
    """Those among an operator's arguments, which are tensors or lists of them."""
    for each in values:
        if isinstance(each, SharedTensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _secrets(each)


@lru_cache(1024)
def _all_of(shape: tuple[int, ...]) -> Place:
    """Where a tensor in C order lies, as torch says it."""
    return Place(shape, tuple(prod(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape))))


def _is_traced() -> bool:
    """Whether what runs is recorded, to be run again without this program."""
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)


def _view(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The same storage, seen as torch sees a tensor without elements after this operator."""
    source = args[0]
    metas = op(source._meta, *args[1:], **kwargs)
    if isinstance(metas, torch.Tensor):
        return SharedTensor.seen(source._storage, metas)
    return [SharedTensor.seen(source._storage, meta) for meta in metas]


def number_of(rows: Shared) -> Shared:
    """The integers that rows which are 1 at an index stand for; no round."""
    with rows.party.operation("number of", shapes(rows.shape)):
        if rows.party.is_dealer:
            return Shared.of_shape(rows.party, rows.shape[:-1], 0)
        return Shared(rows.party, (rows.words * np.arange(rows.shape[-1], dtype=np.uint64)).sum(-1), 0)


def _dtype_of(op: Any, args: Any, kwargs: Any, secrets: list[SharedTensor]) -> torch.dtype:
    """Of the first result: the secrets', or where some are no fractions as torch has it of tensors without elements."""
    if all(each._dtype in DTYPES for each in secrets):
        return secrets[0]._dtype

    def without(value: Any) -> Any:
        return value._meta if isinstance(value, SharedTensor) else value.to("meta") if _is_plain(value) else value

    result = op(*tree_map(without, args), **tree_map(without, kwargs))
    found: torch.dtype = next(each.dtype for each in tree_iter(result) if isinstance(each, torch.Tensor))
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, SharedTensor)


def _at_hand(value: Any) -> Any:
    return value.cpu() if _is_plain(value) and not value.is_meta else value


def _wrapped(result: Any, secrets: list[SharedTensor], dtype: Callable[[], torch.dtype]) -> Any:
    """Results of a handler as tensors: None stands for one that is not computed."""
    if isinstance(result, tuple):
        return tuple(_wrapped(each, secrets, dtype) for each in result)
    if isinstance(result, torch.Tensor):
        return result
    owners = frozenset[str]().union(*(each.owners for each in secrets))
    world = secrets[0]._storage.world
    shape: tuple[int, ...]
    if result is None:
        storage, shape, of = Storage(world, None, owners), (0,), secrets[0]._dtype
    elif isinstance(result, Pending):
        storage, shape, of = Storage(world, result, owners), result.shape, dtype()
    else:
        made = result if isinstance(result, Typed) else Typed(result, dtype())
        value, of = _as_kept(made.value, made.dtype), made.dtype
        storage = Storage(world, value, owners, classes=made.classes)
        shape = value.shape if made.classes is None else value.shape[:-1]
    for each in secrets:
        storage.device = storage.device or each._storage.device
    return SharedTensor.of(storage, shape, of)


def _as_kept(value: Shared, dtype: torch.dtype) -> Shared:
    """With fractional bits exactly where the dtype has a fraction."""
    if dtype not in DTYPES and (value.frac or dtype not in WHOLE):
        raise UsageError(f"dtype: got a result of {dtype}, wanted one of a floating-point dtype", hint="use .float()")
    frac = value.party.settings.frac
    return value.shifted(frac, frac) if dtype in DTYPES and not value.frac else value


def _write(target: SharedTensor, result: Any, secrets: list[SharedTensor]) -> None:
    """Write a handler's result, or a tensor, where a tensor lies."""
    size, dtype = target.place.size, target._dtype
    if isinstance(result, SharedTensor):
        result = Typed(result.rows(), result._dtype, result.classes)
    value, classes = (result.value, result.classes) if isinstance(result, Typed) else (result, None)
    if classes is not None and target.classes is None:
        value, classes = number_of(value), None
    if classes != target.classes:
        raise UsageError(
            f"write: got {'a number' if classes is None else f'an index below {classes}'}, "
            f"wanted an index below {target.classes}"
        )
    value = _as_kept(value, dtype)
    whole = (*size, *([] if classes is None else [classes]))
    if broadcast("write", whole, value.shape) != whole:
        raise UsageError(f"write: got shape {value.shape[: len(value.shape) - (classes is not None)]}, wanted {size}")
    target._storage.write(target.place, value if value.shape == whole else value.broadcast(whole))
    for each in secrets:
        target._storage.add_owners(each.owners)


def _unknown(op: Any, args: Any) -> UsageError:
    """An operator without a protocol. What it would write to, if to anything, is a plain tensor."""
    schema = op._schema
    written = any(each.alias_info is not None and each.alias_info.is_write for each in schema.arguments)
    plain = f"a secret cannot be written into a plain tensor: {_ASK}" if written else ""
    return _refused(f"{op}: has no protocol for secrets", args, HINTS.get(schema.name.removeprefix("aten::"), plain))


def _refused(what: str, args: Any, hint: str = "") -> UsageError:
    kinds = [
        f"{'a secret' if isinstance(each, SharedTensor) else 'plain'} of shape {tuple(each.shape)}"
        for each in tree_iter(args)
        if isinstance(each, torch.Tensor)
    ]
    return UsageError(f"{what}: got {' and '.join(kinds)}; at {_line()}", hint=hint or None)


def _line() -> str:
    file, line = user_line()
    return f"{file}:{line}"
