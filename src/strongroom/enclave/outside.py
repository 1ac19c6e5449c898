"""What of an enclave's network leads past the mesh: hosts outside, and services for outsiders (docs/spec/mesh.md).

1. Without a mesh the enclave gets a network of its own all the same, in which everything else is refused and counted.
2. Each host has an address inside, which its name leads to, and at its port a door of boot's (`egress`). Names are
   looked up, and sockets made, by the host that launched the enclave.
3. Roots come from the policy, or from the measured environment's certifi: never from the host.
4. Each service has a listener outside, which the host hands in (`published`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server, socket
from types import TracebackType
from typing import Any, Final, Self

from strongroom.cas.client.outside import Reached, Served
from strongroom.cas.threads import Repeating
from strongroom.channel.connections import have_descriptors
from strongroom.enclave.boot import Booted
from strongroom.enclave.control import Control
from strongroom.enclave.drop import bind
from strongroom.enclave.fixed_paths import ROOTS_FILE
from strongroom.enclave.image_paths import inside
from strongroom.enclave.meshed import DRAIN_SECONDS, TELL_SECONDS, Meshed, show_hosts, write_hosts
from strongroom.errors import EnclaveError
from strongroom.shield.network.egress import LIMIT, Egress, Wire, egress_context
from strongroom.shield.network.loop import Loop
from strongroom.shield.network.namespace import OUTSIDE, enter_namespace, unreachable
from strongroom.shield.network.netlink import add_address
from strongroom.shield.network.published import OUTSIDERS, Published, Service
from strongroom.shield.network.rules import Rules
from strongroom.shield.network.way import Host
from strongroom.shield.network.within import Within

_FIRST: Final = OUTSIDERS + 1
"""The address of the first host; the one before is an enclave's own, if it has no mesh."""
_ROOTS: Final = Path("/run/strongroom/roots.pem")
_STORES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Where OpenSSL and what uses it, requests, and curl look for roots."""
_LOOPS = 2

_DESCRIPTORS: Final = 4  # of a connection whose TLS ends here on both sides
_OTHERS: Final = 256

Place = IPv4Address | IPv6Address


class Outside:
    """Raised around a program after its mesh, as a context manager; where its policy wants nothing, it does nothing.

    Attributes:
        variables: where the program finds the roots for TLS that it makes.
    """

    def __init__(self, booted: Booted, mesh: Meshed) -> None:
        self._booted, self._mesh = booted, mesh
        self._hosts, self._services = booted.provisions.egress, booted.provisions.publish
        self._rules: Rules | None = None
        self._loops: list[Loop] = []
        self._egress: Egress | None = None
        self._published: Published | None = None
        self._telling: Repeating | None = None
        self._told: dict[str, Any] = {}
        self.variables: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        """Raises EnclaveError if a root is not to be had, or the host has given no listener."""
        if not self._hosts and not self._services:
            return self
        have_descriptors(_DESCRIPTORS * LIMIT * (len(self._hosts) + len(self._services)) + _OTHERS)
        booted = self._booted
        found = places(self._hosts)
        names = [(name, place) for name, place in found.items() if isinstance(place, IPv4Address) and place in OUTSIDE]
        rules = self._mesh.rules
        if rules is None:
            enter_namespace(OUTSIDERS, "enclave")
            rules = self._rules = Rules(OUTSIDERS, 0)
            show_hosts(booted)
            lines = ["127.0.0.1 localhost enclave", "::1 localhost", *(f"{place} {name}" for name, place in names)]
            write_hosts("\n".join(lines) + "\n")
        wires = {name: _Wire(booted.control.outside(name)) for name in found}
        self._loops = [Loop(f"outside-{number}") for number in range(min(_LOOPS, os.cpu_count() or 1))]
        doors = [_door(each, found[each.host], rules, wires[each.host]) for each in self._hosts]
        within = Within()
        self._egress = Egress(doors, self._loops, within)
        if doors:
            self.variables = _show_roots(booted, self._hosts, within)
        services = [_service(booted, each) for each in self._services]
        if services:
            assert self._mesh.own is not None and self._mesh.credentials is not None  # noqa: S101  # a table of [mesh]
            self._published = Published(self._mesh.own, services, self._mesh.credentials, self._loops)
        self._egress.start()
        if self._published is not None:
            self._published.start()
        for loop in self._loops:
            loop.start()
        self._mesh.add(names, self.status)
        if self._rules is not None:
            self._telling = Repeating("network status", self._tell, first=TELL_SECONDS, retry=TELL_SECONDS)
            self._telling.start()
        hosts = [host for host in booted.provisions.certificate.hosts if host.endswith(".mesh")]
        for service in services:
            told = {"name": service.name, "port": service.port, "endpoint": service.endpoint}
            booted.control.event("published", **told, host=hosts[0] if hosts else "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raised = [each for each in (self._egress, self._published) if each is not None]
        if not raised:
            return
        if error is None:
            for each in raised:
                each.drain(DRAIN_SECONDS)
        if self._telling is not None:
            self._telling.close()
        for loop in self._loops:
            loop.close()
        for each in raised:
            each.close()
        self._booted.control.event("outside-ended", **self.status())
        if self._rules is not None:
            self._booted.control.event("mesh-ended", **self._alone())
            self._rules.close()

    def status(self) -> dict[str, Any]:
        """Of each host and each service: connections, bytes and refusals."""
        return {
            "egress": self._egress.status() if self._egress else [],
            "published": self._published.status() if self._published else [],
        }

    def _alone(self) -> dict[str, Any]:
        """As `Meshed.status` has it, of an enclave without a mesh."""
        assert self._rules is not None  # noqa: S101
        refused = self._rules.refused()
        refusals = {"tcp": refused.tcp, "other": refused.other, "unreachable": unreachable()}
        own = {"name": self._booted.config.policy, "address": str(OUTSIDERS)}
        return own | {"members": [], "tunnels": 0, "opening": 0, "limit": 0, "refusals": refusals} | self.status()

    def _tell(self) -> float:
        status = self._alone()
        if status != self._told:
            self._told = status
            self._booted.control.event("mesh-status", **status)
        return TELL_SECONDS


@dataclass(frozen=True)
class _Wire:
    """What the host does for connections to one that is named."""

    control: Control

    def resolve(self) -> Sequence[str]:
        return self.control.resolve()

    def socket(self, family: int) -> socket:
        return self.control.ask_socket("socket", family=int(family))


def places(hosts: Sequence[Reached]) -> dict[str, Place]:
    """The address inside of each host: its own if it is one, or the next of those that are nobody's."""
    found: dict[str, Place] = {}
    following = _FIRST
    for name in sorted({each.host for each in hosts}):
        if name == "localhost":
            found[name] = IPv4Address("127.0.0.1")
            continue
        try:
            found[name] = ipaddress.ip_address(name)
        except ValueError:
            found[name] = following
            following += 1
    return found


