"""Runs an unmodified program in a booted enclave: vaults at their paths, no privileges, the exit status passed on."""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from strongroom.enclave.boot import Booted
from strongroom.enclave.compiled import MOST, is_kept, link, sources_of
from strongroom.enclave.config import (
    BOOT_PYCACHE,
    COMPILED_DIRECTORY,
    SANDBOX_ENVIRONMENT,
    SANDBOX_PYCACHE,
)
from strongroom.enclave.confine import Confinement, confinement, enclave_user, give, share_memory
from strongroom.enclave.given import Deposits, given_files
from strongroom.enclave.image_root import make_root
from strongroom.enclave.lifeline import Lifeline
from strongroom.enclave.meshed import Meshed
from strongroom.enclave.mirrored import Keeper, check_command
from strongroom.enclave.mounts import mounted, seen
from strongroom.enclave.outputs import Outputs
from strongroom.enclave.outside import Outside
from strongroom.enclave.room import until_room
from strongroom.enclave.scripts import calling, entry_of
from strongroom.enclave.unmeasured import Hiding
from strongroom.enclave.witness import Witness
from strongroom.errors import EnclaveError, MeasurementError
from strongroom.vault import Vault

_ENGINES_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # theirs, for an image that has none
_NAMES, _LONGEST = 300, 400  # in one message, in which a character of ASCII takes two bytes at most
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def run(booted: Booted, hidden: Hiding | None = None) -> int:
    """Mount, run, and seal what was written; the program's exit status, 128 + n if signal n ended it.

    Args:
        hidden: what was begun before; else it is now.
    """
    if enclave_user(booted) is not None:
        share_memory()
    if booted.config.image:
        make_root(booted)
    elif booted.sandboxed:
        (hidden or Hiding()).hide(booted.config.host)
    witness = Witness(booted)
    with ExitStack() as shields:
        mesh = Meshed(booted)
        lifeline = shields.enter_context(
            Lifeline(booted.session, tell=partial(_notice, booted), on_revoked=mesh.on_revoked)
        )
        deposits = shields.enter_context(Deposits(booted))  # before the vaults: they are sealed before it ends
        found = shields.enter_context(mounted(booted, witness))
        shields.enter_context(given_files(booted, witness))
        # Places first: what a secret contains is not looked at again.
        command = [booted.render(_expand(booted, word, found.places)) for word in booted.config.command]
        if not command:
            raise EnclaveError("command: is empty")
        mirror = next((rule.name for rule in booted.config.vaults if rule.access == "mirror"), None)
        if mirror is not None and booted.config.image:
            raise EnclaveError("mirror: an image has no Strongroom in it, which a mirror takes")
        keeper = None
        if mirror is not None:
            check_command(booted.config.command)
            keeper = shields.enter_context(Keeper(booted, mirror))
            command[1:] = keeper.wrapped(command[1:])
        if not booted.config.image:
            command = _by_python(command)
        if command[0] in ("python", "python3") and not booted.config.image:
            # As an option too: `-I` and `-E` turn the variable off.
            command[:1] = [sys.executable, "-X", f"pycache_prefix={_pycache(booted)}"]
        if booted.sandboxed and not booted.config.image:
            _hand_on_compiled_code(booted)
        shields.enter_context(mesh)
        outside = shields.enter_context(Outside(booted, mesh))
        confined = shields.enter_context(confinement(booted, found.places))
        outputs = shields.enter_context(_sealed_outputs(booted))
        booted.control.event("running", command=list(booted.config.command))
        inherited = () if keeper is None else (keeper.descriptor,)
        lifeline.check()
        status = _supervise(
            command,
            _environment(booted, {**mesh.variables, **outside.variables}),
            BOOT_PYCACHE if booted.config.image else _pycache(booted),
            lifeline=lifeline,
            confined=confined,
            outputs=outputs,
            inherited=inherited,
            apart=bool(booted.config.image),
        )
        lifeline.check()
        booted.control.event("ended", status=status)
        booted.control.check_unchanged()
        if booted.sandboxed and not booted.config.image and not booted.config.quiet:
            _tell_imports(booted)
        if keeper is not None:
            keeper.check()
            state = keeper.state()
            if state is not None:
                witness.mirror(state)
        found.check()
        witness.ended(status)
        deposits.status = status
    return status


def _by_python(command: list[str]) -> list[str]:
    """A command that a measured package brings, as Python's; another as it is."""
    name, *arguments = command
    entry = entry_of(name, site.getsitepackages())
    return command if entry is None else ["python", *calling(name, entry), *arguments]


def _hand_on_compiled_code(booted: Booted) -> None:
    """Let the program find the compiled code of what boot has imported, and what else the launcher has kept."""
    if not os.path.isdir(COMPILED_DIRECTORY):  # noqa: PTH112
        shutil.copytree(BOOT_PYCACHE, SANDBOX_PYCACHE, dirs_exist_ok=True)
        give(booted, Path(SANDBOX_PYCACHE))
        return
    user = enclave_user(booted)
    config = booted.config
    own = [rule.mount for rule in (*config.vaults, *config.sealed) if rule.mount] + [rule.path for rule in config.files]
    own += [*config.ephemeral, *config.host]
    for directory in link(COMPILED_DIRECTORY, SANDBOX_PYCACHE, {*own, *map(os.path.realpath, own)}):
        if user is not None:
            os.chown(directory, user, user)


