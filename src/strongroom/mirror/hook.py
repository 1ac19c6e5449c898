"""A training script that may not change, under a mirror.

It runs as it is, but for three things: what it makes of PyTorch is noted as it is made (`hook_parts`), steps of any
optimizer are counted, and loops tell how far they are (`hook_loops`). When a loop in whose body an optimizer has
stepped asks for its next item, the state is committed: parts, random generators, variables (`hook_variables`), and how
far each loop around that place is.

A script that begins again does so from its first line, and catches up:

1. Before the training, everything is done again, from the same random generators.
2. A loop on the way to the place of the commit is wound on, without running its body, to the pass that was cut.
3. The innermost one gives its first item, so that everything exists which the body makes, and when it asks for the
   second, it is where the commit was made: everything is put back, and the loop wound on to its place.
4. Trainings that were over before (an earlier loop of several) give one item, and what comes of that is overwritten.

Where there are two commits, it catches up with the older one, and proves the newer before it goes on (`hook_proof`).
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from strongroom.errors import UsageError
from strongroom.mirror import hook_loops
from strongroom.mirror.hook_commits import CannotResume, Hook, Told
from strongroom.mirror.hook_loops import Program
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.pace import BUDGET


class Run:
    """A script under a mirror, run as ``python SCRIPT ARGUMENTS`` or ``python -m MODULE ARGUMENTS`` would run it.

    Attributes:
        hook: what commits.

    Raises:
        UsageError: there is no such script.
        as `Mirror.restore`.
    """

    def __init__(
        self,
        command: Sequence[str],
        mirror: Mirror,
        *,
        every: int | Literal["auto"] = "auto",
        budget: float = BUDGET,
        told: Told = lambda what, detail: None,
    ) -> None:
        if not command or (command[0] == "-m" and len(command) < 2):
            raise UsageError("command: is empty, wanted a script, or -m and a module")
        if command[0] != "-m" and not Path(command[0]).is_file():
            raise UsageError(f"program: {command[0]} does not exist")
        self._command = command
        directory = Path.cwd() if command[0] == "-m" else Path(command[0]).resolve().parent
        self._program = Program(directory)
        self.hook = Hook(mirror, self._program, every=every, budget=budget, told=told)

    def run(self) -> None:
        """Once in a process, which is the script's from then on.

        Raises:
            UsageError: the script cannot go on from the commit that there is.
            BaseException: what the script raises, SystemExit too.
        """
        setattr(builtins, hook_loops.LOOP, hook_loops.maker(self.hook))
        sys.meta_path.insert(0, self._program)
        if not sys.flags.safe_path:
            sys.path[0] = str(self._program.directory)
        self.hook.install()
        try:
            try:
                _run_main(self._command, self._program)
            except SystemExit as end:
                if end.code in (None, 0):
                    self.hook.finish()
                raise
        except CannotResume as stop:
            raise stop.error from None
        self.hook.finish()


def _run_main(command: Sequence[str], program: Program) -> None:
    if command[0] == "-m":
        import runpy

        sys.argv = list(command[1:])
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(command)
    path = Path(command[0]).resolve()
    code = hook_loops.rewrite(path.read_bytes(), str(path), program.name_of(path))
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102  # the program
