"""The CAS's HTTP API: an owner applies policies and secrets, an enclave attests and receives (docs/spec/cas.md).

Attestation, kind 1, on one TLS connection; `session.py` is the other end:

1. The enclave connects: TLS 1.3, with its own key, to the CAS that it was measured for.
2. It asks for a nonce and names its policy; the CAS answers both, with the policy's digest.
3. It sends evidence and claims. The CAS completes the evidence with its vendor's endorsements (`completion.py`).
4. The CAS recomputes the report data from that nonce, this connection's exporter and the claims; verifies; appraises
   against the policy; checks that the claims name this CAS, this policy and the key that the TLS handshake proved.
5. It answers with the configuration, HPKE-sealed to the key in the claims, and a certificate for the TLS key. From now
   on the connection is attested: anchors, time tokens, service results and lineage are given on it.
6. The enclave opens the configuration.

Rules:

- Whatever fails leaves the connection not attested, and the nonce used.
- A connection stays attested until it ends, the policy has a new version, or ten minutes have passed; then the enclave
  attests again.
- Between reading a request, with what completes its evidence, and answering it nothing else runs: no policy changes
  halfway through an appraisal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from strongroom import __version__
from strongroom.attest.result import key_set
from strongroom.cas.api.anchors import AnchorsApi
from strongroom.cas.api.attestation import AttestationApi
from strongroom.cas.api.context import Clock, Context
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.api.guard import guarded, no_such
from strongroom.cas.api.log import LogApi, hold
from strongroom.cas.api.policies import PoliciesApi
from strongroom.cas.authority import Authority
from strongroom.cas.completion import Complete, Completion
from strongroom.cas.log_note import WitnessKey
from strongroom.cas.store import Store

_DIRECT = frozenset({"/v1/nonce", "/v1/attest"})


def cas_application(
    store: Store,
    authority: Authority,
    *,
    witnesses: Sequence[WitnessKey] = (),
    complete: Complete | None = None,
    clock: Clock = time.time,
) -> Starlette:
    """The ASGI application of one CAS, to be served by `channel.Server`.

    Args:
        witnesses: whose cosignatures of the log's head it keeps.
        complete: gives evidence its vendor's endorsements; None leaves it with those that it brings.
    """
    context = Context(store, authority, Completion(complete), tuple(witnesses), clock)
    return application(context, all_endpoints(context))


def all_endpoints(context: Context) -> list[Endpoint]:
    """The whole API."""
    return [
        *IdentityApi(context).endpoints(),
        *AttestationApi(context).endpoints(),
        *PoliciesApi(context).endpoints(),
        *AnchorsApi(context).endpoints(),
        *LogApi(context).endpoints(),
    ]


def application(context: Context, endpoints: Sequence[Endpoint]) -> Starlette:
    """Those endpoints, each guarded."""

    def guard(endpoint: Endpoint) -> Handler:
        handler = guarded(endpoint.handler)
        return guarded(hold(context.store, handler)) if endpoint.held else handler

    handlers = [(endpoint, guard(endpoint)) for endpoint in endpoints]
    routes = [Route(endpoint.path, handler, methods=[endpoint.method]) for endpoint, handler in handlers]
    app = _Application(routes=routes, exception_handlers={404: no_such, 405: no_such})
    app.direct = {endpoint.path: handler for endpoint, handler in handlers if endpoint.path in _DIRECT}
    # A redirection would be to whatever the Host header says.
    app.router.redirect_slashes = False
    return app


class _Application(Starlette):
    """What every enclave asks at its start goes past routing and middleware, which do nothing for it."""

    direct: Mapping[str, Handler]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self.direct.get(scope["path"]) if scope.get("method") == "POST" else None
        if handler is None:
            await super().__call__(scope, receive, send)
        else:
            response = await handler(Request(scope, receive, send))
            await response(scope, receive, send)


class IdentityApi:
    """Which CAS this is."""

    def __init__(self, context: Context) -> None:
        self._authority = context.authority

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint("GET", "/v1/cas", self.describe, "Which CAS this is", "anybody"),
            Endpoint("GET", "/v1/keys", self.keys, "The key that signs tokens, as a JWK set", "anybody"),
        )

    async def describe(self, request: Request) -> Response:
        return JSONResponse({"service": "strongroom-cas", "version": __version__, "cas_root": self._authority.cas_root})

    async def keys(self, request: Request) -> Response:
        """For readers who know no X.509."""
        return JSONResponse(key_set([self._authority.chain]), media_type="application/jwk-set+json")
