"""The mesh: which enclaves may talk to each other, and where each of them is (docs/spec/mesh.md).

Rules:

- Only enclaves whose policies have a table `[mesh]` are in it. Enclaves of one policy are peers. Those of two are where
  each policy names the other in `mesh.peers`, and one transport carries both: neither owner decides that alone.
- A policy may hold a peer, or its own replicas, to measurements: who has another is not told of, nor told. It may hold
  them to ports, too, which is up to the proxy that they connect to.
- A policy has a block of addresses, numbered in the order in which they are first wanted, and keeps it; but where none
  is left, a policy of which no enclave lives loses its own. A replica's place in it is its number; an enclave that is
  no numbered one has the first free place.
- A member is told of as long as its lease lives. It joins by naming where its proxy listens, which nobody vouches for:
  who is there is proved by TLS.
- What a caller has seen has a name, by which it waits for something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from strongroom.cas.enclaves.leases import Lease, Leases
from strongroom.cas.policy.network import Pinned
from strongroom.cas.policy.places import MAX_INSTANCES
from strongroom.cas.policy.version import Policy
from strongroom.cas.state.ledger import Change
from strongroom.cas.state.store import Store
from strongroom.crypto import digest
from strongroom.errors import (
    FormatError,
    InstanceLimitError,
    TooManyRequestsError,
    UnauthorizedError,
    UnknownPolicyError,
)

NETWORK: Final = IPv4Network("10.0.0.0/8")
BLOCK: Final = 1 << 14
"""Addresses of a policy, of which the first is nobody's: more than it may have instances."""
BLOCKS: Final = NETWORK.num_addresses // BLOCK
MOVE_SECONDS: Final = 10
"""From one endpoint that an enclave names to the next."""
MAX_TOLD: Final = 10_000
"""Members that are told of, of all policies together."""

assert BLOCK > MAX_INSTANCES  # noqa: S101


@dataclass(frozen=True)
class Place:
    """Where an enclave is: its number among those of its policy, its address in the mesh, and its proxy's outside."""

    number: int
    address: IPv4Address
    endpoint: str


