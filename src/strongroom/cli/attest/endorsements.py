"""`strongroom attest endorsements`: what vendors sign about their hardware, fetched for evidence, or bundled for
verifiers without a network."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from strongroom.attest.endorsements import (
    Cache,
    Endorsement,
    HttpTransport,
    Retrying,
    Services,
    Sources,
    bundle,
    endorsements_for,
    gather,
    wants,
)
from strongroom.attest.endorsements.bundle import MAX_BUNDLE
from strongroom.attest.endorsements.foreign import endorsements_in
from strongroom.attest.endorsements.gaps import gaps
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.snp import PRODUCTS
from strongroom.cli import output
from strongroom.cli.attest import reading as reading
from strongroom.cli.parser import add_debug
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    things = parser.add_subparsers(dest="thing", metavar="THING", required=True)
    fetch = things.add_parser(
        "fetch",
        help="write what verifying one file of evidence takes",
        description="Write what verifying one file of evidence takes, as --endorsements reads it.",
    )
    reading.add_evidence(fetch)
    gather = things.add_parser(
        "bundle",
        help="write what verifying evidence from many platforms takes, into one file",
        description="Write what verifying evidence from many platforms takes into one file, which --bundle reads.",
    )
    gather.add_argument(
        "files", nargs="*", metavar="FILE", help="evidence, in any form that is known: fetch what it takes"
    )
    gather.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="FILE",
        help="endorsements to put in: another bundle, collateral of dcap-qvl or pccsadmin, AMD's certificates, lists",
    )
    for action in (fetch, gather):
        add_debug(action)
        action.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
        add_services(action)
        output.add_json(action)


def add_services(parser: argparse.ArgumentParser) -> None:
    """Whom to ask."""
    services = parser.add_argument_group("where endorsements come from")
    services.add_argument("--pccs", metavar="URL", help="a caching service (PCCS) in place of Intel's own")
    services.add_argument("--kds", metavar="URL", help="a mirror of AMD's key distribution service")
    services.add_argument(
        "--cafile",
        type=Path,
        metavar="FILE",
        help="PEM file of the roots to trust for that service's certificate",
    )
    services.add_argument("--cache", type=Path, metavar="DIR", help=f"default: {Cache.default_directory()}")
    services.add_argument(
        "--product", choices=PRODUCTS, help="AMD's product, for SNP reports of version 2, which do not tell it"
    )


def sources(args: argparse.Namespace) -> Sources:
    """The cache, then the services that the arguments of `add_services` name."""
    services = Services() if args.pccs is None else Services.caching(args.pccs)
    if args.kds is not None:
        services = replace(services, amd=args.kds)
    cache = Cache(args.cache or Cache.default_directory())
    return Sources(cache=cache, transport=Retrying(HttpTransport(cafile=args.cafile)), services=services)


def complete(evidence: Evidence, args: argparse.Namespace, now: int) -> Evidence:
    """The evidence with endorsements from a bundle, the cache and the vendors, as --bundle and --fetch say."""
    given = bundle.read(args.bundle) if args.bundle else None
    unused = [f"--{name}" for name in ("pccs", "kds", "cafile", "cache") if getattr(args, name) and not args.fetch]
    unused += ["--product"] if args.product and not args.fetch and given is None else []
    if unused:
        raise UsageError(f"{', '.join(unused)}: nothing is fetched", hint="add --fetch")
    if not args.fetch:
        return evidence if given is None else endorsements_for(evidence, now=now, bundle=given, product=args.product)
    asked = sources(args)
    return endorsements_for(
        evidence,
        now=now,
        bundle=given,
        cache=asked.cache,
        transport=asked.transport,
        services=asked.services,
        product=args.product,
    )


def run(args: argparse.Namespace) -> int:
    return _fetch(args) if args.thing == "fetch" else _bundle(args)


def _fetch(args: argparse.Namespace) -> int:
    args.bundle, args.fetch = None, True
    evidence = reading.read(args).evidence
    if not wants(evidence):
        raise UsageError(f"{evidence.tee} evidence: carries all that there is to fetch", hint="verify it as it is")
    completed = complete(evidence, args, int(time.time()))
    args.out.write_bytes(completed.endorsements)
    _told(args, {"file": str(args.out), "tee": evidence.tee, "bytes": len(completed.endorsements)})
    return 0


def _bundle(args: argparse.Namespace) -> int:
    asked, now = sources(args), int(time.time())
    found: list[Endorsement] = []
    for name in args.add:
        with reading.naming(name):
            found += endorsements_in(reading.read_bytes(name, MAX_BUNDLE), now=now)
    kinds = []
    for name in args.files:
        with reading.naming(name):
            evidence = reading.read_plain(name).evidence
        kinds.append(evidence.tee)
        found += gather(evidence, asked, now=now, product=args.product)
    if not found and kinds:
        raise UsageError(
            f"bundle: nothing to put in: {', '.join(dict.fromkeys(kinds))} evidence carries all that there is to fetch",
            hint="verify it as it is",
        )
    if not found:
        raise UsageError("bundle: nothing to put in", hint="name evidence, or endorsements with --add")
    bundle.write(args.out, found)
    missing = gaps(found)
    told: dict[str, object] = {"file": str(args.out), "endorsements": list(dict.fromkeys(each.name for each in found))}
    _told(args, told | {"missing": {each.name: each.means for each in missing}})
    if not args.json:
        for each in missing:
            output.warn(f"{each.name} is missing: {each.means}")
    return 0


def _told(args: argparse.Namespace, told: dict[str, object]) -> None:
    if args.json:
        output.result(told)
        return
    output.stdout.print(f"written to {args.out}", markup=False, soft_wrap=True)
