"""The CAS's HTTP API: an owner applies policies and secrets, an enclave attests and receives (docs/spec/cas.md).

Attestation, kind 1, on one TLS connection; `session.py` is the other end:

1. The enclave connects: TLS 1.3, with its own key, to the CAS that it was measured for.
2. It asks for a nonce and names its policy; the CAS answers both, with the policy's digest.
3. It sends evidence and claims. The CAS completes the evidence with its vendor's endorsements (`completion.py`).
4. The CAS recomputes the report data from that nonce, this connection's exporter and the claims; verifies; appraises
   against the policy; checks that the claims name this CAS, this policy and the key that the TLS handshake proved.
5. It answers with the configuration, HPKE-sealed to the key in the claims, and a certificate for the TLS key. From now
   on the connection is attested: anchors, time tokens, service results and lineage are given on it.
6. The enclave opens the configuration.

Rules:

- Whatever fails leaves the connection not attested, and the nonce used.
- A connection stays attested until it ends, the policy has a new version, or ten minutes have passed; then the enclave
  attests again.
- Between reading a request, with what completes its evidence, and answering it nothing else runs: no policy changes
  halfway through an appraisal.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from strongroom import __version__
from strongroom.attest.appraise import AttestationResult, appraise
from strongroom.attest.binding import EXPORTER_LABEL, NO_BINDER, Kind, parse_canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.result import key_set
from strongroom.attest.token import verify_token
from strongroom.attest.verify import verify
from strongroom.cas.authority import Authority
from strongroom.cas.completion import Complete, Completion, carries_less
from strongroom.cas.lineage import statements
from strongroom.cas.log_api import LogApi, hold, number
from strongroom.cas.log_note import WitnessKey
from strongroom.cas.owners import read_signatures
from strongroom.cas.policy import Policy, parse_policy
from strongroom.cas.refusals import Refusals
from strongroom.cas.store import Store
from strongroom.cas.wire import (
    ATTEST_FIRST,
    ATTESTED_SECONDS,
    CONFIGURATION_INFO,
    TIME_TOKEN,
    b64,
    bytes_field,
    hex_field,
    text_field,
)
from strongroom.channel import TlsInfo, tls_info
from strongroom.crypto import KEY_SIZE, PublicKey, digest, hpke_seal, random_bytes
from strongroom.errors import (
    AttestationError,
    BindingError,
    CasError,
    ChannelError,
    ConflictError,
    FormatError,
    PolicyError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    UnknownPolicyError,
    UsageError,
)
from strongroom.sealed import Root

_MAX_BODY = 1 << 20
_VERSIONS_PAGE = 4  # of a document's largest size each, quoted in JSON
_BODY_SECONDS = 30
_AGAIN = "evidence is good for one nonce on one connection: ask for a nonce on this one and attest again"
_CLAIM_HINTS = {
    "role": "the policy's role says what may attest under it: `strongroom run` a job, `strongroom serve` a service",
    "cas_root": "the enclave was made for another CAS: name this one's root when it is launched",
    "policy": "name the policy that the nonce was asked for, then attest again",
    "policy_digest": "the policy has a new version: ask for a nonce, which brings its digest, and attest again",
    "spki": "attest on the connection that was made with the enclave's own key",
}
_CLAIMS = {"role", "spki", "hpke", "cas_root", "policy", "policy_digest"}
_MODEL_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_log = logging.getLogger("strongroom.cas")

Clock = Callable[[], float]
Handler = Callable[[Request], Awaitable[Response]]


class _AttestFirstError(Exception):
    """Carries an UnauthorizedError to an enclave, with the status that tells it to attest and ask again."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.error = UnauthorizedError(message, hint="attest on this connection, then ask again")


class _TooSlowError(Exception):
    """The caller did not send its request in time."""


_STATUS: list[tuple[type[StrongroomError], int]] = [
    (UnknownPolicyError, 404),
    (UnauthorizedError, 403),
    (AttestationError, 403),
    (ConflictError, 409),
    (RollbackError, 409),
    (FormatError, 400),
    (UsageError, 400),
]


