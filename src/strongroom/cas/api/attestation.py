"""Attestation: what an enclave goes through to be configured, and what it may ask afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.attest.appraise import AttestationResult, appraise
from strongroom.attest.binding import EXPORTER_LABEL, NO_BINDER, Kind, parse_canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.token import verify_token
from strongroom.attest.verify import verify
from strongroom.cas.api.bodies import evidence_field, read_body
from strongroom.cas.api.callers import ASKED, TEE, attested_lease, attested_policy, enclave_key
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Caller, Endpoint
from strongroom.cas.api.forms import (
    BASE64,
    DIGEST,
    EVIDENCE,
    HASH,
    HEX,
    JWT,
    NUMBER,
    OBJECT,
    POLICY,
    TEXT,
    listed,
    table,
)
from strongroom.cas.enclaves.completion import carries_less
from strongroom.cas.enclaves.configuration import configuration
from strongroom.cas.enclaves.imports import Held, check_import
from strongroom.cas.enclaves.leases import CopiedError
from strongroom.cas.enclaves.lineage import statements
from strongroom.cas.enclaves.refusals import Refusals
from strongroom.cas.policy.grants import imports
from strongroom.cas.policy.version import Policy
from strongroom.cas.start.mode import RESERVED
from strongroom.cas.start.reserved import CAS_ROLE
from strongroom.cas.wire import (
    CERTIFICATE_SECONDS,
    CONFIGURATION_INFO,
    FINGERPRINT,
    MAX_OUTPUTS,
    RESULT_LIFETIME,
    TIME_TOKEN,
    b64,
    bytes_field,
    hex_field,
    text_field,
)
from strongroom.channel import tls_info
from strongroom.crypto import PublicKey, digest, hpke_seal, random_bytes
from strongroom.errors import (
    AttestationError,
    BindingError,
    ExpiredError,
    FormatError,
    GrantError,
    InstanceLimitError,
    NotStoredError,
    StrongroomError,
    UnauthorizedError,
    VerificationError,
)

_AGAIN = "evidence is good for one nonce on one connection: ask for a nonce on this one and attest again"
_CLAIM_HINTS = {
    "role": "the policy's role says what may attest under it: `strongroom run` a job, `strongroom serve` a service",
    "cas_root": "the enclave was made for another CAS: name this one's root when it is launched",
    "policy": "name the policy that the nonce was asked for, then attest again",
    "policy_digest": "the policy has a new version: ask for a nonce, which brings its digest, and attest again",
    "spki": "attest on the connection that was made with the enclave's own key",
}
_CLAIMS = {"role", "spki", "hpke", "cas_root", "policy", "policy_digest"}


class AttestationApi:
    """The handlers of what enclaves ask."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._authority = context.authority
        self._refusals = Refusals()

    def endpoints(self) -> Sequence[Endpoint]:
        attested: Caller = "attested enclave"
        return (
            Endpoint(
                "POST",
                "/v1/nonce",
                self.nonce,
                "A nonce to attest with",
                "enclave",
                request={"policy": POLICY},
                response={"nonce": HASH, "policy_digest": DIGEST},
            ),
            Endpoint(
                "POST",
                "/v1/attest",
                self.attest,
                "Attest, and be configured",
                "enclave",
                request={"evidence": EVIDENCE, "claims": BASE64, "lease?": HEX},
                response={
                    "configuration": BASE64,
                    "certificate": BASE64,
                    "lease": table({"number": NUMBER, "seconds": NUMBER, "token": HEX}),
                },
            ),
            Endpoint(
                "POST",
                "/v1/time-token",
                self.time_token,
                "A token of the CAS's time",
                attested,
                request={},
                response={"token": JWT},
            ),
            Endpoint(
                "POST",
                "/v1/service",
                self.service,
                "Have a service's evidence appraised",
                attested,
                request={"evidence": EVIDENCE, "claims": BASE64, "time_token": JWT},
                response={"result": JWT, "cas_chain": listed(BASE64), "evidence?": EVIDENCE},
            ),
            Endpoint(
                "POST",
                "/v1/lineage",
                self.lineage,
                "Have statements of lineage signed",
                attested,
                request={"run": OBJECT, "outputs": listed(OBJECT, minItems=1, maxItems=MAX_OUTPUTS)},
                response={"envelopes": listed(TEXT)},
            ),
        )

    async def nonce(self, request: Request) -> Response:
        """Step 2."""
        body = await read_body(request)
        policy = self._store.policy(text_field(body, "policy"))
        nonce = random_bytes(32)
        tls_info(request.scope).session |= {"nonce": nonce, ASKED: policy.name}
        return JSONResponse({"nonce": nonce.hex(), "policy_digest": policy.digest})

    async def attest(self, request: Request) -> Response:
        """Steps 3 to 5."""
        body, tls = await read_body(request), tls_info(request.scope)
        tls.session.pop("attested", None)
        tls.session.pop("appraised", None)
        tls.session.pop("granted", None)
        # 3
        nonce, key = tls.session.pop("nonce", None), enclave_key(tls)
        if nonce is None:
            raise BindingError("nonce: none was asked for on this connection, or it was used already", hint=_AGAIN)
        claims_bytes = bytes_field(body, "claims")
        claims = parse_canonical(claims_bytes)
        if text_field(claims, "policy") != tls.session[ASKED]:
            # What an attestation counts for, and is limited by, is known before its claims are.
            raise BindingError(
                "claims.policy: is not the one that the nonce was asked for", hint=_CLAIM_HINTS["policy"]
            )
        policy, evidence = self._store.policy(text_field(claims, "policy")), evidence_field(body)
        role, tls.session[TEE] = text_field(claims, "role"), evidence.tee
        if carries_less(evidence):
            evidence = await self._completed(evidence, policy)
            policy = self._store.policy(policy.name)  # there may be a new version by now
        # 4
        now = self._context.now()
        binder = tls.export(EXPORTER_LABEL, role.encode())
        expected = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims_bytes)
        with self._recorded_if_refused(policy, now):
            _check_term(policy, now)
            result = self._appraise(evidence, policy, expected, now)
            self._check_claims(claims, policy, key, known=_CLAIMS | ({"replica"} & claims.keys()))
            replica = _replica(claims, policy)
            self._context.revocations.check(policy.name, key.fingerprint, result.measurement, now)
        held = self._imports(policy, result, now)
        # 5
        end = min(now + CERTIFICATE_SECONDS, policy.expires or now + CERTIFICATE_SECONDS)
        certificate = self._authority.certify_enclave(key, policy.name, now=self._context.utc(), end=end)
        detail: dict[str, object] = {"role": role, "tee": result.tee, "measurement": result.measurement}
        with self._recorded_if_refused(policy, now), self._copies_ended(now), self._store.transaction():
            given = configuration(self._store, policy, now, replica=replica)
            if policy.role == CAS_ROLE and policy.name == RESERVED:  # `check_reserved` lets no other have that role
                given["cas"] = self._authority.hand_over()
            lease = self._context.leases.grant(
                policy,
                key.fingerprint,
                shown=hex_field(body, "lease") if "lease" in body else b"",
                replica=replica,
                result=result,
                certificate=(certificate.serial, end),
                detail=detail | {"version": policy.version},
                now=now,
            )
        box = hpke_seal(hex_field(claims, "hpke"), json.dumps(given).encode(), info=CONFIGURATION_INFO)
        tls.session["attested"] = (policy.name, policy.digest, lease.number)
        tls.session["appraised"] = result
        tls.session["granted"] = held
        told = {"number": lease.number, "seconds": lease.expires - now, "token": lease.token.hex()}
        return JSONResponse({"configuration": b64(box), "certificate": b64(certificate.der), "lease": told})

    @contextmanager
    def _copies_ended(self, now: int) -> Iterator[None]:
        """Where a lease turns out to be two enclaves', what was done for one of them is undone, and both are ended."""
        try:
            yield
        except CopiedError as copied:
            ended = self._context.revocations.end_copies(copied.lease, now=now)
            self._context.watchers.ring()
            raise ended from None

    def _imports(self, policy: Policy, result: AttestationResult, now: int) -> dict[str, Held]:
        """The grants on which an enclave has what its policy imports. A refusal is in both policies' logs."""
        held = {}
        for source, resources in imports(policy).items():
            try:
                held[source] = check_import(
                    self._store, policy, source, resources, measurement=result.measurement, now=now
                )
            except (GrantError, VerificationError) as error:
                self._record_refusal(policy.name, error, {}, now)
                if self._store.owner(source) is not None:
                    self._record_refusal(source, error, {"importer": policy.name}, now)
                raise
        return held

    @contextmanager
    def _recorded_if_refused(self, policy: Policy, now: int) -> Iterator[None]:
        try:
            yield
        except (AttestationError, InstanceLimitError, NotStoredError) as error:
            self._record_refusal(policy.name, error, {}, now)
            raise

    def _record_refusal(self, policy: str, error: StrongroomError, more: Mapping[str, object], now: int) -> None:
        # What importers cause is counted apart, so that they cannot crowd out the policy's own.
        omitted = self._refusals.admit(f"{policy} imports" if more else policy, now)
        if omitted is not None:
            detail: dict[str, object] = {"code": error.code, "reason": error.message[:500], **more}
            detail |= {"omitted": omitted} if omitted else {}
            self._store.record("refused", policy, detail, now=now)

    async def _completed(self, evidence: Evidence, policy: Policy) -> Evidence:
        """The evidence with endorsements, if its kind is one that the policy accepts: for others nobody is asked."""
        devices = policy.reference.devices
        wanted = {*policy.reference.tees, *(devices.tees if devices else ())}
        if not wanted.issuperset(each.tee for each in (evidence, *evidence.devices)):
            return evidence
        now = self._context.now()
        with self._recorded_if_refused(policy, now):
            return await self._context.completion(evidence, now)

    def _appraise(self, evidence: Evidence, policy: Policy, expected: bytes, now: int) -> AttestationResult:
        claims = verify(evidence, now=now, anchors=policy.reference.anchors)
        return appraise(claims, policy.reference, expected_report_data=expected, now=now)

    def _check_claims(self, claims: Mapping[str, Any], policy: Policy, key: PublicKey, *, known: set[str]) -> None:
        if set(claims) != known:
            raise FormatError(f"claims: got {', '.join(sorted(claims))[:200]}, wanted {', '.join(sorted(known))}")
        wanted = {
            "role": policy.role,
            "cas_root": self._authority.cas_root,
            "policy": policy.name,
            "policy_digest": policy.digest,
            "spki": key.fingerprint,
        }
        for field, value in wanted.items():
            if claims[field] != value:
                raise BindingError(
                    f"claims.{field}: got {str(claims[field])[:100]}, wanted {value}", hint=_CLAIM_HINTS[field]
                )

    async def time_token(self, request: Request) -> Response:
        await read_body(request)
        attested_policy(self._context, request)
        return JSONResponse({"token": self._authority.time_token(now=self._context.now())})

    async def service(self, request: Request) -> Response:
        """Kind 2: appraise the evidence that a service will show to all its clients, and sign the result."""
        body, tls = await read_body(request), tls_info(request.scope)
        (policy, lease), key = attested_lease(self._context, request), enclave_key(tls)
        if policy.role != "service":
            raise UnauthorizedError(
                f"policy {policy.name}: its role is {policy.role}, wanted service",
                hint='a policy for `strongroom serve` says role = "service"',
            )
        token, claims_bytes = text_field(body, "time_token"), bytes_field(body, "claims")
        claims = parse_canonical(claims_bytes)
        evidence = shown = evidence_field(body)
        if carries_less(shown):
            evidence = await self._completed(shown, policy)
            policy, lease = attested_lease(self._context, request)
        now = self._context.now()
        with self._recorded_if_refused(policy, now):
            verify_token(token, self._authority.identity.key.public, TIME_TOKEN, now=now)
            fresh = digest(token.encode("ascii"))
            expected = report_data(Kind.SERVICE, fresh=fresh, binder=NO_BINDER, claims=claims_bytes)
            result = self._appraise(evidence, policy, expected, now)
            self._check_claims(claims, policy, key, known=_CLAIMS | {"models"} | ({"plan"} & claims.keys()))
        models = claims["models"]
        if not isinstance(models, dict) or not all(FINGERPRINT.fullmatch(str(value)) for value in models.values()):
            raise FormatError("claims.models: wanted an object of digests, sha256:<64 hex>")
        if "plan" in claims and not FINGERPRINT.fullmatch(str(claims["plan"])):
            raise FormatError("claims.plan: wanted a digest, sha256:<64 hex>")
        self._store.record("service", policy.name, {"measurement": result.measurement}, now=now)
        until = max(1, min(RESULT_LIFETIME, lease.expires - now))
        signed = self._authority.result_token(
            result, policy, fresh=fresh, claims=digest(claims_bytes).hex(), lifetime=until
        )
        answer: dict[str, object] = {"result": signed, "cas_chain": [b64(c.der) for c in self._authority.chain]}
        # What clients have to verify it with.
        return JSONResponse(answer if evidence is shown else answer | {"evidence": evidence.to_wire()})

    async def lineage(self, request: Request) -> Response:
        """Sign what an enclave says of its run, and what is known here of the enclave."""
        body, now = await read_body(request), self._context.now()
        policy = attested_policy(self._context, request)
        appraised = tls_info(request.scope).session["appraised"]
        stated = statements(body, policy=policy, appraised=appraised, cas_root=self._authority.cas_root, now=now)
        signed = [self._authority.sign_lineage(statement) for statement in stated]
        together = digest(*(digest(envelope.payload) for envelope in signed)).hex()
        detail: dict[str, object] = {"invocation": stated[0].run.invocation, "measurement": appraised.measurement}
        detail |= {"version": policy.version, "outputs": len(signed), "statements": together}
        self._store.record("lineage", policy.name, detail, now=now)
        return JSONResponse({"envelopes": [envelope.to_bytes().decode() for envelope in signed]})


def _check_term(policy: Policy, now: int) -> None:
    """Raises ExpiredError from the policy's end on."""
    if policy.expires is not None and now >= policy.expires:
        raise ExpiredError(
            f"policy {policy.name}: ended {now - policy.expires} seconds ago, by policy.expires",
            hint="its owner may sign a version that ends later",
        )


def _replica(claims: Mapping[str, Any], policy: Policy) -> int | None:
    """Which one of the policy's replicas an enclave says it is. Raises FormatError, InstanceLimitError."""
    if "replica" not in claims:
        return None
    replica = claims["replica"]
    if type(replica) is not int or replica < 0:
        raise FormatError(f"claims.replica: got {replica!r:.40}, wanted a number from 0")
    if policy.instances is None or replica >= policy.instances:
        there = "says not how many, in policy.instances" if policy.instances is None else f"has {policy.instances}"
        raise InstanceLimitError(
            f"claims.replica: got {replica}, and policy {policy.name} {there}; they are numbered from 0",
            hint="launch it as a replica that the policy has, or raise policy.instances in its next version",
        )
    return replica
