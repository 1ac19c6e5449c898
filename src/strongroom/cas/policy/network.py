"""What a policy says of the network: its mesh, services for outsiders, and hosts that the program may reach."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
from dataclasses import dataclass

from strongroom.attest.reference import MEASUREMENT
from strongroom.cas.policy.places import POLICY_NAME
from strongroom.cas.policy.rights import WORD
from strongroom.cas.policy.table import FINGERPRINT, Table

MAX_PORT = 65_535
TASKS = "chief, worker, ps or evaluator"
TASK = re.compile("chief|worker|ps|evaluator")
"""Kinds of tasks in TensorFlow's TF_CONFIG."""
PEM = re.compile(
    r"-----BEGIN CERTIFICATE-----\r?\n(?:[A-Za-z0-9+/=]{1,76}\r?\n){1,200}-----END CERTIFICATE-----(?:\r?\n)?"
)
CA = re.compile(rf"system|{FINGERPRINT.pattern}|{PEM.pattern}")
MAX_EGRESS = 256
"""Hosts outside: each is looked after by itself."""
MAX_PUBLISHED = 64
ENDS = ("enclave", "program")
"""Who makes TLS to a host outside, the first if nobody is named."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# RFC 1123, section 2.1. A last label that is a number would be read as an address (WHATWG URL, "ends in a number").
DOMAIN = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$){_LABEL}")


_MAX_CA = 1 << 14
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
# Those of members, and those that hosts get inside (docs/spec/mesh.md).
_INSIDE = (ipaddress.IPv4Network("10.0.0.0/8"), ipaddress.IPv4Network("198.18.0.0/15"))


TRANSPORTS = ("tls", "wireguard")
"""What carries a mesh, the first if nothing is named."""


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
        transport: what carries it.
    """

    peers: tuple[str, ...] = ()
    publish: tuple[Published, ...] = ()
    pinned: tuple[Pinned, ...] = ()
    tasks: tuple[str, ...] = ()
    transport: str = TRANSPORTS[0]

    @property
    def wired(self) -> bool:
        """Whether a device carries it, and no proxy."""
        return self.transport == "wireguard"

    def pin(self, policy: str) -> Pinned:
        """What enclaves of that policy are held to."""
        return next((each for each in self.pinned if each.policy == policy), Pinned(policy))


@dataclass(frozen=True)
class EgressRule:
    """A host that the program may reach over TLS.

    Attributes:
        host: a domain in lower case, or an address.
        ca: ``system``, or the one root that may vouch for it: the SHA-256 of its certificate, or that in PEM.
        tls: who makes TLS, and judges the host by `ca`: the ``enclave``, or the ``program`` itself.
    """

    host: str
    port: int
    ca: str
    tls: str = ENDS[0]

    @property
    def root(self) -> str:
        """The digest of the one root; ``system`` for any of them."""
        if not PEM.fullmatch(self.ca):
            return self.ca
        return f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.ca.strip())).hexdigest()}"


def wanted(mesh: Mesh | None, egress: tuple[EgressRule, ...]) -> tuple[str, ...]:
    """What of the network an enclave must see to, by the policy's keys."""
    kinds = (
        ("mesh", mesh),
        ("mesh.publish", mesh and mesh.publish),
        ("mesh.transport", mesh and mesh.wired),
        ("egress", egress),
    )
    return tuple(name for name, value in kinds if value)


def read_mesh(table: Table) -> Mesh:
    """The table `[mesh]`."""
    peers = table.words("peers", POLICY_NAME, "the name of a policy, namespace/name", default=())
    publish = tuple(_published(each) for each in table.tables("publish"))
    if len(publish) > MAX_PUBLISHED:
        table.refuse(f"mesh.publish: got {len(publish)} services, the limit is {MAX_PUBLISHED}", "publish")
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
    transport = table.choice("transport", TRANSPORTS, TRANSPORTS[0])
    table.finish()
    return Mesh(peers, publish, pinned, tasks, transport)


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
    elif own := _own(host):
        table.refuse(f"egress.host: got {host[:80]!r}, {own}", "host")
    rule = EgressRule(host, table.between("port", 1, MAX_PORT), _ca(table), table.choice("tls", ENDS, ENDS[0]))
    table.finish()
    return rule


def _ca(table: Table) -> str:
    ca = table.text("ca", limit=_MAX_CA)
    wanted = "system, or a root's digest, sha256:<64 hex>, or its certificate in PEM"
    if "ca" in table.value and not CA.fullmatch(ca):
        table.refuse(f"egress.ca: got {ca[:80]!r}, wanted {wanted}", "ca")
    elif PEM.fullmatch(ca):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ssl.PEM_cert_to_DER_cert(ca.strip()))
        except (ValueError, ssl.SSLError):
            table.refuse("egress.ca: holds no certificate that can be read", "ca")
    return ca


def _own(host: str) -> str | None:
    """What is wrong with a host whose name or address means something else within an enclave."""
    if host == "mesh" or host.endswith(".mesh"):
        return "and names in .mesh are those of enclaves: wanted mesh.peers"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        return "wanted the address of one machine"
    if any(address in network for network in _INSIDE):
        return "an address that enclaves use among themselves: wanted a name"
    return None


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
    if len(rules) > MAX_EGRESS:
        top.refuse(f"egress: got {len(rules)} tables, the limit is {MAX_EGRESS}", "egress")
    seen: set[tuple[str, int]] = set()
    for place, rule in enumerate(rules):
        if rule.host and (rule.host, rule.port) in seen:
            top.refuse(f"egress.host: {rule.host!r} appears twice with port {rule.port}", "egress", place, "host")
        seen.add((rule.host, rule.port))
