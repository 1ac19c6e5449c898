"""The CAS's HTTP API: an owner applies policies and secrets, an enclave attests and receives (docs/spec/cas.md).

Attestation, kind 1, on one TLS connection; `client/enclave.py` is the other end:

1. The enclave connects: TLS 1.3, with its own key, to the CAS that it was measured for.
2. It asks for a nonce and names its policy; the CAS answers both, with the policy's digest.
3. It sends evidence and claims. The CAS completes the evidence with its vendor's endorsements
   (`enclaves/completion.py`).
4. The CAS recomputes the report data from that nonce, this connection's exporter and the claims; verifies; appraises
   against the policy; checks that the claims name this CAS, this policy and the key that the TLS handshake proved.
5. It answers with the configuration, HPKE-sealed to the key in the claims, and a certificate for the TLS key. From now
   on the connection is attested: anchors, time tokens, service results and lineage are given on it.
6. The enclave opens the configuration.

Rules:

- Whatever fails leaves the connection not attested, and the nonce used.
- A connection stays attested until it ends, the policy has a new version, the lease has run out or is revoked, or what
  the policy imports is granted anew or no more; then the enclave attests again.
- Between reading a request, with what completes its evidence, and answering it nothing else runs: no policy changes
  halfway through an appraisal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from strongroom import __version__
from strongroom.attest.attester import Attester
from strongroom.attest.result import key_set
from strongroom.cas.api.anchors import AnchorsApi
from strongroom.cas.api.attestation import AttestationApi
from strongroom.cas.api.bodies import expecting
from strongroom.cas.api.commits import Commits
from strongroom.cas.api.context import Clock, Context
from strongroom.cas.api.deposits import DepositsApi
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.api.evidence import EvidenceApi
from strongroom.cas.api.forms import DIGEST, OBJECT, TEXT, listed
from strongroom.cas.api.gate import GateApi, opened
from strongroom.cas.api.grants import GrantsApi
from strongroom.cas.api.guard import guarded, no_such
from strongroom.cas.api.leases import LeasesApi
from strongroom.cas.api.log import LogApi, hold
from strongroom.cas.api.login import LoginApi
from strongroom.cas.api.mesh import MeshApi
from strongroom.cas.api.metering import metered, watch
from strongroom.cas.api.namespaces import NamespacesApi
from strongroom.cas.api.openapi import Document, OpenApi
from strongroom.cas.api.operation import Operation
from strongroom.cas.api.parties import PartiesApi
from strongroom.cas.api.peers import PeerWatch
from strongroom.cas.api.policies import PoliciesApi
from strongroom.cas.api.slots import SlotsApi
from strongroom.cas.api.status import StatusApi
from strongroom.cas.enclaves.clock import forward_clock
from strongroom.cas.enclaves.completion import Complete, Completion
from strongroom.cas.log.note import WitnessKey
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.gate import Gate
from strongroom.cas.state.store import Store
from strongroom.cas.unseal.locked import LockedCas

_DIRECT = frozenset({"/v1/nonce", "/v1/attest"})


def cas_application(
    store: Store,
    authority: Authority,
    *,
    witnesses: Sequence[WitnessKey] = (),
    complete: Complete | None = None,
    operation: Operation | None = None,
    clock: Clock = time.time,
    gate: Gate | None = None,
    attester: Attester | None = None,
    peers: PeerWatch | None = None,
) -> CasApplication:
    """The ASGI application of one CAS, to be served by `channel.Server`.

    Args:
        witnesses: whose cosignatures of the log's head it keeps.
        complete: gives evidence its vendor's endorsements; None leaves it with those that it brings.
        operation: how its operator runs it.
        gate: what it may serve; None serves everything.
        attester: makes evidence of the CAS itself.
        peers: the watch over its other instances.
    """
    run_as = operation or Operation()
    forward = forward_clock(store, clock)
    context = Context(
        store,
        authority,
        Completion(complete),
        tuple(witnesses),
        forward,
        run_as,
        int(forward()),
        confirming=gate,
        attester=attester,
        peers=peers,
    )
    watch(context)
    return application(context, all_endpoints(context))


def all_endpoints(context: Context) -> Sequence[Endpoint]:
    """The whole API."""
    return _open_api(context).endpoints


def _open_api(context: Context) -> OpenApi:
    endpoints = [
        *IdentityApi(context).endpoints(),
        *EvidenceApi(context).endpoints(),
        *GateApi(context).endpoints(),
        *AttestationApi(context).endpoints(),
        *LoginApi(context).endpoints(),
        *StatusApi(context).endpoints(),
        *NamespacesApi(context).endpoints(),
        *PoliciesApi(context).endpoints(),
        *LeasesApi(context).endpoints(),
        *MeshApi(context).endpoints(),
        *AnchorsApi(context).endpoints(),
        *GrantsApi(context).endpoints(),
        *DepositsApi(context).endpoints(),
        *SlotsApi(context).endpoints(),
        *PartiesApi(context).endpoints(),
        *LogApi(context).endpoints(),
    ]
    sealed = [
        replace(each, held=False, description="Of a CAS that is sealed, which answers nothing else.")
        for each in LockedCas.endpoints(cast(Any, _Nothing()))  # handlers are named here, and not called
    ]
    return OpenApi(endpoints, sealed, version=__version__)


def described() -> Document:
    """The OpenAPI document of the whole API."""
    nothing = cast(Any, _Nothing())
    return _open_api(Context(nothing, nothing, nothing, (), time.time, confirming=nothing)).document


class _Nothing:
    def __getattr__(self, name: str) -> _Nothing:
        return self


def application(context: Context, endpoints: Sequence[Endpoint]) -> CasApplication:
    """Those endpoints, each guarded, with what they write committed in groups."""
    commits = Commits(context.store)

    def guard(endpoint: Endpoint) -> Handler:
        handler = endpoint.handler
        if endpoint.request is not None:
            handler = expecting((name.rstrip("?") for name in endpoint.request), handler)
        handler = guarded(handler if endpoint.early else opened(context.gate, handler))
        held = hold(context.store, handler) if endpoint.held else handler
        return metered(context, endpoint, guarded(commits.durable(held)))

    handlers = [(endpoint, guard(endpoint)) for endpoint in endpoints]
    methods: dict[str, dict[str, Handler]] = {}
    for endpoint, handler in handlers:
        methods.setdefault(endpoint.path, {})[endpoint.method] = handler
    routes = [Route(path, _by_method(each), methods=[*each]) for path, each in methods.items()]
    app = CasApplication(routes=routes, exception_handlers={404: no_such, 405: no_such})
    app.end_waits = context.watchers.end
    app.direct = {endpoint.path: handler for endpoint, handler in handlers if endpoint.path in _DIRECT}
    # A redirection would be to whatever the Host header says.
    app.router.redirect_slashes = False
    return app


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    """One route for all methods of a path, so that whoever tries another is told which there are."""

    async def handle(request: Request) -> Response:
        # Starlette lets a GET be asked for without its body.
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return handle


class CasApplication(Starlette):
    """What every enclave asks at its start goes past routing and middleware, which do nothing for it."""

    direct: Mapping[str, Handler]
    end_waits: Callable[[], None]
    """Answer all who wait for something, since the server ends."""

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
            Endpoint(
                "GET",
                "/v1/cas",
                self.describe,
                "Which CAS this is",
                "anybody",
                response={"service": TEXT, "version": TEXT, "cas_root": DIGEST},
                early=True,
            ),
            Endpoint(
                "GET",
                "/v1/keys",
                self.keys,
                "The key that signs tokens, as a JWK set",
                "anybody",
                response={"keys": listed(OBJECT)},
                media="application/jwk-set+json",
            ),
        )

    async def describe(self, request: Request) -> Response:
        return JSONResponse({"service": "strongroom-cas", "version": __version__, "cas_root": self._authority.cas_root})

    async def keys(self, request: Request) -> Response:
        """For readers who know no X.509."""
        return JSONResponse(key_set([self._authority.chain]), media_type="application/jwk-set+json")
