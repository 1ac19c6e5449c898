"""Staying attested: evidence is made anew on an interval, and what hangs on it counts no longer when that fails.

- A refusal ends it at once: whoever refused knows the evidence and does not want it any more. It is tried again, since
  the policy may be mended.
- Where nobody answers, it counts until it expires, and is tried again meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from strongroom.errors import (
    AttestationError,
    ExpiredError,
    PolicyError,
    StrongroomError,
    UnauthorizedError,
    UnknownPolicyError,
    from_wire,
)

RETRY_SECONDS = 10
_REFUSALS = (AttestationError, UnauthorizedError, UnknownPolicyError, PolicyError)


class Renewal:
    """Something that has just been attested, and is attested again halfway through its lifetime.

    Args:
        renew: attests again; called by `step` when it is due.
        lifetime: seconds for which one success counts.
        tell: is given a line about each failure.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        renew: Callable[[], object],
        *,
        lifetime: int,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew = renew
        self._lifetime = lifetime
        self._tell = tell
        self._clock = clock
        self._refusal: dict[str, str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        now = clock()
        self._expires, self._due = now + lifetime, now + lifetime / 2

    def check(self) -> None:
        """Whether it still counts.

        Raises:
            StrongroomError: of the class that it was refused with.
            ExpiredError: it could not be renewed in time.
        """
        if self._refusal is not None:
            raise from_wire(self._refusal)
        if self._clock() >= self._expires:
            raise ExpiredError(
                f"attestation: could not be renewed within {self._lifetime} seconds", hint="is the CAS running?"
            )

    def step(self) -> float:
        """Attest again if it is due; the seconds until it is due next."""
        now = self._clock()
        if now >= self._due:
            try:
                self._renew()
            except StrongroomError as error:
                if isinstance(error, _REFUSALS):
                    self._refusal = error.to_wire()
                self._due = now + RETRY_SECONDS
                self._tell(f"attestation not renewed: {error.message}")
            else:
                self._refusal = None
                self._expires, self._due = now + self._lifetime, now + self._lifetime / 2
        return self._due - now

    def start(self) -> None:
        """Take the steps in a thread of their own."""
        self._thread.start()

    def close(self) -> None:
        """End that thread."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(max(0.0, self._due - self._clock())):
            self.step()