def cas_application(
    store: Store,
    authority: Authority,
    *,
    witnesses: Sequence[WitnessKey] = (),
    complete: Complete | None = None,
    clock: Clock = time.time,
) -> Starlette:
    """The ASGI application of one CAS, to be served by `channel.Server`.

    Args:
        witnesses: whose cosignatures of the log's head it keeps.
        complete: gives evidence its vendor's endorsements; None leaves it with those that it brings.
    """
    cas = _Cas(store, authority, Completion(complete), clock)
    log = LogApi(store, authority, witnesses, owner_key=_owner_key, body=_body)

    def guard(handler: Handler) -> Handler:
        return _guarded(hold(store, _guarded(handler)))

    direct = {"/v1/nonce": guard(cas.nonce), "/v1/attest": guard(cas.attest)}
    routes = [
        Route("/v1/cas", guard(cas.describe)),
        Route("/v1/keys", guard(cas.keys)),
        *(Route(path, handler, methods=["POST"]) for path, handler in direct.items()),
        Route("/v1/time-token", guard(cas.time_token), methods=["POST"]),
        Route("/v1/service", guard(cas.service), methods=["POST"]),
        Route("/v1/lineage", guard(cas.lineage), methods=["POST"]),
        Route("/v1/policies/{namespace}/{name}", guard(cas.get_policy), methods=["GET"]),
        Route("/v1/policies/{namespace}/{name}", guard(cas.put_policy), methods=["PUT"]),
        Route("/v1/policies/{namespace}/{name}/versions", guard(cas.get_versions), methods=["GET"]),
        Route("/v1/policies/{namespace}/{name}/secrets/{secret}", guard(cas.put_secret), methods=["PUT"]),
        Route("/v1/policies/{namespace}/{name}/anchors/{vault}", guard(cas.get_anchor), methods=["GET"]),
        Route("/v1/policies/{namespace}/{name}/anchors/{vault}", guard(cas.put_anchor), methods=["PUT"]),
        Route("/v1/log", guard(log.entries), methods=["GET"]),
        Route("/v1/log/head", guard(log.head), methods=["GET"]),
        Route("/v1/log/consistency", guard(log.consistency), methods=["GET"]),
        Route("/v1/log/cosignatures", guard(log.cosign), methods=["POST"]),
    ]
    application = _Application(routes=routes, exception_handlers={404: _no_such, 405: _no_such})
    application.direct = direct
    # A redirection would be to whatever the Host header says.
    application.router.redirect_slashes = False
    return application


class _Application(Starlette):
    """What every enclave asks at its start goes past routing and middleware, which do nothing for it."""

    direct: Mapping[str, Handler]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self.direct.get(scope["path"]) if scope.get("method") == "POST" else None
        if handler is None:
            await super().__call__(scope, receive, send)
        else:
            response = await handler(Request(scope, receive, send))
            await response(scope, receive, send)


