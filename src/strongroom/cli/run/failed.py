"""What a run that failed says of this machine, which the enclave does not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from strongroom.cli import output
from strongroom.enclave.config import VAULTS_DIRECTORY
from strongroom.errors import StrongroomError, WrongKeyError, printable


def tell_left_out(files: Mapping[str, Path]) -> None:
    """Name what lies beside the program's files and the enclave did not see: what failed may have missed it."""
    seen = {path.resolve() for path in files.values()}
    beside = sorted(path for folder in {path.parent for path in seen} for path in folder.iterdir() if path.is_file())
    own = {suffix for path in beside if path.suffix in (".key", ".anchor") for suffix in (path, Path(f"{path}.lock"))}
    missed = [path.name for path in beside if not path.name.startswith(".") and path not in seen | own]
    if missed:
        more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        names = printable(", ".join(missed[:3]))
        output.note(f"the enclave did not see these files beside the program: {names}{more}; --include adds them")


def tell_tools(tools: Sequence[str] | None) -> None:
    """Name the programs of the system that could be started: what failed may have been refused another."""
    if tools is not None:
        could = printable(", ".join(tools)) or "none"
        output.note(f"the program could start these programs of the system, and no other (--tool): {could}")


def name_vaults(error: StrongroomError, vaults: Mapping[str, Path]) -> None:
    """Have an enclave's error say where a vault lies here: in there it lies elsewhere."""
    for name, path in vaults.items():
        for inner in (f"{VAULTS_DIRECTORY}/{name}: ", f"vault {name}: "):
            if error.message.startswith(inner):
                error.message = f"vault {name} ({path}): {error.message.removeprefix(inner)}"
                if isinstance(error, WrongKeyError):
                    error.hint = f"the CAS has another key: put the right one back as {path}.key, and entrust it"
