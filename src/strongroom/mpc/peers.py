"""The file that tells each host of a computation where the others are; the same on all three.

::

    certificates = "certificates"     # beside this file; this host's party's directory, or the one it lies in

    [parties]
    P0 = "10.0.0.1:7000"
    P1 = "10.0.0.2:7000"              # the dealer connects to both and needs no address

    [listen]                          # only where a server's own address is another one there
    P0 = "0.0.0.0:7000"

    [settings]                        # only what is not as usual
    frac = 16

    [cas]                             # instead of `certificates`: a CAS gives them, each for an hour
    url = "https://cas.example:8443"
    root = "sha256:..."               # the fingerprint of its root key
    P0 = "hospital/p0"                # the parties' policies, by whose names they know each other
    P1 = "bank/p1"
    D = "dealer/d"

Only `[parties]` must be there. What is not known is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from strongroom.errors import FormatError, UsageError
from strongroom.mpc.documents import parse_toml, read_text
from strongroom.mpc.peer import NAMES
from strongroom.mpc.ring import Settings

Address = tuple[str, int]
_MOST = 1 << 16  # bytes of the file
_POLICY = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_SERVERS = NAMES[:2]
_TYPES = {"int": int, "bool": bool, "float": float}
_KINDS = {each.name: _TYPES[str(each.type)] for each in fields(Settings) if str(each.type) in _TYPES}


@dataclass(frozen=True)
class CasPeers:
    """Where the parties have their certificates from, and as whose.

    Attributes:
        policies: of the parties, by rank: ``namespace/name``.
    """

    url: str
    root: str
    policies: tuple[str, ...]

    @property
    def uris(self) -> tuple[str, ...]:
        """How certificates name the parties, by rank."""
        return tuple(f"spiffe://strongroom/{policy}" for policy in self.policies)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> CasPeers:
        """Raises FormatError."""
        _known("[cas]", table, ("url", "root", *NAMES))
        for name in ("url", "root", *NAMES):
            if not isinstance(table.get(name), str):
                raise FormatError(f"[cas]: {name} is missing, or no string")
        policies = tuple(str(table[name]) for name in NAMES)
        for name, policy in zip(NAMES, policies, strict=True):
            if not _POLICY.fullmatch(policy):
                raise FormatError(f"[cas]: {name}: got {policy[:80]!r}, wanted a policy's namespace/name")
        if len(set(policies)) != len(NAMES):
            raise FormatError("[cas]: two parties have one policy", hint="each party has its own, with its own key")
        if not _FINGERPRINT.fullmatch(str(table["root"])):
            raise FormatError("[cas]: root is no fingerprint, sha256:<64 hex>", hint="`strongroom cas status` tells it")
        return cls(str(table["url"]), str(table["root"]), policies)


@dataclass(frozen=True)
class Peers:
    """Where the parties are.

    Attributes:
        addresses: of the servers, by rank, as the others reach them.
        listen: of the servers, by rank, where each listens.
        certificates: the directory, if the file names one.
        settings: those that the file names.
        cas: where certificates come from, if not from a directory.
    """

    addresses: Mapping[int, Address]
    listen: Mapping[int, Address]
    certificates: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    cas: CasPeers | None = None

    @classmethod
    def load(cls, path: Path) -> Peers:
        """Raises FormatError if the file is none."""
        text = read_text(path, "peers", _MOST)
        try:
            return cls.parse(text, beside=path.parent)
        except FormatError as error:
            raise FormatError(f"peers: {path}: {error.message}", hint=error.hint) from None

    @classmethod
    def parse(cls, text: str, *, beside: Path) -> Peers:
        """Raises FormatError: it is no TOML, an address is missing, or it says something unknown."""
        document = parse_toml(text)
        _known("the file", document, ("certificates", "parties", "listen", "settings", "cas"))
        parties, listening = (_table(document, name) for name in ("parties", "listen"))
        _known("[parties]", parties, NAMES)
        _known("[listen]", listening, _SERVERS)
        for name in _SERVERS:
            if name not in parties:
                raise FormatError(f"[parties]: {name} is missing", hint=f'{name} = "HOST:PORT", as the others reach it')
        addresses = {rank: address(name, parties[name]) for rank, name in enumerate(_SERVERS)}
        listen = {rank: address(name, listening.get(name, parties[name])) for rank, name in enumerate(_SERVERS)}
        place = document.get("certificates")
        if place is not None and not isinstance(place, str):
            raise FormatError(f"certificates: got {place!r}, wanted a directory")
        settings = _table(document, "settings")
        _known("[settings]", settings, tuple(_KINDS))
        cas = CasPeers.parse(_table(document, "cas")) if "cas" in document else None
        if cas is not None and place is not None:
            raise FormatError("[cas]: certificates come from it or from a directory", hint="leave one of the two out")
        return cls(addresses, listen, None if place is None else beside / place, settings, cas)


def address(name: str, text: object) -> Address:
    """`HOST:PORT`, or `[HOST]:PORT` of an IPv6 address. Raises FormatError if it is none."""
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not bare or not digits or not 0 < int(port) < 1 << 16 or bracketed != (":" in bare):
        raise FormatError(f"{name}: got {text!r}, wanted HOST:PORT", hint="an IPv6 address stands in brackets")
    return bare, int(port)


def party_directory(certificates: Path, rank: int) -> Path:
    """A party's certificates: the directory itself, or its part of the one where all were made."""
    own = certificates / NAMES[rank]
    return own if own.is_dir() else certificates


def settings_of(text: str) -> dict[str, Any]:
    """Settings as `frac=16,bound=15,exact`. Raises UsageError if a word is none of theirs."""
    found: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        name, given, value = word.partition("=")
        kind = _KINDS.get(name)
        try:
            if kind is bool:
                found[name] = {"": True, "true": True, "false": False}[value]
            elif kind is not None and given:
                found[name] = kind(value)
            else:
                raise ValueError
        except (KeyError, ValueError):
            known = ", ".join(f"{each}=" if _KINDS[each] is not bool else each for each in _KINDS)
            raise UsageError(f"settings: got {word[:80]!r}, wanted some of {known}") from None
    return found


def make_settings(*layers: Mapping[str, Any]) -> Settings:
    """Settings out of layers, of which a later one wins. Raises UsageError if a value is out of range."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    for name, value in merged.items():
        kind = _KINDS[name]
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise UsageError(f"{name}: got {value!r}, wanted {'true or false' if kind is bool else 'a number'}")
    if not merged.get("seconds", 1) > 0:
        raise UsageError(f"seconds: got {merged['seconds']}, wanted more than 0")
    return Settings(**merged)


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise FormatError(f"{name}: got {table!r}, wanted a table [{name}]")
    return table


def _known(where: str, table: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if more := sorted(table.keys() - set(names)):
        raise FormatError(f"{where}: got {', '.join(more)}, wanted {', '.join(names)}")
