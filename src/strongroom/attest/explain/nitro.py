"""A Nitro attestation document in words. Source: as `parse/nitro.py`, and "Cryptographic attestation" of the AWS Nitro
Enclaves user guide (what each PCR measures)."""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import Field, Section, chain, moment
from strongroom.attest.parse.nitro import NitroDocument, parse_nitro

_PCRS = {
    0: "the enclave's image: the measurement",
    1: "its kernel and boot RAM disk",
    2: "its program",
    3: "the role of the instance that started it",
    4: "that instance's id",
    8: "who signed the image: the signer",
}


def explain_nitro(evidence: Evidence) -> tuple[Section, ...]:
    """The document, its registers, what the enclave put in, and its chain."""
    document = parse_nitro(evidence.quote)
    about = (
        Field("module id", document.module_id, "instance and enclave"),
        Field("made at", moment(document.timestamp / 1000), "by the hypervisor's clock"),
    )
    put_in = tuple(_put_in(document))
    certificates = chain((document.certificate, *reversed(document.cabundle)))
    signed = "signed by the leaf of the chain below"
    return (
        Section("document", about, signed),
        Section("registers", tuple(_registers(document)), signed),
        Section("from the enclave", put_in, "any bytes, which the enclave chose"),
        Section("certificates", certificates, "each signed by the next; the last is Amazon's root"),
        Section(
            "not signed",
            (
                Field("tag", "COSE tag 18 or none", "one document with both spellings"),
                Field("signature", document.signature, "ECDSA P-384 with SHA-384; (r, n - s) is as good as (r, s)"),
            ),
            "may change without a refusal; nothing of it enters the claims",
        ),
    )


def _registers(document: NitroDocument) -> Iterator[Field]:
    debug = not any(document.pcrs[0])
    for index, value in document.pcrs.items():
        meaning = _PCRS.get(index, "the enclave's own" if index > 4 else "")
        if not any(value):
            # Half of them never are anything else.
            if index not in _PCRS:
                continue
            meaning += "; ALL ZERO: A DEBUG ENCLAVE" if debug and index < 3 else "; all zero"
        yield Field(f"PCR{index}", value, meaning)


def _put_in(document: NitroDocument) -> Iterator[Field]:
    for name, value, meaning in (
        ("user data", document.user_data, "what the evidence is bound to here"),
        ("nonce", document.nonce, "other programs put the verifier's nonce here"),
        ("public key", document.public_key, "other programs put a key here"),
    ):
        yield Field(name, "none" if value is None else value, meaning)
