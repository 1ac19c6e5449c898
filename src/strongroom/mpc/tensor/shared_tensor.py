"""A `torch.Tensor` whose elements are secret.

- An operator has a protocol or it raises: none falls back to revealing. `reveal` alone opens a secret.
- What PyTorch would write a secret's share into, or read a number from, raises: plain tensors, Python numbers, files.
- Views share a storage, and a write through one is seen by all of them.
- A result is owned by whoever owns an operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Self

import torch
from torch.utils._pytree import tree_iter

from strongroom.errors import UsageError
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.storage import Place, Storage
from strongroom.mpc.tensor.world import user_line
from strongroom.mpc.transcript import broadcast

DTYPES = (torch.float32, torch.float64)

_NO_GRADIENT = "no gradient goes through a secret"
_ASK = "reveal it first, to whom may know it"
_RAW = {"apply_", "map_", "map2_", "set_", "grad"}  # what works on a tensor's memory or its graph, past its operators

Handler = Callable[..., Any]
# Operators by overload: those that rearrange, those that compute, and those that write their first argument's result.
VIEWS: set[object] = set()
HANDLERS: dict[object, Handler] = {}
WRITES: dict[object, object] = {}
HINTS: dict[str, str] = {}


def _refusing(name: str) -> Callable[..., NoReturn]:
    """A method that a secret does not have."""

    def refuse(self: SharedTensor, *args: object, **kwargs: object) -> NoReturn:
        hint = _NO_GRADIENT if name == "backward" else f"a secret is no number, no array and no file: {_ASK}"
        raise _refused(name, (self, args), hint)

    return refuse


class SharedTensor(torch.Tensor):
    """A secret tensor. Made by `share`, `own` and by computing on others.

    Its shape, dtype and strides are public. The elements are fixed-point numbers whatever the dtype says; it says what
    a revealed value is.
    """

    _storage: Storage
    _meta: torch.Tensor

    @staticmethod
    def __new__(cls, storage: Storage, meta: torch.Tensor) -> SharedTensor:
        """A tensor that lies in `storage` as `meta`, a tensor without elements, says."""
        made: SharedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
        )
        made._storage, made._meta = storage, meta
        return made

    @classmethod
    def of(cls, storage: Storage, shape: tuple[int, ...], dtype: torch.dtype) -> SharedTensor:
        """All of a storage."""
        return cls(storage, torch.empty(shape, dtype=dtype, device="meta"))

    @property
    def owners(self) -> frozenset[str]:
        """Whose secret it is."""
        return self._storage.owners

    @property
    def place(self) -> Place:
        return Place(tuple(self._meta.shape), self._meta.stride(), int(self._meta.storage_offset()))

    def read(self, *, raw: bool = False) -> Shared:
        """The value. Raises UsageError if it is none that arithmetic is done on."""
        if self._meta.dtype not in DTYPES:
            raise _refused("arithmetic", (self,), "an index can be rearranged and revealed, no more")
        return self._storage.read(self.place, raw=raw)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SharedTensor(shape={tuple(self._meta.shape)}, owners={{{', '.join(sorted(self.owners))}}})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    __str__ = __repr__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _RAW:
            raise _refused(function.__name__, args, "a secret has no memory that torch can work in, and no gradient")
        # No gradient goes through a secret, so none is prepared; and autograd would take operators apart that arrive
        # here whole below it.
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        for each in types:
            if not issubclass(each, cls) and each not in (torch.Tensor, torch.nn.Parameter):
                raise _refused(str(op), args, f"there is a {each.__name__} too: secrets are not traced or compiled")
        if op in VIEWS and isinstance(args[0], cls):
            return _view(op, args, kwargs)
        written = op in WRITES
        handler = HANDLERS.get(WRITES.get(op, op))
        if handler is None or (written and not isinstance(args[0], cls)):
            result = NotImplemented if written else op.decompose(*args, **kwargs)
            if result is NotImplemented:
                raise _unknown(op, args)
            return result
        secrets = list(_secrets((args, kwargs)))
        if any(each._storage.world is not secrets[0]._storage.world for each in secrets):
            raise _refused(f"{op}: secrets of two worlds", args)
        try:
            value = handler(*args, **kwargs)
            if written:
                _write(args[0], value, secrets)
        except UsageError as error:
            raise UsageError(f"{error.message}; at {_line()}", hint=error.hint) from None
        return args[0] if written else _wrapped(value, secrets)

    # What would show a share, or let the program depend on a secret

    __bool__, __int__, __float__, __complex__, __index__ = map(_refusing, ("bool", "int", "float", "complex", "index"))
    __lt__, __le__, __gt__, __ge__ = map(_refusing, ("<", "<=", ">", ">="))
    __eq__, __ne__, __contains__ = map(_refusing, ("==", "!=", "in"))
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
        return SharedTensor(self._storage, self._meta)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        # torch would change the shape and dtype outside, and leave the value as it is.
        if not isinstance(value, SharedTensor) or value._storage is not self._storage or value.place != self.place:
            raise _refused("data", (self, value), "write with copy_ instead")

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTensor:
        copied = SharedTensor.of(self._storage.copied(self.place), self.place.size, self._meta.dtype)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        memo[id(self)] = copied
        return copied


def _secrets(values: Any) -> Iterator[SharedTensor]:
    return (each for each in tree_iter(values) if isinstance(each, SharedTensor))


def _view(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The same storage, seen as torch sees a tensor without elements after this operator."""
    source = args[0]
    metas = op(source._meta, *args[1:], **kwargs)
    if isinstance(metas, torch.Tensor):
        return SharedTensor(source._storage, metas)
    return [SharedTensor(source._storage, meta) for meta in metas]


def _wrapped(result: Any, secrets: list[SharedTensor]) -> Any:
    """Results of a handler as tensors: None stands for one that is not computed."""
    if isinstance(result, tuple):
        return tuple(_wrapped(each, secrets) for each in result)
    if isinstance(result, torch.Tensor):
        return result
    owners = frozenset[str]().union(*(each.owners for each in secrets))
    world, dtype = secrets[0]._storage.world, secrets[0]._meta.dtype
    if result is None:
        return SharedTensor.of(Storage(world, None, owners), (0,), dtype)
    # A value without fractional bits is an index.
    return SharedTensor.of(Storage(world, result, owners), result.shape, dtype if result.frac else torch.int64)


def _write(target: SharedTensor, value: Shared, secrets: list[SharedTensor]) -> None:
    size = target.place.size
    if target._meta.dtype not in DTYPES:
        raise UsageError("write: got an index to write to", hint="an index can be rearranged and revealed, no more")
    if broadcast("write", size, value.shape) != size:
        raise UsageError(f"write: got shape {value.shape}, wanted {size}")
    target._storage.write(target.place, value if value.shape == size else value.broadcast(size))
    for each in secrets:
        target._storage.add_owners(each.owners)


def _unknown(op: Any, args: Any) -> UsageError:
    """An operator without a protocol. What it would write to, if to anything, is a plain tensor."""
    schema = op._schema
    written = any(each.alias_info is not None and each.alias_info.is_write for each in schema.arguments)
    hint = f"a secret cannot be written into a plain tensor: {_ASK}" if written else ""
    return _refused(
        f"{op}: has no protocol for secrets", args, hint or HINTS.get(schema.name.removeprefix("aten::"), "")
    )


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
