"""A training script of an enclave under a mirror: boot's side, and the module that runs the script.

The mirror's file lies in a directory of the host that the sandbox shows at `MIRROR_DIRECTORY`; what is written there is
sealed. Its key and its anchor stay with boot, which answers over a socket that the script's process inherits:

- ``open`` -> the key, the directory, and how often to commit
- ``root`` -> the root that the CAS remembers; ``advance`` {old, new} moves it on
- ``told`` {what, ...}, ``failed`` {error}: reports
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from strongroom.enclave.config import MIRROR_DIRECTORY
from strongroom.errors import (
    EnclaveError,
    FormatError,
    MissingDependencyError,
    RollbackError,
    StrongroomError,
    UsageError,
    from_wire,
)
from strongroom.lineage.resumes import Resume
from strongroom.lineage.statement import MirrorState
from strongroom.sealed import Root

if TYPE_CHECKING:
    from strongroom.enclave.boot import Booted

FILE: Final = "mirror"
_MAX_MESSAGE: Final = 1 << 16
WHOLE_TRACES: Final = "STRONGROOM_WHOLE_TRACES"  # a variable of the program; any value
_OURS: Final = str(Path(__file__).parent.parent) + os.sep
_TAKES_A_WORD: Final = ("-X", "-W", "--check-hash-based-pycs")


def python_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Python's own options, and the script or ``-m`` and the module, with their arguments.

    Raises:
        UsageError: there is neither.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
        at += 2 if words[at] in _TAKES_A_WORD else 1
    if at >= len(words) or words[at] in ("-c", "-"):
        raise UsageError(
            "command: holds no script, wanted one to keep a mirror of", hint="python train.py, or python -m package"
        )
    return list(words[:at]), list(words[at:])


def check_command(command: Sequence[str]) -> None:
    """Raises UsageError unless it is one that a mirror can be kept of."""
    if not command or command[0] not in ("python", "python3"):
        raise UsageError(
            f"command: {command[0] if command else 'is empty'}, wanted python and a script to keep a mirror of"
        )
    python_words(command[1:])


# Boot's side.


class Keeper:
    """Holds the key and the anchor of a program's mirror, and hears how the program gets on with it."""

    def __init__(self, booted: Booted, name: str) -> None:
        key = booted.provisions.vault_keys.get(name)
        if key is None or booted.provisions.vault_access.get(name) != "mirror":
            raise EnclaveError(f"mirror {name}: the policy gives no key for it")
        place = MIRROR_DIRECTORY if booted.sandboxed else booted.layout.get("vaults", {}).get(name)
        if not isinstance(place, str):
            raise EnclaveError(f"mirror {name}: the host has not said where it lies")
        every = booted.layout.get("every", "auto")
        self._name = name
        self._opening = {"key": base64.b64encode(key).decode(), "place": place, "every": every}
        self._control = booted.control
        self._anchor = booted.anchor(name)
        self._ours, self._theirs = Pipe()
        self._behind: int | None = None  # the step that the program has not come to again
        self._resume: Resume | None = None  # the program's return from the mirror
        self._failure: StrongroomError | None = None
        self._thread = threading.Thread(target=self._serve, name="mirror-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    @property
    def descriptor(self) -> int:
        """What the program's process inherits."""
        return self._theirs.fileno()

    def wrapped(self, words: Sequence[str]) -> list[str]:
        """Python's options and the script, so that the script runs under the mirror."""
        options, program = python_words(words)
        return [*options, "-m", __name__, "--control", str(self.descriptor), "--", *program]

    def check(self) -> None:
        """After the program has ended: that what it has written may be sealed.

        Raises:
            StrongroomError: it could not go on from the mirror, or the mirror would not open.
        """
        self._theirs.close()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._behind is not None:
            raise EnclaveError(
                f"mirror: the program ended before it had come to step {self._behind} again",
                hint="what it wrote is discarded; run it again",
            )

    def state(self) -> MirrorState | None:
        """What lineage says of the mirror; None if nothing was ever committed. After `check`.

        Raises:
            RollbackError: the mirror was taken away, or is older than its anchor.
        """
        from strongroom.enclave.boot import Watched
        from strongroom.mirror.restored import read

        path = Path(self._opening["place"]) / FILE
        try:
            restored = read(path, key=base64.b64decode(self._opening["key"]), anchor=Watched(self._anchor))
        except FileNotFoundError:
            if (root := self._anchor.read()) is None:
                return None
            raise RollbackError(
                f"mirror: {path} is missing, and its anchor holds a commit, {root}",
                hint="what the program wrote is discarded; put the mirror back and run it again",
            ) from None
        with restored:
            resumes = restored.manifest.resumes
            if self._resume is not None and self._resume.root == str(restored.root):
                resumes = resumes.then(self._resume)  # no commit followed this return, to have it in its manifest
            return MirrorState(self._name, restored.step, str(restored.root), resumes)

    def _serve(self) -> None:
        while True:
            try:
                request = json.loads(self._ours.recv_bytes(_MAX_MESSAGE))
            except (EOFError, OSError, ValueError):
                return
            try:
                answer = self._answer(request)
            except StrongroomError as error:
                answer = {"failed": error.to_wire()}
            except (KeyError, TypeError, ValueError, AttributeError):
                answer = {"failed": FormatError("mirror: a request of another form").to_wire()}
            try:
                self._ours.send_bytes(json.dumps(answer).encode())
            except OSError:
                return

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "open":
                return self._opening
            case "root":
                root = self._anchor.read()
                return {"root": None if root is None else str(root)}
            case "advance":
                old = request["old"]
                self._anchor.advance(None if old is None else Root.parse(old), Root.parse(request["new"]))
            case "told":
                what, detail = str(request["what"]), dict(request["detail"])
                if what == "resumes":
                    self._behind = int(detail["step"])
                    if (root := self._anchor.read()) is not None:
                        self._resume = Resume.at(time.time(), self._behind, root)
                elif what == "resumed":
                    self._behind = None
                self._control.event("mirror", what=what, **detail)
            case "failed":
                self._failure = from_wire(request["error"])
            case other:
                raise EnclaveError(f"mirror: nothing to answer to {str(other)[:40]!r} with")
        return {}


# The script's side.


class _Asking:
    """The other end; also the anchor of the mirror."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)

    def ask(self, op: str, **arguments: object) -> dict[str, Any]:
        try:
            self._connection.send_bytes(json.dumps({"op": op, **arguments}).encode())
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes(_MAX_MESSAGE))
        except (EOFError, OSError, ValueError) as error:
            raise EnclaveError(f"mirror: boot does not answer: {error}") from None
        if "failed" in answer:
            raise from_wire(answer["failed"])
        return answer

    def told(self, what: str, detail: Mapping[str, Any]) -> None:
        self.ask("told", what=what, detail=dict(detail))

    def read(self) -> Root | None:
        root = self.ask("root")["root"]
        return None if root is None else Root.parse(root)

    def advance(self, old: Root | None, new: Root) -> None:
        self.ask("advance", old=None if old is None else str(old), new=str(new))


def _run(boot: _Asking, program: list[str]) -> None:
    try:
        from strongroom import mirror
        from strongroom.mirror import hook
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name}: is not installed, and a mirror of a script needs PyTorch"
        ) from None
    opening = boot.ask("open")
    key = base64.b64decode(opening.pop("key"))
    path = Path(opening["place"]) / FILE
    with mirror.open(path, key=key, anchor=boot, delta=True) as opened:
        del key
        every = opening["every"]
        ran = hook.Run(program, opened, every=int(every) if every.isdecimal() else every, told=boot.told)
        try:
            ran.run()
        finally:
            if opened.step is not None:
                boot.told("ended", {"commits": ran.hook.commits, "step": opened.step})


def _from_the_script(trace: TracebackType | None) -> TracebackType | None:
    """A stack trace from the script's first frame on, as plain Python prints it; all of it if it is ours alone."""
    at = trace
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if file not in ("<frozen runpy>", runpy.__file__) and not file.startswith(_OURS):
            return at
        at = at.tb_next
    return trace


def _shorten_traces() -> None:
    """Have the exception that ends this process shown without what lies between Python and the script."""
    if os.environ.get(WHOLE_TRACES):
        return
    show = sys.excepthook

    def shorter(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        trace = _from_the_script(trace)
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = shorter


def main(arguments: list[str]) -> int:
    """``--control FD -- SCRIPT ...``: the exit status of what failed before the script or in its place."""
    parser = argparse.ArgumentParser(description="Runs inside an enclave; started by boot only.")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    args = parser.parse_args(arguments)
    os.set_inheritable(args.control, False)
    boot = _Asking(args.control)
    try:
        _run(boot, args.program[1:] if args.program[:1] == ["--"] else args.program)
    except StrongroomError as error:
        boot.ask("failed", error=error.to_wire())
        return error.exit_code
    except BaseException:
        _shorten_traces()
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
