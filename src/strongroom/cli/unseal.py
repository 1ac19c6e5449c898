"""`strongroom unseal`: decrypt a vault into a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom import vault
from strongroom.cli import output, progress, secrets
from strongroom.cli.workspace import VAULT_SUFFIX
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument(
        "destination", type=Path, nargs="?", metavar="DIRECTORY", help="a new directory (default: VAULT without .vault)"
    )
    secrets.add_opening(parser)
    parser.add_argument(
        "--no-freshness", action="store_true", help="accept any authentic version of the vault, however old"
    )
    parser.add_argument(
        "--outside-links", action="store_true", help="make symbolic links that lead out of DIRECTORY too"
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    path: Path = args.vault
    destination = args.destination
    if destination is None:
        if not path.name.endswith(VAULT_SUFFIX):
            raise UsageError(f"destination: cannot be guessed from {path.name}", hint="name a directory")
        destination = path.with_name(path.name.removesuffix(VAULT_SUFFIX))
    if args.no_freshness:
        output.warn("freshness is not checked: this may be an old version of the vault")
    with (
        secrets.sealed_vault(path, args).open(any_version=args.no_freshness) as opened,
        progress.bar("unsealing") as advance,
    ):
        names = vault.unpack(opened, destination, outside_links=args.outside_links, progress=advance)
    if args.json:
        output.result({"directory": str(destination), "files": names})
    else:
        output.stdout.print(f"unsealed {len(names)} file{'s' * (len(names) != 1)} into {destination}", markup=False)
    return 0
