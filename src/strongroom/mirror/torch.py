"""PyTorch training under a mirror: everything that decides how it goes on, bit for bit.

::

    with mirror.open("run.mirror", key=key, anchor=anchor) as opened:
        training = Training(opened, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
        training.restore()
        for epoch, batches in training.epochs(10):
            for inputs, labels in batches:
                ...  # a step of the training
                training.commit()

What it holds: each part's ``state_dict``; the random generators of PyTorch (CPU and CUDA), NumPy and Python; the place
in the data. What it cannot hold: generators of the program's own that are no part (pass them: a `torch.Generator` is
taken), state in threads and processes of the program's, and kernels that are not deterministic (see
`torch.use_deterministic_algorithms`). "Bit for bit" is among runs with the same versions, threads and world size.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from strongroom.errors import ChannelError, FormatError, UsageError
from strongroom.mirror.commit import Commit
from strongroom.mirror.cursor import Cursor
from strongroom.mirror.manifest import Entry
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.pace import BUDGET
from strongroom.mirror.ranks import RankedMirror
from strongroom.mirror.restored import Convert
from strongroom.mirror.staging import Hold, Staging
from strongroom.mirror.state import EXTENSION_TYPES, Array
from strongroom.mirror.training import Steps

_TYPES = {
    torch.float64: "<f8", torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16",
    torch.int64: "<i8", torch.int32: "<i4", torch.int16: "<i2", torch.int8: "|i1",
    torch.uint8: "|u1", torch.uint16: "<u2", torch.uint32: "<u4", torch.uint64: "<u8",
    torch.bool: "|b1", torch.complex64: "<c8", torch.complex128: "<c16",
    torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2",
    torch.float8_e4m3fnuz: "float8_e4m3fnuz", torch.float8_e5m2fnuz: "float8_e5m2fnuz",
}  # fmt: skip
_NAMES = {name: dtype for dtype, name in _TYPES.items()}
_NUMPY = {dtype for dtype, name in _TYPES.items() if name not in EXTENSION_TYPES}


def to_array(tensor: torch.Tensor, path: str = "tensor", hold: Hold | None = None) -> Array:
    """A tensor as the mirror keeps it; of one in CPU memory that is contiguous, nothing is copied.

    Args:
        hold: memory for tensors of a GPU, whose bytes are there when it says so; by default they are waited for.

    Raises:
        UsageError: it is sparse, quantised, nested, made of others, on no device, or of a type that cannot be kept.
    """
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in _TYPES:
        where = f"{tensor.layout}, on {tensor.device}"
        raise UsageError(f"{path}: a tensor of {tensor.dtype} ({where}), wanted a dense one with values")
    if tensor.is_nested or (type(tensor) is not torch.Tensor and is_traceable_wrapper_subclass(tensor)):
        raise UsageError(f"{path}: a {type(tensor).__name__} of several tensors, wanted plain ones, each by itself")
    shape = tuple(tensor.shape)
    if hold is not None and hold.takes(tensor) and tensor.numel():
        return Array("torch", _TYPES[tensor.dtype], shape, hold.take(tensor), hold.wait)
    plain = tensor.is_cpu and tensor.is_contiguous() and tensor.dtype in _NUMPY
    if plain and not (tensor.is_conj() or tensor.is_neg()):  # as most are: a commit asks for hundreds
        return Array("torch", _TYPES[tensor.dtype], shape, tensor.numpy().data)
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return Array("torch", _TYPES[tensor.dtype], shape, data.data)


def to_tensor(entry: Entry, array: npt.NDArray[Any]) -> torch.Tensor:
    """What `to_array` was given, in CPU memory; the mirror's array is its memory."""
    dtype = _NAMES.get(entry.dtype)
    if dtype is None:
        raise FormatError(f"array {entry.name}: type {entry.dtype}, wanted one of PyTorch's")
    if not array.size:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(entry.shape)


class _Local:
    """This rank's part of a tensor that is distributed."""

    def __init__(self, part: torch.Tensor) -> None:
        self.part = part

    def like(self, template: Any) -> Any:
        """The distributed tensor, laid out as `template`, which may be another of the same shape."""
        from torch.distributed.tensor import DTensor

        if not isinstance(template, DTensor) or template.to_local().shape != self.part.shape:
            shape = tuple(template.shape) if isinstance(template, torch.Tensor) else None
            raise UsageError(
                f"mirror: a distributed tensor whose part is {tuple(self.part.shape)}, and the training has {shape}",
                hint="distribute the model as it was when it was committed",
            )
        part = self.part.to(template.device)
        return DTensor.from_local(
            part, template.device_mesh, template.placements, run_check=False,
            shape=template.shape, stride=template.stride(),
        )  # fmt: skip


