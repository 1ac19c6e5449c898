"""Whose key signs, and as whom a command calls a CAS: a key file, a key in a token, or an issuer's token."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from strongroom.cas.callers.oidc import MAX_TOKEN
from strongroom.cli import output
from strongroom.cli.workspace import Home
from strongroom.crypto import Signer, SigningKey
from strongroom.crypto.pkcs11 import Pkcs11Key
from strongroom.errors import UsageError

TOKEN_VARIABLE = "STRONGROOM_OIDC_TOKEN_FILE"  # noqa: S105  # a variable's name
KEY = "KEY"
"""How help names a key: a file or a URI."""


def add_caller(parser: argparse.ArgumentParser, whose: str = "the administrator's") -> None:
    """Give an action that calls a CAS the options that say as whom."""
    parser.add_argument("--owner", metavar=KEY, help=f"{whose} key, a file or a pkcs11: URI (default: this user's)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"log in with the OpenID Connect token in this file, without a key (default: that of {TOKEN_VARIABLE})",
    )


def signer(given: str | Path | None, home: Home) -> Signer:
    """The key that an option names: a file, or a key in a token; by default this user's.

    Raises:
        FormatError: the file holds no key.
        StrongroomError: as `Pkcs11Key`.
    """
    if given is None:
        return home.owner()
    text = str(given)
    return Pkcs11Key.open(text) if text.startswith("pkcs11:") else SigningKey.load(Path(text))


def caller(args: argparse.Namespace, home: Home) -> tuple[Signer | None, Callable[[], str] | None]:
    """Key and token that the options of `add_caller` name. Who logs in by a token shows no key that was not named."""
    path = args.token_file or (Path(os.environ[TOKEN_VARIABLE]) if os.environ.get(TOKEN_VARIABLE) else None)
    if path is None:
        return signer(args.owner, home), None
    return (signer(args.owner, home) if args.owner else None), lambda: _token(path)


def _token(path: Path) -> str:
    try:
        if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
            output.warn(f"{path}: others of this machine may read the token; chmod 600")
        with path.open("rb") as file:
            raw = file.read(MAX_TOKEN + 2)
    except OSError as error:
        raise UsageError(f"--token-file: {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        return raw.strip().decode("ascii")
    except UnicodeDecodeError:
        raise UsageError(f"--token-file: {path} holds no token") from None
