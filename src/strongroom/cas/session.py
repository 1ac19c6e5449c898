"""An enclave's client of its CAS: attest (kind 1), receive, and stay attested."""

from __future__ import annotations

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strongroom.attest.attester import Attester
from strongroom.attest.binding import EXPORTER_LABEL, Kind, canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.cas.client import MAX_ANSWER, TIMEOUT, CasAnchor, cas_expectation
from strongroom.cas.log_head import CasHttp, MemoryHead
from strongroom.cas.wire import (
    ATTEST_FIRST,
    CONFIGURATION_INFO,
    MAX_OUTPUTS,
    b64,
    bytes_field,
    hex_field,
    text_field,
)
from strongroom.channel import Identity, Response, TlsStream
from strongroom.crypto import Certificate, HpkeKey, digest
from strongroom.errors import CasError, ChannelError
from strongroom.lineage.statement import Output, Run


@dataclass(frozen=True)
class Provisions:
    """What a CAS gave an attested enclave. What is secret stays out of `repr`."""

    policy_digest: str
    certificate: Certificate
    vault_keys: Mapping[str, bytes] = field(repr=False)
    vault_access: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)


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
    idle ones after seconds), whenever the policy has a new version, and whenever its evidence is ten minutes old. A
    request that was cut off is sent again, once.

    Args:
        dial: gives a connected socket; the host that makes it is trusted with nothing.
        cas_root: the CAS that the enclave was measured for.
        policy: the policy that the enclave was measured for.
        role: ``program`` or ``service``.
        attester: where evidence comes from.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        *,
        cas_root: str,
        policy: str,
        role: str,
        attester: Attester,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = Identity.fresh("Strongroom enclave", now=dt.datetime.fromtimestamp(clock(), dt.UTC))
        self._hpke = HpkeKey()
        self._cas_root, self._policy, self._role = cas_root, policy, role
        self._attester = attester
        self._lock = threading.RLock()
        self._stream: TlsStream | None = None
        self._provisions: Provisions | None = None
        self._endorsed: Evidence | None = None  # what the CAS completed last
        self._http = CasHttp(
            dial,
            host="cas",
            expect=cas_expectation(cas_root),
            heads=MemoryHead(),  # for the enclave's life: it has nowhere to keep it that the host could not change
            identity=self._identity,
            max_body=MAX_ANSWER,
            timeout=TIMEOUT,
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
        claims = canonical(self._claims(policy_digest))
        binder = stream.export(EXPORTER_LABEL, self._role.encode())
        evidence = self._attester.evidence(report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims))
        answer = self._http.post("/v1/attest", {"evidence": evidence.to_wire(), "claims": b64(claims)}, fresh=True)
        # 6
        box = self._hpke.open(bytes_field(answer, "configuration"), info=CONFIGURATION_INFO)
        certificate = Certificate(bytes_field(answer, "certificate"))
        if certificate.key != self._identity.key.public:
            raise CasError("certificate: the CAS sent one for another key")
        self._provisions = _provisions(box, policy_digest, certificate)
        self._stream = stream
        return self._provisions

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

    def anchor(self, vault: str) -> CasAnchor:
        """The CAS's anchor of one of the policy's vaults."""
        return CasAnchor(self, self._policy, vault)

    def _provisioned(self) -> Provisions:
        with self._lock:
            return self._provisions or self.attest()

    def serving_identity(self) -> Identity:
        """The enclave's key under the certificate that the CAS issued: what a service shows its clients."""
        return Identity(self._identity.key, (self._provisioned().certificate,))

    def certify_service(self, models: Mapping[str, str]) -> ServiceResult:
        """Make kind-2 evidence over a fresh time token and have the CAS appraise it.

        Args:
            models: digest, ``sha256:<hex>``, of each model served, by name.
        """
        token = text_field(self.post("/v1/time-token", {}), "token")
        # Only now: asking may have found a new version of the policy.
        claims = canonical(self._claims(self._provisioned().policy_digest) | {"models": dict(models)})
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
        return Provisions(
            policy_digest=policy_digest,
            certificate=certificate,
            vault_keys={name: bytes_field(v, "key") for name, v in configuration["vaults"].items()},
            vault_access={name: str(v["access"]) for name, v in configuration["vaults"].items()},
            environment={str(name): str(value) for name, value in configuration["environment"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CasError("configuration: the CAS sent one of another form") from None
