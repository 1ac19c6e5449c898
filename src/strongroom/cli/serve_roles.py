"""From a model and a plan to roles: each part sealed to a policy of its own, and measured with its place."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.version import Policy, Program, VaultRule
from strongroom.cli.remembered import known_digests
from strongroom.cli.run import evidence as run_evidence
from strongroom.cli.run.verb import boot_config
from strongroom.cli.serve_fleet import FRONT, Fleet, Launch, Role
from strongroom.cli.serve_supervisor import Supervisor, Version
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
from strongroom.enclave.directories import directory_for_sockets
from strongroom.enclave.launch import Enclave, launch
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.measure import Measurement, measure
from strongroom.errors import StrongroomError
from strongroom.lineage.requirement import Requirement
from strongroom.serve.pipeline.cut import cut, open_sizes, telling_sizes
from strongroom.serve.pipeline.document import Pipeline, command
from strongroom.serve.pipeline.origin import Origin
from strongroom.serve.pipeline.part import MODEL
from strongroom.serve.pipeline.place import Place
from strongroom.serve.plan import Plan

RULE = VaultRule("model", "", "read-only")
PART_FILE = "part.json"
VAULT = "model.vault"


@contextmanager
def reading(sealed: SealedVault, model: str) -> Iterator[tuple[bytes, Callable[[str], bytes]]]:
    """A sealed model's bytes, and what reads files beside it."""
    folder = PurePosixPath(model).parent
    with sealed.open() as opened:
        yield opened.read_bytes(model), lambda name: opened.read_bytes(str(folder / name))


def part_config(
    address: CasAddress, pipeline: Pipeline, number: int, reference: str, origin: Origin | None = None
) -> tuple[BootConfig, Measurement, Program]:
    """What the front door, whose number is 0, or a part is launched with, and what it is measured as.

    Args:
        origin: where the front door is to find its parts.
    """
    name = pipeline.parts[number - 1].policy if number else pipeline.front
    words = command(pipeline, number)
    if origin is not None:
        words = (origin.requirement.to_word(), *words, *origin.to_words())
    program = Program.literal(words, ())
    rules = (RULE,) if number or origin else ()
    config = boot_config(name, address, program, rules, role="service", cas_reference=reference)
    return config, measure(config, {}), program


