"""How an operator runs a CAS: whom it lets log in, what it limits, counts and says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.cas.api.metrics import Metrics
from strongroom.cas.callers.limits import Limits
from strongroom.cas.callers.oidc import Authenticator


@dataclass(frozen=True)
class Operation:
    """The choices of one CAS's operator.

    Attributes:
        authenticator: tells from an issuer's token who bears it; None takes no tokens.
        allotted: whether only namespaces that an operator has allotted accept policies.
        limits: on what one address or policy may ask.
        metrics: what is counted.
        access_log: whether each answer is a line of the log ``strongroom.cas.access``.
        about: what `status` says of how it was started: words by name.
    """

    authenticator: Authenticator | None = None
    allotted: bool = False
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    access_log: bool = False
    about: Mapping[str, object] = field(default_factory=dict)
