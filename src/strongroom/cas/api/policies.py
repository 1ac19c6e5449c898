"""Policies and their secrets: anybody reads a policy, its administrators store versions and secrets."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import number, policy_name, read_body
from strongroom.cas.api.callers import owner_key, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.configuration import vault_key_name
from strongroom.cas.owners import read_signatures
from strongroom.cas.policy import parse_policy
from strongroom.cas.wire import bytes_field, text_field
from strongroom.crypto import KEY_SIZE
from strongroom.errors import FormatError, PolicyError

_VERSIONS_PAGE = 4  # of a document's largest size each, quoted in JSON


class PoliciesApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        policy = "/v1/policies/{namespace}/{name}"
        return (
            Endpoint("GET", policy, self.get, "A policy's newest version", "anybody"),
            Endpoint("PUT", policy, self.put, "Store a policy's first or next version", "owner"),
            Endpoint("GET", f"{policy}/versions", self.versions, "A policy's history", "anybody", query=("after",)),
            Endpoint("PUT", f"{policy}/secrets/{{secret}}", self.put_secret, "Store or replace a secret", "owner"),
        )

    async def get(self, request: Request) -> Response:
        return JSONResponse(self._store.signed_policy(policy_name(request)).to_wire())

    async def versions(self, request: Request) -> Response:
        """A policy's versions from the first on, one page."""
        name, after = policy_name(request), number(request, "after", 0)
        self._store.policy(name)
        page = self._store.policy_versions(name, after=after, limit=_VERSIONS_PAGE)
        following = page[-1].policy.version if len(page) == _VERSIONS_PAGE else None
        return JSONResponse({"versions": [each.to_wire() for each in page], "next": following})

    async def put(self, request: Request) -> Response:
        body, owner = await read_body(request), owner_key(request)
        text = text_field(body, "text")
        name = parse_policy(text).name
        if name != policy_name(request):
            raise PolicyError(
                f"policy.name: got {name}, wanted {policy_name(request)[:200]}",
                hint="store a policy under the name that its document says",
            )
        signatures = read_signatures(body.get("signatures", []))
        policy = self._store.put_policy(
            text, bytes_field(body, "signature"), owner, signatures=signatures, now=self._context.now()
        )
        return JSONResponse({"version": policy.version, "digest": policy.digest})

    async def put_secret(self, request: Request) -> Response:
        body = await read_body(request)
        policy = self._store.policy(policy_name(request))
        name = request.path_params["secret"]
        require(self._context, request, policy, "secrets", name if ":" in name else f"secret:{name}")
        value = bytes_field(body, "value")
        if name in {vault_key_name(v.name) for v in policy.vaults}:
            if len(value) != KEY_SIZE:
                raise FormatError(
                    f"value: {len(value)} bytes, wanted a vault's key of {KEY_SIZE}",
                    hint="`strongroom cas entrust` stores it",
                )
        elif name in {s.name for s in policy.secrets if s.generate is None}:
            if b"\0" in value:
                raise FormatError(
                    "value: holds a zero byte, which no environment variable can", hint="encode it as text"
                )
        else:
            raise PolicyError(
                f"secret: policy {policy.name} names none called {name[:80]!r} to be stored",
                hint="`strongroom cas show` prints the policy; add the secret in its next version",
            )
        self._store.put_secret(policy.name, name, value, now=self._context.now())
        return JSONResponse({})
