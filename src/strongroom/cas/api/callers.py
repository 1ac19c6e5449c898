"""Who calls, and what it may: an enclave by its attestation on this connection, an administrator by its key or login.

A caller is everything that it has proved on this connection: the key of its TLS certificate, and what it logged in as
(`login.py`). It may do what one of these may.
"""

from __future__ import annotations

from starlette.requests import Request

from strongroom.cas.api.context import Context
from strongroom.cas.callers.administrators import Principal, Right, first_allowed
from strongroom.cas.enclaves.imports import still_held
from strongroom.cas.enclaves.leases import Lease
from strongroom.cas.policy.version import Policy
from strongroom.channel import TlsInfo, tls_info
from strongroom.crypto import PublicKey
from strongroom.errors import BindingError, UnauthorizedError

LOGINS = "logins"
"""The key of a connection's session under which its logins are: pairs of who, and until when (None: its end)."""
ASKED, TEE = "asked", "tee"
"""The same of the policy that a nonce was asked for, and of the kind of evidence that was shown."""


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
    """The policy that an enclave attested under on this connection. Raises as `attested_lease`."""
    return attested_lease(context, request)[0]


def attested_lease(context: Context, request: Request) -> tuple[Policy, Lease]:
    """The policy that an enclave attested under on this connection, which is the newest, and its lease, which lasts.

    Raises:
        AttestFirstError: there is none.
        RevokedError: the lease, or what runs there, was revoked.
    """
    tls = tls_info(request.scope)
    attested = tls.session.get("attested")
    if attested is None:
        raise AttestFirstError("connection: no enclave has attested on it")
    key, now = enclave_key(tls).fingerprint, context.now()
    with context.store.reading():
        policy = context.store.policy(attested[0])
        if policy.digest != attested[1]:
            raise AttestFirstError(f"policy {policy.name}: has a new version, {policy.version}; attest again")
        context.revocations.check(policy.name, key, tls.session["appraised"].measurement, now)
        lease = context.leases.lease(policy.name, key)
        if lease is None or lease.number != attested[2]:
            raise AttestFirstError(f"lease: {attested[2]} of policy {policy.name} has ended; attest again")
        if now >= lease.expires:
            raise AttestFirstError(f"connection: attested longer than {policy.lease} seconds ago; attest again")
        held = tls.session.get("granted")
        if held and not still_held(context.store, policy.name, held, now):
            raise AttestFirstError(f"policy {policy.name}: what it imports is granted anew, or no more; attest again")
    return policy, lease


def callers(context: Context, request: Request) -> tuple[Principal, ...]:
    """All that the caller has proved to be on this connection. Raises UnauthorizedError if that is nothing."""
    tls, now = tls_info(request.scope), context.now()
    logins = tls.session.get(LOGINS, ())
    found = [who for who, until in logins if until is None or now < until]
    if tls.peer is not None:
        found.insert(0, Principal.of_key(tls.peer.key))
    if not found:
        if logins:
            raise UnauthorizedError(
                "login: the token has expired", hint="get a new one from its issuer, and log in on a new connection"
            )
        raise UnauthorizedError(
            "TLS: a client certificate with the owner's key is wanted, or a login",
            hint="give the owner's key: --owner FILE; or an issuer's token: --token-file FILE",
        )
    return tuple(found)


def caller_keys(context: Context, request: Request) -> tuple[PublicKey, ...]:
    """The keys that the caller has proved. Raises UnauthorizedError if there is none."""
    keys = tuple(one.public for one in callers(context, request) if one.public is not None)
    if not keys:
        raise UnauthorizedError(
            "caller: is known by an issuer's token, which signs nothing; a key is wanted",
            hint="policies are signed: give the key, --owner FILE",
        )
    return keys


def may(context: Context, request: Request, policy: Policy, right: Right, resource: str = "") -> bool:
    """Whether the caller has a right over a policy's resource; raises UnauthorizedError if it is nobody."""
    return first_allowed(callers(context, request), policy, right, resource) is not None


def require(context: Context, request: Request, policy: Policy, right: Right, resource: str = "") -> Principal:
    """Who of the policy's administrators calls, for the log.

    Args:
        resource: ``secret:NAME``, ``vault:NAME`` or ``sealed:NAME``; empty for what is of the policy as a whole.

    Raises:
        UnauthorizedError: the caller is none who has that right over it.
    """
    known = callers(context, request)
    found = first_allowed(known, policy, right, resource)
    if found is None:
        raise UnauthorizedError(
            f"policy {policy.name}: the caller is {known[0]}, and has not the right {right!r}"
            + (f" over {resource[:80]}" if resource else ""),
            hint=f"its owner is {policy.owner}; [[administrators]] of its next version may name others",
        )
    return found
