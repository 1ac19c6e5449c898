"""What a request says: its body, and the parts of its path and query."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from strongroom.attest.evidence import Evidence
from strongroom.cas.api.endpoint import Handler
from strongroom.cas.callers.limits import network_of
from strongroom.errors import FormatError, UsageError

MAX_BODY = 1 << 20
BODY_SECONDS = 30
_FIELDS, _SIZE = "strongroom.fields", "strongroom.size"


class TooSlowError(Exception):
    """The caller did not send its request in time."""


class NotJsonError(Exception):
    """The caller does not say that its body is JSON: a form that a page made a browser send, perhaps."""


def expecting(fields: Iterable[str], handler: Handler) -> Handler:
    """That handler, for which `read_body` refuses a field that is none of these."""
    known = frozenset(fields)

    async def handle(request: Request) -> Response:
        request.scope[_FIELDS] = known
        return await handler(request)

    return handle


async def read_body(request: Request) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        FormatError: it is none, too long, or has a field twice or one that this request does not have.
        NotJsonError: it is not said to be JSON.
        TooSlowError: it did not arrive in time.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise NotJsonError
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                request.scope[_SIZE] = len(raw)
                if len(raw) > MAX_BODY:
                    raise FormatError(f"request: longer than {MAX_BODY} bytes", hint="send less in one request")
    except TimeoutError:
        raise TooSlowError from None
    try:
        # As text: of bytes Python would take UTF-16 and UTF-32 too.
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError("request: not a JSON object, or not one that has each name once")
    unknown = sorted(value.keys() - request.scope.get(_FIELDS, value.keys()))
    if unknown:
        raise FormatError(
            f"request: has an unknown field {unknown[0][:80]!r}",
            hint="GET /v1/openapi.json shows the fields that this CAS knows",
        )
    return value


def body_size(request: Request) -> int:
    """How many bytes `read_body` has read of it."""
    size: int = request.scope.get(_SIZE, 0)
    return size


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError  # which of two a reader takes is not to matter
    return value


def _no_constant(name: str) -> Any:
    raise ValueError  # NaN and infinities are Python's, not JSON's


def evidence_field(body: Mapping[str, Any]) -> Evidence:
    """The field `evidence`. Raises FormatError."""
    wire = body.get("evidence")
    if not isinstance(wire, dict):
        raise FormatError("evidence: missing")
    return Evidence.from_wire(wire)


def address(request: Request) -> str:
    """Where it comes from."""
    return request.client.host if request.client else "unknown"


def network(request: Request) -> str:
    """Whom that address stands for."""
    return network_of(address(request))


def policy_name(request: Request) -> str:
    """The policy that the path names."""
    return f"{request.path_params['namespace']}/{request.path_params['name']}"


def number(request: Request, name: str, default: int | None = None) -> int:
    """A number in the request's query. Raises UsageError if it is none, or missing without a default."""
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise UsageError(f"{name}: given {len(given)} times, wanted once")
    text = given[0] if given else None
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(f"{name}: got {(text or '')[:20]!r}, wanted a number")
    return int(text)
