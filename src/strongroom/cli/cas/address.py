"""Which CAS a verb talks to: what its options name, or variables, or else this user's development CAS.

Options and variables count in pairs: a root of one never goes with an address of the other.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from strongroom.errors import UsageError

if TYPE_CHECKING:  # with it comes all of the CAS, which help does not need
    from strongroom.cas.client.address import CasAddress
    from strongroom.cli.workspace import Home

URL_VARIABLE, ROOT_VARIABLE = "STRONGROOM_CAS", "STRONGROOM_CAS_ROOT"
_ROOT = re.compile(r"sha256:[0-9a-f]{64}")
_ELSE = f"(default: that of {ROOT_VARIABLE}, or this user's development CAS)"


def add(parser: argparse.ArgumentParser) -> None:
    """Give an action that talks to a CAS the options that say to which."""
    parser.add_argument(
        "--cas", metavar="URL", help=f"the CAS (default: that of {URL_VARIABLE}, or this user's development CAS)"
    )
    parser.add_argument("--cas-root", metavar="sha256:...", help="with --cas: the fingerprint of its root key")


def add_root(parser: argparse.ArgumentParser, whose: str = "the CAS") -> None:
    """Give an action that talks to none, but is about one, the option that says which."""
    parser.add_argument("--cas-root", metavar="sha256:...", help=f"{whose} {_ELSE}")


def url_of(args: argparse.Namespace) -> str | None:
    """The address that is named."""
    return args.cas or os.environ.get(URL_VARIABLE) or None


def root_of(args: argparse.Namespace) -> str | None:
    """The root that is named, for what talks to no CAS, or to any that has it.

    Raises:
        UsageError: it is none.
    """
    if args.cas_root or getattr(args, "cas", None):
        return _checked(args.cas_root, "--cas-root")
    return _checked(os.environ.get(ROOT_VARIABLE), ROOT_VARIABLE)


def _checked(root: str | None, name: str) -> str | None:
    if root and not _ROOT.fullmatch(root):
        raise UsageError(
            f"{name}: got {root[:80]!r}, wanted sha256:<64 hex digits>",
            hint="`strongroom cas start` prints the root of a CAS, and `strongroom cas status` shows it",
        )
    return root or None


def named(args: argparse.Namespace) -> CasAddress | None:
    """The CAS that is named; None for this user's development CAS.

    Raises:
        UsageError: of address and root only one is, or the root is none.
    """
    url, root, names, name = args.cas, args.cas_root, "--cas, --cas-root", "--cas-root"
    if not url and not root:
        url, root = os.environ.get(URL_VARIABLE), os.environ.get(ROOT_VARIABLE)
        names, name = f"{URL_VARIABLE}, {ROOT_VARIABLE}", ROOT_VARIABLE
    if bool(url) != bool(root):
        raise UsageError(
            f"{names}: one is useless without the other", hint="give both; `strongroom cas start` prints them"
        )
    if not url or not _checked(root, name):
        return None
    from strongroom.cas.client.address import CasAddress

    return CasAddress(url, root)


@contextmanager
def cas_of(args: argparse.Namespace, home: Home) -> Iterator[CasAddress]:
    """The CAS that is named, or else this user's development CAS, which runs meanwhile.

    Raises:
        UsageError: as `named`.
    """
    address = named(args)
    if address is not None:
        yield address
        return
    with home.cas() as development:
        yield development


def shown(args: argparse.Namespace, address: CasAddress) -> str:
    """For a person's terminal, so that nobody takes what went to the one for stored in the other."""
    return address.url if named(args) else "this user's development CAS"  # whose port says nothing
