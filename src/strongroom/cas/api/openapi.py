"""The API as an OpenAPI 3.1 document, made of the same endpoints as its routes (https://spec.openapis.org/oas/v3.1.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.endpoint import Caller, Endpoint
from strongroom.cas.api.forms import ERROR, HEAD, NUMBER, OBJECT, matching, table
from strongroom.cas.log.head import HEAD_HEADER, PROOF_HEADER
from strongroom.cas.wire import ATTEST_FIRST

Document = dict[str, Any]

_JSON = "application/json"
_KEY, _ATTESTED = "key", "attested"
_SECURITY: Mapping[Caller, list[dict[str, list[str]]]] = {
    "anybody": [],
    "enclave": [{_KEY: []}],
    "attested enclave": [{_ATTESTED: []}],
    "owner": [{_KEY: []}],
    "owner or attested enclave": [{_KEY: []}, {_ATTESTED: []}],
}
_SCHEMES = {
    _KEY: {
        "type": "mutualTLS",
        "description": "A caller is the key of its TLS client certificate, whatever else that certificate says: an "
        "owner's is the one that the policy names, an enclave's the one that its claims name. An owner may "
        "show none, and log in on the connection by POST /v1/login instead, by key or token.",
    },
    _ATTESTED: {
        "type": "mutualTLS",
        "description": "An enclave that has attested on this very connection, by POST /v1/nonce and POST /v1/attest, "
        "under the policy's newest version and lately.",
    },
}
_ANY_STATUS = {
    "400": "malformed, or against the policy",
    "409": "the state is another than the request was made for, the move goes back, or the log is no extension of the "
    "head that the caller has seen",
    "429": "too many requests; Retry-After says when to come back",
    "500": "the CAS failed, or could not get endorsements; nothing was changed",
    "503": "the CAS is not ready, or cannot reach its database",
}
_BODY_STATUS = {
    "408": "the body did not arrive in time",
    "415": "the body is not said to be application/json",
}
_OTHER_STATUS = {
    str(ATTEST_FIRST): "attest first, on this connection and under the policy's newest version",
    "403": "evidence refused, or not allowed",
    "404": "no such policy, or path",
}
_PATH_FORMS = {
    "namespace": matching("[a-z0-9][a-z0-9._-]{0,62}"),
    "name": matching("[a-z0-9][a-z0-9._-]{0,62}"),
}


def openapi_document(endpoints: Sequence[Endpoint], *, version: str) -> Document:
    """The whole document.

    Args:
        version: of the service.
    """
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.1",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Strongroom CAS",
            "version": version,
            "summary": "Configuration and attestation service",
            "description": "HTTP/1.1 over TLS 1.3. docs/spec/cas.md is the specification. Clients know a CAS by the "
            "fingerprint of its root key, and check it before they send a byte.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": _SCHEMES,
            "responses": {
                status: {"description": text, "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
                for status, text in sorted({**_ANY_STATUS, **_BODY_STATUS, **_OTHER_STATUS}.items())
            },
        },
    }


def _operation(endpoint: Endpoint) -> Document:
    statuses = {*_ANY_STATUS, *(_BODY_STATUS if endpoint.request is not None else ())}
    statuses |= {"403"} if endpoint.caller != "anybody" or endpoint.request is not None else set()
    statuses |= {"404"} if "{" in endpoint.path or endpoint.request is not None else set()
    statuses |= {str(ATTEST_FIRST)} if "attested" in endpoint.caller else set()
    operation: Document = {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "security": _SECURITY[endpoint.caller],
        "parameters": _parameters(endpoint),
        "responses": {
            "200": _success(endpoint),
            **{status: {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)},
        },
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.request is not None:
        schema = table(endpoint.request, closed=True)
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return operation


def _success(endpoint: Endpoint) -> Document:
    if endpoint.media.startswith("text/"):
        schema: Document = {"type": "string"}
    else:
        schema = OBJECT if endpoint.response is None else table(endpoint.response)
    success: Document = {"description": "done", "content": {endpoint.media: {"schema": schema}}}
    if endpoint.held:
        success["headers"] = {
            HEAD_HEADER: {"description": "the log's head after the request", "required": True, "schema": HEAD},
            PROOF_HEADER: {
                "description": "the proof that it extends the request's head",
                "schema": matching("(?:[0-9a-f]{64}(?:,[0-9a-f]{64})*)?"),
            },
        }
    return success


def _parameters(endpoint: Endpoint) -> list[Document]:
    names = [part.strip("{}") for part in endpoint.path.split("/") if part.startswith("{")]
    found: list[Document] = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_FORMS.get(name, {"type": "string"})}
        for name in names
    ]
    query = endpoint.query if isinstance(endpoint.query, Mapping) else {f"{name}?": NUMBER for name in endpoint.query}
    for name, form in query.items():
        required = not name.endswith("?")
        found.append({"name": name.rstrip("?"), "in": "query", "required": required, "schema": dict(form)})
    if endpoint.held:
        found.append(
            {
                "name": HEAD_HEADER,
                "in": "header",
                "required": False,
                "description": "the highest head that the caller has seen of the log",
                "schema": HEAD,
            }
        )
    return found


class OpenApi:
    """The document, for whoever asks.

    Args:
        endpoints: all others.
        besides: what it describes too, and others serve.
    """

    def __init__(self, endpoints: Sequence[Endpoint], besides: Sequence[Endpoint] = (), *, version: str) -> None:
        own = Endpoint("GET", "/v1/openapi.json", self.get, "This document", "anybody")
        self.endpoints: Sequence[Endpoint] = (*endpoints, own)
        self.document = openapi_document((*self.endpoints, *besides), version=version)

    async def get(self, request: Request) -> Response:
        return JSONResponse(self.document)
