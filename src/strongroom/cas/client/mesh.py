"""An enclave's part in the mesh: it joins, and keeps hearing who else is there.

Where the CAS does not answer, what was known last goes on to count: those who talk to each other go on.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from strongroom.cas.client.address import MAX_ANSWER, TIMEOUT, cas_expectation
from strongroom.cas.log.head import CasHttp, HeadMemory
from strongroom.cas.threads import Repeating
from strongroom.channel import Identity
from strongroom.errors import CasError, StrongroomError, UnauthorizedError

WAIT = 20
"""Seconds that one request waits for news; less than the connection's timeout."""
RETRY_SECONDS = 2.0
_log = logging.getLogger("strongroom.cas")


class MeshWatch:
    """A thread that asks a CAS for members again and again, from `start` to `close`.

    Args:
        dial: gives a connected socket.
        identity: with the key of the enclave's lease.
        heads: the highest head seen of the CAS's log.
        on_news: called with what is told whenever it is another than before, and when it was asked for.
        on_lost: called where the CAS knows this enclave as no member any more; it joins again. Where it raises
            UnauthorizedError, since nobody of the policy may, `on_news` is told of no members.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        *,
        cas_root: str,
        identity: Identity,
        heads: HeadMemory,
        policy: str,
        on_news: Callable[[Mapping[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._dial, self._policy = dial, policy
        self._on_news, self._on_lost = on_news, on_lost
        self._state = ""
        self._taking = threading.Lock()
        self._asked = threading.Event()
        self._ended = False
        self._socket: socket.socket | None = None
        self._waiting = self._http(self._dialled, cas_root, identity, heads)
        self._asking = self._http(dial, cas_root, identity, heads)
        self._threads = [
            Repeating("mesh", self._wait, retry=RETRY_SECONDS),
            Repeating("mesh asked", self._answer, first=RETRY_SECONDS, retry=RETRY_SECONDS),
        ]

    @staticmethod
    def _http(dial: Callable[[], socket.socket], cas_root: str, identity: Identity, heads: HeadMemory) -> CasHttp:
        return CasHttp(
            dial,
            host="cas",
            expect=cas_expectation(cas_root),
            heads=heads,
            identity=identity,
            max_body=MAX_ANSWER,
            timeout=TIMEOUT,
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def ask(self) -> None:
        """Have the CAS asked now. From any thread."""
        self._asked.set()
        self._threads[1].wake()

    def close(self) -> None:
        """End the threads, one of which may be waiting for an answer."""
        self._ended = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        for thread, http in zip(self._threads, (self._waiting, self._asking), strict=True):
            thread.close()
            if not thread.alive:
                http.close()

    def _wait(self) -> float:
        try:
            return self._step(self._waiting, wait=WAIT)
        except UnauthorizedError as error:
            _log.debug("mesh: %s", error.message)
            self._refused()
        except StrongroomError as error:
            _log.debug("mesh: %s", error.message)
        except Exception:
            if not self._ended:  # else it was closed under its hands
                raise
        return RETRY_SECONDS

    def _refused(self) -> None:
        """The CAS knows no lease of it, or its policy has no mesh any more: then it has nobody to talk to."""
        try:
            self._on_lost()
        except UnauthorizedError:
            self._take({"state": "", "members": [], "places": []}, whatever=True)

    def _take(self, told: Mapping[str, Any], *, whatever: bool) -> None:
        """Tell of it where it is another than before. Only then is it what is known."""
        with self._taking:
            if whatever or told["state"] != self._state:
                self._on_news(told)
            self._state = str(told["state"])

    def _answer(self) -> float:
        """What somebody waits for: the news themselves, whatever the other request waits for."""
        if self._asked.is_set():
            self._asked.clear()
            try:
                self._step(self._asking, wait=0)
            except StrongroomError as error:
                _log.debug("mesh: %s", error.message)
                self._asked.set()
                return RETRY_SECONDS
        return 3600.0

    def _step(self, http: CasHttp, *, wait: int) -> float:
        """Ask once; the seconds to let pass before asking again."""
        asked = {"policy": self._policy, "wait": wait} | ({"state": self._state} if wait and self._state else {})
        answer = http.request(
            "POST",
            "/v1/mesh/members",
            body=json.dumps(asked).encode(),
            headers={"content-type": "application/json"},
        )
        told = answer.expect_ok().json()
        if not isinstance(told.get("state"), str) or not isinstance(told.get("members"), list):
            raise CasError("answer: says nothing of the mesh")
        self._take(told, whatever=not wait)
        if told.get("joined") is False:
            self._on_lost()
            return RETRY_SECONDS
        later = told.get("later")
        if isinstance(later, int) and later:
            http.close()
            return float(min(later, 60))
        return 0.0

    def _dialled(self) -> socket.socket:
        self._socket = sock = self._dial()
        if self._ended:
            sock.close()
            raise CasError("mesh: was closed")
        return sock
