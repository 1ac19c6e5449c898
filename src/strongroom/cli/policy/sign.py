"""`strongroom policy sign`: add an owner's signature to those beside a document."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from strongroom.cas.files import replace as replace_file
from strongroom.cas.policy.owners import Owners, SignatureFile, check_each, sign_version
from strongroom.cas.policy.succession import check_succession
from strongroom.cas.policy.version import Policy
from strongroom.cli import output
from strongroom.cli.policy.files import add_signatures, read_signature_file, show, signatures_path, signers
from strongroom.cli.signers import KEY, signer
from strongroom.cli.workspace import Home, read_policy
from strongroom.crypto import Signer
from strongroom.errors import UnauthorizedError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, metavar="FILE")
    parser.add_argument("--key", metavar=KEY, help="the owner's key, a file or a pkcs11: URI (default: this user's)")
    add_signatures(parser)
    parser.add_argument(
        "--previous",
        type=Path,
        metavar="FILE",
        help="the version before: its owners sign too, those who are owners no more among them",
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    policy = read_policy(args.policy)
    before = None if args.previous is None else read_policy(args.previous)
    if before is not None:
        if before.name != policy.name:
            raise UsageError(f"--previous: got a version of {before.name}, wanted one of {policy.name}")
        check_succession(policy, before)
    key = signer(args.key, Home.open())
    if not _owners(policy, before):
        raise UnauthorizedError(
            f"policy {policy.name}: has no [owners] who sign it",
            hint="`strongroom policy apply` signs it with the key that policy.owner names (--owner KEY)",
        )
    if _owner(policy, before, key) is None:
        raise UnauthorizedError(
            f"key: {key.public.fingerprint} is that of no owner of {policy.name}, version {policy.version}",
            hint="--key names the owner's key; --previous FILE lets an owner sign whom this version removes",
        )
    path = signatures_path(args.policy, args.signatures)
    held = SignatureFile(policy.name, policy.version, policy.digest)
    if path.exists():
        held = read_signature_file(path)
        held.check_of(policy.name, policy.version, policy.digest)
        _check_held(policy, before, held)
    fresh = key.public.fingerprint not in {one.key for one in held.signatures}
    if fresh:
        signature = sign_version(key, name=policy.name, version=policy.version, digest=policy.digest)
        held = replace(held, signatures=(*held.signatures, signature))
        replace_file(path, held.to_text().encode())
    else:
        output.note(f"{_owner(policy, before, key)} has signed it already")
    told = _told(policy, before, held)
    if args.json:
        output.result({"path": str(path)} | told)
    else:
        show({"signatures": path} | told)
    return 0


def _check_held(policy: Policy, before: Policy | None, held: SignatureFile) -> None:
    """Whoever passed the file on may have put anything there: what is called signed is.

    Raises:
        VerificationError: a signature does not match.
        UnauthorizedError: one is of nobody who may sign.
    """
    try:
        check_each(
            held.signatures,
            name=policy.name,
            version=policy.version,
            digest=policy.digest,
            owners=policy.owners,
            before=None if before is None else before.owners,
        )
    except UnauthorizedError as error:
        if before is None and policy.version > 1:
            error.hint = "with --previous FILE, owners whom this version removes may have signed; take out any other's"
        raise


def _owner(policy: Policy, before: Policy | None, key: Signer) -> str | None:
    found = (o.name_of(key.public.fingerprint) for o in _owners(policy, before))
    return next((name for name in found if name is not None), None)


def _owners(policy: Policy, before: Policy | None) -> list[Owners]:
    return [each.owners for each in (policy, before) if each is not None and each.owners is not None]


def _told(policy: Policy, before: Policy | None, held: SignatureFile) -> dict[str, object]:
    signed, missing = signers(policy.owners, held.signatures)
    told: dict[str, object] = {
        "policy": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "signed": signed,
        "threshold": 0 if policy.owners is None else policy.owners.threshold,
        "not_yet": missing,
    }
    if before is not None and before.owners is not None:
        told["signed_before"] = signers(before.owners, held.signatures)[0]
        told["threshold_before"] = before.owners.threshold
    return told