CONVERT: dict[str, Convert] = {"torch": to_tensor, "local": lambda entry, array: _Local(to_tensor(entry, array))}


_AS_IT_IS = {type(None), bool, int, float, str}


def pack(value: Any, path: str = "state", hold: Hold | None = None) -> Any:
    """A ``state_dict`` with every tensor in it as `to_array` has it."""
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, torch.Tensor):
        if hasattr(value, "to_local"):  # a DTensor, of which this rank has a part
            local = to_array(value.to_local(), path, hold)
            return Array("local", local.dtype, local.shape, local.data, local.ready)
        return to_array(value, path, hold)
    if isinstance(value, (dict, Mapping)):  # dict first: the other test is slow
        return {key: pack(part, f"{path}/{key}", hold) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        made = [pack(part, f"{path}/{i}", hold) for i, part in enumerate(value)]
        return made if isinstance(value, list) else tuple(made)
    return value


# Random generators.


def random_state() -> dict[str, Any]:
    """The state of the global generators of PyTorch, NumPy and Python."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": (version, np.array(words, np.uint64), gauss),
        "numpy": np.random.get_state(),  # the global one is what programs use
        "torch": to_array(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        state["cuda"] = [to_array(one) for one in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to what `random_state` gave, as the mirror restores it or as it is."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_tensor(one) for one in state["cuda"]])


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, Array):
        return torch.frombuffer(bytearray(value.data), dtype=torch.uint8)
    found = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    return found.clone()


def commit_staged(mirror: Mirror | RankedMirror, step: int, state: Mapping[str, Any], staging: Staging) -> Commit:
    """Commit a state of which tensors lie on a GPU, by way of pinned memory.

    Raises:
        as `pack`, and as `Mirror.begin`.
    """
    hold = staging.hold()
    try:
        packed = {name: pack(part, name, hold) for name, part in state.items()}
    finally:
        hold.finish()
    commit = mirror.commit(step, packed)
    hold.keep(commit)
    return commit


class Training(Steps):
    """A training whose state is mirrored.

    Args:
        mirror: that is open; a `RankedMirror` where several processes train together.
        loader: what gives the batches: a `DataLoader`, whose place is kept also with workers and shuffling, or one with
            a ``state_dict`` of its own, such as torchdata's `StatefulDataLoader`.
        every: steps between two commits, or ``auto``: as often as `budget` allows.
        budget: the share of the time that training may wait for commits.
        parts: everything else that has a state, by name: modules, optimizers, schedulers, a `GradScaler`, metrics,
            `torch.Generator`\\ s. Whatever has ``state_dict`` and ``load_state_dict`` will do.
    """

    def __init__(
        self,
        mirror: Mirror | RankedMirror,
        *,
        loader: Iterable[Any] | None = None,
        every: int | Literal["auto"] = 1,
        budget: float = BUDGET,
        **parts: Any,
    ) -> None:
        for name, part in parts.items():
            if not isinstance(part, torch.Generator) and not hasattr(part, "load_state_dict"):
                raise UsageError(
                    f"{name}: a {type(part).__name__}, wanted something with state_dict and load_state_dict",
                    hint="numbers and arrays go into commit(name=value)",
                )
        super().__init__(mirror, every, budget)
        self._parts = parts
        self._cursor = None if loader is None else Cursor(loader, random_state, set_random_state)
        self._staging = Staging()
        self._unread = False  # there was a commit before any batch

    # Committing.

    def state(self) -> dict[str, Any]:
        """The whole state as it is now; tensors in CPU memory are not copied."""
        return {name: pack(part, name) for name, part in self._state().items()}

    def _state(self) -> dict[str, Any]:
        return {
            "parts": {name: _state_of(part) for name, part in self._parts.items()},
            "data": self._cursor.state() if self._cursor else None,
            "random": random_state(),
            "values": self.values,
        }

    def _commit(self) -> Commit:
        if self._cursor is not None and not self._cursor.begun:
            # Once is fine: before the first batch, or when none is left.
            if self._unread:
                raise UsageError(
                    "loader: gave no batches by epochs(), so its place is not known",
                    hint="for epoch, batches in training.epochs(count)",
                )
            self._unread = True
        return commit_staged(self._mirror, self.step, self._state(), self._staging)

    # Restoring.

    def restore(self, step: int | None = None) -> int:
        """Put everything back to the newest commit, or to an older one that is kept; the step that it is of.

        0 if there is none yet: then nothing is changed.

        Raises:
            UsageError: the commit holds other parts than this training has, or a part does not take its state, by
                name.
            as `Mirror.restore`.
        """
        restored = self._mirror.restore(step)
        if restored is None:
            return 0
        try:
            parts = restored.part("parts", CONVERT)
            data, values = restored.part("data", CONVERT), restored.part("values", CONVERT)
            generators = restored.part("random", CONVERT)
        except KeyError as error:
            raise UsageError(f"mirror: holds no {error}, wanted one that a Training committed") from None
        finally:
            restored.close()
        if parts.keys() != self._parts.keys():
            raise UsageError(
                f"parts: {', '.join(self._parts)}, and the mirror holds {', '.join(parts)}",
                hint="name the same ones, or start another mirror",
            )
        if (data is None) != (self._cursor is None):
            raise UsageError(f"loader: {'missing' if self._cursor is None else 'not in the mirror'}")
        for name, part in self._parts.items():
            _put_back(part, parts[name], name)
        if self._cursor:
            self._cursor.go_to(data)
            self._unread = False
        set_random_state(generators)
        self.step, self.values = restored.step, values
        return self.step

    # The data.

    def epochs(self, count: int) -> Iterator[tuple[int, Iterator[Any]]]:
        """(number, batches) of each epoch up to `count`, from the place of the last commit on.

        An epoch's number is given to a sampler's ``set_epoch`` where there is one.
        """
        if self._cursor is None:
            raise UsageError("epochs: this training has no loader, wanted Training(..., loader=...)")
        return self._cursor.epochs(count)


def _state_of(part: Any) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _put_back(part: Any, state: Any, name: str) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
        return
    if isinstance(part, torch.nn.Module):
        template = part.state_dict()
        state = {key: one.like(template.get(key)) if isinstance(one, _Local) else one for key, one in state.items()}
    elif isinstance(part, torch.optim.Optimizer) and {"state", "param_groups"} <= state.keys():  # some have others
        _check_groups(part, state, name)
        parameters = [one for group in part.param_groups for one in group["params"]]
        for number, slots in state["state"].items():
            for key, one in slots.items() if isinstance(slots, dict) else ():
                if isinstance(one, _Local):
                    slots[key] = one.like(parameters[number])
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise UsageError(f"{name}: {said}", hint="make it as it was when it was committed") from error


def _check_groups(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], name: str) -> None:
    """PyTorch takes the state of any optimizer for any other, which then fails later, or trains with half of it."""
    for now, was in zip(optimizer.param_groups, state["param_groups"], strict=False):  # their number it looks at
        missing, more = sorted(now.keys() - was.keys()), sorted(was.keys() - now.keys())
        if missing and more:
            raise UsageError(
                f"{name}: a {type(optimizer).__name__}, which has {', '.join(missing)}; and the mirror's has "
                f"{', '.join(more)}",
                hint="make the optimizer that was committed, or start another mirror",
            )


class TorchRanks:
    """The ranks of `torch.distributed`, for a `RankedMirror`. Every rank makes one, at the same place.

    Args:
        timeout: seconds to wait for the others, longer than their steps and commits may differ.

    Raises:
        UsageError: `torch.distributed` is not initialised.
    """

    def __init__(self, *, timeout: float = 300) -> None:
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            raise UsageError("ranks: torch.distributed is not initialised", hint="call init_process_group first")
        self.rank = torch.distributed.get_rank()
        self.count = torch.distributed.get_world_size()
        # In CPU memory, whatever the training's own back end is.
        self._group = torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout))

    def gather(self, data: bytes) -> list[bytes]:
        """Raises ChannelError if a rank is gone."""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        heard = [torch.empty_like(mine) for _ in range(self.count)]
        try:
            torch.distributed.all_gather(heard, mine, group=self._group)
        except RuntimeError as error:
            raise ChannelError(f"ranks: one is gone: {str(error).splitlines()[0][:200]}") from None
        return [one.numpy().tobytes() for one in heard]
