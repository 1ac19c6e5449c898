"""A CAS that is sealed: it answers who it is, and takes shares until there are enough of them (docs/spec/cas.md).

It has no key that anybody knows: that of its CA is sealed too. So it shows a TLS key of its own making, and evidence
that binds this connection, that key and an HPKE key to what runs. Holders verify that and then seal their shares to
the HPKE key; `cli/cas/unseal.py` is their end.

Rules:

- A share is taken once. One that opens under no key of this process, one that is not what its commitment says, and one
  that is there already are refused and counted, and nothing of them is said.
- The shares are overwritten once the secret is there, as far as Python lets one: bytes that libraries copied are not.
"""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Callable, Sequence
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from strongroom.attest.attester import Attester
from strongroom.attest.binding import EXPORTER_LABEL, FRESH_SIZE, Kind, canonical, report_data
from strongroom.cas.api.bodies import address, expecting, network, read_body
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.api.forms import BASE64, BOOLEAN, EVIDENCE, HASH, NUMBER, TEXT, or_null
from strongroom.cas.api.guard import guarded
from strongroom.cas.callers.limits import Limits
from strongroom.cas.threads import making_evidence
from strongroom.cas.unseal.shamir import combine
from strongroom.cas.unseal.share_files import ShareSet
from strongroom.cas.wire import b64, bytes_field, hex_field
from strongroom.channel import Identity, Server, tls_info
from strongroom.crypto import HpkeKey, digest
from strongroom.errors import CasError, ConflictError, FormatError, NotReadyError, TamperedError, UnauthorizedError

ROLE = "unseal"
"""The role in the claims of a sealed CAS, and the context of the exporter that its evidence is bound to."""

_SHARE_INFO = b"strongroom/cas/unseal/share/v1\0"


def share_info(claims: bytes) -> bytes:
    """The HPKE info under which a share is sealed to a CAS that showed those claims."""
    return _SHARE_INFO + digest(claims)


