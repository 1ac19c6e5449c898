"""An enclave's client of its CAS: attest (kind 1), receive, and stay attested."""

from __future__ import annotations

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from strongroom.attest.attester import Attester
from strongroom.attest.binding import EXPORTER_LABEL, Kind, canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.reference import ReferenceValues
from strongroom.cas.client.address import MAX_ANSWER, TIMEOUT, cas_expectation
from strongroom.cas.client.anchor import CasAnchor, policy_path
from strongroom.cas.client.appraisal import greetings
from strongroom.cas.client.mesh import MeshWatch
from strongroom.cas.client.outside import Reached, Served, reached, served
from strongroom.cas.client.watch import RevocationWatch
from strongroom.cas.log.head import CasHttp, MemoryHead
from strongroom.cas.wire import (
    ATTEST_FIRST,
    ATTESTED_SECONDS,
    CONFIGURATION_INFO,
    MAX_OUTPUTS,
    b64,
    bytes_field,
    hex_field,
    text_field,
)
from strongroom.channel import Expect, Identity, Response, TlsStream, expect_authority
from strongroom.crypto import Certificate, HpkeKey, digest
from strongroom.errors import CasError, ChannelError, FormatError, RevokedError, StrongroomError
from strongroom.lineage.statement import Output, Run


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class Keyed:
    """The key of a vault or of a sealed file, and how this enclave may use it.

    Attributes:
        access: ``read-only``, ``read-write`` or ``mirror``.
        policy: whose it is: its anchor is kept there.
        freshness: ``strict`` or ``grouped``.
    """

    key: bytes = field(repr=False)
    access: str
    policy: str
    freshness: str


@dataclass(frozen=True)
class Provisions:
    """What a CAS gave an attested enclave. What is secret stays out of `repr`.

    Attributes:
        vaults, sealed: by name.
        secrets: by name; one that is still to be deposited is missing.
        environment: the secrets that a program gets as variables, by the variable.
        deposits: the secrets that an enclave of this policy writes.
        paths: rules for paths: path, rule and vault, each.
        wanted: what else of the policy this enclave must enforce, or refuse.
        egress: the hosts that it may reach.
        publish: the services that it has for outsiders.
        root_secret, root_key: of the CAS, the key sealed: for another instance of it alone (`unseal/peer.py`).
        lease: its number.
        seconds: for which the lease counts, from when it was asked for.
    """

    policy_digest: str
    certificate: Certificate
    vaults: Mapping[str, Keyed]
    sealed: Mapping[str, Keyed]
    secrets: Mapping[str, bytes] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    deposits: tuple[str, ...] = ()
    paths: tuple[tuple[str, str, str], ...] = ()
    wanted: tuple[str, ...] = ()
    egress: tuple[Reached, ...] = ()
    publish: tuple[Served, ...] = ()
    lease: int = 0
    seconds: int = ATTESTED_SECONDS
    root_secret: bytes = field(default=b"", repr=False)
    root_key: bytes = field(default=b"", repr=False)

    @property
    def vault_keys(self) -> Mapping[str, bytes]:
        return {name: each.key for name, each in self.vaults.items()}

    @property
    def vault_access(self) -> Mapping[str, str]:
        return {name: each.access for name, each in self.vaults.items()}

    def keyed(self, name: str) -> Keyed | None:
        """The vault or sealed file of that name, which no two have."""
        return self.vaults.get(name) or self.sealed.get(name)


@dataclass(frozen=True)
class ServiceResult:
    """Kind-2 evidence that the CAS has appraised, ready to be shown to every client (docs/spec/service.md)."""

    evidence: Mapping[str, object]
    claims: bytes
    time_token: str
    result: str
    cas_chain: tuple[bytes, ...]


