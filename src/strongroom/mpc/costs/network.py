"""How long a program takes on a network, from what each party computes, sends and receives."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.errors import MpcError, UsageError

_HEADER = 32  # bytes of a frame besides its payload


@dataclass(frozen=True)
class Network:
    """What lies between the parties.

    Attributes:
        name: of its column.
        rtt: seconds from one party to another and back, without a payload.
        rate: bits a second, for each pair of parties and direction.
        one_machine: whether the three share this machine's processors.
    """

    name: str
    rtt: float
    rate: float
    one_machine: bool = False

    def __post_init__(self) -> None:
        if self.rtt < 0 or self.rate <= 0:
            raise UsageError(
                f"network: got a round trip of {self.rtt:g} s and {self.rate:g} bit/s, wanted numbers above zero"
            )


LOOPBACK = Network("loopback", 50e-6, 12e9, one_machine=True)
LAN = Network("LAN", 0.2e-3, 10e9)
WAN = Network("WAN", 40e-3, 100e6)
NETWORKS = (LOOPBACK, LAN, WAN)


@dataclass(frozen=True)
class Step:
    """A party computes for a while, and then sends a frame to a peer or waits for one.

    Attributes:
        operation: which of the program's.
        compute: seconds.
        size: bytes of payload.
    """

    operation: int
    compute: float
    peer: int
    sends: bool
    size: int


def simulate(
    parties: Sequence[Sequence[Step]], rest: Sequence[float], operations: int, network: Network
) -> list[float]:
    """When each operation is over at both servers, in seconds; the last entry is the end of all.

    A frame leaves when its sender has computed up to it and the frames before it have left, takes its bits divided by
    the rate, and arrives half a round trip later; whoever waits for it goes on then. The dealer waits for nobody, so
    that its bytes travel while the servers talk. Not in it: that the dealer stops when it is too far ahead, and that
    parties on one machine disturb each other, but for this: three that share processors take at least the sum of what
    they compute, divided by the number of processors.
    """
    clock = [0.0] * len(parties)
    at = [0] * len(parties)
    free: dict[tuple[int, int], float] = {}  # when a direction has carried what was sent before
    coming: dict[tuple[int, int], deque[float]] = {}
    ends = [[0.0] * operations for _ in parties]
    moved = True
    while moved:
        moved = False
        for rank, steps in enumerate(parties):
            while at[rank] < len(steps):
                step = steps[at[rank]]
                if step.sends:
                    clock[rank] += step.compute
                    way = rank, step.peer
                    free[way] = max(clock[rank], free.get(way, 0.0)) + 8 * (step.size + _HEADER) / network.rate
                    coming.setdefault(way, deque()).append(free[way] + network.rtt / 2)
                elif waiting := coming.get((step.peer, rank)):
                    clock[rank] = max(clock[rank] + step.compute, waiting.popleft())
                else:
                    break
                if step.operation >= 0:
                    ends[rank][step.operation] = clock[rank]
                at[rank] += 1
                moved = True
    if any(done < len(steps) for done, steps in zip(at, parties, strict=True)):
        raise MpcError("program: a party waits for what nobody sends", hint="is it the same program for all three?")
    over, latest = [], 0.0
    for each in zip(*ends[:2], strict=True):
        latest = max(latest, *each)
        over.append(latest)
    over.append(max(latest, *(c + r for c, r in zip(clock[:2], rest, strict=False))))
    if network.one_machine:
        computed = sum(step.compute for steps in parties for step in steps) + sum(rest)
        least = computed / min(len(parties), _processors())
        if over[-1] < least:
            over = [when * least / over[-1] for when in over]
    return over


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
