"""What `strongroom run` says of the world outside an enclave: hosts that its program reaches, services that it has."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from strongroom.cas.policy.network import ENDS, EgressRule, Published
from strongroom.cas.policy.version import Policy
from strongroom.cli.run.replicas import refused
from strongroom.cli.run.vaults import pairs
from strongroom.crypto import names_its_own_issuer
from strongroom.enclave.enforce import LEAST_PORT, LISTENS_FROM
from strongroom.errors import FormatError, UsageError

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
    ends = said.get("tls", ENDS[0])
    return EgressRule(host, number, _root(said["ca"], ends) if "ca" in said else "system", ends)


def _root(name: str, ends: str) -> str:
    try:
        with Path(name).open("rb") as file:
            text = file.read(_MAX_PEM + 1).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"--egress: {name}: {(error.strerror or str(error)).lower()}") from None
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if len(text) > _MAX_PEM or text.count(begin) != 1 or end not in text:
        raise UsageError(f"--egress: {name}: wanted one root's certificate in PEM", hint="a file with that root alone")
    found = (text[text.index(begin) : text.index(end) + len(end)] + "\n").replace("\r\n", "\n")
    if ends == ENDS[0] and not is_root(found):  # programs may make do with less
        raise UsageError(
            f"--egress: {name}: is no root: its issuer is another certificate, and nothing would be convincing by it",
            hint="the root's certificate, which vouches for the server's",
        )
    return found


def is_root(pem: str) -> bool:
    """Whether a certificate names itself as its issuer; one that cannot be read is for others to refuse."""
    try:
        return names_its_own_issuer(ssl.PEM_cert_to_DER_cert(pem.strip()))
    except (ValueError, FormatError):
        return True


def published(words: Sequence[str]) -> tuple[Published, ...]:
    """The services of a development policy for `--publish NAME=[ADDRESS:]PORT`. Raises UsageError."""
    found = tuple(Published(name, _place(place, name, "")[1]) for name, place in _services(words))
    if any(not each.port for each in found):
        raise UsageError("--publish: 0 is no port of a program", hint="with --policy it takes any that is free here")
    for each in found:
        if each.port < LEAST_PORT:
            raise UsageError(
                f"--publish: {each.name}: got {each.port}: {LISTENS_FROM}",
                hint=f"--publish {each.name}=8000; with a policy of your own, outsiders may have another port",
            )
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
    said = dict(_services(words))
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


def _services(words: Sequence[str]) -> list[tuple[str, str]]:
    return pairs(words, "--publish", "NAME=[ADDRESS:]PORT", hint="--publish api=8000")


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
        why = refused(error) if isinstance(error, OSError) else str(error).lower()
        raise UsageError(
            f"--publish: {name} at {host}:{port}: {why}",
            hint=f"--publish {name}=[ADDRESS:]PORT says where; PORT 0 takes any that is free",
        ) from None


def by_host(rules: Sequence[EgressRule]) -> frozenset[str]:
    """The hosts that they name."""
    return frozenset(rule.host for rule in rules)
