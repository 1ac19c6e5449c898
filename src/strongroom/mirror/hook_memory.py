"""Arrays and tensors that share memory, kept so that they share it again.

Each is bytes from one address to another. What lies within memory that is seen to elsewhere (a parameter, its gradient,
data that have not changed) is kept as a view of that; where several overlap otherwise, their memory is kept once.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from strongroom.errors import UsageError
from strongroom.mirror.torch import _NAMES, _TYPES, pack

PLAIN: Final = "biufcSUmM"  # kinds of NumPy's types that are kept


class Base(NamedTuple):
    """Memory that is seen to elsewhere: how to find it again, and what holds it."""

    ref: tuple[str, int]
    value: Any


class Kept(NamedTuple):
    """An array or tensor to be kept: `made` becomes what is kept of it."""

    made: list[Any]
    number: int
    value: Any
    path: str


def is_kept(value: Any) -> bool:
    """Whether an array or tensor is of a kind that can be kept."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in PLAIN
    odd = value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_nested
    return not odd and value.dtype in _TYPES


def size(value: Any) -> int:
    """Bytes."""
    return int(value.nbytes) if isinstance(value, np.ndarray) else value.numel() * value.element_size()


def flat_bytes(value: Any) -> npt.NDArray[np.uint8]:
    """The bytes of an array or tensor of CPU memory or any other, in C order; a copy only where it must be one."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)


def _layout(value: Any) -> tuple[str, str, list[int], list[int], int]:
    """(library, type, shape, strides in bytes, address)."""
    if isinstance(value, np.ndarray):
        address = value.__array_interface__["data"][0]
        return "numpy", value.dtype.str, [*value.shape], [*value.strides], address
    item = value.element_size()
    return "torch", _TYPES[value.dtype], [*value.shape], [one * item for one in value.stride()], value.data_ptr()


class _Extent(NamedTuple):
    device: str
    low: int
    high: int


def _extent(value: Any) -> _Extent:
    _, _, shape, strides, address = _layout(value)
    device = "cpu" if isinstance(value, np.ndarray) else str(value.device)
    if 0 in shape:
        return _Extent(device, address, address)
    item = value.dtype.itemsize
    reach = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    return _Extent(
        device, address + sum(one for one in reach if one < 0), address + sum(one for one in reach if one > 0) + item
    )


def _gives(base: Any, value: Any) -> bool:
    """Whether `view` can make one of the other."""
    if isinstance(base, np.ndarray):
        return bool(base.flags.c_contiguous)
    return isinstance(value, torch.Tensor) or (base.is_cpu and base.is_contiguous())


def settle(kept: Sequence[Kept], bases: Iterable[Base]) -> list[Any]:
    """Decide how each is kept, and say so in its `made`; the memory that several share.

    Raises:
        UsageError: some share memory in a way that cannot be kept.
    """
    held = sorted((_extent(base.value), base) for base in _distinct(bases))
    starts = [extent for extent, _ in held]
    alone: list[tuple[_Extent, Kept]] = []
    for one in kept:
        mine = _extent(one.value)
        if mine.low == mine.high:
            _keep_itself(one)
            continue
        at = bisect.bisect_right(starts, _Extent(mine.device, mine.low, 1 << 64)) - 1
        near = held[max(0, at) : at + 2]
        over = [(e, b) for e, b in near if e.device == mine.device and e.low < mine.high and mine.low < e.high]
        if not over:
            alone.append((mine, one))
            continue
        extent, base = over[0]
        if extent.low > mine.low or extent.high < mine.high or not _gives(base.value, one.value):
            raise UsageError(f"{one.path}: shares memory with parameters or data that do not hold all of it")
        _keep_view(one, [*base.ref], extent.low)
    memory: list[Any] = []
    for extent, group in _merged(alone):
        if len(group) == 1:
            _keep_itself(group[0])
            continue
        if extent.device != "cpu":
            raise UsageError(f"{' and '.join(one.path for one in group[:3])}: share memory of {extent.device}")
        for one in group:
            _keep_view(one, ["memory", len(memory)], extent.low)
        raw = (ctypes.c_ubyte * (extent.high - extent.low)).from_address(extent.low)
        memory.append(np.frombuffer(memoryview(raw).cast("B"), np.uint8).copy())
    return memory


def _distinct(bases: Iterable[Base]) -> list[Base]:
    found: dict[_Extent, Base] = {}
    for base in bases:
        if is_kept(base.value) and size(base.value):
            found.setdefault(_extent(base.value), base)
    return [*found.values()]


def _merged(alone: list[tuple[_Extent, Kept]]) -> list[tuple[_Extent, list[Kept]]]:
    found: list[tuple[_Extent, list[Kept]]] = []
    for extent, one in sorted(alone, key=lambda pair: pair[0]):
        last = found[-1][0] if found else None
        if last is not None and last.device == extent.device and extent.low < last.high:
            found[-1] = (last._replace(high=max(last.high, extent.high)), [*found[-1][1], one])
        else:
            found.append((extent, [one]))
    return found


def _leaf(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf


def _keep_itself(one: Kept) -> None:
    if isinstance(one.value, np.ndarray):
        one.made[:] = ["n", one.number, one.value]
    else:
        one.made[:] = ["t", one.number, pack(one.value), _leaf(one.value)]


def _keep_view(one: Kept, ref: list[Any], low: int) -> None:
    if isinstance(one.value, torch.Tensor) and (one.value.is_conj() or one.value.is_neg()):
        raise UsageError(f"{one.path}: a conjugate or negative view of memory that others share")
    library, dtype, shape, strides, address = _layout(one.value)
    one.made[:] = ["w", one.number, ref, library, dtype, shape, strides, address - low, _leaf(one.value)]


def view(base: Any, library: str, dtype: str, shape: list[int], strides: list[int], offset: int) -> Any:
    """What `settle` kept as a view, of the memory that `base` holds now."""
    if library == "numpy":
        flat = base.detach().reshape(-1).view(torch.uint8).numpy() if isinstance(base, torch.Tensor) else base
        flat = flat.reshape(-1).view(np.uint8)
        return np.ndarray(tuple(shape), np.dtype(dtype), flat, offset, tuple(strides))
    tensor = base if isinstance(base, torch.Tensor) else torch.from_numpy(base.reshape(-1).view(np.uint8))
    kind = _NAMES[dtype]
    start = tensor.storage_offset() * tensor.element_size() + offset
    made = torch.empty(0, dtype=kind, device=tensor.device)
    steps = [one // kind.itemsize for one in strides]
    with torch.no_grad():
        return made.set_(tensor.untyped_storage(), start // kind.itemsize, shape, steps)
