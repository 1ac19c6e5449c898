"""The CAS's HTTP API: an owner applies policies and secrets, an enclave attests and receives.

Attestation, kind 1 (docs/spec/evidence.md), on one TLS connection:

1. The enclave asks for a nonce and names its policy; the CAS answers both, with the policy's digest.
2. The enclave sends evidence and claims. The CAS recomputes the report data from that nonce, this connection's exporter
   and the claims; verifies; appraises against the policy; checks that the claims name this CAS, this policy and the key
   that the TLS handshake proved.
3. It answers with the configuration, HPKE-sealed to the key in the claims, and a certificate for the TLS key.
4. The connection is now attested: anchors, time tokens and service results are given on it.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from strongroom import __version__
from strongroom.attest.appraise import AttestationResult, appraise
from strongroom.attest.binding import EXPORTER_LABEL, Kind, parse_canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.token import verify_token
from strongroom.attest.verify import verify
from strongroom.cas.authority import Authority
from strongroom.cas.policy import Policy, parse_policy
from strongroom.cas.store import Store
from strongroom.cas.wire import CONFIGURATION_INFO, TIME_TOKEN, b64, bytes_field, hex_field, text_field
from strongroom.channel import TlsInfo, tls_info
from strongroom.crypto import PublicKey, digest, hpke_seal, random_bytes
from strongroom.errors import (
    AttestationError,
    BindingError,
    CasError,
    ConflictError,
    FormatError,
    PolicyError,
    StrongroomError,
    UnauthorizedError,
    UnknownPolicyError,
    UsageError,
)
from strongroom.sealed import Root

_MAX_BODY = 1 << 20
_log = logging.getLogger("strongroom.cas")

Clock = Callable[[], float]
Handler = Callable[[Request], Awaitable[Response]]

_STATUS: list[tuple[type[StrongroomError], int]] = [
    (UnknownPolicyError, 404),
    (UnauthorizedError, 403),
    (AttestationError, 403),
    (ConflictError, 409),
    (FormatError, 400),
    (PolicyError, 400),
    (UsageError, 400),
]


def cas_application(store: Store, authority: Authority, *, clock: Clock = time.time) -> Starlette:
    """The ASGI application of one CAS, to be served by `channel.Server`."""
    cas = _Cas(store, authority, clock)
    routes = [
        Route("/v1/cas", _guard(cas.describe)),
        Route("/v1/nonce", _guard(cas.nonce), methods=["POST"]),
        Route("/v1/attest", _guard(cas.attest), methods=["POST"]),
        Route("/v1/time-token", _guard(cas.time_token), methods=["POST"]),
        Route("/v1/service", _guard(cas.service), methods=["POST"]),
        Route("/v1/policies/{namespace}/{name}", _guard(cas.get_policy), methods=["GET"]),
        Route("/v1/policies/{namespace}/{name}", _guard(cas.put_policy), methods=["PUT"]),
        Route("/v1/policies/{namespace}/{name}/secrets/{secret}", _guard(cas.put_secret), methods=["PUT"]),
        Route("/v1/policies/{namespace}/{name}/anchors/{vault}", _guard(cas.get_anchor), methods=["GET"]),
        Route("/v1/policies/{namespace}/{name}/anchors/{vault}", _guard(cas.put_anchor), methods=["PUT"]),
        Route("/v1/log", _guard(cas.get_log), methods=["GET"]),
    ]
    return Starlette(routes=routes)


def _guard(handler: Handler) -> Handler:
    """Answer every error as the JSON that `errors.from_wire` reads, and never with a stack trace."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except StrongroomError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            return JSONResponse(error.to_wire(), status_code=status)
        except Exception:
            _log.exception("request failed: %s %s", request.method, request.url.path)
            return JSONResponse(CasError("request: the CAS failed to handle it").to_wire(), status_code=500)

    return guarded


