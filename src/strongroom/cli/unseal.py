"""`strongroom unseal`: decrypt a vault into a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom import vault
from strongroom.cli import output, progress, secrets
from strongroom.cli.workspace import VAULT_SUFFIX
from strongroom.errors import UsageError
from strongroom.storage import LocalDirectory
from strongroom.vault.index import MAX_INDEX, extract


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument(
        "destination", type=Path, nargs="?", metavar="DIRECTORY", help="a new directory (default: VAULT without .vault)"
    )
    secrets.add_opening(parser)
    parser.add_argument(
        "--index",
        type=Path,
        metavar="FILE",
        help="without a key: take out of an authenticated-only vault what its index names, each by its digest",
    )
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
    if args.index is not None:
        return _by_index(args, path, destination)
    if args.no_freshness:
        output.warn("freshness is not checked: this may be an old version of the vault")
    with (
        secrets.sealed_vault(path, args).open(any_version=args.no_freshness) as opened,
        progress.bar("unsealing") as advance,
    ):
        names = vault.unpack(opened, destination, outside_links=args.outside_links, progress=advance)
    _say(args, destination, names)
    return 0


def _by_index(args: argparse.Namespace, path: Path, destination: Path) -> int:
    if args.key or args.passphrase or args.passphrase_fd is not None or args.age_identity or args.cas_slot:
        raise UsageError("--index: takes no key", hint="without --index, a key opens the vault")
    if not path.is_dir():
        raise UsageError(f"vault: {path} is not a directory")
    with args.index.open("rb") as file:
        index = file.read(MAX_INDEX + 1)
    with progress.bar("copying") as advance:
        names = extract(index, LocalDirectory(path), destination, progress=advance)
    output.warn(f"these are the contents that {args.index} names: it says nothing of whether there are newer ones")
    _say(args, destination, names)
    return 0


def _say(args: argparse.Namespace, destination: Path, names: list[str]) -> None:
    if args.json:
        output.result({"directory": str(destination), "files": names})
    else:
        output.stdout.print(f"unsealed {len(names)} file{'s' * (len(names) != 1)} into {destination}", markup=False)
