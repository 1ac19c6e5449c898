"""`strongroom seal`: a file or a directory becomes a vault."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from strongroom import vault
from strongroom.cli import output, progress, secrets
from strongroom.cli.workspace import VAULT_SUFFIX, SealedVault
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Writes the vault, its key (VAULT.key, made unless it exists) and its anchor (VAULT.anchor, which says which "
        "version is the newest). Keep the key away from the machine that you do not trust. With a passphrase or an age "
        "recipient there is no key file: the vault key is random, and a key slot holds it. The source stays as it is."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a file or a directory")
    parser.add_argument(
        "vault", type=Path, nargs="?", metavar="VAULT", help="where to write it (default: SOURCE.vault)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file (default: VAULT.key)")
    secrets.add_holder(parser, with_key_file=False)
    secrets.add_kind(parser)
    parser.add_argument("--follow-links", action="store_true", help="put what symbolic links lead to in their place")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    source: Path = args.source
    if not source.exists():
        raise UsageError(f"source: {source} does not exist")
    target = args.vault or source.resolve().with_name(source.resolve().name + VAULT_SUFFIX)
    make = secrets.new_holder(args)
    if make and args.key:
        raise UsageError("options: --key and those of a key slot exclude each other")
    sealed = replace(SealedVault.at(target, args.key), encrypted=secrets.kind_of(args))
    new_key = make is None and not sealed.key_path.exists()
    if make and not sealed.path.exists():
        sealed = replace(sealed, secret=make().holder)
    opened = sealed.create()
    try:
        with opened, progress.bar("sealing") as advance:
            names = vault.pack(source, opened, follow=args.follow_links, progress=advance)
            root = opened.commit()
    except BaseException:
        sealed.remove(with_key=new_key)  # so that a second try finds what the first one found
        raise
    if args.json:
        output.result(
            {
                "vault": str(target),
                "key": None if make else str(sealed.key_path),
                "anchor": str(sealed.anchor.path),
                "files": len(names),
                "root": str(root),
            }
        )
        return 0
    count = f"{len(names)} file{'s' * (len(names) != 1)}"
    output.stdout.print(f"sealed {count} into {_shown(target)}", markup=False, soft_wrap=True)
    if args.authenticated:
        output.note("authenticated only: anybody who has the vault can read what is in the files")
    if make:
        output.note("only its key slot opens it; `strongroom vault keys add` makes another one")
        return 0
    output.note(
        f"key {'written to' if new_key else 'read from'} {_shown(sealed.key_path)}; nobody can unseal without it"
    )
    return 0


def _shown(path: Path) -> Path:
    """A path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
