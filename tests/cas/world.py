"""A small world for these tests: a real CAS on loopback, its owner, a simulated vendor, and enclaves that may lie."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.attest.binding import EXPORTER_LABEL, NO_BINDER, Kind, canonical, report_data
from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas import CasAddress, EnclaveSession, OwnerClient, running_cas
from strongroom.cas.api.operation import Operation
from strongroom.cas.client.address import cas_expectation, dial_cas, split_address
from strongroom.cas.client.enclave import _provisions
from strongroom.cas.enclaves.completion import Complete
from strongroom.cas.log.note import WitnessKey
from strongroom.cas.policy.version import Policy
from strongroom.cas.wire import CONFIGURATION_INFO, b64, bytes_field
from strongroom.channel import HttpClient, Identity
from strongroom.crypto import Certificate, HpkeKey, Signer, SigningKey, digest

MEASURED = {name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}
VAULT_KEY = b"the vault's key, of 32 bytes ok!"
TOKEN = b"swordfish-7f3a"

PROGRAM = """
[program]
command = ["python", "train.py"]
[[vaults]]
name = "data"
mount = "/data"
access = "read-only"
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
generate = 16
"""


@dataclass
class Clock:
    """The CAS's clock."""

    now: float

    def __call__(self) -> float:
        return self.now


def document(key: SigningKey, /, *, vendor_root: str = "", **changes: Any) -> str:
    """A policy's text. `changes` are fields of [policy], `reference` fields of that table; `more` comes at the end."""
    head: dict[str, Any] = {"name": "acme/train", "version": 1, "owner": key.public.fingerprint, "role": "program"}
    reference: dict[str, Any] = {"tees": ["simulated"], "measurements": [registers_measurement(MEASURED)]}
    if vendor_root:
        reference["allow_simulated"] = vendor_root
    more = changes.pop("more", PROGRAM)
    reference |= changes.pop("reference", {})
    head |= changes
    lines = ["[policy]", *(f"{k} = {json.dumps(v)}" for k, v in head.items() if v is not None)]
    lines += ["[reference]", *(f"{k} = {json.dumps(v)}" for k, v in reference.items() if v is not None)]
    return "\n".join(lines) + "\n" + more


@dataclass
class Cas:
    """A CAS that runs, and what it runs on."""

    directory: Path
    address: CasAddress
    vendor: SimulatedVendor
    clock: Clock

    def dial(self) -> socket.socket:
        return dial_cas(*split_address(self.address.url))

    def owner(self, key: Signer | None = None) -> OwnerClient:
        """A client with that key, or with a new one: somebody else's."""
        return OwnerClient(self.address.url, cas_root=self.address.cas_root, owner=key or SigningKey.generate())

    def bearer(self, token: str, key: Signer | None = None) -> OwnerClient:
        """A client that logs in with an issuer's token."""
        return OwnerClient(self.address.url, cas_root=self.address.cas_root, owner=key, token=lambda: token)


@contextmanager
def cas_in(
    directory: Path,
    clock: Clock | None = None,
    *,
    witnesses: Sequence[WitnessKey] = (),
    complete: Complete | None = None,
    operation: Operation | None = None,
    **settings: Any,
) -> Iterator[Cas]:
    """A CAS with its state in that directory, and a vendor beside it; a second time it finds both again.

    Args:
        settings: more fields of `server.Settings`.
    """
    clock = clock or Clock(time.time())
    vendor = SimulatedVendor.open(directory / "vendor", now=int(clock.now))
    chosen = {"witnesses": witnesses, "complete": complete, "operation": operation, "clock": clock, **settings}
    with running_cas(directory / "cas", **chosen) as address:
        yield Cas(directory / "cas", address, vendor, clock)


@dataclass
class World:
    """A CAS with one owner's policy in it, whose secrets are stored."""

    cas: Cas
    name: str
    owner: SigningKey
    client: OwnerClient

    @property
    def policy(self) -> Policy:
        return self.client.policy(self.name)

    def text(self, **changes: Any) -> str:
        """The policy's first version, or another policy."""
        return document(self.owner, **{"name": self.name, "vendor_root": self.cas.vendor.root_digest} | changes)

    def renew(self, **changes: Any) -> Policy:
        """The next version of the policy, applied."""
        current = self.policy
        return self.client.apply(self.text(version=current.version + 1, previous=current.digest, **changes))

    def service(self) -> str:
        """Apply a policy for a service, without secrets; its name."""
        name = self.name + "-serve"
        self.client.apply(self.text(name=name, role="service", more=""))
        return name

    @contextmanager
    def session(self, **changes: Any) -> Iterator[EnclaveSession]:
        options: dict[str, Any] = {
            "cas_root": self.cas.address.cas_root,
            "policy": self.name,
            "role": "program",
            "attester": SimulatedAttester(self.cas.vendor, MEASURED),
        }
        options |= changes
        session = EnclaveSession(options.pop("dial", self.cas.dial), **options)
        try:
            yield session
        finally:
            session.close()

    @contextmanager
    def enclave(self, **changes: Any) -> Iterator[Enclave]:
        enclave = Enclave(self, **changes)
        try:
            yield enclave
        finally:
            enclave.http.close()

    def events(self) -> list[str]:
        return [entry["event"] for entry in self.client.log()]

    def refusals(self) -> list[str]:
        """The codes of what the CAS has refused this owner's enclaves for."""
        return [json.loads(e["detail"])["code"] for e in self.client.log() if e["event"] == "refused"]


