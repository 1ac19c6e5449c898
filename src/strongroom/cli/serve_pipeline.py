"""`strongroom serve --plan`: a model in several enclaves, here or on several machines."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from strongroom.cas.client.address import CasAddress
from strongroom.cli import output
from strongroom.cli.serve_roles import Serving, base_name, reading
from strongroom.cli.serve_supervisor import Supervisor
from strongroom.cli.workspace import Home, SealedVault
from strongroom.enclave.machine.kind import Machine
from strongroom.errors import ServeError, UsageError
from strongroom.lineage.requirement import Requirement
from strongroom.serve.pipeline.place import Place
from strongroom.serve.plan import Plan


def made_plan(sealed: SealedVault, model: str, memory: str, batch: int, dims: Mapping[str, int]) -> Plan:
    """The plan of least latency for enclaves of that memory, made here; what is measured for it is remembered.

    Args:
        batch, dims: the largest sizes of a request.

    Raises:
        UsageError: the memory is no size, or the model has no such sizes.
        ServeError: there is no plan.
    """
    from strongroom.serve.graph import load
    from strongroom.serve.plan import Enclaves, Wanted, make, prepare, remembered
    from strongroom.serve.plan.cache import Cache
    from strongroom.serve.plan.transfer import measure as transfer
    from strongroom.serve.plan.words import parse_size

    size = parse_size(memory, "--memory")
    threads = len(os.sched_getaffinity(0))
    with reading(sealed, model) as (raw, external):
        prepared = prepare(load(raw, external=external), memory=size, dims=dims)
    output.note("planning: each part of the model is loaded and run here once, which is remembered")
    profile = remembered(prepared.chain, Cache.of_user(), dims=dims, batch=batch, threads=threads)
    try:
        plan = make(prepared, profile, Wanted((Enclaves(size),), transfer(), "latency", shared=1, dims=dims), None)
    except ServeError as error:
        raise ServeError(
            f"--memory: {error.message}", hint="more memory, or a plan with more choices: strongroom plan, then --plan"
        ) from None
    stages = "1 stage" if len(plan.stages) == 1 else f"{len(plan.stages)} stages"
    output.note(f"planned: {stages}, plan {plan.digest[:12]}; see more: strongroom plan")
    return plan


class ModelSupervisor(Supervisor):
    """The running pipeline. Made by `start_pipeline`.

    Attributes:
        serving: how versions of it are served.
    """

    serving: Serving

    def roll(self, sealed: SealedVault, model: str, plan: Plan) -> None:
        """Serve another version from now on, without a request lost. Returns when the one before has ended.

        Raises:
            UsageError: the plan is not of that model, or an update is under way.
            StrongroomError: the next version cannot be served; the present one goes on.
        """
        if self.serving.places:
            raise UsageError(
                "update: parts on other machines cannot be replaced while they serve",
                hint="serve the new version at another address, then end this one",
            )
        self.update(lambda: self.serving.version(sealed, model, plan, before=self.present))


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
    say: Callable[[str], None] = output.note,
    standby: bool = False,
    delay: int = 0,
    tick: int = 0,
    reference: str = "",
    places: Mapping[int, Place] | None = None,
    lineage: Requirement | None = None,
) -> ModelSupervisor:
    """Cut a model as a plan says, seal each part to a policy of its own, and launch front door and parts.

    Args:
        sealed: the vault with the model.
        model: its path there.
        listener: the socket that the front door accepts on.
        resources: closes what this opens, once all have ended.
        standby: launch one enclave more than work of the front door and of each part.
        delay, tick: in microseconds, as `Pipeline` has them.
        say: is given a line about each thing that happens, unless it is to be quiet.
        places: where the parts are that are on other machines, by their numbers.
        machine, debug, quiet, reference, lineage: as `start_service` has them.

    Raises:
        UsageError: the plan is not of that model, or has no such parts.
    """
    if strays := set(places or {}) - set(range(1, len(plan.stages) + 1)):
        raise UsageError(f"--at: there is no part {min(strays)}, the plan has {len(plan.stages)}")
    supervisor = ModelSupervisor(say=_unsaid if quiet else say, listener=listener)
    supervisor.serving = Serving(
        home,
        address,
        supervisor,
        listener,
        resources,
        base_name(sealed, model),
        machine=machine,
        debug=debug,
        standby=standby,
        delay=delay,
        tick=tick,
        reference=reference,
        places=places or {},
        lineage=lineage,
    )
    version = supervisor.serving.version(sealed, model, plan)
    assert version is not None  # noqa: S101  # nothing is served yet
    supervisor.start(version)
    return supervisor


def _unsaid(text: str) -> None:
    pass
