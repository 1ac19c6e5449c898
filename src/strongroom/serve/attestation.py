"""One report for all users: the attestation document of a service, and its appraisal (docs/spec/service.md).

Pure: `appraise_service` reads no clock, no network and no file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from strongroom.attest.appraise import AttestationResult, ReferenceValues, appraise
from strongroom.attest.binding import JSON, MAX_CANONICAL, NO_BINDER, Kind, canonical, parse_canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.issuer import issuer_key
from strongroom.attest.result import ResultStatement, verify_result
from strongroom.attest.token import MAX_TOKEN, verify_token
from strongroom.attest.verify import verify
from strongroom.cas.wire import TIME_TOKEN
from strongroom.crypto import Certificate, digest
from strongroom.crypto.encoding import base64_bytes
from strongroom.errors import (
    AttestationError,
    BindingError,
    FormatError,
    MeasurementError,
    StrongroomError,
    VerificationError,
)
from strongroom.serve.wire import a_list, a_name, an_object

ATTESTATION_PATH = "/.well-known/strongroom/attestation"
VERSION = 1
SESSION_ROLE = "service session"
"""The role in the claims of kind-1 evidence for a client: what is made for it can be shown to no CAS."""

_MAX_CERTIFICATE = 8 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX32 = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("version", "evidence", "claims", "time_token", "result", "cas_chain")
_CLAIMS = {"role", "spki", "hpke", "cas_root", "policy", "policy_digest", "models"}


@dataclass(frozen=True)
class ServiceAttestation:
    """What a service shows to everybody, not trusted.

    Attributes:
        evidence: of kind service, over `claims` and the digest of `time_token`.
        claims: canonical JSON.
        time_token: signed by the CAS before the evidence was made.
        result: the CAS's attestation result, with an expiry.
        cas_chain: the CAS's leaf, whose key signed both tokens, and its root.
    """

    evidence: Evidence
    claims: bytes = field(repr=False)
    time_token: str = field(repr=False)
    result: str = field(repr=False)
    cas_chain: tuple[Certificate, Certificate] = field(repr=False)

    def to_wire(self) -> dict[str, object]:
        """The document as a JSON object."""
        return {
            "version": VERSION,
            "evidence": self.evidence.to_wire(),
            "claims": base64.b64encode(self.claims).decode(),
            "time_token": self.time_token,
            "result": self.result,
            "cas_chain": [base64.b64encode(certificate.der).decode() for certificate in self.cas_chain],
        }

    @classmethod
    def from_wire(cls, wire: object) -> ServiceAttestation:
        """The document that `to_wire` wrote.

        Raises:
            FormatError: another version or set of fields, bad base64, more bytes than the caps allow, or what should
                be a certificate is none.
        """
        fields = an_object(wire, "attestation document", required=_FIELDS)
        if type(fields["version"]) is not int or fields["version"] != VERSION:
            raise FormatError(f"attestation document: got version {fields['version']!r:.20}, wanted {VERSION}")
        chain = [
            _decode(item, "CAS certificate", _MAX_CERTIFICATE) for item in a_list(fields["cas_chain"], "cas_chain")
        ]
        if len(chain) != 2:
            raise FormatError(f"cas_chain: got {len(chain)} certificates, wanted 2: leaf and root")
        return cls(
            Evidence.from_wire(fields["evidence"]),
            _decode(fields["claims"], "claims", MAX_CANONICAL),
            a_name(fields["time_token"], "time_token", cap=MAX_TOKEN),
            a_name(fields["result"], "result", cap=MAX_TOKEN),
            (Certificate(chain[0]), Certificate(chain[1])),
        )


@dataclass(frozen=True)
class AppraisedService:
    """A service that convinced. Made by `appraise_service`.

    Attributes:
        key: the fingerprint of the key that every later connection must show.
        expires: seconds since 1970; from then on it must be appraised again.
        models: digest of each model served, ``sha256:<hex>``, by its name.
        policy, policy_digest: the policy that the CAS appraised it under.
        plan: digest, ``sha256:<hex>``, of the plan by which it serves a model in parts; None for a whole model.
        result: of the client's own appraisal of the enclave.
        session: of its appraisal by `appraise_session`, if there was one.
    """

    key: str
    expires: int
    models: Mapping[str, str]
    policy: str
    policy_digest: str
    result: AttestationResult
    session: AttestationResult | None = None
    plan: str | None = None


def appraise_service(
    attestation: ServiceAttestation,
    *,
    peer: Certificate,
    cas_root: str,
    policy: str,
    reference: ReferenceValues,
    now: int,
) -> AppraisedService:
    """Decide whether the service at the other end of a channel is the one meant, in an enclave that the client wants.

    1. The CAS: the chain ends at the pinned root, and its leaf is the CAS's.
    2. Its attestation result: signed by that leaf, and not expired.
    3. Its time token: signed by that leaf, and valid when the result was given; the evidence is bound to it by 5.
    4. The evidence: every signature from the vendor's root on.
    5. What the evidence is bound to: kind service, the time token's digest, no channel, these claims.
    6. The enclave: against the client's own reference values (which raises first if 5 fails).
    7. The claims: a service of this CAS, under this policy, that holds the key of this channel; and the CAS's result
       is about these claims and this enclave.

    Args:
        attestation: as it came over the channel.
        peer: the certificate that the other end of that channel proved to hold.
        cas_root: ``sha256:<hex>``, the fingerprint of the CAS's root key.
        policy: ``namespace/name``.
        reference: what the client accepts.
        now: seconds since 1970.

    Raises:
        AttestationError: one of the steps fails; the subclass says which way.
    """
    with _only_attestation_errors():
        # 1
        signer = issuer_key(attestation.cas_chain, cas_root, now=now)
        # 2
        result = verify_result(attestation.result, signer, now=now, allow_simulated=_allowed(reference))
        # 3
        verify_token(attestation.time_token, signer, TIME_TOKEN, now=result.issued_at)
        fresh = digest(attestation.time_token.encode())
        # 4
        evidence = verify(attestation.evidence, now=now, anchors=reference.anchors)
        # 5
        bound = report_data(Kind.SERVICE, fresh=fresh, binder=NO_BINDER, claims=attestation.claims)
        # 6
        appraised = appraise(evidence, reference, expected_report_data=bound, now=now)
        # 7
        claims = parse_canonical(attestation.claims)
        models = _check_claims(claims, peer, cas_root, policy)
        _check_result(result, claims, attestation.claims, fresh, appraised)
    policy_digest = str(claims["policy_digest"])
    plan = str(claims["plan"]) if "plan" in claims else None
    return AppraisedService(peer.key.fingerprint, result.expires, models, policy, policy_digest, appraised, plan=plan)


def session_claims(claims: bytes) -> dict[str, JSON]:
    """What kind-1 evidence for a client is over: the claims of the service's document, in the other role."""
    return {**parse_canonical(claims), "role": SESSION_ROLE}


