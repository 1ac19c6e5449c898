"""What keeps a program's enclave attested, and ends the program when its lease is over.

- A lease that is revoked ends it within moments, where the CAS can be heard; one that cannot be renewed ends it when it
  has run out, by a clock that the host cannot set.
- A refusal alone ends nothing before that: the CAS moves no anchor meanwhile, and the policy may be mended.
- What the program has not committed by then is lost, as in a crash.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from strongroom.cas.client.enclave import EnclaveSession
from strongroom.cas.client.renewal import Renewal
from strongroom.errors import StrongroomError


class Lifeline:
    """Used as a context manager around what hangs on the lease.

    Args:
        session: of an enclave that has attested.
        tell: is given a line about each failure.
        on_revoked: called with the policy and key of each other enclave that is revoked.
    """

    def __init__(
        self,
        session: EnclaveSession,
        *,
        tell: Callable[[str], None],
        on_revoked: Callable[[str, str], None] | None = None,
    ) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._over: StrongroomError | None = None
        self._kill: Callable[[], None] | None = None
        self._renewal = Renewal(
            lambda: session.renew().seconds,
            lifetime=session.lease_seconds,
            left=session.lease_left,
            tell=tell,
            on_end=self._end,
        )
        self._watch = session.watch(self._renewal.revoke, on_revoked=on_revoked)

    def __enter__(self) -> Self:
        self._renewal.start()
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.close()
        self._renewal.close()

    def hold(self, kill: Callable[[], None]) -> None:
        """Have `kill` called when the lease is over, at once if it is."""
        with self._lock:
            self._kill = kill
            over = self._over is not None
        if over:
            kill()

    def release(self) -> None:
        """Have nothing called any more: the program has ended by itself."""
        with self._lock:
            self._kill = None

    def check(self) -> None:
        """Raises what ended the lease, if something has."""
        if self._over is not None:
            raise self._over

    def _end(self, error: StrongroomError) -> None:
        with self._lock:
            self._over = error
            kill = self._kill
            if kill is not None:
                kill()
        self._tell(f"the enclave's lease is over: {error.message}")
