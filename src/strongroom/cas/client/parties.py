"""A party of `mpc` with a certificate from a CAS: short-lived, of a fresh key, and the next one in time.

It has a new key each time. Connections that were made under an earlier one go on: who the peer is was settled when they
began.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable

from strongroom.cas.client.owner import OwnerClient
from strongroom.channel import Identity
from strongroom.crypto import SigningKey
from strongroom.errors import ExpiredError, StrongroomError

_RETRY = dt.timedelta(seconds=10)


class PartyIdentity:
    """What a party shows its peers. May be used from several threads.

    Args:
        client: of the policy's owner, or of an administrator with the right `certificates`.
        policy: the party's.
    """

    def __init__(
        self, client: OwnerClient, policy: str, *, now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    ) -> None:
        self._client, self._policy, self._now = client, policy, now
        self._lock = threading.Lock()
        self._identity: Identity | None = None
        self._renew_at = self._expires = dt.datetime.min.replace(tzinfo=dt.UTC)

    def current(self) -> Identity:
        """A key and its certificates: renewed if half their life has passed, and kept while that fails.

        Raises:
            StrongroomError: there is none that is valid; as `OwnerClient.certify_party`.
        """
        with self._lock:
            now = self._now()
            if self._identity is not None and now < self._renew_at:
                return self._identity
            try:
                self._renew(now)
            except StrongroomError:
                if self._identity is None or now >= self._expires:
                    raise
                self._renew_at = min(now + _RETRY, self._expires)
            assert self._identity is not None  # noqa: S101  # `_renew` made it
            return self._identity

    def _renew(self, now: dt.datetime) -> None:
        key = SigningKey.generate()
        try:
            chain = self._client.certify_party(self._policy, key)
        finally:
            self._client.close()  # half an hour passes before the next time
        if chain[0].not_after <= now:
            raise ExpiredError(
                f"certificate: the CAS's ended at {chain[0].not_after.isoformat()}",
                hint="set this machine's clock, or the CAS's",
            )
        self._identity, self._expires = Identity(key, chain), chain[0].not_after
        self._renew_at = now + (self._expires - now) / 2
