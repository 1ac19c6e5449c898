"""Boot: the one road of every enclave, walked inside it before anything else runs.

1. Become undumpable; read the configuration that was measured.
2. Make a key in memory; show evidence bound to it, and to the channel, to the CAS that was measured, once that has
   shown its own, where that was measured, too.
3. Receive vault keys and secrets, sealed to that key.
4. Raise the shields: vaults appear at their paths.
5. Run the program with every privilege dropped; afterwards seal what it wrote.

`boot` walks 1 to 3 and is shared by programs and services; `program.py` goes on with 4 and 5. A dealer (`dealer.py`)
takes step 1, shows its evidence to its servers instead, and receives nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from strongroom import vault
from strongroom.attest.evidence import Evidence
from strongroom.attest.reference import ReferenceValues
from strongroom.cas.client.anchor import CasAnchor
from strongroom.cas.client.enclave import EnclaveSession, Provisions
from strongroom.cas.policy.templates import parse_template
from strongroom.crypto.encoding import base64_bytes
from strongroom.enclave.config import SANDBOX, VAULTS_DIRECTORY, BootConfig
from strongroom.enclave.control import CAS, Control
from strongroom.enclave.drop import filter_calls
from strongroom.enclave.enforce import check_enforced
from strongroom.enclave.patience import NEWCOMER_SECONDS, until_answered
from strongroom.enclave.process import keep_private
from strongroom.enclave.seccomp import BOOT_NEEDS, seccomp_filter
from strongroom.errors import EnclaveError, FormatError, StrongroomError
from strongroom.sealed import Grouped, Root, SealedFile, open_sealed

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS = 0x00020000
_GROUP_SECONDS = 5.0
"""How long a commit may go unanchored where the policy says ``grouped``."""


class HostAttester:
    """A simulated enclave's hardware is the host; a real TEE's attester takes this place."""

    tee = "simulated"

    def __init__(self, control: Control) -> None:
        self._control = control

    def evidence(self, report_data: bytes) -> Evidence:
        return self._control.evidence(report_data)


Result = TypeVar("Result")


@dataclass(frozen=True)
class Patient:
    """An anchor that waits for its CAS to answer, for as long as the enclave's lease counts.

    To move on is done a second time without harm (`CasAnchor.advance`).
    """

    booted: Booted
    anchor: CasAnchor

    def read(self) -> Root | None:
        return self.booted.patiently(self.anchor.read)

    def advance(self, old: Root | None, new: Root) -> None:
        self.booted.patiently(lambda: self.anchor.advance(old, new))


@dataclass(frozen=True)
class Watched:
    """An anchor for reading only: the direct successor of its root is as fresh, and moving on is for the writer."""

    anchor: Patient

    def read(self) -> Root | None:
        return self.anchor.read()

    def advance(self, old: Root | None, new: Root) -> None:
        """Leave it where it is."""


@dataclass(frozen=True)
class Booted:
    """An attested enclave with what it has received."""

    control: Control
    config: BootConfig
    layout: Mapping[str, Any]
    session: EnclaveSession
    provisions: Provisions

    @property
    def sandboxed(self) -> bool:
        """Whether this enclave was measured as one in a sandbox: then the host's layout has no say in any path."""
        return self.config.isolation == SANDBOX

    @property
    def command(self) -> list[str]:
        """Program and arguments, with secrets where the policy has places for them."""
        return [self.render(word) for word in self.config.command]

    def render(self, template: str) -> str:
        """A template of the policy's with its secrets. Raises PolicyError if one is not there."""
        return parse_template(template).render(self.provisions.secrets)

    def access(self, name: str) -> str:
        """How this enclave may use a vault or sealed file: as the CAS says, and never more than it was measured with.

        Raises:
            EnclaveError: the CAS gave no key for it, or another access.
        """
        launched = next((v.access for v in (*self.config.vaults, *self.config.sealed) if v.name == name), None)
        keyed = self.provisions.keyed(name)
        if launched is None or keyed is None:
            raise EnclaveError(f"vault {name}: the policy gives no key for it")
        # Of several replicas not all may write.
        if keyed.access not in (launched, "read-only") or (launched == "mirror" and keyed.access != launched):
            raise EnclaveError(f"vault {name}: launched {launched}, the policy says {keyed.access}")
        return keyed.access

    def open_vault(self, name: str) -> vault.Vault:
        """One of the policy's vaults, fresh by the CAS's anchor, read-write only if policy and layout both say so.

        Raises:
            EnclaveError: the CAS gave no key for it, or the host no place.
            IntegrityError: it is not what the anchor names.
            FormatError: it is encrypted, and was launched as authenticated only, or the other way round.
        """
        place, key, anchor = self._sealed_thing(name)
        mode: Literal["r", "r+"] = "r" if isinstance(anchor, Watched) else "r+"
        return vault.open(Path(place), mode, key=key, anchor=anchor, encrypted=name not in self.config.authenticated)

    def open_file(self, name: str) -> SealedFile:
        """One of the policy's sealed files; as `open_vault`."""
        place, key, anchor = self._sealed_thing(name)
        return open_sealed(place, "r" if isinstance(anchor, Watched) else "r+", key=key, anchor=anchor)

    def anchor(self, name: str) -> Patient:
        """Of one of the policy's vaults or sealed files."""
        return Patient(self, self.session.anchor(name))

    def patiently(self, ask: Callable[[], Result]) -> Result:
        """What `ask` has from the CAS; where that does not answer, asked again while the lease counts, and told."""
        tell = partial(_notice, self.control)
        return until_answered(ask, left=lambda: self.session.lease_left, tell=tell, lost="what was not sealed")

    def _sealed_thing(self, name: str) -> tuple[str, bytes, Watched | Patient | Grouped]:
        """Where it lies, its key, and its anchor: a `Watched` one if it is only read."""
        access, keyed = self.access(name), self.provisions.keyed(name)
        place = f"{VAULTS_DIRECTORY}/{name}" if self.sandboxed else self.layout.get("vaults", {}).get(name)
        if not isinstance(place, str) or keyed is None:
            raise EnclaveError(f"vault {name}: the host has not said where it lies")
        anchor = self.anchor(name)
        if access != "read-write":
            return place, keyed.key, Watched(anchor)
        if keyed.freshness == "grouped":
            return place, keyed.key, Grouped(anchor, every_seconds=_GROUP_SECONDS, clock=time.monotonic)
        return place, keyed.key, anchor


