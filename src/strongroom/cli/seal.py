"""`strongroom seal`: a file or a directory becomes a vault."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom import vault
from strongroom.cli import output
from strongroom.cli.workspace import VAULT_SUFFIX, SealedVault
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Writes the vault, its key (VAULT.key, made unless it exists) and its anchor (VAULT.anchor, which says which "
        "version is the newest). Keep the key away from the machine that you do not trust. The source stays as it is."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a file or a directory")
    parser.add_argument(
        "vault", type=Path, nargs="?", metavar="VAULT", help="where to write it (default: SOURCE.vault)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file (default: VAULT.key)")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    source: Path = args.source
    if not source.exists():
        raise UsageError(f"source: {source} does not exist")
    target = args.vault or source.resolve().with_name(source.resolve().name + VAULT_SUFFIX)
    sealed = SealedVault.at(target, args.key)
    new_key = not sealed.key_path.exists()
    opened = sealed.create()
    try:
        with opened:
            names = vault.pack(source, opened)
            root = opened.commit()
    except BaseException:
        sealed.remove(with_key=new_key)  # so that a second try finds what the first one found
        raise
    if args.json:
        output.result(
            {
                "vault": str(target),
                "key": str(sealed.key_path),
                "anchor": str(sealed.anchor.path),
                "files": len(names),
                "root": str(root),
            }
        )
        return 0
    output.stdout.print(f"sealed {len(names)} file{'s' * (len(names) != 1)} into {target}", markup=False)
    empty = _empty_directories(source)
    if empty:
        output.note(
            f"{len(empty)} empty director{'ies are' if len(empty) > 1 else 'y is'} not kept: {', '.join(empty)}"
        )
    output.note(f"key {'written to' if new_key else 'read from'} {sealed.key_path}; nobody can unseal without it")
    return 0


def _empty_directories(source: Path) -> list[str]:
    if not source.is_dir():
        return []
    return sorted(str(p.relative_to(source)) for p in source.rglob("*") if p.is_dir() and not any(p.iterdir()))
