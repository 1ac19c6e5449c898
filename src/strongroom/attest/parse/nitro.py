"""Parse the attestation documents of AWS Nitro enclaves: bytes become typed values, and nothing is trusted.

The document is a COSE_Sign1 (RFC 9052, section 4.2), tagged or not, as "Nitro Enclaves Attestation Process" has it
(aws/aws-nitro-enclaves-nsm-api, docs/attestation_process.md), whose section numbers stand below. What enclaves receive
differs from it in two places: what an enclave did not put in is null, and since 2025 the payload is a map of indefinite
length. Of its two limits for `user_data` and `nonce` the hardware knows the larger one, 1024 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.attest.parse.cbor import CBOR, byte_string, parse_cbor
from strongroom.errors import FormatError

# Section 3.1 allows the payload 16384 bytes; the rest needs fewer than 128.
MAX_DOCUMENT = 16 * 1024 + 128
SIGNATURE_SIZE = 96

# Section 3.1: tag 18; the protected header says ES384 and nothing else.
_SIGN1_TAG = b"\xd2"
_PROTECTED = bytes.fromhex("a1013822")
_CONTEXT = b"\x84\x6aSignature1"

# Section 3.2.2: what the payload holds; the last three may be absent.
_REQUIRED = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
_OPTIONAL = ("public_key", "user_data", "nonce")
_MAX_OPTIONAL = 1024
_MAX_MODULE_ID = 256
_PCR_INDICES = range(32)
_PCR_SIZES = (32, 48, 64)
_CERTIFICATE_SIZES = range(1, 1025)
_MAX_BUNDLE = 8
# Milliseconds: the end of the year 9999, where X.509's dates end.
_MAX_TIMESTAMP = 253402300799999


@dataclass(frozen=True)
class NitroDocument:
    """An attestation document. Nothing here is authenticated yet.

    Attributes:
        module_id: the instance and the enclave in it.
        timestamp: when the document was made, in milliseconds since 1970.
        pcrs: by index. 0 is the enclave's image, 1 its kernel and boot, 2 its program, 3 the instance's role, 4 the
            instance, 8 the certificate that signed the image; the others are the enclave's own to extend.
        certificate: DER, of the key that signed.
        cabundle: DER, the root first.
        public_key, user_data, nonce: what the enclave put in; None if it did not.
        signature: r || s, big-endian.
        signed: the bytes that it signs (RFC 9052, section 4.4).
    """

    module_id: str
    timestamp: int
    pcrs: Mapping[int, bytes]
    certificate: bytes = field(repr=False)
    cabundle: tuple[bytes, ...] = field(repr=False)
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    signature: bytes = field(repr=False)
    signed: bytes = field(repr=False)


def parse_nitro(raw: bytes) -> NitroDocument:
    """Parse a document of at most 16 KiB of payload.

    Raises:
        FormatError: it is something else, is cut short, or has a byte more than its parts.
    """
    if len(raw) > MAX_DOCUMENT:
        raise FormatError(f"nitro document: {len(raw)} bytes, wanted at most {MAX_DOCUMENT}")
    sign1 = parse_cbor(raw.removeprefix(_SIGN1_TAG), "nitro document")
    if not isinstance(sign1, list) or len(sign1) != 4:
        raise FormatError("nitro document: wanted a COSE_Sign1, which is an array of four")
    protected, unprotected, payload, signature = sign1
    if protected != _PROTECTED:
        raise FormatError("nitro document: protected header: wanted ES384 alone, a1013822")
    if unprotected != {} or not isinstance(unprotected, dict):
        raise FormatError("nitro document: unprotected header: wanted an empty map")
    if not isinstance(payload, bytes) or not isinstance(signature, bytes) or len(signature) != SIGNATURE_SIZE:
        raise FormatError(f"nitro document: wanted a payload and a signature of {SIGNATURE_SIZE} bytes")
    fields = parse_cbor(payload, "nitro payload", indefinite_maps=True)
    if isinstance(fields, dict) and "nitrotpm_pcrs" in fields:
        raise FormatError("nitro payload: got a NitroTPM's, which is an instance's and no enclave's")
    if not isinstance(fields, dict) or not _REQUIRED <= set(fields) <= _REQUIRED | set(_OPTIONAL):
        raise FormatError(
            f"nitro payload: wanted a map of {', '.join(sorted(_REQUIRED))}, and perhaps {', '.join(_OPTIONAL)}"
        )
    if fields["digest"] != "SHA384":
        raise FormatError(f"nitro payload: got digest {str(fields['digest'])[:20]!r}, wanted 'SHA384'")
    module_id, timestamp = fields["module_id"], fields["timestamp"]
    if not isinstance(module_id, str) or not 0 < len(module_id) <= _MAX_MODULE_ID or not module_id.isprintable():
        raise FormatError(f"nitro payload: module_id: wanted 1 to {_MAX_MODULE_ID} printable characters")
    if type(timestamp) is not int or not 0 < timestamp <= _MAX_TIMESTAMP:
        raise FormatError("nitro payload: timestamp: wanted milliseconds since 1970")
    cabundle = fields["cabundle"]
    if not isinstance(cabundle, list) or not 1 <= len(cabundle) <= _MAX_BUNDLE:
        raise FormatError(f"nitro payload: cabundle: wanted a list of 1 to {_MAX_BUNDLE} certificates")
    public_key, user_data, nonce = (_optional(name, fields.get(name)) for name in _OPTIONAL)
    return NitroDocument(
        module_id=module_id,
        timestamp=timestamp,
        pcrs=_pcrs(fields["pcrs"]),
        certificate=_certificate("certificate", fields["certificate"]),
        cabundle=tuple(_certificate("cabundle", each) for each in cabundle),
        public_key=public_key,
        user_data=user_data,
        nonce=nonce,
        signature=signature,
        signed=_CONTEXT + byte_string(_PROTECTED) + byte_string(b"") + byte_string(payload),
    )


def _pcrs(value: CBOR) -> dict[int, bytes]:
    if not isinstance(value, dict) or 0 not in value or len(value) > len(_PCR_INDICES):
        raise FormatError(f"nitro payload: pcrs: wanted a map of at most {len(_PCR_INDICES)}, PCR 0 among them")
    pcrs = {}
    for index, pcr in value.items():
        if not isinstance(index, int) or index not in _PCR_INDICES:
            raise FormatError(f"nitro payload: pcrs: got index {str(index)[:20]!r}, wanted 0 to {_PCR_INDICES[-1]}")
        if not isinstance(pcr, bytes) or len(pcr) not in _PCR_SIZES:
            raise FormatError(f"nitro payload: pcr {index}: wanted {', '.join(map(str, _PCR_SIZES))} bytes")
        pcrs[index] = pcr
    return dict(sorted(pcrs.items()))


def _certificate(name: str, value: CBOR) -> bytes:
    if not isinstance(value, bytes) or len(value) not in _CERTIFICATE_SIZES:
        raise FormatError(f"nitro payload: {name}: wanted DER of 1 to {_CERTIFICATE_SIZES[-1]} bytes")
    return value


def _optional(name: str, value: CBOR) -> bytes | None:
    if value is not None and (not isinstance(value, bytes) or len(value) > _MAX_OPTIONAL):
        raise FormatError(f"nitro payload: {name}: wanted at most {_MAX_OPTIONAL} bytes, or null")
    return value
