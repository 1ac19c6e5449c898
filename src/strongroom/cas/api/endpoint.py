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
"""An object's properties, each with its JSON Schema 2020-12; `forms.py` has the usual ones.

A name that ends in ``?`` is of one that may be absent."""


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        path: as Starlette writes it, ``/v1/policies/{namespace}/{name}``.
        summary: what it does, for the OpenAPI document.
        caller: whom it answers.
        request: of the body, in which no other property is accepted; None if it takes none.
        response: of the answer; empty for an empty object.
        query: of the query's parameters; a plain list of names is of numbers that may be absent.
        held: whether a caller's head is checked first and the log's told with the answer.
        early: whether it answers before the log's head is confirmed, and after a fork was seen.
        media: the answer's media type.
        description: what the summary leaves out.
    """

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    caller: Caller
    request: Schema | None = None
    response: Schema | None = None
    query: Schema | Sequence[str] = ()
    held: bool = True
    early: bool = False
    media: str = "application/json"
    description: str = ""

    @property
    def operation(self) -> str:
        """A name of its own."""
        words = [word.strip("{}") for word in self.path.removeprefix("/v1/").split("/")]
        return "-".join([self.method.lower(), *words])