def appraise_session(
    service: AppraisedService,
    attestation: ServiceAttestation,
    evidence: Evidence,
    *,
    nonce: bytes,
    binder: bytes,
    reference: ReferenceValues,
    now: int,
) -> AppraisedService:
    """Decide whether the enclave of an appraised service is the other end of this very channel, now.

    1. The evidence: every signature from the vendor's root on.
    2. What it is bound to: kind session, the client's nonce, this channel's exporter, and the claims of the document in
       the role `SESSION_ROLE`.
    3. The enclave: against the client's own reference values, and the very one that the document is of.

    Args:
        service, attestation: of `appraise_service`, for the same channel.
        evidence: as it came over that channel.
        nonce: what the client sent, never before.
        binder: the channel's exporter, for that role.

    Raises:
        AttestationError: one of the steps fails; the subclass says which way.
    """
    with _only_attestation_errors():
        # 1
        verified = verify(evidence, now=now, anchors=reference.anchors)
        # 2
        claims = canonical(session_claims(attestation.claims))
        bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims)
        # 3
        result = appraise(verified, reference, expected_report_data=bound, now=now)
        for name in ("tee", "vendor_root", "measurement", "devices"):
            got, wanted = getattr(result, name), getattr(service.result, name)
            if got != wanted:
                raise MeasurementError(f"session evidence: got {name} {got!r:.200}, wanted {wanted!r:.200}")
    return replace(service, session=result)


