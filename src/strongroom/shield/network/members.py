"""Who is in the mesh, as the CAS tells it: names, addresses, keys, and where their proxies are reached."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from strongroom.errors import FormatError

Endpoint = tuple[str, int]
MAX_MEMBERS = 20_000


@dataclass(frozen=True)
class Member:
    """An enclave that lives.

    Attributes:
        policy: under which it was appraised.
        number: which one of that policy's it is.
        address: in the mesh.
        key: the fingerprint of its TLS key.
        endpoint: where its proxy listens.
        ports: the only ones here that it may connect to; empty for all.
        wireguard: the key of its device, where members are reached so; else empty.
    """

    policy: str
    number: int
    address: IPv4Address
    key: str
    endpoint: Endpoint
    ports: frozenset[int] = frozenset()
    wireguard: bytes = b""

    @property
    def name(self) -> str:
        return member_name(self.policy, self.number)

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Member:
        """Raises FormatError."""
        try:
            policy, number, key = value["policy"], value["number"], value["key"]
            if not (isinstance(policy, str) and type(number) is int and isinstance(key, str)):
                raise ValueError
            endpoint, ports = parse_endpoint(value["endpoint"]), frozenset(map(int, value.get("ports", ())))
            wireguard = base64.b64decode(value.get("wireguard", ""), validate=True)
            return cls(policy, number, IPv4Address(value["address"]), key, endpoint, ports, wireguard)
        except (KeyError, TypeError, ValueError):
            raise FormatError("mesh: the CAS told a member of another form") from None


@dataclass(frozen=True)
class Place:
    """Addresses that a policy's replicas have, before they live."""

    policy: str
    first: IPv4Address
    count: int


def member_name(policy: str, number: int) -> str:
    """What resolves to a member's address: ``replica-0.NAME.NAMESPACE.mesh``."""
    return f"replica-{number}.{policy_host(policy)}"


def policy_host(policy: str) -> str:
    """What resolves to the first of a policy's addresses: ``NAME.NAMESPACE.mesh``."""
    namespace, _, name = policy.partition("/")
    return f"{name}.{namespace}.mesh"


def parse_endpoint(text: object) -> Endpoint:
    """``ADDRESS:PORT`` or ``[ADDRESS]:PORT``, with numbers alone. Raises ValueError."""
    if not isinstance(text, str) or len(text) > 80:
        raise ValueError
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise ValueError
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    return str(IPv4Address(host)), int(port)


class Directory:
    """The members that this enclave may talk to, and the names of those that may come."""

    def __init__(self, members: Iterable[Member] = (), places: Iterable[Place] = ()) -> None:
        self.members = tuple(members)
        self.places = tuple(places)
        self.by_address = {member.address: member for member in self.members}
        self.by_key = {member.key: member for member in self.members}

    def hosts(self, own: Member, extra: Sequence[tuple[str, IPv4Address]] = ()) -> str:
        """Lines for the file of host names: of the members, and of places of which nobody lives yet.

        Policies' names have dots, so two can make one host name: it is the own policy's, or else nobody's.
        """
        found: dict[str, dict[str, IPv4Address]] = {}  # by name, of each policy
        for place in self.places:
            found.setdefault(policy_host(place.policy), {})[place.policy] = place.first
            for number in range(place.count):
                found.setdefault(member_name(place.policy, number), {})[place.policy] = place.first + number
        for member in (*self.members, own):
            found.setdefault(member.name, {})[member.policy] = member.address
        names = {
            name: of.get(own.policy, next(iter(of.values())))
            for name, of in found.items()
            if len(of) == 1 or own.policy in of
        }
        lines = [f"127.0.0.1 localhost\n::1 localhost\n{own.address} {own.name} replica-{own.number}\n"]
        for name, address in sorted(names.items()):
            if name != own.name:
                label, _, rest = name.partition(".")
                short = f" {label}" if rest == policy_host(own.policy) else ""
                lines.append(f"{address} {name}{short}\n")
        lines += [f"{address} {name}\n" for name, address in extra]
        return "".join(lines)
