"""Namespaces: their owners say who else makes policies in them, operators allot them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import read_body
from strongroom.cas.api.callers import callers
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import DIGEST, TEXT, listed
from strongroom.cas.callers.namespaces import Namespace, Namespaces
from strongroom.cas.policy.table import FINGERPRINT
from strongroom.cas.policy.version import POLICY_NAME
from strongroom.cas.wire import text_field
from strongroom.errors import FormatError, UnauthorizedError

_NAMESPACE = {"namespace": TEXT, "owners": listed(DIGEST), "members": listed(DIGEST)}


class NamespacesApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._namespaces = Namespaces(context.store, allotted=context.operation.allotted)

    def endpoints(self) -> Sequence[Endpoint]:
        path, member = "/v1/namespaces/{namespace}", "/v1/namespaces/{namespace}/members/{key}"
        return (
            Endpoint("GET", path, self.get, "Who may make policies in a namespace", "owner", response=_NAMESPACE),
            Endpoint(
                "PUT",
                path,
                self.allot,
                "Give a namespace to a key, as an operator or as its owner",
                "owner",
                request={"to": DIGEST},
                response=_NAMESPACE,
            ),
            Endpoint(
                "PUT",
                member,
                self.allow,
                "Let a key make policies in a namespace",
                "owner",
                request={},
                response=_NAMESPACE,
            ),
            Endpoint(
                "DELETE", member, self.remove, "Let a key make no more policies in it", "owner", response=_NAMESPACE
            ),
        )

    async def get(self, request: Request) -> Response:
        name, _ = self._owner(request, operators_too=True)
        found = self._namespaces.get(name) or Namespace(name, ())
        return JSONResponse(found.to_wire())

    async def allot(self, request: Request) -> Response:
        body = await read_body(request)
        _, by = self._owner(request, operators_too=True)
        name, to = _name(request), _key(text_field(body, "to"))
        return JSONResponse(self._namespaces.allot(name, to, by=by, now=self._context.now()).to_wire())

    async def allow(self, request: Request) -> Response:
        await read_body(request)
        name, by = self._owner(request)
        key = _key(request.path_params["key"])
        return JSONResponse(self._namespaces.allow(name, key, by=by, now=self._context.now()).to_wire())

    async def remove(self, request: Request) -> Response:
        name, by = self._owner(request)
        key = _key(request.path_params["key"])
        return JSONResponse(self._namespaces.remove(name, key, by=by, now=self._context.now()).to_wire())

    def _owner(self, request: Request, *, operators_too: bool = False) -> tuple[str, str]:
        """The namespace that the path names, and who of its owners calls.

        Raises:
            UnauthorizedError: the caller is none. Whether there is such a namespace it does not learn.
        """
        name, known = _name(request), callers(self._context, request)
        found = self._namespaces.get(name)
        may = {*(found.owners if found else ()), *(self._namespaces.operators() if operators_too else ())}
        by = next((one.key for one in known if one.key and one.key in may), None)
        if by is None:
            raise UnauthorizedError(f"namespace {name}: is not the caller's, {known[0]}")
        return name, by


def _name(request: Request) -> str:
    name = str(request.path_params["namespace"])
    if not POLICY_NAME.fullmatch(f"{name}/x"):
        raise FormatError(f"namespace: got {name[:80]!r}, wanted a-z 0-9 . _ -, at most 63 characters")
    return name


def _key(text: str) -> str:
    if not FINGERPRINT.fullmatch(text):
        raise FormatError(f"key: got {text[:80]!r}, wanted its fingerprint, sha256:<64 hex>")
    return text
