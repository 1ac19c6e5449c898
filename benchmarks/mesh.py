"""One tunnel of the mesh: a stream, eight of them, and round trips, beside stunnel, wireguard-go and no protection.

- The same two programs talk by each way (`mesh_ways`), on the same cores, in turns within one run. All ways stand for
  the whole of it; those whose turn it is not wait.
- A round trip is 64 bytes there and back over a connection that stands; a figure is the median of many. A stream counts
  from its connection until the other program has counted the last byte.
- Ours and the peers encrypt and authenticate, and both ends prove who they are. stunnel and the mesh use AES-256-GCM.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import mesh_ways
from benchmarks.harness import Bench, Goal, Result
from benchmarks.peers import UnavailableError

STREAM, STREAMS, ROUND = "one stream", "eight streams", "round trip"
STUNNEL, WIREGUARD, VETH = "stunnel", "wireguard-go", "veth"

GOALS: Sequence[Goal] = (
    Goal(f"{STREAM} / {STUNNEL}", 1.2, "x", "at least"),
    Goal(f"{STREAMS} / {STUNNEL}", 1.0, "x", "at least"),
    Goal(f"{ROUND} / {STUNNEL}", 1.1, "x", "at most"),
    Goal(f"{STREAM} / {WIREGUARD}", 2.0, "x", "at least"),
    Goal(f"{STREAMS} / {WIREGUARD}", 2.0, "x", "at least"),
    Goal(f"{ROUND} / {WIREGUARD}", 1.1, "x", "at most"),
    Goal(f"{STREAM} / {VETH}", 0.15, "x", "at least"),
    Goal(f"{STREAMS} / {VETH}", 0.15, "x", "at least"),
    Goal(f"{ROUND} / {VETH}", 6.0, "x", "at most"),
)

_WAYS = {STUNNEL: mesh_ways.stunnel, WIREGUARD: mesh_ways.wireguard, VETH: mesh_ways.veth}
_TRIPS = 4000


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    mesh_ways.check()
    mebibytes = 256 if bench.quick else 1024
    work = {
        ROUND: (("round", _TRIPS), "us"),
        STREAM: (("stream", mebibytes, 1), "MiB/s"),
        STREAMS: (("stream", mebibytes, 8), "MiB/s"),
    }
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(mesh_ways.mesh())
        missing = []
        for peer, way in _WAYS.items():
            goals = {what: f"{what} / {peer}" for what in work}
            if not bench.wants(*goals.values()):
                continue
            try:
                theirs = stack.enter_context(way())
            except UnavailableError as error:
                missing.append(error)
                bench.say(f"left out: {error}")
                continue
            for what, (words, unit) in work.items():
                bench.compare(
                    goals[what], _figure(ours, words), _figure(theirs, words), peer_name=peer, unit=unit, rounds=7
                )
    if bench.plots:
        plot(bench.results(), bench.plots / "mesh.png")
    if missing:
        raise UnavailableError("; ".join(map(str, missing)))


def _figure(client: mesh_ways.Client, words: Sequence[object]) -> Callable[[], float]:
    return functools.partial(client.ask, *words)


def plot(results: Sequence[Result], path: Path) -> None:
    """Bars of each way's medians: MiB/s of streams, and microseconds of a round trip."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
    for place, (what, unit) in enumerate({STREAM: "MiB/s", STREAMS: "MiB/s", ROUND: "microseconds"}.items()):
        bars: dict[str, float] = {}
        for result in results:
            if result.goal.name.startswith(f"{what} /") and result.ours and result.peer and result.peer_name:
                bars.setdefault("mesh", result.ours.median)
                bars[result.peer_name] = result.peer.median
        axes[place].bar(list(bars), list(bars.values()), color=["C2" if name == "mesh" else "C0" for name in bars])
        axes[place].set_title(what)
        axes[place].set_ylabel(unit)
        axes[place].tick_params(axis="x", rotation=20)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
