"""An owner's client of a CAS: apply policies, store secrets, read the log. The enclave's client is `enclave.py`."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.attest.reference import ReferenceValues
from strongroom.cas.client.address import MAX_ANSWER, TIMEOUT, cas_expectation, dial_cas, split_address
from strongroom.cas.client.anchor import CasAnchor, policy_path
from strongroom.cas.client.appraisal import appraise_first
from strongroom.cas.client.login import login_by_key, login_by_token
from strongroom.cas.log.audit import MAX_WITNESSED, Audit, Extended, Witnessed
from strongroom.cas.log.entry import LogEntry
from strongroom.cas.log.head import CasHttp, Head, HeadMemory, MemoryHead
from strongroom.cas.log.note import Checkpoint, Note, verify_cas_checkpoint
from strongroom.cas.log.tree import read_hashes
from strongroom.cas.policy.grants import SignedGrant
from strongroom.cas.policy.owners import OwnerSignature
from strongroom.cas.policy.succession import SignedPolicy, verify_chain
from strongroom.cas.policy.version import Policy, parse_policy, sign_policy
from strongroom.cas.start.mode import Restart, change, confirmation
from strongroom.cas.wire import PARTY_ROLE, b64, bytes_field, hex_field, party_statement, text_field
from strongroom.channel import Identity, expect_authority
from strongroom.crypto import Certificate, PublicKey, Signer, SigningKey
from strongroom.errors import CasError, FormatError, PolicyError, RollbackError, UsageError
from strongroom.sealed import Root

MAX_HISTORY = 1 << 26


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _namespace_path(name: str, *rest: str) -> str:
    return "/v1/namespaces/" + "/".join(quote(part, safe="") for part in (name, *rest))


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
        owner: the key that signs this owner's policies, in memory or in a token; without it, only what is public can
            be read.
        token: gives an issuer's token to log in with, besides or in place of a key.
        heads: where the highest head seen of the CAS's log is remembered; by default in this client only.
        reference: what the CAS's own evidence must be, on each connection, before anything else is sent over it.
    """

    def __init__(
        self,
        url: str,
        *,
        cas_root: str,
        owner: Signer | None = None,
        token: Callable[[], str] | None = None,
        heads: HeadMemory | None = None,
        reference: ReferenceValues | None = None,
    ) -> None:
        host, port = split_address(url)
        self._owner, self._cas_root = owner, cas_root
        identity, greetings = None, [] if reference is None else [appraise_first(reference, cas_root)]
        if isinstance(owner, SigningKey):
            identity = Identity.of_key(owner, "Strongroom owner", now=_utc())
        elif owner is not None:
            greetings.append(login_by_key(owner, cas_root))
        if token is not None:
            greetings.append(login_by_token(token))
        self._heads = heads or MemoryHead()
        self._http = CasHttp(
            lambda: dial_cas(host, port),
            host=host,
            expect=cas_expectation(cas_root),
            heads=self._heads,
            identity=identity,
            max_body=MAX_ANSWER,
            timeout=TIMEOUT,
            greetings=greetings,
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

    def status(self) -> dict[str, object]:
        """How the CAS is: `docs/spec/cas.md` has the fields."""
        return self._http.get("/v1/status")

    def root_certificate(self) -> Certificate:
        """The certificate of its root key, which is the one that was named."""
        return next(each for each in self._http.connect().peer if each.key.fingerprint == self._cas_root)

    def login(self, token: str) -> str:
        """Log in with an issuer's token once more: as whom, which is what a policy's administrators are named by."""
        return text_field(self._http.post("/v1/login", {"token": token}), "caller")

    def policies(self) -> list[dict[str, Any]]:
        """The policies that the caller administers in any way, by name."""
        found: list[dict[str, Any]] = []
        following: object = ""
        while isinstance(following, str):
            after = following
            answer = self._http.get(f"/v1/policies?after={quote(after, safe='')}")
            page, following = answer.get("policies"), answer.get("next")
            if not isinstance(page, list) or (isinstance(following, str) and following <= after):
                raise CasError("answer: policies are missing")
            found += page
        return found

    # The CAS as a whole

    def gate(self) -> dict[str, Any]:
        """Whether its log's head is confirmed, and who has to confirm it: `docs/spec/cas.md` has the fields."""
        return self._http.get("/v1/gate")

    def confirm_head(self, head: Head | None = None, *, named: bool = False) -> dict[str, Any]:
        """Confirm, as an operator, the highest head that was seen; the gate's state after that.

        Args:
            head: in place of the one that this client remembers.
            named: it was not seen by this operator, but named by somebody; the CAS's log says so.

        Raises:
            UnauthorizedError: this key is no operator's.
            RollbackError: the log does not extend that head.
        """
        seen, owner = head or self._heads.read(), self._require_owner()
        statement = confirmation(self._cas_root, hex_field(self.gate(), "start"), seen, named=named)
        wire: dict[str, object] = {"key": b64(owner.public.spki), "signature": b64(owner.sign(statement))}
        wire |= {"head": str(seen), "named": named}
        return self._http.post("/v1/gate/confirmations", wire)

    def vote_restart(self, new: Restart) -> dict[str, Any]:
        """Ask, as an operator, for another start mode; `changed` says whether enough have, and it is in force.

        Raises:
            UnauthorizedError: this key is no operator's.
        """
        gate, owner = self.gate(), self._require_owner()
        old = Restart.from_wire(gate.get("restart"))
        signature = owner.sign(change(self._cas_root, hex_field(gate, "start"), old, new))
        wire = {"key": b64(owner.public.spki), "signature": b64(signature), "restart": new.to_wire()}
        return self._http.post("/v1/gate/restart", wire)

    # Namespaces

    def namespace(self, name: str) -> dict[str, object]:
        """Whose a namespace is, and who else may make policies in it. Raises UnauthorizedError."""
        return self._http.get(_namespace_path(name))

    def allot_namespace(self, name: str, to: str) -> dict[str, object]:
        """Give a namespace to a key, as its owner or as an operator of the CAS. Raises UnauthorizedError."""
        return self._put(_namespace_path(name), {"to": to})

    def allow_in_namespace(self, name: str, key: str) -> dict[str, object]:
        """Let a key make policies in a namespace of one's own. Raises UnauthorizedError."""
        return self._put(_namespace_path(name, "members", key), {})

    def remove_from_namespace(self, name: str, key: str) -> dict[str, object]:
        """Let it make no more there. Raises UnauthorizedError."""
        return self._http.request("DELETE", _namespace_path(name, "members", key)).expect_ok().json()

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
        self._put(policy_path(policy.name), body)
        return policy

    def policy(self, name: str) -> Policy:
        """The newest version of a policy, as the CAS has it. Anybody may read any policy.

        Raises:
            UnknownPolicyError: it has none of that name.
            VerificationError: what it has is not signed by the owner that the policy names, nor by an administrator
                whom the version before lets.
            UnauthorizedError: too few of the owners that the policy names have signed it.
        """
        signed = SignedPolicy.from_wire(self._http.get(policy_path(name)))
        if signed.policy.name != name:
            raise PolicyError(f"policy: asked for {name}, got {signed.policy.name}")
        if signed.by_administrator:  # only the versions before say whether he may
            return self.policy_versions(name)[-1].policy
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
            answer = self._http.get(f"{policy_path(name, 'versions')}?after={after}")
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
        self._put(policy_path(policy, "secrets", name), {"value": b64(value)})

    def put_vault_key(self, policy: str, vault: str, key: bytes) -> None:
        """Store the key of a vault that the policy names."""
        self.put_secret(policy, f"vault:{vault}", key)

    def put_sealed_key(self, policy: str, name: str, key: bytes) -> None:
        """Store the key of a sealed file that the policy names."""
        self.put_secret(policy, f"sealed:{name}", key)

    def certify_party(self, policy: str, key: SigningKey) -> tuple[Certificate, ...]:
        """Have a key certified as the party of a policy: its certificate, and the CAS's root's.

        Raises:
            UnauthorizedError: the policy is none of a party, or its owner has not given this caller that right.
        """
        binder = self._http.connect().export(EXPORTER_LABEL, PARTY_ROLE.encode())
        proof = key.sign(party_statement(binder, policy))
        body = {"key": b64(key.public.spki), "proof": b64(proof)}
        chain = self._http.post(policy_path(policy, "certificate"), body, fresh=True).get("chain")
        if not isinstance(chain, list) or len(chain) != 2:
            raise CasError("answer: chain is missing")
        certificates = tuple(Certificate(bytes_field({"chain": der}, "chain")) for der in chain)
        expect_authority(self._cas_root, uri=f"spiffe://strongroom/{policy}", now=_utc)(certificates)
        if certificates[0].key != key.public:
            raise CasError("certificate: the CAS sent one for another key")
        return certificates

    # Enclaves that live under one's own policies

    def leases(self, policy: str) -> dict[str, Any]:
        """`leases` of the enclaves that live, the oldest first; `now` by the CAS's clock; `instances`, the limit."""
        answer: dict[str, Any] = self._http.get(policy_path(policy, "leases"))
        if not isinstance(answer.get("leases"), list) or not isinstance(answer.get("now"), int):
            raise CasError("answer: leases are missing")
        return answer

    def revoke(
        self,
        policy: str,
        *,
        lease: int | None = None,
        key: str | None = None,
        measurement: str | None = None,
        everything: bool = False,
        lift: bool = False,
    ) -> list[int]:
        """End leases at once: that of a number, of a key, of a measurement, or all; the numbers of those that ended.

        A measurement attests no more until it is lifted, which ends nothing.

        Raises:
            UsageError: there is no such lease, or no such measurement to lift.
        """
        said = {"lease": lease, "key": key, "measurement": measurement, "all": everything or None, "lift": lift or None}
        body = {name: value for name, value in said.items() if value is not None}
        ended = self._http.post(policy_path(policy, "revocations"), body).get("ended")
        if not isinstance(ended, list):
            raise CasError("answer: says not what ended")
        return [int(number) for number in ended]

    # Grants of one's own policies to others

    def put_grant(self, signed: SignedGrant) -> None:
        """Store a grant that all have signed who must.

        Raises:
            GrantError: somebody's signature is missing, or the policy has not what it grants.
            ConflictError: a newer one is there, or it was withdrawn.
        """
        self._put(policy_path(signed.grant.source, "grants", signed.grant.id), signed.to_wire())

    def grants(self, policy: str) -> list[tuple[SignedGrant, str]]:
        """The newest grant to each importer, and the state that it is in."""
        found = self._http.get(policy_path(policy, "grants")).get("grants")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise CasError("answer: grants are missing")
        parts = ("grant", "administrator", "signature", "signatures")
        return [
            (SignedGrant.from_wire({name: each.get(name) for name in parts}), text_field(each, "state"))
            for each in found
        ]

    def received_grants(self, policy: str) -> list[dict[str, Any]]:
        """The newest grant to a policy of each that it imports from, without signatures, and its state."""
        found = self._http.get(policy_path(policy, "grants")).get("received")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise CasError("answer: received is missing")
        for each in found:
            for name in ("from", "id", "purpose", "state"):
                text_field(each, name)
            if type(each.get("expires")) is not int or not isinstance(each.get("resources"), list):
                raise CasError("answer: received: a grant is malformed")
        return found

    def withdraw_grant(self, policy: str, grant: str) -> None:
        """End a grant at once, given its id. Raises GrantError if there is none."""
        self._http.request("DELETE", policy_path(policy, "grants", grant)).expect_ok()

    # Keys of vaults' slots

    def slot_key(self, policy: str, slot: str) -> bytes | None:
        """The key of a slot, or None if the CAS keeps none of that name."""
        answer = self._http.get(policy_path(policy, "slots", slot))
        return None if answer.get("key") is None else bytes_field(answer, "key")

    def put_slot_key(self, policy: str, slot: str, key: bytes) -> None:
        """Have the CAS keep the key of a new slot. Raises ConflictError if it keeps another under that name."""
        self._put(policy_path(policy, "slots", slot), {"key": b64(key)})

    def remove_slot_key(self, policy: str, slot: str) -> bool:
        """Have the CAS forget the key of a slot; whether it kept one."""
        path = policy_path(policy, "slots", slot)
        return self._http.request("DELETE", path).expect_ok().json().get("removed") is True

    def anchor(self, policy: str, vault: str) -> CasAnchor:
        """The anchor of a vault, kept by the CAS."""
        return CasAnchor(self._http, policy, vault)

    def anchored(self, policy: str, vault: str) -> int:
        """The number of the log entry that moved a vault's anchor last; 0 if it holds nothing."""
        entry = self._http.get(policy_path(policy, "anchors", vault)).get("entry")
        if type(entry) is not int:
            raise CasError("answer: the number of the anchor's entry is missing")
        return entry

    def restore_anchor(
        self,
        policy: str,
        vault: str,
        old: Root,
        new: Root,
        *,
        reason: str,
        signatures: Sequence[OwnerSignature] = (),
    ) -> None:
        """Have a vault's anchor go back from `old` to `new`, an older root or another vault's.

        Args:
            signatures: of the policy's owners, if it has owners, of `restores.Restore`.

        Raises:
            UnauthorizedError, VerificationError: not the caller's to do, or not signed by enough owners.
            ConflictError: the anchor holds neither.
        """
        restore = {"reason": reason, "signatures": [one.to_wire() for one in signatures]}
        value = {"old": str(old), "new": str(new), "restore": restore}
        self._put(policy_path(policy, "anchors", vault), value)

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

    def _put(self, path: str, value: object) -> dict[str, object]:
        body = json.dumps(value).encode()
        headers = {"content-type": "application/json"}
        return self._http.request("PUT", path, body=body, headers=headers).expect_ok().json()

    def _require_owner(self) -> Signer:
        if self._owner is None:
            raise UsageError(
                "owner key: this needs one, since policies are signed and a token signs nothing",
                hint="give the owner's key: --owner FILE",
            )
        return self._owner
