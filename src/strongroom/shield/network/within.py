"""TLS that a program makes to a host outside, and that ends at its own proxy, within the enclave.

An unmodified program says ``https://``. The proxy answers in the host's name, by an authority that lives in this
enclave's memory alone and that the program finds where systems keep their roots; towards the host it makes TLS of its
own, and judges the host as the policy says. So the policy's word on roots holds, whatever the program looks at.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

from strongroom.crypto import CertificateAuthority, SigningKey
from strongroom.errors import ChannelError
from strongroom.shield.network.loop import Loop
from strongroom.shield.network.tunnel import Tunnel

_LEAF: Final = dt.timedelta(days=30)
_KEPT_SECONDS: Final = _LEAF.total_seconds() / 2


class Within:
    """An authority for the hosts of one enclave. May be used from several threads."""

    def __init__(self) -> None:
        self._authority = CertificateAuthority.create("Strongroom, within this enclave", now=dt.datetime.now(dt.UTC))
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, ssl.SSLContext]] = {}

    @property
    def root(self) -> bytes:
        """Its certificate, in DER."""
        return self._authority.certificate.der

    def context(self, host: str) -> ssl.SSLContext:
        """TLS 1.3 in a host's name, to the program here."""
        with self._lock:
            made, context = self._made.get(host, (0.0, None))
            if context is None or time.monotonic() - made > _KEPT_SECONDS:
                context = self._make(host)
                self._made[host] = time.monotonic(), context
            return context

    def _make(self, host: str) -> ssl.SSLContext:
        key = SigningKey.generate()
        leaf = self._authority.issue(key.public, host, now=dt.datetime.now(dt.UTC), lifetime=_LEAF, hosts=[host])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        # Python takes keys from files alone; this one is in memory, and nobody else has a name for it.
        descriptor = os.memfd_create("within", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, key.pem() + leaf.pem())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context


class Ended(Tunnel):
    """The program's TLS, whose bytes come out at another socket.

    Args:
        outer: the program's connection.
        inner: where its bytes go to and come from.
        on_end: called once, with why in a word, empty where it ended in order.
    """

    server = True
    anonymous = True

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: ssl.SSLContext,
        *,
        inner: socket.socket,
        on_end: Callable[[str], None],
    ) -> None:
        super().__init__(loop, outer, context, on_open=lambda _: None, on_close=lambda _, why: on_end(why))
        self._inner_first = inner
        self._why = ""  # it is to be cut off once all has been given

    def shaken(self, certificate: bytes) -> None:
        self.agreed = True
        self.opens(self._inner_first)

    def _lose_outer(self) -> None:
        if self.opened:
            self._outer_ended = True  # nobody is between the program and here: it may end without a word
        super()._lose_outer()

    def cut(self, why: str) -> None:
        """Let the program have what has come, and then an end that TLS does not announce. On the loop's thread."""
        self._why = why
        if not self.opened:
            self.close(why)

    def _read_inner(self) -> None:
        super()._read_inner()
        if self._inner_ended and self._why:
            raise ChannelError(self._why)

    def close(self, why: str) -> None:
        if not self.closed and self._inner is None:
            self._inner = self._inner_first
        super().close(why)
