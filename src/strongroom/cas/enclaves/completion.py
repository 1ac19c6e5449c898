"""Evidence completed with its vendor's endorsements, before the CAS verifies it.

Attesters of SGX and TDX bring none, and whoever shows evidence would choose which to bring. So a CAS gets them itself,
by the rules of `attest/endorsements/complete.py`; `verify` trusts them no more than those that came along.

- It happens in threads of its own, few at once, each waited for within a limit: a vendor that is slow or down keeps up
  nobody whose evidence does not need it.
- Evidence that carries all that there is, such as a simulated enclave's, starts no thread.
- Whoever reaches the CAS can make it ask, with a quote seen elsewhere or a report made up; that takes those few
  threads, and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from strongroom.attest.endorsements import Bundle, Sources, bundle, endorsements_for
from strongroom.attest.evidence import Evidence
from strongroom.cas.threads import AT_ONCE, PATIENCE, Patience
from strongroom.errors import CasError, ChannelError, FormatError, StrongroomError, UsageError

# Kinds that `wants` has nothing to ask for.
_CARRY_ALL = frozenset({"simulated", "nitro", "tpm"})
_log = logging.getLogger("strongroom.cas")

Complete = Callable[[Evidence, int], Evidence]
"""From evidence, and the moment in seconds since 1970, to that evidence completed; raises as `endorsements_for`."""


def carries_less(evidence: Evidence) -> bool:
    """Whether verifying it takes what it may lack."""
    return any(each.tee not in _CARRY_ALL for each in (evidence, *evidence.devices))


class Completion:
    """Completes evidence without keeping the event loop.

    Args:
        complete: what does it, called from a thread; None completes nothing.
        at_once: how many threads, at most.
        patience: seconds to wait, for one of them to be free and for it to be done.
    """

    def __init__(self, complete: Complete | None, *, at_once: int = AT_ONCE, patience: float = PATIENCE) -> None:
        self._complete = complete
        self._patience = Patience("endorsements", at_once=at_once, seconds=patience, hint="attest again in a while")

    async def __call__(self, evidence: Evidence, now: int) -> Evidence:
        """`evidence`, and that of its devices, with endorsements.

        Raises:
            AttestationError, FormatError: as `endorsements_for`; or nothing completes it and it has none.
            CasError: they could not be had, or not in time.
        """
        if not carries_less(evidence):
            return evidence
        if self._complete is None:
            if evidence.tee in ("sgx", "tdx") and not evidence.endorsements:
                raise FormatError(
                    f"endorsements: none came with the {evidence.tee} evidence, and this CAS gets none itself",
                    hint="start the CAS with --endorsements BUNDLE or --fetch-endorsements",
                )
            return evidence
        try:
            return await self._patience.call(partial(self._complete, evidence, now))
        except (ChannelError, UsageError) as error:
            raise CasError(
                f"endorsements: {error.message}",
                hint="attest again in a while; a CAS that has a bundle (--endorsements) need ask nobody",
            ) from error


class Completer:
    """Completes evidence from a bundle's file, a cache, and the vendors' services. For several threads at once.

    Args:
        sources: cache, transport and services.
        path: the bundle, which is read again once another file is in its place; one that cannot be read leaves the last
            in use.

    Raises:
        UsageError, FormatError: there is no bundle at `path`, or none that can be read.
    """

    def __init__(self, sources: Sources, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = None if path is None else _mark(path)
        self._sources = sources if path is None else replace(sources, bundle=bundle.read(path))

    def __call__(self, evidence: Evidence, now: int) -> Evidence:
        given = self._current()
        return endorsements_for(
            evidence,
            now=now,
            bundle=given.bundle,
            cache=given.cache,
            transport=given.transport,
            services=given.services,
        )

    def _current(self) -> Sources:
        with self._lock:
            if self._path is not None and (mark := _mark(self._path)) != self._seen:
                self._seen = mark
                try:
                    self._sources = replace(self._sources, bundle=self._read(self._path))
                except StrongroomError as error:
                    _log.error("bundle of endorsements: %s; the last one stays in use", error.message)
            return self._sources

    @staticmethod
    def _read(path: Path) -> Bundle:
        found = bundle.read(path)
        _log.info("bundle of endorsements: read again, %d in it", len(found))
        return found


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What tells one file from the next in its place; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