def boot(control: Control) -> Booted:
    """Attest and receive.

    Raises:
        AttestationError, CasError, ChannelError: the CAS refused, or could not be reached.
    """
    config, layout = configured(control)
    if config.isolation == SANDBOX:
        _own_mounts()
    session = EnclaveSession(
        lambda: control.ask_socket("dial", peer=CAS),
        cas_root=config.cas_root,
        policy=config.policy,
        role=config.role,
        attester=HostAttester(control),
        replica=_replica(layout),
        reference=_reference(config.cas_reference),
    )
    # A replica that comes while the CAS is away is waited for by others; whoever runs alone is told at once.
    until = time.monotonic() + (NEWCOMER_SECONDS if "mesh" in layout else 0.0)
    provisions = until_answered(session.attest, left=lambda: until - time.monotonic(), tell=partial(_notice, control))
    check_enforced(config, provisions.paths, provisions.wanted)
    keys = sorted({**provisions.vaults, **provisions.sealed})
    control.event("attested", policy=config.policy, vaults=keys, secrets=sorted(provisions.secrets))
    return Booted(control, config, layout, session, provisions)


def _notice(control: Control, text: str) -> None:
    control.event("notice", text=text)


def _reference(document: str) -> ReferenceValues | None:
    """What the CAS's own evidence must be, if that is said."""
    if not document:
        return None
    from strongroom.cas.policy.version import reference_of  # most enclaves read no policy

    return reference_of(document)


def _replica(layout: Mapping[str, Any]) -> int | None:
    """Which replica the host says that this is: the CAS lets no two live ones be the same."""
    replica = layout.get("replica")
    return replica if type(replica) is int else None


def configured(control: Control) -> tuple[BootConfig, Mapping[str, Any]]:
    """Step 1: become undumpable; the configuration that was measured, and the host's layout, which was not."""
    harden()
    answer, _ = control.ask("config")
    return _configuration(answer)


def _configuration(answer: Mapping[str, Any]) -> tuple[BootConfig, Mapping[str, Any]]:
    try:
        raw = base64_bytes(answer["config"])
        layout = answer["layout"]
    except (KeyError, TypeError, ValueError):
        raise FormatError("boot configuration: the host sent none") from None
    if not isinstance(layout, dict):
        raise FormatError("layout: the host sent none")
    return BootConfig.from_bytes(raw), layout


def harden() -> None:
    """Keep other processes from attaching and memory from reaching a core file; die with the launcher; do without most
    of the system calls that the program is refused.

    In a simulated enclave this does not stop the machine's owner, nor a same-user process outside the user namespace.
    """
    keep_private()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise EnclaveError(f"prctl: {os.strerror(ctypes.get_errno())}")
    filtered = seccomp_filter(allow=BOOT_NEEDS)
    if filtered is not None:
        filter_calls(filtered)


def _own_mounts() -> None:
    """A mount namespace that this process's user namespace owns: there it may mount vaults.

    bubblewrap's own belongs to another one where the program is kept from making user namespaces.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise EnclaveError(f"unshare(CLONE_NEWNS): {os.strerror(ctypes.get_errno())}")


def main(run: Callable[[Booted], int]) -> int:
    """The entry of a module that the launcher starts: boot, `run`, and report to the host how it went."""
    return enter(lambda control: _lived(boot(control), run))


def _lived(booted: Booted, run: Callable[[Booted], int]) -> int:
    """Run, and give the lease back."""
    try:
        return run(booted)
    finally:
        booted.session.end()


def enter(walk: Callable[[Control], int]) -> int:
    """The same for one that boots in its own way."""
    parser = argparse.ArgumentParser(description="Runs inside an enclave; started by the launcher only.")
    parser.add_argument("--control", type=int, required=True)
    control = Control(parser.parse_args().control)
    try:
        status = walk(control)
    except StrongroomError as error:
        control.tell("failed", error=error.to_wire())
        return error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        control.tell(
            "failed", error=EnclaveError(f"enclave: {place}{(error.strerror or str(error)).lower()}").to_wire()
        )
        return EnclaveError.exit_code
    control.tell("exited", status=status)
    sys.stdout.flush()
    return status