async def _no_such(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    problem = UsageError(
        "request: the CAS knows no such path and method",
        hint="docs/spec/cas.md lists them; `strongroom cas status` shows the CAS's version",
    )
    return JSONResponse(problem.to_wire(), status_code=status)


def _guarded(handler: Handler) -> Handler:
    """Answer every error as the JSON that `errors.from_wire` reads, and never with a stack trace."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except _AttestFirstError as first:
            return JSONResponse(first.error.to_wire(), status_code=ATTEST_FIRST)
        except StrongroomError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            if status == 500:
                _log.error("request failed: %s %r: %s", request.method, request.url.path[:200], error.message)
            return JSONResponse(error.to_wire(), status_code=status)
        except _TooSlowError:
            late = ChannelError(
                f"request: its body did not arrive within {_BODY_SECONDS} seconds", hint="connect and ask again"
            )
            return JSONResponse(late.to_wire(), status_code=408)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:
            _log.exception("request failed: %s %r", request.method, request.url.path[:200])
            failure = CasError("request: the CAS failed to handle it", hint="its own log says why")
            return JSONResponse(failure.to_wire(), status_code=500)

    return guarded


class _Cas:
    def __init__(self, store: Store, authority: Authority, completion: Completion, clock: Clock) -> None:
        self._store = store
        self._authority = authority
        self._completion = completion
        self._clock = clock
        self._refusals = Refusals()

    # Anybody

    async def describe(self, request: Request) -> Response:
        return JSONResponse({"service": "strongroom-cas", "version": __version__, "cas_root": self._authority.cas_root})

    async def keys(self, request: Request) -> Response:
        """The key that signs tokens, as a JWK set, for readers who know no X.509."""
        return JSONResponse(key_set([self._authority.chain]), media_type="application/jwk-set+json")

    async def get_policy(self, request: Request) -> Response:
        return JSONResponse(self._store.signed_policy(_policy_name(request)).to_wire())

    async def get_versions(self, request: Request) -> Response:
        """A policy's versions from the first on, one page."""
        name, after = _policy_name(request), number(request, "after", 0)
        self._store.policy(name)
        page = self._store.policy_versions(name, after=after, limit=_VERSIONS_PAGE)
        following = page[-1].policy.version if len(page) == _VERSIONS_PAGE else None
        return JSONResponse({"versions": [each.to_wire() for each in page], "next": following})

    # Enclaves

    async def nonce(self, request: Request) -> Response:
        """Step 2."""
        body = await _body(request)
        policy = self._store.policy(text_field(body, "policy"))
        nonce = random_bytes(32)
        tls_info(request.scope).session["nonce"] = nonce
        return JSONResponse({"nonce": nonce.hex(), "policy_digest": policy.digest})

    async def attest(self, request: Request) -> Response:
        """Steps 3 to 5."""
        body, tls = await _body(request), tls_info(request.scope)
        tls.session.pop("attested", None)
        tls.session.pop("appraised", None)
        # 3
        nonce, key = tls.session.pop("nonce", None), _enclave_key(tls)
        if nonce is None:
            raise BindingError("nonce: none was asked for on this connection, or it was used already", hint=_AGAIN)
        claims_bytes = bytes_field(body, "claims")
        claims = parse_canonical(claims_bytes)
        policy, evidence = self._store.policy(text_field(claims, "policy")), _evidence(body)
        role = text_field(claims, "role")
        if carries_less(evidence):
            evidence = await self._completed(evidence, policy)
            policy = self._store.policy(policy.name)  # there may be a new version by now
        # 4
        now = self._now()
        binder = tls.export(EXPORTER_LABEL, role.encode())
        expected = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims_bytes)
        with self._recorded_if_refused(policy, now):
            result = self._appraise(evidence, policy, expected, now)
            self._check_claims(claims, policy, key, known=_CLAIMS)
        # 5
        configuration = json.dumps(self._configuration(policy, now)).encode()
        box = hpke_seal(hex_field(claims, "hpke"), configuration, info=CONFIGURATION_INFO)
        certificate = self._authority.certify_enclave(key, policy.name, now=self._utc())
        detail: dict[str, object] = {"role": role, "tee": result.tee, "measurement": result.measurement}
        self._store.record("attested", policy.name, detail | {"version": policy.version}, now=now)
        tls.session["attested"] = (policy.name, policy.digest, now)
        tls.session["appraised"] = result
        return JSONResponse({"configuration": b64(box), "certificate": b64(certificate.der)})

    @contextmanager
    def _recorded_if_refused(self, policy: Policy, now: int) -> Iterator[None]:
        try:
            yield
        except AttestationError as error:
            omitted = self._refusals.admit(policy.name, now)
            if omitted is not None:
                detail: dict[str, object] = {"code": error.code, "reason": error.message[:500]}
                detail |= {"omitted": omitted} if omitted else {}
                self._store.record("refused", policy.name, detail, now=now)
            raise

    async def _completed(self, evidence: Evidence, policy: Policy) -> Evidence:
        """The evidence with endorsements, if its kind is one that the policy accepts: for others nobody is asked."""
        devices = policy.reference.devices
        wanted = {*policy.reference.tees, *(devices.tees if devices else ())}
        if not wanted.issuperset(each.tee for each in (evidence, *evidence.devices)):
            return evidence
        now = self._now()
        with self._recorded_if_refused(policy, now):
            return await self._completion(evidence, now)

    def _appraise(self, evidence: Evidence, policy: Policy, expected: bytes, now: int) -> AttestationResult:
        claims = verify(evidence, now=now, anchors=policy.reference.anchors)
        return appraise(claims, policy.reference, expected_report_data=expected, now=now)

    def _check_claims(self, claims: Mapping[str, Any], policy: Policy, key: PublicKey, *, known: set[str]) -> None:
        if set(claims) != known:
            raise FormatError(f"claims: got {', '.join(sorted(claims))[:200]}, wanted {', '.join(sorted(known))}")
        wanted = {
            "role": policy.role,
            "cas_root": self._authority.cas_root,
            "policy": policy.name,
            "policy_digest": policy.digest,
            "spki": key.fingerprint,
        }
        for field, value in wanted.items():
            if claims[field] != value:
                raise BindingError(
                    f"claims.{field}: got {str(claims[field])[:100]}, wanted {value}", hint=_CLAIM_HINTS[field]
                )

    def _configuration(self, policy: Policy, now: int) -> dict[str, Any]:
        vaults = {}
        for rule in policy.vaults:
            key = self._store.secret(policy.name, _vault_key(rule.name))
            if key is None:
                raise PolicyError(f"vault {rule.name}: its key has not been stored", hint="its owner stores it first")
            vaults[rule.name] = {"key": b64(key), "access": rule.access}
        secrets = {}
        for secret in policy.secrets:
            if secret.generate is not None:
                drawn = self._store.secret_or_new(policy.name, f"generated:{secret.name}", secret.generate, now=now)
                secrets[secret.environment] = drawn.hex()
                continue
            value = self._store.secret(policy.name, secret.name)
            if value is None:
                raise PolicyError(f"secret {secret.name}: has not been stored", hint="its owner stores it first")
            # As Python's own os.environ holds bytes that are not UTF-8.
            secrets[secret.environment] = value.decode("utf-8", "surrogateescape")
        return {"vaults": vaults, "environment": secrets}

    async def time_token(self, request: Request) -> Response:
        await _body(request)
        self._attested_policy(request)
        return JSONResponse({"token": self._authority.time_token(now=self._now())})

    async def service(self, request: Request) -> Response:
        """Kind 2: appraise the evidence that a service will show to all its clients, and sign the result."""
        body, tls = await _body(request), tls_info(request.scope)
        policy, key = self._attested_policy(request), _enclave_key(tls)
        if policy.role != "service":
            raise UnauthorizedError(
                f"policy {policy.name}: its role is {policy.role}, wanted service",
                hint='a policy for `strongroom serve` says role = "service"',
            )
        token, claims_bytes = text_field(body, "time_token"), bytes_field(body, "claims")
        claims = parse_canonical(claims_bytes)
        evidence = shown = _evidence(body)
        if carries_less(shown):
            evidence = await self._completed(shown, policy)
            policy = self._attested_policy(request)
        now = self._now()
        with self._recorded_if_refused(policy, now):
            verify_token(token, self._authority.identity.key.public, TIME_TOKEN, now=now)
            fresh = digest(token.encode("ascii"))
            expected = report_data(Kind.SERVICE, fresh=fresh, binder=NO_BINDER, claims=claims_bytes)
            result = self._appraise(evidence, policy, expected, now)
            self._check_claims(claims, policy, key, known=_CLAIMS | {"models"})
        models = claims["models"]
        if not isinstance(models, dict) or not all(_MODEL_DIGEST.fullmatch(str(value)) for value in models.values()):
            raise FormatError("claims.models: wanted an object of digests, sha256:<64 hex>")
        self._store.record("service", policy.name, {"measurement": result.measurement}, now=now)
        signed = self._authority.result_token(result, policy, fresh=fresh, claims=digest(claims_bytes).hex())
        answer: dict[str, object] = {"result": signed, "cas_chain": [b64(c.der) for c in self._authority.chain]}
        # What clients have to verify it with.
        return JSONResponse(answer if evidence is shown else answer | {"evidence": evidence.to_wire()})

    async def lineage(self, request: Request) -> Response:
        """Sign what an enclave says of its run, and what is known here of the enclave."""
        body, now = await _body(request), self._now()
        policy = self._attested_policy(request)
        appraised = tls_info(request.scope).session["appraised"]
        stated = statements(body, policy=policy, appraised=appraised, cas_root=self._authority.cas_root, now=now)
        signed = [self._authority.sign_lineage(statement) for statement in stated]
        together = digest(*(digest(envelope.payload) for envelope in signed)).hex()
        detail: dict[str, object] = {"invocation": stated[0].run.invocation, "measurement": appraised.measurement}
        detail |= {"version": policy.version, "outputs": len(signed), "statements": together}
        self._store.record("lineage", policy.name, detail, now=now)
        return JSONResponse({"envelopes": [envelope.to_bytes().decode() for envelope in signed]})

    # Enclaves and owners

    async def get_anchor(self, request: Request) -> Response:
        policy = self._may_use_vault(request, write=False)
        root = self._store.anchor(policy.name, request.path_params["vault"])
        return JSONResponse({"root": None if root is None else str(root)})

    async def put_anchor(self, request: Request) -> Response:
        body = await _body(request)
        policy = self._may_use_vault(request, write=True)
        old = body.get("old")
        self._store.advance_anchor(
            policy.name,
            request.path_params["vault"],
            None if old is None else Root.parse(text_field(body, "old")),
            Root.parse(text_field(body, "new")),
            may_go_back=_is_owner(request, policy),
            now=self._now(),
        )
        return JSONResponse({})

    def _may_use_vault(self, request: Request, *, write: bool) -> Policy:
        policy = self._store.policy(_policy_name(request))
        name, attested = request.path_params["vault"], tls_info(request.scope).session.get("attested")
        enclave = attested is not None and attested[0] == policy.name
        if enclave:
            self._attested_policy(request)
        else:
            _require_owner(request, policy)
        rule = policy.vault(name)
        if rule is None:
            raise PolicyError(
                f"vault: policy {policy.name} names none called {name[:80]!r}",
                hint="`strongroom cas show` prints the policy; add the vault in its next version",
            )
        if enclave and write and rule.access == "read-only":
            raise UnauthorizedError(
                f"vault {rule.name}: this enclave may only read it",
                hint='to let it write, say access = "read-write" in the policy\'s next version',
            )
        return policy

    def _attested_policy(self, request: Request) -> Policy:
        """The policy that an enclave attested under on this connection, lately, and no newer one has replaced."""
        attested = tls_info(request.scope).session.get("attested")
        if attested is None:
            raise _AttestFirstError("connection: no enclave has attested on it")
        policy = self._store.policy(attested[0])
        if policy.digest != attested[1]:
            raise _AttestFirstError(f"policy {policy.name}: has a new version, {policy.version}; attest again")
        if not 0 <= self._now() - attested[2] < ATTESTED_SECONDS:
            raise _AttestFirstError(f"connection: attested longer than {ATTESTED_SECONDS} seconds ago; attest again")
        return policy

    # Owners

    async def put_policy(self, request: Request) -> Response:
        body, owner = await _body(request), _owner_key(request)
        text = text_field(body, "text")
        name = parse_policy(text).name
        if name != _policy_name(request):
            raise PolicyError(
                f"policy.name: got {name}, wanted {_policy_name(request)[:200]}",
                hint="store a policy under the name that its document says",
            )
        signatures = read_signatures(body.get("signatures", []))
        policy = self._store.put_policy(
            text, bytes_field(body, "signature"), owner, signatures=signatures, now=self._now()
        )
        return JSONResponse({"version": policy.version, "digest": policy.digest})

    async def put_secret(self, request: Request) -> Response:
        body = await _body(request)
        policy = self._store.policy(_policy_name(request))
        _require_owner(request, policy)
        name, value = request.path_params["secret"], bytes_field(body, "value")
        if name in {_vault_key(v.name) for v in policy.vaults}:
            if len(value) != KEY_SIZE:
                raise FormatError(
                    f"value: {len(value)} bytes, wanted a vault's key of {KEY_SIZE}",
                    hint="`strongroom cas entrust` stores it",
                )
        elif name in {s.name for s in policy.secrets if s.generate is None}:
            if b"\0" in value:
                raise FormatError(
                    "value: holds a zero byte, which no environment variable can", hint="encode it as text"
                )
        else:
            raise PolicyError(
                f"secret: policy {policy.name} names none called {name[:80]!r} to be stored",
                hint="`strongroom cas show` prints the policy; add the secret in its next version",
            )
        self._store.put_secret(policy.name, name, value, now=self._now())
        return JSONResponse({})

    def _now(self) -> int:
        return int(self._clock())

    def _utc(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)