class _Cas:
    def __init__(self, store: Store, authority: Authority, clock: Clock) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock

    # Anybody

    async def describe(self, request: Request) -> Response:
        return JSONResponse({"service": "strongroom-cas", "version": __version__, "cas_root": self._authority.cas_root})

    async def get_policy(self, request: Request) -> Response:
        text, signature = self._store.policy_document(_policy_name(request))
        return JSONResponse({"text": text, "signature": b64(signature)})

    # Enclaves

    async def nonce(self, request: Request) -> Response:
        body = await _body(request)
        policy = self._store.policy(text_field(body, "policy"))
        nonce = random_bytes(32)
        tls_info(request.scope).session["nonce"] = nonce
        return JSONResponse({"nonce": nonce.hex(), "policy_digest": policy.digest})

    async def attest(self, request: Request) -> Response:
        body, tls, now = await _body(request), tls_info(request.scope), self._now()
        nonce = tls.session.pop("nonce", None)
        if nonce is None:
            raise BindingError("nonce: none was asked for on this connection, or it was used already")
        claims_bytes = bytes_field(body, "claims")
        claims = parse_canonical(claims_bytes)
        policy = self._store.policy(text_field(claims, "policy"))
        role = text_field(claims, "role")
        try:
            expected = report_data(
                Kind.SESSION, fresh=nonce, binder=tls.export(EXPORTER_LABEL, role.encode()), claims=claims_bytes
            )
            result = self._appraise(body, policy, expected, now)
            self._check_claims(claims, policy, tls)
            public = tls.peer.key if tls.peer else None
            if public is None:
                raise BindingError("TLS: the enclave showed no certificate")
        except AttestationError as error:
            self._store.record("refused", policy.name, {"code": error.code, "reason": error.message[:500]}, now=now)
            raise
        configuration = json.dumps(self._configuration(policy, now)).encode()
        self._store.record(
            "attested", policy.name, {"role": role, "tee": result.tee, "measurement": result.measurement}, now=now
        )
        tls.session["attested"] = policy.name
        tls.session["role"] = role
        certificate = self._authority.certify_enclave(public, policy.name, now=self._utc())
        box = hpke_seal(hex_field(claims, "hpke"), configuration, info=CONFIGURATION_INFO)
        return JSONResponse({"configuration": b64(box), "certificate": b64(certificate.der)})

    def _appraise(self, body: Mapping[str, Any], policy: Policy, expected: bytes, now: int) -> AttestationResult:
        wire = body.get("evidence")
        if not isinstance(wire, dict):
            raise FormatError("evidence: missing")
        claims = verify(Evidence.from_wire(wire), now=now)
        return appraise(claims, policy.reference, expected_report_data=expected, now=now)

    def _check_claims(self, claims: Mapping[str, Any], policy: Policy, tls: TlsInfo) -> None:
        wanted = {
            "role": policy.role,
            "cas_root": self._authority.cas_root,
            "policy_digest": policy.digest,
            "spki": tls.peer.key.fingerprint if tls.peer else "a TLS client certificate",
        }
        for field, value in wanted.items():
            if claims.get(field) != value:
                raise BindingError(f"claims.{field}: got {str(claims.get(field))[:100]}, wanted {value}")

    def _configuration(self, policy: Policy, now: int) -> dict[str, Any]:
        vaults = {}
        for rule in policy.vaults:
            key = self._store.secret(policy.name, f"vault:{rule.name}")
            if key is None:
                raise PolicyError(f"vault {rule.name}: its key has not been stored", hint="its owner stores it first")
            vaults[rule.name] = {"key": b64(key), "access": rule.access}
        secrets = {}
        for secret in policy.secrets:
            value = (
                self._store.secret(policy.name, secret.name)
                if secret.generate is None
                else self._store.secret_or_new(policy.name, secret.name, secret.generate, now=now)
            )
            if value is None:
                raise PolicyError(f"secret {secret.name}: has not been stored", hint="its owner stores it first")
            text = value.hex() if secret.generate is not None else value.decode("utf-8", "surrogateescape")
            secrets[secret.environment] = text
        return {"vaults": vaults, "environment": secrets}

    async def time_token(self, request: Request) -> Response:
        _attested(request)
        return JSONResponse({"token": self._authority.time_token(now=self._now())})

    async def service(self, request: Request) -> Response:
        """Kind 2: appraise the evidence that a service will show to all its clients, and sign the result."""
        body, tls, now = await _body(request), tls_info(request.scope), self._now()
        policy = self._store.policy(_attested(request))
        token, claims_bytes = text_field(body, "time_token"), bytes_field(body, "claims")
        verify_token(token, self._authority.identity.key.public, TIME_TOKEN, now=now)
        expected = report_data(Kind.SERVICE, fresh=digest(token.encode("ascii")), binder=bytes(32), claims=claims_bytes)
        result = self._appraise(body, policy, expected, now)
        claims = parse_canonical(claims_bytes)
        self._check_claims(claims, policy, tls)
        if claims.get("policy") != policy.name or policy.role != "service":
            raise BindingError(f"claims.policy: got {claims.get('policy')}, wanted {policy.name} with role service")
        self._store.record("service", policy.name, {"measurement": result.measurement}, now=now)
        signed = self._authority.result_token(
            {
                "policy": policy.name,
                "policy_digest": policy.digest,
                "tee": result.tee,
                "measurement": result.measurement,
                "vendor_root": result.vendor_root,
                "claims": digest(claims_bytes).hex(),
            },
            now=now,
        )
        return JSONResponse({"result": signed, "cas_chain": [b64(c.der) for c in self._authority.chain]})

    # Enclaves and owners

    async def get_anchor(self, request: Request) -> Response:
        policy = self._may_use_vault(request, write=False)
        root = self._store.anchor(policy, request.path_params["vault"])
        return JSONResponse({"root": None if root is None else str(root)})

    async def put_anchor(self, request: Request) -> Response:
        body = await _body(request)
        policy = self._may_use_vault(request, write=True)
        old = body.get("old")
        self._store.advance_anchor(
            policy,
            request.path_params["vault"],
            None if old is None else Root.parse(text_field(body, "old")),
            Root.parse(text_field(body, "new")),
            now=self._now(),
        )
        return JSONResponse({})

    def _may_use_vault(self, request: Request, *, write: bool) -> str:
        policy = self._store.policy(_policy_name(request))
        rule = policy.vault(request.path_params["vault"])
        if rule is None:
            raise PolicyError(f"vault: policy {policy.name} names none called {request.path_params['vault']!r}")
        if tls_info(request.scope).session.get("attested") == policy.name:
            if write and rule.access != "read-write":
                raise UnauthorizedError(f"vault {rule.name}: this enclave may only read it")
        else:
            _require_owner(request, policy)
        return policy.name

    # Owners

    async def put_policy(self, request: Request) -> Response:
        body, tls = await _body(request), tls_info(request.scope)
        text, owner = text_field(body, "text"), _client_key(tls)
        name = parse_policy(text).name
        if name != _policy_name(request):
            raise PolicyError(f"policy.name: got {name}, wanted {_policy_name(request)}")
        policy = self._store.put_policy(text, bytes_field(body, "signature"), owner, now=self._now())
        return JSONResponse({"version": policy.version, "digest": policy.digest})

    async def put_secret(self, request: Request) -> Response:
        body = await _body(request)
        policy = self._store.policy(_policy_name(request))
        _require_owner(request, policy)
        name = request.path_params["secret"]
        known = {s.name for s in policy.secrets if s.generate is None} | {f"vault:{v.name}" for v in policy.vaults}
        if name not in known:
            raise PolicyError(f"secret: policy {policy.name} names none called {name!r} to be stored")
        self._store.put_secret(policy.name, name, bytes_field(body, "value"), now=self._now())
        return JSONResponse({})

    async def get_log(self, request: Request) -> Response:
        """The entries of the policies that the caller owns."""
        owner = _client_key(tls_info(request.scope)).fingerprint
        after = request.query_params.get("after", "0")
        if not after.isdigit() or len(after) > 18:
            raise UsageError(f"after: got {after[:20]!r}, wanted a number")
        entries = self._store.log(after=int(after))
        owned = {name for name in {e.policy for e in entries} if self._store.policy(name).owner == owner}
        return JSONResponse({"entries": [e.to_wire() for e in entries if e.policy in owned]})

    def _now(self) -> int:
        return int(self._clock())

    def _utc(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)


def _policy_name(request: Request) -> str:
    return f"{request.path_params['namespace']}/{request.path_params['name']}"


def _attested(request: Request) -> str:
    policy = tls_info(request.scope).session.get("attested")
    if policy is None:
        raise UnauthorizedError("connection: no enclave has attested on it")
    return str(policy)


def _client_key(tls: TlsInfo) -> PublicKey:
    if tls.peer is None:
        raise UnauthorizedError("TLS: a client certificate with the owner's key is wanted")
    return tls.peer.key


def _require_owner(request: Request, policy: Policy) -> None:
    got = _client_key(tls_info(request.scope)).fingerprint
    if got != policy.owner:
        raise UnauthorizedError(f"policy {policy.name}: the caller's key is {got}, the owner's is {policy.owner}")


async def _body(request: Request) -> dict[str, Any]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY:
            raise FormatError(f"request: longer than {_MAX_BODY} bytes")
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError("request: not a JSON object")
    return value
