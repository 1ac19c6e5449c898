"""The mesh: an enclave joins it, and is told who else is there (docs/spec/mesh.md).

To wait for news an enclave has a connection of its own, on which it attests nothing: it shows the key of its lease.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import network, read_body
from strongroom.cas.api.callers import attested_lease, enclave_key
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import DIGEST, HASH, NUMBER, POLICY, TEXT, listed, matching, or_null, table
from strongroom.cas.api.leases import LATER, MAX_WAIT
from strongroom.cas.policy.version import Policy
from strongroom.cas.wire import text_field
from strongroom.channel import tls_info
from strongroom.errors import FormatError, UnauthorizedError

_LOOK = 1.0  # how often one looks for whose lease has ended, and for what other instances have told
_ENDPOINT = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([0-9.]{7,15})):([1-9][0-9]{0,4})")
_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")  # 32 bytes
_MEMBER = table(
    {
        "policy": POLICY,
        "number": NUMBER,
        "address": TEXT,
        "key": DIGEST,
        "endpoint": TEXT,
        "ports": listed(NUMBER),
        "wireguard?": TEXT,
    }
)
_PLACE = table({"policy": POLICY, "first": TEXT, "count": NUMBER})
_TOLD = {"members": listed(_MEMBER), "places": listed(_PLACE), "state": HASH}


class MeshApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "POST",
                "/v1/mesh/join",
                self.join,
                "Be told of to peers, as one whose proxy listens there",
                "attested enclave",
                request={"endpoint": matching(_ENDPOINT.pattern), "wireguard?": matching(_KEY.pattern)},
                response={
                    "number": NUMBER,
                    "address": TEXT,
                    "instances": or_null(NUMBER),
                    "tasks": listed(TEXT),
                    **_TOLD,
                },
            ),
            Endpoint(
                "POST",
                "/v1/mesh/members",
                self.members,
                "Who else is in the mesh",
                "enclave",
                request={"policy": POLICY, "state?": HASH, "wait?": NUMBER},
                response={**_TOLD, "later": NUMBER, "joined": {"type": "boolean"}},
                description=f"With wait, up to {MAX_WAIT} seconds, the answer comes when it is another than `state`.",
            ),
        )

    async def join(self, request: Request) -> Response:
        body = await read_body(request)
        endpoint, key = _endpoint(body), _key(body)
        policy, lease = attested_lease(self._context, request)
        now = self._context.now()
        place = self._context.mesh.join(policy, lease, endpoint, now=now, wireguard=key)
        told = self._context.mesh.told(policy, lease.key, now=now)
        self._context.watchers.ring()
        answer = {"number": place.number, "address": str(place.address), "instances": policy.instances}
        answer |= {"tasks": list(policy.mesh.tasks) if policy.mesh else []}
        return JSONResponse(answer | told)

    async def members(self, request: Request) -> Response:
        body = await read_body(request)
        name, known = text_field(body, "policy"), text_field(body, "state") if "state" in body else ""
        wait = body.get("wait", 0)
        if type(wait) is not int or wait < 0:
            raise FormatError(f"wait: got {wait!r:.40}, wanted a number of seconds")
        until, waiting, who = time.monotonic() + min(wait, MAX_WAIT), self._context.watchers, network(request)
        key = enclave_key(tls_info(request.scope)).fingerprint
        told = self._context.mesh.told(self._living(name, key), key, now=self._context.now())
        later = LATER if wait and told["state"] == known and waiting.full(who) else 0
        while told["state"] == known and not waiting.full(who) and (left := until - time.monotonic()) > 0:
            await waiting.wait(min(left, _LOOK), who)
            told = self._context.mesh.told(self._living(name, key), key, now=self._context.now())
        return JSONResponse(told | {"later": later, "joined": self._context.mesh.joined(name, key)})

    def _living(self, name: str, key: str) -> Policy:
        """The policy under which that key has a lease that lasts. Raises UnauthorizedError, RevokedError."""
        now = self._context.now()
        policy = self._store.policy(name)
        lease = self._context.leases.lease(name, key)
        if lease is not None:
            self._context.revocations.check(name, key, lease.measurement, now)
        if lease is None or now >= lease.expires or policy.mesh is None:
            raise UnauthorizedError(
                f"mesh: this connection's key has no lease of policy {name}, or the policy no table [mesh]",
                hint="attest, join, then ask",
            )
        return policy


def _endpoint(body: dict[str, object]) -> str:
    text = text_field(body, "endpoint")
    found = _ENDPOINT.fullmatch(text)
    try:
        if found is None or int(found[3]) >= 1 << 16:
            raise ValueError
        address = ipaddress.ip_address(found[1] or found[2])
        if address.is_unspecified or address.is_multicast or address.is_link_local:
            raise ValueError
    except ValueError:
        raise FormatError(f"endpoint: got {text[:80]!r}, wanted ADDRESS:PORT of one machine, in numbers") from None
    return text


def _key(body: dict[str, object]) -> str:
    """The key of its device; empty without one."""
    text = text_field(body, "wireguard") if "wireguard" in body else ""
    if text and not _KEY.fullmatch(text):
        raise FormatError(f"wireguard: got {text[:80]!r}, wanted a public key, 32 bytes in base64")
    return text
