"""Runs an unmodified program in a booted enclave: vaults at their paths, no privileges, the exit status passed on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from strongroom.enclave.boot import Booted, main
from strongroom.enclave.config import BOOT_PYCACHE, SANDBOX_ENVIRONMENT, SANDBOX_PYCACHE, VaultMount
from strongroom.enclave.confine import Confinement, confinement, enclave_user, give, share_memory
from strongroom.enclave.given import Deposits, given_files
from strongroom.enclave.lifeline import Lifeline
from strongroom.enclave.mirrored import Keeper, check_command
from strongroom.enclave.outputs import Outputs
from strongroom.enclave.witness import Witness, is_lineage
from strongroom.errors import EnclaveError, MissingDependencyError, UnsupportedPlatformError
from strongroom.shield import files
from strongroom.vault import Vault

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


_MOUNTED = Path("/run/mounted")


def run(booted: Booted) -> int:
    """Mount, run, and seal what was written; the program's exit status, 128 + n if signal n ended it."""
    if enclave_user(booted) is not None:
        share_memory()
    witness = Witness(booted)
    with ExitStack() as shields:
        lifeline = shields.enter_context(Lifeline(booted.session, tell=partial(_notice, booted)))
        rules = [rule for rule in booted.config.vaults if rule.mount]
        places = {rule.name: _place(booted, rule) for rule in rules}
        deposits = shields.enter_context(Deposits(booted))  # before the vaults: they are sealed before it ends
        readable = {r.name: places[r.name] for r in rules if booted.access(r.name) == "read-only"}
        mounted = shields.enter_context(_readable(booted, readable, witness))
        for rule in rules:
            if booted.access(rule.name) == "read-write":
                shields.enter_context(_writable(booted, rule.name, places[rule.name], witness))
        shields.enter_context(given_files(booted, witness))
        # Places first: what a secret contains is not looked at again.
        command = [booted.render(_expand(word, places)) for word in booted.config.command]
        if not command:
            raise EnclaveError("command: is empty")
        mirror = next((rule.name for rule in booted.config.vaults if rule.access == "mirror"), None)
        keeper = None
        if mirror is not None:
            check_command(booted.config.command)
            keeper = shields.enter_context(Keeper(booted, mirror))
            command[1:] = keeper.wrapped(command[1:])
        if command[0] in ("python", "python3"):
            # As an option too: `-I` and `-E` turn the variable off.
            command[:1] = [sys.executable, "-X", f"pycache_prefix={_pycache(booted)}"]
        if booted.sandboxed:
            shutil.copytree(BOOT_PYCACHE, SANDBOX_PYCACHE, dirs_exist_ok=True)
        confined = shields.enter_context(confinement(booted, places))
        outputs = shields.enter_context(_sealed_outputs(booted))
        booted.control.event("running", command=list(booted.config.command))
        inherited = () if keeper is None else (keeper.descriptor,)
        lifeline.check()
        status = _supervise(
            command,
            _environment(booted),
            _pycache(booted),
            lifeline=lifeline,
            confined=confined,
            outputs=outputs,
            inherited=inherited,
        )
        lifeline.check()
        booted.control.event("ended", status=status)
        if keeper is not None:
            keeper.check()
            state = keeper.state()
            if state is not None:
                witness.mirror(state)
        # The program saw an I/O error and may have gone on: what it made of that is not committed.
        if mounted is not None and mounted.failure is not None:
            raise mounted.failure
        witness.ended(status)
        deposits.status = status
    return status


def _notice(booted: Booted, text: str) -> None:
    booted.control.event("notice", text=text)


def _place(booted: Booted, rule: VaultMount) -> Path:
    """Where a vault appears: at its mount inside a mount namespace, else below a private directory."""
    return Path(rule.mount) if booted.sandboxed else _private_root(booted) / rule.name


def _private_root(booted: Booted) -> Path:
    return Path(str(booted.layout.get("private_root")))


def _expand(word: str, places: Mapping[str, Path]) -> str:
    for name, place in places.items():
        word = word.replace(f"{{vault:{name}}}", str(place))
    return word


