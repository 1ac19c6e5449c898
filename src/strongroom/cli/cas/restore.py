"""`strongroom cas entrust --restore` and `sign-restore`: let a CAS's anchor go back to a backup that was restored."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.files import replace as replace_file
from strongroom.cas.policy.restores import Restore, RestoreFile, check_reason, goes_back
from strongroom.cas.policy.version import Policy
from strongroom.cli import output
from strongroom.cli.parser import add_debug
from strongroom.cli.policy.files import show, signers
from strongroom.cli.signers import KEY, signer
from strongroom.cli.workspace import Home, SealedVault
from strongroom.crypto import Signer
from strongroom.errors import ConflictError, FormatError, UsageError
from strongroom.sealed import Root


def configure_entrust(parser: argparse.ArgumentParser) -> None:
    """Add to `entrust` what lets the anchor go back."""
    parser.add_argument(
        "--restore", action="store_true", help="let the anchor go back, after `strongroom vault restore`"
    )
    parser.add_argument("--reason", metavar="TEXT", help="with --restore: why, for the CAS's log")
    parser.add_argument(
        "--statement",
        type=Path,
        metavar="FILE",
        help="with --restore, where the policy has owners: what they sign (default: PATH.restore)",
    )


def configure_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("statement", type=Path, metavar="FILE", help="what `cas entrust --restore` wrote")
    parser.add_argument("--key", metavar=KEY, help="the owner's key, a file or a pkcs11: URI (default: this user's)")
    add_debug(parser)
    output.add_json(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError unless a restore has a reason, and nothing else has what is a restore's."""
    if args.restore and not args.reason:
        raise UsageError("--restore: wants a reason, for the log", hint="--reason TEXT")
    if not args.restore and (args.reason or args.statement):
        raise UsageError("--reason, --statement: belong to --restore")
    if args.restore:
        check_reason(args.reason)


def sign(args: argparse.Namespace, home: Home) -> int:
    """Sign a statement, without asking a CAS."""
    held = _read(args.statement)
    signed = held.signed_by(signer(args.key, home))
    if signed == held:
        output.note("this key has signed it already")
    else:
        replace_file(args.statement, signed.to_text().encode())
    _tell(args, signed, {"signed": [one.key for one in signed.signatures]})
    return 0


def entrust_restored(
    args: argparse.Namespace,
    client: OwnerClient,
    address: CasAddress,
    policy: Policy,
    sealed: SealedVault,
    owner: Signer | None,
) -> bool:
    """Let the anchor go back to where the vault's anchor file is, or say who must sign that; whether it went."""
    old, new = client.anchor(policy.name, args.name).read(), sealed.anchor.read()
    if old is None or new is None or not goes_back(old, new) or not new.comes_after(old):
        raise UsageError(
            f"--restore: {args.vault} was not restored since the CAS's anchor moved",
            hint="`strongroom vault restore BACKUP VAULT --reason TEXT` comes first; without --restore it is entrusted",
        )
    if policy.owners is None:
        client.restore_anchor(policy.name, args.name, old, new, reason=args.reason)
        return True
    held = _statement(args, client, address, policy, old, new)
    if owner is not None and policy.owners.name_of(owner.public.fingerprint) is not None:
        held = held.signed_by(owner)
    signed = held.restore.check_each(held.signatures, policy.owners)
    if len(signed) >= policy.owners.threshold:
        client.restore_anchor(policy.name, args.name, old, new, reason=args.reason, signatures=held.signatures)
        return True
    path = _path(args)
    replace_file(path, held.to_text().encode())
    missing = signers(policy.owners, held.signatures)[1]
    told = {"statement": str(path), "signed": signed, "threshold": policy.owners.threshold, "not_yet": missing}
    _tell(args, held, told)
    output.note(f"each signs it: strongroom cas sign-restore {path}; then the same command again")
    return False


def _path(args: argparse.Namespace) -> Path:
    given: Path | None = args.statement
    return given or args.vault.with_name(args.vault.name + ".restore")


def _statement(
    args: argparse.Namespace, client: OwnerClient, address: CasAddress, policy: Policy, old: Root, new: Root
) -> RestoreFile:
    entry = client.anchored(policy.name, args.name)
    restore = Restore(address.cas_root, policy.name, args.name, old, new, args.reason, entry)
    if not _path(args).exists():
        return RestoreFile(restore)
    held = _read(_path(args))
    if held.restore != restore:
        raise ConflictError(
            f"{_path(args)}: is of another restore, or of another reason, or the anchor has moved since",
            hint="give the --reason that it has, or remove it and have it signed anew",
        )
    return held


def _read(path: Path) -> RestoreFile:
    try:
        return RestoreFile.parse(path.read_text("utf-8"))
    except UnicodeDecodeError:
        raise FormatError(f"restore: {path} is not UTF-8 text") from None


def _tell(args: argparse.Namespace, held: RestoreFile, more: dict[str, object]) -> None:
    told = held.restore.to_wire() | more
    del told["format"]
    if args.json:
        output.result(told)
    else:
        show(told)
