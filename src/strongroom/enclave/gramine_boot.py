"""Boot in an SGX enclave under Gramine: the one road, where no launcher is needed (`boot` says what is the same).

1. Read the configuration, which the manifest covers, and so MRENCLAVE.
2. Show evidence bound to a key in this enclave to the CAS that was measured.
3. Receive vault keys and secrets.
4. Give Gramine a key for each vault's mount, and unpack the vault into it.
5. Run the program as a child, which Gramine makes an enclave of the same measurement; afterwards seal what it wrote.

- The host says one thing, where the CAS is, and is not believed.
- A mount's key is drawn from the vault's own, with something that is new in each run: what an earlier run, or one that
  was killed, has left on the host's disk opens in no later one, so it cannot be played back there. Within a run the
  host can put back an older state of a file that is closed, as Gramine's documentation says of encrypted files.
- The kernel is not asked to keep memory private: the processor does, and Gramine has no such calls.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import socket
from types import FrameType

from strongroom.attest.attester import Attester
from strongroom.attest.tee.gramine import KEY_SIZE, GramineAttester, set_key
from strongroom.attest.tee.system import System
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.cas.client.enclave import EnclaveSession
from strongroom.crypto import derive, random_bytes
from strongroom.enclave.boot import Booted
from strongroom.enclave.config import SANDBOX_ENVIRONMENT, SANDBOX_PYCACHE, BootConfig, VaultMount
from strongroom.enclave.control import Control
from strongroom.enclave.enforce import check_enforced
from strongroom.enclave.gramine import BOOT_FILE, CAS_VARIABLE, gramine_config, key_name
from strongroom.enclave.lifeline import Lifeline
from strongroom.enclave.witness import Witness
from strongroom.errors import EnclaveError, StrongroomError, UsageError
from strongroom.shield import files
from strongroom.vault import Vault

_LABEL = "strongroom/gramine-mount/v1"
_PIECE = 1 << 20
_PASSED_ON = (signal.SIGINT, signal.SIGTERM)


class Reports(Control):
    """In place of the launcher's socket: what a person should know goes to standard error."""

    def __init__(self) -> None:
        """Nothing is opened."""

    def tell(self, op: str, **arguments: object) -> None:
        text = arguments.get("text")
        if arguments.get("event") == "notice" and isinstance(text, str):
            sys.stderr.write(f"strongroom: {text}\n")

    def close(self) -> None:
        """Nothing was opened."""


def run(config: BootConfig, dial: Callable[[], socket], *, attester: Attester, system: System = os) -> int:
    """Steps 2 to 5; the program's exit status, 128 + n if signal n ended it.

    Raises:
        AttestationError, CasError, ChannelError: the CAS refused, or could not be reached.
        EnclaveError: a mount or the program could not be prepared.
    """
    if gramine_config(config) != config:
        raise EnclaveError("boot configuration: not one for Gramine")
    session = EnclaveSession(dial, cas_root=config.cas_root, policy=config.policy, role=config.role, attester=attester)
    try:
        provisions = session.attest()
        check_enforced(config, provisions.paths, provisions.wanted)
        if provisions.deposits:
            raise EnclaveError("secrets: deposits are not supported under Gramine")
        booted = Booted(Reports(), config, {}, session, provisions)
        return _run(booted, system)
    finally:
        session.end()
        session.close()


def _run(booted: Booted, system: System) -> int:
    witness = Witness(booted)
    with ExitStack() as shields:
        rules = [rule for rule in booted.config.vaults if rule.mount]
        for rule in rules:
            shields.enter_context(_mounted(booted, rule, witness, system))
        # Places first: what a secret contains is not looked at again.
        command = [booted.render(_expand(word, rules)) for word in booted.config.command]
        command[:1] = [sys.executable, "-X", f"pycache_prefix={SANDBOX_PYCACHE}"]
        # Before there are threads: Gramine does not fork safely among them (its issue 1156).
        child = subprocess.Popen(command, env=_environment(booted))  # noqa: S603  # the measured command
        shields.callback(child.wait)
        shields.callback(child.kill)  # first, if it is still there
        with Lifeline(booted.session, tell=lambda text: _notice(booted, text)) as lifeline:
            status = _supervise(child, lifeline)
            lifeline.check()
        witness.ended(status)
    return status