class LockedCas:
    """Collects the shares of one set.

    Args:
        attester: None where this CAS has no evidence.
        then: the way in which the secret will be kept from now on, or empty.
        opened: called when there are enough of them.
        limits: on what one address may ask; by default a CAS's own.
    """

    def __init__(
        self,
        shared: ShareSet,
        identity: Identity,
        *,
        attester: Attester | None = None,
        then: str = "",
        opened: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
    ) -> None:
        self._set, self._attester, self._opened = shared, attester, opened
        self._limits = limits or Limits.of()
        self._hpke = HpkeKey()
        self._making = making_evidence()
        self._shares: dict[int, bytearray] = {}
        self._refused = 0
        self._secret: bytes | None = None
        self._claims = canonical(
            {
                "role": ROLE,
                "spki": identity.key.public.fingerprint,
                "hpke": self._hpke.public.hex(),
                "set": shared.name,
                "threshold": shared.threshold,
                "then": then,
            }
        )

    @property
    def secret(self) -> bytes | None:
        """The secret, once there are enough shares."""
        return self._secret

    def application(self) -> Starlette:
        routes = [Route(each.path, self._handler(each), methods=[each.method]) for each in self.endpoints()]

        async def sealed(request: Request, error: Exception) -> Response:
            del request, error
            problem = NotReadyError(
                f"CAS: is sealed; {len(self._shares)} of the {self._set.threshold} shares that open it are there",
                hint="its holders unseal it: `strongroom cas unseal --share FILE`",
            )
            return JSONResponse(problem.to_wire(), status_code=503, headers={"retry-after": "5"})

        return Starlette(routes=routes, exception_handlers={404: sealed, 405: sealed})

    def _handler(self, endpoint: Endpoint) -> Handler:
        limits, handler = self._limits, endpoint.handler
        if endpoint.request is not None:
            handler = expecting((name.rstrip("?") for name in endpoint.request), handler)

        async def limited(request: Request) -> Response:
            limits.check_address(address(request))
            return await handler(request)

        return guarded(limited)

    def endpoints(self) -> Sequence[Endpoint]:
        path = "/v1/unseal"
        status = {
            "unseal": TEXT,
            "set": HASH,
            "threshold": NUMBER,
            "shares": NUMBER,
            "refused": NUMBER,
            "open": BOOLEAN,
        }
        offer = {"claims": BASE64, "evidence": or_null(EVIDENCE)}
        return (
            Endpoint("GET", path, self.status, "How many shares are there", "anybody", response=status),
            Endpoint(
                "POST",
                f"{path}/offer",
                self.offer,
                "Who takes shares, and evidence of it",
                "anybody",
                request={"nonce": HASH},
                response=offer,
            ),
            Endpoint("POST", path, self.give, "Give a share", "anybody", request={"share": BASE64}, response=status),
        )

    async def status(self, request: Request) -> Response:
        del request
        return JSONResponse(self._told())

    def _told(self) -> dict[str, object]:
        told: dict[str, object] = {"unseal": "shares", "set": self._set.name, "threshold": self._set.threshold}
        return told | {"shares": len(self._shares), "refused": self._refused, "open": self._secret is not None}

    async def offer(self, request: Request) -> Response:
        """The claims, and evidence of kind 1 over the caller's nonce and this connection."""
        nonce = hex_field(await read_body(request), "nonce")
        if len(nonce) != FRESH_SIZE:
            raise FormatError(f"nonce: {len(nonce)} bytes, wanted {FRESH_SIZE}")
        answer: dict[str, object] = {"claims": b64(self._claims), "evidence": None}
        if self._attester is not None:
            binder = tls_info(request.scope).export(EXPORTER_LABEL, ROLE.encode())
            bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=self._claims)
            evidence = await self._making.call(partial(self._attester.evidence, bound), who=network(request))
            answer["evidence"] = evidence.to_wire()
        return JSONResponse(answer)

    async def give(self, request: Request) -> Response:
        """Take a share: HPKE-sealed, its index before it."""
        box = bytes_field(await read_body(request), "share")
        try:
            self._take(box)
        except (UnauthorizedError, ConflictError):
            self._refused += 1
            raise
        if len(self._shares) >= self._set.threshold:
            self._combine()
        return JSONResponse(self._told())

    def _take(self, box: bytes) -> None:
        if self._secret is not None:
            raise ConflictError("share: this CAS is open already")
        try:
            opened = bytearray(self._hpke.open(box, info=share_info(self._claims)))
        except TamperedError:
            raise UnauthorizedError(
                "share: was not sealed to this CAS as it runs now",
                hint="ask it for its offer again: each start has a key of its own",
            ) from None
        index, share = (opened[0] if opened else 0), opened[1:]
        wipe(opened)
        self._set.check(index, bytes(share))
        if index in self._shares:
            wipe(share)
            raise ConflictError(f"share {index}: has been given already", hint="another holder's is wanted")
        self._shares[index] = share

    def _combine(self) -> None:
        self._secret = combine({index: bytes(share) for index, share in self._shares.items()})
        for share in self._shares.values():
            wipe(share)
        self._opened()


def wipe(buffer: bytearray) -> None:
    """Overwrite it with zeros."""
    buffer[:] = bytes(len(buffer))


def unseal_by_shares(
    shared: ShareSet,
    sock: socket.socket,
    *,
    attester: Attester | None = None,
    tell: Callable[[str], None] = lambda line: None,
    then: str = "",
) -> bytes:
    """Wait at that socket until enough shares have come; the secret. The socket stays bound and listening.

    Raises:
        CasError: the process was told to stop before.
    """
    identity = Identity.fresh("Strongroom CAS, sealed", now=dt.datetime.now(dt.UTC))
    stop: list[Callable[[], None]] = []
    locked = LockedCas(shared, identity, attester=attester, then=then, opened=lambda: stop[0]())
    # A duplicate, which the server closes: who connects in between waits in the queue of the same socket.
    server = Server(locked.application(), sock.dup(), identity)
    stop.append(server.stop)
    shown = f"[{server.host}]" if ":" in server.host else server.host
    tell(
        f"sealed: https://{shown}:{server.port} waits for {shared.threshold} of {shared.count} shares; its key of this "
        f"start is {identity.key.public.fingerprint}"
    )
    server.run()
    if locked.secret is None:
        raise CasError("unseal: stopped before enough shares had come")
    return locked.secret
