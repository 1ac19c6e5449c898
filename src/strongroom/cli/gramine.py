"""`strongroom gramine`: what an SGX enclave of a policy's program is made of, ready for Gramine to sign."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from strongroom.cas.policy.network import wanted
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.hardware import program_of_policy
from strongroom.enclave.digests import Digests
from strongroom.enclave.gramine import (
    CAS_VARIABLE,
    MANIFEST,
    gramine_config,
    manifest,
    write,
)
from strongroom.enclave.gramine_sizes import Sizes, parse_size, size
from strongroom.enclave.measure import Environment, measure
from strongroom.enclave.sandbox import require_linux
from strongroom.errors import UsageError

GRAMINE = "/usr/lib/x86_64-linux-gnu/gramine"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The directory gets the manifest, the program and its boot configuration. Put the policy's vaults below "
        "vaults/ in it, sign it with gramine-sgx-sign, and list the MRENCLAVE that it prints in the policy. Sizes "
        "that are not given are taken from this machine, and are measured: give them to get the same enclave "
        "everywhere. Example: strongroom gramine policy.toml --output enclave"
    )
    parser.add_argument("policy", type=Path, metavar="POLICY", help="whose program; its measurements may be missing")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new directory for all of it")
    cas_address.add_root(parser)
    parser.add_argument(
        "--gramine", type=Path, default=Path(GRAMINE), metavar="DIR", help=f"where Gramine is (default: {GRAMINE})"
    )
    parser.add_argument("--enclave-size", metavar="SIZE", help="a power of two, such as 8G")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that are there from the beginning")
    parser.add_argument("--stack", metavar="SIZE", help="of each thread (default: 8M)")
    parser.add_argument("--no-edmm", action="store_true", help="for processors without SGX2: all memory at the start")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    require_linux()
    policy, config, files = program_of_policy(args.policy, cas_address.root_of(args))
    config = gramine_config(config)
    if unmet := wanted(policy.mesh, policy.egress):
        raise UsageError(f"gramine: {unmet[0]} is not supported there", hint="the host has the network")
    environment, sizes = Environment.current(), sizes_of(args)
    measured = measure(config, files, environment, known=Digests())  # for hardware: every file is read
    table = manifest(config, measured, environment, args.gramine.absolute(), sizes)
    path = write(args.output, table, config, files)
    trusted = len(table["sgx"]["trusted_files"])
    if args.json:
        output.result(
            {
                "manifest": str(path),
                "policy": policy.name,
                "trusted_files": trusted,
                "enclave_size": size(sizes.enclave),
                "max_threads": sizes.threads,
                "stack": size(sizes.stack),
                "edmm": sizes.edmm,
            }
        )
        return 0
    memory = f"{size(sizes.enclave)} of memory{' at most' if sizes.edmm else ''}"
    output.note(f"wrote {path}: {trusted} trusted files, {memory}, {sizes.threads} threads")
    name = MANIFEST.removesuffix(".manifest")
    for line in (
        f"cd {args.output}",
        *(f"ln -s /where/{rule.name}.vault/is vaults/{rule.name}" for rule in policy.vaults),
        f"gramine-sgx-sign --manifest {MANIFEST} --output {MANIFEST}.sgx --key enclave-key.pem",
        f"gramine-sgx-sigstruct-view {name}.sig   # its mr_enclave is the policy's measurement",
        f"{CAS_VARIABLE}=https://CAS:PORT gramine-sgx {name}",
    ):
        output.stdout.print(line, markup=False, soft_wrap=True, highlight=False)
    return 0


def sizes_of(args: argparse.Namespace) -> Sizes:
    """This machine's, where the options do not say otherwise."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        meminfo = None
    here = Sizes.of_machine(meminfo, os.cpu_count() or 1, edmm=not args.no_edmm)
    return Sizes(
        parse_size(args.enclave_size) if args.enclave_size else here.enclave,
        here.threads if args.threads is None else args.threads,
        parse_size(args.stack) if args.stack else here.stack,
        edmm=here.edmm,
    )
