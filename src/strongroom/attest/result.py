"""Attestation results that others can verify: EAT attestation results (draft-ietf-rats-ear-04) as JWT or CWT.

A verifier that appraised an enclave says so in a token, and whoever trusts the verifier's key need not appraise again:
until the token expires, and for the claims and the policy that it names.

- The JWT is one of `token`, the CWT one of `cwt`; both say the same, and each is signed anew.
- One statement has one token's claims: a reader rebuilds them from the statement that it read, and refuses others.
- A result about a simulated enclave is `contraindicated` to every reader of such results, and `verify_result` refuses
  it unless the caller names its vendor root, as a policy has to; so is one with a simulated device.

The trustworthiness vector has the values of draft-ietf-rats-ar4si-10, section 2.3.4: `executables` 3 (approved ones
were loaded at boot: evidence says nothing of later), `hardware` 2 (genuine), 32 (genuine, with vulnerabilities that the
policy's author accepted: a TCB status, weaknesses or advisories) or 97 (not recognised: simulated), `runtime-opaque` 2
(encrypted, and closed to the machine's owner) or 96 (open to it). A value that a weakness puts in doubt is left out.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from strongroom import __version__
from strongroom.attest.appraise import AttestationResult, is_simulated
from strongroom.attest.binding import FRESH_SIZE, JSON
from strongroom.attest.cwt import encode, sign_cwt, verify_cwt
from strongroom.attest.evidence import DEVICES
from strongroom.attest.token import jwk, sign_token, verify_token
from strongroom.crypto import Certificate, PublicKey, SigningKey
from strongroom.errors import SimulatedEnclaveError, UsageError, VerificationError

RESULT_TOKEN = "eat+jwt"  # noqa: S105  # RFC 9782, section 5; the prefix application/ left out, as RFC 7515 has it
RESULT_CWT = "application/eat+cwt"
PROFILE = "tag:ietf.org,2026:rats/ear#04"
DEVELOPER = "Strongroom"
ENCLAVE = "enclave"

_ABOUT = ("tee", "measurement", "vendor_root", "tcb_status")
_FLAWS = ("weaknesses", "advisories")  # only where there are any
_MAX_FLAWS = 1024
# With these somebody else than the enclave may read it, or it is not known who may.
_NOT_OPAQUE = frozenset({"migratable", "sept-ve", "attribute-bits", "vmpl", "policy-bits"})
# With these its registers say nothing certain of what was loaded.
_NOT_MEASURED = frozenset({"pcr-sha1", "pcr-resettable"})
_TEXTS = ("issuer", "policy", "policy_digest", "claims", *_ABOUT, "build")
_TEXT = re.compile(r"(?s:.+)")
_FORMS = {
    "claims": re.compile(r"[0-9a-f]{64}"),
    "measurement": re.compile(r"(?:[0-9a-f]{2})+"),
    "vendor_root": re.compile(r"sha256:[0-9a-f]{64}"),
    "tcb_status": re.compile(r"[A-Za-z]*"),
}
_TIERS = {0: "none", 2: "affirming", 32: "warning", 96: "contraindicated"}
_NUMBERS = {
    # RFC 8392, section 4; RFC 9711, section 10; draft-ietf-rats-ear-04, section 9.
    "iss": 1,
    "exp": 4,
    "iat": 6,
    "eat_nonce": 10,
    "eat_profile": 265,
    "submods": 266,
    "ear_status": 1000,
    "ear_trustworthiness_vector": 1001,
    "ear_appraisal_policy_ids": 1003,
    "ear_verifier_id": 1004,
    "ear_attester_claims": 1005,
    # draft-ietf-rats-ar4si-10: verifier-id, and the trustworthiness vector.
    "developer": 0,
    "build": 1,
    "executables": 2,
    "hardware": 4,
    "runtime-opaque": 5,
}


@dataclass(frozen=True)
class DeviceStatement:
    """What a verifier says of a device that an enclave passes its data to."""

    tee: str
    measurement: str
    vendor_root: str
    tcb_status: str = ""
    weaknesses: tuple[str, ...] = ()
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResultStatement:
    """What a verifier says of an enclave that it appraised; from `verify_result`, the word of the key given there.

    Attributes:
        issuer: who says it: ``sha256:<hex>``, the fingerprint of a CAS's root key, or any other name.
        issued_at, expires: seconds since 1970.
        policy, policy_digest: under which policy it was appraised, ``namespace/name``, and which version of it.
        fresh: the nonce, or the digest of the time token, that the evidence was bound to.
        claims: the SHA-256, in hexadecimal digits, of the claims that the evidence was bound to.
        tee, measurement, vendor_root, tcb_status, weaknesses, advisories: as in `AttestationResult`.
        devices: of each, the same.
        build: which software says it.
    """

    issuer: str
    issued_at: int
    expires: int
    policy: str
    policy_digest: str
    fresh: bytes
    claims: str
    tee: str
    measurement: str
    vendor_root: str
    tcb_status: str = ""
    devices: tuple[DeviceStatement, ...] = ()
    weaknesses: tuple[str, ...] = ()
    advisories: tuple[str, ...] = ()
    build: str = f"strongroom {__version__}"

    @classmethod
    def of(
        cls,
        result: AttestationResult,
        *,
        issuer: str,
        policy: str,
        policy_digest: str,
        fresh: bytes,
        claims: str,
        lifetime: int,
    ) -> ResultStatement:
        """What there is to say of a result, from the moment of its appraisal on, for `lifetime` seconds."""
        return cls(
            issuer,
            result.appraised_at,
            result.appraised_at + lifetime,
            policy,
            policy_digest,
            fresh,
            claims,
            result.tee,
            result.measurement,
            result.vendor_root,
            result.tcb_status,
            tuple(
                DeviceStatement(d.tee, d.measurement, d.vendor_root, d.tcb_status, d.weaknesses, d.advisories)
                for d in result.devices
            ),
            result.weaknesses,
            result.advisories,
        )


def sign_result(statement: ResultStatement, key: SigningKey) -> str:
    """The statement as a JWT.

    Raises:
        UsageError: a field is not of its form.
    """
    return sign_token(key, RESULT_TOKEN, _claims(_checked(statement, UsageError)), kid=True)


def sign_result_cwt(statement: ResultStatement, key: SigningKey) -> bytes:
    """The statement as a CWT.

    Raises:
        UsageError: a field is not of its form.
    """
    return sign_cwt(key, RESULT_CWT, _numbered(_claims(_checked(statement, UsageError))))


def verify_result(
    token: str | bytes, key: PublicKey, *, now: int, allow_simulated: Collection[str] = ()
) -> ResultStatement:
    """The statement of a JWT (a string) or a CWT (bytes) that `key` signed and that is valid at `now`.

    Args:
        key: of the verifier that one trusts.
        now: seconds since 1970.
        allow_simulated: ``sha256:<hex>`` of each simulated vendor root to accept.

    Raises:
        ExpiredError: it is expired, or issued in the future.
        SimulatedEnclaveError: the enclave or a device is simulated, under another vendor root.
        VerificationError: it is malformed, of another profile, or not signed by that key.
    """
    if isinstance(token, bytes):
        numbered = verify_cwt(token, key, RESULT_CWT, now=now)
        statement = _statement(_named(numbered))
        same = encode(_numbered(_claims(statement))) == encode(numbered)
    else:
        named = verify_token(token, key, RESULT_TOKEN, now=now, kid=True)
        statement = _statement(named)
        same = _claims(statement) == named
    if not same:
        raise VerificationError("attestation result: has claims, or values of claims, that this profile has not")
    everything: tuple[ResultStatement | DeviceStatement, ...] = (statement, *statement.devices)
    for one in everything:
        if is_simulated(one.tee, one.vendor_root) and one.vendor_root not in allow_simulated:
            raise SimulatedEnclaveError(
                f"attestation result: {one.tee} is simulated, under {one.vendor_root}, "
                f"wanted {' or '.join(allow_simulated) or 'nothing simulated'}",
                hint="a simulated enclave or device protects nothing against the machine's owner",
            )
    return statement


def key_set(chains: Iterable[tuple[Certificate, ...]]) -> dict[str, JSON]:
    """The public keys of verifiers as a JWK set (RFC 7517), each with its chain, by which its reader trusts it."""
    return {
        "keys": [
            {**jwk(chain[0].key), "x5c": [base64.b64encode(certificate.der).decode() for certificate in chain]}
            for chain in chains
        ]
    }


def _claims(statement: ResultStatement) -> dict[str, JSON]:
    """The claims set of the JWT."""
    policies = [statement.policy, statement.policy_digest]
    submods = {ENCLAVE: _appraisal(statement, policies, {"claims": statement.claims})}
    for index, device in enumerate(statement.devices):
        submods[f"device-{index}"] = _appraisal(device, policies, {})
    return {
        "iss": statement.issuer,
        "iat": statement.issued_at,
        "exp": statement.expires,
        "eat_profile": PROFILE,
        "eat_nonce": base64.urlsafe_b64encode(statement.fresh).rstrip(b"=").decode(),
        "ear_verifier_id": {"developer": DEVELOPER, "build": statement.build},
        "submods": submods,
    }


def _appraisal(
    statement: ResultStatement | DeviceStatement, policies: list[str], more: Mapping[str, JSON]
) -> dict[str, JSON]:
    vector = _vector(statement)
    # The tier of the worst value (draft-ietf-rats-ar4si-10, section 2.3.2).
    tier = max(limit for limit in _TIERS if any(limit <= value for value in vector.values()))
    return {
        "ear_status": _TIERS[tier],
        "ear_trustworthiness_vector": vector,
        "ear_appraisal_policy_ids": policies,
        "ear_attester_claims": {
            **{name: getattr(statement, name) for name in _ABOUT},
            **{name: list(getattr(statement, name)) for name in _FLAWS if getattr(statement, name)},
            **more,
        },
    }


def _vector(statement: ResultStatement | DeviceStatement) -> dict[str, int]:
    if is_simulated(statement.tee, statement.vendor_root):
        return {"executables": 3, "hardware": 97, "runtime-opaque": 96}
    flawed = statement.tcb_status not in ("", "UpToDate") or statement.weaknesses or statement.advisories
    # A TPM measures a machine whose memory lies open to its owner, a device's report says nothing of its memory.
    closed = statement.tee not in ("tpm", *DEVICES) and not _NOT_OPAQUE.intersection(statement.weaknesses)
    return {
        **({} if _NOT_MEASURED.intersection(statement.weaknesses) else {"executables": 3}),
        "hardware": 32 if flawed else 2,
        **({"runtime-opaque": 2} if closed else {}),
    }


def _statement(claims: Mapping[str, Any]) -> ResultStatement:
    """What such claims say; the caller compares them with what the statement would be written as."""
    try:
        enclave = claims["submods"][ENCLAVE]
        policy, policy_digest = enclave["ear_appraisal_policy_ids"]
        devices = [claims["submods"][f"device-{index}"] for index in range(len(claims["submods"]) - 1)]
        nonce = claims["eat_nonce"]
        statement = ResultStatement(
            issuer=claims["iss"],
            issued_at=claims["iat"],
            expires=claims["exp"],
            policy=policy,
            policy_digest=policy_digest,
            fresh=base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4)),
            claims=enclave["ear_attester_claims"]["claims"],
            devices=tuple(DeviceStatement(**_about(device)) for device in devices),
            build=claims["ear_verifier_id"]["build"],
            **_about(enclave),
        )
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
        raise VerificationError(f"attestation result: wanted the claims of {PROFILE} for one enclave") from None
    return _checked(statement, VerificationError)


def _about(appraisal: Mapping[str, Any]) -> dict[str, Any]:
    claims = appraisal["ear_attester_claims"]
    flaws = {name: claims.get(name, []) for name in _FLAWS}
    if not all(isinstance(each, list) for each in flaws.values()):
        raise TypeError("wanted lists")
    return {name: claims[name] for name in _ABOUT} | {name: tuple(each) for name, each in flaws.items()}


def _checked(statement: ResultStatement, error: type[UsageError] | type[VerificationError]) -> ResultStatement:
    for one, names in ((statement, _TEXTS), *((device, _ABOUT) for device in statement.devices)):
        for name in names:
            value, form = getattr(one, name), _FORMS.get(name, _TEXT)
            if not isinstance(value, str) or not form.fullmatch(value):
                raise error(f"attestation result: got {name} {value!r:.100}, wanted {form.pattern}")
        for name in _FLAWS:
            flaws = getattr(one, name)
            if (
                not isinstance(flaws, tuple)
                or len(flaws) > _MAX_FLAWS
                or not all(isinstance(each, str) and each for each in flaws)
            ):
                raise error(f"attestation result: {name}: wanted at most {_MAX_FLAWS} words")
    if not isinstance(statement.fresh, bytes) or len(statement.fresh) != FRESH_SIZE:
        raise error(f"attestation result: wanted a nonce of {FRESH_SIZE} bytes")
    return statement


def _numbered(claims: Mapping[str, Any]) -> dict[object, object]:
    """The claims set of the CWT: numbers for names, bytes for the nonce, values of tiers for their words."""
    numbered: dict[object, object] = {_NUMBERS[name]: value for name, value in claims.items()}
    nonce = claims["eat_nonce"]
    numbered[_NUMBERS["eat_nonce"]] = base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
    numbered[_NUMBERS["ear_verifier_id"]] = {_NUMBERS[name]: text for name, text in claims["ear_verifier_id"].items()}
    numbered[_NUMBERS["submods"]] = {label: _numbered_appraisal(one) for label, one in claims["submods"].items()}
    return numbered


def _numbered_appraisal(appraisal: Mapping[str, Any]) -> dict[int, object]:
    numbered = {_NUMBERS[name]: value for name, value in appraisal.items()}
    numbered[_NUMBERS["ear_status"]] = next(tier for tier, word in _TIERS.items() if word == appraisal["ear_status"])
    vector = appraisal["ear_trustworthiness_vector"]
    numbered[_NUMBERS["ear_trustworthiness_vector"]] = {_NUMBERS[name]: value for name, value in vector.items()}
    return numbered


def _named(numbered: Mapping[object, Any]) -> dict[str, Any]:
    """What `_statement` reads of it, by name; what it does not read, the comparison with `_numbered` does."""
    number = _NUMBERS.__getitem__
    try:
        submods = {
            label: {name: one.get(number(name)) for name in ("ear_appraisal_policy_ids", "ear_attester_claims")}
            for label, one in numbered[number("submods")].items()
        }
        return {
            **{name: numbered[number(name)] for name in ("iss", "iat", "exp")},
            "eat_nonce": base64.urlsafe_b64encode(numbered[number("eat_nonce")]).decode(),
            "ear_verifier_id": {"build": numbered[number("ear_verifier_id")][number("build")]},
            "submods": submods,
        }
    except (KeyError, TypeError, AttributeError):
        raise VerificationError(f"attestation result: wanted the claims of {PROFILE} for one enclave") from None
