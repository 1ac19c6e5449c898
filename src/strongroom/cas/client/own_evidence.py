"""The CAS's own evidence, of kind 1: how a client appraises it before it trusts the CAS with anything.

1. The claims are of the role `cas`, and of no other form.
2. They name the key that this very TLS connection was made with, and the root under which that key is certified: so
   evidence of another machine, or of another CAS, is of no use here.
3. The report data is that of the client's nonce, this connection's exporter and the claims.
4. The evidence is its vendor's, and what the reference values accept.

`api/own_evidence.py` is the other end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.attest.appraise import AttestationResult, appraise
from strongroom.attest.binding import EXPORTER_LABEL, FRESH_SIZE, Kind, parse_canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify import verify
from strongroom.cas.wire import bytes_field
from strongroom.channel import TlsStream
from strongroom.crypto import random_bytes
from strongroom.errors import BindingError, CasError, FormatError, UnsupportedPlatformError

ROLE = "cas"
PATH = "/v1/evidence"
CLAIMS = frozenset({"role", "spki", "hpke", "cas_root", "policy", "policy_digest", "restart", "unseal"})


@dataclass(frozen=True)
class CasAppraisal:
    """A CAS whose evidence was verified and is what was wanted.

    Attributes:
        cas_root: the root to pin.
        policy, policy_digest: of the CAS itself; empty if it has none.
        restart: its start mode.
        unseal: how its root secret is kept from this start on; not who knows it, which evidence cannot say.
    """

    result: AttestationResult
    cas_root: str
    policy: str
    policy_digest: str
    restart: str
    unseal: str


def appraise_cas(
    answer: Mapping[str, Any],
    reference: ReferenceValues,
    *,
    nonce: bytes,
    binder: bytes,
    spki: str,
    cas_root: str,
    now: int,
) -> CasAppraisal:
    """Appraise what a CAS answered to `nonce`, by the steps at the top of this file.

    Args:
        binder: the connection's exporter, with the role as its context.
        spki: the fingerprint of the key that it was made with.
        cas_root: the fingerprint of the root that certified that key, on this connection.

    Raises:
        AttestationError: the evidence does not convince; the class says why.
        FormatError: the answer is malformed.
    """
    # 1
    raw = bytes_field(answer, "claims")
    claims = parse_canonical(raw)
    if set(claims) != CLAIMS or not all(isinstance(value, str) for value in claims.values()):
        raise FormatError(f"claims: got {', '.join(sorted(claims))[:200]}, wanted {', '.join(sorted(CLAIMS))}")
    wire = answer.get("evidence")
    if not isinstance(wire, Mapping):
        raise FormatError("evidence: missing")
    # 2
    for field, wanted in {"role": ROLE, "spki": spki, "cas_root": cas_root}.items():
        if claims[field] != wanted:
            raise BindingError(
                f"CAS evidence: claims.{field}: got {str(claims[field])[:100]}, wanted {wanted}",
                hint="the evidence is of another CAS, or of something else: do not go on",
            )
    # 3, 4
    expected = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=raw)
    vouched = verify(Evidence.from_wire(wire), now=now, anchors=reference.anchors)
    result = appraise(vouched, reference, expected_report_data=expected, now=now)
    said = [str(claims[name]) for name in ("policy", "policy_digest", "restart", "unseal")]
    return CasAppraisal(result, cas_root, *said)


def ask_and_appraise(
    stream: TlsStream,
    ask: Callable[[bytes], Mapping[str, Any]],
    reference: ReferenceValues,
    *,
    cas_root: str | None,
    now: int,
) -> CasAppraisal:
    """Appraise the CAS at the other end of a connection, whose certificates were checked already.

    Args:
        cas_root: the root that was pinned; None takes the one that it showed.
        ask: sends a nonce over that very connection to `PATH`; gives the answer.

    Raises:
        CasError: the CAS shows no evidence, or failed to make it.
        AttestationError, FormatError: as `appraise_cas`.
    """
    nonce = random_bytes(FRESH_SIZE)
    try:
        answer = ask(nonce)
    except UnsupportedPlatformError as error:
        raise CasError(f"CAS: {error.message}", hint=error.hint) from None
    return appraise_cas(
        answer,
        reference,
        nonce=nonce,
        binder=stream.export(EXPORTER_LABEL, ROLE.encode()),
        spki=stream.peer[0].key.fingerprint,
        cas_root=cas_root or stream.peer[-1].key.fingerprint,
        now=now,
    )