def launcher(home: Home, address: CasAddress, machine: Machine | None, *, debug: bool) -> Launch:
    """What launches enclaves of roles on this machine."""
    vendor = home.vendor()

    def begin(
        role: Role,
        dials: Mapping[str, Callable[[], socket.socket]],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> Enclave:
        return launch(
            role.config,
            {},
            cas=address,
            vendor=None if machine else vendor,
            machine=machine,
            vaults=role.vaults,
            listener=role.listener,
            dials={**role.dials, **dials},
            platform=role.measured.platform,
            debug=debug,
            on_event=on_event,
        )

    return begin


@dataclass(frozen=True)
class Serving:
    """How a model in parts is served: everything but the model and the plan.

    Attributes:
        name: `namespace/name` that all its policies' names begin with, of one version as of the next.
        listener: the socket that the front door accepts on.
        resources: closes what this opens, once all have ended.
        places: of the parts that are on other machines, by their numbers.
        standby: launch one enclave of each role more than work.
        delay, tick: in microseconds, as `Pipeline` has them.
        reference: a document that says what the CAS's own evidence must be; empty to trust its root alone.
        lineage: what the front door requires of the model's, before it takes the parts for its.
    """

    home: Home
    address: CasAddress
    supervisor: Supervisor
    listener: socket.socket
    resources: ExitStack
    name: str
    machine: Machine | None = None
    debug: bool = False
    standby: bool = False
    delay: int = 0
    tick: int = 0
    reference: str = ""
    places: Mapping[int, Place] = field(default_factory=dict)
    lineage: Requirement | None = None

    def version(self, sealed: SealedVault, model: str, plan: Plan, *, before: Version | None = None) -> Version | None:
        """Cut a model as a plan says, seal each part to a policy of its own, and make the fleet that serves it.

        Args:
            sealed: the vault with the model; `model` is its path there.
            before: what is served now. The front door's policy accepts both until the new one is settled.

        Returns:
            The version; None if it is what is served now.

        Raises:
            UsageError: the plan is not of that model, or has no such parts.
        """
        with reading(sealed, model) as (raw, external):
            pieces = cut(raw, plan, external=external)
        name = PurePosixPath(model).name.removesuffix(".onnx")
        numbers = range(1, len(plan.stages) + 1)
        policies = tuple(f"{self.name}-part-{number}-{plan.digest[:8]}" for number in numbers)
        front = f"{self.name}-front"
        pipeline = pieces.pipeline(name, front=front, policies=policies, delay=self.delay, tick=self.tick)
        if before is not None and before.digest == pipeline.digest:
            return None
        for line in (*telling_sizes(pieces.chain, plan), *open_sizes(pieces.chain, plan.dims)):
            self.supervisor.say(line)
        with known_digests(self.home), self.home.owner_client(self.address, self.home.owner()) as client:
            origin = Origin(self.lineage, plan, model) if self.lineage else None
            rules, vaults = ((RULE,), {RULE.name: sealed}) if origin else ((), {})
            config, measured, program = part_config(self.address, pipeline, 0, self.reference, origin)
            old = before.fleet.roles[0].measured.value if before is not None else None
            policy = self._apply(client, front, measured, program, rules, also=[old] if old else [])
            entrust(client, policy, vaults, restore=restored_here(client, policy))
            roles: list[Role] = []
            dials: dict[str, Callable[[], socket.socket]] = {}
            for number in numbers:
                role, dial = self._part(client, pipeline, number, pieces.models[number - 1])
                roles += [role] if role else []
                dials[f"part-{number}"] = dial
        count = 2 if self.standby else 1
        paths = {name: vault.path for name, vault in vaults.items()}
        roles.insert(0, Role(FRONT, config, measured, policy, paths, self.listener, dials, count))
        supervisor = self.supervisor
        launches = launcher(self.home, self.address, self.machine, debug=self.debug)
        fleet = Fleet(roles, launches, say=supervisor.say, on_change=supervisor.changed)

        def settle() -> None:
            with self.home.owner_client(self.address, self.home.owner()) as client:
                self._apply(client, front, measured, program, rules)

        return Version(fleet, pipeline.digest, settle=settle, abandon=before.settle if before else settle)

    def _part(
        self, client: OwnerClient, pipeline: Pipeline, number: int, model: bytes
    ) -> tuple[Role | None, Callable[[], socket.socket]]:
        """The role of a part, None if another machine has it, and what connects to it."""
        config, measured, program = part_config(self.address, pipeline, number, self.reference)
        sealed = self._sealed(pipeline, number, model)
        policy = self._apply(client, pipeline.parts[number - 1].policy, measured, program, (RULE,))
        entrust(client, policy, {RULE.name: sealed}, restore=restored_here(client, policy))
        part = pipeline.parts[number - 1]
        if number in self.places:
            place = self.places[number]
            self.supervisor.say(
                f"part {number} is dialled at {place}: copy {sealed.path.parent} there, and run "
                f"`strongroom serve --part {sealed.path.parent.name} --listen HOST:PORT`"
            )
            return None, place.dial
        listener, dial = self._unix_listener()
        count = part.replicas + self.standby
        name = f"part-{number}"
        return Role(name, config, measured, policy, {RULE.name: sealed.path}, listener, {}, count), dial

    def _unix_listener(self) -> tuple[socket.socket, Callable[[], socket.socket]]:
        made = tempfile.TemporaryDirectory(prefix="strongroom-pipeline-", dir=directory_for_sockets())
        path = Path(self.resources.enter_context(made)) / "part.sock"
        listener = self.resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(64)
        return listener, lambda: _connected(path)

    def _apply(
        self,
        client: OwnerClient,
        name: str,
        measured: Measurement,
        program: Program,
        rules: tuple[VaultRule, ...],
        also: list[str] | None = None,
    ) -> Policy:
        return apply_development_policy(
            client,
            name=name,
            role="service",
            owner=self.home.owner().public.fingerprint,
            measurement=measured.value,
            also=also or (),
            vendor_root=self.home.vendor().root_digest,
            program=program,
            vaults=rules,
            accepts=run_evidence.accepted(self.machine),
        )

    def _sealed(self, pipeline: Pipeline, number: int, model: bytes) -> SealedVault:
        """A vault with a part's model, in this user's home; the one of an earlier start, if it holds the same.

        In a directory with what another machine needs to run the part: the vault, without its key, and `PART_FILE`.
        """
        keys = self.home.path / "pipelines"
        directory = keys / f"{pipeline.plan[:16]}-{number}"
        directory.mkdir(mode=0o700, exist_ok=True, parents=True)
        sealed = SealedVault(
            directory / VAULT, keys / f"{directory.name}.key", anchor_path=keys / f"{directory.name}.anchor"
        )
        said = {
            "format": "strongroom-part",
            "version": 1,
            "part": number,
            "pipeline": pipeline.to_text(),
            "cas": {"url": self.address.url, "root": self.address.cas_root},
            "cas_reference": self.reference,
        }
        (directory / PART_FILE).write_text(json.dumps(said))
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


def base_name(sealed: SealedVault, model: str) -> str:
    """What the policies of a model in parts begin with: by the vault's key, whatever is in it."""
    return policy_name("serve-" + PurePosixPath(model).name.removesuffix(".onnx"), [sealed.key()])


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock
