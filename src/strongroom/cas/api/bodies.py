"""What a request says: its body, and the parts of its path and query."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from strongroom.attest.evidence import Evidence
from strongroom.errors import FormatError, UsageError

MAX_BODY = 1 << 20
BODY_SECONDS = 30


class TooSlowError(Exception):
    """The caller did not send its request in time."""


async def read_body(request: Request) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        FormatError: it is none, or too long.
        TooSlowError: it did not arrive in time.
    """
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY:
                    raise FormatError(f"request: longer than {MAX_BODY} bytes", hint="send less in one request")
    except TimeoutError:
        raise TooSlowError from None
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError("request: not a JSON object")
    return value


def evidence_field(body: Mapping[str, Any]) -> Evidence:
    """The field `evidence`. Raises FormatError."""
    wire = body.get("evidence")
    if not isinstance(wire, dict):
        raise FormatError("evidence: missing")
    return Evidence.from_wire(wire)


def policy_name(request: Request) -> str:
    """The policy that the path names."""
    return f"{request.path_params['namespace']}/{request.path_params['name']}"


def number(request: Request, name: str, default: int | None = None) -> int:
    """A number in the request's query. Raises UsageError if it is none, or missing without a default."""
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(f"{name}: got {(text or '')[:20]!r}, wanted a number")
    return int(text)
