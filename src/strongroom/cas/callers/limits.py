"""How much one address, or one policy, may ask of a CAS before others suffer: token buckets.

Rules:

- An address pays 1 for each request and 1 for each KiB that it sends, `PAGED` for a page of the log, and `REFUSED` for
  evidence or a policy that is refused and a login that fails: those cost a CAS most, and bring a caller that means well
  nothing. What a request costs is known once it is answered: it is the next ones that wait.
- A policy pays for attestations that succeed alone: strangers' evidence must not shut a tenant's enclaves out.
- What is kept is bounded, whoever asks: beyond `ADDRESSES` the quietest is forgotten.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from strongroom.errors import TooManyRequestsError

ADDRESSES = 16_384
REFUSED = 50
PAGED = 32
RATE = 2000.0
"""Requests a second of one address, by default: 64 enclaves that start together behind one address ask for less."""
POLICY_RATE = 1000.0
"""Attestations a second of one policy, by default."""
_BURST_SECONDS = 4


class Buckets:
    """Token buckets by name, each of `rate` a second and four seconds' worth of burst. For one thread.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, rate: float, *, capacity: int = ADDRESSES, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._capacity, self._clock = rate, rate * _BURST_SECONDS, capacity, clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how much is left, and when that was

    def _left(self, name: str, now: float) -> float:
        left, then = self._kept.get(name, (self._burst, now))
        return min(self._burst, left + (now - then) * self._rate)

    def wait(self, name: str) -> float:
        """Seconds until there is something for `name` again; 0 where there is."""
        return max(0.0, (1 - self._left(name, self._clock())) / self._rate)

    def take(self, name: str, cost: float = 1) -> None:
        """Charge `name`. What is left may become less than nothing, down to the burst: it is waited for."""
        now = self._clock()
        self._kept[name] = max(-self._burst, self._left(name, now) - cost), now
        self._kept.move_to_end(name)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(frozen=True)
class Limits:
    """The limits of one CAS.

    Attributes:
        addresses: by client address; None for no limit.
        policies: by policy's name; None for no limit.
        loopback: whether clients of this machine are limited too.
    """

    addresses: Buckets | None = None
    policies: Buckets | None = None
    loopback: bool = False

    @classmethod
    def of(cls, rate: float = RATE, policy_rate: float = POLICY_RATE, *, loopback: bool = False) -> Limits:
        """Those rates, 0 for no limit."""
        return cls(Buckets(rate) if rate else None, Buckets(policy_rate) if policy_rate else None, loopback)

    def check_address(self, address: str) -> None:
        """Count a request. Raises TooManyRequestsError."""
        if self.addresses is not None:
            name = network_of(address)
            if self.loopback or name != LOOPBACK:
                _check(self.addresses, name, f"requests: too many from {name}")
                self.addresses.take(name)

    def charge(self, address: str, cost: float) -> None:
        """Charge an address for a request beyond the 1 that each costs."""
        if self.addresses is not None:
            name = network_of(address)
            if self.loopback or name != LOOPBACK:
                self.addresses.take(name, cost)

    def check_policy(self, policy: str) -> None:
        """Raises TooManyRequestsError if a policy's enclaves have attested too often lately."""
        if self.policies is not None:
            _check(self.policies, policy, f"policy {policy}: its enclaves attest too often")

    def attested(self, policy: str) -> None:
        """Count an attestation that succeeded."""
        if self.policies is not None:
            self.policies.take(policy)


LOOPBACK = "loopback"


@lru_cache(maxsize=ADDRESSES)
def network_of(address: str) -> str:
    """Whom an address stands for: itself, with IPv6 its /64, of which one site has as many as it likes."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if found.is_loopback:
        return LOOPBACK
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)


def _check(buckets: Buckets, name: str, message: str) -> None:
    seconds = buckets.wait(name)
    if seconds > 0:
        whole = math.ceil(seconds)
        error = TooManyRequestsError(message, hint=f"ask again in {whole} second{'' if whole == 1 else 's'}")
        error.seconds = math.ceil(seconds)
        raise error
