"""The process in which stages are tried: ``python -m strongroom.serve.plan.probe``.

It imports ONNX Runtime and loads no model itself. Each stage is loaded and run in a fork of it, which ends with that:
what the fork holds more than before is what the stage takes. Tensors between stages stay here, so that each stage gets
what the one before it made. A fork that is not done in time is killed: a Loop may have no end.

On standard input: a line of JSON, then as many bytes of a model as it says. On standard output: a line of JSON for
each. It speaks with the process that started it and with nobody else.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import sys
import time
from typing import Any, Final, NoReturn

import numpy as np

from strongroom.errors import StrongroomError, printable
from strongroom.serve.memory import forget_most, forget_touched, give_back, held, most, touched
from strongroom.serve.runtime import onnxruntime
from strongroom.serve.stage import Stage
from strongroom.serve.tensors import DATATYPES, Array

_MOST_RUNS: Final = 20
_FEWEST_RUNS: Final = 2
_MAX_TENSORS: Final = 1 << 32  # bytes that a stage may give
_MAX_LINE: Final = 1 << 20
_PIECE: Final = 64 << 20


class Server:
    """Tries one stage after another."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}
        onnxruntime()

    def answer(self, ask: dict[str, Any], model: bytes) -> dict[str, Any]:
        """Try one stage: what it took, or ``{"error": ...}``, or ``{"late": True}``."""
        self._held.update(_inputs(ask["make"], ask["seed"]))
        inputs = {name: self._held[name] for name in ask["inputs"]}
        place = os.memfd_create("tensors", os.MFD_CLOEXEC)
        try:
            said = self._in_a_fork(ask, model, inputs, place)
            if "tensors" in said:
                self._keep(said.pop("tensors"), place)
                for name in set(self._held) - set(ask["keep"]):
                    del self._held[name]
                said["bytes"] = {name: self._held[name].nbytes for name in ask["keep"] if name in self._held}
        finally:
            os.close(place)
        return said

    def _in_a_fork(self, ask: dict[str, Any], model: bytes, inputs: dict[str, Array], place: int) -> dict[str, Any]:
        heard, told = os.pipe()
        process = os.fork()
        if not process:
            os.close(heard)
            _try(ask, model, inputs, place, told)
        os.close(told)
        with os.fdopen(heard, "rb") as pipe:
            late = not select.select([pipe], [], [], ask.get("most_s"))[0]
            if late:
                os.kill(process, signal.SIGKILL)
            text = pipe.read(_MAX_LINE)
        _, status = os.waitpid(process, 0)
        if late:
            return {"late": True}
        if not text:
            return {"error": f"the process that ran it ended with status {status}; was there memory enough?"}
        said: dict[str, Any] = json.loads(text)
        return said

    def _keep(self, tensors: list[dict[str, Any]], place: int) -> None:
        size = os.fstat(place).st_size
        memory = mmap.mmap(place, size, access=mmap.ACCESS_READ) if size else b""
        for each in tensors:
            kind, count = DATATYPES[each["datatype"]], int(np.prod(each["shape"], dtype=np.int64))
            flat = np.frombuffer(memory, kind, count, each["offset"]) if count else np.zeros(0, kind)
            self._held[each["name"]] = flat.reshape(each["shape"])


def _inputs(wanted: list[dict[str, Any]], seed: int) -> dict[str, Array]:
    """Inputs of a model: those that nobody gave are floats around 0, and zeros where they may be places in a table."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for each in wanted:
        kind = DATATYPES[each["datatype"]]
        if "values" in each:
            made[each["name"]] = np.array(each["values"], kind).reshape(each["shape"])
        elif kind.kind == "f":
            made[each["name"]] = rng.standard_normal(each["shape"], np.float32).astype(kind)
        else:
            made[each["name"]] = np.zeros(each["shape"], kind)
    return made


def _try(ask: dict[str, Any], model: bytes, inputs: dict[str, Array], place: int, told: int) -> NoReturn:
    """In the fork: load, run, and say what it took."""
    said: dict[str, Any]
    try:
        said = _measure(ask, model, inputs, place)
    except StrongroomError as error:
        said = {"error": error.message}
    except Exception as error:  # the asker's to judge
        said = {"error": f"{type(error).__name__}: {printable(error)}"}
    try:
        os.write(told, json.dumps(said).encode()[:_MAX_LINE])
    finally:
        os._exit(0)


def _measure(ask: dict[str, Any], model: bytes, inputs: dict[str, Array], place: int) -> dict[str, Any]:
    give_back()
    forget_most()
    before, before_most = held(), most()
    began = time.perf_counter_ns()
    stage = Stage.load(model, name="probe", threads=ask["threads"], part=True)
    loading = time.perf_counter_ns() - began
    peak = most() - before_most
    stage.infer(inputs)
    # Large tensors are given back as a run ends: what it took meanwhile is seen in the most that there was.
    forget_most()
    at_rest, at_rest_most = held(), most()
    outputs = stage.infer(inputs)
    meanwhile = at_rest - before + most() - at_rest_most - sum(value.nbytes for value in outputs.values())
    # What one thread computes is told undisturbed by the processor's time; several threads wait for each other.
    clock = time.process_time_ns if ask["threads"] == 1 else time.perf_counter_ns
    times: list[int] = []
    while len(times) < _FEWEST_RUNS or (len(times) < _MOST_RUNS and sum(times) < ask["budget_ns"]):
        start = clock()
        outputs = stage.infer(inputs)
        times.append(clock() - start)
        taken = held() - before - sum(value.nbytes for value in outputs.values())
    forget_touched()
    stage.infer(inputs)
    return {
        "resident": max(0, taken, meanwhile),
        "touched": touched(),
        "peak": max(0, peak),
        "loading_ns": loading,
        # The fastest: what disturbs a run is no property of the stage.
        "nanoseconds": min(times),
        "tensors": _write(outputs, place),
    }


def _write(outputs: dict[str, Array], place: int) -> list[dict[str, Any]]:
    names = {kind: name for name, kind in DATATYPES.items()}
    said: list[dict[str, Any]] = []
    offset = 0
    for name, value in outputs.items():
        if offset + value.nbytes > _MAX_TENSORS:
            raise ValueError(f"{offset + value.nbytes} bytes of outputs")
        said.append({"name": name, "datatype": names[value.dtype], "shape": list(value.shape), "offset": offset})
        raw = value.tobytes()
        done = 0
        while done < len(raw):
            done += os.pwrite(place, raw[done : done + _PIECE], offset + done)
        offset = -(-(offset + len(raw)) // 64) * 64
    return said


def main() -> None:
    """Answer until there are no more questions."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    server = Server()
    while line := source.readline(_MAX_LINE):
        ask = json.loads(line)
        model = source.read(ask["model"])
        try:
            said = server.answer(ask, model)
        except (KeyError, OSError, ValueError) as error:
            said = {"error": f"{type(error).__name__}: {printable(error)}"}
        sink.write(json.dumps(said).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    main()
