"""The program that all parties run: a Python file or module, as `python` would run it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from strongroom.crypto import digest
from strongroom.errors import MpcError, StrongroomError, UsageError

if TYPE_CHECKING:
    from strongroom.mpc.party import Party
    from strongroom.mpc.tensor.world import World

RANK: Final = "STRONGROOM_MPC_RANK"  # the variable that tells a program which party it is


@dataclass(frozen=True)
class Script:
    """A program that was read once, so that what was digested is what runs.

    Attributes:
        path: of its file, absolute: what it means must not change with the current directory.
        name: the file as the command line names it.
        source: the file's content.
        arguments: of the program's command line.
        spec: of a module.
    """

    path: str
    name: str
    source: bytes
    arguments: tuple[str, ...]
    spec: ModuleSpec | None = None

    @classmethod
    def find(cls, words: Sequence[str], *, module: bool) -> Script:
        """What the words of a command line name: a file or a module, and its arguments.

        Raises:
            UsageError: there is no such program, or it is not Python.
        """
        name, *arguments = words
        spec = _spec(name) if module else None
        path = name if spec is None else spec.origin or ""
        if spec is None and not Path(path).is_file():
            hint = "a module is run with -m" if "/" not in name and not name.endswith(".py") else None
            raise UsageError(f"program: {name} is no file", hint=hint)
        return cls(str(Path(path).absolute()), path, Path(path).read_bytes(), tuple(arguments), spec)

    @property
    def digest(self) -> bytes:
        return digest(self.source)

    def run(self) -> None:
        """Run it as `__main__`, in this process; raises whatever it raises."""
        main = types.ModuleType("__main__")
        main.__file__ = self.path
        main.__spec__ = self.spec
        main.__package__ = None if self.spec is None else self.spec.parent
        before = sys.modules["__main__"]
        sys.modules["__main__"] = main
        sys.argv = [self.name, *self.arguments]
        if self.spec is None:
            sys.path.insert(0, str(Path(self.path).resolve().parent))
        try:
            # Running it is what the verb is for.
            exec(compile(self.source, self.path, "exec", dont_inherit=True), main.__dict__)  # noqa: S102
        finally:
            sys.modules["__main__"] = before

    def trace(self, error: BaseException) -> str:
        """An exception's trace, as if Python itself had run the program."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != self.path:
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace))

    def line(self, error: BaseException) -> int | None:
        """The innermost line of the program that an exception came through."""
        lines = [
            line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == self.path
        ]
        return lines[-1] if lines else None


def run_program(party: Party, world: World, script: Script) -> int:
    """Run a party's program to its end, which ends the epoch; its exit status. Raises StrongroomError as it does."""
    world.runs(script.path, script.digest)
    status = 0  # that the program asked for
    try:
        with party, world:
            try:
                script.run()
            except SystemExit as exit_:
                if isinstance(exit_.code, str):
                    sys.stderr.write(f"{exit_.code}\n")
                if exit_.code:
                    status = exit_.code if isinstance(exit_.code, int) else 1
                    raise MpcError(f"its program exited with status {status}") from None
    except StrongroomError:
        if status:
            return status
        raise
    except Exception as error:
        sys.stdout.flush()
        sys.stderr.write(script.trace(error))
        return 1
    return 0


def _spec(name: str) -> ModuleSpec:
    """A module's, or that of a package's `__main__`, as `python -m` finds it."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.has_location or not spec.origin or not spec.origin.endswith(".py"):
        raise UsageError(f"program: there is no module {name} in Python", hint="the current directory is searched too")
    return spec
