"""Where a CAS answers, by which root key it is known, and a connection to it."""

from __future__ import annotations

import datetime as dt
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from strongroom.cas.files import replace
from strongroom.cas.wire import CAS_URI
from strongroom.channel import Expect, expect_authority
from strongroom.errors import CasUnreachableError, FormatError, UsageError

ADDRESS_FILE = "cas.json"
MAX_ANSWER = 1 << 22
TIMEOUT = 30.0
_RETURNS_WITHIN = 15.0
_returning: list[tuple[str, int]] = []


@dataclass(frozen=True)
class CasAddress:
    """Where a CAS answers and by which root key it is known."""

    url: str
    cas_root: str

    def save(self, directory: Path) -> None:
        text = json.dumps({"url": self.url, "cas_root": self.cas_root}) + "\n"
        replace(directory / ADDRESS_FILE, text.encode())

    @classmethod
    def load(cls, path: Path) -> CasAddress:
        """Raises FormatError if the file is not one that `save` wrote."""
        try:
            value = json.loads(path.read_text())
            return cls(str(value["url"]), str(value["cas_root"]))
        except (ValueError, KeyError, TypeError):
            raise FormatError(f"{path}: not the address of a CAS") from None


def split_address(url: str) -> tuple[str, int]:
    """Host and port of ``https://host:port``.

    Raises:
        UsageError: it is not of that form.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host and port and url.removesuffix("/") == f"https://{parts.netloc}" and parts.username is None:
            return host, port
    except ValueError:
        pass
    raise UsageError(f"address: got {url[:200]!r}, wanted https://HOST:PORT")


def cas_expectation(cas_root: str) -> Expect:
    """The peer is the CAS whose root key has this fingerprint."""
    return expect_authority(cas_root, uri=CAS_URI, now=_utc)


@contextmanager
def returning(url: str) -> Iterator[None]:
    """Meanwhile a CAS that has ended there is started again at once: where it is dialled, that is waited for."""
    place = split_address(url)
    _returning.append(place)
    try:
        yield
    finally:
        _returning.remove(place)


def dial_cas(host: str, port: int, *, timeout: float = TIMEOUT) -> socket.socket:
    """A TCP connection to a CAS.

    Raises:
        CasUnreachableError: nothing answers there.
    """
    end = time.monotonic() + _RETURNS_WITHIN
    while True:
        try:
            return socket.create_connection((host, port), timeout=timeout)
        except OSError as error:
            if isinstance(error, ConnectionRefusedError) and (host, port) in _returning and time.monotonic() < end:
                time.sleep(0.05)
                continue
            reason = (error.strerror or str(error)).lower()
            raise CasUnreachableError(
                f"CAS: {host}:{port}: {reason}",
                hint="is it running? `strongroom cas start` and `strongroom serve` run this user's",
            ) from None


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
