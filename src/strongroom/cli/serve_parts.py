"""What `strongroom serve` does of a model in parts: of all of it, or of one part whose front door is elsewhere."""

from __future__ import annotations

import argparse
import re
import signal
import threading
from contextlib import ExitStack

from strongroom.channel import bind
from strongroom.cli import output
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.plan_model import read_plan, sizes_of
from strongroom.cli.run import evidence as run_evidence
from strongroom.cli.serve import BATCH_DELAY, announce, local_url, models_of, requirement_of, until_told
from strongroom.cli.serve_part import PartDirectory, start_part
from strongroom.cli.serve_pipeline import made_plan, start_pipeline
from strongroom.cli.workspace import Home, SealedVault
from strongroom.enclave.launch import Isolation
from strongroom.enclave.machine.kind import Machine
from strongroom.errors import StrongroomError, UsageError
from strongroom.serve.pipeline.place import Place
from strongroom.serve.plan import Plan


def run_pipeline(
    args: argparse.Namespace,
    home: Home,
    sealed: SealedVault,
    model: str,
    machine: Machine | None,
) -> int:
    def planned(sealed: SealedVault, model: str) -> Plan:
        return read_plan(args.plan, "--plan") if args.plan else made_plan(sealed, model, args.memory, *sizes)

    def roll() -> None:
        """What lies in the vault and the plan's file now."""
        try:
            sealed, names = models_of(args)
            if len(names) != 1:
                raise UsageError(f"model: one is served in parts, and there are {len(names)}")
            supervisor.roll(sealed, names[0], planned(sealed, names[0]))
        except StrongroomError as error:
            output.warn(f"update: {error.message}; what was served is served on")

    sizes = sizes_of(args)
    plan, places = planned(sealed, model), _places(args)
    if args.batch_delay is not None and plan.batch == 1:
        output.note("--batch-delay: the plan is for single rows, so no request waits for others")
    with ExitStack() as resources:
        listener = resources.enter_context(bind(args.host, args.port))
        address = resources.enter_context(home.cas())
        supervisor = start_pipeline(
            home,
            address,
            sealed,
            model,
            plan,
            listener=listener,
            resources=resources,
            machine=machine,
            debug=args.debug_enclave,
            standby=args.standby,
            delay=round((BATCH_DELAY if args.batch_delay is None else args.batch_delay) * 1000),
            tick=round(args.tick * 1000),
            reference=cas_reference.document_of(args),
            places=places,
            lineage=requirement_of(args, home, address),
        )
        until_told(supervisor.stop)
        signal.signal(signal.SIGHUP, lambda number, frame: threading.Thread(target=roll, daemon=True).start())
        url = local_url(args.host, listener.getsockname()[1])
        alive = lambda: supervisor.running  # noqa: E731
        told = (args, alive, supervisor.up, url, supervisor.policy)
        threading.Thread(target=announce, args=told, daemon=True).start()
        return supervisor.wait()


def _places(args: argparse.Namespace) -> dict[int, Place]:
    """Where the parts are that the arguments put on other machines."""
    places: dict[int, Place] = {}
    for text in args.at:
        part, equals, place = text.partition("=")
        if not equals or not re.fullmatch(r"[1-9][0-9]{0,3}", part):
            raise UsageError(f"--at: got {text[:200]!r}, wanted PART=HOST:PORT, as 2=gpu.example.org:9002")
        if int(part) in places:
            raise UsageError(f"--at: part {part} is twice")
        places[int(part)] = Place.parse(place, "--at")
    return places


def run_part(args: argparse.Namespace, isolation: Isolation) -> int:
    if args.vault is not None or args.at:
        raise UsageError("--part: its vault is in the directory, and other parts are the front door's to dial")
    if not args.listen:
        raise UsageError("--part: wanted --listen HOST:PORT, where the front door dials it")
    directory = PartDirectory.read(args.part)
    place = Place.parse(args.listen, "--listen")
    machine = run_evidence.machine_of(args, None)
    for line in isolation.notes:
        output.note(line)
    with ExitStack() as resources:
        supervisor, _ = start_part(
            directory,
            Home.open(),
            place.host,
            place.port,
            resources=resources,
            cas_url=args.cas,
            machine=machine,
            debug=args.debug_enclave,
            standby=args.standby,
        )
        until_told(supervisor.stop)

        def tell() -> None:
            supervisor.up.wait()
            if supervisor.running:
                said = {"part": directory.number, "model": directory.pipeline.name, "listens": str(place)}
                if args.json:
                    output.result(said)
                else:
                    text = f"part {directory.number} of {directory.pipeline.name} is loaded, and listens at {place}"
                    output.stdout.print(text, markup=False, soft_wrap=True)

        threading.Thread(target=tell, daemon=True).start()
        return supervisor.wait()
