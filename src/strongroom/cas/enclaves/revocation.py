"""One entry of the list of revocations, as the CAS hands it out and an enclave reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strongroom.errors import FormatError, RevokedError

if TYPE_CHECKING:
    from strongroom.cas.state.ledger import Change


@dataclass(frozen=True)
class Revocation:
    """One entry of the list: of a key, or of a measurement.

    Attributes:
        number: of the log entry that made it.
        until: when it is taken off, in Unix seconds; 0 for a measurement, which is lifted.
        serials: of certificates of the key.
        why: `revoked`, or `clone` for a key that two enclaves held.
    """

    policy: str
    number: int
    why: str
    key: str = ""
    measurement: str = ""
    until: int = 0
    serials: tuple[str, ...] = ()

    def in_force(self, now: int) -> bool:
        return not self.until or now < self.until

    def to_wire(self) -> dict[str, object]:
        what: dict[str, object] = {"policy": self.policy, "number": self.number, "why": self.why}
        if self.key:
            return what | {"key": self.key, "until": self.until, "serials": list(self.serials)}
        return what | {"measurement": self.measurement}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Revocation:
        """Raises FormatError if `wire` is none."""
        try:
            one = cls(**{**wire, "serials": tuple(map(str, wire.get("serials", ())))})
        except TypeError:
            raise FormatError(
                "revocation: wanted an object of policy, number, why, and a key or a measurement"
            ) from None
        texts = (one.policy, one.why, one.key, one.measurement)
        if (
            not all(isinstance(text, str) for text in texts)
            or type(one.number) is not int
            or type(one.until) is not int
        ):
            raise FormatError("revocation: a field is of another type")
        return one

    @property
    def _row(self) -> tuple[str, str]:
        return (self.policy, f"key:{self.key}" if self.key else f"measurement:{self.measurement}")

    def change(self) -> Change:
        """The change of rows that puts it on the list."""
        return ("revocations", *self._row, json.dumps(self.to_wire(), separators=(",", ":")).encode())

    def removal(self) -> Change:
        return ("revocations", *self._row, None)


def refusal(revocation: Revocation) -> RevokedError:
    """What the enclave concerned is told."""
    if revocation.measurement:
        return RevokedError(
            f"measurement: {revocation.measurement} is revoked under policy {revocation.policy}",
            hint=f"strongroom cas revoke {revocation.policy} --measurement {revocation.measurement} --lift",
        )
    if revocation.why == "clone":
        return RevokedError(
            f"key {revocation.key}: two enclaves of policy {revocation.policy} hold it; both have lost it",
            hint="an enclave was copied while it ran; find out by whom, then start one anew",
        )
    return RevokedError(
        f"key {revocation.key}: its lease under policy {revocation.policy} is revoked",
        hint="an administrator has ended this enclave; the policy's log says who",
    )
