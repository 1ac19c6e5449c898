"""Owners for tests: keys by name, the table that names them, and their signatures."""

from __future__ import annotations

from collections.abc import Iterable

from strongroom.cas.policy.owners import OwnerSignature, sign_version
from strongroom.cas.policy.succession import SignedPolicy
from strongroom.cas.policy.version import Policy, parse_policy, sign_policy
from strongroom.cas.wire import b64
from strongroom.crypto import SigningKey
from tests.cas.world import PROGRAM, document

ADMIN = SigningKey.generate()
KEYS = {name: SigningKey.generate() for name in ("alice", "bob", "carol", "dave")}
ROOT = "sha256:" + "0f" * 32


def table(threshold: int, names: Iterable[str], **others: SigningKey) -> str:
    """The table `[owners]`: the people of `KEYS` by name, and `others` under these names."""
    keys = {name: KEYS[name] for name in names} | others
    lines = [f'{name} = "{b64(key.public.spki)}"' for name, key in keys.items()]
    return "\n".join([f"[owners]\nthreshold = {threshold}", "[owners.keys]", *lines]) + "\n"


def version(before: Policy | None = None, owners: str = "", *, admin: SigningKey = ADMIN, **changes: object) -> Policy:
    """The version after that one."""
    changes.setdefault("more", owners + PROGRAM)
    if before is not None:
        changes = {"version": before.version + 1, "previous": before.digest, "name": before.name} | changes
    return parse_policy(document(admin, vendor_root=ROOT, **changes))


def signed_by(policy: Policy, *names: str) -> tuple[OwnerSignature, ...]:
    return tuple(
        sign_version(KEYS[name], name=policy.name, version=policy.version, digest=policy.digest) for name in names
    )


def applied(policy: Policy, *names: str, admin: SigningKey = ADMIN) -> SignedPolicy:
    """That version as a CAS has it, signed by its administrator and these people."""
    return SignedPolicy(policy, sign_policy(policy.text, admin), admin.public, signed_by(policy, *names))
