"""Verify the attestation documents of AWS Nitro enclaves.

1. Parse the document; the evidence has no endorsements, because the document carries its chain.
2. Follow that chain from its leaf, root first in the bundle, to Amazon's root at `now`. Leaves live three hours.
3. The leaf's key, on P-384 and for signatures, signed the document: ECDSA with SHA-384 over RFC 9052's structure.
4. The document was made while the leaf was valid.

What is not covered: the revocation lists that the certificates name (Amazon's own steps leave them out: AWS Nitro
Enclaves NSM API, "Attestation process", section 3.2.4).

The 64 bytes of report data travel in `user_data`, of which the NSM takes any bytes; a `nonce` and a `public_key`, which
other programs use, are only shown. A document has several spellings, with and without the COSE tag, and with either of
two ECDSA signatures; so its own digest identifies nothing.
"""

from __future__ import annotations

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.nitro import NitroDocument, parse_nitro
from strongroom.attest.verify.anchors import Anchors
from strongroom.crypto.chains import VendorCertificate, verify_chain
from strongroom.errors import FormatError, VerificationError

_HALF = 48


def verify_nitro(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of a Nitro enclave's document, by the steps at the top of this file."""
    # 1
    document = parse_nitro(evidence.quote)
    if evidence.endorsements:
        raise FormatError(f"endorsements: {len(evidence.endorsements)} bytes, wanted none: the document has its own")
    # 2
    leaf, *bundle = map(VendorCertificate, (document.certificate, *reversed(document.cabundle)))
    verify_chain((leaf, *bundle), anchors.nitro, now=now)
    # 3
    if leaf.key.kind != "P-384" or not leaf.may_sign:
        raise VerificationError(
            f"nitro document: signed by a key of kind {leaf.key.kind}, wanted P-384, for signatures"
        )
    r, s = (int.from_bytes(document.signature[i : i + _HALF]) for i in (0, _HALF))
    leaf.key.verify_ecdsa(r, s, document.signed, algorithm="sha384")
    # 4
    start, end = leaf.valid
    if not start <= document.timestamp // 1000 <= end:
        raise VerificationError(
            f"nitro document: made at {document.timestamp // 1000}, wanted a time at which its certificate is valid, "
            f"{start} to {end}"
        )
    return _claims(document, anchors.nitro.fingerprint)


def _claims(document: NitroDocument, root: str) -> Claims:
    attributes: dict[str, str | int | bool] = {"module_id": document.module_id}
    for name, value in (("public_key", document.public_key), ("nonce", document.nonce)):
        if value is not None:
            attributes[name] = value.hex()
    signer = document.pcrs.get(8, b"")
    return Claims(
        tee="nitro",
        measurement=document.pcrs[0].hex(),
        registers={f"pcr{index}": value.hex() for index, value in document.pcrs.items()},
        report_data=document.user_data or b"",
        # An enclave in debug mode has zeros in PCR 0 to 2 (the user guide, "Cryptographic attestation"), and no image
        # has the digest zero.
        debug=not any(document.pcrs[0]),
        vendor_root=root,
        signer=signer.hex() if any(signer) else "",
        revocation="none: Amazon wants its certificates verified without lists",
        issued_at=document.timestamp // 1000,
        attributes=attributes,
    )
