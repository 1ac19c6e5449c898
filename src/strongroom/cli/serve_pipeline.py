"""`strongroom serve --plan`: a model in several enclaves. Starts them, and starts again what ends.

- This process has the listening sockets and none of the pipeline's keys in its hands while it serves: what it can do to
  requests is delay them.
- What is killed or fails is started again after a pause that doubles; what was up before starts at once.
- What is revoked or refused ends all. So does what fails to start `_TRIES` times in a row.
- With standbys, two enclaves of a part wait at one socket: the front door's next connection finds the other.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.version import Policy, Program, VaultRule
from strongroom.cli import output
from strongroom.cli.remembered import known_digests
from strongroom.cli.run import evidence as run_evidence
from strongroom.cli.run.verb import boot_config, describe_event
from strongroom.cli.workspace import (
    Home,
    SealedVault,
    apply_development_policy,
    entrust,
    policy_name,
    restored_here,
)
from strongroom.crypto import digest
from strongroom.enclave.config import BootConfig
from strongroom.enclave.launch import Enclave, launch
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.measure import Measurement, measure
from strongroom.errors import CasError, ChannelError, EnclaveError, ServeError, StrongroomError, UsageError
from strongroom.serve.pipeline.document import Pipeline, command
from strongroom.serve.pipeline.part import MODEL
from strongroom.serve.plan import Plan

_TRIES = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0
_DRAIN_SECONDS = 70.0  # more than a request may take
_RULE = VaultRule("model", "", "read-only")


@dataclass(frozen=True)
class _Role:
    """The front door, or a part: what each enclave of it is launched with."""

    name: str
    config: BootConfig
    measured: Measurement
    policy: Policy
    vaults: Mapping[str, Path]
    listener: socket.socket
    dials: Mapping[str, Callable[[], socket.socket]]
    ready: str
    """The event by which an enclave says that it is up."""


class Supervisor:
    """The running pipeline. Made by `start_pipeline`.

    Attributes:
        policy: the front door's.
        up: set once the front door and every part have been up.
    """

    def __init__(self, roles: list[tuple[_Role, int]], begin: Callable[..., Enclave], *, quiet: bool) -> None:
        self.up = threading.Event()
        self.policy = roles[0][0].policy
        self._begin, self._quiet = begin, quiet
        self._over = threading.Event()
        self._failure: StrongroomError | None = None
        self._lock = threading.Lock()
        self._ready: set[str] = set()
        self._names = {role.name for role, _ in roles}
        self._slots = [_Slot(self, role) for role, count in roles for _ in range(count)]

    def start(self) -> None:
        for slot in self._slots:
            slot.start()

    def stop(self) -> None:
        """Drain: the front door accepts no more, and answers what it has; then the parts end. Does not wait."""
        self._over.set()

    @property
    def running(self) -> bool:
        return not self._over.is_set()

    def wait(self) -> int:
        """Until it was told to stop, or failed; the exit status.

        Raises:
            StrongroomError: a part was revoked, or could not be started.
        """
        while not self._over.wait(0.5):
            pass
        for front in (True, False):
            slots = [slot for slot in self._slots if (slot.role is self._slots[0].role) is front]
            for slot in slots:
                slot.ask_to_end()
            for slot in slots:
                slot.end()
        if self._failure is not None:
            raise self._failure
        return 0

    def signal(self, name: str, number: int, *, which: int = 0) -> None:
        """Send a signal to an enclave of a role, ``front``, ``part-1`` and so on: the first of several, or another."""
        slot = [slot for slot in self._slots if slot.role.name == name][which]
        if slot.enclave is not None:
            slot.enclave.signal(number)

    def launch(self, slot: _Slot) -> Enclave:
        return self._begin(slot.role, lambda event, detail: self._heard(slot, event, detail))

    def fail(self, error: StrongroomError) -> None:
        """End it all."""
        with self._lock:
            self._failure = self._failure or error
        self._over.set()

    def pause(self, seconds: float) -> None:
        self._over.wait(seconds)

    def say(self, text: str) -> None:
        if not self._quiet:
            output.note(text)

    def _heard(self, slot: _Slot, event: str, detail: dict[str, Any]) -> None:
        if event == slot.role.ready:
            slot.ready = True
            with self._lock:
                self._ready.add(slot.role.name)
                everything = self._ready == self._names
            if everything:
                self.up.set()
        line = describe_event(event, detail)
        if line:
            self.say(f"{slot.role.name}: {line}")


class _Slot(threading.Thread):
    """One enclave after the other in one role, from one thread: an enclave ends with the thread that launched it."""

    def __init__(self, supervisor: Supervisor, role: _Role) -> None:
        super().__init__(name=role.name, daemon=True)
        self.role = role
        self.enclave: Enclave | None = None
        self.ready = False
        self._supervisor = supervisor

    def run(self) -> None:
        failures = 0
        while self._supervisor.running:
            self.ready = False
            try:
                self.enclave = self._supervisor.launch(self)
                self.enclave.wait()
                error: StrongroomError = EnclaveError(f"{self.role.name}: ended by itself")
            except StrongroomError as failed:
                error = failed
            except OSError as failed:
                error = EnclaveError(f"{self.role.name}: {failed.strerror or failed}")
            if not self._supervisor.running:
                return
            failures = 0 if self.ready else failures + 1
            # What is refused, or no model, stays so.
            if not isinstance(error, EnclaveError | ChannelError | CasError) or failures >= _TRIES:
                self._supervisor.fail(error)
                return
            self._supervisor.say(f"{self.role.name}: {error.message}; it is started again")
            if failures:
                self._supervisor.pause(min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE))

    def ask_to_end(self) -> None:
        """Once, since a second time would cut off what is being answered."""
        if self.ready and self.enclave is not None:
            self.enclave.signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end; what was not up yet has nothing to finish."""
        self.join(_DRAIN_SECONDS if self.ready else 0)
        while self.is_alive():
            if self.enclave is not None:
                self.enclave.signal(signal.SIGKILL)
            self.join(0.2)


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises UsageError if there is none, FormatError if it is none."""
    try:
        return Plan.parse(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--plan: {path}: {(error.strerror or str(error)).lower()}") from None


def made_plan(sealed: SealedVault, model: str, memory: str) -> Plan:
    """The plan of least latency for enclaves of that memory, made here; what is measured for it is remembered.

    Raises:
        UsageError: the memory is no size.
        ServeError: there is no plan.
    """
    from strongroom.serve.graph import load
    from strongroom.serve.plan import Enclaves, Wanted, make, prepare, remembered
    from strongroom.serve.plan.cache import Cache
    from strongroom.serve.plan.transfer import measure as transfer
    from strongroom.serve.plan.words import parse_size

    size = parse_size(memory, "--memory")
    threads = len(os.sched_getaffinity(0))
    with _reading(sealed, model) as (raw, external):
        prepared = prepare(load(raw, external=external), memory=size)
    output.note("planning: each part of the model is loaded and run here once, which is remembered")
    profile = remembered(prepared.chain, Cache.of_user(), threads=threads)
    try:
        plan = make(prepared, profile, Wanted((Enclaves(size),), transfer(), "latency", shared=1), None)
    except ServeError as error:
        raise ServeError(
            f"--memory: {error.message}", hint="more memory, or a plan with more choices: strongroom plan, then --plan"
        ) from None
    output.note(f"planned: {len(plan.stages)} stages, plan {plan.digest[:12]}; see more: strongroom plan")
    return plan


@contextmanager
def _reading(sealed: SealedVault, model: str) -> Iterator[tuple[bytes, Callable[[str], bytes]]]:
    """A sealed model's bytes, and what reads files beside it."""
    folder = PurePosixPath(model).parent
    with sealed.open() as opened:
        yield opened.read_bytes(model), lambda name: opened.read_bytes(str(folder / name))


