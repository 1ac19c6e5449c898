"""A CAS that is killed with SIGKILL under load, again and again, and whether it keeps what it acknowledged.

Four writers, each with what it writes to itself: versions of a policy, a secret, an anchor, attestations. Each goes on
by itself when the CAS is back: as any client, it sends again what was cut off. A kill comes a random number of
acknowledgements after the start, none to a dozen, in the midst of what is under way then.

What must hold in the end: whatever was acknowledged is there, or what its writer sent after it; the log has an entry
for each; the audit verifies; and the log extends every head that was seen.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas import CasAddress, EnclaveSession, OwnerClient
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.cas.log.audit import verify_audit
from strongroom.cas.service.server import prepare
from strongroom.crypto import SigningKey, digest
from strongroom.errors import CasUnreachableError, ChannelError, StrongroomError
from strongroom.sealed import Root

MEASURED = {name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}
_AGAIN = 50
"""Tries of one request, each after the CAS is up again."""
_SPREAD = 12
"""A kill comes after at most so many acknowledgements."""


def policy_text(owner: SigningKey, name: str, vendor_root: str, *, version: int = 1, previous: str = "") -> str:
    """A policy for simulated enclaves, with a secret to be stored, one that is drawn, and a vault."""
    return f"""
[policy]
name = "{name}"
version = {version}
previous = "{previous}"
owner = "{owner.public.fingerprint}"
role = "program"
[reference]
tees = ["simulated"]
measurements = ["{registers_measurement(MEASURED)}"]
allow_simulated = "{vendor_root}"
[program]
command = ["python", "train.py"]
[[vaults]]
name = "out"
mount = "/out"
access = "read-write"
[[secrets]]
name = "token"
environment = "TOKEN"
[[secrets]]
name = "seed"
environment = "SEED"
generate = 32
"""


def enclave(address: CasAddress, policy: str, vendor: SimulatedVendor) -> EnclaveSession:
    """An enclave of that policy."""
    return EnclaveSession(
        lambda: dial_cas(*split_address(address.url)),
        cas_root=address.cas_root,
        policy=policy,
        role="program",
        attester=SimulatedAttester(vendor, MEASURED),
    )


def serve(directory: str, port: int, pipe: Connection, database: str | None = None) -> None:
    """A CAS in this process, until the pipe ends.

    Args:
        database: the URL of one in PostgreSQL, for one in the directory.
    """
    with prepare(Path(directory) / "cas", port=port, database=database) as service:
        pipe.send((service.address.url, service.address.cas_root, time.process_time()))
        while pipe.poll(None):
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(time.process_time())


@dataclass
class Outcome:
    """What became of it.

    Attributes:
        kills: how many starts were killed.
        acknowledged: changes by kind.
        lost: what was acknowledged and is not there, in words.
        failed: requests that failed for another reason than that the CAS was away.
        tries: the most that one request took.
    """

    kills: int = 0
    acknowledged: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    tries: int = 0


class _World:
    def __init__(self, directory: Path) -> None:
        self.directory, self.outcome = directory, Outcome()
        self._spawn = mp.get_context("spawn")
        self._port = 0
        self.start()
        self.vendor = SimulatedVendor.open(directory / "vendor", now=int(time.time()))
        self.owner = SigningKey.generate()
        with self.client() as client:
            client.apply(policy_text(self.owner, "kill/fixed", self.vendor.root_digest))
            client.apply(policy_text(self.owner, "kill/moving", self.vendor.root_digest))
            client.put_secret("kill/fixed", "token", b"0")
            client.put_vault_key("kill/fixed", "out", bytes(32))
        self.up, self.over = threading.Event(), threading.Event()
        self.up.set()
        self._acknowledged = threading.Condition()
        self._acks = 0
        # Sent last, whether or not it was acknowledged; and acknowledged last.
        self.sent: dict[str, object] = {}
        self.kept: dict[str, object] = {}

    def start(self) -> None:
        ours, theirs = self._spawn.Pipe()
        self.process = self._spawn.Process(target=serve, args=(str(self.directory), self._port, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe = ours
        url, cas_root, _ = ours.recv()
        self.address = CasAddress(url, cas_root)
        self._port = split_address(url)[1]

    def kill(self, after: int) -> None:
        """End the CAS so many acknowledgements from now, and start it again."""
        with self._acknowledged:
            wanted = self._acks + after
            self._acknowledged.wait_for(lambda: self._acks >= wanted or self.over.is_set(), timeout=60)
        self.up.clear()
        os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.pipe.close()
        self.outcome.kills += 1
        self.start()
        self.up.set()

    def client(self) -> OwnerClient:
        return OwnerClient(self.address.url, cas_root=self.address.cas_root, owner=self.owner)

    def insist(self, kind: str, value: object, request: Callable[[], object]) -> None:
        """Send until it is acknowledged, however often the CAS is killed meanwhile."""
        self.sent[kind] = value
        for tries in range(1, _AGAIN + 1):
            self.up.wait(60)
            try:
                request()
            except (ChannelError, CasUnreachableError):
                continue
            except StrongroomError as error:
                self.outcome.failed.append(f"{kind} {value}: {error.code}: {error.message}")
                raise
            self.kept[kind] = value
            self.outcome.tries = max(self.outcome.tries, tries)
            with self._acknowledged:
                self.outcome.acknowledged[kind] += 1
                self._acks += 1
                self._acknowledged.notify_all()
            return
        self.outcome.failed.append(f"{kind} {value}: tried {_AGAIN} times")

    # The writers

    def policies(self) -> None:
        with self.client() as client:
            version, previous = 1, client.policy("kill/moving").digest
            while not self.over.is_set():
                version += 1
                text = policy_text(
                    self.owner, "kill/moving", self.vendor.root_digest, version=version, previous=previous
                )
                self.insist("policy", version, lambda text=text: client.apply(text))  # type: ignore[misc]
                previous = f"sha256:{digest(text.encode()).hex()}"

    def secrets(self) -> None:
        with self.client() as client:
            count = 0
            while not self.over.is_set():
                count += 1
                value = str(count).encode()
                self.insist("secret", count, lambda value=value: client.put_secret("kill/fixed", "token", value))  # type: ignore[misc]

    def anchors(self) -> None:
        with self.client() as client:
            anchor, old = client.anchor("kill/fixed", "out"), None
            while not self.over.is_set():
                new = Root(1 if old is None else old.sequence + 1, os.urandom(32))
                self.insist("anchor", new, lambda old=old, new=new: anchor.advance(old, new))  # type: ignore[misc]
                old = new

    def attestations(self) -> None:
        session = enclave(self.address, "kill/fixed", self.vendor)
        count = 0
        while not self.over.is_set():
            count += 1
            self.insist("attested", count, session.attest)
        session.close()

    def check(self) -> None:
        """Compare what is there with what was acknowledged."""
        outcome = self.outcome
        with self.client() as client:
            policy = client.policy_history("kill/moving")[-1].version
            self._among("policy", policy)
            anchor = client.anchor("kill/fixed", "out").read()
            self._among("anchor", anchor)
            session = enclave(self.address, "kill/fixed", self.vendor)
            self._among("secret", int(session.attest().environment["TOKEN"]))
            session.close()
            audit = client.audit()
            verify_audit(audit, cas_root=self.address.cas_root)
            events = Counter(entry.event for entry, _ in audit.entries)
            for kind, count in outcome.acknowledged.items():
                if events[kind] < count:
                    outcome.lost.append(f"log: {events[kind]} entries of {kind}, {count} acknowledged")

    def _among(self, kind: str, found: object) -> None:
        if found not in (self.kept.get(kind), self.sent.get(kind)):
            self.outcome.lost.append(f"{kind}: {self.kept.get(kind)} was acknowledged, {found} is there")


def run(
    directory: Path, kills: int, *, seed: int | None = None, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Kill a CAS so many times.

    Args:
        directory: gets its state.
        seed: of how many acknowledgements lie between kills.
    """
    world, chance = _World(directory), random.Random(seed)  # noqa: S311  # nothing hangs on it
    writers = [
        threading.Thread(target=target, daemon=True)
        for target in (world.policies, world.secrets, world.anchors, world.attestations)
    ]
    for writer in writers:
        writer.start()
    for number in range(kills):
        world.kill(chance.randint(0, _SPREAD))
        if number % 20 == 19:
            say(f"{number + 1} kills, {sum(world.outcome.acknowledged.values()):,} changes acknowledged")
    world.over.set()
    for writer in writers:
        writer.join()
    world.check()
    world.pipe.close()
    world.process.join()
    return world.outcome
