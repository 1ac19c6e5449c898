"""`strongroom policy key`: an owner's key as a document takes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.files import create_once
from strongroom.cas.wire import b64
from strongroom.cli import output
from strongroom.cli.policy_files import show
from strongroom.cli.workspace import Home
from strongroom.crypto import SigningKey


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", type=Path, nargs="?", metavar="FILE", help="the key file (default: this user's key)")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.key is None:
        key = Home.open().owner()
    else:
        if not args.key.exists():
            create_once(args.key, SigningKey.generate().pem())
            output.note(f"key written to {args.key}")
        key = SigningKey.load(args.key)
    told: dict[str, object] = {"public": b64(key.public.spki), "fingerprint": key.public.fingerprint}
    if args.json:
        output.result(told)
    else:
        show(told)
    return 0