def start_pipeline(
    home: Home,
    address: CasAddress,
    sealed: SealedVault,
    model: str,
    plan: Plan,
    *,
    listener: socket.socket,
    resources: ExitStack,
    machine: Machine | None = None,
    debug: bool = False,
    quiet: bool = False,
    standby: bool = False,
    delay: int = 0,
    tick: int = 0,
    reference: str = "",
) -> Supervisor:
    """Cut a model as a plan says, seal each part to a policy of its own, and launch front door and parts.

    Args:
        sealed: the vault with the model.
        model: its path there.
        listener: the socket that the front door accepts on.
        resources: closes what this opens, once all have ended.
        standby: launch two enclaves of each part.
        delay, tick: in microseconds, as `Pipeline` has them.
        machine, debug, quiet, reference: as `start_service` has them.

    Raises:
        UsageError: the plan is not of that model.
    """
    from strongroom.serve.pipeline.cut import cut

    owner, vendor = home.owner(), home.vendor()
    with _reading(sealed, model) as (raw, external):
        pieces = cut(raw, plan, external=external)
    name = PurePosixPath(model).name.removesuffix(".onnx")
    base = policy_name("serve-" + name, [sealed.key()])
    count = len(plan.stages)
    policies = tuple(f"{base}-part-{number}" for number in range(1, count + 1))
    pipeline = pieces.pipeline(name, front=f"{base}-front", policies=policies, delay=delay, tick=tick)
    vaults = [_sealed_part(home, pipeline, number, pieces.models[number - 1]) for number in range(1, count + 1)]
    sockets = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-pipeline-")))
    roles: list[_Role] = []
    with known_digests(home), home.owner_client(address, owner) as client:
        for number in range(count + 1):
            role = _role(home, address, client, pipeline, number, vaults, machine=machine, reference=reference)
            config, measured, policy = role
            if number:
                path = sockets / f"part-{number}.sock"
                listens = resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                listens.bind(str(path))
                listens.listen(16)
                places = {_RULE.name: vaults[number - 1].path}
                roles.append(_Role(f"part-{number}", config, measured, policy, places, listens, {}, "part"))
            else:
                dials = {f"part-{part}": _dial(sockets / f"part-{part}.sock") for part in range(1, count + 1)}
                roles.append(_Role("front", config, measured, policy, {}, listener, dials, "serving"))

    def begin(role: _Role, on_event: Callable[[str, dict[str, Any]], None]) -> Enclave:
        return launch(
            role.config,
            {},
            cas=address,
            vendor=None if machine else vendor,
            machine=machine,
            vaults=role.vaults,
            listener=role.listener,
            dials=role.dials,
            platform=role.measured.platform,
            debug=debug,
            on_event=on_event,
        )

    supervisor = Supervisor([(role, 2 if standby and role.vaults else 1) for role in roles], begin, quiet=quiet)
    supervisor.start()
    return supervisor


