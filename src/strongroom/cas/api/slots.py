"""Key slots: the keys that the CAS keeps for slots of vaults (docs/spec/cas.md, "Key slots")."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import policy_name, read_body
from strongroom.cas.api.callers import attested_policy, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Caller, Endpoint
from strongroom.cas.api.forms import BASE64, BOOLEAN, or_null
from strongroom.cas.policy.version import Policy
from strongroom.cas.wire import SLOT_NAME, b64, bytes_field
from strongroom.channel import tls_info
from strongroom.crypto import KEY_SIZE, equal
from strongroom.errors import ConflictError, FormatError


class SlotsApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        path = "/v1/policies/{namespace}/{name}/slots/{slot}"
        reader: Caller = "owner or attested enclave"
        return (
            Endpoint("GET", path, self.get, "A slot's key", reader, response={"key": or_null(BASE64)}),
            Endpoint("PUT", path, self.put, "Keep a new slot's key", "owner", request={"key": BASE64}, response={}),
            Endpoint("DELETE", path, self.delete, "Forget a slot's key", "owner", response={"removed": BOOLEAN}),
        )

    async def get(self, request: Request) -> Response:
        """A key leaves the CAS here: the log says so."""
        policy, slot = self._store.policy(policy_name(request)), _slot(request)
        session = tls_info(request.scope).session
        attested = session.get("attested")
        if attested is not None and attested[0] == policy.name:
            attested_policy(self._context, request)
            who = str(session["appraised"].measurement)
        else:
            who = self._administrator(request, policy, slot)
        key = self._store.secret(policy.name, f"slot:{slot}")
        if key is not None:
            self._store.record("slot-opened", policy.name, {"slot": slot, "by": who}, now=self._context.now())
        return JSONResponse({"key": None if key is None else b64(key)})

    async def put(self, request: Request) -> Response:
        body = await read_body(request)
        policy, slot = self._store.policy(policy_name(request)), _slot(request)
        who = self._administrator(request, policy, slot)
        key = bytes_field(body, "key")
        if len(key) != KEY_SIZE:
            raise FormatError(f"key: {len(key)} bytes, wanted {KEY_SIZE}")
        with self._store.transaction():
            kept = self._store.secret(policy.name, f"slot:{slot}")
            if kept is None:
                self._store.put_row(
                    "secrets",
                    policy.name,
                    f"slot:{slot}",
                    key,
                    event="slot",
                    policy=policy.name,
                    detail={"slot": slot, "by": who},
                    now=self._context.now(),
                )
            elif not equal(kept, key):
                raise ConflictError(f"slot {slot}: keeps another key", hint="a slot's key never changes: make a slot")
        return JSONResponse({})

    async def delete(self, request: Request) -> Response:
        policy, slot = self._store.policy(policy_name(request)), _slot(request)
        who = self._administrator(request, policy, slot)
        removed = self._store.delete_row(
            "secrets",
            policy.name,
            f"slot:{slot}",
            event="slot-removed",
            policy=policy.name,
            detail={"slot": slot, "by": who},
            now=self._context.now(),
        )
        return JSONResponse({"removed": removed})

    def _administrator(self, request: Request, policy: Policy, slot: str) -> str:
        return str(require(self._context, request, policy, "secrets", f"slot:{slot}"))


def _slot(request: Request) -> str:
    name: str = request.path_params["slot"]
    if not SLOT_NAME.fullmatch(name):
        raise FormatError(f"slot: got {name[:80]!r}, wanted 32 hexadecimal digits")
    return name
