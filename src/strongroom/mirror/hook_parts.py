"""What of PyTorch a program has made: found as it is made, taken down for a commit, put back from one.

Objects are known by their order among those of their kind that are alive at the same place of the program.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from strongroom.errors import UsageError
from strongroom.mirror.torch import pack

_KINDS: Final[dict[str, type]] = {
    "module": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "scheduler": torch.optim.lr_scheduler.LRScheduler,
    "scaler": torch.amp.GradScaler,
    "loader": DataLoader,
}


class Parts:
    """The modules, optimizers, schedulers, scalers and loaders that were made since `watch`, as long as they live."""

    def __init__(self) -> None:
        self._made: dict[str, list[weakref.ref[Any]]] = {kind: [] for kind in _KINDS}
        self._counted: dict[str, int] = {}

    def watch(self) -> None:
        """Note what is made from now on, copies too. There is no way back: once in a process."""
        for kind, base in _KINDS.items():
            _after_new(base, self._noter(kind))

    def _noter(self, kind: str) -> Callable[[Any], None]:
        made = self._made[kind]

        def note(one: Any) -> None:
            made.append(weakref.ref(one))

        return note

    def alive(self, kind: str) -> list[Any]:
        """In the order of their making."""
        found = [one for ref in self._made[kind] if (one := ref()) is not None]
        if len(found) * 2 < len(self._made[kind]):
            self._made[kind][:] = [ref for ref in self._made[kind] if ref() is not None]
        return found

    def settle(self) -> None:
        """Let go of what only cycles keep alive, if there is more or less of anything than there was."""
        counts = {kind: len(self.alive(kind)) for kind in _KINDS}
        if counts != self._counted:
            gc.collect()
            self._counted = {kind: len(self.alive(kind)) for kind in _KINDS}

    # Modules and what is optimised.

    def modules(self) -> list[nn.Module]:
        """Those that are part of no other and hold any tensor."""
        found = self.alive("module")
        inner = {id(child) for one in found for child in one._modules.values() if child is not None}
        return [one for one in found if id(one) not in inner and next(_tensors(one), None) is not None]

    def tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(part, name, tensor) of every parameter and buffer, each once; also what is optimised and in no module."""
        seen: set[int] = set()
        for part, module in _named("model", self.modules()):
            for name, tensor in _tensors(module):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield part, name, tensor
        for part, optimizer in _named("optimizer", self.alive("optimizer")):
            for g, group in enumerate(optimizer.param_groups):
                for i, tensor in enumerate(group["params"]):
                    if id(tensor) not in seen:
                        seen.add(id(tensor))
                        yield f"{part}_parameters", f"{g}.{i}", tensor

    def states(self) -> Iterator[tuple[str, Any]]:
        """(part, object) of what has a state_dict beside tensors, in the order in which it is put back."""
        yield from _named("optimizer", self.alive("optimizer"))
        yield from _named("scheduler", self.alive("scheduler"))
        yield from _named("scaler", self.alive("scaler"))

    def take(self) -> dict[str, Any]:
        """Everything that `put_back` wants."""
        self.settle()
        parts: dict[str, Any] = {}
        flags: dict[str, Any] = {}
        gradients: dict[str, Any] = {}
        for part, name, tensor in self.tensors():
            if is_lazy(tensor):
                raise UsageError(
                    f"{part}: {name} has no shape yet, though an optimizer has stepped",
                    hint="let a lazy module see a batch before the first step",
                )
            parts.setdefault(part, {})[name] = tensor
            flags.setdefault(part, {})[name] = tensor.requires_grad
            if tensor.grad is not None:
                gradients.setdefault(part, {})[name] = tensor.grad
        parts |= {part: one.state_dict() for part, one in self.states()}
        modes = {part: [one.training for one in module.modules()] for part, module in _named("model", self.modules())}
        return {
            "parts": {part: pack(state, part) for part, state in parts.items()},
            "gradients": pack(gradients, "gradients"),
            "flags": {"requires_grad": flags, "training": modes},
        }

    def put_back(self, parts: Mapping[str, Any], gradients: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
        """Everything that `take` gave, into the objects that stand for it now.

        Raises:
            UsageError: there are others than there were.
        """
        gc.collect()
        mine: dict[str, dict[str, torch.Tensor]] = {}
        for part, name, tensor in self.tensors():
            mine.setdefault(part, {})[name] = tensor
        others = dict(self.states())
        _same("objects", [*mine, *others], list(parts))
        for part, tensors in mine.items():
            _same(f"{part}: tensors", list(tensors), list(parts[part]))
            for name, tensor in tensors.items():
                saved = parts[part][name]
                if tensor.shape != saved.shape and isinstance(tensor, nn.Parameter):
                    shapes = f"{tuple(tensor.shape)}, and the mirror holds {tuple(saved.shape)}"
                    raise UsageError(f"{part}: {name} is {shapes}")
                with torch.no_grad():
                    if tensor.shape == saved.shape and tensor.dtype == saved.dtype:
                        tensor.copy_(saved)
                    else:
                        tensor.data = saved.to(tensor.device)
                if tensor.is_leaf:
                    tensor.requires_grad_(flags["requires_grad"][part][name])
                grad = gradients.get(part, {}).get(name)
                tensor.grad = None if grad is None else grad.to(tensor.device)
        for part, module in _named("model", self.modules()):
            for one, training in zip(module.modules(), flags["training"][part], strict=True):
                one.training = training
        for part, one in others.items():
            try:
                one.load_state_dict(parts[part])
            except (ValueError, KeyError, RuntimeError) as error:
                raise UsageError(f"{part}: {str(error).splitlines()[0][:200]}") from None

    # Random generators.

    def generators(self) -> Iterator[tuple[str, torch.Generator]]:
        """(name, generator) of each that a loader or its sampler draws from."""
        for number, loader in enumerate(self.alive("loader")):
            found = [loader, loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
            for place, one in enumerate(found):
                generator = getattr(one, "generator", None)
                if isinstance(generator, torch.Generator):
                    yield f"loader {number}.{place}", generator


def _after_new(base: type, note: Callable[[Any], None]) -> None:
    def new(kind: Any, *args: Any, **options: Any) -> Any:
        further = super(base, kind).__new__  # type: ignore[arg-type]
        made = further(kind) if further is object.__new__ else further(kind, *args, **options)
        note(made)
        return made

    base.__new__ = staticmethod(new)  # type: ignore[method-assign,assignment]


def _named(kind: str, found: list[Any]) -> Iterator[tuple[str, Any]]:
    for number, one in enumerate(found):
        yield f"{kind}{number + 1}" if number else kind, one


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _same(what: str, got: list[str], wanted: list[str]) -> None:
    if got != wanted:
        odd = sorted({*got} ^ {*wanted})[:5]
        raise UsageError(
            f"{what}: {', '.join(odd) or 'in another order'}, and the mirror holds others",
            hint="the script must make the same ones when it begins again; has it changed?",
        )


# Generators that are no part of PyTorch's objects.


def generator_state(generator: Any) -> Any:
    """The state of a generator of any of the three libraries; None if it is none."""
    if isinstance(generator, torch.Generator):
        return pack(generator.get_state())
    if isinstance(generator, np.random.Generator):
        return dict(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return list(generator.get_state())
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        version, words, gauss = generator.getstate()
        return [version, np.array(words, np.uint64), gauss]
    return None


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what `generator_state` gave, as the mirror restores it or as it is."""
    if isinstance(generator, torch.Generator):
        generator.set_state(_bytes(state))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(tuple(state))
    else:
        version, words, gauss = state
        generator.setstate((version, tuple(int(word) for word in words), gauss))


def _bytes(state: Any) -> torch.Tensor:
    return (
        state.clone() if isinstance(state, torch.Tensor) else torch.frombuffer(bytearray(state.data), dtype=torch.uint8)
    )
