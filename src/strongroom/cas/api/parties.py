"""Certificates for parties of `mpc`, whom no TEE vouches for: their policy's administrators do (docs/spec/cas.md).

A party's policy has the role `party`. It names who may have a key certified as that party, and nothing else; one that
has reference values too is for parties that run in enclaves, which get their certificate by attesting.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.cas.api.bodies import policy_name, read_body
from strongroom.cas.api.callers import require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BASE64, listed
from strongroom.cas.policy.version import Policy
from strongroom.cas.wire import CERTIFICATE_SECONDS, PARTY_ROLE, b64, bytes_field, party_statement
from strongroom.channel import tls_info
from strongroom.crypto import PublicKey
from strongroom.errors import ExpiredError, UnauthorizedError


class PartiesApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store, self._authority = context.store, context.authority

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "POST",
                "/v1/policies/{namespace}/{name}/certificate",
                self.certify,
                "Have a key certified as the party of a policy",
                "owner",
                request={"key": BASE64, "proof": BASE64},
                response={"chain": listed(BASE64)},
                description="The caller has the right certificates; proof is the key's own signature.",
            ),
        )

    async def certify(self, request: Request) -> Response:
        body, tls = await read_body(request), tls_info(request.scope)
        policy, now = self._store.policy(policy_name(request)), self._context.now()
        by = require(self._context, request, policy, "certificates")
        _check(policy, now)
        key = PublicKey(bytes_field(body, "key"))
        statement = party_statement(tls.export(EXPORTER_LABEL, PARTY_ROLE.encode()), policy.name)
        key.verify(bytes_field(body, "proof"), statement)
        end = min(now + CERTIFICATE_SECONDS, policy.expires or now + CERTIFICATE_SECONDS)
        certificate = self._authority.certify_enclave(key, policy.name, now=self._context.utc(), end=end)
        detail: dict[str, object] = {"key": key.fingerprint, "serial": certificate.serial, "by": str(by)}
        self._store.record("certificate", policy.name, detail | {"version": policy.version}, now=now)
        chain = (certificate, self._authority.chain[-1])
        return JSONResponse({"chain": [b64(one.der) for one in chain]})


def _check(policy: Policy, now: int) -> None:
    if policy.role != PARTY_ROLE:
        raise UnauthorizedError(
            f"policy {policy.name}: its role is {policy.role}, wanted {PARTY_ROLE}",
            hint='a policy for a party of `strongroom mpc` says role = "party"',
        )
    if policy.reference.tees:
        raise UnauthorizedError(
            f"policy {policy.name}: its party runs in an enclave, and has its certificate by attesting",
            hint="a party that runs elsewhere has a policy without [reference]",
        )
    if policy.expires is not None and now >= policy.expires:
        raise ExpiredError(f"policy {policy.name}: has expired", hint="apply its next version")
