"""Attestation: what an enclave goes through to be configured, and what it may ask afterwards."""

from __future__ import annotations

import json
import re
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
from strongroom.cas.api.callers import attested_policy, enclave_key
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Caller, Endpoint
from strongroom.cas.completion import carries_less
from strongroom.cas.configuration import configuration
from strongroom.cas.lineage import statements
from strongroom.cas.policy import Policy
from strongroom.cas.refusals import Refusals
from strongroom.cas.wire import CONFIGURATION_INFO, TIME_TOKEN, b64, bytes_field, hex_field, text_field
from strongroom.channel import tls_info
from strongroom.crypto import PublicKey, digest, hpke_seal, random_bytes
from strongroom.errors import AttestationError, BindingError, FormatError, UnauthorizedError

_AGAIN = "evidence is good for one nonce on one connection: ask for a nonce on this one and attest again"
_CLAIM_HINTS = {
    "role": "the policy's role says what may attest under it: `strongroom run` a job, `strongroom serve` a service",
    "cas_root": "the enclave was made for another CAS: name this one's root when it is launched",
    "policy": "name the policy that the nonce was asked for, then attest again",
    "policy_digest": "the policy has a new version: ask for a nonce, which brings its digest, and attest again",
    "spki": "attest on the connection that was made with the enclave's own key",
}
_CLAIMS = {"role", "spki", "hpke", "cas_root", "policy", "policy_digest"}
_MODEL_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class AttestationApi:
    """The handlers. `direct` are those that every enclave asks at its start."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._authority = context.authority
        self._refusals = Refusals()

    def endpoints(self) -> Sequence[Endpoint]:
        attested: Caller = "attested enclave"
        return (
            Endpoint("POST", "/v1/nonce", self.nonce, "A nonce to attest with", "enclave"),
            Endpoint("POST", "/v1/attest", self.attest, "Attest, and be configured", "enclave"),
            Endpoint("POST", "/v1/time-token", self.time_token, "A token of the CAS's time", attested),
            Endpoint("POST", "/v1/service", self.service, "Have a service's evidence appraised", attested),
            Endpoint("POST", "/v1/lineage", self.lineage, "Have statements of lineage signed", attested),
        )

    async def nonce(self, request: Request) -> Response:
        """Step 2."""
        body = await read_body(request)
        policy = self._store.policy(text_field(body, "policy"))
        nonce = random_bytes(32)
        tls_info(request.scope).session["nonce"] = nonce
        return JSONResponse({"nonce": nonce.hex(), "policy_digest": policy.digest})

    async def attest(self, request: Request) -> Response:
        """Steps 3 to 5."""
        body, tls = await read_body(request), tls_info(request.scope)
        tls.session.pop("attested", None)
        tls.session.pop("appraised", None)
        # 3
        nonce, key = tls.session.pop("nonce", None), enclave_key(tls)
        if nonce is None:
            raise BindingError("nonce: none was asked for on this connection, or it was used already", hint=_AGAIN)
        claims_bytes = bytes_field(body, "claims")
        claims = parse_canonical(claims_bytes)
        policy, evidence = self._store.policy(text_field(claims, "policy")), evidence_field(body)
        role = text_field(claims, "role")
        if carries_less(evidence):
            evidence = await self._completed(evidence, policy)
            policy = self._store.policy(policy.name)  # there may be a new version by now
        # 4
        now = self._context.now()
        binder = tls.export(EXPORTER_LABEL, role.encode())
        expected = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims_bytes)
        with self._recorded_if_refused(policy, now):
            result = self._appraise(evidence, policy, expected, now)
            self._check_claims(claims, policy, key, known=_CLAIMS)
        # 5
        received = json.dumps(configuration(self._store, policy, now)).encode()
        box = hpke_seal(hex_field(claims, "hpke"), received, info=CONFIGURATION_INFO)
        certificate = self._authority.certify_enclave(key, policy.name, now=self._context.utc())
        detail: dict[str, object] = {"role": role, "tee": result.tee, "measurement": result.measurement}
        self._store.record("attested", policy.name, detail | {"version": policy.version}, now=now)
        tls.session["attested"] = (policy.name, policy.digest, now)
        tls.session["appraised"] = result
        return JSONResponse({"configuration": b64(box), "certificate": b64(certificate.der)})

    @contextmanager
    def _recorded_if_refused(self, policy: Policy, now: int) -> Iterator[None]:
        try:
            yield
        except AttestationError as error:
            omitted = self._refusals.admit(policy.name, now)
            if omitted is not None:
                detail: dict[str, object] = {"code": error.code, "reason": error.message[:500]}
                detail |= {"omitted": omitted} if omitted else {}
                self._store.record("refused", policy.name, detail, now=now)
            raise

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
        policy, key = attested_policy(self._context, request), enclave_key(tls)
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
            policy = attested_policy(self._context, request)
        now = self._context.now()
        with self._recorded_if_refused(policy, now):
            verify_token(token, self._authority.identity.key.public, TIME_TOKEN, now=now)
            fresh = digest(token.encode("ascii"))
            expected = report_data(Kind.SERVICE, fresh=fresh, binder=NO_BINDER, claims=claims_bytes)
            result = self._appraise(evidence, policy, expected, now)
            self._check_claims(claims, policy, key, known=_CLAIMS | {"models"})
        models = claims["models"]
        if not isinstance(models, dict) or not all(_MODEL_DIGEST.fullmatch(str(value)) for value in models.values()):
            raise FormatError("claims.models: wanted an object of digests, sha256:<64 hex>")
        self._store.record("service", policy.name, {"measurement": result.measurement}, now=now)
        signed = self._authority.result_token(result, policy, fresh=fresh, claims=digest(claims_bytes).hex())
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
