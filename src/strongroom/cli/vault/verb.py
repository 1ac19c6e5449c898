"""`strongroom vault`: look into a vault, copy in and out, verify, back up, and say who can open it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Final

from strongroom.cli import output, secrets
from strongroom.cli.parser import add_debug

_HEAD = "VAULT:PATH names what lies at PATH in the vault in directory VAULT; VAULT or VAULT: its top."

# What each action is, the module that does it, and an example.
ACTIONS: Final = {
    "ls": ("list a directory of a vault", "files", "strongroom vault ls -l data.vault:train"),
    "cp": (
        "copy into a vault, out of it, or within it",
        "files",
        "strongroom vault cp -r results data.vault:runs/7",
    ),
    "rm": ("remove files from a vault", "files", "strongroom vault rm -r data.vault:runs/6"),
    "pack": (
        "put a directory into a vault, which is made if it is missing",
        "files",
        "strongroom vault pack results data.vault:runs/7",
    ),
    "info": ("say what a vault consists of", "whole", "strongroom vault info data.vault"),
    "index": (
        "say where the contents of an authenticated-only vault lie, for readers without its key",
        "whole",
        "strongroom vault index data.vault > data.index",
    ),
    "verify": ("read every block, and list all that is wrong", "whole", "strongroom vault verify data.vault"),
    "backup": (
        "copy a vault as it is now, while others write to it",
        "whole",
        "strongroom vault backup data.vault /media/backup/data-7.vault",
    ),
    "restore": (
        "put a backup in the place of a vault, and have the anchor accept it",
        "whole",
        'strongroom vault restore /media/backup/data-7.vault data.vault --reason "disk failed"',
    ),
    "compact": ("give back space that nothing needs", "whole", "strongroom vault compact data.vault"),
    "rekey": (
        "seal everything anew under another vault key, and drop all key slots",
        "whole",
        "strongroom vault rekey data.vault --new-key-file new.key",
    ),
    "keys": ("list, add, remove and replace key slots", "keys", "strongroom vault keys list data.vault"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _HEAD
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, _, example) in ACTIONS.items():
        action = actions.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"Example: {example}"
        )
        if name == "keys":
            _configure_keys(action)
            continue
        secrets.add_opening(action)
        _add_common(action)
        _ARGUMENTS[name](action)


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module(f"strongroom.cli.vault.{ACTIONS[args.action][1]}")
    status: int = getattr(module, args.action)(args)
    return status


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_debug(parser)
    output.add_json(parser)


def _ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="VAULT[:PATH]")
    parser.add_argument("-l", "--long", action="store_true", help="with type, permission bits, size and time")
    parser.add_argument("-R", "--recursive", action="store_true", help="with all that is below")
    _no_freshness(parser)


def _cp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a path, or VAULT:PATH")
    parser.add_argument(
        "destination", metavar="DESTINATION", help="a path, or VAULT:PATH; one of the two is in a vault"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="copy directories")
    secrets.add_kind(parser)
    _links(parser)
    _no_freshness(parser)


def _rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", nargs="+", metavar="VAULT:PATH", help="all in one vault; they go in one commit")
    parser.add_argument("-r", "--recursive", action="store_true", help="remove directories with all that is in them")


def _pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a file or a directory")
    parser.add_argument("place", metavar="VAULT[:DIRECTORY]")
    secrets.add_kind(parser)
    parser.add_argument("--follow-links", action="store_true", help="put what symbolic links lead to in their place")


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT")
    _no_freshness(parser)


_verify = _index = _info


def _backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="a new or empty directory")
    parser.add_argument("--no-verify", action="store_true", help="do not read the copy again")


def _restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backup", type=Path, metavar="BACKUP")
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; the anchor's history keeps it")


def _compact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT")


def _rekey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vault", type=Path, metavar="VAULT", help="which nobody else has open")
    parser.add_argument(
        "--new-key-file", type=Path, required=True, metavar="FILE", help="the new vault key; made unless it exists"
    )


def _links(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--follow-links", action="store_true", help="into a vault: what symbolic links lead to")
    group.add_argument(
        "--outside-links", action="store_true", help="out of a vault: make links that lead out of DESTINATION too"
    )


def _no_freshness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-freshness", action="store_true", help="accept any authentic version of the vault, however old"
    )


_ARGUMENTS: Final = {
    "ls": _ls, "cp": _cp, "rm": _rm, "pack": _pack, "info": _info, "index": _index, "verify": _verify,
    "backup": _backup, "restore": _restore, "compact": _compact, "rekey": _rekey,
}  # fmt: skip


def _configure_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="keys_action", metavar="ACTION", required=True)
    for name, summary, example in (
        ("list", "list the key slots, as the `keys` file has them in clear", "list data.vault"),
        ("add", "make a key slot", "add data.vault --new-passphrase --label recovery"),
        ("remove", "remove a key slot; whoever had the vault key keeps it", "remove data.vault recovery"),
        (
            "rotate",
            "put a new slot in the place of the one that opens",
            "rotate data.vault --passphrase --new-passphrase",
        ),
    ):
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"Example: strongroom vault keys {example}",
        )
        _add_common(action)
        action.add_argument("vault", type=Path, metavar="VAULT")
        if name != "list":
            secrets.add_opening(action)
        if name in ("add", "rotate"):
            secrets.add_holder(action, with_key_file=True)
            action.add_argument("--label", metavar="TEXT", help="who that is; it stands in the file in clear")
        if name == "remove":
            action.add_argument("slot", metavar="SLOT", help="its label or number")
            action.add_argument("--force", action="store_true", help="the last one too: only the vault key opens then")
