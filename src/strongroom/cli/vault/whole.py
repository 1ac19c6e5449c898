"""`strongroom vault info`, `verify`, `backup`, `restore`, `compact` and `rekey`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from strongroom.cli import output, progress
from strongroom.cli.secrets import sealed_vault
from strongroom.cli.workspace import SealedVault
from strongroom.errors import IntegrityError, StrongroomError, UsageError
from strongroom.sealed import create_key, load_key
from strongroom.vault import Vault
from strongroom.vault.access import rekey as change_key
from strongroom.vault.backup import backup as make_backup
from strongroom.vault.backup import restore as put_back
from strongroom.vault.backup import verify_copy
from strongroom.vault.check import describe, find_problems
from strongroom.vault.index import make_index
from strongroom.vault.keys import KeyRing
from strongroom.vault.kind import shown

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def _open(args: argparse.Namespace) -> tuple[SealedVault, Vault]:
    sealed = sealed_vault(args.vault, args)
    if args.no_freshness:
        output.warn("freshness is not checked: this may be an old version of the vault")
    return sealed, sealed.open(any_version=args.no_freshness)


def info(args: argparse.Namespace) -> int:
    sealed, opened = _open(args)
    with opened:
        found = describe(opened)
        root = opened.root
        notes = opened.notes
    age = None if found.changed is None else max(0.0, time.time() - found.changed)
    held = sealed.anchor.read()
    if args.json:
        values = dataclasses.asdict(found) | {"root": str(root), "anchor": str(held) if held else None, "notes": notes}
        output.result(values | {"seconds_since_commit": age})
        return 0
    sizes = ", ".join(f"{count:,} of {_bytes(size)}" for size, count in found.block_sizes.items())
    rows = [
        ("kind", shown(encrypted=found.encrypted)),
        ("root", str(root)),
        ("anchor", f"{held or 'none'}"),
        ("files", f"{found.files:,} in {found.directories:,} directories, {found.links:,} links"),
        ("content", _bytes(found.size)),
        ("on disk", "not known" if found.stored is None else _bytes(found.stored)),
        ("small files", f"{found.inline:,} in meta, {found.packed:,} in packs"),
        ("large files", f"{found.large:,}{f', blocks: {sizes}' if sizes else ''}"),
        ("packs", f"{found.packs:,}, {_bytes(found.pack_bytes)}, {_bytes(found.pack_live)} of it in use"),
        ("log", "none" if found.log is None else _bytes(found.log)),
        ("key slots", "none: the vault key opens it" if found.slots is None else str(found.slots)),
        ("last commit", "not known" if age is None else f"{_duration(age)} ago, by this machine's clock"),
    ]
    for name, text in rows:
        output.stdout.print(f"{name:12} {text}", markup=False, soft_wrap=True)
    for note in notes:
        output.note(note)
    return 0


def _bytes(count: int) -> str:
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count:,} B" if unit == 0 else f"{amount:.4g} {_UNITS[unit]}"


def _duration(seconds: float) -> str:
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}s"
    return f"{int(seconds)} seconds"


def index(args: argparse.Namespace) -> int:
    _, opened = _open(args)
    with opened, progress.bar("indexing", opened.usage()[1]) as advance:
        made = make_index(opened, progress=advance)
    sys.stdout.write(made.decode("ascii"))
    return 0


def verify(args: argparse.Namespace) -> int:
    _, opened = _open(args)
    with opened:
        files, size = 0, 0

        with progress.bar("verifying", opened.usage()[1]) as advance:

            def count(path: str, length: int) -> None:
                nonlocal files, size
                files, size = files + 1, size + length
                advance(path, length)

            problems = find_problems(opened, progress=count)
        root = opened.root
    status = _status([problem.error for problem in problems])
    if args.json:
        listed = [{"path": problem.path, **problem.error.to_wire()} for problem in problems]
        output.result({"paths": files, "bytes": size, "root": str(root), "problems": listed, "exit_status": status})
        return status
    for problem in problems:
        what = problem.error.message.removeprefix(f"{problem.path}: ")
        output.error(type(problem.error)(f"{problem.path}: {what}"))
    if problems:
        output.note(f"damaged: {_paths(len(problems))}; `strongroom vault restore` puts a backup back")
    else:
        found = f"{_paths(files)}, {_bytes(size)}: all" if files else "an empty vault:"
        output.stdout.print(f"{found} as committed, root {root}", soft_wrap=True)
    return status


def _paths(count: int) -> str:
    return f"{count:,} path{'s' * (count != 1)}"


def _status(errors: list[StrongroomError]) -> int:
    """That of all problems, if they are of one class; else that of integrity."""
    codes = {error.exit_code for error in errors}
    return 0 if not codes else codes.pop() if len(codes) == 1 else IntegrityError.exit_code


def backup(args: argparse.Namespace) -> int:
    sealed = sealed_vault(args.vault, args)
    with sealed.open():
        pass  # says what is wrong in words for this command
    key = sealed.opener()
    with progress.bar("copying", _stored(args.vault)) as advance:
        root = make_backup(args.vault, args.destination, key=key, anchor=sealed.anchor, progress=advance)
    if not args.no_verify:
        with progress.bar("verifying") as advance:
            verify_copy(args.destination, key, root, progress=advance)
    if args.json:
        output.result({"backup": str(args.destination), "root": str(root), "verified": not args.no_verify})
    else:
        output.stdout.print(f"backed up version {root.sequence} to {args.destination}", markup=False, soft_wrap=True)
    return 0


def _stored(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.iterdir() if entry.is_file())


def compact(args: argparse.Namespace) -> int:
    with sealed_vault(args.vault, args).as_it_is().open("r+") as opened:
        count = opened.compact()
        root = opened.commit()
    if args.json:
        output.result({"bytes": count, "root": str(root)})
    else:
        output.stdout.print(f"gave back {_bytes(count)}", markup=False)
    return 0


def rekey(args: argparse.Namespace) -> int:
    sealed = sealed_vault(args.vault, args)
    with sealed.as_it_is().open("r+") as opened:
        had_slots = KeyRing.load(opened.directory) is not None
        new_key = not args.new_key_file.exists()
        key = create_key(args.new_key_file) if new_key else load_key(args.new_key_file)
        if key == opened._key and not opened.rekeying:
            raise UsageError(f"key file: {args.new_key_file} holds the key that the vault has")
        with progress.bar("sealing anew", opened.usage()[1]) as advance:
            root = change_key(opened, key, lambda size: advance("", size))
    if args.json:
        output.result({"key": str(args.new_key_file), "root": str(root)})
        return 0
    if new_key:
        output.note(f"key written to {args.new_key_file}; nobody can unseal without it")
    output.stdout.print(f"sealed anew, version {root.sequence}", markup=False)
    if had_slots:
        output.note("its key slots are gone; `strongroom vault keys add` makes new ones")
    if sealed.secret is None:
        output.note(f"{sealed.key_path} opens it no more, but copies that were made before")
    return 0


def restore(args: argparse.Namespace) -> int:
    if not args.backup.is_dir():
        raise UsageError(f"backup: {args.backup} is not a directory")
    sealed = sealed_vault(args.vault, args)
    if args.key is None and sealed.secret is None and not sealed.key_path.exists():
        raise UsageError(f"key file: {sealed.key_path} does not exist", hint="--key FILE names the vault's key file")
    before = sealed.anchor.read()
    with progress.bar("restoring", 2 * _stored(args.backup)) as advance:
        root, replaced = put_back(
            args.backup, args.vault, key=sealed.opener(), anchor=sealed.anchor, reason=args.reason, progress=advance
        )
    if args.json:
        result = {"vault": str(args.vault), "root": str(root), "before": str(before)}
        output.result(result | {"replaced": str(replaced) if replaced else None})
        return 0
    was = f", in place of {before.sequence}" if before else ""
    output.stdout.print(f"restored version {root.sequence}{was}", markup=False, soft_wrap=True)
    if replaced:
        output.note(f"what was there lies in {replaced}; remove it when it is not needed")
    output.note(f"the anchor accepts it from now on; {sealed.anchor.path}.history says why")
    return 0
