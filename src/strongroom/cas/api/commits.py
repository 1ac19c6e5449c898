"""Group commit: what all requests of one turn of the event loop have written, in one transaction and one sync.

Rules:

- No answer leaves before what its request wrote, and what it read, is on the disk.
- A request that fails takes back its own changes only; a group that cannot be committed fails all its requests.
- A group waits for as long as each turn of the loop adds to it, at most `_TURNS` of them, and for nothing else: a
  request that comes alone is committed at once.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import Response

from strongroom.cas.api.endpoint import Handler
from strongroom.cas.state.store import Store
from strongroom.channel import tls_info
from strongroom.errors import DatabaseError, StrongroomError

_log = logging.getLogger("strongroom.cas")

_TURNS = 16
ASK_AGAIN = "ask again, or another instance; to have asked twice does no harm"


class Commits:
    """The groups of one CAS's requests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[asyncio.Future[None]] | None = None  # those whom the group that is open holds
        self._failures = 0
        self._joined = self._turns = 0
        store.group(self._schedule)

    def durable(self, handler: Handler) -> Handler:
        """Hold that handler's answers, errors too, until what they tell is on the disk."""

        async def held(request: Request) -> Response:
            failures = self._failures
            try:
                return await handler(request)
            finally:
                await self._settled(request, failures)

        return held

    async def _settled(self, request: Request, failures: int) -> None:
        """Wait for the group that is open.

        Args:
            failures: how many there were when the request began.

        Raises:
            DatabaseError: it failed, or one since then; whatever the request came to is not so.
        """
        if self._waiting is not None:
            committed = asyncio.get_running_loop().create_future()
            self._waiting.append(committed)
            await committed
        if self._failures != failures:
            # What this connection was remembered for may be what was lost.
            tls_info(request.scope).session.clear()
            raise DatabaseError("request: the CAS's database did not confirm it", hint=ASK_AGAIN)

    def _schedule(self) -> bool:
        """Whether a transaction that begins now is of a group: whether an event loop runs here."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._waiting is None:  # else one that could not even begin, whose turn comes yet
            self._waiting = []
            loop.call_soon(self._turn, loop)
        self._turns, self._joined = 0, self._store.grouped + 1
        return True

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._store.grouped != self._joined and self._turns < _TURNS:
            self._joined, self._turns = self._store.grouped, self._turns + 1
            loop.call_soon(self._turn, loop)
            return
        waiting, self._waiting = self._waiting or [], None
        self._failures += 1  # until it is known that it is none
        try:
            if self._store.in_group():  # else it could not even begin, and whoever tried knows
                self._store.flush()
            self._failures -= 1
        except StrongroomError as error:
            _log.error("commit failed: %s", error.message)
        finally:
            for committed in waiting:
                if not committed.done():  # one whose caller has gone is cancelled
                    committed.set_result(None)
