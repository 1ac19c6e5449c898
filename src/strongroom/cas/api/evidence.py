"""The CAS's own evidence, for whoever is about to trust it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.cas.api.bodies import network, read_body
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BASE64, EVIDENCE, HASH
from strongroom.cas.client.own_evidence import PATH, ROLE
from strongroom.cas.wire import hex_field
from strongroom.channel import tls_info


class EvidenceApi:
    def __init__(self, context: Context) -> None:
        self._context = context

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "POST",
                PATH,
                self.evidence,
                "Evidence of the CAS itself, for this connection",
                "anybody",
                request={"nonce": HASH},
                response={"evidence": EVIDENCE, "claims": BASE64},
                early=True,
            ),
        )

    async def evidence(self, request: Request) -> Response:
        nonce = hex_field(await read_body(request), "nonce")
        binder = tls_info(request.scope).export(EXPORTER_LABEL, ROLE.encode())
        made = await self._context.own.make(nonce, binder, now=self._context.now(), who=network(request))
        return JSONResponse(made)