class Mesh:
    """The mesh of one CAS, in its store. Its methods are called on the event loop's thread."""

    def __init__(self, store: Store, leases: Leases) -> None:
        self._store, self._leases = store, leases
        self._moved: dict[str, int] = {}  # when keys have named another endpoint, lately

    def join(self, policy: Policy, lease: Lease, endpoint: str, *, now: int, wireguard: str = "") -> Place:
        """Have an enclave told of from now on.

        Args:
            wireguard: the key of its device, if its policy's mesh is carried so.

        Raises:
            UnauthorizedError: its policy has no mesh.
            InstanceLimitError: there is no address for it.
            TooManyRequestsError: it has named another endpoint a moment ago.
            UnauthorizedError: the key is another member's.
            FormatError: it has a key, and its policy's mesh is carried otherwise, or the other way round.
        """
        if policy.mesh is None:
            raise UnauthorizedError(
                f"policy {policy.name}: has no table [mesh]", hint="a policy whose enclaves talk to each other has one"
            )
        if policy.mesh.wired != bool(wireguard):
            wanted = "the key of a device" if policy.mesh.wired else "none"
            raise FormatError(
                f"wireguard: wanted {wanted}: policy {policy.name} says mesh.transport {policy.mesh.transport}"
            )
        with self._store.transaction():
            block = self._block(policy.name)
            made = block is None
            taken_back: list[Change] = []
            if block is None:
                block, taken_back = self._free_block(now)
            before = self._row(policy.name, lease.key)
            live = {each.key for each in self._leases.live(policy.name, now)}
            rows = dict(self._rows(policy.name))
            if before is not None:
                number = int(before["number"])
            elif lease.replica is not None:
                number = lease.replica
            else:
                taken = {int(row["number"]) for key, row in rows.items() if key in live}
                number = next(n for n in range(BLOCK) if n not in taken)
            if number >= BLOCK - 1:
                raise InstanceLimitError(f"mesh: policy {policy.name} has {BLOCK - 1} places, and none is free")
            place = Place(number, _first(block) + number, endpoint)
            if wireguard:
                self._check_own(wireguard, lease.key, now)
            row = {"number": number, "endpoint": endpoint} | ({"wireguard": wireguard} if wireguard else {})
            if row == before:
                return place
            if before is not None:
                self._move(lease.key, now)
            changes = taken_back
            changes += [("mesh", policy.name, f"key:{key}", None) for key in rows if key not in live]
            changes += [("mesh", policy.name, "block", str(block).encode())] if made else []
            changes.append(("mesh", policy.name, f"key:{lease.key}", json.dumps(row).encode()))
            detail = {"lease": lease.number, "number": number, "address": str(place.address), "endpoint": endpoint}
            self._store.change_rows(changes, event="joined", policy=policy.name, detail=detail, now=now)
        return place

    def _check_own(self, wireguard: str, key: str, now: int) -> None:
        """Raises UnauthorizedError if the device's key is another living member's, which would be cut off by it."""
        for policy in self._store.row_groups("mesh"):
            named = [other for other, row in self._rows(policy) if row.get("wireguard") == wireguard and other != key]
            if named and any(each.key in named for each in self._leases.live(policy, now)):
                raise UnauthorizedError("wireguard: the key is another member's")

    def _move(self, key: str, now: int) -> None:
        """Each is an entry of the log, and news for all peers."""
        self._moved = {each: at for each, at in self._moved.items() if 0 <= now - at < MOVE_SECONDS}
        if key in self._moved:
            error = TooManyRequestsError("mesh: this enclave has named another endpoint just now")
            error.seconds = MOVE_SECONDS
            raise error
        self._moved[key] = now

    def told(self, policy: Policy, key: str, *, now: int) -> dict[str, Any]:
        """What an enclave of a policy is told: members and places, without itself, and what that is called."""
        members: list[dict[str, object]] = []
        places: list[dict[str, object]] = []
        with self._store.reading():
            lease = self._leases.lease(policy.name, key)
            measurement = "" if lease is None else lease.measurement
            for each, pinned, pinning in self._peers(policy):
                if pinning.measurements and measurement not in pinning.measurements:
                    continue
                block = self._block(each.name)
                if block is None:
                    continue
                places.append({"policy": each.name, "first": str(_first(block)), "count": each.instances or 1})
                live = {one.key: one.measurement for one in self._leases.live(each.name, now)}
                for other, row in self._rows(each.name):
                    if other not in live or other == key or len(members) == MAX_TOLD:
                        continue
                    if ("wireguard" in row) != (policy.mesh is not None and policy.mesh.wired):
                        continue
                    if not pinned.measurements or live[other] in pinned.measurements:
                        members.append(
                            {
                                "policy": each.name,
                                "number": row["number"],
                                "address": str(_first(block) + int(row["number"])),
                                "key": other,
                                "endpoint": row["endpoint"],
                                "ports": list(pinned.ports),
                                **({"wireguard": row["wireguard"]} if "wireguard" in row else {}),
                            }
                        )
        told: dict[str, Any] = {"members": members, "places": places}
        return told | {"state": digest(json.dumps(told, sort_keys=True).encode()).hex()}

    def joined(self, policy: str, key: str) -> bool:
        return self._row(policy, key) is not None

    def _peers(self, policy: Policy) -> Iterator[tuple[Policy, Pinned, Pinned]]:
        """The policies of which it is told, its own first; what it holds each to, and what each holds it to."""
        if policy.mesh is None:
            return
        own = policy.mesh.pin(policy.name)
        yield policy, own, own
        for name in policy.mesh.peers:
            try:
                other = self._store.policy(name)
            except UnknownPolicyError:
                continue
            if name == policy.name or other.mesh is None or other.mesh.transport != policy.mesh.transport:
                continue
            if policy.name in other.mesh.peers:
                yield other, policy.mesh.pin(name), other.mesh.pin(policy.name)

    def _rows(self, policy: str) -> Sequence[tuple[str, dict[str, Any]]]:
        found = []
        for what in sorted(self._store.row_stamps("mesh", policy)):
            kind, _, key = what.partition(":")
            row = self._store.row("mesh", policy, what) if kind == "key" else None
            if row is not None:
                found.append((key, json.loads(row)))
        return found

    def _row(self, policy: str, key: str) -> dict[str, Any] | None:
        row = self._store.row("mesh", policy, f"key:{key}")
        return None if row is None else dict(json.loads(row))

    def _block(self, policy: str) -> int | None:
        row = self._store.row("mesh", policy, "block")
        return None if row is None else int(row)

    def _free_block(self, now: int) -> tuple[int, list[Change]]:
        """A block, and what is to be forgotten of the policy that had it."""
        taken = {policy: self._block(policy) for policy in self._store.row_groups("mesh")}
        blocks = set(taken.values())
        free = next((number for number in range(BLOCKS) if number not in blocks), None)
        if free is not None:
            return free, []
        for policy, block in taken.items():
            if block is not None and not any(True for _ in self._leases.live(policy, now)):
                return block, [("mesh", policy, what, None) for what in self._store.row_stamps("mesh", policy)]
        raise InstanceLimitError(
            f"mesh: living enclaves of {BLOCKS} policies have addresses, and there are no more",
            hint="run another CAS for further ones",
        )


def _first(block: int) -> IPv4Address:
    return NETWORK.network_address + block * BLOCK + 1
