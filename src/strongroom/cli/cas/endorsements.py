"""Where a CAS gets vendors' endorsements: the arguments of `strongroom cas start`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from strongroom.attest.endorsements import Cache, HttpTransport, Retrying, Services, Sources
from strongroom.cas.enclaves.completion import Completer
from strongroom.errors import UsageError

CACHE = "endorsements"

# An enclave waits for the answer, and comes again.
_TRIES = 2


def configure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vendors' endorsements, which SGX and TDX do not bring along")
    group.add_argument("--endorsements", type=Path, metavar="BUNDLE", help="take them from this file")
    group.add_argument(
        "--fetch-endorsements", action="store_true", help="fetch them, and keep them in a cache beside the state"
    )
    group.add_argument("--pccs", metavar="URL", help="fetch from a caching service (PCCS) in place of Intel's own")
    group.add_argument("--kds", metavar="URL", help="fetch from a mirror of AMD's key distribution service")
    group.add_argument(
        "--cafile", type=Path, metavar="FILE", help="PEM file of the roots to trust for that service's certificate"
    )


def completer(args: argparse.Namespace, directory: Path) -> Completer | None:
    """What completes evidence as the arguments say; None if they say nothing.

    Args:
        directory: the CAS's, for the cache.

    Raises:
        UsageError, FormatError: an argument is useless, or a file cannot be read.
    """
    unused = [f"--{name}" for name in ("pccs", "kds", "cafile") if getattr(args, name) and not args.fetch_endorsements]
    if unused:
        raise UsageError(f"{', '.join(unused)}: nothing is fetched", hint="add --fetch-endorsements")
    if args.endorsements is None and not args.fetch_endorsements:
        return None
    if not args.fetch_endorsements:
        return Completer(Sources(), args.endorsements)
    services = Services() if args.pccs is None else Services.caching(args.pccs)
    if args.kds is not None:
        services = replace(services, amd=args.kds)
    transport = Retrying(HttpTransport(cafile=args.cafile), tries=_TRIES)
    sources = Sources(cache=Cache(directory / CACHE), transport=transport, services=services)
    return Completer(sources, args.endorsements)
