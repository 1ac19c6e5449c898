"""What opens a vault, as arguments: key files, passphrases, age identities. Never a secret itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from strongroom.cas.client.slots import SCHEME, CasSlot, keep_slot, slot_of
from strongroom.cli.policy.files import add_cas, cas_client, check_name
from strongroom.cli.workspace import SealedVault
from strongroom.errors import FormatError
from strongroom.sealed import create_key
from strongroom.storage import LocalDirectory
from strongroom.vault.access import KEYS
from strongroom.vault.keys import (
    AgeIdentity,
    AgeRecipient,
    Holder,
    KeyFile,
    KeyRing,
    Passphrase,
    Secret,
    SourceKey,
    read_passphrase,
)


def add_opening(parser: argparse.ArgumentParser, *, cas: bool = True) -> None:
    """Give a verb that opens a vault the arguments that say with what.

    Args:
        cas: a CAS's key slots too.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--key", type=Path, metavar="FILE", help="the key file (default: VAULT.key)")
    group.add_argument("--passphrase", action="store_true", help="ask for a passphrase")
    group.add_argument("--passphrase-fd", type=int, metavar="N", help="read a passphrase, a line, from descriptor N")
    group.add_argument("--age-identity", type=Path, metavar="FILE", help="an identity file of age")
    if cas:
        group.add_argument("--cas-slot", metavar="POLICY", help="a slot whose key a CAS keeps under that policy")
        add_cas(parser)
    parser.add_argument("--anchor", type=Path, metavar="FILE", help="the anchor file (default: VAULT.anchor)")


def add_kind(parser: argparse.ArgumentParser) -> None:
    """Give a verb that puts content into a vault the argument that says that anybody may read it."""
    parser.add_argument(
        "--authenticated",
        action="store_true",
        help="the vault is authenticated only: contents lie on the disk in clear, and nobody can change them unseen",
    )


def kind_of(args: argparse.Namespace) -> bool | None:
    """Whether the vault must be encrypted, by the argument of `add_kind`; None if nothing says it."""
    return False if getattr(args, "authenticated", False) else None


def sealed_vault(path: Path, args: argparse.Namespace) -> SealedVault:
    """The vault at `path`, with what the arguments of `add_opening` say; asks for a passphrase where one is wanted."""
    sealed = replace(SealedVault.at(path, args.key), anchor_path=args.anchor, encrypted=kind_of(args))
    return replace(sealed, secret=_secret(sealed, args))


def _secret(sealed: SealedVault, args: argparse.Namespace) -> Secret | None:
    if args.key is not None:
        return None
    if args.age_identity is not None:
        return AgeIdentity.load(args.age_identity)
    if getattr(args, "cas_slot", None) is not None:
        return CasSlot(Keeper(args), args.cas_slot)
    if args.passphrase or args.passphrase_fd is not None or _must_ask(sealed):
        return Passphrase(read_passphrase(f"passphrase of {sealed.path}: ", args.passphrase_fd))
    return None


def _must_ask(sealed: SealedVault) -> bool:
    if sealed.key_path.exists() or not (sealed.path / KEYS).exists() or not sys.stdin.isatty():
        return False
    try:
        ring = KeyRing.load(LocalDirectory(sealed.path))
    except FormatError:
        return False  # opening it says so
    return ring is not None and any(slot.kind == Passphrase.kind for slot in ring.slots)


@dataclass(frozen=True, slots=True)
class NewHolder:
    """For whom a key slot is to be made, how to call it, and what to say of it."""

    holder: Holder
    label: str
    note: str | None = None


def add_holder(parser: argparse.ArgumentParser, *, with_key_file: bool) -> None:
    """Give a verb that makes a key slot the arguments that say for whom; one is required if a key file may be it."""
    group = parser.add_mutually_exclusive_group(required=with_key_file)
    if with_key_file:
        group.add_argument("--new-key-file", type=Path, metavar="FILE", help="a key file; it is made unless it exists")
    group.add_argument("--new-passphrase", action="store_true", help="ask for a new passphrase, twice")
    group.add_argument(
        "--new-passphrase-fd", type=int, metavar="N", help="read the new passphrase, a line, from descriptor N"
    )
    group.add_argument("--new-age", metavar="RECIPIENT", help="a recipient of age (age1...)")
    if with_key_file:
        group.add_argument("--new-cas", metavar="POLICY", help="a CAS, which keeps the slot's key under that policy")


def new_holder(args: argparse.Namespace) -> Callable[[], NewHolder] | None:
    """What makes the holder that the arguments of `add_holder` name, when it is called: it may ask, or make a file."""
    if getattr(args, "new_key_file", None) is not None:
        return lambda: _key_file(args.new_key_file)
    if args.new_age is not None:
        recipient = AgeRecipient(args.new_age)
        return lambda: NewHolder(recipient, f"age {args.new_age[:16]}")
    if getattr(args, "new_cas", None) is not None:
        return lambda: _kept_by_cas(args)
    if args.new_passphrase or args.new_passphrase_fd is not None:
        return lambda: NewHolder(
            Passphrase(read_passphrase("new passphrase: ", args.new_passphrase_fd, confirm=True)), "passphrase"
        )
    return None


@dataclass(frozen=True)
class Keeper:
    """The CAS that the arguments of `add_opening` name, connected to when it is asked."""

    args: argparse.Namespace

    def slot_key(self, policy: str, slot: str) -> bytes | None:
        with cas_client(self.args) as client:
            return client.slot_key(policy, slot)

    def forget(self, data: bytes) -> bool:
        """Have it forget the key of a slot with that data; whether it kept one."""
        policy, slot = slot_of(data)
        with cas_client(self.args) as client:
            return client.remove_slot_key(policy, slot)


def _kept_by_cas(args: argparse.Namespace) -> NewHolder:
    policy = check_name(args.new_cas)
    with cas_client(args) as client:
        data, key = keep_slot(client, policy)
    return NewHolder(SourceKey(SCHEME, data, key), f"cas {policy}"[:100])


def _key_file(path: Path) -> NewHolder:
    if path.exists():
        return NewHolder(KeyFile.load(path), f"key file {path.name}")
    return NewHolder(KeyFile(create_key(path)), f"key file {path.name}", f"key written to {path}")
