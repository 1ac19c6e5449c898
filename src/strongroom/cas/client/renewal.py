"""Staying attested: evidence is made anew on an interval, and what hangs on it counts no longer when that fails.

- A refusal ends it at once: whoever refused knows the evidence and does not want it any more. It is tried again, since
  the policy may be mended; but not after a revocation, which nothing mends.
- Where nobody answers, it counts until it expires, and is tried again meanwhile.
- A CAS whose log was rolled back is one that is not to be believed: that is a refusal too.
- Its end is seen by a thread that does nothing else: evidence, connections and answers are had through a host, which
  keeps whoever asks for them waiting as long as it likes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from strongroom.cas.threads import Repeating
from strongroom.errors import (
    AttestationError,
    ConflictError,
    ExpiredError,
    InstanceLimitError,
    PolicyError,
    RevokedError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    UnknownPolicyError,
    from_wire,
)

RETRY_SECONDS = 10
_log = logging.getLogger("strongroom.cas")
_REFUSALS = (
    AttestationError,
    ConflictError,
    InstanceLimitError,
    PolicyError,
    RollbackError,
    UnauthorizedError,
    UnknownPolicyError,
)


class Renewal:
    """Something that has been attested, and is attested again halfway through its lifetime.

    Args:
        renew: attests again; called by `step` when it is due. It may tell the new lifetime, as an integer.
        lifetime: seconds for which one success counts.
        left: of these, the seconds that are left now; None for all.
        tell: is given a line about each failure.
        on_end: called when it has been revoked, and when it has expired: nothing may go on that hangs on it.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        renew: Callable[[], object],
        *,
        lifetime: int,
        tell: Callable[[str], None],
        left: float | None = None,
        on_end: Callable[[StrongroomError], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew = renew
        self._lifetime = lifetime
        self._tell = tell
        self._on_end = on_end
        self._clock = clock
        self._refusal: dict[str, str] | None = None
        self._revoked = self._told = False
        self._lock = threading.Lock()
        self._renewing = Repeating("renewal", self.step, retry=RETRY_SECONDS)
        self._ending = Repeating("lease", self.expire, retry=1.0)
        self._expires = clock() + (lifetime if left is None else left)
        self._due = self._expires - lifetime / 2

    def check(self) -> None:
        """Whether it still counts.

        Raises:
            StrongroomError: of the class that it was refused with.
            ExpiredError: it could not be renewed in time.
        """
        if self._refusal is not None:
            raise from_wire(self._refusal)
        if self._clock() >= self._expires:
            raise self._expired()

    def _expired(self) -> ExpiredError:
        return ExpiredError(
            f"attestation: could not be renewed within {self._lifetime} seconds", hint="is the CAS running?"
        )

    def revoke(self, error: RevokedError) -> None:
        """End it for good; called also where somebody else has learnt of the revocation, from another thread."""
        with self._lock:
            known, self._revoked = self._revoked, True
            self._refusal = error.to_wire()
        if not known and self._on_end is not None:
            self._on_end(error)

    def step(self) -> float:
        """Attest again if it is due, and say so if it is over; the seconds until there is something to do next."""
        now = self._clock()
        if now >= self._due and not self._revoked:
            try:
                told = self._renew()
            except StrongroomError as error:
                if isinstance(error, RevokedError):
                    self.revoke(error)
                elif isinstance(error, _REFUSALS):
                    self._refusal = error.to_wire()
                self._due = now + self._retry()
                self._tell(f"attestation not renewed: {error.message}")
            except Exception:
                self._due = now + self._retry()
                _log.exception("attestation not renewed")
            else:
                with self._lock:
                    self._lifetime = told if type(told) is int else self._lifetime
                    self._expires, self._due = now + self._lifetime, now + self._lifetime / 2
                    self._told = False
                    if not self._revoked:
                        self._refusal = None
                self._ending.wake()
        left = self.expire()
        due = math.inf if self._revoked else self._due - now
        return min(due, left)

    def _retry(self) -> float:
        return min(RETRY_SECONDS, self._lifetime / 4)

    def expire(self) -> float:
        """Say so if it is over; the seconds until it may be. Waits for nobody."""
        with self._lock:
            left = self._expires - self._clock()
            if self._told or self._revoked:
                return math.inf
            if left > 0:
                return left
            self._told = True
            error = from_wire(self._refusal) if self._refusal else self._expired()
        if self._on_end is not None:
            self._on_end(error)
        return math.inf

    def start(self) -> None:
        """Take the steps in threads of their own."""
        self._ending.start()
        self._renewing.start()

    def close(self) -> None:
        """End them; one that its host keeps waiting is left behind."""
        self._renewing.close()
        self._ending.close()