@contextmanager
def _mounted(booted: Booted, rule: VaultMount, witness: Witness, system: System) -> Iterator[None]:
    """A vault's content at its mount, under a key that Gramine gets now; sealed again if the policy lets it."""
    with booted.open_vault(rule.name) as opened:
        keyed = booted.provisions.keyed(rule.name)
        if keyed is None:
            raise EnclaveError(f"vault {rule.name}: the policy gives no key for it")
        set_key(
            key_name(rule.name), derive(keyed.key, _LABEL, context=random_bytes(32), length=KEY_SIZE), system=system
        )
        place = Path(rule.mount)
        with _revealed(rule.name, opened, place):
            if booted.access(rule.name) != "read-write":
                witness.unpacked(rule.name, opened, place)
                yield
                return
            witness.writable(rule.name, opened, place)
            yield
            skipped = files.take(place, opened)
            witness.state(rule.name, opened)
            opened.commit()
            if skipped:
                _notice(
                    booted, f"vault {rule.name}: not sealed, being no files or links within it: {', '.join(skipped)}"
                )


@contextmanager
def _revealed(name: str, opened: Vault, place: Path) -> Iterator[None]:
    """A vault's files below `place`, by calls that Gramine has: there are no times and no links in it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise EnclaveError(
            f"vault {name}: {place} is not empty",
            hint=f"an earlier run was killed: empty work/{name} beside the manifest",
        )
    try:
        for directory, below, found in opened.walk():
            for each in below:
                (place / directory / each).mkdir(mode=0o700)
            for each in found:
                path = f"{directory}/{each}" if directory else each
                told = opened.stat(path, follow=False)
                if told.is_link:
                    raise EnclaveError(f"vault {name}: {path[:200]}: is a link, of which Gramine has none")
                with opened.open(path) as sealed, (place / path).open("xb") as plain:
                    shutil.copyfileobj(sealed, plain, _PIECE)
                (place / path).chmod(told.mode & 0o777)
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _expand(word: str, rules: Sequence[VaultMount]) -> str:
    for rule in rules:
        word = word.replace(f"{{vault:{rule.name}}}", rule.mount)
    return word


def _environment(booted: Booted) -> dict[str, str]:
    """The program's variables: constants, what was measured, and its secrets; of the host's own, nothing."""
    return {
        **SANDBOX_ENVIRONMENT,
        # The manifest's, and so measured.
        **{name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        "PYTHONPYCACHEPREFIX": SANDBOX_PYCACHE,
        **{name: booted.render(value) for name, value in booted.config.environment.items()},
        **booted.provisions.environment,
    }


def _supervise(child: subprocess.Popen[bytes], lifeline: Lifeline) -> int:
    """Pass signals on, and end the program with the lease; its exit status, 128 + n if signal n ended it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        with suppress(ProcessLookupError):
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        lifeline.hold(child.kill)
        code = child.wait()
        lifeline.release()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _notice(booted: Booted, text: str) -> None:
    booted.control.event("notice", text=text)


def main() -> int:
    """What the manifest starts."""
    try:
        config = BootConfig.from_bytes(Path(BOOT_FILE).read_bytes())
        url = os.environ.pop(CAS_VARIABLE, "")
        if not url:
            raise UsageError(f"{CAS_VARIABLE}: is not set", hint=f"{CAS_VARIABLE}=https://HOST:PORT gramine-sgx ...")
        host, port = split_address(url)
        return run(config, lambda: dial_cas(host, port), attester=GramineAttester())
    except StrongroomError as error:
        sys.stderr.write(f"strongroom: error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"strongroom: hint: {error.hint}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"strongroom: error: boot: {(error.strerror or str(error)).lower()}\n")
        return EnclaveError.exit_code


if __name__ == "__main__":
    sys.exit(main())
