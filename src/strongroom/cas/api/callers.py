"""Who calls, and what it may: an enclave by its attestation on this connection, an administrator by its key."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request

from strongroom.cas.api.context import Context
from strongroom.cas.policy import Policy
from strongroom.cas.wire import ATTESTED_SECONDS
from strongroom.channel import TlsInfo, tls_info
from strongroom.crypto import PublicKey
from strongroom.errors import BindingError, UnauthorizedError

Right = Literal["apply", "secrets", "anchors", "log", "revoke", "grants"]


class AttestFirstError(Exception):
    """Carries an UnauthorizedError to an enclave, with the status that tells it to attest and ask again."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.error = UnauthorizedError(message, hint="attest on this connection, then ask again")


def enclave_key(tls: TlsInfo) -> PublicKey:
    """The key with which an enclave made this connection. Raises BindingError."""
    if tls.peer is None:
        raise BindingError(
            "TLS: the enclave showed no certificate",
            hint="connect with a certificate for the key that the claims name, then attest",
        )
    return tls.peer.key


def attested_policy(context: Context, request: Request) -> Policy:
    """The policy that an enclave attested under on this connection, lately, and no newer one has replaced.

    Raises:
        AttestFirstError: there is none.
    """
    attested = tls_info(request.scope).session.get("attested")
    if attested is None:
        raise AttestFirstError("connection: no enclave has attested on it")
    policy = context.store.policy(attested[0])
    if policy.digest != attested[1]:
        raise AttestFirstError(f"policy {policy.name}: has a new version, {policy.version}; attest again")
    if not 0 <= context.now() - attested[2] < ATTESTED_SECONDS:
        raise AttestFirstError(f"connection: attested longer than {ATTESTED_SECONDS} seconds ago; attest again")
    return policy


def owner_key(request: Request) -> PublicKey:
    """The key of an owner who calls. Raises UnauthorizedError if the caller shows none."""
    peer = tls_info(request.scope).peer
    if peer is None:
        raise UnauthorizedError(
            "TLS: a client certificate with the owner's key is wanted", hint="give the owner's key: --owner FILE"
        )
    return peer.key


def may(context: Context, request: Request, policy: Policy, right: Right, resource: str = "") -> bool:
    """Whether the caller has a right over a policy's resource; raises UnauthorizedError if it shows no key."""
    return owner_key(request).fingerprint == policy.owner


def require(context: Context, request: Request, policy: Policy, right: Right, resource: str = "") -> None:
    """Raises UnauthorizedError unless the caller has a right over a policy's resource.

    Args:
        resource: ``secret:NAME`` or ``vault:NAME``; empty for what is of the policy as a whole.
    """
    if not may(context, request, policy, right, resource):
        got = owner_key(request).fingerprint
        raise UnauthorizedError(
            f"policy {policy.name}: the caller's key is {got}, the owner's is {policy.owner}",
            hint="give the key that signed the policy: --owner FILE",
        )
