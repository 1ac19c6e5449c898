"""How a client has a CAS prove what it is, on each of its connections, before anything else goes over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strongroom.attest.reference import ReferenceValues
from strongroom.cas.client.own_evidence import PATH, CasAppraisal, ask_and_appraise
from strongroom.cas.log.head import Ask, Greeting
from strongroom.channel import TlsStream


def appraise_first(
    reference: ReferenceValues,
    cas_root: str | None,
    *,
    clock: Callable[[], float] = time.time,
    tell: Callable[[CasAppraisal], None] = lambda appraisal: None,
) -> Greeting:
    """Refuse a CAS whose evidence is not what the reference values accept.

    Args:
        cas_root: the root that was pinned; None takes the one that the CAS shows, which the evidence is then over.
        tell: called with what was appraised.
    """

    def greet(stream: TlsStream, ask: Ask) -> None:
        def with_nonce(nonce: bytes) -> Mapping[str, Any]:
            return ask(PATH, {"nonce": nonce.hex()})

        tell(ask_and_appraise(stream, with_nonce, reference, cas_root=cas_root, now=int(clock())))

    return greet


def greetings(reference: ReferenceValues | None, cas_root: str, *, clock: Callable[[], float]) -> Sequence[Greeting]:
    """`appraise_first`, where there is a reference."""
    return [] if reference is None else [appraise_first(reference, cas_root, clock=clock)]
