"""How a client logs in on each of its connections to a CAS: the other end is `api/login.py`."""

from __future__ import annotations

from collections.abc import Callable

from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.cas.callers.administrators import LOGIN_ROLE, login_statement
from strongroom.cas.log.head import Ask, Greeting
from strongroom.cas.wire import b64
from strongroom.channel import TlsStream
from strongroom.crypto import Signer

_LOGIN = "/v1/login"


def login_by_key(key: Signer, cas_root: str) -> Greeting:
    """Prove a key with which TLS cannot be done, since a token keeps it."""

    def greet(stream: TlsStream, ask: Ask) -> None:
        binder = stream.export(EXPORTER_LABEL, LOGIN_ROLE.encode())
        ask(_LOGIN, {"key": b64(key.public.spki), "signature": b64(key.sign(login_statement(binder, cas_root)))})

    return greet


def login_by_token(token: Callable[[], str]) -> Greeting:
    """Show an issuer's token, which is asked for anew for each connection: it may have been replaced meanwhile."""

    def greet(stream: TlsStream, ask: Ask) -> None:
        ask(_LOGIN, {"token": token()})

    return greet
