"""Readiness: what a CAS waits for after its start, and what its operators say to that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import read_body
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.api.forms import BASE64, BOOLEAN, DIGEST, HASH, HEAD, NUMBER, OBJECT, TEXT, listed
from strongroom.cas.log.head import Head
from strongroom.cas.start.gate import Gate
from strongroom.cas.start.mode import Restart
from strongroom.cas.threads import Patience
from strongroom.cas.wire import bytes_field, text_field
from strongroom.crypto import PublicKey
from strongroom.errors import FormatError

_STATE = {
    "ready": BOOLEAN,
    "state": {"enum": ["ready", "awaiting", "forked"]},
    "awaited": TEXT,
    "start": HASH,
    "restart": OBJECT,
    "operators": listed(DIGEST),
    "operators_needed": NUMBER,
}


def opened(gate: Gate, handler: Handler) -> Handler:
    """That handler, once the CAS may serve."""

    async def handle(request: Request) -> Response:
        gate.check()
        return await handler(request)

    return handle


class GateApi:
    def __init__(self, context: Context) -> None:
        self._context, self._gate = context, context.gate
        self._making = Patience("start mode", at_once=1, hint="vote again in a while")

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "GET",
                "/v1/gate",
                self.state,
                "Whether the log's head is confirmed, and by whom it has to be",
                "anybody",
                response=_STATE,
                early=True,
            ),
            Endpoint(
                "POST",
                "/v1/gate/confirmations",
                self.confirm,
                "An operator's word for the highest head that it has seen",
                "anybody",
                request={"key": BASE64, "signature": BASE64, "head": HEAD, "named?": BOOLEAN},
                response=_STATE,
                early=True,
            ),
            Endpoint(
                "POST",
                "/v1/gate/restart",
                self.change,
                "An operator's wish for another start mode",
                "anybody",
                request={"key": BASE64, "signature": BASE64, "restart": OBJECT},
                response={**_STATE, "changed": BOOLEAN},
            ),
        )

    async def state(self, request: Request) -> Response:
        del request
        return JSONResponse(self._told())

    async def confirm(self, request: Request) -> Response:
        body = await read_body(request)
        head = Head.parse(text_field(body, "head"))
        key, signature = PublicKey(bytes_field(body, "key")), bytes_field(body, "signature")
        self._gate.confirm(key, signature, head, now=self._context.now(), named=body.get("named") is True)
        return JSONResponse(self._told())

    async def change(self, request: Request) -> Response:
        body = await read_body(request)
        if not isinstance(body.get("restart"), dict):
            raise FormatError("restart: wanted an object")
        new = Restart.from_wire(body["restart"])
        key, signature = PublicKey(bytes_field(body, "key")), bytes_field(body, "signature")
        changed = False
        if self._gate.vote(key, signature, new):
            await self._making.call(partial(self._gate.make, new))
            changed = self._gate.change(new, now=self._context.now())
        return JSONResponse(self._told() | {"changed": changed})

    def _told(self) -> dict[str, Any]:
        operators = self._gate.operators()
        return {
            "ready": self._gate.ready,
            "state": self._gate.state,
            "awaited": self._gate.awaited,
            "start": self._gate.start.hex(),
            "restart": self._gate.restart.to_wire(),
            "operators": list(operators.keys),
            "operators_needed": operators.needed,
        }
