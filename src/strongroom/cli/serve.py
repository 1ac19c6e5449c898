"""`strongroom serve`: a sealed model behind HTTPS, in an enclave."""

from __future__ import annotations

import argparse
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

from strongroom.cas.client.address import CasAddress
from strongroom.cas.policy.version import Policy, Program, VaultRule
from strongroom.channel import bind
from strongroom.cli import output
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.plan_model import add_sizes
from strongroom.cli.remembered import compiled_code, compiling_boot, known_digests
from strongroom.cli.run import evidence as run_evidence
from strongroom.cli.run.events import describe_event
from strongroom.cli.run.verb import boot_config
from strongroom.cli.serve_supervisor import stop_listening
from strongroom.cli.workspace import (
    Home,
    SealedVault,
    apply_development_policy,
    entrust,
    policy_name,
    restored_here,
)
from strongroom.enclave.launch import Enclave, Isolation, launch
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.measure import measure
from strongroom.errors import UsageError
from strongroom.lineage.requirement import Requirement

_MODEL_VAULT = "model"
BATCH_DELAY = 2.0  # milliseconds
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Speaks the Open Inference Protocol V2 over TLS 1.3. Writes and applies a development policy that names "
        "exactly this service, and keeps this user's development CAS running meanwhile. `strongroom predict` is its "
        "client."
    )
    parser.add_argument("vault", type=Path, nargs="?", metavar="VAULT", help="a vault with ONNX models")
    parser.add_argument(
        "--model", action="append", metavar="PATH", help="a model's path in the vault (default: every .onnx file)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the vault's key file (default: VAULT.key)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8443, help="the port, 0 for any free one (default: %(default)s)")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="serve one model in parts, each in an enclave of its own, as `strongroom plan --output FILE` cut it",
    )
    parts.add_argument(
        "--memory",
        metavar="SIZE",
        help="the same, by a plan made now for enclaves in which the model may take that much, such as 94MiB",
    )
    parts.add_argument(
        "--part",
        type=Path,
        metavar="DIR",
        help="serve one part of a model whose front door is on another machine: a directory that --at made there",
    )
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="PART=HOST:PORT",
        help="a part that is on another machine, by its number; says which directory to copy there",
    )
    add_sizes(
        parser,
        batch="with --memory, rows that a plan made now is for, which run together (default: 1)",
        dim="with --memory, the largest of a size that the model leaves open, once for each",
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="with --part: where the front door dials it")
    parser.add_argument("--cas", metavar="URL", help="with --part: where its CAS answers, seen from this machine")
    parser.add_argument(
        "--standby", action="store_true", help="of a model in parts, one enclave of each more than work: it takes over"
    )
    parser.add_argument(
        "--batch-delay",
        type=float,
        metavar="MS",
        help=f"by a plan for batches, how long a request waits for others (default: {BATCH_DELAY:g})",
    )
    parser.add_argument(
        "--tick",
        type=float,
        default=0.0,
        metavar="MS",
        help="of a model in parts, let what goes between enclaves leave at such distances in time only",
    )
    parser.add_argument(
        "--require-lineage", action="store_true", help="refuse, inside the enclave, a model without a valid lineage"
    )
    parser.add_argument(
        "--lineage-policy",
        action="append",
        default=[],
        metavar="NAME",
        help="a policy that it may have been trained under (default: any)",
    )
    parser.add_argument(
        "--lineage-cas-root", metavar="sha256:...", help="the CAS whose word counts (default: this service's)"
    )
    run_evidence.add(parser, default="simulated")
    parser.add_argument("--debug-enclave", action="store_true", help="launch as a debug enclave; policies refuse it")
    cas_reference.add(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    isolation = Isolation.here()
    if args.part is not None:
        from strongroom.cli.serve_parts import run_part

        return run_part(args, isolation)
    for option, value in (("--listen", args.listen), ("--cas", args.cas)):
        if value:
            raise UsageError(f"{option}: is for one part of a model, add --part DIR")
    if args.vault is None:
        raise UsageError("VAULT: wanted a vault with a model; `strongroom seal` makes one")
    sealed, names = models_of(args)
    machine = run_evidence.machine_of(args, None)
    for line in isolation.notes:
        output.note(line)
    home = Home.open()
    if _in_parts(args, names):
        from strongroom.cli.serve_parts import run_pipeline

        return run_pipeline(args, home, sealed, names[0], machine)
    listener = bind(args.host, args.port)
    with listener, home.cas() as address:
        policy, enclave, serving = start_service(
            home,
            address,
            sealed,
            names,
            listener=listener,
            machine=machine,
            debug=args.debug_enclave,
            lineage=requirement_of(args, home, address),
            reference=cas_reference.document_of(args),
        )
        until_told(lambda: enclave.signal(signal.SIGTERM))
        url = local_url(args.host, listener.getsockname()[1])
        alive = lambda: enclave.running  # noqa: E731
        waiter = threading.Thread(target=announce, args=(args, alive, serving, url, policy), daemon=True)
        waiter.start()
        return enclave.wait()


def models_of(args: argparse.Namespace) -> tuple[SealedVault, list[str]]:
    """The vault, and the paths of the models in it that are to be served."""
    sealed = SealedVault.at(args.vault, args.key)
    with sealed.open() as opened:
        names = args.model or [name for name in opened.files() if name.endswith(".onnx")]
        missing = [name for name in names if name not in opened]
    if missing:
        raise UsageError(f"model: {missing[0]} is not in {args.vault}")
    if not names:
        raise UsageError(f"model: there is no .onnx file in {args.vault}", hint="seal the model, or its directory")
    for name in names:
        if not MODEL_NAME.fullmatch(PurePosixPath(name).name.removesuffix(".onnx")):
            raise UsageError(
                f"model: {name} has other characters than letters, digits, '.', '_' and '-' in its name",
                hint="rename it and seal it again, or choose others with --model",
            )
    return sealed, names


def _in_parts(args: argparse.Namespace, names: list[str]) -> bool:
    """Whether the arguments ask for a model in parts. Raises UsageError where they do not fit each other."""
    if args.memory is None and (args.batch != 1 or args.dim):
        raise UsageError("--batch, --dim: are for a plan that is made now, add --memory SIZE")
    if args.plan is None and args.memory is None:
        if args.standby or args.tick or args.at or args.batch_delay is not None:
            raise UsageError(
                "--standby, --tick, --at, --batch-delay: are for a model in parts, add --plan FILE or --memory SIZE"
            )
        return False
    for option, value in (("--batch-delay", args.batch_delay or 0.0), ("--tick", args.tick)):
        if not 0 <= value <= 10_000:
            raise UsageError(f"{option}: got {value:g}, wanted 0 to 10,000 milliseconds")
    if len(names) != 1:
        raise UsageError(
            f"model: one is served in parts, and there are {len(names)}", hint="choose it with --model PATH"
        )
    return True


def requirement_of(args: argparse.Namespace, home: Home, address: CasAddress) -> Requirement | None:
    """What the arguments require of the models' lineage."""
    if not args.require_lineage:
        if args.lineage_policy or args.lineage_cas_root:
            raise UsageError("--lineage-policy, --lineage-cas-root: say what --require-lineage requires, add that")
        return None
    if not args.lineage_policy:
        output.note("lineage: any policy of that CAS counts; --lineage-policy NAME says which may have trained a model")
    return Requirement(args.lineage_cas_root or address.cas_root, tuple(args.lineage_policy), home.vendor().root_digest)


def start_service(
    home: Home,
    address: CasAddress,
    sealed: SealedVault,
    models: list[str],
    *,
    listener: Any,
    machine: Machine | None = None,
    debug: bool = False,
    quiet: bool = False,
    lineage: Requirement | None = None,
    reference: str = "",
) -> tuple[Policy, Enclave, threading.Event]:
    """Apply a development policy for a service, give the CAS the vault's key, and launch it.

    Args:
        listener: the socket to accept on.
        machine: what vouches for it; None for the simulated vendor.
        debug: launch a debug enclave, which the policy refuses.
        quiet: say nothing of what the enclave reports.
        lineage: what it requires of the models' lineage.
        reference: a document that says what the CAS's own evidence must be; empty to trust its root alone.

    Returns:
        The policy, the enclave, and an event that is set once it accepts requests.
    """
    owner, vendor = home.owner(), home.vendor()
    rule = VaultRule(_MODEL_VAULT, "", "read-only")
    program = Program.literal((*([lineage.to_word()] if lineage else []), *models), ())
    name = policy_name("serve-" + PurePosixPath(models[0]).stem, [sealed.key()])
    config = boot_config(name, address, program, (rule,), role="service", cas_reference=reference)
    with known_digests(home), compiling_boot(home, config) as keep:
        measured = measure(config, {})
        keep(measured)
    with home.owner_client(address, owner) as client:
        policy = apply_development_policy(
            client,
            name=name,
            role="service",
            owner=owner.public.fingerprint,
            measurement=measured.value,
            vendor_root=vendor.root_digest,
            program=program,
            vaults=(rule,),
            accepts=run_evidence.accepted(machine),
        )
        entrust(client, policy, {rule.name: sealed}, restore=restored_here(client, policy))
    serving = threading.Event()

    def on_event(event: str, detail: dict[str, Any]) -> None:
        if event == "serving":
            serving.set()
        elif event == "draining":
            stop_listening(listener)  # else whoever comes now waits until all has ended
        line = describe_event(event, detail)
        if line and not quiet:
            output.note(line)

    enclave = launch(
        config,
        {},
        cas=address,
        vendor=None if machine else vendor,
        machine=machine,
        vaults={rule.name: sealed.path},
        listener=listener,
        platform=measured.platform,
        compiled=None if machine else compiled_code(home),
        debug=debug,
        on_event=on_event,
    )
    return policy, enclave, serving


def announce(
    args: argparse.Namespace, alive: Callable[[], bool], serving: threading.Event, url: str, policy: Policy
) -> None:
    while not serving.wait(0.2):
        if not alive():
            return
    if not alive():  # what ended it is told by who waits for it
        return
    if args.json:
        output.result({"url": url, "policy": policy.name, "measurement": policy.reference.measurements[0]})
    else:
        output.stdout.print(f"serving at {url} under policy {policy.name}", markup=False, soft_wrap=True)
        output.note(f"strongroom predict --url {url} --policy {policy.name} INPUT.npy   asks it; Ctrl-C ends it")


def local_url(host: str, port: int) -> str:
    """How a client on this machine reaches a socket that listens on `host`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        host = "127.0.0.1"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def until_told(stop: Callable[[], None]) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
