"""Which module and which line of the user's program an operation belongs to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from strongroom.mpc.costs.figures import Place
from strongroom.mpc.tensor import pending
from strongroom.mpc.tensor.world import user_line

_here = threading.local()
_lock = threading.Lock()
_watched = 0
_handles: list[RemovableHandle] = []


@contextmanager
def inside(name: str, kind: str) -> Iterator[None]:
    """Let a part of a module that is no module itself be told apart."""
    modules: Modules | None = getattr(_here, "modules", None)
    if modules is None:
        yield
        return
    modules.enter_part(name, kind)
    try:
        yield
    finally:
        modules.leave_part()


class Modules:
    """The modules that are running in this thread: a context. Any number of threads may each be in one.

    PyTorch's hooks on all modules are there while anybody is.

    Attributes:
        watch: told of each module that has run, and when.
    """

    def __init__(self) -> None:
        self.watch: Callable[[Place, float, float], None] | None = None
        self._stack: list[_Running] = []
        self._names: dict[int, str] = {}  # of the outermost module's parts, by id: they live as long as it runs

    def __enter__(self) -> Modules:
        global _watched
        self._before = getattr(_here, "modules", None), pending.here.find
        _here.modules, pending.here.find = self, self.place
        with _lock:
            _watched += 1
            if _watched == 1:
                _handles.append(register_module_forward_pre_hook(_enter))
                _handles.append(register_module_forward_hook(_leave, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        global _watched
        _here.modules, pending.here.find = self._before
        with _lock:
            _watched -= 1
            while not _watched and _handles:
                _handles.pop().remove()

    def place(self) -> Place:
        """Where the program is; where it asked for what it computes only now."""
        if pending.here.place is not None:
            asked: Place = pending.here.place
            return asked
        running = self._stack[-1] if self._stack else None
        return Place(running.name if running else "", running.kind if running else "", *user_line())

    def enter(self, module: nn.Module) -> None:
        kind = type(module).__name__
        if not self._stack:
            self._names = {id(each): f"{kind}.{name}" if name else kind for name, each in module.named_modules()}
        name = self._names.get(id(module)) or f"{self._stack[-1].name}.{kind}"
        self._stack.append(_Running(name, kind, module, time.perf_counter()))

    def leave(self, module: nn.Module) -> None:
        if self._stack and self._stack[-1].module is module:
            self._left(self._stack.pop())

    def enter_part(self, name: str, kind: str) -> None:
        whole = f"{self._stack[-1].name}." if self._stack else ""
        self._stack.append(_Running(f"{whole}{name}", kind, None, time.perf_counter()))

    def leave_part(self) -> None:
        self._left(self._stack.pop())

    def _left(self, running: _Running) -> None:
        if self.watch is not None:
            self.watch(Place(running.name, running.kind), running.start, time.perf_counter())


@dataclass(frozen=True)
class _Running:
    """A module, or a part of one."""

    name: str
    kind: str
    module: nn.Module | None
    start: float


def _enter(module: nn.Module, args: Any) -> None:
    modules: Modules | None = getattr(_here, "modules", None)
    if modules is not None:
        modules.enter(module)


def _leave(module: nn.Module, args: Any, result: Any) -> None:
    modules: Modules | None = getattr(_here, "modules", None)
    if modules is not None:
        modules.leave(module)
