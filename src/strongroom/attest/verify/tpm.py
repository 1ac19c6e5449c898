"""Verify evidence from a TPM 2.0.

1. Parse it. The attestation key's public area, where it is shown, is of a key that stays in its TPM and signs only
   what the TPM itself says.
2. Trust that key: the caller enrolled it, or has a root that certified it as an attestation key: by an extended key
   usage that says so; where there is none at all, as a key that makes signatures and does nothing else.
3. The key signed the quote.
4. The registers shown are those quoted, by their digest. The strongest bank is what is measured.
5. The event log, if there is one, replays to every quoted register that it mentions, in that bank. The names of its
   events are what the host wrote: nobody signs them.

Nobody signs a public area. That the key is what it says, enrolment made sure (`attest.enrolment`): by then no other
public area can belong to the same key, and here the key alone counts.

The firmware version is claimed as `tcb` only for a primary key of the endorsement or platform hierarchy, as the quote's
qualified name of it shows: for other keys a TPM obscures it (part 1, section 36.7).
"""

from __future__ import annotations

from collections.abc import Mapping

from strongroom.attest.claims import Claims, pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.attest.parse.event_log import NO_ACTION, Event, parse_event_log, replay, secure_boot
from strongroom.attest.parse.launched import PROGRAM_PCR, programs
from strongroom.attest.parse.tpm import (
    DIGEST_SIZES,
    TpmEvidence,
    TpmQuote,
    parse_quote,
    parse_signature,
    parse_tpm,
)
from strongroom.attest.parse.tpm_key import TpmPublic, parse_public
from strongroom.attest.verify.anchors import Anchors
from strongroom.attest.verify.revocation import issuers, revocation
from strongroom.crypto import digest, equal
from strongroom.crypto.chains import VendorCertificate, VendorKey, verify_chain
from strongroom.crypto.tpm import AK_USAGE
from strongroom.errors import AttestationError, VerificationError

SHA1_BANK, RESETTABLE = "pcr-sha1", "pcr-resettable"
"""Weaknesses: the registers are SHA-1 digests alone; all of them are such as any program can reset."""

BANKS = ("sha512", "sha384", "sha256", "sha3_512", "sha3_384", "sha3_256", "sha1")
"""Strongest first: the first that is there is measured. SM3 is not there: not every OpenSSL has it."""

