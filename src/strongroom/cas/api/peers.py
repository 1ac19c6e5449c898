"""Other instances of this CAS over one database: whoever runs the database could show each of them another one.

- Every five seconds each instance asks each of its peers for the log's signed head, over TLS by which both know each
  other as this CAS, and looks whether its own log, read after that, extends it. Peers do the same.
- So a fork is seen within five seconds of the first entry that differs; then the gate is shut, on both sides.
- A peer that does not answer is told once, and counted: it proves nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from strongroom.cas.client.address import cas_expectation, split_address
from strongroom.cas.log.head import Head
from strongroom.cas.log.note import Note, verify_cas_checkpoint
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.gate import Gate
from strongroom.cas.state.ledger import Ledger
from strongroom.cas.threads import Repeating
from strongroom.cas.wire import bytes_field, text_field
from strongroom.channel import HttpClient
from strongroom.crypto import PublicKey
from strongroom.errors import RollbackError, StrongroomError

SECONDS = 5.0
_TIMEOUT = 5.0
_MAX_ANSWER = 1 << 23  # the head, and cosigned notes of at most 64 KiB each
_log = logging.getLogger("strongroom.cas")


@dataclass(frozen=True)
class PeerState:
    """What is known of one peer.

    Attributes:
        size: of its log, when it answered last; None before.
        seen: when that was, seconds since 1970.
        problem: why it did not answer the last time; empty if it did.
    """

    url: str
    size: int | None = None
    seen: int | None = None
    problem: str = ""


class PeerWatch:
    """Asks the peers, each in a thread of its own, from `start` to `close`.

    Args:
        urls: theirs, ``https://HOST:PORT``.

    Raises:
        UsageError: a URL is none.
    """

    def __init__(
        self,
        store: Ledger,
        gate: Gate,
        authority: Authority,
        urls: Sequence[str] = (),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._gate, self._authority, self._clock = store, gate, authority, clock
        self._clients = {url: self._client(url) for url in urls}
        self._states = {url: PeerState(url) for url in urls}
        self._threads = [self._asking(url) for url in urls]

    def _client(self, url: str) -> HttpClient:
        host, port = split_address(url)
        expect, identity = cas_expectation(self._authority.cas_root), self._authority.identity
        return HttpClient.to(host, port, expect=expect, identity=identity, max_body=_MAX_ANSWER, timeout=_TIMEOUT)

    @property
    def states(self) -> tuple[PeerState, ...]:
        return tuple(self._states.values())

    def check(self) -> None:
        """Ask each peer once. What goes wrong is told in `states` and in the log; a fork shuts the gate."""
        for url in self._clients:
            self._check(url)

    def _check(self, url: str) -> None:
        try:
            head = self._ask(self._clients[url])
        except StrongroomError as error:
            self._note(url, problem=error.message)
            return
        try:
            self._store.check_head(head)
        except RollbackError as error:
            self._gate.shut(
                RollbackError(
                    f"fork: {url} has another log than this instance: {error.message}",
                    hint="the database was forked or put back: stop all instances and compare their logs",
                )
            )
            self._note(url, problem="its log is another")
        except StrongroomError as error:
            self._note(url, problem=f"could not be compared: {error.message}")
        else:
            self._states[url] = PeerState(url, head.size, int(self._clock()))

    def _ask(self, client: HttpClient) -> Head:
        answer = client.get("/v1/log/head")
        key = PublicKey(bytes_field(answer, "key"))
        checkpoint = verify_cas_checkpoint(Note.parse(text_field(answer, "checkpoint")), self._authority.cas_root, key)
        return Head(checkpoint.size, checkpoint.root)

    def _note(self, url: str, *, problem: str) -> None:
        if not self._states[url].problem:
            _log.warning("peer %s: %s", url, problem)
        self._states[url] = replace(self._states[url], problem=problem)

    def start(self) -> None:
        """From now on ask each of them every so many seconds; one that does not answer keeps up no other."""
        for thread in self._threads:
            thread.start()

    def _asking(self, url: str) -> Repeating:
        def step() -> float:
            try:
                self._check(url)
            except Exception:
                self._note(url, problem="could not be asked: the CAS's own log says why")
                raise
            return SECONDS

        return Repeating(f"peer {url}", step, first=SECONDS, retry=SECONDS)

    def close(self) -> None:
        for thread in self._threads:
            thread.close()
        for client in self._clients.values():
            client.close()
