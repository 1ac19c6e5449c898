"""What stands before every handler where an operator wants it: limits on what one address or policy may ask, counts,
and a line for each answer."""

from __future__ import annotations

import json
import logging
import threading
import time

from starlette.requests import Request
from starlette.responses import Response

from strongroom.cas.api.bodies import address, body_size
from strongroom.cas.api.callers import ASKED, TEE
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.api.guard import guarded
from strongroom.cas.api.metrics import Metrics, Values
from strongroom.cas.callers.limits import PAGED, REFUSED, Limits
from strongroom.cas.enclaves.leases import Leases
from strongroom.channel import tls_info

_ATTEST, _LOGIN, _LOG = "/v1/attest", "/v1/login", "/v1/log"
_POLICY = "/v1/policies/{namespace}/{name}"
_access = logging.getLogger("strongroom.cas.access")


def metered(context: Context, endpoint: Endpoint, handler: Handler) -> Handler:
    """That handler, which answers every error itself, limited and counted as the operator wants it."""
    operation = context.operation
    if operation.limits == Limits() and type(operation.metrics) is Metrics and not operation.access_log:
        return handler
    limits, attests = operation.limits, endpoint.path == _ATTEST
    paged = (endpoint.method, endpoint.path) == ("GET", _LOG)
    checks = endpoint.path in (_ATTEST, _LOGIN) or (endpoint.method, endpoint.path) == ("PUT", _POLICY)

    async def limited(request: Request) -> Response:
        limits.check_address(address(request))
        if attests:
            limits.check_policy(tls_info(request.scope).session.get(ASKED, ""))
        return await handler(request)

    within = guarded(limited)

    async def measure(request: Request) -> Response:
        begun = time.perf_counter()
        response = await within(request)
        seconds, status = time.perf_counter() - begun, response.status_code
        operation.metrics.request(endpoint.method, endpoint.path, status, seconds)
        code = "ok" if status < 400 else _code(response)
        if code not in ("ok", "none"):  # a health check's 503 is no error
            operation.metrics.error(code)
        if attests:
            session = tls_info(request.scope).session
            if code == "ok":
                limits.attested(session[ASKED])
            operation.metrics.attestation(session.get(TEE, "unknown"), code, session.get(ASKED, ""))
        cost = body_size(request) // 1024 + (PAGED - 1 if paged else 0)
        if checks and status in (400, 403, 404, 409):
            cost += REFUSED - 1
        if cost:
            limits.charge(address(request), cost)
        if operation.access_log:
            line = {"time": context.now(), "address": address(request), "method": endpoint.method}
            line |= {"path": endpoint.path, "status": status, "ms": round(seconds * 1000, 2)}
            _access.info(json.dumps(line))
        return response

    return measure


def _code(response: Response) -> str:
    """The word of the error that an answer is, which `guarded` made: never one that a caller chose."""
    try:
        return str(json.loads(bytes(response.body))["code"])
    except (ValueError, KeyError, TypeError):
        return "none"


def watch(context: Context) -> None:
    """Have the states of a CAS counted. They are read from the thread that Prometheus is answered from."""
    store, metrics = context.store, context.operation.metrics
    counted, lock = Leases(store), threading.Lock()  # the context's are the event loop's

    def leases() -> Values:
        with lock, store.reading():
            now = context.now()
            return {(): sum(len(counted.live(policy, now)) for policy in store.row_groups("leases"))}

    def anchors() -> Values:
        with store.reading():
            return {(): sum(len(store.row_keys("anchors", policy)) for policy in store.row_groups("anchors"))}

    def peers() -> Values:
        states = context.peers.states if context.peers is not None else ()
        return {(): sum(not state.problem for state in states)}

    metrics.watch("ready", "1 if it serves, 0 while it waits", (), lambda: {(): not context.waiting()})
    metrics.watch("log_entries", "Entries of the log", (), lambda: {(): store.head().size})
    metrics.watch("policies", "Policies, whosever", (), lambda: {(): len(store.row_groups("policies"))})
    metrics.watch("live_leases", "Enclaves that have a lease", (), leases)
    metrics.watch("anchors", "Anchors that hold a root", (), anchors)
    metrics.watch("peers_answering", "Other instances that answered the last time", (), peers)
