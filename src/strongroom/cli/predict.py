"""`strongroom predict`: appraise a service, and only then send it inputs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from strongroom.cas.client.address import ADDRESS_FILE, CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.version import Policy
from strongroom.cli import output
from strongroom.cli.arrays import read
from strongroom.cli.cas import address as cas_address
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.workspace import Home, read_policy
from strongroom.errors import UsageError
from strongroom.serve.client import Client


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The policy says which enclaves to accept. By name, it is read from the CAS, over a channel pinned to the "
        "CAS's root key; as a file, it is yours."
    )
    parser.add_argument("--url", required=True, metavar="https://HOST:PORT", help="the service")
    parser.add_argument("--policy", required=True, metavar="NAME|FILE", help="namespace/name at the CAS, or a file")
    cas_address.add(parser)
    cas_reference.add(parser)
    parser.add_argument("--model", help="the model's name (default: the only one)")
    parser.add_argument("--model-digest", metavar="sha256:...", help="accept only this model")
    parser.add_argument("--plan-digest", metavar="sha256:...", help="accept only a model in parts by this plan")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="have the enclave make a report for this connection alone, beside the one that it shows to everybody",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.npz", help="write the outputs there")
    output.add_json(parser)
    parser.add_argument(
        "input",
        type=Path,
        nargs="?",
        metavar="INPUT",
        help=".npy, .npz or .json (arrays by name); - is JSON on standard input; without one, only appraise",
    )


def run(args: argparse.Namespace) -> int:
    cas_root, policy = _expected(args)
    inputs = None if args.input is None else read(args.input)
    with Client(
        args.url,
        cas_root=cas_root,
        policy=policy.name,
        reference=policy.reference,
        model=args.model,
        model_digest=args.model_digest,
        plan_digest=args.plan_digest,
        fresh=args.fresh,
    ) as client:
        service = client.appraise()
        if service.result.tee == "simulated":
            output.note(output.SIMULATED_BANNER)
        output.note(f"appraised: {service.result.tee} enclave, measurement {service.result.measurement[:16]}...")
        outputs = {} if inputs is None else client.predict(inputs)
    if args.output:
        np.savez(args.output, allow_pickle=False, **outputs)
    if args.json:
        output.result(
            {
                "policy": service.policy,
                "measurement": service.result.measurement,
                "models": dict(service.models),
                "plan": service.plan,
                "outputs": {name: array.tolist() for name, array in outputs.items()},
            }
        )
    elif inputs is not None and not args.output:
        for name, array in outputs.items():
            output.stdout.print(f"{name} {array.dtype} {list(array.shape)}", markup=False)
            output.stdout.print(np.array2string(array, threshold=200, precision=5), markup=False)
    return 0


def _expected(args: argparse.Namespace) -> tuple[str, Policy]:
    """The CAS that the service must belong to, and the policy that it must run under."""
    given = read_policy(Path(args.policy)) if Path(args.policy).is_file() else None
    root = cas_address.root_of(args)
    if root and given:
        return root, given
    address = cas_address.named(args) or _development_cas()
    if given:
        return address.cas_root, given
    if args.policy.count("/") != 1 or args.policy.endswith(".toml"):
        raise UsageError(
            f"policy: {args.policy} is no file, and not NAMESPACE/NAME",
            hint="`strongroom serve` prints its policy's name",
        )
    heads, reference = Home.open().heads(address.cas_root), cas_reference.of(args)
    with OwnerClient(address.url, cas_root=address.cas_root, heads=heads, reference=reference) as client:
        return address.cas_root, client.policy(args.policy)


def _development_cas() -> CasAddress:
    try:
        return CasAddress.load(Home.open().path / "cas" / ADDRESS_FILE)
    except FileNotFoundError:
        raise UsageError("CAS: this user has no development CAS", hint="give --cas URL and --cas-root") from None