# Part 2, section 7.4: TPM_RH_ENDORSEMENT and TPM_RH_PLATFORM.
_HIERARCHIES = {"endorsement": bytes.fromhex("4000000b"), "platform": bytes.fromhex("4000000c")}
_AK_HAS = frozenset({"fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "sign"})
# RFC 5280, section 4.2.1: subject alternative name, certificate policies (any will do), extended key usage (read here).
_KNOWN_CRITICAL = ("2.5.29.17", "2.5.29.32", "2.5.29.37")
# PC Client Platform TPM Profile 1.05, section 4.6.2: PCR 16 is for debugging, 23 for applications.
_RESETTABLE = {16, 23}
_MAX_EVENTS_TOLD, _MAX_WORDS = 128, 200

# The PCR digest is by the digest of the signature's scheme (part 3, 18.4: TPM2_Quote); its length tells which it is.
_BY_SIZE = {32: "sha256", 48: "sha384", 64: "sha512"}


def verify_tpm(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of a `tpm` quote, by the steps at the top of this file."""
    # 1
    shown = parse_tpm(evidence.quote)
    public = parse_public(shown.public) if shown.public else None
    if public is not None:
        check_attestation_key(public)
    key = VendorKey(shown.spki) if public is None else public.key
    # 2
    vendor_root, unrevoked = _trust(key, parse_endorsements(evidence.endorsements), anchors, now)
    # 3
    quote = verify_quote(shown.message, shown.signature, key)
    # 4
    check_pcrs(quote, shown.pcrs)
    bank = next((bank for bank in BANKS if shown.pcrs.get(bank)), None)
    if bank is None:
        raise VerificationError(f"pcrs: got banks {', '.join(shown.pcrs)}, wanted one of {', '.join(BANKS)}")
    # 5
    events = check_event_log(shown.event_log, bank, shown.pcrs[bank]) if shown.event_log else ()
    hierarchy = _hierarchy(public, quote)
    return Claims(
        tee=evidence.tee,
        measurement=pcrs_measurement(bank, shown.pcrs[bank]),
        registers=_registers(shown, bank),
        report_data=quote.extra_data,
        debug=False,
        vendor_root=vendor_root,
        hardware_id=key.fingerprint.removeprefix("sha256:"),
        tcb={"firmware": quote.firmware_version >> 32} if hierarchy else {},
        weaknesses=weaknesses(bank, shown.pcrs[bank]),
        revocation=unrevoked,
        attributes={
            "bank": bank,
            "ak_public_area": public is not None,
            "hierarchy": hierarchy or "not told",
            "clock": quote.clock,
            "clock_safe": quote.safe,
            "reset_count": quote.reset_count,
            "restart_count": quote.restart_count,
            "firmware_version": f"{quote.firmware_version:016x}",
            **_told(events, bank),
        },
        programs=_programs(events, bank, shown),
    )


def _programs(events: tuple[Event, ...], bank: str, shown: TpmEvidence) -> tuple[str, ...] | None:
    """The programs that were measured; None where the log does not explain their register."""
    value = shown.pcrs[bank].get(PROGRAM_PCR)
    if value is None or not shown.event_log:
        return None
    found = programs(events, PROGRAM_PCR, bank)
    return found if found or not any(value) else None


def check_attestation_key(public: TpmPublic) -> None:
    """Check that a public area is that of a key which signs what its TPM says, and nothing else.

    Raises:
        VerificationError: it can leave its TPM, came from outside, signs anything, or does not sign.
    """
    lacks = _AK_HAS - public.attributes
    if lacks or "decrypt" in public.attributes:
        raise VerificationError(
            f"attestation key: {'lacks ' + ', '.join(sorted(lacks)) if lacks else 'decrypts'}, "
            f"wanted {', '.join(sorted(_AK_HAS))} and not decrypt",
            hint="a key that can leave its TPM, or signs anything, vouches for nothing",
        )


def _trust(key: VendorKey, endorsements: Endorsements, anchors: Anchors, now: int) -> tuple[str, str]:
    """Whose word the key is, its own fingerprint if the caller enrolled it, else its root's; and what is known of
    revocation."""
    if key in anchors.tpm_keys or key.fingerprint in anchors.named:
        return key.fingerprint, "none: the key itself is enrolled, without certificates"
    chain = endorsements.certificates
    if not chain:
        raise VerificationError(
            f"attestation key: got {key.fingerprint}, which is not enrolled, and no certificate for it",
            hint="name that key (--tpm-key, or its digest in a policy's tpm_roots), or give its certificate with "
            "--endorsements and the root of that with --root or tpm_roots",
        )
    if chain[0].key != key:
        raise VerificationError("attestation key: the certificate shown is for another key")
    usages = chain[0].usages
    if not (chain[0].only_signs if usages is None else AK_USAGE in usages and chain[0].may_sign):
        raise VerificationError(
            f"attestation key: its certificate is not for attestation keys, wanted the usage {AK_USAGE}, or none and a "
            "key for signatures alone"
        )
    root = follow(endorsements, (*anchors.tpm, *anchors.brought(chain)), now)
    return root.fingerprint, revocation(endorsements.revocation_lists, issuers(chain, root))


def follow(endorsements: Endorsements, roots: tuple[VendorCertificate, ...], now: int) -> VendorCertificate:
    """The one of `roots` that the chain of certificates, leaf first, ends at.

    Raises:
        VerificationError: it ends at none of them.
        ExpiredError: a certificate or a revocation list is not valid at `now`.
    """
    last = endorsements.certificates[-1]
    failure: AttestationError | None = None
    for root in roots:
        if last == root or last.issuer == root.subject:
            try:
                verify_chain(
                    endorsements.certificates,
                    root,
                    now=now,
                    revocation_lists=endorsements.revocation_lists,
                    known_critical=_KNOWN_CRITICAL,
                )
            except AttestationError as error:  # a root may share its name with another
                failure = error
            else:
                return root
    raise failure or VerificationError(
        f"certificate chain: ends at {last.issuer!r:.120}, wanted one of {len(roots)} roots of TPMs",
        hint="name the root of those who make the TPM, or who certify its key: --root, or tpm_roots in a policy",
    )


def _hierarchy(public: TpmPublic | None, quote: TpmQuote) -> str | None:
    for name, handle in _HIERARCHIES.items():
        if public is not None and quote.signer == public.qualified_name(handle):
            return name
    return None


def weaknesses(bank: str, pcrs: Mapping[int, bytes]) -> tuple[str, ...]:
    """Those of a quote of these registers, by index."""
    found = {SHA1_BANK: bank == "sha1", RESETTABLE: not pcrs.keys() - _RESETTABLE}
    return tuple(name for name, there in found.items() if there)


def _registers(shown: TpmEvidence, measured: str) -> dict[str, str]:
    """``pcr7`` is of the bank that is measured, ``pcr7-sha1`` of another."""
    return {
        f"pcr{index}" + ("" if bank == measured else f"-{bank}"): value.hex()
        for bank, values in sorted(shown.pcrs.items(), key=lambda each: each[0] != measured)
        for index, value in sorted(values.items())
    }


def check_event_log(log: bytes, bank: str, pcrs: Mapping[int, bytes]) -> tuple[Event, ...]:
    """The events of a log that went into these registers, in their order, if it replays to each that it mentions.

    Raises:
        FormatError: it does not parse, or has no digests of that bank.
        VerificationError: it replays to another value.
    """
    events = parse_event_log(log)
    for index, value in sorted(replay(events, bank).items()):
        if index in pcrs and not equal(value, pcrs[index]):
            raise VerificationError(
                f"event log: replays pcr {index} to {value.hex()[:16]}..., quoted is {pcrs[index].hex()[:16]}...",
                hint="the log was changed, or something extended the register without logging it",
            )
    return tuple(event for event in events if event.pcr in pcrs and event.kind != NO_ACTION)


def _told(events: tuple[Event, ...], bank: str) -> dict[str, str | int | bool]:
    """What the log says, as far as it was digested; of the rest the digests."""
    if not events:
        return {}
    told: dict[str, str | int | bool] = {"events": len(events)}
    state = secure_boot(events, bank)
    if state is not None:
        told["secure_boot"] = state
    for number, event in enumerate(events[:_MAX_EVENTS_TOLD]):
        said = event.words(bank) or f"{bank}:{event.digests[bank].hex()}"
        told[f"event{number:03}"] = f"pcr{event.pcr} {event.name} {said}"[:_MAX_WORDS]
    return told


def verify_quote(message: bytes, signature: bytes, key: VendorKey) -> TpmQuote:
    """The quote in `message`, if `key` signed it. `signature` is a TPMT_SIGNATURE.

    Raises:
        FormatError: message or signature do not parse.
        VerificationError: the key did not sign it.
    """
    quote, parsed = parse_quote(message), parse_signature(signature)
    if parsed.scheme == "ecdsa":
        key.verify_ecdsa(parsed.r, parsed.s, message, algorithm=parsed.algorithm)
    else:
        key.verify_rsa(parsed.rsa, message, algorithm=parsed.algorithm, pss=parsed.scheme == "rsapss")
    return quote


def verify_bare_quote(message: bytes, signature: bytes, key: VendorKey) -> TpmQuote:
    """As `verify_quote`, for an RSA signature without a TPMT_SIGNATURE around it: PKCS #1 v1.5 over SHA-256."""
    quote = parse_quote(message)
    key.verify_rsa(signature, message, algorithm="sha256")
    return quote


def check_pcrs(quote: TpmQuote, pcrs: Mapping[str, Mapping[int, bytes]]) -> None:
    """Check that these are the quoted registers, all and no others, by bank and index.

    Raises:
        VerificationError: one is missing, not quoted or of another size, they are not what was digested, or there are
            none.
    """
    given = {(bank, index) for bank, values in pcrs.items() for index in values}
    quoted = [(bank, index) for bank, indices in quote.selection.items() for index in indices]
    if not quoted or given != set(quoted):
        raise VerificationError(f"pcrs: got {_names(given)}, wanted the quoted ones, {_names(set(quoted))}")
    for bank, index in quoted:
        if len(pcrs[bank][index]) != DIGEST_SIZES[bank]:
            raise VerificationError(f"pcr {bank}:{index}: {len(pcrs[bank][index])} bytes, wanted {DIGEST_SIZES[bank]}")
    algorithm = _BY_SIZE.get(len(quote.pcr_digest))
    if algorithm is None:
        raise VerificationError(f"PCR digest: {len(quote.pcr_digest)} bytes, wanted 32, 48 or 64")
    if not equal(digest(*(pcrs[bank][index] for bank, index in quoted), algorithm=algorithm), quote.pcr_digest):
        raise VerificationError("pcrs: their digest is not the one that was quoted")


def _names(pcrs: set[tuple[str, int]]) -> str:
    banks: dict[str, list[str]] = {}
    for bank, index in sorted(pcrs):
        banks.setdefault(bank, []).append(str(index))
    return " and ".join(f"{bank}:{','.join(indices)}" for bank, indices in banks.items())[:200] or "none"
