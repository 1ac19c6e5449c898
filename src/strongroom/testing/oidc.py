"""An OpenID Connect issuer on this machine, for tests: discovery, a set of keys that rotates, and tokens."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from strongroom.channel import Identity, Server, bind
from strongroom.crypto import CertificateAuthority, SigningKey


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(key: SigningKey, header: Mapping[str, object], claims: object) -> str:
    """A JWT that says exactly that, signed by ES256."""
    begun = ".".join(b64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{begun}.{b64url(key.sign(begun.encode()))}"


class Issuer:
    """An issuer whose answers a test may change.

    Attributes:
        url: its address, which its tokens say.
        keys: its published set, by identifier: JWKs.
        metadata: what discovery answers besides.
        asked: paths that were asked for, in order.
        redirect: where it sends who asks, if anywhere.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.key, self.kid = SigningKey.generate(), "key-1"
        self.keys: dict[str, dict[str, Any]] = {}
        self.metadata: dict[str, Any] = {}
        self.asked: list[str] = []
        self.redirect: str | None = None
        self.publish()

    def publish(self) -> None:
        """Put the key that signs into the published set."""
        x, y = self.key.public.point[:32], self.key.public.point[32:]
        jwk = {"kty": "EC", "crv": "P-256", "x": b64url(x), "y": b64url(y), "kid": self.kid, "use": "sig"}
        self.keys[self.kid] = jwk | {"alg": "ES256"}

    def rotate(self) -> None:
        """Sign with a new key, which is published in place of the old ones."""
        self.key, self.kid = SigningKey.generate(), f"key-{int(self.kid.rpartition('-')[2]) + 1}"
        self.keys.clear()
        self.publish()

    def token(self, subject: str, audience: object, *, now: float, **changes: object) -> str:
        """A token of ten minutes. `changes` are claims, None takes one out; ``header`` changes the header."""
        said: dict[str, object] = {"iss": self.url, "sub": subject, "aud": audience}
        said |= {"iat": int(now), "exp": int(now) + 600}
        header: dict[str, object] = {"alg": "ES256", "kid": self.kid, "typ": "JWT"}
        header |= changes.pop("header", {})  # type: ignore[call-overload]
        said |= changes
        return signed(self.key, *({k: v for k, v in part.items() if v is not None} for part in (header, said)))

    def application(self) -> Starlette:
        async def discovery(request: Request) -> Response:
            return self._answer(request, {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.metadata)

        async def keys(request: Request) -> Response:
            return self._answer(request, {"keys": list(self.keys.values())})

        return Starlette(routes=[Route("/.well-known/openid-configuration", discovery), Route("/keys", keys)])

    def _answer(self, request: Request, value: object) -> Response:
        self.asked.append(request.url.path)
        return RedirectResponse(self.redirect) if self.redirect else JSONResponse(value)


@contextmanager
def running_issuer(directory: Path) -> Iterator[tuple[Issuer, Path]]:
    """An issuer on loopback, and the file of the authority that issued its certificate."""
    now, key = dt.datetime.now(dt.UTC), SigningKey.generate()
    day = dt.timedelta(days=1)
    authority = CertificateAuthority.create("issuer's authority", now=now, days=1)
    leaf = authority.issue(key.public, "issuer", now=now, lifetime=day, hosts=["localhost"])
    ca = directory / "issuer-ca.pem"
    ca.write_bytes(authority.certificate.pem())
    sock = bind("127.0.0.1", 0)
    issuer = Issuer(f"https://localhost:{sock.getsockname()[1]}")
    with Server(issuer.application(), sock, Identity(key, (leaf, authority.certificate))):
        yield issuer, ca
