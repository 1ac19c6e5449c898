"""An owner's client of a CAS: apply policies, store secrets, read the log. The enclave's client is `session.py`."""

from __future__ import annotations

import datetime as dt
import json
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote, urlsplit

from strongroom.cas.policy import Policy, parse_policy, sign_policy, verify_policy
from strongroom.cas.wire import CAS_URI, b64, bytes_field, text_field
from strongroom.channel import Expect, HttpClient, Identity, Response, expect_authority
from strongroom.crypto import PublicKey, SigningKey
from strongroom.errors import CasError, CasUnreachableError, PolicyError, UsageError, VerificationError
from strongroom.sealed import Root

MAX_ANSWER = 1 << 22
TIMEOUT = 30.0


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def split_address(url: str) -> tuple[str, int]:
    """Host and port of ``https://host:port``.

    Raises:
        UsageError: it is not of that form.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host and port and url.removesuffix("/") == f"https://{parts.netloc}" and parts.username is None:
            return host, port
    except ValueError:
        pass
    raise UsageError(f"address: got {url[:200]!r}, wanted https://HOST:PORT")


def cas_expectation(cas_root: str) -> Expect:
    """The peer is the CAS whose root key has this fingerprint."""
    return expect_authority(cas_root, uri=CAS_URI, now=_utc)


def dial_cas(host: str, port: int, *, timeout: float = TIMEOUT) -> socket.socket:
    """A TCP connection to a CAS.

    Raises:
        CasUnreachableError: nothing answers there.
    """
    try:
        return socket.create_connection((host, port), timeout=timeout)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CasUnreachableError(
            f"CAS: {host}:{port}: {reason}",
            hint="is it running? `strongroom cas start` and `strongroom serve` run this user's",
        ) from None


def _policy_path(policy: str, *rest: str) -> str:
    namespace, _, name = policy.partition("/")
    return "/v1/policies/" + "/".join(quote(part, safe="") for part in (namespace, name, *rest))


class OwnerClient:
    """An owner's view of a CAS.

    Args:
        url: ``https://host:port``.
        cas_root: the fingerprint of the CAS's root key, learnt from its operator over a channel that one trusts.
        owner: the key that signs this owner's policies; without it, only what is public can be read.
    """

    def __init__(self, url: str, *, cas_root: str, owner: SigningKey | None = None) -> None:
        host, port = split_address(url)
        self._owner = owner
        identity = None if owner is None else Identity.of_key(owner, "Strongroom owner", now=_utc())
        self._http = HttpClient(
            lambda: dial_cas(host, port),
            host=host,
            expect=cas_expectation(cas_root),
            identity=identity,
            max_body=MAX_ANSWER,
            timeout=TIMEOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def describe(self) -> dict[str, object]:
        """Name, version and root of the CAS."""
        return self._http.get("/v1/cas")

    def apply(self, text: str) -> Policy:
        """Sign and store a policy document.

        The first owner who applies a policy of some name has that name for good: this version of the CAS gives names
        out first come, first served. Applying the newest version again changes nothing.

        Raises:
            PolicyError, UnauthorizedError: what the CAS found wrong with it.
        """
        policy = parse_policy(text)
        owner = self._require_owner()
        self._put(_policy_path(policy.name), {"text": text, "signature": b64(sign_policy(text, owner))})
        return policy

    def policy(self, name: str) -> Policy:
        """The newest version of a policy, as the CAS has it. Anybody may read any policy.

        Raises:
            UnknownPolicyError: it has none of that name.
            VerificationError: what it has is not signed by the owner that the policy names.
        """
        answer = self._http.get(_policy_path(name))
        text = text_field(answer, "text")
        policy = parse_policy(text)
        if policy.name != name:
            raise PolicyError(f"policy: asked for {name}, got {policy.name}")
        owner = PublicKey(bytes_field(answer, "owner"))
        if owner.fingerprint != policy.owner:
            raise VerificationError(f"policy: signed by {owner.fingerprint}, wanted its owner {policy.owner}")
        verify_policy(text, bytes_field(answer, "signature"), owner)
        return policy

    def put_secret(self, policy: str, name: str, value: bytes) -> None:
        """Store a secret that the policy names."""
        self._put(_policy_path(policy, "secrets", name), {"value": b64(value)})

    def put_vault_key(self, policy: str, vault: str, key: bytes) -> None:
        """Store the key of a vault that the policy names."""
        self.put_secret(policy, f"vault:{vault}", key)

    def anchor(self, policy: str, vault: str) -> CasAnchor:
        """The anchor of a vault, kept by the CAS."""
        return CasAnchor(self._http, policy, vault)

    def log(self, *, after: int = 0) -> list[dict[str, Any]]:
        """The audit log of one's own policies, from the entry after number `after` on."""
        entries: list[dict[str, Any]] = []
        following: object = after
        while isinstance(following, int):
            answer = self._http.get(f"/v1/log?after={following}")
            page, following = answer.get("entries"), answer.get("next")
            if not isinstance(page, list):
                raise CasError("answer: entries are missing")
            entries += page
        return entries

    def _put(self, path: str, value: object) -> None:
        body = json.dumps(value).encode()
        self._http.request("PUT", path, body=body, headers={"content-type": "application/json"}).expect_ok()

    def _require_owner(self) -> SigningKey:
        if self._owner is None:
            raise UsageError("owner key: this needs one", hint="give the owner's key")
        return self._owner


class _Http(Protocol):
    """What `CasAnchor` needs of an `HttpClient` or of an `EnclaveSession`."""

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response: ...


class CasAnchor:
    """Freshness that a CAS remembers: the anchor of one vault of one policy (see `sealed.Anchor`)."""

    def __init__(self, http: _Http, policy: str, vault: str) -> None:
        self._http = http
        self._path = _policy_path(policy, "anchors", vault)

    def read(self) -> Root | None:
        root = self._http.request("GET", self._path).expect_ok().json().get("root")
        return None if root is None else Root.parse(str(root))

    def advance(self, old: Root | None, new: Root) -> None:
        """Raises ConflictError if the CAS holds neither `old` nor `new`."""
        body = json.dumps({"old": None if old is None else str(old), "new": str(new)}).encode()
        headers = {"content-type": "application/json"}
        self._http.request("PUT", self._path, body=body, headers=headers).expect_ok()
