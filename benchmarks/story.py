"""The story that `strongroom demo` tells: serving overhead, attest-and-provision, and what the demo itself takes.

- Serving is compared with plain ONNX Runtime on the same model, input, thread settings and cores (`serving.py`): a
  model that takes it 10 ms on all cores of this machine, once with an image of 588 KiB and once with one of 12 KiB.
- Attest-and-provision is everything between an enclave's first packet to its CAS and its vault key in hand: TCP, TLS,
  nonce, quote, verification, appraisal, the logged release, HPKE. Simulated evidence, loopback, the CAS in a process
  of its own.
- The demo's memory is that of its whole process tree, proportional shares summed, with the shared memory that the
  enclaves' private file systems take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Bench, Goal
from benchmarks.serving import LARGE, SMALL, Load, rig, ten_milliseconds

LARGE_GOAL = "served / plain throughput, 10 ms model, 588 KiB input"
SMALL_GOAL = "served / plain throughput, 10 ms model, 12 KiB input"
ATTEST_GOAL = "attest and provision, p50"
DEMO_TIME_GOAL = "demo, wall time"
DEMO_MEMORY_GOAL = "demo, peak memory"

GOALS: Sequence[Goal] = (
    Goal(LARGE_GOAL, 0.9, "x", "at least"),
    Goal(SMALL_GOAL, 0.9, "x", "at least"),
    Goal(ATTEST_GOAL, 20, "ms", "at most"),
    Goal(DEMO_TIME_GOAL, 90, "s", "at most", full_only=True),
    Goal(DEMO_MEMORY_GOAL, 2048, "MiB", "at most", full_only=True),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    _attest(bench)
    for name, load in ((LARGE_GOAL, LARGE), (SMALL_GOAL, SMALL)):
        _serving(bench, name, load)
    if bench.wants(DEMO_TIME_GOAL):
        seconds, mebibytes = run_demo()
        bench.record(DEMO_TIME_GOAL, seconds)
        bench.record(DEMO_MEMORY_GOAL, mebibytes)


def _serving(bench: Bench, name: str, load: Load) -> None:
    if not bench.wants(name):
        return
    turn = 0.7 if bench.quick else 2.0
    with rig(ten_milliseconds(load)) as running:
        bench.compare(
            name,
            lambda: running.served(turn)[0],
            lambda: running.plain(turn)[0],
            peer_name="ONNX Runtime",
            unit="runs/s",
        )


def _attest(bench: Bench) -> None:
    if not bench.wants(ATTEST_GOAL):
        return
    from strongroom.attest.claims import registers_measurement
    from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
    from strongroom.cas.client.address import dial_cas, split_address
    from strongroom.cas.client.enclave import EnclaveSession
    from strongroom.cas.client.owner import OwnerClient
    from strongroom.cas.policy.version import VaultRule
    from strongroom.cli.workspace import write_policy
    from strongroom.crypto import SigningKey, random_key

    with tempfile.TemporaryDirectory() as directory, running_cas(Path(directory)) as (url, cas_root):
        vendor = SimulatedVendor.open(Path(directory) / "vendor", now=int(time.time()))
        registers = {name: bytes(48) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}
        owner = SigningKey.generate()
        with OwnerClient(url, cas_root=cas_root, owner=owner) as client:
            client.apply(
                write_policy(
                    name="benchmark/attest",
                    role="program",
                    owner=owner.public.fingerprint,
                    measurement=registers_measurement(registers),
                    vendor_root=vendor.root_digest,
                    program=None,
                    vaults=(VaultRule("data", "/data", "read-only"),),
                )
            )
            client.put_vault_key("benchmark/attest", "data", random_key())
        host, port = split_address(url)

        def provision() -> None:
            session = EnclaveSession(
                lambda: dial_cas(host, port),
                cas_root=cas_root,
                policy="benchmark/attest",
                role="program",
                attester=SimulatedAttester(vendor, registers),
            )
            provisions = session.attest()
            if len(provisions.vault_keys["data"]) != 32:
                raise RuntimeError("no key was released")
            session.close()

        bench.measure(ATTEST_GOAL, bench.timed(provision), rounds=200, warmup=5)


@contextmanager
def running_cas(directory: Path) -> Iterator[tuple[str, str]]:
    """A CAS in a process of its own; its address and root."""
    command = [sys.executable, "-m", "strongroom", "cas", "start", "--state", str(directory / "cas")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            cas_root = process.stdout.readline().split()[-1]
            yield url, cas_root
        finally:
            process.terminate()


def run_demo() -> tuple[float, float]:
    """Run the demo once; its wall time in seconds and its process tree's peak memory in MiB."""
    peak, ended = [0.0], threading.Event()
    shared_before = _shared_memory()
    began = time.perf_counter()
    command = [sys.executable, "-m", "strongroom", "demo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            while not ended.wait(0.1):
                peak[0] = max(peak[0], _tree_memory(process.pid) + _shared_memory() - shared_before)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        output, errors = process.communicate()
        seconds = time.perf_counter() - began
        ended.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"demo: exit status {process.returncode}: {errors[-1000:]}")
    json.loads(output)
    return seconds, peak[0]


def _shared_memory() -> float:
    """MiB of shared memory on this machine: what file systems in memory take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _tree_memory(root: int) -> float:
    """MiB that a process and its descendants take, each page they share counted once (PSS)."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    total = 0
    for pid in tree:
        try:
            rollup = Path("/proc", str(pid), "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024
