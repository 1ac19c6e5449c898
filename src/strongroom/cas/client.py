"""An owner's client of a CAS: apply policies, store secrets, read the log. The enclave's client is `session.py`."""

from __future__ import annotations

import datetime as dt
import json
import socket
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote, urlsplit

from strongroom.cas.log_audit import MAX_WITNESSED, Audit, Extended, Witnessed
from strongroom.cas.log_entry import LogEntry
from strongroom.cas.log_head import CasHttp, HeadMemory, MemoryHead
from strongroom.cas.log_note import Checkpoint, Note, verify_cas_checkpoint
from strongroom.cas.log_tree import read_hashes
from strongroom.cas.owners import OwnerSignature
from strongroom.cas.policy import Policy, parse_policy, sign_policy
from strongroom.cas.succession import SignedPolicy, verify_chain
from strongroom.cas.wire import CAS_URI, b64, bytes_field, text_field
from strongroom.channel import Expect, Identity, Response, expect_authority
from strongroom.crypto import PublicKey, SigningKey
from strongroom.errors import CasError, CasUnreachableError, FormatError, PolicyError, RollbackError, UsageError
from strongroom.sealed import Root

MAX_ANSWER = 1 << 22
MAX_HISTORY = 1 << 26
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


def _cosigned(text: object) -> Note | None:
    """A head that witnesses cosigned; None if it is none, which vouches for nothing and must not spoil the others."""
    try:
        note = Note.parse(text_field({"witnessed": text}, "witnessed"))
        Checkpoint.parse(note.text)
    except FormatError:
        return None
    return note


