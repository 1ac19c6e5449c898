"""What the handlers of one CAS share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from strongroom.attest.attester import Attester
from strongroom.cas.api.operation import Operation
from strongroom.cas.api.own_evidence import OwnEvidence
from strongroom.cas.api.peers import PeerWatch
from strongroom.cas.api.waiting import Waiting
from strongroom.cas.enclaves.completion import Completion
from strongroom.cas.enclaves.leases import Leases
from strongroom.cas.enclaves.mesh import Mesh
from strongroom.cas.enclaves.revocations import Revocations
from strongroom.cas.log.note import WitnessKey
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.gate import Gate
from strongroom.cas.state.store import Store

Clock = Callable[[], float]


@dataclass(frozen=True)
class Context:
    """One CAS.

    Attributes:
        witnesses: whose cosignatures of the log's head it keeps.
        clock: seconds since 1970.
        operation: how its operator runs it.
        started: when, seconds since 1970.
        confirming: what it may serve; without, everything.
        attester: makes evidence of itself.
        peers: what is known of the other instances.
    """

    store: Store
    authority: Authority
    completion: Completion
    witnesses: Sequence[WitnessKey]
    clock: Clock
    operation: Operation = field(default_factory=Operation)
    started: int = 0
    confirming: Gate | None = None
    attester: Attester | None = None
    peers: PeerWatch | None = None

    @cached_property
    def gate(self) -> Gate:
        return self.confirming or Gate(self.store, self.authority)

    @cached_property
    def own(self) -> OwnEvidence:
        """The evidence of the CAS itself."""
        return OwnEvidence(self.attester, self.store, self.authority, self.completion, self.gate)

    def waiting(self) -> str:
        """What the CAS waits for before it serves; empty if it serves."""
        return self.gate.awaited

    def live(self, policy: str) -> int | None:
        """How many enclaves of a policy live, if that is known."""
        return len(self.leases.live(policy, self.now()))

    @cached_property
    def leases(self) -> Leases:
        return Leases(self.store)

    @cached_property
    def revocations(self) -> Revocations:
        return Revocations(self.store, self.leases)

    @cached_property
    def mesh(self) -> Mesh:
        return Mesh(self.store, self.leases)

    @cached_property
    def watchers(self) -> Waiting:
        """Those who wait for revocations, or for news of the mesh."""
        return Waiting()

    def now(self) -> int:
        return int(self.clock())

    def utc(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock(), dt.UTC)