def _evidence(body: Mapping[str, Any]) -> Evidence:
    wire = body.get("evidence")
    if not isinstance(wire, dict):
        raise FormatError("evidence: missing")
    return Evidence.from_wire(wire)


def _policy_name(request: Request) -> str:
    return f"{request.path_params['namespace']}/{request.path_params['name']}"


def _vault_key(vault: str) -> str:
    """The name of the secret that is a vault's key. The names of other secrets hold no colon."""
    return f"vault:{vault}"


def _enclave_key(tls: TlsInfo) -> PublicKey:
    if tls.peer is None:
        raise BindingError(
            "TLS: the enclave showed no certificate",
            hint="connect with a certificate for the key that the claims name, then attest",
        )
    return tls.peer.key


def _owner_key(request: Request) -> PublicKey:
    peer = tls_info(request.scope).peer
    if peer is None:
        raise UnauthorizedError(
            "TLS: a client certificate with the owner's key is wanted", hint="give the owner's key: --owner FILE"
        )
    return peer.key


def _is_owner(request: Request, policy: Policy) -> bool:
    return _owner_key(request).fingerprint == policy.owner


def _require_owner(request: Request, policy: Policy) -> None:
    if not _is_owner(request, policy):
        got = _owner_key(request).fingerprint
        raise UnauthorizedError(
            f"policy {policy.name}: the caller's key is {got}, the owner's is {policy.owner}",
            hint="give the key that signed the policy: --owner FILE",
        )


async def _body(request: Request) -> dict[str, Any]:
    raw = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > _MAX_BODY:
                    raise FormatError(f"request: longer than {_MAX_BODY} bytes", hint="send less in one request")
    except TimeoutError:
        raise _TooSlowError from None
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError("request: not a JSON object")
    return value
