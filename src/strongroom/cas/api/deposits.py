"""Deposits: secrets that attested enclaves write, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import policy_name, read_body
from strongroom.cas.api.callers import attested_lease
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BASE64
from strongroom.cas.enclaves.configuration import as_variable
from strongroom.cas.wire import MAX_DEPOSIT, bytes_field
from strongroom.channel import tls_info
from strongroom.errors import FormatError, PolicyError, UnauthorizedError


class DepositsApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        path = "/v1/policies/{namespace}/{name}/deposits/{secret}"
        about = "A secret that the policy has as `deposited`"
        return (Endpoint("PUT", path, self.put, about, "attested enclave", request={"value": BASE64}, response={}),)

    async def put(self, request: Request) -> Response:
        """Attested write: the log says which measurement wrote it, under which lease."""
        body, name = await read_body(request), request.path_params["secret"]
        policy, lease = attested_lease(self._context, request)
        if policy.name != policy_name(request):
            raise UnauthorizedError(f"policy: the enclave attested under {policy.name}, wanted the one it deposits in")
        rule = policy.secret(name)
        if rule is None or not rule.deposited:
            raise PolicyError(
                f"secret: policy {policy.name} names none called {name[:80]!r} that an enclave deposits",
                hint="deposited = true in its [[secrets]] makes one",
            )
        value = bytes_field(body, "value")
        if len(value) > MAX_DEPOSIT:
            raise FormatError(f"value: {len(value)} bytes, wanted at most {MAX_DEPOSIT}")
        if name in as_variable(policy) and b"\0" in value:
            raise FormatError("value: holds a zero byte, which no variable and no argument can")
        measurement = tls_info(request.scope).session["appraised"].measurement
        self._store.deposit(
            policy.name, name, value, lease=lease.number, measurement=measurement, now=self._context.now()
        )
        return JSONResponse({})
