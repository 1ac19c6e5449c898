"""Attestation: appraising real reports, verifying what others appraised, and the whole exchange of a boot.

- Appraisal is everything from bytes to a result: parse, follow every signature from the vendor's root, compare with
  reference values. Reports, certificates and collateral are those of `tests/vectors`, at times when they were valid.
  What a verifier keeps of one verification for the next is thrown away before each, but where it says "again".
- Beside dcap-qvl alone, which verifies but neither appraises nor is a second opinion on itself; and beside PyJWT, which
  reads the same token with the same library for elliptic curves.
- The exchanges run between two processes, each on a fresh TLS 1.3 connection: nonce, evidence over the channel's
  exporter, verification and appraisal. With a client as the verifier that is all; with a CAS the enclave also shows a
  certificate, and the CAS writes its log to disk, issues a certificate, and seals a configuration, which is opened.
  It is one enclave that attests again and again: of its platform, what was verified once stands.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import multiprocessing as mp
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dcap_qvl

from benchmarks.harness import Bench, Goal
from strongroom.attest.appraise import appraise
from strongroom.attest.binding import EXPORTER_LABEL, FRESH_SIZE, Kind, canonical, report_data
from strongroom.attest.claims import REGISTERS, Claims, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import unpadded
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.result import ResultStatement, sign_result, sign_result_cwt, verify_result
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.attest.token import jwk
from strongroom.attest.verify import dcap, dcap_chain, verify
from strongroom.cas import EnclaveSession, OwnerClient, running_cas
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.channel import HttpClient, Identity, Server, bind, tls_info
from strongroom.crypto import Certificate, SigningKey, chains, random_bytes
from strongroom.crypto.chains import VendorCertificate

GOALS: Sequence[Goal] = (
    Goal("appraise an SNP report", 2.0, "ms", "at most"),
    Goal("appraise a TDX quote", 2.0, "ms", "at most"),
    Goal("appraise a TDX quote again", 1.0, "ms", "at most"),
    Goal("TDX quote against dcap-qvl alone", 4.0, "x", "at most"),
    Goal("verify a result, JWT", 0.2, "ms", "at most"),
    Goal("verify a result, CWT", 0.2, "ms", "at most"),
    Goal("result against PyJWT", 3.0, "x", "at most"),
    Goal("kind-1 exchange with a client, p50", 5.0, "ms", "at most"),
    Goal("kind-1 exchange with a CAS, p50", 5.0, "ms", "at most"),
)

_VECTORS = Path(__file__).parents[1] / "tests" / "vectors"
_PYJWT = "PyJWT[crypto]==2.10.1"
_TIMES = 200  # of each verification in one round
_EXCHANGES = 50
_POLICY = "benchmark/boot"
_MEASURED = {name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    snp, snp_now = _snp()
    bench.measure("appraise an SNP report", bench.timed(_repeat(_anew(_appraisal(snp, snp_now))), per=_TIMES))
    tdx, tdx_now = _tdx()
    again = _appraisal(tdx, tdx_now)
    ours = _anew(again)
    bench.measure("appraise a TDX quote", bench.timed(_repeat(ours), per=_TIMES))
    bench.measure("appraise a TDX quote again", bench.timed(_repeat(again), per=_TIMES))

    def alone() -> object:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(tdx.endorsements.decode())
        return dcap_qvl.verify(tdx.quote, collateral, tdx_now)

    bench.compare(
        "TDX quote against dcap-qvl alone",
        bench.timed(_repeat(ours), per=_TIMES),
        bench.timed(_repeat(alone), per=_TIMES),
        peer_name="dcap-qvl",
        unit="ms",
    )
    _measure_results(bench)
    for name, prepare in (("client", _client_exchange), ("CAS", _exchange)):
        if bench.wants(f"kind-1 exchange with a {name}, p50"):
            with prepare() as exchange:
                bench.measure(f"kind-1 exchange with a {name}, p50", _p50(exchange))


def _repeat(action: Callable[[], object]) -> Callable[[], None]:
    def many() -> None:
        for _ in range(_TIMES):
            action()

    return many


def _snp() -> tuple[Evidence, int]:
    folder = _VECTORS / "sev-snp"
    leaf = VendorCertificate((folder / "milan_v2.leaf.der").read_bytes())
    report = (folder / "milan_v2.report.bin").read_bytes()
    return Evidence("snp", report, Endorsements((leaf,)).to_bytes()), 1_700_000_000


def _tdx() -> tuple[Evidence, int]:
    folder, name = _VECTORS / "tdx", "v4_up_to_date"
    quote = unpadded((folder / f"{name}.quote.bin").read_bytes())
    now = json.loads((folder / "cases.json").read_text())[name]["now"]
    return Evidence("tdx", quote, (folder / f"{name}.collateral.json").read_bytes()), now


def _appraisal(evidence: Evidence, now: int) -> Callable[[], object]:
    """From the bytes on the wire to a result, under a policy that wants exactly this enclave."""
    wire = evidence.to_wire()
    first = verify(evidence, now=now)
    reference = ReferenceValues(
        (first.tee,),
        (first.measurement,),
        advisories_allowed=first.advisories,
        minimum_tcb={first.tee: first.tcb} if first.tcb else {},
        weaknesses_allowed=_weaknesses(first),
    )

    def once() -> object:
        claims = verify(Evidence.from_wire(wire), now=now)
        return appraise(claims, reference, expected_report_data=first.report_data, now=now)

    return once


def _anew(action: Callable[[], object]) -> Callable[[], object]:
    """The same by a verifier that has never checked a signature; what it has parsed it may know."""

    def forgetful() -> object:
        dcap._answers.clear()
        dcap_chain._check_qe_report.cache_clear()
        chains._issued.cache_clear()
        return action()

    return forgetful


def _weaknesses(claims: Claims) -> tuple[str, ...]:
    return (*claims.weaknesses, *(["migratable"] if claims.migratable else []))


def _measure_results(bench: Bench) -> None:
    key, now = SigningKey.generate(), int(time.time())
    digest = "sha256:" + "11" * 32
    statement = ResultStatement(
        issuer=digest,
        issued_at=now,
        expires=now + 86_400,
        policy="acme/digits",
        policy_digest=digest,
        fresh=bytes(32),
        claims="22" * 32,
        tee="tdx",
        measurement="33" * 48,
        vendor_root=digest,
        tcb_status="UpToDate",
    )
    jwt, cwt = sign_result(statement, key), sign_result_cwt(statement, key)

    def reading(token: str | bytes) -> Callable[[], None]:
        return _repeat(lambda: verify_result(token, key.public, now=now))

    bench.measure("verify a result, JWT", bench.timed(reading(jwt), per=_TIMES))
    bench.measure("verify a result, CWT", bench.timed(reading(cwt), per=_TIMES))
    if bench.wants("result against PyJWT"):
        python = bench.peer_environment("pyjwt", [_PYJWT])
        with _pyjwt(python, jwt, key) as theirs:
            ours = bench.timed(reading(jwt), per=_TIMES)
            bench.compare("result against PyJWT", ours, theirs, peer_name=_PYJWT, unit="ms")


_PYJWT_LOOP = f"""
import json, sys, time, jwt
given = json.loads(sys.stdin.readline())
key = jwt.PyJWK.from_dict(given["jwk"])
for line in sys.stdin:
    began = time.perf_counter()
    for _ in range({_TIMES}):
        jwt.decode(given["token"], key, algorithms=["ES256"])
    print((time.perf_counter() - began) * 1000 / {_TIMES}, flush=True)