def _tell_imports(booted: Booted) -> None:
    """Tell the launcher what it may compile for the next enclave; it knows already what the program prints."""
    own = [str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())]
    names = [name for name in own if name.endswith(".py")] + sources_of(SANDBOX_PYCACHE)
    kept = os.path.isdir(COMPILED_DIRECTORY)  # noqa: PTH112
    names = [name for name in names if not (kept and is_kept(COMPILED_DIRECTORY, name))]
    for some in tellable(names):
        booted.control.event("imported", sources=some)


def tellable(names: Sequence[str]) -> Iterator[list[str]]:
    """What of it a hint may take, in messages that fit: the program can have put any names there."""
    names = [name for name in names[:MOST] if len(name) <= _LONGEST and name.isascii() and name.isprintable()]
    for first in range(0, len(names), _NAMES):
        yield names[first : first + _NAMES]


def _notice(booted: Booted, text: str) -> None:
    booted.control.event("notice", text=text)


def _private_root(booted: Booted) -> Path:
    return Path(str(booted.layout.get("private_root")))


def _expand(booted: Booted, word: str, places: Mapping[str, Path]) -> str:
    for name, place in places.items():
        word = word.replace(f"{{vault:{name}}}", seen(booted, place))
    return word


@contextmanager
def _sealed_outputs(booted: Booted) -> Iterator[Outputs | None]:
    """Where the program's standard streams go, if not to the host alone; sealed at the end."""
    name = booted.config.log
    if not name:
        yield None
        return
    if not booted.sandboxed:
        raise EnclaveError("log: nothing is private without a sandbox")
    if booted.access(name) != "read-write":
        raise EnclaveError(f"log: the policy gives vault {name} {booted.access(name)}, wanted read-write")
    with booted.open_vault(name) as opened:
        outputs = Outputs(quiet=booted.config.quiet, user=enclave_user(booted))
        try:
            yield outputs
        except MeasurementError:
            raise  # what it said may be of code that was not measured
        except BaseException:
            _seal_outputs(booted, name, opened, outputs)
            raise
        _seal_outputs(booted, name, opened, outputs)


def _seal_outputs(booted: Booted, name: str, opened: Vault, outputs: Outputs) -> None:
    try:
        written = until_room(booted, name, lambda: outputs.seal(opened), lambda: outputs.size)
    except OSError as error:  # a full disk of the host's
        why = (error.strerror or str(error)).lower()
        raise EnclaveError(
            f"vault {name}: {why}: what the program printed did not fit; no result of this run was sealed",
            hint="make room where the vault lies, and run it again",
        ) from None
    booted.control.event("sealed", vault=name, files=written, lineage=0, root=str(opened.root))


def _environment(booted: Booted, told: Mapping[str, str]) -> dict[str, str]:
    """The program's variables: constants, what was measured, and its secrets; nothing that the host has set."""
    if booted.config.image:
        own = {name: booted.render(value) for name, value in booted.config.environment.items()}
        return {**SANDBOX_ENVIRONMENT, "PATH": _ENGINES_PATH, **told, **own, **booted.provisions.environment}
    if booted.sandboxed:
        base = dict(SANDBOX_ENVIRONMENT)
    else:
        private = str(_private_root(booted))
        base = SANDBOX_ENVIRONMENT | {"HOME": private, "TMPDIR": private}
    return {
        **base,
        **told,
        "PYTHONPYCACHEPREFIX": _pycache(booted),
        **{name: booted.render(value) for name, value in booted.config.environment.items()},
        **booted.provisions.environment,
    }


def _pycache(booted: Booted) -> str:
    """Where compiled code is kept, in the enclave's own memory: what lies beside the sources was never measured."""
    return SANDBOX_PYCACHE if booted.sandboxed else str(_private_root(booted) / ".pycache")


def _supervise(
    command: list[str],
    environment: Mapping[str, str],
    pycache: str,
    *,
    lifeline: Lifeline,
    confined: Confinement,
    outputs: Outputs | None = None,
    inherited: Sequence[int] = (),
    apart: bool = False,
) -> int:
    """Run a command without privileges, pass signals on, reap orphans (this may be process 1), end it with the lease.

    Of this process's descriptors it gets those that are `inherited`. Its variables come `apart` if they are for another
    root, where they name other files than here.
    """
    drop = [sys.executable, "-I", "-S", "-X", f"pycache_prefix={pycache}", str(Path(__file__).with_name("drop.py"))]
    told, arguments = dict(environment), confined.arguments
    descriptors = (*inherited, *confined.descriptors)
    if apart:
        variables = _variables(environment)
        told, arguments, descriptors = {}, [*arguments, "--environment", str(variables)], (*descriptors, variables)
    child = subprocess.Popen(  # noqa: S603  # the measured command
        [*drop, *arguments, "--", *command],
        env=told,
        pass_fds=descriptors,
        stdout=outputs.stdout if outputs else None,
        stderr=outputs.stderr if outputs else None,
    )
    if apart:
        os.close(variables)
    if outputs:
        outputs.started()

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    lifeline.hold(lambda: _kill(child.pid))
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return child.wait()
        if pid == child.pid:
            lifeline.release()
            child.returncode = code = os.waitstatus_to_exitcode(status)
            if os.getpid() == 1:
                # Nothing that the program left running may change its results while they are sealed.
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            return code if code >= 0 else 128 - code


def _variables(environment: Mapping[str, str]) -> int:
    """A descriptor that `drop.py` reads them from."""
    descriptor = os.memfd_create("variables")
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.writelines(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _kill(program: int) -> None:
    """End a program, and all that it started where this is process 1."""
    with suppress(ProcessLookupError):
        os.kill(-1 if os.getpid() == 1 else program, signal.SIGKILL)
