"""Fetch endorsements from their vendors' services.

Rules:

- HTTPS trusts what everybody's browser does: the web's CAs, and TLS 1.2 and later, since vendors' services are not ours
  to choose. That keeps the network's owner from learning, or spoiling, what is asked; no trust in endorsements rests
  on it. So HTTP will do where a vendor has nothing else (NVIDIA's revocation lists).
- A redirect is an error: a vendor's service is named by its host.
- No proxy is taken from the environment; one is used only where it is given.
- Every answer has a largest size and a longest time, however slowly it comes.
- What is likely to pass is tried again, at intervals that grow: 429, 500 and above, a broken connection.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from strongroom.attest.endorsements.endorsement import MAX_BODY, Endorsement, Want
from strongroom.errors import ChannelError, FormatError, UsageError, printable

_TIMEOUT = 10.0  # for one step of a connection
_DEADLINE = 30.0  # for one answer, whatever it trickles
_TRIES = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_AGENT = "strongroom"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Transport(Protocol):
    """What gets a URL: `HttpTransport`, or in tests something that answers from memory."""

    def get(self, url: str) -> Answer:
        """Raises ChannelError if no whole answer comes, or one of more than `MAX_BODY` bytes."""
        ...


class HttpTransport:
    """HTTP by the rules above, one connection for each request. For use from several threads at once.

    Args:
        cafile: PEM certificates that servers' chains may end at, in place of the web's: for a caching service of one's
            own.
        proxy: ``host:port`` of an HTTP proxy that opens tunnels (CONNECT).
        timeout: seconds that connecting, or waiting for the next bytes, may take.
    """

    def __init__(self, *, cafile: Path | None = None, proxy: str | None = None, timeout: float = _TIMEOUT) -> None:
        try:
            self._context = ssl.create_default_context(cafile=cafile)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{cafile}: {getattr(error, 'strerror', None) or error}") from None
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._proxy = _authority(urlsplit(f"//{proxy}"), None) if proxy else None
        self._timeout = timeout

    def get(self, url: str) -> Answer:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or parts.username is not None:
            raise UsageError(f"endorsements: got {url[:200]!r}, wanted an https:// URL without a user")
        host, port = _authority(parts, 443 if parts.scheme == "https" else 80)
        through = self._proxy or (host, port)
        connection = (
            http.client.HTTPSConnection(*through, timeout=self._timeout, context=self._context)
            if parts.scheme == "https"
            else http.client.HTTPConnection(*through, timeout=self._timeout)
        )
        if self._proxy:
            connection.set_tunnel(host, port)
        late = threading.Event()
        watchdog: threading.Timer | None = None
        try:
            connection.connect()
            watchdog = threading.Timer(_DEADLINE, _hang_up, (connection.sock, late))
            watchdog.daemon = True
            watchdog.start()
            path = parts.path or "/"
            connection.request(
                "GET", f"{path}?{parts.query}" if parts.query else path, headers={"User-Agent": _AGENT, "Accept": "*/*"}
            )
            response = connection.getresponse()
            answer = Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, _read(response, host)
            )
        except ssl.SSLCertVerificationError as error:
            raise ChannelError(
                f"{host}:{port}: its certificate does not hold: {printable(error.verify_message)}",
                hint="for a caching service with a CA of its own, name that CA's file: --cafile",
            ) from None
        except socket.gaierror as error:
            raise ChannelError(
                f"{host}:{port}: {printable(error.strerror or 'no such host').lower()}",
                hint="without a network, take endorsements from a bundle: --bundle",
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set():
                raise _too_late(host) from None
            reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
            raise ChannelError(f"{host}:{port}: {printable(reason)}") from None
        finally:
            if watchdog is not None:
                watchdog.cancel()
            connection.close()
        # What came after the watchdog hung up need not be what was sent.
        if late.is_set():
            raise _too_late(host)
        return answer


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    """End a connection under whoever reads from it: a time-out of one read never ends a server that trickles."""
    late.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which changes the reader's object


def _too_late(host: str) -> ChannelError:
    return ChannelError(f"{host}: no whole answer in {_DEADLINE:g} seconds")


def _authority(parts: SplitResult, default: int | None) -> tuple[str, int]:
    try:
        port = parts.port or default
    except ValueError:
        port = None
    if not parts.hostname or port is None:
        raise UsageError(f"endorsements: got {parts.netloc[:200]!r}, wanted a host and a port")
    return parts.hostname, port


def _read(response: http.client.HTTPResponse, host: str) -> bytes:
    body = response.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise ChannelError(f"{host}: an answer of more than {MAX_BODY} bytes")
    if response.length:
        raise ChannelError(f"{host}: the answer ends {response.length} bytes early")
    return body


class Retrying:
    """A transport that tries again what is likely to pass: not where an error's hint says what somebody has to do.

    Args:
        transport: what gets the URL.
        tries: how often, at most.
        sleep: waits that many seconds; `time.sleep` as a rule.
    """

    def __init__(
        self, transport: Transport, *, tries: int = _TRIES, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        if tries < 1:
            raise UsageError(f"tries: got {tries}, wanted at least 1")
        self._transport = transport
        self._tries = tries
        self._sleep = sleep

    def get(self, url: str) -> Answer:
        for tried in range(1, self._tries + 1):
            pause = min(_FIRST_PAUSE * 2 ** (tried - 1), _LONGEST_PAUSE)
            try:
                answer = self._transport.get(url)
            except ChannelError as error:
                if tried == self._tries or error.hint:
                    raise
            else:
                if tried == self._tries or (answer.status != 429 and answer.status < 500):
                    return answer
                pause = _asked_for(answer, pause)
            # Many verifiers that were turned away together do not come back together.
            self._sleep(pause * (1 + random.random() / 2))  # noqa: S311  nothing secret
        raise AssertionError("unreachable")


def _asked_for(answer: Answer, pause: float) -> float:
    """The pause that the server asks for in seconds (RFC 9110, section 10.2.3), within our own limits."""
    asked = answer.headers.get("retry-after", "")
    return min(max(float(asked), pause), _LONGEST_PAUSE) if asked.isascii() and asked.isdigit() else pause


def fetch(want: Want, transport: Transport, *, now: int) -> Endorsement | None:
    """What the service has under that URL; None if it has no such thing (400 or 404).

    Raises:
        ChannelError: no answer came, or one that is not what is wanted.
    """
    answer = transport.get(want.url)
    host = urlsplit(want.url).netloc
    if answer.status in (400, 404):
        return None
    if answer.status != 200:
        raise ChannelError(
            f"{want.name}: {host} answers with HTTP {answer.status}, wanted 200",
            hint="it turns away whoever asks often: keep a cache or a bundle" if answer.status == 429 else None,
        )
    found = (answer.headers[name] for name in want.chain_headers if answer.headers.get(name))
    chain = unquote(next(found, ""))
    try:
        return Endorsement.read(want.name, answer.body, chain=chain, fetched=now)
    except FormatError as error:
        raise ChannelError(f"{host} answers with something else: {error.message}") from None
