"""Enrol a TPM: make sure that an attestation key is in a TPM by a maker whom one trusts, and of a kind to be trusted.

A TPM's maker certifies its endorsement key, which cannot sign. So the verifier encrypts a secret to it, bound to the
attestation key's name; only the TPM that holds both keys gives it back (TPM 2.0 part 1, section 24).

1. The chain of the endorsement key's certificate ends at one of the verifier's roots, and is for endorsement keys.
2. The endorsement key shown has that certificate's key, and is a decryption key that a TPM keeps.
3. The attestation key shown is a signing key that a TPM keeps, and signs its TPM's word only.
4. The answer is the secret.

What a verifier keeps is `EnrolledKey`: its key goes to `Anchors.tpm_keys`, or it gets a certificate (`certify`) and the
authority's own goes to `Anchors.tpm`. Nothing here reads a clock, a network or a file.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from strongroom.attest.binding import JSON, canonical, parse_canonical
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.attest.parse.tpm import MAX_PUBLIC, hex_bytes
from strongroom.attest.parse.tpm_key import TpmPublic, parse_public
from strongroom.attest.verify.tpm import check_attestation_key, follow
from strongroom.crypto import CertificateAuthority, equal, random_bytes
from strongroom.crypto.chains import VendorCertificate, VendorKey
from strongroom.crypto.tpm import EK_USAGE, certify_ak, make_credential
from strongroom.errors import FormatError, VerificationError

SECRET_SIZE = 32
_MAX_REQUEST = 256 * 1024
_MAX_CREDENTIAL = 1024
_EK_HAS = frozenset({"fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "decrypt"})


@dataclass(frozen=True)
class EnrolmentRequest:
    """What a TPM shows of itself.

    Attributes:
        endorsements: the endorsement key's certificate, those above it, and revocation lists.
        ek_public, ak_public: public areas (TPMT_PUBLIC) of the endorsement and the attestation key.
    """

    endorsements: Endorsements
    ek_public: bytes = field(repr=False)
    ak_public: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        wire: dict[str, JSON] = {
            "endorsements": self.endorsements.to_bytes().decode(),
            "ek_public": self.ek_public.hex(),
            "ak_public": self.ak_public.hex(),
        }
        return canonical(wire, cap=_MAX_REQUEST)

    @classmethod
    def from_bytes(cls, raw: bytes) -> EnrolmentRequest:
        """Raises FormatError if these are not the bytes of a request."""
        wire = parse_canonical(raw, cap=_MAX_REQUEST)
        endorsements = wire.get("endorsements")
        if set(wire) != {"endorsements", "ek_public", "ak_public"} or not isinstance(endorsements, str):
            raise FormatError("enrolment request: wanted endorsements, ek_public and ak_public")
        return cls(
            parse_endorsements(endorsements.encode()),
            hex_bytes("ek_public", wire["ek_public"], MAX_PUBLIC),
            hex_bytes("ak_public", wire["ak_public"], MAX_PUBLIC),
        )


@dataclass(frozen=True)
class Challenge:
    """What the verifier sends: a credential and its seed, for TPM2_ActivateCredential. It is no secret."""

    credential: bytes
    seed: bytes

    def to_bytes(self) -> bytes:
        return canonical({"credential": self.credential.hex(), "seed": self.seed.hex()})

    @classmethod
    def from_bytes(cls, raw: bytes) -> Challenge:
        """Raises FormatError if these are not the bytes of a challenge."""
        wire = parse_canonical(raw)
        if set(wire) != {"credential", "seed"}:
            raise FormatError("enrolment challenge: wanted credential and seed")
        return cls(*(hex_bytes(name, wire[name], _MAX_CREDENTIAL) for name in ("credential", "seed")))


@dataclass(frozen=True)
class EnrolledKey:
    """An attestation key that is in a TPM by a trusted maker. Only `PendingEnrolment.finish` makes one.

    Attributes:
        key: for `Anchors.tpm_keys`.
        ek_root: ``sha256:<hex>`` of the maker's root.
        ek_certificate: ``sha256:<hex>`` of the endorsement key's certificate: which TPM it is.
    """

    key: VendorKey
    ek_root: str
    ek_certificate: str

    def certify(
        self, authority: CertificateAuthority, *, now: dt.datetime, lifetime: dt.timedelta
    ) -> VendorCertificate:
        """A certificate for the key, to be shown with its quotes."""
        name = f"TPM attestation key {self.key.fingerprint.removeprefix('sha256:')[:32]}"
        return certify_ak(authority, self.key, name, now=now, lifetime=lifetime)


@dataclass(frozen=True)
class PendingEnrolment:
    """A verifier's state between challenge and answer. From `begin_enrolment`."""

    challenge: Challenge
    _secret: bytes = field(repr=False)
    _enrolled: EnrolledKey = field(repr=False)

    def finish(self, answer: bytes) -> EnrolledKey:
        """Step 4. Raises VerificationError if `answer` is not the secret."""
        if not equal(answer, self._secret):
            raise VerificationError(
                "enrolment: the answer is not the secret of the challenge",
                hint="the attestation key is not in the TPM of that endorsement key, or the answer is to another one",
            )
        return self._enrolled


def begin_enrolment(request: EnrolmentRequest, roots: tuple[VendorCertificate, ...], *, now: int) -> PendingEnrolment:
    """Steps 1 to 3 at the top of this file.

    Args:
        request: from a stranger.
        roots: of makers of TPMs.
        now: seconds since 1970.

    Raises:
        FormatError: a public area does not parse.
        VerificationError, ExpiredError: a step fails.
    """
    # 1
    chain = request.endorsements.certificates
    if not chain:
        raise VerificationError(
            "endorsement key: no certificate", hint="give the one that its maker publishes, if it is not in the TPM"
        )
    if chain[0].usages is None or EK_USAGE not in chain[0].usages:
        raise VerificationError(f"endorsement key: its certificate is not for endorsement keys ({EK_USAGE})")
    root = follow(request.endorsements, roots, now)
    # 2
    ek = parse_public(request.ek_public)
    if ek.key != chain[0].key:
        raise VerificationError("endorsement key: its certificate is for another key")
    _check_endorsement_key(ek)
    # 3
    ak = parse_public(request.ak_public)
    check_attestation_key(ak)
    secret = random_bytes(SECRET_SIZE)
    credential, seed = make_credential(ek.key, ak.name, secret, algorithm=ek.name_algorithm, key_bits=ek.aes_bits)
    enrolled = EnrolledKey(ak.key, root.fingerprint, chain[0].fingerprint)
    return PendingEnrolment(Challenge(credential, seed), secret, enrolled)


def _check_endorsement_key(ek: TpmPublic) -> None:
    lacks = _EK_HAS - ek.attributes
    if lacks or "sign" in ek.attributes or ek.aes_bits not in (128, 256):
        raise VerificationError(
            f"endorsement key: got {', '.join(sorted(ek.attributes))} and AES-{ek.aes_bits}, "
            f"wanted {', '.join(sorted(_EK_HAS))}, not sign, and AES-128 or AES-256"
        )
    if ek.name_algorithm not in ("sha256", "sha384"):
        raise VerificationError(f"endorsement key: its name is by {ek.name_algorithm}, wanted sha256 or sha384")
