"""What `strongroom run` says of the world outside an enclave: hosts that its program reaches, services that it has."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from strongroom.cas.policy.network import ENDS, EgressRule, Published
from strongroom.cas.policy.version import Policy
from strongroom.cli.run.vaults import pairs
from strongroom.errors import UsageError

_MAX_PEM: Final = 1 << 14
_WANTED: Final = "wanted HOST:PORT, and after it ,ca=FILE or ,tls=program where they are needed"


def egress_rules(words: Sequence[str]) -> tuple[EgressRule, ...]:
    """The rules of a development policy for `--egress HOST:PORT[,ca=FILE][,tls=program]`. Raises UsageError."""
    return tuple(_rule(word) for word in words)


def _rule(word: str) -> EgressRule:
    place, *more = word.split(",")
    host, _, port = place.rpartition(":")
    said = dict(each.partition("=")[::2] for each in more)
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    unknown = set(said) - {"ca", "tls"} or len(said) < len(more)
    if not host or not 0 < number < 1 << 16 or unknown or said.get("tls", ENDS[0]) not in ENDS:
        raise UsageError(f"--egress: got {word[:80]!r}, {_WANTED}", hint="--egress files.example.com:443")
    host = host.removeprefix("[").removesuffix("]") if ":" in host else host.lower()
    return EgressRule(host, number, _root(said["ca"]) if "ca" in said else "system", said.get("tls", ENDS[0]))


def _root(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            text = file.read(_MAX_PEM + 1).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"--egress: {name}: {(error.strerror or str(error)).lower()}") from None
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if len(text) > _MAX_PEM or text.count(begin) != 1 or end not in text:
        raise UsageError(f"--egress: {name}: wanted one root's certificate in PEM", hint="a file with that root alone")
    found = text[text.index(begin) : text.index(end) + len(end)] + "\n"
    return found.replace("\r\n", "\n")


def published(words: Sequence[str]) -> tuple[Published, ...]:
    """The services of a development policy for `--publish NAME=[ADDRESS:]PORT`. Raises UsageError."""
    found = tuple(Published(name, _place(place, name, "")[1]) for name, place in pairs(words, "--publish"))
    if any(not each.port for each in found):
        raise UsageError("--publish: 0 is no port of a program", hint="with --policy it takes any that is free here")
    return found


def listeners_of(words: Sequence[str], policy: Policy, address: str, number: int) -> dict[str, socket.socket]:
    """A socket for each service that a policy has for outsiders, by its name.

    Args:
        words: of `--publish NAME=[ADDRESS:]PORT`.
        address: where a service is reached whose address nobody says: as peers reach this machine.
        number: which of the replicas that start here it is, from 0 on; each has the next port.

    Raises:
        UsageError: a word makes no sense, or a port is taken.
    """
    said = dict(pairs(words, "--publish"))
    services = {each.name: each.port for each in policy.mesh.publish} if policy.mesh else {}
    if stray := sorted(set(said) - set(services)):
        raise UsageError(
            f"--publish: policy {policy.name} publishes no {stray[0]}",
            hint=f"it has {', '.join(sorted(services))}" if services else "publish in its table [mesh]",
        )
    found: dict[str, socket.socket] = {}
    try:
        for name, port in services.items():
            host, wanted = _place(said.get(name, str(port)), name, address)
            found[name] = _listen(host, wanted + number if wanted else 0, name)
    except BaseException:
        for each in found.values():
            each.close()
        raise
    return found


def _place(word: str, name: str, address: str) -> tuple[str, int]:
    host, _, port = word.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 1 << 16):
        raise UsageError(f"--publish: {name}: got {word[:80]!r}, wanted PORT or ADDRESS:PORT")
    return host.removeprefix("[").removesuffix("]") or address, int(port)


def _listen(host: str, port: int, name: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(
            f"--publish: {name} at {host}:{port}: {why}",
            hint=f"--publish {name}=[ADDRESS:]PORT says where; PORT 0 takes any that is free",
        ) from None


def by_host(rules: Sequence[EgressRule]) -> frozenset[str]:
    """The hosts that they name."""
    return frozenset(rule.host for rule in rules)
