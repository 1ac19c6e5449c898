"""What the units of a model take on this machine: measured by few probes, and remembered.

1. Each unit is loaded and run as a stage of its own; of more than `MOST_PROBES` units, runs of them, whose time their
   operations share.
2. The whole and some large runs (`_GROUPS`) are tried too. Alone, a unit finds its weights in the processor's caches,
   and has its tensors laid out anew on the way in and out: what the large runs take says what units take in a row.
3. Memory is what a process holds more than before once the stage has run (`probe`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from strongroom.attest.binding import JSON, canonical
from strongroom.crypto import digest
from strongroom.errors import FormatError, UsageError
from strongroom.serve.graph import Chain
from strongroom.serve.plan.cache import Cache
from strongroom.serve.plan.costs import MAX_NANOSECONDS, Costs
from strongroom.serve.plan.prober import BUDGET_NS, Prober, Taken, Values
from strongroom.serve.runtime import onnxruntime

MOST_PROBES: Final = 128
_GROUPS: Final = 6
_WHOLE_BUDGET_NS: Final = 400_000_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """What a profile holds for: another processor, another number of threads or another runtime takes other times."""

    processor: str
    cores: int
    threads: int
    runtime: str

    @classmethod
    def here(cls, threads: int) -> Machine:
        """This one."""
        return cls(_processor(), len(os.sched_getaffinity(0)), threads, str(onnxruntime().__version__))

    def to_wire(self) -> dict[str, Any]:
        return {
            "processor": self.processor,
            "cores": self.cores,
            "threads": self.threads,
            "runtime": self.runtime,
        }


@dataclass(frozen=True)
class Profile:
    """What the units of a chain take.

    Attributes:
        costs: for the planner.
        whole: what the model takes as one stage.
        loading_ns: of the whole.
        batch: inputs that are run at once.
    """

    costs: Costs
    whole: Taken
    batch: int
    machine: Machine = field(compare=False)

    def corrected(self, runs: Sequence[tuple[int, int]], took: Sequence[Taken]) -> Profile:
        """The profile once these runs have been tried: where one took more memory, its hungriest unit answers for it
        in other runs."""
        costs, memory = self.costs, self.costs.memory()
        working = list(costs.working)
        for (first, last), each in zip(runs, took, strict=True):
            more = each.resident + costs.frontiers[first] + costs.frontiers[last] - int(memory[first, last])
            if more > 0:
                working[max(range(first, last), key=costs.working.__getitem__)] += more
        known = {(first, last): sizes for first, last, *sizes in costs.measured}
        known |= {run: [each.resident, each.touched] for run, each in zip(runs, took, strict=True)}
        measured = tuple((first, last, held, touched) for (first, last), (held, touched) in sorted(known.items()))
        return dataclasses.replace(self, costs=dataclasses.replace(costs, working=working, measured=measured))

    def to_wire(self) -> dict[str, Any]:
        """For `cache.Cache`: whole numbers only."""
        costs = self.costs
        return {
            "weights": list(costs.weights),
            "working": list(costs.working),
            "nanoseconds": list(costs.nanoseconds),
            "frontiers": list(costs.frontiers),
            "fixed": costs.fixed,
            "call": costs.call,
            "reads": list(costs.reads),
            "active": list(costs.active),
            "measured": [list(each) for each in costs.measured],
            "whole": list(dataclasses.astuple(self.whole)),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], chain: Chain, batch: int, machine: Machine) -> Profile:
        """Raises FormatError: it is not what `to_wire` wrote of this chain."""
        try:
            lists = ("weights", "working", "nanoseconds", "frontiers", "reads", "active")
            weights, working, nanoseconds, frontiers, reads, active = (_numbers(wire[name]) for name in lists)
            fixed, call = _numbers([wire["fixed"], wire["call"]])
            names = tuple(_name(chain, unit) for unit in range(len(chain)))
            measured = tuple((first, last, held, used) for first, last, held, used in map(_numbers, wire["measured"]))
            ties = tuple(_ties(chain))
            costs = Costs(weights, working, nanoseconds, frontiers, ties, fixed, call, reads, active, measured, names)
            if len(costs) != len(chain):
                raise FormatError(f"profile: of {len(costs)} units, wanted {len(chain)}")
            return cls(costs, Taken(*_numbers(wire["whole"])), batch, machine)
        except (KeyError, TypeError, UsageError, ValueError) as error:
            raise FormatError(f"profile: {error}") from None


def profile(
    chain: Chain,
    *,
    dims: Mapping[str, int] | None = None,
    batch: int = 1,
    threads: int,
    values: Values | None = None,
    say: Say = lambda text: None,
) -> Profile:
    """Measure a chain on this machine.

    Args:
        dims: sizes of the model's inputs that it only names.
        batch: size of the first dimension of every input that does not fix it.
        threads: of one run.
        values: of inputs that are not made up.
        say: is told what goes on.

    Raises:
        UnsupportedPlatformError: not Linux, where alone a process's memory can be told so.
        UsageError: the model fixes another batch.
        ServeError: a stage cannot be run.
    """
    sizes = batch_sizes(chain, batch, dims or {})
    with Prober.start(threads) as prober:

        def run(runs: Sequence[tuple[int, int]], budget_ns: int, what: str) -> list[Taken]:
            prober.begin(chain, sizes, values)
            found = []
            for number, (first, last) in enumerate(runs):
                say(f"profiling: {number + 1} of {len(runs)} {what}")
                found.append(prober.take(chain, first, last, budget_ns))
            return found

        pieces = list(_pieces(chain))
        [before] = run([(0, len(chain))], _WHOLE_BUDGET_NS, "models")
        alone = run(pieces, BUDGET_NS, "units")
        frontiers = prober.frontiers(chain)
        groups = list(_grouped([each.nanoseconds for each in alone], pieces))
        # Twice, at different times: processors are not always equally fast.
        large = [
            one.fastest(other)
            for one, other in zip(*(run(groups, _WHOLE_BUDGET_NS, "large runs") for _ in range(2)), strict=True)
        ]
        [after] = run([(0, len(chain))], _WHOLE_BUDGET_NS, "models")
        whole = before.fastest(after)
        idle = prober.nothing()
    costs = _costs(chain, pieces, alone, groups, large, whole, idle, frontiers)
    return Profile(costs, whole, batch, Machine.here(threads))


def batch_sizes(chain: Chain, batch: int, dims: Mapping[str, int]) -> dict[str, int]:
    """Sizes by name for a batch: the first dimension of each input, where it has a name that is not given.

    Raises:
        UsageError: an input fixes another batch, or a name is none of the model's.
    """
    sizes = dict(dims)
    named = {size for tensor in chain.frontier(0) for size in tensor.shape if isinstance(size, str)}
    for name, value in dims.items():
        if name not in named:
            raise UsageError(f"dimension {name!r:.60}: unknown, wanted one of {', '.join(sorted(named)) or 'none'}")
        if value < 1:
            raise UsageError(f"dimension {name!r:.60}: got {value}, wanted at least 1")
    for tensor in chain.frontier(0):
        first = tensor.shape[0] if tensor.shape else None
        if isinstance(first, str):
            sizes.setdefault(first, batch)
        elif batch > 1:
            raise UsageError(
                f"batch: got {batch}, and input {tensor.name!r:.60} fixes its first dimension",
                hint="export the model with a dynamic first dimension",
            )
    return sizes


def remembered(
    chain: Chain,
    cache: Cache,
    *,
    dims: Mapping[str, int] | None = None,
    batch: int = 1,
    threads: int,
    values: Values | None = None,
    say: Say = lambda text: None,
) -> Profile:
    """As `profile`, once for each model, cut, batch, machine, number of threads and version of ONNX Runtime."""
    machine = Machine.here(threads)
    of = {
        "kind": "units",
        "form": 4,
        "chain": chain_digest(chain),
        "batch": batch,
        "dims": dict(dims or {}),
        "machine": machine.to_wire(),
    }
    if values:
        of["values"] = {name: list(each) for name, each in values.items()}
    try:
        wire = cache.get(of)
        if wire is not None:
            return Profile.from_wire(wire, chain, batch, machine)
    except FormatError as error:
        say(f"{error.message}; measuring anew")
    measured = profile(chain, dims=dims, batch=batch, threads=threads, values=values, say=say)
    cache.put(of, measured.to_wire())
    return measured


def _numbers(values: object) -> list[int]:
    if not isinstance(values, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in values):
        raise FormatError("profile: wanted whole numbers")
    return values


def _pieces(chain: Chain) -> Iterator[tuple[int, int]]:
    """Units, or runs of them of about as many operations each."""
    n = len(chain)
    if n <= MOST_PROBES:
        yield from itertools.pairwise(range(n + 1))
        return
    yield from _shares([1 + unit.flops for unit in chain], MOST_PROBES)


def _shares(work: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """Runs of about the same work, at most `count`."""
    done = np.cumsum(np.asarray(work, np.float64))
    ends = np.searchsorted(done, done[-1] * np.arange(1, count) / count) + 1
    yield from itertools.pairwise(sorted({0, *map(int, np.minimum(ends, len(work))), len(work)}))


def _grouped(times: Sequence[int], pieces: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Runs of pieces that take about the same time."""
    for first, last in _shares(times, min(_GROUPS, max(1, len(pieces) // 2))):
        yield pieces[first][0], pieces[last - 1][1]


def _costs(
    chain: Chain,
    pieces: Sequence[tuple[int, int]],
    alone: Sequence[Taken],
    groups: Sequence[tuple[int, int]],
    large: Sequence[Taken],
    whole: Taken,
    idle: Taken,
    frontiers: Sequence[int],
) -> Costs:
    """Units' costs, such that large runs of them take what they took."""
    # A stage's own time and memory: what the large runs take together more than the whole, for each further stage.
    more = max(1, len(groups) - 1)
    call = max(idle.nanoseconds, (sum(each.nanoseconds for each in large) - whole.nanoseconds) // more)
    call = min(call, min(each.nanoseconds for each in large))
    n = len(chain)
    times, weights, working, reads, active = ([0] * n for _ in range(5))
    for (first, last), took in zip(pieces, alone, strict=True):
        ops = [1 + chain[unit].flops for unit in range(first, last)]
        spent, held = max(1, took.nanoseconds - idle.nanoseconds), chain.weight_bytes(first, last)
        rest = max(0, took.resident - idle.resident - held)
        used = max(0, took.touched - idle.touched)
        read = min(used, held)
        for unit, share in zip(range(first, last), ops, strict=True):
            times[unit] = spent * share // sum(ops)
            weights[unit] = chain[unit].weight_bytes
            working[unit] = rest
            reads[unit] = weights[unit] * read // max(1, held)
            active[unit] = used - read
    for (first, last), took in zip(groups, large, strict=True):
        factor = (took.nanoseconds - call) / max(1, sum(times[first:last]))
        for unit in range(first, last):
            times[unit] = min(MAX_NANOSECONDS, int(times[unit] * factor))
    for (first, last), took in zip([*groups, (0, n)], [*large, whole], strict=True):
        # Where a run takes more than its largest unit alone, that unit answers for others with it.
        largest = max(range(first, last), key=working.__getitem__)
        working[largest] = max(working[largest], took.resident - idle.resident - chain.weight_bytes(first, last))
        largest = max(range(first, last), key=active.__getitem__)
        active[largest] = max(active[largest], took.touched - idle.touched - sum(reads[first:last]))
    tried = dict(zip([*groups, (0, n)], [*large, whole], strict=True))
    return Costs(
        weights,
        working,
        times,
        frontiers,
        tuple(_ties(chain)),
        max(0, idle.resident),
        call,
        reads,
        active,
        tuple(sorted({(first, last, each.resident, each.touched) for (first, last), each in tried.items()})),
        tuple(_name(chain, unit) for unit in range(n)),
    )


def _ties(chain: Chain) -> Iterator[tuple[int, int, int]]:
    last: dict[str, int] = {}
    for unit in chain:
        for name, size in unit.weights.items():
            if name in last:
                yield last[name], unit.index, size
            last[name] = unit.index


def _name(chain: Chain, unit: int) -> str:
    kinds = list(dict.fromkeys(chain[unit].operators))
    return ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def chain_digest(chain: Chain) -> str:
    """SHA-256 of a model's digest and of how it was cut, in hexadecimal digits."""
    units: list[JSON] = [
        {"operators": list(unit.operators), "outputs": list(unit.outputs), "weights": unit.weight_bytes}
        for unit in chain
    ]
    return digest(canonical({"model": chain.model.digest, "units": units}, cap=1 << 26)).hex()
