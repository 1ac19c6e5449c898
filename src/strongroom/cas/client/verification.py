"""Appraise a CAS by its own evidence, and learn the root to pin."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.attest.reference import ReferenceValues
from strongroom.cas.client.address import MAX_ANSWER, TIMEOUT, cas_expectation, dial_cas, split_address
from strongroom.cas.client.appraisal import appraise_first
from strongroom.cas.client.own_evidence import CasAppraisal
from strongroom.cas.log.head import CasHttp, MemoryHead
from strongroom.crypto import Certificate


def verify_cas(url: str, reference: ReferenceValues, *, cas_root: str | None = None) -> CasAppraisal:
    """Appraise the CAS at an address.

    Args:
        cas_root: the root that it must have; without one whichever it shows, which the evidence vouches for.

    Raises:
        CasError: it shows no evidence.
        AttestationError: its evidence does not convince; the class says why.
        PeerIdentityError: it has another root, or is no CAS.
    """
    host, port = split_address(url)
    found: list[CasAppraisal] = []
    with CasHttp(
        lambda: dial_cas(host, port),
        host=host,
        expect=cas_expectation(cas_root) if cas_root else _any_cas,
        heads=MemoryHead(),
        max_body=MAX_ANSWER,
        timeout=TIMEOUT,
        greetings=[appraise_first(reference, cas_root, tell=found.append)],
    ) as http:
        http.connect()
    return found[0]


def _any_cas(chain: Sequence[Certificate]) -> None:
    """A CAS, under whatever root it shows last."""
    cas_expectation(chain[-1].key.fingerprint)(chain)
