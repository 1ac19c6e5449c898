"""Watching a CAS's list of revocations: an enclave learns of its own end, and of whom not to talk to any more.

What is lost here (the host cuts this connection, nobody answers) costs time, not safety: a lease that nobody renews
ends by itself.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from strongroom.cas.client.address import MAX_ANSWER, TIMEOUT, cas_expectation
from strongroom.cas.enclaves.revocation import Revocation, refusal
from strongroom.cas.log.head import CasHttp, HeadMemory
from strongroom.cas.threads import Repeating
from strongroom.channel import Expect
from strongroom.crypto import Certificate
from strongroom.errors import CasError, PeerIdentityError, RevokedError, StrongroomError

_log = logging.getLogger("strongroom.cas")

WAIT = 20
"""Seconds that one request waits for news; less than the connection's timeout."""
RETRY_SECONDS = 5.0
_BRIEF = 1.0  # at least so long between two requests of which the first brought nothing


class RevokedPeers:
    """Keys that are revoked, each under its policy. May be used from several threads."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def add(self, policy: str, key: str) -> None:
        """Count the key with this fingerprint as revoked for enclaves of that policy."""
        with self._lock:
            self._keys.add((policy, key))

    def refuse(self, expect: Expect, policy: str) -> Expect:
        """Expect the same peer, an enclave of that policy, and none of these."""

        def check(chain: Sequence[Certificate]) -> None:
            expect(chain)
            with self._lock:
                revoked = (policy, chain[0].key.fingerprint) in self._keys
            if revoked:
                raise PeerIdentityError(
                    f"peer key: {chain[0].key.fingerprint} is revoked under policy {policy}",
                    hint="the CAS has ended that enclave's lease; its administrator knows why",
                )

        return check


class RevocationWatch:
    """A thread that asks a CAS for news again and again, until it is closed. May be used as a context manager.

    Args:
        dial: gives a connected socket.
        heads: the highest head seen of the CAS's log.
        policy, key: this enclave's, and the fingerprint of its key. Under another policy anybody may list any key.
        on_own: called once, when that is revoked. A revoked measurement ends the leases of its enclaves, each by its
            key.
        on_revoked: called with the policy and the fingerprint of each other key that is revoked.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        *,
        cas_root: str,
        heads: HeadMemory,
        policy: str,
        key: str,
        on_own: Callable[[RevokedError], None],
        on_revoked: Callable[[str, str], None] | None = None,
    ) -> None:
        self._dial, self._own = dial, (policy, key)
        self._on_own, self._on_revoked = on_own, on_revoked
        self._told = False
        self._after = 0
        self._ended = False
        self._socket: socket.socket | None = None
        self._http = CasHttp(
            self._dialled,
            host="cas",
            expect=cas_expectation(cas_root),
            heads=heads,
            max_body=MAX_ANSWER,
            timeout=TIMEOUT,
        )
        self._thread = Repeating("revocations", self._run, retry=RETRY_SECONDS)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, which may be waiting for an answer."""
        self._ended = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.close()
        if not self._thread.alive:
            self._http.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, *, wait: int = WAIT) -> float:
        """Ask once; the seconds to let pass before asking again.

        Raises:
            StrongroomError: nobody answers, or not the CAS that is meant.
        """
        answer = self._http.get(f"/v1/revocations?after={self._after}&wait={wait}")
        listed, following, later = answer.get("revocations"), answer.get("next"), answer.get("later")
        if not isinstance(listed, list) or not isinstance(following, int) or not isinstance(later, int):
            raise CasError("answer: revocations are missing")
        for wire in listed:
            self._heed(Revocation.from_wire(wire if isinstance(wire, dict) else {}))
        self._after = max(self._after, following)
        if later:
            self._http.close()  # where too many wait, each connection is one too many
        return 0.0 if listed else max(_BRIEF, float(min(later, 60)))

    def _heed(self, one: Revocation) -> None:
        if (one.policy, one.key) == self._own:
            if not self._told:
                self._told = True
                self._on_own(refusal(one))
        elif one.key and self._on_revoked is not None:
            self._on_revoked(one.policy, one.key)

    def _dialled(self) -> socket.socket:
        self._socket = sock = self._dial()
        if self._ended:
            sock.close()
            raise CasError("watch: was closed")
        return sock

    def _run(self) -> float:
        try:
            return self.step()
        except StrongroomError as error:
            _log.debug("revocations: %s", error.message)
        except Exception:
            if not self._ended:  # else it was closed under its hands
                raise
        return RETRY_SECONDS
