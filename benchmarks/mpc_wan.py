"""`python -m benchmarks.mpc_wan`: networks on shares, each party far from the others, beside SPU and CrypTen.

- Three network namespaces, one for each party or helper. A router in user space joins them: each pair has its own two
  queues, one for each direction, of 20 ms and 100 Mbit/s; packets of at most 1,500 bytes.
- All of it is in namespaces that end with the process: nothing of the system's is changed. It takes root, or a kernel
  that lets users have namespaces.
- Ours runs over TLS, with a running dealer; the peers as they come, without encryption.
- Bytes are those that the router carried in one run, headers and all, of every pair together.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import fcntl
import json
import os
import select
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.mpc_modules import error_of, in_float
from benchmarks.mpc_peers.workloads import ROWS, Row
from benchmarks.mpc_systems import OURS_TLS, PEERS, FailedError, Group, System, TooSlowError, elapsed

ONE_WAY = 0.020  # seconds
RATE = 100e6 / 8  # bytes per second
MTU = 1500
NAMES = ("far0", "far1", "far2")
HOSTS = ("10.8.0.1", "10.8.0.2", "10.8.0.3")
DEVICE = "wan0"

# Ours takes at most this part of the time of the faster SPU.
GOALS = {"B batch 1": 1 / 2, "ResNet-20": 1 / 3}
SYSTEMS = (OURS_TLS, PEERS["semi2k"], PEERS["aby3"], PEERS["crypten"], PEERS["crypten-ttp"])
RUNS = 3

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_VERSION_4 = 4


class Router:
    """Joins the namespaces, from a thread of its own.

    Attributes:
        carried: bytes so far.
    """

    def __init__(self) -> None:
        self.carried = 0
        self._devices = [_open_device(name, host) for name, host in zip(NAMES, HOSTS, strict=True)]
        threading.Thread(target=self._run, name="router", daemon=True).start()

    def _run(self) -> None:
        numbers = {host: i for i, host in enumerate(HOSTS)}
        wires = {(i, j): _Wire() for i in range(3) for j in range(3) if i != j}
        while True:
            now, wait = time.monotonic(), 1.0
            for (_, end), wire in wires.items():
                while wire.packets and wire.packets[0][0] <= now:
                    os.write(self._devices[end], wire.take())
                if wire.packets:
                    wait = min(wait, wire.packets[0][0] - now)
            ready, _, _ = select.select(self._devices, [], [], max(wait, 0))
            now = time.monotonic()
            for device in ready:
                for packet in _packets(device):
                    to = numbers.get(".".join(map(str, packet[16:20]))) if packet[0] >> 4 == _VERSION_4 else None
                    if to is not None and wires[self._devices.index(device), to].put(packet, now):
                        self.carried += len(packet)


@dataclass
class _Wire:
    """One direction of one pair."""

    packets: collections.deque[tuple[float, bytes]] = field(default_factory=collections.deque)
    free: float = 0.0  # when the last bit of what is queued is sent
    queued: int = 0

    def put(self, packet: bytes, now: float) -> bool:
        """Queue a packet; whether there was room."""
        if self.queued > 1 << 20:
            return False
        self.free = max(self.free, now) + len(packet) / RATE
        self.queued += len(packet)
        self.packets.append((self.free + ONE_WAY, packet))
        return True

    def take(self) -> bytes:
        _, packet = self.packets.popleft()
        self.queued -= len(packet)
        return packet


def _packets(device: int) -> list[bytes]:
    found = []
    for _ in range(64):
        try:
            found.append(os.read(device, 1 << 16))
        except BlockingIOError:
            break
    return found


def _open_device(name: str, host: str) -> int:
    """The router's end of a namespace's only interface."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        _ip("link", "set", "lo", "up")
        _ip("addr", "add", f"{host}/24", "dev", DEVICE)
        _ip("link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "10000", "up")
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(home)
        os.close(there)
    return device


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass
class Far:
    """One system on one row."""

    seconds: list[float] = field(default_factory=list)
    carried: int = 0
    rounds: int | None = None
    error: float | None = None
    trouble: str | None = None


def measure(router: Router, row: Row, system: System, python: Path, limit: float) -> Far:
    """The first run is not counted, unless it takes half the limit."""
    far = Far()
    wanted = in_float(row)

    def place(rank: int, command: Sequence[str]) -> Sequence[str]:
        return ["ip", "netns", "exec", NAMES[rank], *command]

    group = None
    try:
        group = Group(system, row, python, seconds=limit, place=place, hosts=HOSTS)
        for turn in range(RUNS + 1):
            before = router.carried
            turns = group.run()
            far.carried = router.carried - before
            far.rounds = turns[0].rounds
            if turn or elapsed(turns) > limit / 2:
                far.seconds.append(elapsed(turns))
            if sum(far.seconds) > limit / 2:
                break
        result, _ = group.finish()
        far.error = error_of(row, wanted, result)
    except (TooSlowError, FailedError) as error:
        far.trouble = str(error)
    finally:
        if group is not None:
            group.close()
    return far


def holds(row: Row, results: dict[System, Far]) -> bool:
    ours = results[OURS_TLS]
    spu = [statistics.median(r.seconds) for s, r in results.items() if s.environment == "spu" and r.seconds]
    if not ours.seconds or not spu or ours.error is None or ours.error > row.error:
        return False
    return statistics.median(ours.seconds) <= GOALS[row.name] * min(spu)


def table(everything: dict[str, dict[System, Far]]) -> Table:
    grid = Table("", "", "s", "/ ours", "MB", "rounds", "error", "")
    for name, results in everything.items():
        ours = results[OURS_TLS]
        for system, far in results.items():
            verdict = "" if system is not OURS_TLS else "holds" if holds(ROWS[name], results) else "fails"
            if not far.seconds:
                grid.add_row(name, system.name, "", "", "", "", "", far.trouble)
                continue
            median = statistics.median(far.seconds)
            grid.add_row(
                name if system is OURS_TLS else "",
                system.name,
                f"{median:.2f}",
                f"{median / statistics.median(ours.seconds):.2f} x" if ours.seconds and system is not OURS_TLS else "",
                f"{far.carried / 1e6:.2f}",
                "" if far.rounds is None else str(far.rounds),
                "" if far.error is None else f"{far.error:.1e}",
                far.trouble or verdict,
            )
        grid.add_section()
    return grid


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; the result is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mpc_wan", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(GOALS), metavar="ROW", help=f"of {', '.join(GOALS)}")
    parser.add_argument("--peers", action="append", choices=list(PEERS), help="measure beside that; repeatable (all)")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="for one run (120)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, and the machine")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    chosen = [s for s in SYSTEMS if s is OURS_TLS or not args.peers or s in [PEERS[name] for name in args.peers]]
    # Inside there is no network to install anything from.
    pythons = {system: system.python(make=not args.inside) for system in chosen}
    if not args.inside:
        if shutil.which("unshare") is None or shutil.which("ip") is None:
            parser.error("wanted the programs unshare and ip")
        words = sys.argv[1:] if argv is None else list(argv)
        command = [sys.executable, "-m", "benchmarks.mpc_wan", *words, "--inside"]
        return subprocess.run(["unshare", "-Urnm", *command]).returncode
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for name in NAMES:
        _ip("netns", "add", name)
    router = Router()
    everything: dict[str, dict[System, Far]] = {}
    for name in GOALS:
        if not args.only or name in args.only:
            row = ROWS[name]
            everything[name] = {s: measure(router, row, s, pythons[s], args.limit) for s in chosen}
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    console.print(table(everything))
    facts = report.machine()
    link = f"{2000 * ONE_WAY:g} ms round trip, {RATE * 8e-6:g} Mbit/s for each pair"
    console.print(f"{link}; on {facts['processor']}, {facts['cores']} cores, {facts['system']}", style="dim")
    if args.json:
        rows = {name: {s.name: vars(far) for s, far in results.items()} for name, results in everything.items()}
        args.json.write_text(json.dumps({"machine": facts, "link": link, "rows": rows}, indent=2) + "\n")
    return 0 if all(holds(ROWS[name], results) for name, results in everything.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
