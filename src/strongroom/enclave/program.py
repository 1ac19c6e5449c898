"""Runs an unmodified program in a booted enclave: vaults at their paths, no privileges, the exit status passed on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from strongroom.enclave.boot import Booted, main
from strongroom.enclave.config import VaultMount
from strongroom.errors import EnclaveError, MissingDependencyError, UnsupportedPlatformError
from strongroom.shield import files

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def run(booted: Booted) -> int:
    """Mount, run, and seal what was written; the program's exit status, 128 + n if signal n ended it."""
    with ExitStack() as shields:
        places = {}
        for rule in booted.config.vaults:
            if rule.mount:
                places[rule.name] = _place(booted, rule)
                shields.enter_context(_raise_shield(booted, rule, places[rule.name]))
        command = [_expand(word, places) for word in booted.config.command]
        if not command:
            raise EnclaveError("command: is empty")
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
        booted.control.event("running", command=list(booted.config.command))
        status = _supervise(command, _environment(booted))
        booted.control.event("ended", status=status)
    return status


def _place(booted: Booted, rule: VaultMount) -> Path:
    """Where a vault appears: at its mount inside a mount namespace, else below a private directory."""
    root = booted.layout.get("private_root")
    return Path(rule.mount) if root is None else Path(str(root)) / rule.name


def _expand(word: str, places: Mapping[str, Path]) -> str:
    for name, place in places.items():
        word = word.replace(f"{{vault:{name}}}", str(place))
    return word


@contextmanager
def _raise_shield(booted: Booted, rule: VaultMount, place: Path) -> Iterator[None]:
    """A read-only vault is decrypted on access through FUSE, or unpacked into memory where there is none.

    A writable one is a directory in memory, sealed and committed when the program has ended.
    """
    place.mkdir(parents=True, exist_ok=True)
    with booted.open_vault(rule.name) as opened:
        if rule.access == "read-write":
            files.expose(opened, place)
            booted.control.event("vault", vault=rule.name, mount=rule.mount, how="memory, sealed when the program ends")
            yield
            sealed = files.collect(place, opened)
            root = opened.commit()
            booted.control.event("sealed", vault=rule.name, files=sealed, root=str(root))
            return
        if booted.layout.get("fuse"):
            try:
                mounted = files.mount(opened, place)
            except (MissingDependencyError, UnsupportedPlatformError) as error:
                booted.control.event("notice", text=f"vault {rule.name}: {error.message}; unpacking it to memory")
            else:
                booted.control.event("vault", vault=rule.name, mount=rule.mount, how="decrypted on access (FUSE)")
                with mounted:
                    yield
                    if mounted.failure is not None:
                        raise mounted.failure
                return
        files.expose(opened, place)
        booted.control.event("vault", vault=rule.name, mount=rule.mount, how="unpacked to private memory")
        yield


def _environment(booted: Booted) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TERM", "TMPDIR") if name in os.environ}
    return {
        **inherited,
        # Compiled code is kept in the enclave's own memory: what lies beside the sources was never measured.
        "PYTHONPYCACHEPREFIX": os.environ.get("STRONGROOM_PYCACHE", "/tmp/.pycache"),  # noqa: S108  # the enclave's own
        **booted.config.environment,
        **booted.provisions.environment,
    }


def _supervise(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command without privileges, pass signals on, reap orphans (this may be process 1)."""
    wrapped = [sys.executable, "-I", "-S", str(Path(__file__).with_name("drop.py")), *command]
    child = subprocess.Popen(wrapped, env=dict(environment))  # noqa: S603  # the measured command

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return child.wait()
        if pid == child.pid:
            child.returncode = code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(run))