class EnclaveSession:
    """An attested connection to a CAS. May be used from several threads.

    The enclave attests again, and only then sends the request, whenever the connection had to be made anew (a CAS drops
    idle ones after seconds), whenever the policy has a new version, and whenever its lease has run out. A request that
    was cut off is sent again, once.

    Args:
        dial: gives a connected socket; the host that makes it is trusted with nothing.
        cas_root: the CAS that the enclave was measured for.
        policy: the policy that the enclave was measured for.
        role: ``program`` or ``service``.
        attester: where evidence comes from.
        replica: which one of the policy's it is, if its launcher was told.
        reference: what the CAS's own evidence must be, before anything is sent to it; None trusts its root alone.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        *,
        cas_root: str,
        policy: str,
        role: str,
        attester: Attester,
        replica: int | None = None,
        reference: ReferenceValues | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = Identity.fresh("Strongroom enclave", now=dt.datetime.fromtimestamp(clock(), dt.UTC))
        self._hpke = HpkeKey()
        self._cas_root, self._policy, self._role = cas_root, policy, role
        self._attester, self._replica = attester, replica
        self._dial, self._heads = dial, MemoryHead()
        self._token: bytes | None = None  # of the last answer, for the next attestation
        self._attested = 0.0  # when the last one began, by a clock that only goes forward
        self._lock = threading.RLock()
        self._stream: TlsStream | None = None
        self._provisions: Provisions | None = None
        self._root: Certificate | None = None  # of the CAS, as it showed it
        self._endorsed: Evidence | None = None  # what the CAS completed last
        self._http = CasHttp(
            dial,
            host="cas",
            expect=cas_expectation(cas_root),
            heads=self._heads,  # for the enclave's life: it has nowhere to keep it that the host could not change
            identity=self._identity,
            max_body=MAX_ANSWER,
            timeout=TIMEOUT,
            greetings=greetings(reference, cas_root, clock=clock),
        )

    def close(self) -> None:
        with self._lock:
            self._stream = None
            self._http.close()

    def attest(self) -> Provisions:
        """Attest on a new connection, and receive.

        Raises:
            UnknownPolicyError: the CAS does not know the policy.
            AttestationError: it refused the evidence; the class says why.
            CasUnreachableError, ChannelError: it could not be reached, or is not the CAS that was measured.
        """
        with self._lock:
            self.close()
            return self._attest()

    def renew(self) -> Provisions:
        """Attest again, with a new nonce, on the present connection if there is one. Raises as `attest` does."""
        with self._lock:
            try:
                return self._attest()
            except ChannelError:
                self.close()  # an idle connection was dropped
                return self._attest()

    def _attest(self) -> Provisions:
        """The steps of docs/spec/cas.md, on the present connection if there is one."""
        # 1
        stream, self._stream = self._http.connect(), None
        # 2
        offer = self._http.post("/v1/nonce", {"policy": self._policy}, fresh=True)
        nonce, policy_digest = hex_field(offer, "nonce"), text_field(offer, "policy_digest")
        # 3
        started = time.monotonic()
        claims = canonical(self._claims(policy_digest) | ({} if self._replica is None else {"replica": self._replica}))
        binder = stream.export(EXPORTER_LABEL, self._role.encode())
        evidence = self._attester.evidence(report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims))
        shown = {"evidence": evidence.to_wire(), "claims": b64(claims)}
        shown |= {} if self._token is None else {"lease": self._token.hex()}
        answer = self._http.post("/v1/attest", shown, fresh=True)
        # 6
        lease = answer.get("lease")
        if not isinstance(lease, dict) or not all(type(lease.get(name)) is int for name in ("number", "seconds")):
            raise CasError("answer: says nothing of the lease")
        self._token = hex_field(lease, "token")
        box = self._hpke.open(bytes_field(answer, "configuration"), info=CONFIGURATION_INFO)
        certificate = Certificate(bytes_field(answer, "certificate"))
        if certificate.key != self._identity.key.public:
            raise CasError("certificate: the CAS sent one for another key")
        given = _provisions(box, policy_digest, certificate)
        self._provisions = replace(given, lease=lease["number"], seconds=lease["seconds"])
        self._stream, self._attested = stream, started
        self._root = next((each for each in stream.peer if each.key.fingerprint == self._cas_root), None)
        return self._provisions

    @property
    def lease_seconds(self) -> int:
        """Seconds for which an attestation counts."""
        with self._lock:
            return self._provisions.seconds if self._provisions else 0

    @property
    def lease_left(self) -> float:
        """Seconds for which the lease counts yet, of which the host's clock has no say."""
        with self._lock:
            return self.lease_seconds - (time.monotonic() - self._attested)

    def end(self) -> None:
        """Give the lease back, so that another enclave may live in its place. Where that fails, it runs out."""
        with self._lock, suppress(StrongroomError):
            if self._token is None:
                return  # it has none
            try:
                self._end_lease()
            except ChannelError:  # the CAS drops what is idle, and may be another process by now
                self.close()
                self._end_lease()
            self._stream = self._token = None

    def _end_lease(self) -> None:
        if self._stream is None or self._http.connect() is not self._stream:
            self._attest()
        self._http.post("/v1/lease/end", {}, fresh=True)

    def watch(
        self, on_own: Callable[[RevokedError], None], *, on_revoked: Callable[[str, str], None] | None = None
    ) -> RevocationWatch:
        """Be told of revocations, on a connection of its own.

        Args:
            on_own: called once, from that thread, when this enclave's key or what runs in it is revoked.
            on_revoked: called with the policy and the fingerprint of each other key that is revoked.
        """
        return RevocationWatch(
            self._dial,
            cas_root=self._cas_root,
            heads=self._heads,
            policy=self._policy,
            key=self._identity.key.public.fingerprint,
            on_own=on_own,
            on_revoked=on_revoked,
        )

    @property
    def key(self) -> str:
        """The fingerprint of this enclave's key."""
        return self._identity.key.public.fingerprint

    def join_mesh(self, endpoint: str, wireguard: bytes = b"") -> dict[str, Any]:
        """Have peers told that this enclave's proxy listens there; its address, and who else is there.

        Args:
            wireguard: the key of its device, which then is what peers reach there.
        """
        key = {"wireguard": b64(wireguard)} if wireguard else {}
        return self.post("/v1/mesh/join", {"endpoint": endpoint, **key})

    def watch_mesh(self, on_news: Callable[[Mapping[str, Any]], None], on_lost: Callable[[], None]) -> MeshWatch:
        """Be told of the mesh's members, on connections of its own; as `MeshWatch`."""
        return MeshWatch(
            self._dial,
            cas_root=self._cas_root,
            identity=self._identity,
            heads=self._heads,
            policy=self._policy,
            on_news=on_news,
            on_lost=on_lost,
        )

    def _claims(self, policy_digest: str) -> dict[str, Any]:
        return {
            "role": self._role,
            "spki": self._identity.key.public.fingerprint,
            "hpke": self._hpke.public.hex(),
            "cas_root": self._cas_root,
            "policy": self._policy,
            "policy_digest": policy_digest,
        }

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        """A request on an attested connection."""
        with self._lock:
            if self._stream is not None and self._http.connect() is self._stream:
                try:
                    response = self._http.request(method, path, body=body, headers=headers, fresh=True)
                except ChannelError:
                    pass  # an idle connection was dropped
                else:
                    if response.status != ATTEST_FIRST:
                        return response
            self._attest()
            return self._http.request(method, path, body=body, headers=headers, fresh=True)

    def post(self, path: str, value: object) -> dict[str, object]:
        """POST a JSON value on an attested connection; the answer's JSON object."""
        body = json.dumps(value, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        return self.request("POST", path, body=body, headers=headers).expect_ok().json()

    def anchor(self, name: str) -> CasAnchor:
        """The CAS's anchor of one of the policy's vaults or sealed files; of one that is imported, its owner's."""
        keyed = None if self._provisions is None else self._provisions.keyed(name)
        return CasAnchor(self, self._policy if keyed is None else keyed.policy, name)

    def deposit(self, name: str, value: bytes) -> None:
        """Write one of the policy's secrets, which only its enclaves may: one that it has as `deposited`.

        Raises:
            PolicyError: the policy has no such secret.
            FormatError: it is too long, or holds a zero byte and is to be a variable.
        """
        body = json.dumps({"value": b64(value)}).encode()
        headers = {"content-type": "application/json"}
        self.request("PUT", policy_path(self._policy, "deposits", name), body=body, headers=headers).expect_ok()

    def slot_key(self, policy: str, slot: str) -> bytes | None:
        """The key of a vault's slot, or None if the CAS keeps none of that name."""
        answer = self.request("GET", policy_path(policy, "slots", slot)).expect_ok().json()
        return None if answer.get("key") is None else bytes_field(answer, "key")

    def _provisioned(self) -> Provisions:
        with self._lock:
            return self._provisions or self.attest()

    def serving_identity(self) -> Identity:
        """The enclave's key under the certificate that the CAS issued: what a service shows its clients."""
        return Identity(self._identity.key, (self._provisioned().certificate,))

    def linking_identity(self) -> Identity:
        """The same with the CAS's root: what this enclave shows another, which pins that root (`expect_policy`).

        Raises:
            CasError: the CAS has not shown its root.
        """
        identity = self.serving_identity()
        with self._lock:
            if self._root is None:
                raise CasError("CAS: has not shown its root's certificate")
            return Identity(identity.key, (*identity.chain, self._root))

    def expect_policy(self, policy: str, *, now: Callable[[], dt.datetime] = _utc) -> Expect:
        """The peer is an enclave that this CAS has appraised under that policy, and not too long ago."""
        return expect_authority(self._cas_root, uri=f"spiffe://strongroom/{policy}", now=now)

    def certify_service(self, models: Mapping[str, str], *, plan: str | None = None) -> ServiceResult:
        """Make kind-2 evidence over a fresh time token and have the CAS appraise it.

        Args:
            models: digest, ``sha256:<hex>``, of each model served, by name.
            plan: that of the plan by which a model is served in parts.
        """
        token = text_field(self.post("/v1/time-token", {}), "token")
        # Only now: asking may have found a new version of the policy.
        served = {"models": dict(models)} | ({} if plan is None else {"plan": plan})
        claims = canonical(self._claims(self._provisioned().policy_digest) | served)
        bound = report_data(Kind.SERVICE, fresh=digest(token.encode("ascii")), binder=bytes(32), claims=claims)
        evidence = self._attester.evidence(bound)
        body = {"evidence": evidence.to_wire(), "claims": b64(claims), "time_token": token}
        answer = self.post("/v1/service", body)
        self._endorsed = _endorsed(evidence, answer.get("evidence"))
        chain = answer.get("cas_chain")
        if not isinstance(chain, list) or len(chain) != 2:
            raise CasError("answer: cas_chain is missing")
        ders = tuple(bytes_field({"cas_chain": der}, "cas_chain") for der in chain)
        shown = (self._endorsed or evidence).to_wire()
        return ServiceResult(shown, claims, token, text_field(answer, "result"), ders)

    def evidence_for(self, claims: Mapping[str, Any], *, nonce: bytes, binder: bytes) -> dict[str, object]:
        """Evidence of kind 1 for whoever sent `nonce`, on the channel that it came over.

        Args:
            binder: that channel's exporter, whose context is the role in `claims`; the enclave showed its key there.
        """
        bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=canonical(claims))
        evidence, endorsed = self._attester.evidence(bound), self._endorsed
        return (_endorsed_like(evidence, endorsed) if endorsed else evidence).to_wire()

    def sign_lineage(self, run: Run, outputs: Sequence[Output]) -> list[bytes]:
        """Have the CAS sign where outputs come from: an envelope for each, in order.

        Raises:
            FormatError: what is to be said is too much for one statement.
        """
        envelopes: list[bytes] = []
        for at in range(0, len(outputs), MAX_OUTPUTS):
            some = [output.to_wire() for output in outputs[at : at + MAX_OUTPUTS]]
            signed = self.post("/v1/lineage", {"run": run.to_wire(), "outputs": some}).get("envelopes")
            if not isinstance(signed, list) or len(signed) != len(some):
                raise CasError(f"answer: wanted {len(some)} envelopes")
            envelopes += [text_field({"envelope": one}, "envelope").encode() for one in signed]
        return envelopes


