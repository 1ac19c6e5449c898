"""Anchors of sealed things: the root that is the latest, told to and moved by enclaves and administrators."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import policy_name, read_body
from strongroom.cas.api.callers import attested_policy, may, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Caller, Endpoint
from strongroom.cas.policy import Policy
from strongroom.cas.wire import text_field
from strongroom.channel import tls_info
from strongroom.errors import PolicyError, UnauthorizedError
from strongroom.sealed import Root


class AnchorsApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        path = "/v1/policies/{namespace}/{name}/anchors/{vault}"
        caller: Caller = "owner or attested enclave"
        return (
            Endpoint("GET", path, self.get, "The newest root of a vault", caller),
            Endpoint("PUT", path, self.put, "Move a vault's anchor", caller),
        )

    async def get(self, request: Request) -> Response:
        policy = self._may_use(request, write=False)
        root = self._store.anchor(policy.name, request.path_params["vault"])
        return JSONResponse({"root": None if root is None else str(root)})

    async def put(self, request: Request) -> Response:
        body = await read_body(request)
        policy = self._may_use(request, write=True)
        vault, old = request.path_params["vault"], body.get("old")
        self._store.advance_anchor(
            policy.name,
            vault,
            None if old is None else Root.parse(text_field(body, "old")),
            Root.parse(text_field(body, "new")),
            may_go_back=may(self._context, request, policy, "anchors", f"vault:{vault}"),
            now=self._context.now(),
        )
        return JSONResponse({})

    def _may_use(self, request: Request, *, write: bool) -> Policy:
        policy = self._store.policy(policy_name(request))
        name, attested = request.path_params["vault"], tls_info(request.scope).session.get("attested")
        enclave = attested is not None and attested[0] == policy.name
        if enclave:
            attested_policy(self._context, request)
        else:
            require(self._context, request, policy, "anchors", f"vault:{name}")
        rule = policy.vault(name)
        if rule is None:
            raise PolicyError(
                f"vault: policy {policy.name} names none called {name[:80]!r}",
                hint="`strongroom cas show` prints the policy; add the vault in its next version",
            )
        if enclave and write and rule.access == "read-only":
            raise UnauthorizedError(
                f"vault {rule.name}: this enclave may only read it",
                hint='to let it write, say access = "read-write" in the policy\'s next version',
            )
        return policy