def _check_claims(claims: Mapping[str, JSON], peer: Certificate, cas_root: str, policy: str) -> dict[str, str]:
    """The models that the claims name."""
    if set(claims) - {"plan"} != _CLAIMS:
        raise VerificationError(f"claims: got the fields {_names(claims)}, wanted {_names(_CLAIMS)}")
    wanted = {"role": "service", "cas_root": cas_root, "policy": policy}
    for name, value in wanted.items():
        if claims[name] != value:
            raise BindingError(
                f"claims: got {name} {claims[name]!r:.200}, wanted {value!r}",
                hint="this service is another one than was asked for: check the address, the CAS's root and the policy",
            )
    if claims["spki"] != peer.key.fingerprint:
        raise BindingError(
            f"claims: got the key {claims['spki']!r:.100}, wanted {peer.key.fingerprint}, which this connection showed",
            hint="somebody stands between, showing the attestation of another service",
        )
    _match(_HEX32, claims["hpke"], "hpke")
    _match(_DIGEST, claims["policy_digest"], "policy_digest")
    if "plan" in claims:
        _match(_DIGEST, claims["plan"], "plan")
    models = claims["models"]
    if not isinstance(models, dict) or not models:
        raise VerificationError("claims: name no models, wanted an object of at least one")
    return {name: _match(_DIGEST, value, f"digest of model {name[:100]!r}") for name, value in models.items()}


def _check_result(
    result: ResultStatement, claims: Mapping[str, JSON], raw_claims: bytes, fresh: bytes, appraised: AttestationResult
) -> None:
    """The CAS's result is about these claims, and it saw the enclave that the client sees."""
    for name, value, kind in (
        ("claims", digest(raw_claims).hex(), BindingError),
        ("fresh", fresh, BindingError),
        ("issuer", claims["cas_root"], BindingError),
        ("policy", claims["policy"], BindingError),
        ("policy_digest", claims["policy_digest"], BindingError),
        ("tee", appraised.tee, BindingError),
        ("vendor_root", appraised.vendor_root, BindingError),
        ("measurement", appraised.measurement, MeasurementError),
        ("devices", tuple(device.measurement for device in appraised.devices), MeasurementError),
    ):
        got = tuple(device.measurement for device in result.devices) if name == "devices" else getattr(result, name)
        if got != value:
            raise kind(
                f"attestation result: got {name} {got!r:.200}, wanted {value!r}",
                hint="the CAS's result is about another enclave or policy version: the service must attest again",
            )


def _allowed(reference: ReferenceValues | None) -> frozenset[str]:
    """The simulated vendor roots that reference values name, for the enclave and for its devices."""
    if reference is None:
        return frozenset()
    return frozenset([reference.allow_simulated] if reference.allow_simulated else ()) | _allowed(reference.devices)


def _match(pattern: re.Pattern[str], value: JSON, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise VerificationError(f"claims: got {what} {value!r:.100}, wanted {pattern.pattern}")
    return value


def _names(names: object) -> str:
    return ", ".join(sorted(str(name)[:40] for name in list(names)[:20]))  # type: ignore[call-overload]


def _decode(value: object, what: str, cap: int) -> bytes:
    text = a_name(value, what, cap=4 * (cap // 3 + 1))
    try:
        raw = base64_bytes(text)
    except ValueError:
        raw = b""
    if not raw or len(raw) > cap:
        raise FormatError(f"{what}: not the base64 of 1 to {cap} bytes")
    return raw


@contextmanager
def _only_attestation_errors() -> Iterator[None]:
    """What does not parse does not convince: one tree of errors for whoever relies on the appraisal."""
    try:
        yield
    except AttestationError:
        raise
    except StrongroomError as error:
        raise VerificationError(error.message, hint=error.hint) from error
