"""Signed documents for everybody: DSSE envelopes (v1.0), ECDSA P-256 with SHA-256, with the signer's chain beside.

https://github.com/secure-systems-lab/dsse: what is signed is type and bytes of the payload, so nothing of it has to be
parsed, or put into a canonical form, before the signature is checked. `token.py` signs what is short and dated.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from strongroom.attest.binding import MAX_CANONICAL
from strongroom.crypto import Certificate, PublicKey, SigningKey
from strongroom.errors import FormatError, VerificationError

MAX_ENVELOPE = 2 * MAX_CANONICAL
_MAX_CERTIFICATE = 8 * 1024
_STANDARD = str.maketrans("-_", "+/")


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: what is signed (DSSE protocol, "Signature Definition")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """A payload with one signature, not trusted before `verify`.

    Attributes:
        chain: the signer's leaf and its root, in the signature's member `x5c` (the form of RFC 7515, section 4.1.6).
    """

    payload_type: str
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    chain: tuple[Certificate, Certificate] = field(repr=False)

    @classmethod
    def sign(cls, key: SigningKey, chain: Sequence[Certificate], payload_type: str, payload: bytes) -> Envelope:
        """Raises FormatError unless `chain` is a leaf and a root."""
        if len(chain) != 2:
            raise FormatError(f"envelope: a chain of {len(chain)} certificates, wanted leaf and root")
        return cls(payload_type, payload, key.sign(pae(payload_type, payload)), (chain[0], chain[1]))

    def verify(self, key: PublicKey, payload_type: str) -> bytes:
        """The payload, if it is of that type and `key` signed both.

        Raises:
            VerificationError: it is not, or did not.
        """
        key.verify(self.signature, pae(self.payload_type, self.payload))
        if self.payload_type != payload_type:
            raise VerificationError(f"envelope: of type {self.payload_type[:100]!r}, wanted {payload_type}")
        return self.payload

    def to_bytes(self) -> bytes:
        """The envelope as a JSON document with a line's end."""
        signature = {
            "keyid": self.chain[0].key.fingerprint,
            "sig": _encode(self.signature),
            "x5c": [_encode(certificate.der) for certificate in self.chain],
        }
        document = {"payloadType": self.payload_type, "payload": _encode(self.payload), "signatures": [signature]}
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, raw: bytes) -> Envelope:
        """The envelope that `to_bytes` wrote. Members that it does not write are passed over.

        Raises:
            FormatError: too long, or not JSON of that form, with exactly one signature.
        """
        if len(raw) > MAX_ENVELOPE:
            raise FormatError(f"envelope: {len(raw)} bytes, wanted at most {MAX_ENVELOPE}")
        try:
            document = json.loads(raw)
            [signature] = document["signatures"]
            kind, payload, signed = document["payloadType"], document["payload"], signature["sig"]
            leaf, root = signature["x5c"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise FormatError("envelope: not a DSSE envelope with one signature and its chain") from None
        if not isinstance(kind, str) or not kind.isascii():
            raise FormatError("envelope: payloadType, wanted ASCII")
        certificates = [Certificate(_decode(der, "x5c", _MAX_CERTIFICATE)) for der in (leaf, root)]
        return cls(
            kind,
            _decode(payload, "payload", MAX_CANONICAL),
            _decode(signed, "sig", 256),
            (certificates[0], certificates[1]),
        )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: object, what: str, cap: int) -> bytes:
    """Standard or URL-safe base64, as DSSE has a verifier take either."""
    try:
        raw = base64.b64decode(str(text).translate(_STANDARD), validate=True)
    except (ValueError, binascii.Error):
        raise FormatError(f"envelope: {what} is not base64") from None
    if len(raw) > cap:
        raise FormatError(f"envelope: {what} has {len(raw)} bytes, wanted at most {cap}")
    return raw
