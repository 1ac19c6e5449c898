"""The evidence that a CAS makes of itself; `client/own_evidence.py` appraises it."""

from __future__ import annotations

from functools import partial
from typing import Any

from strongroom.attest.attester import Attester
from strongroom.attest.binding import FRESH_SIZE, Kind, canonical, report_data
from strongroom.cas.client.own_evidence import ROLE
from strongroom.cas.enclaves.completion import Completion, carries_less
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.gate import Gate
from strongroom.cas.start.mode import RESERVED
from strongroom.cas.state.store import Store
from strongroom.cas.threads import making_evidence
from strongroom.cas.wire import b64
from strongroom.crypto import HpkeKey
from strongroom.errors import FormatError, UnknownPolicyError, UnsupportedPlatformError


class OwnEvidence:
    """What one CAS shows of itself.

    Attributes:
        hpke: the key that the claims name, of this process.
    """

    def __init__(
        self,
        attester: Attester | None,
        store: Store,
        authority: Authority,
        completion: Completion,
        gate: Gate,
    ) -> None:
        self._attester, self._store, self._authority = attester, store, authority
        self._completion, self._gate = completion, gate
        self._making = making_evidence()
        self.hpke = HpkeKey()

    def claims(self) -> dict[str, Any]:
        """What the evidence is over, as it is now."""
        try:
            policy, digest = RESERVED, self._store.policy(RESERVED).digest
        except UnknownPolicyError:
            policy = digest = ""
        return {
            "role": ROLE,
            "spki": self._authority.identity.key.public.fingerprint,
            "hpke": self.hpke.public.hex(),
            "cas_root": self._authority.cas_root,
            "policy": policy,
            "policy_digest": digest,
            "restart": self._gate.restart.mode,
            "unseal": self._authority.unseal,
        }

    async def make(self, nonce: bytes, binder: bytes, *, now: int, who: str = "") -> dict[str, object]:
        """Evidence and claims, as they are answered to whoever asks from `who`.

        Raises:
            FormatError: the nonce is none.
            UnsupportedPlatformError: this CAS runs in no enclave.
            CasError: the platform failed, or did not answer in time.
            TooManyRequestsError: too many others ask.
        """
        if len(nonce) != FRESH_SIZE:
            raise FormatError(f"nonce: {len(nonce)} bytes, wanted {FRESH_SIZE}")
        if self._attester is None:
            raise UnsupportedPlatformError(
                "evidence: this CAS runs in no enclave, and has none",
                hint="its operator starts it in one, with --evidence here; without, trust its machine",
            )
        claims = canonical(self.claims())
        bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims)
        evidence = await self._making.call(partial(self._attester.evidence, bound), who=who)
        if carries_less(evidence):
            evidence = await self._completion(evidence, now)
        return {"evidence": evidence.to_wire(), "claims": b64(claims)}
