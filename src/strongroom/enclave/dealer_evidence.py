"""How a dealer in an enclave convinces a server before it deals: the first bytes of their channel (docs/spec/mpc.md).

1. The server sends a nonce that nobody has seen, and which server it is.
2. The dealer answers with evidence of kind session: bound to that nonce, to this very channel, and to claims that say
   what it is, for which server, and which key the channel showed.
3. The server verifies and appraises, and says what it found.

No secret passes. What follows on the channel is the computation, as with any other dealer.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from contextlib import suppress

from strongroom.attest.appraise import AttestationResult, ReferenceValues, appraise
from strongroom.attest.attester import Attester
from strongroom.attest.binding import EXPORTER_LABEL, FRESH_SIZE, Kind, canonical, parse_canonical, report_data
from strongroom.attest.evidence import MAX_ENDORSEMENTS, MAX_QUOTE, Evidence
from strongroom.attest.verify import verify
from strongroom.channel import TlsStream
from strongroom.crypto import random_bytes
from strongroom.crypto.encoding import base64_bytes
from strongroom.errors import (
    AttestationError,
    BindingError,
    ChannelError,
    FormatError,
    PeerIdentityError,
    StrongroomError,
    VerificationError,
    from_wire,
)
from strongroom.mpc.peer import NAMES

Complete = Callable[[Evidence, int], Evidence]
"""From evidence, and the moment in seconds since 1970, to that evidence with endorsements."""

ROLE = "mpc dealer"

_HEADER = struct.Struct("<4sBB2xI")
_MAGIC = b"SRA1"
_CHALLENGE, _EVIDENCE, _ACCEPTED, _REFUSED = 1, 2, 3, 4
_CAPS = {
    _CHALLENGE: FRESH_SIZE,
    _EVIDENCE: 2 * (MAX_QUOTE + MAX_ENDORSEMENTS),  # base64, and its claims
    _ACCEPTED: 0,
    _REFUSED: 4096,
}


def show(stream: TlsStream, server: int, attester: Attester, key: str) -> None:
    """The dealer's part, on a channel that it showed the key with the fingerprint `key` on.

    Raises:
        PeerIdentityError: another server than `server` is there.
        AttestationError: it refused; the class says why.
        FormatError, ChannelError: it takes no dealer in an enclave.
    """
    rank, nonce = _receive(stream, _CHALLENGE)
    if rank != server or len(nonce) != FRESH_SIZE:
        raise PeerIdentityError(f"{NAMES[server]}: says that it is party {rank}")
    claims = canonical(_claims(server, key))
    binder = stream.export(EXPORTER_LABEL, ROLE.encode())
    evidence = attester.evidence(report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims))
    answer = {"claims": base64.b64encode(claims).decode(), "evidence": evidence.to_wire()}
    _send(stream, _EVIDENCE, server, json.dumps(answer, separators=(",", ":")).encode())
    _receive(stream, _ACCEPTED)


def appraise_dealer(
    stream: TlsStream,
    server: int,
    reference: ReferenceValues,
    *,
    now: Callable[[], int],
    complete: Complete | None = None,
) -> AttestationResult:
    """The server's part: decide whether the dealer at the other end is in an enclave that `reference` accepts.

    Args:
        stream: a channel to whoever says that it is the dealer.
        server: this server's rank.
        now: seconds since 1970, by this server's clock.
        complete: gives evidence its vendor's endorsements; None leaves it with those that the dealer brings.

    Raises:
        AttestationError: it does not convince; the subclass says why. The dealer is told.
        ChannelError: it went away.
    """
    nonce = random_bytes(FRESH_SIZE)
    _send(stream, _CHALLENGE, server, nonce)
    try:
        result = _appraised(stream, server, nonce, reference, now, complete)
    except ChannelError:
        raise
    except StrongroomError as error:
        with suppress(ChannelError):  # it may be gone already
            _send(stream, _REFUSED, server, _refusal(error))
        raise
    _send(stream, _ACCEPTED, server, b"")
    return result


def _appraised(
    stream: TlsStream,
    server: int,
    nonce: bytes,
    reference: ReferenceValues,
    now: Callable[[], int],
    complete: Complete | None,
) -> AttestationResult:
    try:
        _, answer = _receive(stream, _EVIDENCE)
        claims, evidence = _parse(answer)
        moment = now()
        if complete is not None:
            evidence = complete(evidence, moment)
        verified = verify(evidence, now=moment, anchors=reference.anchors)
        binder = stream.export(EXPORTER_LABEL, ROLE.encode())
        bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims)
        result = appraise(verified, reference, expected_report_data=bound, now=moment)
        wanted = _claims(server, stream.peer[0].key.fingerprint)
        if (got := parse_canonical(claims)) != wanted:
            name = next((name for name in wanted if got.get(name) != wanted[name]), "more fields")
            raise BindingError(f"claims: got {name} {got.get(name)!r:.100}, wanted {wanted.get(name, 'none')!r}")
    except FormatError as error:
        raise VerificationError(f"dealer: {error.message}", hint=error.hint) from error
    return result


def _claims(server: int, key: str) -> dict[str, str]:
    return {"role": ROLE, "server": NAMES[server], "spki": key}


def _parse(answer: bytes) -> tuple[bytes, Evidence]:
    try:
        fields = json.loads(answer)
        if set(fields) != {"claims", "evidence"}:
            raise ValueError
        claims = base64_bytes(fields["claims"])
    except (ValueError, TypeError, RecursionError):
        raise FormatError("evidence: wanted an object of exactly claims and evidence") from None
    return claims, Evidence.from_wire(fields["evidence"])


def _refusal(error: StrongroomError) -> bytes:
    wire = error.to_wire()
    raw = json.dumps(wire).encode()
    return raw if len(raw) <= _CAPS[_REFUSED] else json.dumps(AttestationError("refused").to_wire()).encode()


def _send(stream: TlsStream, kind: int, server: int, payload: bytes) -> None:
    stream.send(_HEADER.pack(_MAGIC, kind, server, len(payload)) + payload)


def _receive(stream: TlsStream, wanted: int) -> tuple[int, bytes]:
    """The server's rank and the payload of a message of that kind."""
    header = _exactly(stream, _HEADER.size)
    magic, kind, server, size = _HEADER.unpack(header)
    if magic != _MAGIC or header[6:8] != bytes(2) or kind not in (wanted, _REFUSED):
        raise FormatError("peer: sent something else than a dealer's evidence asks for, or is")
    if size > _CAPS[kind]:
        raise FormatError(f"message {kind}: {size} bytes, wanted at most {_CAPS[kind]}")
    payload = _exactly(stream, size)
    if kind == _REFUSED:
        if wanted == _EVIDENCE:
            raise FormatError("dealer: sent a refusal")
        raise _error_of(payload)
    return server, payload


def _error_of(payload: bytes) -> StrongroomError:
    try:
        return from_wire(json.loads(payload))
    except (ValueError, AttributeError, RecursionError):
        return AttestationError("server: refused, and did not say why")


def _exactly(stream: TlsStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            raise ChannelError("peer: closed the connection", hint="see why in its own messages")
        data += part
    return bytes(data)
