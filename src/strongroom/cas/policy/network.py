"""What a policy says of the network: its mesh, services for outsiders, and hosts that the program may reach."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from strongroom.attest.reference import MEASUREMENT
from strongroom.cas.policy.places import POLICY_NAME
from strongroom.cas.policy.rights import WORD
from strongroom.cas.policy.table import FINGERPRINT, Table

MAX_PORT = 65_535
TASKS = "chief, worker, ps or evaluator"
TASK = re.compile("chief|worker|ps|evaluator")
"""Kinds of tasks in TensorFlow's TF_CONFIG."""
CA = re.compile(rf"system|{FINGERPRINT.pattern}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# RFC 1123, section 2.1. A last label that is a number would be read as an address (WHATWG URL, "ends in a number").
DOMAIN = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$){_LABEL}")


@dataclass(frozen=True)
class Published:
    """A service of the program's that outsiders reach through the mesh."""

    name: str
    port: int


@dataclass(frozen=True)
class Pinned:
    """What a peer is held to.

    Attributes:
        measurements: the only ones of its policy whose enclaves are peers; empty for all that its policy accepts.
        ports: the only ones here that it may connect to; empty for all.
    """

    policy: str
    measurements: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mesh:
    """Whom the program talks to: replicas of its own policy, and others where both policies name each other.

    Attributes:
        peers: policies.
        pinned: what some of them, or its own, are held to.
        publish: services for outsiders.
        tasks: of each replica, the kind of task that it has, for TensorFlow; all are workers if empty.
    """

    peers: tuple[str, ...] = ()
    publish: tuple[Published, ...] = ()
    pinned: tuple[Pinned, ...] = ()
    tasks: tuple[str, ...] = ()

    def pin(self, policy: str) -> Pinned:
        """What enclaves of that policy are held to."""
        return next((each for each in self.pinned if each.policy == policy), Pinned(policy))


@dataclass(frozen=True)
class EgressRule:
    """A host that the program may reach over TLS.

    Attributes:
        host: a domain in lower case, or an address.
        ca: ``system``, or the digest of the one root that may vouch for it.
    """

    host: str
    port: int
    ca: str


def wanted(mesh: Mesh | None, egress: tuple[EgressRule, ...]) -> tuple[str, ...]:
    """What of the network an enclave must see to, by the policy's keys."""
    kinds = (("mesh", mesh), ("mesh.publish", mesh and mesh.publish), ("egress", egress))
    return tuple(name for name, value in kinds if value)


def read_mesh(table: Table) -> Mesh:
    """The table `[mesh]`."""
    peers = table.words("peers", POLICY_NAME, "the name of a policy, namespace/name", default=())
    publish = tuple(_published(each) for each in table.tables("publish"))
    names: set[str] = set()
    ports: set[int] = set()
    for place, each in enumerate(publish):
        if each.name and each.name in names:
            table.refuse(f"mesh.publish.name: {each.name!r} appears twice", "publish", place, "name")
        if each.port in ports:
            table.refuse(f"mesh.publish.port: {each.port} appears twice", "publish", place, "port")
        names.add(each.name)
        ports.add(each.port)
    pinned = tuple(_pinned(each) for each in table.tables("pinned"))
    held: set[str] = set()
    for place, pin in enumerate(pinned):
        if pin.policy and pin.policy in held:
            table.refuse(f"mesh.pinned.policy: {pin.policy!r} appears twice", "pinned", place, "policy")
        held.add(pin.policy)
    tasks = table.strings("tasks", default=())
    if wrong := next((each for each in tasks if not TASK.fullmatch(each)), None):
        table.refuse(f"mesh.tasks: got {wrong[:80]!r}, wanted {TASKS}", "tasks")
    table.finish()
    return Mesh(peers, publish, pinned, tasks)


def _pinned(table: Table) -> Pinned:
    policy = table.match("policy", POLICY_NAME, "the name of a policy, namespace/name")
    measurements = table.words("measurements", MEASUREMENT, "64, 96 or 128 lower-case hexadecimal digits", default=())
    ports = table.take("ports", [])
    if not isinstance(ports, list) or not all(type(port) is int and 1 <= port <= MAX_PORT for port in ports):
        table.refuse(f"mesh.pinned.ports: wanted an array of ports, 1 to {MAX_PORT}", "ports")
        ports = []
    if len(set(ports)) != len(ports):
        table.refuse("mesh.pinned.ports: a port appears twice", "ports")
    if not measurements and not ports:
        key = next((each for each in ("measurements", "ports") if each in table.value), "policy")
        table.refuse("mesh.pinned: holds it to nothing, wanted measurements or ports", key)
    table.finish()
    return Pinned(policy, measurements, tuple(ports))


def _published(table: Table) -> Published:
    published = Published(table.match("name", WORD, "a word"), table.between("port", 1, MAX_PORT))
    table.finish()
    return published


def read_egress(table: Table) -> EgressRule:
    """A table of `[[egress]]`."""
    host = table.text("host")
    if "host" in table.value and not _is_host(host):
        table.refuse(
            f"egress.host: got {host[:80]!r}, wanted a domain in lower case or an address",
            "host",
            hint="each host has its own table: a wildcard would reach what nobody named" if "*" in host else None,
        )
    rule = EgressRule(
        host, table.between("port", 1, MAX_PORT), table.match("ca", CA, "system, or a root's digest, sha256:<64 hex>")
    )
    table.finish()
    return rule


def _is_host(host: str) -> bool:
    if DOMAIN.fullmatch(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        return False  # a zone is one machine's, and a mapped address another's
    return str(address) == host


def check_egress(top: Table, rules: tuple[EgressRule, ...]) -> None:
    """Refuse a host and port that two rules name: of two authorities, which counted?"""
    seen: set[tuple[str, int]] = set()
    for place, rule in enumerate(rules):
        if rule.host and (rule.host, rule.port) in seen:
            top.refuse(f"egress.host: {rule.host!r} appears twice with port {rule.port}", "egress", place, "host")
        seen.add((rule.host, rule.port))
