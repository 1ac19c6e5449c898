"""`strongroom cas revoke`: end enclaves' leases at once."""

from __future__ import annotations

import argparse

from strongroom.cas.client.owner import OwnerClient
from strongroom.cli import output
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options besides those that all dealings with a CAS have."""
    parser.add_argument("policy", metavar="NAMESPACE/NAME")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--lease", type=int, metavar="NUMBER", help="the enclave of this lease")
    which.add_argument("--key", dest="peer", metavar="sha256:...", help="the enclave of this key, or whoever shows it")
    which.add_argument("--measurement", metavar="HEX", help="all of this measurement, now and until it is lifted")
    which.add_argument("--all", action="store_true", help="all that live now")
    parser.add_argument("--lift", action="store_true", help="let that measurement attest again")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError, before anything is made or asked."""
    if args.lease is None and not (args.peer or args.measurement or args.all):
        raise UsageError(
            "revoke: says not what: give --lease, --key, --measurement or --all",
            hint=f"`strongroom cas enclaves {args.policy}` lists the enclaves",
        )
    if args.lift and not args.measurement:
        raise UsageError("--lift: lets a measurement attest again, and none is named", hint="--measurement HEX --lift")


def run(args: argparse.Namespace, client: OwnerClient) -> int:
    """Revoke, and say what ended."""
    ended = client.revoke(
        args.policy,
        lease=args.lease,
        key=args.peer,
        measurement=args.measurement,
        everything=args.all,
        lift=args.lift,
    )
    if args.json:
        output.result({"policy": args.policy, "ended": ended})
    elif args.lift:
        output.stdout.print(f"measurement {args.measurement[:12]} may attest again", markup=False)
    else:
        which = f": {', '.join(map(str, ended))}" if ended else ""
        output.stdout.print(f"ended {len(ended)} lease{'s' * (len(ended) != 1)}{which}", markup=False, soft_wrap=True)
        if not args.measurement:
            output.note("what ended may be launched anew; --measurement, or the policy's next version, keeps it out")
    return 0
