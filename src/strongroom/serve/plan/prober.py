"""The other end of `probe`: a process in which stages are tried, one after another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from strongroom.errors import ServeError, UnsupportedPlatformError
from strongroom.serve.graph import Chain, Tensor, stage_model
from strongroom.serve.runtime import onnx
from strongroom.serve.tensors import DATATYPES

Values = Mapping[str, Sequence[int]]
"""Of inputs by name, in C order: of those of whole numbers that noise cannot stand for, such as shapes."""
BUDGET_NS: Final = 60_000_000  # of runs of one unit
MOST_SECONDS: Final = 600.0  # to load a run of units and run it a few times


@dataclass(frozen=True)
class Taken:
    """What a run of units took as a stage.

    Attributes:
        resident: bytes that it holds.
        touched: those of them that a run reads or writes; of what a stage takes that does next to nothing, all.
        peak: the most that it held while it was loaded.
        loading_ns, nanoseconds: to load it, and of a run.
    """

    resident: int
    touched: int
    peak: int
    loading_ns: int
    nanoseconds: int

    def fastest(self, other: Taken) -> Taken:
        """The same, of two tries: the faster one's times, and the more memory."""
        return Taken(
            max(self.resident, other.resident),
            max(self.touched, other.touched),
            max(self.peak, other.peak),
            min(self.loading_ns, other.loading_ns),
            min(self.nanoseconds, other.nanoseconds),
        )


class Prober:
    """A process in which stages are tried (`strongroom.serve.plan.probe`)."""

    def __init__(self, process: subprocess.Popen[bytes], threads: int) -> None:
        """For `start`."""
        self._process, self._threads = process, threads
        self._sizes: Mapping[str, int] = {}
        self._make: list[dict[str, Any]] = []
        self._bytes: dict[str, int] = {}
        self._nothing = Taken(0, 0, 0, 0, 0)

    @classmethod
    @contextlib.contextmanager
    def start(cls, threads: int) -> Iterator[Prober]:
        """Raises UnsupportedPlatformError: not Linux."""
        if sys.platform != "linux":
            raise UnsupportedPlatformError(
                f"profile: got {sys.platform}, wanted Linux, where a process's memory can be told",
                hint="profile on the machine that will serve",
            )
        command = [sys.executable, "-m", "strongroom.serve.plan.probe"]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        with subprocess.Popen(  # noqa: S603  # this interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        ) as process:
            try:
                prober = cls(process, threads)
                prober._nothing = prober._take_nothing()
                yield prober
            finally:
                process.kill()

    def begin(self, chain: Chain, sizes: Mapping[str, int], values: Values | None = None) -> None:
        """Make inputs of these sizes, and begin with the first unit again.

        Args:
            values: of inputs that are not made up.
        """
        self._make = [_described(tensor, sizes, values or {}) for tensor in chain.frontier(0)]
        self._sizes = chain.sizes(sizes)
        self._bytes.update((each["name"], _bytes(each)) for each in self._make)

    def take(self, chain: Chain, first: int, last: int, budget_ns: int) -> Taken:
        """Load and run units `first` to `last - 1`; those before must have been run.

        Raises:
            ServeError: they cannot be.
        """
        ask = {
            "inputs": [tensor.name for tensor in chain.inputs(first, last)],
            "keep": [tensor.name for tensor in chain.frontier(last)],
            "budget_ns": budget_ns,
            "most_s": MOST_SECONDS,
        }
        said = self._ask(ask, stage_model(chain, first, last).SerializeToString(), f"units {first} to {last - 1}")
        self._bytes.update(said["bytes"])
        took, idle = _taken(said), self._nothing
        # What it touches is told with all that the process held before, which a stage that does nothing touches too.
        touched = min(took.resident, max(0, took.touched - idle.touched) + idle.resident)
        return dataclasses.replace(took, touched=touched)

    def nothing(self) -> Taken:
        """What a stage took that does next to nothing."""
        return dataclasses.replace(self._nothing, touched=self._nothing.resident)

    def _take_nothing(self) -> Taken:
        helper = onnx().helper
        ends = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "nothing", ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        self._make = [{"name": "x", "datatype": "FP32", "shape": [1]}]
        return _taken(self._ask({"inputs": ["x"], "keep": [], "budget_ns": BUDGET_NS}, model.SerializeToString(), "it"))

    def frontiers(self, chain: Chain) -> list[int]:
        """Bytes seen at each cut; what was not seen, by its shape."""
        return [
            sum(self._bytes.get(tensor.name) or tensor.bytes_of(self._sizes) for tensor in chain.frontier(cut))
            for cut in range(len(chain) + 1)
        ]

    def _ask(self, ask: dict[str, Any], model: bytes, what: str) -> dict[str, Any]:
        line = {**ask, "model": len(model), "make": self._make, "seed": 0, "threads": self._threads}
        self._make = []
        assert self._process.stdin and self._process.stdout  # noqa: S101  # both are pipes
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.write(model)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = b""
        if not answer:
            raise ServeError(f"profile: the process that tries stages ended at {what}", hint="is there memory enough?")
        said: dict[str, Any] = json.loads(answer)
        if "late" in said:
            raise ServeError(
                f"profile: {what} did not run a few times within {MOST_SECONDS:g} s",
                hint="a Loop in them may have no end; smaller sizes (--dim, --batch) take less time",
            )
        if "error" in said:
            raise ServeError(
                f"profile: {what} cannot be run: {said['error']}",
                hint="do the sizes of its inputs fit each other (--dim), and would real ones do (--example)?",
            )
        return said


def _taken(said: dict[str, Any]) -> Taken:
    return Taken(*(int(said[name]) for name in ("resident", "touched", "peak", "loading_ns", "nanoseconds")))


def _described(tensor: Tensor, sizes: Mapping[str, int], values: Values) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in tensor.shape]
    described = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}
    return described if tensor.name not in values else {**described, "values": list(values[tensor.name])}


def _bytes(described: Mapping[str, Any]) -> int:
    return int(np.prod(described["shape"], dtype=np.int64)) * DATATYPES[described["datatype"]].itemsize
