"""Grants: what a policy's people let other policies import. They are stored, listed and withdrawn here.

An administrator whose right `grants` is for some resources alone sees, ends and replaces the grants of nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import policy_name, read_body
from strongroom.cas.api.callers import may, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BASE64, HASH, NUMBER, POLICY, SIGNATURE, TEXT, listed, table
from strongroom.cas.enclaves.imports import StoredGrant, received_grants, store_grant, stored_grants, withdraw_grant
from strongroom.cas.policy.grants import GRANT_ID, Grant, SignedGrant
from strongroom.cas.policy.owners import MAX_OWNERS
from strongroom.cas.policy.version import Policy
from strongroom.errors import FormatError, GrantError

_SIGNED = {
    "grant": TEXT,
    "administrator": BASE64,
    "signature": BASE64,
    "signatures": listed(SIGNATURE, maxItems=2 * MAX_OWNERS),
}
_SHOWN = {**_SIGNED, "id": HASH, "state": TEXT}
_RECEIVED = {
    "from": POLICY,
    "id": HASH,
    "resources": listed(TEXT),
    "purpose": TEXT,
    "expires": NUMBER,
    "state": TEXT,
}


class GrantsApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        path = "/v1/policies/{namespace}/{name}/grants"
        one = f"{path}/{{id}}"
        return (
            Endpoint(
                "GET",
                path,
                self.every,
                "The newest grant to each importer, and those to it",
                "owner",
                response={"grants": listed(table(_SHOWN)), "received": listed(table(_RECEIVED))},
            ),
            Endpoint("GET", one, self.get, "One of them", "owner", response=_SHOWN),
            Endpoint("PUT", one, self.put, "Store a signed grant", "owner", request=_SIGNED, response={}),
            Endpoint("DELETE", one, self.delete, "Withdraw a grant", "owner", response={}),
        )

    async def every(self, request: Request) -> Response:
        policy, _ = self._required(request)
        granted = [self._shown(policy, each) for each in self._mine(request, policy)]
        received = [
            {
                "from": exporter.name,
                "id": each.signed.grant.id,
                "resources": list(each.signed.grant.resources),
                "purpose": each.signed.grant.purpose,
                "expires": each.signed.grant.expires,
                "state": each.state(exporter, self._context.now()),
            }
            for each, exporter in received_grants(self._store, policy)
        ]
        return JSONResponse({"grants": granted, "received": received})

    async def get(self, request: Request) -> Response:
        policy, _ = self._required(request)
        wanted = _grant_id(request)
        for each in self._mine(request, policy):
            if each.signed.grant.id == wanted:
                return JSONResponse(self._shown(policy, each))
        raise GrantError(f"grant: policy {policy.name} has none with the id {wanted}")

    async def put(self, request: Request) -> Response:
        body = await read_body(request)
        policy, who = self._required(request)
        signed = SignedGrant.from_wire(body)
        if signed.grant.id != _grant_id(request):
            raise FormatError(f"grant: its id is {signed.grant.id}, the path names another")
        may_end = partial(self._required_over, request, policy)
        store_grant(self._store, policy, signed, who, self._context.now(), may_end=may_end)
        return JSONResponse({})

    async def delete(self, request: Request) -> Response:
        policy, who = self._required(request)
        may_end = partial(self._required_over, request, policy)
        withdraw_grant(self._store, policy.name, _grant_id(request), who, self._context.now(), may_end=may_end)
        return JSONResponse({})

    def _required(self, request: Request) -> tuple[Policy, str]:
        """The exporting policy, and who of its administrators calls."""
        policy = self._store.policy(policy_name(request))
        return policy, str(require(self._context, request, policy, "grants"))

    def _required_over(self, request: Request, policy: Policy, grant: Grant) -> None:
        """Raises UnauthorizedError unless the caller may grant all that the grant is of."""
        for resource in grant.resources:
            require(self._context, request, policy, "grants", resource)

    def _mine(self, request: Request, policy: Policy) -> list[StoredGrant]:
        """The grants whose resources are the caller's to grant."""
        return [
            each
            for each in stored_grants(self._store, policy.name)
            if all(may(self._context, request, policy, "grants", one) for one in each.signed.grant.resources)
        ]

    def _shown(self, policy: Policy, each: StoredGrant) -> dict[str, object]:
        state = each.state(policy, self._context.now())
        return each.signed.to_wire() | {"id": each.signed.grant.id, "state": state}


def _grant_id(request: Request) -> str:
    text: str = request.path_params["id"]
    if not GRANT_ID.fullmatch(text):
        raise FormatError(f"grant: got the id {text[:80]!r}, wanted 64 hexadecimal digits")
    return text
