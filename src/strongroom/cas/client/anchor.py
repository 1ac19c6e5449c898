"""An anchor that a CAS keeps: what an owner's client and an enclave's have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote

from strongroom.channel import Response
from strongroom.sealed import Root


def policy_path(policy: str, *rest: str) -> str:
    """The path of a policy, or of something of it."""
    namespace, _, name = policy.partition("/")
    return "/v1/policies/" + "/".join(quote(part, safe="") for part in (namespace, name, *rest))


class _Http(Protocol):
    """What `CasAnchor` needs of an `HttpClient` or of an `EnclaveSession`."""

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response: ...


class CasAnchor:
    """Freshness that a CAS remembers: the anchor of one vault of one policy (see `sealed.Anchor`)."""

    def __init__(self, http: _Http, policy: str, vault: str) -> None:
        self._http = http
        self._path = policy_path(policy, "anchors", vault)

    def read(self) -> Root | None:
        root = self._http.request("GET", self._path).expect_ok().json().get("root")
        return None if root is None else Root.parse(str(root))

    def advance(self, old: Root | None, new: Root) -> None:
        """Raises ConflictError if the CAS holds neither `old` nor `new`."""
        body = json.dumps({"old": None if old is None else str(old), "new": str(new)}).encode()
        headers = {"content-type": "application/json"}
        self._http.request("PUT", self._path, body=body, headers=headers).expect_ok()