class OwnerClient:
    """An owner's view of a CAS.

    Args:
        url: ``https://host:port``.
        cas_root: the fingerprint of the CAS's root key, learnt from its operator over a channel that one trusts.
        owner: the key that signs this owner's policies; without it, only what is public can be read.
        heads: where the highest head seen of the CAS's log is remembered; by default in this client only.
    """

    def __init__(
        self, url: str, *, cas_root: str, owner: SigningKey | None = None, heads: HeadMemory | None = None
    ) -> None:
        host, port = split_address(url)
        self._owner, self._cas_root = owner, cas_root
        identity = None if owner is None else Identity.of_key(owner, "Strongroom owner", now=_utc())
        self._heads = heads or MemoryHead()
        self._http = CasHttp(
            lambda: dial_cas(host, port),
            host=host,
            expect=cas_expectation(cas_root),
            heads=self._heads,
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

    def apply(self, text: str, signatures: Sequence[OwnerSignature] = ()) -> Policy:
        """Sign and store a policy document, with its owners' signatures where it has owners.

        The first owner who applies a policy of some name has that name for good: this version of the CAS gives names
        out first come, first served. Applying the newest version again changes nothing.

        Raises:
            PolicyError, UnauthorizedError: what the CAS found wrong with it.
            ConflictError: the CAS holds another document of that version: somebody else was first.
            RollbackError: the CAS holds a newer version.
        """
        policy = parse_policy(text)
        owner = self._require_owner()
        body: dict[str, Any] = {"text": text, "signature": b64(sign_policy(text, owner))}
        if signatures:
            body["signatures"] = [one.to_wire() for one in signatures]
        self._put(_policy_path(policy.name), body)
        return policy

    def policy(self, name: str) -> Policy:
        """The newest version of a policy, as the CAS has it. Anybody may read any policy.

        Raises:
            UnknownPolicyError: it has none of that name.
            VerificationError: what it has is not signed by the administrator that the policy names.
            UnauthorizedError: too few of the owners that the policy names have signed it.
        """
        signed = SignedPolicy.from_wire(self._http.get(_policy_path(name)))
        if signed.policy.name != name:
            raise PolicyError(f"policy: asked for {name}, got {signed.policy.name}")
        signed.check_own()
        return signed.policy

    def policy_history(self, name: str, *, pinned: str | None = None) -> tuple[Policy, ...]:
        """The versions of a policy, each checked to follow the one before; the newest is last. As `policy_versions`."""
        return tuple(each.policy for each in self.policy_versions(name, pinned=pinned))

    def policy_versions(self, name: str, *, pinned: str | None = None) -> tuple[SignedPolicy, ...]:
        """The versions of a policy with their signatures, each checked to follow the one before; the newest is last.

        Args:
            pinned: the digest of a version that one trusts; without it the first is trusted as it is.

        Raises:
            UnknownPolicyError: the CAS has none of that name.
            StrongroomError: as `succession.verify_chain`.
        """
        versions: list[SignedPolicy] = []
        size, found = 0, pinned is None
        following: object = 0
        while isinstance(following, int):
            after = following
            answer = self._http.get(f"{_policy_path(name, 'versions')}?after={after}")
            page, following = answer.get("versions"), answer.get("next")
            if not isinstance(page, list) or (isinstance(following, int) and (not page or following <= after)):
                raise CasError("answer: versions are missing")
            for each in map(SignedPolicy.from_wire, page):
                if not found:  # what precedes the pinned version is not kept
                    versions, size, found = [], 0, each.policy.digest == pinned
                versions.append(each)
                size += len(each.policy.text)
            if size > MAX_HISTORY:
                raise CasError(f"versions of {name}: longer than {MAX_HISTORY} characters together")
        return verify_chain(name, versions, pinned=pinned)

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
        return self._entries(f"/v1/log?after={after}", "")

    def _entries(self, first: str, more: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        path: str | None = first + more
        while path is not None:
            answer = self._http.get(path)
            page, following = answer.get("entries"), answer.get("next")
            if not isinstance(page, list):
                raise CasError("answer: entries are missing")
            entries += page
            path = f"/v1/log?after={following}{more}" if isinstance(following, int) else None
        return entries

    def log_head(self) -> tuple[Note, PublicKey, list[Note]]:
        """The log's head as the CAS signed it, the key that it says signed it, and heads that witnesses cosigned."""
        answer = self._http.get("/v1/log/head")
        witnessed = answer.get("witnessed")
        if not isinstance(witnessed, list) or len(witnessed) > MAX_WITNESSED:
            raise CasError("answer: cosigned heads are missing, or too many")
        notes = [note for note in map(_cosigned, witnessed) if note]
        return Note.parse(text_field(answer, "checkpoint")), PublicKey(bytes_field(answer, "key")), notes

    def log_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof that the log of `new` entries begins with the first `old`."""
        return read_hashes(self._http.get(f"/v1/log/consistency?from={old}&to={new}").get("hashes"))

    def audit(self) -> Audit:
        """The entries of one's own policies, and all that is needed to check them; `verify_audit` does.

        Raises:
            RollbackError: the CAS's log does not extend what was seen of it before.
        """
        seen = self._heads.read()
        note, key, cosigned = self.log_head()
        checkpoint = verify_cas_checkpoint(note, self._cas_root, key)
        size = checkpoint.size
        if size < seen.size:
            raise RollbackError(f"log: the CAS's signed head is of {size} entries, and it had {seen.size}")
        witnessed = []
        for one in cosigned:
            old = Checkpoint.parse(one.text).size
            if old <= size:
                witnessed.append(Witnessed(one, self.log_consistency(old, size)))
        entries = self._entries("/v1/log?after=0", f"&proofs={size}")
        return Audit(
            self._cas_root,
            key,
            note,
            Extended(seen, self.log_consistency(seen.size, size)),
            tuple(witnessed),
            tuple((LogEntry.from_wire(one), read_hashes(one.get("proof"))) for one in entries),
        )

    def put_cosigned(self, note: Note) -> list[str]:
        """Give the CAS a witness's cosignature of its head; the names of the witnesses of which it kept one.

        Raises:
            UnauthorizedError: it knows none of the witnesses that cosigned.
            RollbackError: its log does not extend that head any more.
        """
        kept = self._http.post("/v1/log/cosignatures", {"note": str(note)}).get("kept")
        return [str(name) for name in kept] if isinstance(kept, list) else []

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
