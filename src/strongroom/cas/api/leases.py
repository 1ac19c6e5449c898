"""Leases and revocations: who lives under a policy, and whose time is over (docs/spec/cas.md).

Rules:

- What is revoked has no rights at its next request: each of them asks for the lease.
- The list of revocations is everybody's, since whoever trusts a certificate of this CAS must know it. A caller that
  knows all of it may wait for more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.attest.reference import MEASUREMENT
from strongroom.cas.api.bodies import network, number, policy_name, read_body
from strongroom.cas.api.callers import attested_lease, callers, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BOOLEAN, DIGEST, HEX, NUMBER, POLICY, TEXT, listed, matching, or_null, table
from strongroom.cas.enclaves.revocation import Revocation
from strongroom.cas.enclaves.revocations import Selection
from strongroom.errors import UsageError

MAX_WAIT = 30
"""Seconds that a request for revocations may wait."""
LATER = 10
"""Seconds after which to ask again, where too many wait already."""
_LOOK = 2.0  # how often one looks for what other instances have revoked
_PAGE = 500

_MEASUREMENT = matching(MEASUREMENT.pattern)
_LEASE = table(
    {
        "number": NUMBER,
        "replica": or_null(NUMBER),
        "tee": TEXT,
        "measurement": TEXT,
        "granted": NUMBER,
        "expires": NUMBER,
        "key": DIGEST,
    }
)
_REVOCATION = table(
    {
        "policy": POLICY,
        "number": NUMBER,
        "why": {"enum": ["revoked", "clone"]},
        "key?": DIGEST,
        "until?": NUMBER,
        "serials?": listed(HEX),
        "measurement?": _MEASUREMENT,
    }
)
_REVOCATION["properties"]["serials"]["items"] = matching("[0-9a-f]+")


class LeasesApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        policy = "/v1/policies/{namespace}/{name}"
        return (
            Endpoint(
                "GET",
                f"{policy}/leases",
                self.leases,
                "The enclaves that live under a policy",
                "owner",
                response={"leases": listed(_LEASE), "now": NUMBER, "instances": or_null(NUMBER)},
            ),
            Endpoint(
                "POST",
                f"{policy}/revocations",
                self.revoke,
                "End leases at once, and list their keys, or a measurement, as revoked",
                "owner",
                request={
                    "lease?": NUMBER,
                    "key?": DIGEST,
                    "measurement?": _MEASUREMENT,
                    "all?": BOOLEAN,
                    "lift?": BOOLEAN,
                },
                response={"ended": listed(NUMBER)},
                description="Exactly one of lease, key, measurement and all; lift goes with measurement.",
            ),
            Endpoint(
                "GET",
                "/v1/revocations",
                self.revocations,
                "What is revoked, after an entry's number",
                "anybody",
                query=("after", "wait"),
                response={"revocations": listed(_REVOCATION), "next": NUMBER, "later": NUMBER},
                description=f"With wait, up to {MAX_WAIT} seconds, the answer comes when there is news.",
            ),
            Endpoint(
                "POST",
                "/v1/lease/end",
                self.end,
                "End one's own lease",
                "attested enclave",
                request={},
                response={},
            ),
        )

    async def leases(self, request: Request) -> Response:
        policy = self._store.policy(policy_name(request))
        known = callers(self._context, request)
        if not any(who.may(policy, "log") for who in known):
            require(self._context, request, policy, "revoke")
        now = self._context.now()
        live = self._context.leases.live(policy.name, now)
        return JSONResponse({"leases": [lease.to_wire() for lease in live], "now": now, "instances": policy.instances})

    async def revoke(self, request: Request) -> Response:
        body = await read_body(request)
        policy = self._store.policy(policy_name(request))
        by = {"by": str(require(self._context, request, policy, "revoke"))}
        now, lift = self._context.now(), body.pop("lift", False)
        selection = Selection.parse(body)
        if lift is True:
            if not selection.measurement:
                raise UsageError("lift: only a measurement is lifted; a key leaves the list when its certificates end")
            self._context.revocations.lift(policy.name, selection.measurement, by=by, now=now)
            return JSONResponse({"ended": []})
        ended = self._context.revocations.revoke(policy.name, selection, by=by, now=now)
        self._context.watchers.ring()
        return JSONResponse({"ended": [lease.number for lease in ended]})

    async def revocations(self, request: Request) -> Response:
        after, wait = number(request, "after", 0), min(number(request, "wait", 0), MAX_WAIT)
        until, waiting = time.monotonic() + wait, self._context.watchers
        found = self._context.revocations.after(after, self._context.now())
        who = network(request)
        later = LATER if wait and not found and waiting.full(who) else 0
        while not found and not waiting.full(who) and (left := until - time.monotonic()) > 0:
            await waiting.wait(min(left, _LOOK), who)
            found = self._context.revocations.after(after, self._context.now())
        page = first_page(found)
        return JSONResponse(
            {
                "revocations": [one.to_wire() for one in page],
                "next": max((one.number for one in page), default=after),
                "later": later,
            }
        )

    async def end(self, request: Request) -> Response:
        await read_body(request)
        _, lease = attested_lease(self._context, request)
        self._context.leases.end(lease, now=self._context.now())
        return JSONResponse({})


def first_page(found: Sequence[Revocation]) -> Sequence[Revocation]:
    """About so many as make a page: all or none of those that have one number, by which the next page is asked for."""
    end = len(found)
    if end > _PAGE:
        last = found[_PAGE - 1].number
        end = next((at for at in range(_PAGE, end) if found[at].number != last), end)
    return found[:end]
