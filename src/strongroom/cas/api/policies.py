"""Policies and their secrets: anybody reads a policy, its administrators store versions and secrets."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import number, policy_name, read_body
from strongroom.cas.api.callers import caller_keys, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BASE64, DIGEST, NUMBER, SIGNATURE, TEXT, listed, or_null, table
from strongroom.cas.callers.namespaces import Namespaces
from strongroom.cas.enclaves.configuration import as_variable, sealed_key_name, vault_key_name
from strongroom.cas.policy.owners import MAX_OWNERS, read_signatures
from strongroom.cas.policy.version import Policy, parse_policy, verify_policy
from strongroom.cas.start.reserved import check_reserved
from strongroom.cas.wire import bytes_field, text_field
from strongroom.crypto import KEY_SIZE, PublicKey
from strongroom.errors import FormatError, PolicyError, VerificationError

_SIGNED = {"text": TEXT, "signature": BASE64, "owner": BASE64, "signatures": listed(SIGNATURE)}
_VERSIONS_PAGE = 4  # of a document's largest size each, quoted in JSON


class PoliciesApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._namespaces = Namespaces(context.store, allotted=context.operation.allotted)

    def endpoints(self) -> Sequence[Endpoint]:
        policy = "/v1/policies/{namespace}/{name}"
        return (
            Endpoint("GET", policy, self.get, "A policy's newest version", "anybody", response=_SIGNED),
            Endpoint(
                "PUT",
                policy,
                self.put,
                "Store a policy's first or next version",
                "owner",
                request={"text": TEXT, "signature": BASE64, "signatures?": listed(SIGNATURE, maxItems=2 * MAX_OWNERS)},
                response={"version": NUMBER, "digest": DIGEST},
            ),
            Endpoint(
                "GET",
                f"{policy}/versions",
                self.versions,
                "A policy's history",
                "anybody",
                query={"after?": NUMBER},
                response={"versions": listed(table(_SIGNED)), "next": or_null(NUMBER)},
            ),
            Endpoint(
                "PUT",
                f"{policy}/secrets/{{secret}}",
                self.put_secret,
                "Store or replace a secret",
                "owner",
                request={"value": BASE64},
                response={},
            ),
        )

    async def get(self, request: Request) -> Response:
        return JSONResponse(self._store.signed_policy(policy_name(request)).to_wire())

    async def versions(self, request: Request) -> Response:
        """A policy's versions from the first on, one page."""
        name, after = policy_name(request), number(request, "after", 0)
        self._store.policy(name)
        page = self._store.policy_versions(name, after=after, limit=_VERSIONS_PAGE)
        following = page[-1].policy.version if len(page) == _VERSIONS_PAGE else None
        return JSONResponse({"versions": [each.to_wire() for each in page], "next": following})

    async def put(self, request: Request) -> Response:
        body, known = await read_body(request), caller_keys(self._context, request)
        text, signature = text_field(body, "text"), bytes_field(body, "signature")
        keys = _signers(known, text, signature)  # before it is parsed, which may take long
        read = parse_policy(text)
        name = read.name
        if name != policy_name(request):
            raise PolicyError(
                f"policy.name: got {name}, wanted {policy_name(request)[:200]}",
                hint="store a policy under the name that its document says",
            )
        signatures = read_signatures(body.get("signatures", []))
        now = self._context.now()
        signer = _signer(keys, read)
        check_reserved(self._store, self._context.authority, read)
        with self._store.transaction():
            # Whoever may make it there has signed it, or the transaction is undone.
            also = self._namespaces.admit(name, read.owner)
            policy = self._store.put_policy(read, signature, signer, signatures=signatures, also=also, now=now)
        return JSONResponse({"version": policy.version, "digest": policy.digest})

    async def put_secret(self, request: Request) -> Response:
        body = await read_body(request)
        policy = self._store.policy(policy_name(request))
        name = request.path_params["secret"]
        by = require(self._context, request, policy, "secrets", name if ":" in name else f"secret:{name}")
        value = bytes_field(body, "value")
        if name in _keys(policy):
            if len(value) != KEY_SIZE:
                raise FormatError(
                    f"value: {len(value)} bytes, wanted a vault's key of {KEY_SIZE}",
                    hint="`strongroom cas entrust` stores it",
                )
        elif name in {s.name for s in policy.secrets if s.generate is None and not s.deposited and not s.source}:
            if b"\0" in value and name in as_variable(policy):
                raise FormatError(
                    "value: holds a zero byte, which no environment variable can", hint="encode it as text"
                )
        else:
            raise PolicyError(
                f"secret: policy {policy.name} names none called {name[:80]!r} to be stored",
                hint="`strongroom cas show` prints the policy; what is generated, deposited or imported is not stored",
            )
        self._store.put_secret(policy.name, name, value, now=self._context.now(), by=str(by))
        return JSONResponse({})


def _signers(keys: Sequence[PublicKey], text: str, signature: bytes) -> list[PublicKey]:
    """Those of a caller's keys that have signed a document. Raises VerificationError if none has."""
    found, problem = [], VerificationError("policy: no key signed it")
    for key in keys:
        try:
            verify_policy(text, signature, key)
        except VerificationError as error:
            problem = error
        else:
            found.append(key)
    if not found:
        raise problem
    return found


def _signer(keys: Sequence[PublicKey], policy: Policy) -> PublicKey:
    """Which of a caller's keys has signed a version: its owner's, an administrator's, or the first."""
    wanted = [policy.owner, *(each.key for each in policy.administrators)]
    return min(keys, key=lambda key: wanted.index(key.fingerprint) if key.fingerprint in wanted else len(wanted))


def _keys(policy: Policy) -> set[str]:
    """The names of the secrets that are keys of the policy's own vaults and sealed files."""
    vaults = {vault_key_name(rule.name) for rule in policy.vaults if not rule.source}
    return vaults | {sealed_key_name(rule.name) for rule in policy.sealed if not rule.source}
