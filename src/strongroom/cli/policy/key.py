"""`strongroom policy key`: an owner's key as a document takes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.files import create_once
from strongroom.cas.wire import b64
from strongroom.cli import output
from strongroom.cli.policy.files import show
from strongroom.cli.signers import KEY, signer
from strongroom.cli.workspace import Home
from strongroom.crypto import Signer, SigningKey
from strongroom.crypto.pkcs11 import Pkcs11Key
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key",
        nargs="?",
        metavar=KEY,
        help="the key, a file or a pkcs11: URI (default: this user's key); a file that is not there is made",
    )
    parser.add_argument("--generate", action="store_true", help="make the key that a pkcs11: URI names in the token")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    hardware = args.key is not None and args.key.startswith("pkcs11:")
    if args.generate and not hardware:
        raise UsageError("--generate: is for a pkcs11: URI", hint="a key file is made where there is none")
    if args.generate:
        key: Signer = Pkcs11Key.generate(args.key)
        output.note("key made in the token")
    else:
        if args.key is not None and not hardware and not Path(args.key).exists():
            create_once(Path(args.key), SigningKey.generate().pem())
            output.note(f"key written to {args.key}")
        key = signer(args.key, Home.open())
    told: dict[str, object] = {"public": b64(key.public.spki), "fingerprint": key.public.fingerprint}
    if args.json:
        output.result(told)
    else:
        show(told)
    return 0
