"""How many connections of a mesh may be opening at once, so that nobody's keep another's from it.

Rules:

- Who has not yet shown who it is, is a stranger. Where there are too many, the oldest one of the address with the most
  of them makes room: somebody who means it is known within moments.
- From then on a connection counts for its key alone: each member has a share, and a key that is no member yet a small
  one.
- What the program opens is bounded for each member that it connects to. Further ones wait, in their order.

Nothing here locks; whoever uses it does.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from strongroom.shield.network.members import Member
from strongroom.shield.network.tunnel import Tunnel

STRANGERS: Final = 256
OUT_SHARE: Final = 128
IN_SHARE: Final = 256  # more than an honest proxy has opening to one member
UNKNOWN_SHARE: Final = 8
UNKNOWN: Final = 1024  # of all keys that are no members yet


@dataclass(frozen=True)
class Wanted:
    """A connection of the program's that leads to a member, and has no tunnel yet."""

    inner: socket.socket
    member: Member
    port: int


@dataclass
class Openings:
    """Those of one proxy."""

    strangers: dict[str, dict[Tunnel, None]] = field(default_factory=dict)
    _from: dict[Tunnel, str] = field(default_factory=dict)  # a stranger's address
    _shown: dict[Tunnel, str] = field(default_factory=dict)  # the key of who is no stranger any more
    _incoming: Counter[str] = field(default_factory=Counter)
    _outgoing: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, deque[Wanted]] = field(default_factory=dict)

    # From others

    def came(self, tunnel: Tunnel, address: str) -> Tunnel | None:
        """There is one more stranger; the one that has to go for it."""
        pushed = None
        if len(self._from) >= STRANGERS:
            most = max(self.strangers.values(), key=len)
            pushed = next(iter(most))
            self._no_stranger(pushed)
        self.strangers.setdefault(address, {})[tunnel] = None
        self._from[tunnel] = address
        return pushed

    def shown(self, tunnel: Tunnel, key: str, *, member: bool) -> bool:
        """It is known who it is; whether there is room for it."""
        self._no_stranger(tunnel)
        if self._incoming[key] >= (IN_SHARE if member else UNKNOWN_SHARE):
            return False
        self._incoming[key] += 1
        self._shown[tunnel] = key
        return True

    def done(self, tunnel: Tunnel) -> None:
        """It has opened, or was closed."""
        self._no_stranger(tunnel)
        key = self._shown.pop(tunnel, None)
        if key is not None:
            _less(self._incoming, key)

    def _no_stranger(self, tunnel: Tunnel) -> None:
        address = self._from.pop(tunnel, None)
        if address is not None:
            del self.strangers[address][tunnel]
            if not self.strangers[address]:
                del self.strangers[address]

    # To others

    def wants(self, wanted: Wanted) -> bool:
        """The program has connected; whether it goes on at once."""
        key = wanted.member.key
        if self._outgoing[key] < OUT_SHARE:
            self._outgoing[key] += 1
            return True
        self._waiting.setdefault(key, deque()).append(wanted)
        return False

    def ended(self, key: str) -> Wanted | None:
        """One that went on has opened, or was closed; the one that goes on now."""
        waiting = self._waiting.get(key)
        if not waiting:
            _less(self._outgoing, key)
            return None
        wanted = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        return wanted

    def forget(self, keys: set[str]) -> list[Wanted]:
        """Those that wait for others than these keys, which wait no more."""
        gone = [key for key in self._waiting if key not in keys]
        return [wanted for key in gone for wanted in self._waiting.pop(key)]

    def to(self, key: str) -> int:
        """Those of the program's to one member that are opening, or wait."""
        return self._outgoing[key] + len(self._waiting.get(key, ()))

    @property
    def waiting(self) -> int:
        """Those of the program's that have no tunnel yet."""
        return sum(map(len, self._waiting.values()))


def _less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
