"""Logging in on a connection, for whom TLS does not show: keys in tokens of hardware, and people of an issuer.

Rules:

- A key signs this connection's exporter; its login lasts as long as the connection.
- A token of an issuer is a bearer's: whoever holds it is taken for the person, on any connection, until it expires.
- Logging in takes nothing away that the connection had before.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.cas.api.bodies import read_body
from strongroom.cas.api.callers import LOGINS
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BASE64, NUMBER, TEXT, or_null
from strongroom.cas.callers.administrators import LOGIN_ROLE, Principal, login_statement
from strongroom.cas.wire import bytes_field, text_field
from strongroom.channel import TlsInfo, tls_info
from strongroom.crypto import PublicKey
from strongroom.errors import FormatError, UnauthorizedError

_MAX_LOGINS = 4  # of one connection; the latest stay


class LoginApi:
    def __init__(self, context: Context) -> None:
        self._context = context

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "POST",
                "/v1/login",
                self.login,
                "Log in on this connection, by key or token",
                "anybody",
                request={"key?": BASE64, "signature?": BASE64, "token?": TEXT},
                response={"caller": TEXT, "expires": or_null(NUMBER)},
                description="Exactly key and signature, or token.",
            ),
        )

    async def login(self, request: Request) -> Response:
        body, tls = await read_body(request), tls_info(request.scope)
        if set(body) == {"key", "signature"}:
            who, until = self._by_key(PublicKey(bytes_field(body, "key")), bytes_field(body, "signature"), tls), None
        elif set(body) == {"token"}:
            who, until = await self._by_token(text_field(body, "token"))
        else:
            raise FormatError("login: wanted exactly key and signature, or token")
        logins = [one for one in tls.session.get(LOGINS, ()) if one[0] != who]
        tls.session[LOGINS] = (*logins, (who, until))[-_MAX_LOGINS:]
        return JSONResponse({"caller": str(who), "expires": until})

    def _by_key(self, key: PublicKey, signature: bytes, tls: TlsInfo) -> Principal:
        binder = tls.export(EXPORTER_LABEL, LOGIN_ROLE.encode())
        key.verify(signature, login_statement(binder, self._context.authority.cas_root))
        return Principal.of_key(key)

    async def _by_token(self, token: str) -> tuple[Principal, int]:
        authenticator = self._context.operation.authenticator
        if authenticator is None:
            raise UnauthorizedError(
                "token: this CAS takes those of no issuer",
                hint="its operator starts it with --oidc ISSUER --oidc-audience NAME; or log in by key",
            )
        return await authenticator.authenticate(token, now=self._context.now())
