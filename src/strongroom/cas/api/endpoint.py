"""One operation of the API: the route that serves it and its entry in the OpenAPI document are both made from this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]
Caller = Literal["anybody", "enclave", "attested enclave", "owner", "owner or attested enclave"]
Schema = Mapping[str, Any]
"""JSON Schema 2020-12 of one object's properties."""


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        path: as Starlette writes it, ``/v1/policies/{namespace}/{name}``.
        summary: what it does, for the OpenAPI document.
        caller: whom it answers.
        request: of the body; None if it takes none.
        response: of the answer.
        query: names of the query's parameters.
        held: whether a caller's head is checked first and the log's told with the answer.
    """

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    caller: Caller
    request: Schema | None = None
    response: Schema | None = None
    query: Sequence[str] = ()
    held: bool = True