_counter = itertools.count()


@contextmanager
def world_in(cas: Cas, **changes: Any) -> Iterator[World]:
    """A new owner with a policy of a new name."""
    owner = SigningKey.generate()
    with cas.owner(owner) as client:
        world = World(cas, f"acme-{next(_counter)}/train", owner, client)
        client.apply(world.text(**changes))
        if world.policy.vaults:
            client.put_vault_key(world.name, "data", VAULT_KEY)
            client.put_vault_key(world.name, "out", VAULT_KEY[::-1])
            client.put_secret(world.name, "token", TOKEN)
        yield world


class Enclave:
    """An enclave's end of the exchange, step by step, so that each step may be wrong."""

    def __init__(
        self,
        world: World,
        *,
        policy: str | None = None,
        role: str = "program",
        identity: Identity | None = None,
        anonymous: bool = False,
        vendor: SimulatedVendor | None = None,
        registers: Mapping[str, bytes] = MEASURED,
        debug: bool = False,
    ) -> None:
        self.world, self.policy, self.role = world, policy or world.name, role
        self.vendor, self.registers, self.debug = vendor or world.cas.vendor, registers, debug
        self.identity = identity or Identity.fresh("enclave", now=dt.datetime.now(dt.UTC))
        self.hpke = HpkeKey()
        self.lease: dict[str, Any] = {}
        self.http = HttpClient(
            world.cas.dial,
            host="cas",
            expect=cas_expectation(world.cas.address.cas_root),
            identity=None if anonymous else self.identity,
        )
        self.stream = self.http.connect()

    def nonce(self) -> bytes:
        return bytes.fromhex(str(self.http.post("/v1/nonce", {"policy": self.policy})["nonce"]))

    def claims(self, **changes: Any) -> bytes:
        said = {
            "role": self.role,
            "spki": self.identity.key.public.fingerprint,
            "hpke": self.hpke.public.hex(),
            "cas_root": self.world.cas.address.cas_root,
            "policy": self.policy,
            "policy_digest": self.world.client.policy(self.policy).digest,
        }
        return canonical({k: v for k, v in (said | changes).items() if v is not None})

    def evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        binder = self.stream.export(EXPORTER_LABEL, self.role.encode())
        bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims)
        return self.vendor.quote(self.registers, bound, debug=self.debug)

    def service_evidence(self, token: str, claims: bytes) -> Evidence:
        bound = report_data(Kind.SERVICE, fresh=digest(token.encode()), binder=NO_BINDER, claims=claims)
        return self.vendor.quote(self.registers, bound, debug=self.debug)

    def show(self, evidence: Evidence, claims: bytes) -> dict[str, object]:
        """Steps 3 to 5, with the token of the last answer; `lease` is what the CAS says of the lease."""
        shown = {"evidence": evidence.to_wire(), "claims": b64(claims)}
        shown |= {"lease": self.lease["token"]} if self.lease else {}
        answer = self.http.post("/v1/attest", shown, fresh=True)
        self.lease = dict(answer["lease"])  # type: ignore[call-overload]
        return answer

    def attest(self, **changes: Any) -> dict[str, object]:
        """Steps 2 to 5, with these claims changed (None: left out)."""
        nonce, claims = self.nonce(), self.claims(**changes)
        return self.show(self.evidence(nonce, claims), claims)

    def open(self, answer: Mapping[str, Any]) -> Any:
        box = self.hpke.open(bytes_field(answer, "configuration"), info=CONFIGURATION_INFO)
        return _provisions(box, "", Certificate(bytes_field(answer, "certificate")))

    def put(self, path: str, value: object) -> dict[str, object]:
        body, headers = json.dumps(value).encode(), {"content-type": "application/json"}
        return self.http.request("PUT", path, body=body, headers=headers, fresh=True).expect_ok().json()

    def time_token(self) -> str:
        return str(self.http.post("/v1/time-token", {}, fresh=True)["token"])