def _role(
    home: Home,
    address: CasAddress,
    client: OwnerClient,
    pipeline: Pipeline,
    number: int,
    vaults: list[SealedVault],
    *,
    machine: Machine | None,
    reference: str,
) -> tuple[BootConfig, Measurement, Policy]:
    """Measure the front door or a part, apply its policy, and give the CAS the key of its vault."""
    name = pipeline.parts[number - 1].policy if number else pipeline.front
    rules = (_RULE,) if number else ()
    program = Program.literal(command(pipeline, number), ())
    config = boot_config(name, address, program, rules, role="service", cas_reference=reference)
    measured = measure(config, {})
    policy = apply_development_policy(
        client,
        name=name,
        role="service",
        owner=home.owner().public.fingerprint,
        measurement=measured.value,
        vendor_root=home.vendor().root_digest,
        program=program,
        vaults=rules,
        accepts=run_evidence.accepted(machine),
    )
    if number:
        entrust(client, policy, {_RULE.name: vaults[number - 1]}, restore=restored_here(client, policy))
    return config, measured, policy


def _sealed_part(home: Home, pipeline: Pipeline, number: int, model: bytes) -> SealedVault:
    """A vault with a part's model, in this user's home; the one of an earlier start, if it holds the same."""
    directory = home.path / "pipelines"
    directory.mkdir(mode=0o700, exist_ok=True)
    sealed = SealedVault.at(directory / f"{pipeline.plan[:16]}-{number}.vault")
    try:
        with sealed.open() as opened:
            if digest(opened.read_bytes(MODEL)).hex() == pipeline.parts[number - 1].digest:
                return sealed
    except (StrongroomError, OSError):
        pass  # none, or not whole
    sealed.remove(with_key=True)
    with sealed.create() as made:
        made.write_bytes(MODEL, model)
        made.commit()
    return sealed


def _dial(path: Path) -> Callable[[], socket.socket]:
    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return sock

    return dial