"""


@contextlib.contextmanager
def _pyjwt(python: Path, token: str, key: SigningKey) -> Iterator[Callable[[], float]]:
    """Milliseconds that PyJWT takes for a token: signature and dates; what the claims say, it leaves to its caller."""
    process = subprocess.Popen(
        [python, "-c", _PYJWT_LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps({"jwk": jwk(key.public), "token": token}) + "\n")

    def one() -> float:
        assert process.stdin and process.stdout
        process.stdin.write("again\n")
        return float(process.stdout.readline())

    try:
        yield one
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _p50(exchange: Callable[[], object]) -> Callable[[], float]:
    """The median of some exchanges in milliseconds."""

    def figure() -> float:
        durations = []
        for _ in range(_EXCHANGES):
            began = time.perf_counter()
            exchange()
            durations.append((time.perf_counter() - began) * 1000)
        return sorted(durations)[len(durations) // 2]

    return figure


@contextlib.contextmanager
def _client_exchange() -> Iterator[Callable[[], object]]:
    """An exchange of a client, which is the verifier, with an enclave in a process of its own."""
    spawn = mp.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        vendor = SimulatedVendor.open(Path(directory), now=int(time.time()))
        process = spawn.Process(target=_enclave_side, args=(directory, theirs), daemon=True)
        process.start()
        port = ours.recv()
        reference = ReferenceValues(
            ("simulated",), (registers_measurement(_MEASURED),), allow_simulated=vendor.root_digest
        )

        def exchange() -> object:
            shown: list[Certificate] = []
            nonce, now = random_bytes(FRESH_SIZE), int(time.time())
            with HttpClient.to("127.0.0.1", port, expect=lambda chain: shown.append(chain[0])) as http:
                binder = http.connect().export(EXPORTER_LABEL, _ROLE)
                answer = http.post("/", {"nonce": nonce.hex()}, fresh=True)
            claims = verify(Evidence.from_wire(answer), now=now)
            said = canonical({"role": _ROLE.decode(), "spki": shown[0].key.fingerprint})
            bound = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=said)
            return appraise(claims, reference, expected_report_data=bound, now=now)

        try:
            yield exchange
        finally:
            ours.send(None)
            process.join()


_ROLE = b"benchmark"


def _enclave_side(directory: str, pipe: Connection) -> None:
    vendor = SimulatedVendor.open(Path(directory), now=int(time.time()))
    identity = Identity.fresh("enclave", now=dt.datetime.now(dt.UTC))
    claims = canonical({"role": _ROLE.decode(), "spki": identity.key.public.fingerprint})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonce = bytes.fromhex(json.loads((await receive())["body"])["nonce"])
        binder = tls_info(scope).export(EXPORTER_LABEL, _ROLE)
        evidence = vendor.quote(_MEASURED, report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=claims))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(evidence.to_wire()).encode()})

    with Server(app, bind("127.0.0.1", 0), identity) as server:
        pipe.send(server.port)
        pipe.recv()


@contextlib.contextmanager
def _exchange() -> Iterator[Callable[[], object]]:
    """An exchange with a CAS in a process of its own."""
    spawn = mp.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        process = spawn.Process(target=_cas_side, args=(directory, theirs), daemon=True)
        process.start()
        url, cas_root = ours.recv()
        vendor = SimulatedVendor.open(Path(directory) / "vendor", now=int(time.time()))
        _apply(url, cas_root, vendor.root_digest)
        session = EnclaveSession(
            lambda: dial_cas(*split_address(url)),
            cas_root=cas_root,
            policy=_POLICY,
            role="program",
            attester=SimulatedAttester(vendor, _MEASURED),
        )
        try:
            yield session.attest
        finally:
            session.close()
            ours.send(None)
            process.join()


def _cas_side(directory: str, pipe: Connection) -> None:
    with running_cas(Path(directory) / "cas") as address:
        pipe.send((address.url, address.cas_root))
        pipe.recv()


def _apply(url: str, cas_root: str, vendor_root: str) -> None:
    owner = SigningKey.generate()
    text = f"""
[policy]
name = "{_POLICY}"
version = 1
owner = "{owner.public.fingerprint}"
role = "program"
[reference]
tees = ["simulated"]
measurements = ["{registers_measurement(_MEASURED)}"]
allow_simulated = "{vendor_root}"
[program]
command = ["python", "train.py"]
[[secrets]]
name = "seed"
environment = "SEED"
generate = 32
"""
    with OwnerClient(url, cas_root=cas_root, owner=owner) as client:
        client.apply(text)
