"""`strongroom unseal`: decrypt a vault into a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom import vault
from strongroom.cli import output
from strongroom.cli.workspace import VAULT_SUFFIX, SealedVault
from strongroom.errors import UsageError
from strongroom.sealed import NO_FRESHNESS


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument(
        "destination", type=Path, nargs="?", metavar="DIRECTORY", help="a new directory (default: VAULT without .vault)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file (default: VAULT.key)")
    parser.add_argument(
        "--no-freshness", action="store_true", help="accept any authentic version of the vault, however old"
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    path: Path = args.vault
    sealed = SealedVault.at(path, args.key)
    destination = args.destination
    if destination is None:
        if not path.name.endswith(VAULT_SUFFIX):
            raise UsageError(f"destination: cannot be guessed from {path.name}", hint="name a directory")
        destination = path.with_name(path.name.removesuffix(VAULT_SUFFIX))
    if args.no_freshness:
        output.warn("freshness is not checked: this may be an old version of the vault")
        opened = vault.open(path, "r", key=sealed.key(), anchor=NO_FRESHNESS)
    else:
        opened = sealed.open()
    with opened:
        names = vault.unpack(opened, destination)
    if args.json:
        output.result({"directory": str(destination), "files": names})
    else:
        output.stdout.print(f"unsealed {len(names)} file{'s' * (len(names) != 1)} into {destination}", markup=False)
    return 0
