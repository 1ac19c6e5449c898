"""What a CAS tells an enclave of the world outside the mesh: hosts that it may reach, services that it has there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_PORT = 65_535


@dataclass(frozen=True)
class Reached:
    """A host that the program may reach: as the policy's `[[egress]]` says it."""

    host: str
    port: int
    ca: str
    tls: str


@dataclass(frozen=True)
class Served:
    """A service of the program's, at that port of its own: as the policy's `mesh.publish` says it."""

    name: str
    port: int


def reached(wire: Iterable[Mapping[str, Any]]) -> tuple[Reached, ...]:
    """Raises ValueError, KeyError, TypeError."""
    found = tuple(Reached(str(each["host"]), _port(each), str(each["ca"]), str(each["tls"])) for each in wire)
    if any(each.tls not in ("enclave", "program") for each in found):
        raise ValueError
    return found


def served(wire: Iterable[Mapping[str, Any]]) -> tuple[Served, ...]:
    """Raises ValueError, KeyError, TypeError."""
    return tuple(Served(str(each["name"]), _port(each)) for each in wire)


def _port(wire: Mapping[str, Any]) -> int:
    port = wire["port"]
    if type(port) is not int or not 0 < port <= _MAX_PORT:
        raise ValueError
    return port
