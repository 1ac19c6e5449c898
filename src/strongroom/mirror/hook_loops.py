"""The loops of a program, so that one that is killed can be gone on with in the middle.

The program's source is compiled with every ``for`` and ``while`` told to `Watcher`; the files stay as they are, and so
do line numbers. What a loop goes over, and how far it is, lies where no program can put it back; so a loop that counts
what it has given is wound on to the same place.

- ``for X in ITEMS: BODY`` becomes ``L = loop(SITE)``, ``for X in L.over(ITEMS): BODY``, and ``L.end()`` in any case.
- ``while TEST: BODY`` becomes ``L = loop(SITE)``, ``while L.turn() and (TEST): BODY``, and ``L.end()`` likewise.
- Loops of generator functions and coroutines are left alone: they run in turns with whoever asks them, and are part of
  what a loop goes over. So are comprehensions, and loops of libraries.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, Protocol

LOOP: Final = "__strongroom_loop__"
PREFIX: Final = "_strongroom_"


class Loop:
    """One run of a loop: goes over items, or counts the turns of a ``while``.

    Attributes:
        site: the place of the loop in the program.
        ordinal: how many loops of that site the enclosing one had begun before, in the same pass of its own.
        given: items given out, or turns.
        began: what the random generators were before its items were made; None if that was not noted.
        passing: what they were before the item was drawn that the body runs with; None likewise.
        steps: of the optimizers, when the body was given that.
        limited: give one item only, since what is done with it is thrown away.
        guarded: whoever watches wants to know whether making an item draws from the global random generators.
        quiet: nothing is trained in it, so it need not tell of its passes.
        within: loops begun by the body in this pass, by site.
        items, inner: what it goes over, and the iterator of that; None for a ``while``.
    """

    def __init__(self, watcher: Watcher, site: str) -> None:
        self._watcher = watcher
        self.site = site
        self.ordinal = 0
        self.given = 0
        self.began: Any = None
        self.passing: Any = None
        self.steps = 0
        self.limited = False
        self.guarded = False
        self.quiet = False
        self.within: dict[str, int] = {}
        self.items: Any = None
        self.inner: Iterator[Any] | None = None
        watcher.starts(self)

    def over(self, items: Iterable[Any]) -> Loop:
        """Itself, to go over these."""
        self.items = items
        return self

    def __iter__(self) -> Iterator[Any]:
        self.inner = iter(self.items)
        if self.quiet:
            return self.inner
        self._watcher.begun(self)
        return self

    def __next__(self) -> Any:
        assert self.inner is not None  # noqa: S101  # it has begun
        if self.limited and self.given:
            raise StopIteration
        self._watcher.asked(self)
        guarded = self.guarded and self.given  # the first is made before the body has drawn anything
        item = self._watcher.guard(self, self.inner) if guarded else next(self.inner)
        self.given += 1
        self._watcher.passes(self)
        return item

    def turn(self) -> bool:
        """Before the test of each turn of a ``while``; false if there shall be no other."""
        if not self.quiet:
            if self.limited and self.given:
                return False
            if not self.given:
                self._watcher.begun(self)
            self._watcher.asked(self)
            self.given += 1
            self._watcher.passes(self)
        return True

    def end(self) -> None:
        """It is over, however it ended."""
        self._watcher.ended(self)


class _Aside:
    """A loop that is not watched."""

    def over(self, items: Iterable[Any]) -> Iterable[Any]:
        return items

    def turn(self) -> bool:
        return True

    def end(self) -> None:
        """Nothing."""


class Watcher(Protocol):
    """Who is told of the loops of a program: each starts, has begun, then by turns is asked and passes, and ends."""

    def starts(self, loop: Loop) -> None: ...
    def begun(self, loop: Loop) -> None: ...
    def asked(self, loop: Loop) -> None: ...
    def guard(self, loop: Loop, inner: Iterator[Any]) -> Any: ...
    def passes(self, loop: Loop) -> None: ...
    def ended(self, loop: Loop) -> None: ...


def maker(watcher: Watcher) -> Callable[[str], Loop | _Aside]:
    """What `LOOP` stands for in rewritten programs; loops of other threads and of forked children are left alone."""
    mine = (os.getpid(), threading.get_ident())
    aside = _Aside()

    def loop(site: str) -> Loop | _Aside:
        return Loop(watcher, site) if (os.getpid(), threading.get_ident()) == mine else aside

    return loop


# Rewriting.


class _Rewriter(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self._name = name
        self._number = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node if _yields(node) else self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        self.generic_visit(node)
        name = self._next()
        over = ast.Call(ast.Attribute(ast.Name(name, ast.Load()), "over", ast.Load()), [node.iter], [])
        node.iter = ast.copy_location(over, node.iter)
        return self._watched(node, name)

    def visit_While(self, node: ast.While) -> list[ast.stmt]:
        self.generic_visit(node)
        name = self._next()
        turn = ast.Call(ast.Attribute(ast.Name(name, ast.Load()), "turn", ast.Load()), [], [])
        node.test = ast.copy_location(ast.BoolOp(ast.And(), [turn, node.test]), node.test)
        return self._watched(node, name)

    def _next(self) -> str:
        self._number += 1
        return f"{PREFIX}{self._number}"

    def _watched(self, node: ast.For | ast.While, name: str) -> list[ast.stmt]:
        site = ast.Constant(f"{self._name}:{node.lineno}:{node.col_offset}")
        begin = ast.Assign([ast.Name(name, ast.Store())], ast.Call(ast.Name(LOOP, ast.Load()), [site], []))
        end = ast.Expr(ast.Call(ast.Attribute(ast.Name(name, ast.Load()), "end", ast.Load()), [], []))
        guarded = ast.Try([node], [], [], [ast.copy_location(end, node)])
        return [ast.fix_missing_locations(ast.copy_location(one, node)) for one in (begin, guarded)]


def _yields(function: ast.AST) -> bool:
    """Whether a function is a generator's."""
    pending: list[ast.AST] = list(ast.iter_child_nodes(function))
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)
    return False


