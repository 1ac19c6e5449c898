"""A small world for these tests: a CAS, a simulated vendor, models of a few bytes, and services that may lie."""

from __future__ import annotations

import datetime as dt
import functools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.binding import NO_BINDER, Kind, canonical, report_data
from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.result import ResultStatement, sign_result
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.token import sign_token
from strongroom.channel import Identity, Server, bind
from strongroom.crypto import CertificateAuthority, SigningKey, digest
from strongroom.serve import Client, ServiceApp, ServiceAttestation, Stage

NOW = int(time.time())
MOMENT = dt.datetime.fromtimestamp(NOW, dt.UTC)
POLICY = "acme/digits"
REGISTERS_OF_OURS = {name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}
MEASUREMENT = registers_measurement(REGISTERS_OF_OURS)


def model(nodes, inputs, outputs, initializers=(), *, opset=17) -> bytes:
    """An ONNX model; inputs and outputs are (name, type, shape)."""
    tensors = [[helper.make_tensor_value_info(*info) for info in infos] for infos in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *tensors, list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(made)
    return made.SerializeToString()


@functools.cache
def double() -> bytes:
    """y = x + x for a matrix of any height and three columns."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return model([node], [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, ["n", 3])])


@functools.cache
def two_by_two() -> bytes:
    """total = a + b and product = a * b, of INT64 vectors."""
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    names = [("a", "b"), ("total", "product")]
    return model(nodes, *[[(name, TensorProto.INT64, ["n"]) for name in pair] for pair in names])


@functools.cache
def echo(datatype: int) -> bytes:
    """y = x, of one ONNX type and any shape of rank 1."""
    return model([helper.make_node("Identity", ["x"], ["y"])], [("x", datatype, ["n"])], [("y", datatype, ["n"])])


ENDLESS = 1 << 40
"""Turns of a Loop that no test waits for."""


@functools.cache
def turning() -> bytes:
    """y = x + turns, by as many turns of a Loop."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Add", ["v", "one"], ["next"])],
        "body",
        [helper.make_tensor_value_info(*each) for each in (("i", 7, []), ("on", 9, []), ("v", 1, ["n"]))],
        [helper.make_tensor_value_info(*each) for each in (("still_on", 9, []), ("next", 1, ["n"]))],
    )
    weights = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("yes", 9, [], [True])]
    loop = helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)
    return model([loop], [("x", 1, ["n"]), ("turns", 7, [])], [("y", 1, ["n"])], weights)


@functools.cache
def vendor() -> SimulatedVendor:
    with tempfile.TemporaryDirectory() as directory:
        return SimulatedVendor.open(Path(directory), now=NOW)


def reference(**changes) -> ReferenceValues:
    values = {"tees": ("simulated",), "measurements": (MEASUREMENT,), "allow_simulated": vendor().root_digest}
    return ReferenceValues(**values | changes)


@dataclass
class Cas:
    """Signs what an honest CAS would sign, and, for attacks, what it would not."""

    authority: CertificateAuthority = field(default_factory=lambda: CertificateAuthority.create("CAS", now=MOMENT))
    key: SigningKey = field(default_factory=SigningKey.generate)
    uris: tuple[str, ...] = ("spiffe://strongroom/cas",)

    def __post_init__(self) -> None:
        self.root = self.authority.key.public.fingerprint
        week = dt.timedelta(days=7)
        self.leaf = self.authority.issue(self.key.public, "CAS", now=MOMENT, lifetime=week, uris=list(self.uris))
        self.chain = (self.leaf, self.authority.certificate)

    def attest(
        self,
        key: SigningKey,
        models,
        *,
        now=NOW,
        kind=Kind.SERVICE,
        claims=None,
        result=None,
        time=None,
        registers=REGISTERS_OF_OURS,
    ) -> ServiceAttestation:
        """The document of a service that holds `key`; `claims`, `result` and `time` change what is said in it."""
        token = sign_token(self.key, "strongroom-time+jwt", {"iat": now, "exp": now + 600, "jti": "00"} | (time or {}))
        said = {
            "role": "service",
            "spki": key.public.fingerprint,
            "hpke": "ab" * 32,
            "cas_root": self.root,
            "policy": POLICY,
            "policy_digest": "sha256:" + "cd" * 32,
            "models": models,
        }
        raw = canonical(said | (claims or {}))
        binder = NO_BINDER if kind is Kind.SERVICE else bytes([7]) * 32
        bound = report_data(kind, fresh=digest(token.encode()), binder=binder, claims=raw)
        evidence = vendor().quote(registers, bound)
        seen = {
            "issuer": self.root,
            "issued_at": now,
            "expires": now + 600,
            "fresh": digest(token.encode()),
            "policy": POLICY,
            "policy_digest": "sha256:" + "cd" * 32,
            "tee": "simulated",
            "measurement": registers_measurement(registers),
            "vendor_root": vendor().root_digest,
            "tcb_status": "UpToDate",
            "claims": digest(raw).hex(),
        }
        signed = sign_result(ResultStatement(**seen | (result or {})), self.key)
        return ServiceAttestation(evidence, raw, token, signed, self.chain)


def stages(**models: bytes) -> dict[str, Stage]:
    return {name: Stage.load(raw, name=name, threads=1) for name, raw in (models or {"double": double()}).items()}


@contextmanager
def serving(app, identity: Identity | None = None) -> Iterator[Server]:
    """An ASGI application behind TLS."""
    with Server(app, bind("127.0.0.1", 0), identity or Identity.fresh("service", now=MOMENT)) as server:
        yield server


@contextmanager
def service(cas: Cas, loaded=None, *, attestation=None, identity=None, **options) -> Iterator[Server]:
    """An attested service; `attestation(key)` may lie."""
    loaded = loaded or stages()
    identity = identity or Identity.fresh("service", now=MOMENT)
    digests = {name: "sha256:" + stage.digest for name, stage in loaded.items()}
    document = attestation(identity.key) if attestation else cas.attest(identity.key, digests)
    app = ServiceApp(loaded, document.to_wire, **options)
    try:
        with serving(app, identity) as server:
            yield server
    finally:
        app.close()


def client(server: Server, cas: Cas, **options) -> Client:
    # The clock stands where the documents were made: the tests before this one may take longer than these are valid.
    options = {"cas_root": cas.root, "policy": POLICY, "reference": reference(), "clock": lambda: NOW} | options
    return Client(f"https://127.0.0.1:{server.port}", **options)
