"""Who deals with a CAS, and what a policy lets them do (docs/spec/cas.md, "Callers").

Rules:

- A caller is a key that it proved on this very connection, or a person whom an issuer vouches for until some time.
- A policy's owner may do everything with it. An administrator may do what `may` says, with what `resources` says.
- Nobody else may do anything; what is absent allows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from strongroom.cas.policy.version import Policy
from strongroom.crypto import PublicKey

Right = Literal["apply", "secrets", "anchors", "log", "revoke", "grants", "certificates"]
RIGHTS: tuple[Right, ...] = get_args(Right)

LOGIN_ROLE = "administrator"
"""The context of the exporter over which a key logs in."""
_LOGIN_LABEL = b"strongroom/cas/login/v1\0"


@dataclass(frozen=True)
class Principal:
    """One name under which a caller is known: a key, or an issuer with what it calls the person.

    Attributes:
        key: the fingerprint of a key; empty for a person.
        public: that key.
    """

    key: str = ""
    issuer: str = ""
    subject: str = ""
    public: PublicKey | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_key(cls, key: PublicKey) -> Principal:
        return cls(key=key.fingerprint, public=key)

    def __str__(self) -> str:
        """As the log names it. An issuer's address holds no blank, so that the two parts stay apart."""
        return self.key or f"{self.issuer} {self.subject}"

    def may(self, policy: Policy, right: Right, resource: str = "") -> bool:
        """Whether it has a right over a policy's resource."""
        if self.key and self.key == policy.owner:
            return True
        return any(
            each.allows(right, resource)
            for each in policy.administrators
            if (each.key == self.key if self.key else (each.oidc, each.subject) == (self.issuer, self.subject))
        )


def first_allowed(callers: Iterable[Principal], policy: Policy, right: Right, resource: str = "") -> Principal | None:
    """The first of a caller's names that has the right, or None."""
    return next((one for one in callers if one.may(policy, right, resource)), None)


def login_statement(binder: bytes, cas_root: str) -> bytes:
    """What a key signs to log in on one connection.

    Args:
        binder: the connection's exporter under `EXPORTER_LABEL`, context `LOGIN_ROLE`: 32 bytes that no other
            connection has, so that the signature is worth nothing elsewhere.
    """
    return _LOGIN_LABEL + binder + json.dumps([LOGIN_ROLE, cas_root], separators=(",", ":")).encode()