def _door(rule: Reached, place: Place, rules: Rules, wire: Wire) -> tuple[Host, socket, Wire]:
    """What leads to one host. Raises EnclaveError."""
    host = Host(rule.host, rule.port, _context(rule) if rule.tls == "enclave" else None)
    try:
        if place not in OUTSIDE and not place.is_loopback:
            add_address(place)
        if isinstance(place, IPv4Address):
            rules.open(place, rule.port)
        family = AF_INET if isinstance(place, IPv4Address) else AF_INET6
        return host, create_server((str(place), rule.port), family=family, backlog=1024), wire
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise EnclaveError(f"egress: {rule.host}:{rule.port}: {why}") from None


def _context(rule: Reached) -> ssl.SSLContext:
    try:
        return egress_context(roots(rule.ca, rule.host))
    except ssl.SSLError as error:
        raise EnclaveError(f"egress.ca: {rule.host}: {error.reason or error}") from None


def roots(ca: str, host: str) -> list[bytes]:
    """The roots that a policy names for a host, in DER.

    Raises:
        EnclaveError: the environment has no roots, or not that one.
    """
    if ca.startswith("-----"):
        return [ssl.PEM_cert_to_DER_cert(ca.strip())]
    kept = _kept_roots()
    if not kept:
        raise EnclaveError(
            f"egress.ca: {host}: the measured environment has no roots",
            hint="pip install certifi, or write the root's certificate into the policy",
        )
    if ca == "system":
        return list(kept.values())
    if ca not in kept:
        raise EnclaveError(
            f"egress.ca: {host}: {ca[:23]}... is none of the {len(kept)} roots of the measured environment's certifi",
            hint="write the root's certificate into the policy, in PEM",
        )
    return [kept[ca]]


@cache
def _kept_roots() -> Mapping[str, bytes]:
    """Those of certifi by their certificates' digests: they were measured with everything else that is installed."""
    package = find_spec("certifi")
    if package is None or package.origin is None:
        return {}
    # Not by its functions, which some systems have changed to give what lies in /etc.
    path = Path(package.origin).with_name("cacert.pem")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    end = "-----END CERTIFICATE-----"
    found = {}
    for piece in text.split(end)[:-1]:
        der = ssl.PEM_cert_to_DER_cert(piece[piece.index("-----BEGIN") :] + end)
        found[f"sha256:{hashlib.sha256(der).hexdigest()}"] = der
    return found


def _show_roots(booted: Booted, hosts: Sequence[Reached], within: Within) -> dict[str, str]:
    """Have the program find exactly the roots for these hosts, where systems keep theirs; the variables that say so."""
    own = [each for each in hosts if each.tls == "program"]
    found = dict.fromkeys([within.root, *(root for each in own for root in roots(each.ca, each.host))])
    _ROOTS.write_text("".join(ssl.DER_cert_to_PEM_cert(each) for each in found))
    _ROOTS.chmod(0o644)
    shown = inside(booted.config, ROOTS_FILE)
    if not shown.exists():
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.touch()
    bind(str(_ROOTS), str(shown))
    return dict.fromkeys(_STORES, ROOTS_FILE)


def _service(booted: Booted, wanted: Served) -> Service:
    try:
        listener = booted.control.ask_socket("published", name=wanted.name)
        return Service.at(listener, wanted.name, wanted.port)
    except (EnclaveError, OSError):
        raise EnclaveError(
            f"mesh.publish: {wanted.name}: the host has given no listener for it",
            hint="launch it with `strongroom run`",
        ) from None