def _endorsed(evidence: Evidence, wire: object) -> Evidence | None:
    """The same evidence with the endorsements that the CAS got for it; None if it got none.

    Raises:
        CasError: it sent other evidence.
    """
    if wire is None:
        return None
    found = Evidence.from_wire(wire) if isinstance(wire, dict) else None
    if found is None or _endorsed_like(evidence, found) != found:
        raise CasError("answer: evidence is not what was sent, with endorsements")
    return found


def _endorsed_like(evidence: Evidence, other: Evidence) -> Evidence:
    """`evidence` with the endorsements of other evidence of the same platform."""
    if (evidence.tee, len(evidence.devices)) != (other.tee, len(other.devices)):
        return evidence
    devices = tuple(
        replace(each, endorsements=like.endorsements)
        for each, like in zip(evidence.devices, other.devices, strict=True)
    )
    return replace(evidence, endorsements=other.endorsements, devices=devices)


def _provisions(opened: bytes, policy_digest: str, certificate: Certificate) -> Provisions:
    try:
        configuration = json.loads(opened)
        secrets = {str(name): bytes_field(configuration["secrets"], name) for name in configuration["secrets"]}
        return Provisions(
            policy_digest=policy_digest,
            certificate=certificate,
            vaults=_keyed(configuration["vaults"]),
            sealed=_keyed(configuration["sealed"]),
            secrets=secrets,
            # As Python's own os.environ holds bytes that are not UTF-8.
            environment={
                str(variable): secrets[name].decode("utf-8", "surrogateescape")
                for variable, name in configuration["environment"].items()
            },
            deposits=tuple(str(name) for name in configuration["deposits"]),
            paths=tuple((str(p["path"]), str(p["rule"]), str(p["vault"])) for p in configuration["paths"]),
            wanted=tuple(str(name) for name in configuration["wanted"]),
            egress=reached(configuration["egress"]),
            publish=served(configuration["publish"]),
            root_secret=bytes_field(configuration["cas"], "root_secret") if "cas" in configuration else b"",
            root_key=bytes_field(configuration["cas"], "root_key") if "cas" in configuration else b"",
        )
    except (ValueError, KeyError, TypeError, AttributeError, FormatError):
        raise CasError("configuration: the CAS sent one of another form") from None


def _keyed(wire: Mapping[str, Mapping[str, str]]) -> dict[str, Keyed]:
    return {
        str(name): Keyed(bytes_field(each, "key"), str(each["access"]), str(each["policy"]), str(each["freshness"]))
        for name, each in wire.items()
    }
