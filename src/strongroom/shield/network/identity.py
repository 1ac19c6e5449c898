"""What a proxy shows to others: the enclave's key, under the newest certificate that the CAS has issued to it."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Final

from strongroom.channel import Identity
from strongroom.crypto import Certificate

_PUBLISHED: Final = -1  # no protocol of ssl's


class Credentials:
    """Contexts of TLS 1.3 for both roles, made anew when there is a new certificate. May be used from several threads.

    Args:
        identity: what to show now: the enclave's certificate and after it the CAS's root, the only authority accepted.
    """

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity
        self._shown: Identity | None = None
        self._lock = threading.Lock()
        self._made: dict[int, ssl.SSLContext] = {}

    @property
    def client(self) -> ssl.SSLContext:
        """For connections to other proxies."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    @property
    def server(self) -> ssl.SSLContext:
        """For connections from other proxies, which have to show a certificate of the same authority."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    @property
    def published(self) -> ssl.SSLContext:
        """For connections from outsiders, who show none. They may know the authority's key alone, and are shown it."""
        return self._context(_PUBLISHED)

    def _context(self, which: int) -> ssl.SSLContext:
        with self._lock:
            now = self._identity()
            if now != self._shown:
                self._made, self._shown = {}, now
            if which not in self._made:
                self._made[which] = _published_context(now) if which == _PUBLISHED else tunnel_context(which, now)
            return self._made[which]


def tunnel_context(protocol: int, identity: Identity) -> ssl.SSLContext:
    """TLS 1.3 by which both ends show certificates of one authority, the last of the identity's chain."""
    return _shown(protocol, identity, identity.chain[:-1])


def _published_context(identity: Identity) -> ssl.SSLContext:
    context = _shown(ssl.PROTOCOL_TLS_SERVER, identity, identity.chain)
    context.verify_mode = ssl.CERT_NONE
    return context


def _shown(protocol: int, identity: Identity, own: Sequence[Certificate]) -> ssl.SSLContext:
    """One that shows these certificates, and wants to be shown one of the authority's."""
    root = identity.chain[-1]
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # members are named by URI and key
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=root.der)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is resumed
    # Python takes keys from files alone; this one is in memory, and nobody else has a name for it.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.key.pem() + b"".join(each.pem() for each in own))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