@contextmanager
def _readable(booted: Booted, places: Mapping[str, Path], witness: Witness) -> Iterator[files.MountedVault | None]:
    """Read-only vaults, decrypted on access through FUSE (the mount), or unpacked into memory where there is none."""
    if not places:
        yield None
        return
    with ExitStack() as opened:
        vaults = {name: opened.enter_context(booted.open_vault(name)) for name in places}
        mounted = _mount(booted, vaults, places) if booted.layout.get("fuse") else None
        if mounted is None:
            for name, place in places.items():
                opened.enter_context(files.expose(vaults[name], place))
                give(booted, place)
                witness.unpacked(name, vaults[name], place)
        else:
            for name in places:
                witness.mounted(name, vaults[name])
        how = "unpacked to private memory" if mounted is None else "decrypted on access (FUSE)"
        for name, place in places.items():
            booted.control.event("vault", vault=name, mount=str(place), how=how)
        if mounted is not None:
            opened.enter_context(mounted)
        yield mounted


def _mount(booted: Booted, vaults: Mapping[str, Vault], places: Mapping[str, Path]) -> files.MountedVault | None:
    """One mount for all of them, since a process serves one; None where mounting is not possible after all."""
    try:
        if len(vaults) == 1:
            [(name, opened)] = vaults.items()
            places[name].mkdir(parents=True, exist_ok=True)
            return files.mount(opened, places[name], anybody=enclave_user(booted) is not None)
        _MOUNTED.mkdir(parents=True, exist_ok=True)
        mounted = files.mount(vaults, _MOUNTED, anybody=enclave_user(booted) is not None)
    except (MissingDependencyError, UnsupportedPlatformError) as error:
        booted.control.event("notice", text=f"{error.message}; unpacking sealed data to memory")
        return None
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(_MOUNTED / name)
    return mounted


@contextmanager
def _writable(booted: Booted, name: str, place: Path, witness: Witness) -> Iterator[None]:
    """A directory in memory with the vault's content, sealed and committed when the program has ended."""
    with booted.open_vault(name) as opened:
        files.expose(opened, place)
        give(booted, place)
        witness.writable(name, opened, place)
        booted.control.event("vault", vault=name, mount=str(place), how="in memory, sealed when the program ends")
        yield
        skipped = files.collect(place, opened)
        for path in opened.files():
            if not (place / path).is_file():
                opened.remove(path)
        stated = witness.state(name, opened)
        opened.commit()
        written = [path for path in opened.files() if not is_lineage(path)]
        booted.control.event("sealed", vault=name, files=written, lineage=len(stated), root=str(opened.root))
        if skipped:
            booted.control.event(
                "notice", text=f"vault {name}: not sealed, being no regular files: {', '.join(skipped)}"
            )


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
        finally:
            written = outputs.seal(opened)
            booted.control.event("sealed", vault=name, files=written, lineage=0, root=str(opened.root))


def _environment(booted: Booted) -> dict[str, str]:
    """The program's variables: constants, what was measured, and its secrets; nothing that the host has set."""
    if booted.sandboxed:
        base = dict(SANDBOX_ENVIRONMENT)
    else:
        private = str(_private_root(booted))
        base = SANDBOX_ENVIRONMENT | {"HOME": private, "TMPDIR": private}
    return {
        **base,
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
) -> int:
    """Run a command without privileges, pass signals on, reap orphans (this may be process 1), end it with the lease.

    Of this process's descriptors it gets those that are `inherited`.
    """
    drop = [sys.executable, "-I", "-S", "-X", f"pycache_prefix={pycache}", str(Path(__file__).with_name("drop.py"))]
    child = subprocess.Popen(  # noqa: S603  # the measured command
        [*drop, *confined.arguments, "--", *command],
        env=dict(environment),
        pass_fds=(*inherited, *confined.descriptors),
        stdout=outputs.stdout if outputs else None,
        stderr=outputs.stderr if outputs else None,
    )
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


def _kill(program: int) -> None:
    """End a program, and all that it started where this is process 1."""
    with suppress(ProcessLookupError):
        os.kill(-1 if os.getpid() == 1 else program, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(run))