def rewrite(source: str | bytes, path: str, name: str) -> CodeType:
    """Source as code whose loops are watched.

    Args:
        path: of the file, for tracebacks.
        name: that sites begin with.

    Raises:
        SyntaxError: as compiling it would.
    """
    tree = _Rewriter(name).visit(ast.parse(source, path))
    return compile(tree, path, "exec", dont_inherit=True)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles from source always: a cache of compiled code holds what was not rewritten."""

    def __init__(self, fullname: str, path: str, program: Program) -> None:
        super().__init__(fullname, path)
        self._program = program

    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.get_filename(fullname))
        return rewrite(path.read_bytes(), str(path), self._program.name_of(path))


class Program(importlib.abc.MetaPathFinder):
    """The files of a program: all Python source below a directory, except for installed packages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._held: dict[str, bool] = {}
        self._modules: list[ModuleType] = []
        self._counted = 0

    def name_of(self, path: Path) -> str:
        """A file's name among the program's."""
        return path.resolve().relative_to(self.directory).as_posix()

    def holds(self, path: str | None) -> bool:
        """Whether a file is one of the program's."""
        if path is None or not path.endswith(".py") or not os.path.isabs(path):  # noqa: PTH117  # asked often
            return False
        if path not in self._held:
            real = Path(path).resolve()
            inside = real.is_relative_to(self.directory)
            parts = real.relative_to(self.directory).parts if inside else ()
            self._held[path] = inside and not {"site-packages", "dist-packages"} & set(parts)
        return self._held[path]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or not self.holds(spec.origin):
            return None
        if not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        spec.loader = _Loader(fullname, spec.origin, self)
        spec.cached = None
        return spec

    def modules(self) -> list[ModuleType]:
        """Those of its modules that are loaded, by name; ``__main__`` is one."""
        if len(sys.modules) != self._counted:
            self._counted = len(sys.modules)
            held = {n: one for n, one in sys.modules.items() if self.holds(getattr(one, "__file__", None))}
            self._modules = [one for n, one in sorted(held.items()) if n == one.__name__]
        return self._modules
