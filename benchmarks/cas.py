"""The CAS under load: enclaves attested and provisioned, anchors moved, and what 100 kills lose.

- The CAS runs in a process of its own, with its state on the disk that holds the temporary directory; clients reach it
  over loopback and TLS 1.3. TEEs are simulated: a quote in TDX's format, signed in software. As of real ones, the
  first of a platform and measurement is verified twice, and of those after it the signature, which is what is timed.
- Attest and provision is everything from a new connection to a configuration that is opened: TCP and TLS, a nonce,
  evidence over the channel's exporter, verification and appraisal, a lease and its entry in the log on the disk, a
  certificate, the configuration sealed and opened. The parts are told besides, each measured alone, beside the 17 ms
  that secureTF's CAS takes, and the 325 ms of attestation through Intel's service (Quoc et al., Middleware 2020).
- 64 clients are enclaves that attest again and again, each time on a new connection: threads of processes of their own.
  Their share of the machine is told, since they take it from the CAS.
- An anchor's move is an update that is on the disk before it is acknowledged. Strict anchors move with every commit,
  grouped ones with every 64th.
- PostgreSQL is the server that the tests start, on the same disk, reached by its socket.
- `cas_kills.py` says what is killed, and what must be there afterwards.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import multiprocessing as mp
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import cas_kills
from benchmarks.cas_kills import MEASURED, enclave, policy_text
from benchmarks.harness import Bench, Goal
from strongroom.attest.appraise import appraise
from strongroom.attest.binding import EXPORTER_LABEL, Kind, canonical, report_data
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.verify import verify
from strongroom.cas import CasAddress, OwnerClient
from strongroom.cas.client.address import cas_expectation, dial_cas, split_address
from strongroom.cas.policy.version import parse_policy
from strongroom.cas.state.store import Store
from strongroom.cas.wire import CONFIGURATION_INFO
from strongroom.channel import HttpClient, Identity
from strongroom.crypto import CertificateAuthority, HpkeKey, SigningKey, hpke_seal, random_bytes
from strongroom.sealed import Grouped, Root, open_sealed

CLIENTS, PROCESSES = 64, 8
_P50, _P99 = "attest and provision, p50", "attest and provision, p99"
_RATE = f"attest and provision, {CLIENTS} clients"
_STRICT_1, _STRICT_64 = "anchors moved, one client", f"anchors moved, {CLIENTS} clients"
_GROUPED = "commits with grouped anchors against strict"
_POSTGRES = "anchors moved in PostgreSQL against SQLite"
_LOST, _FAILED = "acknowledged changes lost in 100 kills", "requests failed in 100 kills"
_POLICY = "benchmark/load"
_HOUR = dt.timedelta(hours=1)

GOALS: Sequence[Goal] = (
    Goal(_P50, 6, "ms", "at most"),
    Goal(_P99, 25, "ms", "at most"),
    Goal(_RATE, 250, "a second", "at least"),
    Goal(_STRICT_1, 250, "a second", "at least"),
    Goal(_STRICT_64, 500, "a second", "at least"),
    Goal(_GROUPED, 2, "x", "at least"),
    Goal(_POSTGRES, 0.2, "x", "at least", full_only=True),
    Goal(_LOST, 0, "changes", "at most", full_only=True),
    Goal(_FAILED, 0, "requests", "at most", full_only=True),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if bench.wants(_P50, _P99, _RATE, _STRICT_1, _STRICT_64, _GROUPED):
        with running() as load:
            _measure_load(bench, load)
    if bench.wants(_POSTGRES):
        from tests.cas.postgres import postgres_server  # which needs a driver

        with postgres_server() as server, running(server.schema()) as shared, running() as own:

            def moved(load: Load) -> float:
                return load.together("anchor", seconds=5)[0]

            bench.compare(
                _POSTGRES,
                lambda: moved(shared),
                lambda: moved(own),
                peer_name="SQLite",
                unit="a second",
                rounds=3,
                warmup=0,
            )
    if bench.wants(_LOST, _FAILED):
        with tempfile.TemporaryDirectory() as directory:
            outcome = cas_kills.run(Path(directory), 100, say=bench.say)
        for trouble in (*outcome.lost, *outcome.failed):
            bench.say(trouble)
        bench.say(f"acknowledged: {dict(outcome.acknowledged)}; at most {outcome.tries} tries of one request")
        bench.record(_LOST, len(outcome.lost))
        bench.record(_FAILED, len(outcome.failed))


def _measure_load(bench: Bench, load: Load) -> None:
    if bench.wants(_P50, _P99):
        durations = load.one_by_one(300 if bench.quick else 2000)
        bench.record(_P50, statistics.median(durations))
        bench.record(_P99, statistics.quantiles(durations, n=100)[98])
        for name, milliseconds in load.phases(50 if bench.quick else 200):
            bench.say(f"of it: {name}: {milliseconds:.2f} ms")
        bench.say("secureTF's CAS: 17 ms; through Intel's attestation service: 325 ms")
    for name, what in ((_RATE, "attest"), (_STRICT_64, "anchor")):
        if bench.wants(name):
            rate, share, busy = load.together(what, seconds=4 if bench.quick else 15)
            bench.say(f"{what}: the CAS took {busy:.2f} of the machine's cores, its clients {share:.2f}")
            bench.record(name, rate)
    if bench.wants(_STRICT_1):
        bench.record(_STRICT_1, load.anchors_moved(seconds=2 if bench.quick else 10))
    if bench.wants(_GROUPED):
        strict = bench.timed(lambda: load.commits(64, grouped=False), per=64)
        grouped = bench.timed(lambda: load.commits(64, grouped=True), per=64)
        bench.compare(_GROUPED, lambda: 1 / grouped(), lambda: 1 / strict(), peer_name="strict", unit="1/ms")


class Load:
    """A CAS in another process, and clients of it.

    Args:
        busy: asks it for the seconds of processor time that it has taken.
    """

    def __init__(self, directory: Path, address: CasAddress, busy: Callable[[], float]) -> None:
        self.directory, self.address, self.busy = directory, address, busy
        self.vendor = SimulatedVendor.open(directory / "vendor", now=int(time.time()))
        self.owner = SigningKey.generate()
        with self.client() as client:
            client.apply(policy_text(self.owner, _POLICY, self.vendor.root_digest))
            client.put_secret(_POLICY, "token", b"swordfish")
            client.put_vault_key(_POLICY, "out", bytes(32))
        self._commits = self._rounds = 0

    def client(self) -> OwnerClient:
        return OwnerClient(self.address.url, cas_root=self.address.cas_root, owner=self.owner)

    def one_by_one(self, count: int) -> list[float]:
        """Milliseconds of each of so many attestations, of a new enclave each, after some that do not count."""
        taken = []
        for _ in range(20 + count):
            session = enclave(self.address, _POLICY, self.vendor)  # which has made its keys
            began = time.perf_counter()
            session.attest()
            taken.append((time.perf_counter() - began) * 1000)
            session.close()
        return taken[20:]

    def together(self, what: str, *, seconds: float) -> tuple[float, float, float]:
        """What all clients at once do in a second, and how many cores they and the CAS take for it.

        Args:
            what: ``attest`` or ``anchor``.
        """
        self._rounds += 1
        spawn = mp.get_context("spawn")
        pipes, processes = [], []
        for number in range(PROCESSES):
            ours, theirs = spawn.Pipe()
            names = [f"benchmark/r{self._rounds}-{number}-{each}" for each in range(CLIENTS // PROCESSES)]
            args = (str(self.directory), self.address, self.owner.pem(), what, names, theirs)
            process = spawn.Process(target=_clients, args=args, daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        try:
            for pipe in pipes:
                pipe.recv()  # all are there
            before, began = self.busy(), time.perf_counter()
            for pipe in pipes:
                pipe.send(seconds)
            answers = [pipe.recv() for pipe in pipes]
            lasted, busy = time.perf_counter() - began, self.busy() - before
        except BaseException:
            for process in processes:
                process.kill()  # the time is over, and the CAS is closed next: they would all say that it is away
            raise
        finally:
            for process in processes:
                process.join()
        return sum(count for count, _ in answers) / lasted, sum(used for _, used in answers) / lasted, busy / lasted

    def anchors_moved(self, *, seconds: float) -> float:
        """How often in a second one client moves an anchor."""
        with self.client() as client:
            return _until(seconds, _moving(client, _POLICY)) / seconds

    def commits(self, count: int, *, grouped: bool) -> None:
        """So many commits of a sealed file whose anchor is in the CAS."""
        self._commits += 1
        with self.client() as client:
            client.apply(policy_text(self.owner, f"{_POLICY}-{self._commits}", self.vendor.root_digest))
            anchor = client.anchor(f"{_POLICY}-{self._commits}", "out")
            kept = Grouped(anchor, every_seconds=60, clock=time.monotonic) if grouped else anchor
            path = self.directory / f"commits-{self._commits}"
            with open_sealed(path, "x", key=random_bytes(32), anchor=kept) as file:
                for number in range(count):
                    file.write_at(0, b"step %d" % number)
                    file.commit()

    def phases(self, times: int) -> list[tuple[str, float]]:
        """Medians, in milliseconds, of the parts of attesting, each alone."""
        parts: dict[str, list[float]] = {}

        @contextlib.contextmanager
        def part(name: str) -> Iterator[None]:
            began = time.perf_counter()
            yield
            parts.setdefault(name, []).append((time.perf_counter() - began) * 1000)

        now = dt.datetime.now(dt.UTC)
        identity = Identity.fresh("enclave", now=now)
        reference = ReferenceValues(
            ("simulated",),
            tuple(parse_policy(self._text()).reference.measurements),
            allow_simulated=self.vendor.root_digest,
        )
        with tempfile.TemporaryDirectory() as directory:
            store, authority = Store(Path(directory)), CertificateAuthority.create("Benchmark", now=now)
            for number in range(times):
                http = HttpClient(
                    lambda: dial_cas(*split_address(self.address.url)),
                    host="cas",
                    expect=cas_expectation(self.address.cas_root),
                    identity=identity,
                )
                with part("connect, TLS"):
                    http.connect()
                with part("nonce"):
                    answer = http.post("/v1/nonce", {"policy": _POLICY})
                claims = canonical({"policy": _POLICY, "nonce": str(answer["nonce"])})
                bound = report_data(
                    Kind.SESSION,
                    fresh=random_bytes(32),
                    binder=http.connect().export(EXPORTER_LABEL, b"x"),
                    claims=claims,
                )
                with part("evidence"):
                    evidence = self.vendor.quote(MEASURED, bound)
                with part("verify"):
                    said = verify(evidence, now=int(time.time()))
                with part("appraise"):
                    appraise(said, reference, expected_report_data=bound, now=int(time.time()))
                with part("log commit"):
                    store.record("attested", _POLICY, {"number": number}, now=int(time.time()))
                with part("certificate"):
                    authority.issue(identity.key.public, _POLICY, now=now, lifetime=_HOUR, uris=[_POLICY])
                key, given = HpkeKey(), json.dumps({"environment": {"SEED": "00" * 32}}).encode()
                with part("seal"):
                    box = hpke_seal(key.public, given, info=CONFIGURATION_INFO)
                with part("open"):
                    key.open(box, info=CONFIGURATION_INFO)
                http.close()
            store.close()
        return [(name, statistics.median(taken)) for name, taken in parts.items()]

    def _text(self) -> str:
        return policy_text(self.owner, _POLICY, self.vendor.root_digest)


@contextlib.contextmanager
def running(database: str | None = None) -> Iterator[Load]:
    """A CAS with its policy; its tables in its directory, or at a URL."""
    spawn = mp.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        process = spawn.Process(target=cas_kills.serve, args=(directory, 0, theirs, database), daemon=True)
        process.start()
        theirs.close()
        url, cas_root, _ = ours.recv()

        def busy() -> float:
            ours.send(None)
            return float(ours.recv())

        try:
            yield Load(Path(directory), CasAddress(url, cas_root), busy)
        finally:
            ours.close()
            process.join()


def _until(seconds: float, step: Callable[[], object]) -> int:
    """How many steps are done in so many seconds."""
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        step()
        count += 1
    return count


def _moving(client: OwnerClient, policy: str) -> Callable[[], None]:
    """A step that moves an anchor once."""
    anchor, at = client.anchor(policy, "out"), [client.anchor(policy, "out").read()]

    def step() -> None:
        new = Root(1 if at[0] is None else at[0].sequence + 1, os.urandom(32))
        anchor.advance(at[0], new)
        at[0] = new

    return step


def _clients(
    directory: str, address: CasAddress, owner: bytes, what: str, names: Sequence[str], pipe: Connection
) -> None:
    """Some clients, a thread each: ready, then at work for as long as they are told; what they did, and used."""
    vendor = SimulatedVendor.open(Path(directory) / "vendor", now=int(time.time()))
    key = SigningKey.from_pem(owner)
    steps: list[Callable[[], object]] = []
    for name in names:
        client = OwnerClient(address.url, cas_root=address.cas_root, owner=key)
        if what == "anchor":
            client.apply(policy_text(key, name, vendor.root_digest))
            steps.append(_moving(client, name))
        else:
            session = enclave(address, _POLICY, vendor)
            session.attest()
            steps.append(session.attest)
    pipe.send("ready")
    seconds, counts = pipe.recv(), [0] * len(steps)
    before = time.process_time()

    def work(index: int) -> None:
        counts[index] = _until(seconds, steps[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((sum(counts), time.process_time() - before))
