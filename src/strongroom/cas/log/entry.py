"""One entry of the audit log, and the bytes of it that the log's tree is made of (docs/spec/cas.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.cas.log.tree import leaf_hash
from strongroom.errors import FormatError

SALT_SIZE = 16
_LABEL = "strongroom/cas/log/v2"
_MAX_NUMBER = (1 << 63) - 1
_FIELDS = {"number": int, "time": int, "event": str, "policy": str, "detail": str, "previous": int, "salt": str}


@dataclass(frozen=True)
class LogEntry:
    """One line of the audit log.

    Attributes:
        number: from 1, without gaps.
        time: seconds since 1970.
        detail: JSON text.
        previous: the number of the entry before of the same policy, 0 for its first: whoever sees the entries of one
            policy sees whether one of them is missing.
        salt: random, so that hashes of entries tell nothing to those who may not read them.
    """

    number: int
    time: int
    event: str
    policy: str
    detail: str
    previous: int
    salt: bytes

    @property
    def leaf(self) -> bytes:
        """Its hash in the tree."""
        fields = [_LABEL, self.number, self.time, self.event, self.policy, self.detail, self.previous, self.salt.hex()]
        return leaf_hash(json.dumps(fields, separators=(",", ":")).encode())

    def to_wire(self) -> dict[str, object]:
        return {
            "number": self.number,
            "time": self.time,
            "event": self.event,
            "policy": self.policy,
            "detail": self.detail,
            "previous": self.previous,
            "salt": self.salt.hex(),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> LogEntry:
        """Raises FormatError unless `wire` has the fields of an entry; others are left to the caller."""
        for name, kind in _FIELDS.items():
            if type(wire.get(name)) is not kind:
                raise FormatError(f"log entry: {name} is missing or of another type")
        numbers = [wire["number"], wire["time"], wire["previous"]]
        if not all(0 <= value <= _MAX_NUMBER for value in numbers) or wire["previous"] >= wire["number"]:
            raise FormatError("log entry: number, time or previous is out of range")
        try:
            salt = bytes.fromhex(wire["salt"])
            wire["detail"].encode(), wire["policy"].encode(), wire["event"].encode()
        except ValueError:
            raise FormatError("log entry: its salt is not hexadecimal, or a field is not Unicode text") from None
        if salt.hex() != wire["salt"] or len(salt) != SALT_SIZE:
            raise FormatError(f"log entry: salt, wanted {SALT_SIZE} bytes in hexadecimal digits")
        return cls(wire["number"], wire["time"], wire["event"], wire["policy"], wire["detail"], wire["previous"], salt)
