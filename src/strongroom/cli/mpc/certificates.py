"""`strongroom mpc certificates`: what the parties of a computation, and their clients, know each other by."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path

from strongroom.cli import output
from strongroom.errors import UsageError
from strongroom.mpc import certificates

_AUTHORITY = "authority"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="gets a directory for each: P0, P1, D, client-NAME")
    parser.add_argument("--client", action="append", default=[], metavar="NAME", help="for a client too (repeat it)")
    parser.add_argument("--days", type=int, default=365, metavar="N", help="that they hold (default: %(default)s)")
    parser.add_argument(
        "--add", action="store_true", help="only for these clients, by the authority that was kept in DIR/authority"
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not 0 < args.days <= 3650:
        raise UsageError(f"--days: got {args.days}, wanted 1 to 3650")
    now, authority = dt.datetime.now(dt.UTC), args.directory / _AUTHORITY
    if args.add:
        if not args.client:
            raise UsageError("--add: for whom", hint="--client NAME")
        places = [
            certificates.add_client(args.directory, name, authority=authority, now=now, days=args.days)
            for name in args.client
        ]
    else:
        places = certificates.create(args.directory, now=now, days=args.days, clients=args.client, authority=authority)
    if args.json:
        output.result({"directories": [str(place) for place in places], "authority": str(authority)})
        return 0
    for place in places:
        output.stdout.print(f"{place.name:12} {place}", markup=False, soft_wrap=True)
    output.note("take each directory to its host, and to no other: it holds that one's private key")
    output.note(f"{authority} can make more certificates (--add --client NAME); keep it apart, or delete it")
    return 0
