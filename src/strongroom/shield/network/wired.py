"""Members reached over a WireGuard device of the enclave's own, in the place of a proxy.

Rules:

- The device knows exactly the members that the CAS tells with a key, each under its own address.
- A key that two members name is that of whom the device knows by it already, or nobody's.
- Who is revoked, or no member any more, is forgotten, has its address closed, and its connections reset.
- What the program connects to, the kernel connects: nothing of boot's is in between, and a port at which nobody listens
  refuses.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from strongroom.shield.network.members import MAX_MEMBERS, Directory, Member
from strongroom.shield.network.namespace import MESH
from strongroom.shield.network.severed import Connections
from strongroom.shield.network.wired_rules import WiredRules
from strongroom.shield.network.wireguard import Carried, Device, Peer

_LOOK_SECONDS: Final = 0.02
_NONE = Carried(0, 0, met=False)


class Wired:
    """Members of one enclave, until `close`. Made in its namespace, and to be used from any thread.

    Args:
        device: that has its key, and knows nobody.
        rules: of the namespace that it is in.
        on_refused: called where the kernel does not do what it is told.

    Raises:
        OSError: the kernel tells nothing of connections.
    """

    def __init__(self, device: Device, rules: WiredRules, on_refused: Callable[[OSError], None]) -> None:
        self._device, self._rules, self._on_refused = device, rules, on_refused
        self._connections = Connections()
        self._lock = threading.Lock()
        self._directory = Directory()
        self._revoked: set[str] = set()
        self._known: dict[bytes, Member] = {}
        self._first: frozenset[bytes] = frozenset()  # who was there before; who comes later greets us
        self._joined = False

    def update(self, directory: Directory) -> None:
        """Take in who the members are now."""
        with self._lock:
            self._directory = directory
            if not self._joined:
                self._joined, self._first = True, frozenset(each.wireguard for each in directory.members)
            self._apply()

    def revoke(self, key: str) -> None:
        """Talk with the enclave of this key no more."""
        with self._lock:
            self._revoked.add(key)
            self._apply()

    def _apply(self) -> None:
        members = [each for each in self._directory.members if each.wireguard and each.key not in self._revoked]
        named = Counter(each.wireguard for each in members)
        members = [each for each in members if named[each.wireguard] == 1 or self._is_known(each)]
        wanted = {each.wireguard: each for each in members}
        gone = [key for key in self._known if key not in wanted]
        come = {key: each for key, each in wanted.items() if _other(self._known.get(key), each)}
        left = {each.address for each in self._known.values()} - {each.address for each in members}
        moved = {each.address for key, each in come.items() if key not in self._known}  # another has an address now
        peers = [Peer(key, each.address, each.endpoint, key in self._first) for key, each in come.items()]
        try:
            self._rules.hold(members)
            self._device.change(gone, peers)
        except OSError as error:
            self._on_refused(error)
            return
        self._known = wanted
        self._connections.sever(left | moved)

    def _is_known(self, member: Member) -> bool:
        before = self._known.get(member.wireguard)
        return before is not None and before.key == member.key

    def drain(self, seconds: float) -> None:
        """The program has ended: wait until the others' machines have what it sent, for so many seconds at most."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with self._lock:
                left = self._connections.untold(MESH)
            if not left:
                return
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Talk to nobody any more."""
        with self._lock:
            self._directory = Directory()
            self._apply()
            self._device.close()
            self._connections.close()

    def status(self) -> dict[str, Any]:
        """Members, bytes and refusals, as `Proxy.status` has them: of a member that was met, one tunnel."""
        with self._lock:
            carried = self._device.carried()
            members = [_status(each, carried.get(each.wireguard, _NONE)) for each in self._directory.members]
            refused = {"incoming": self._rules.incoming()}
        met = sum(each["tunnels"] for each in members)
        return {"members": members, "tunnels": met, "opening": 0, "limit": MAX_MEMBERS, "refusals": refused}


def _other(before: Member | None, now: Member) -> bool:
    """Whether the device has to be told of it. A peer that has moved by itself is where its packets come from."""
    return before is None or (before.address, before.endpoint) != (now.address, now.endpoint)


def _status(member: Member, carried: Carried) -> dict[str, Any]:
    return {
        "name": member.name,
        "address": str(member.address),
        "key": member.key,
        "endpoint": "{}:{}".format(*member.endpoint),
        "tunnels": int(carried.met),
        "opened": int(carried.met),
        "sent": carried.sent,
        "received": carried.received,
    }
