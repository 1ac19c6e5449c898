"""Models through the pipeline: each cut in up to four parts, each part in an enclave, asked by a client over TLS.

- `$STRONGROOM_DATA/onnx` has trained models with inputs and outputs that belong to them; `serve_models.py` makes the
  networks of Temper's evaluation, with random weights.
- Answers are held against ONNX Runtime's on the whole model, and against the given outputs. "Off" is the largest
  difference, of the largest absolute output.
- A language model of 260,000 parameters writes a text: the client asks for each token. It is held against the text that
  its author published.
- A quick run has the parts in threads of one process: the same graph code, frames and links, and no enclaves.

Parts are runs of units of about equal weight: how a model is cut best is measured by the area `plan`.
"""

from __future__ import annotations

import itertools
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Bench, Goal
from benchmarks.mpc_models_data import data
from strongroom.errors import StrongroomError
from strongroom.serve.graph import load
from strongroom.serve.pipeline.cut import cut
from strongroom.serve.plan import Enclaves, Plan, StagePlan
from strongroom.serve.plan.make import Prepared, prepare
from strongroom.serve.plan.profile import chain_digest
from strongroom.serve.stage import Stage

FLOAT = "answers off from ONNX Runtime's"
HALF = "answers off from ONNX Runtime's, float16"
GIVEN = "answers off from those given"
GIVEN_HALF = "answers off from those given, float16"
TOKENS = "tokens of a text unlike the published ones"
CNNS = "answers off from ONNX Runtime's, Temper's networks"

GOALS: Sequence[Goal] = (
    Goal(FLOAT, 1e-5, "of the largest", "at most"),
    Goal(HALF, 1e-2, "of the largest", "at most"),
    Goal(GIVEN, 1e-5, "of the largest", "at most"),
    Goal(GIVEN_HALF, 1e-2, "of the largest", "at most"),
    Goal(TOKENS, 0, "tokens", "at most"),
    Goal(CNNS, 1e-5, "of the largest", "at most", full_only=True),
)

PARTS = 4
_LIMIT = 94 << 20
_TOKENS, _QUICK_TOKENS = 199, 40
_LLM = "stories260K"
_SECONDS = 60.0

Array = NDArray[Any]
Ask = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Through = Callable[[bytes, Plan], AbstractContextManager[Ask]]
"""Serves a model by a plan; gives what asks it."""


@dataclass(frozen=True)
class Case:
    """A model, inputs, and the outputs that came with it, if any did."""

    name: str
    model: bytes
    inputs: Mapping[str, Array]
    given: Mapping[str, Array]


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    with ExitStack() as resources:
        through: Through = in_process if bench.quick else resources.enter_context(enclaves())
        if bench.wants(FLOAT, HALF, GIVEN, GIVEN_HALF):
            _trained(bench, through)
        if bench.wants(TOKENS):
            _text(bench, through)
        if bench.wants(CNNS):
            bench.record(CNNS, max(_off(bench, through, case)[0] for case in networks()))


def _trained(bench: Bench, through: Through) -> None:
    off: dict[str, list[float]] = {FLOAT: [], HALF: [], GIVEN: [], GIVEN_HALF: []}
    for case in trained():
        half = "float16" in {str(each) for each in _weights(case.model)}
        ours, given = _off(bench, through, case)
        off[HALF if half else FLOAT].append(ours)
        off[GIVEN_HALF if half else GIVEN].append(given)
    for name, found in off.items():
        if found and bench.wants(name):
            bench.record(name, max(found))


def _off(bench: Bench, through: Through, case: Case) -> tuple[float, float]:
    """How far the pipeline's answers are from ONNX Runtime's, and from the given ones."""
    whole = Stage.load(case.model, name="whole").infer(case.inputs)
    plan = even_plan(prepare(load(case.model), memory=_LIMIT), PARTS)
    with through(case.model, plan) as ask:
        got = ask(case.inputs)
    ours, given = apart(got, whole), apart(got, case.given)
    bench.say(
        f"{case.name}: {plan.units} units in {len(plan.stages)} {'parts' if len(plan.stages) > 1 else 'part: no cut'}, "
        f"off {ours:.1g}" + (f", from what is given {given:.1g}" if case.given else "")
    )
    return ours, given


def _text(bench: Bench, through: Through) -> None:
    from benchmarks.mpc_models_llama import BOS, read_tokens, text

    folder = data("onnx", "llm") / "llm" / _LLM
    pieces = read_tokens(folder / "tok512.bin", 512)
    published = (folder / "expected_greedy_200.txt").read_bytes()
    model = (data("onnx") / "onnx" / _LLM / "model.onnx").read_bytes()
    dims = {"N": 1, "T": 64}
    plan = even_plan(prepare(load(model), memory=_LIMIT, dims=dims), 3, dims=dims)
    said: list[int] = []
    with through(model, plan) as ask:
        while len(said) < (_QUICK_TOKENS if bench.quick else _TOKENS):
            logits = ask({"tokens": np.array([[BOS, *said]], np.int64)})["logits"]
            token = int(logits[0, -1].argmax())
            if token == BOS:
                break
            said.append(token)
    right = next((n for n in range(len(said)) if not published.startswith(text(said[: n + 1], pieces))), len(said))
    bench.say(f"{_LLM} in {len(plan.stages)} parts: {len(said)} tokens, {text(said, pieces)[:50]!r}...")
    bench.record(TOKENS, float(len(said) - right))


# Models.


def trained() -> Iterator[Case]:
    """The trained models with what was given with them, the smallest first."""
    folders = [each.parent for each in (data("onnx") / "onnx").glob("*/model.onnx")]
    for folder in sorted(folders, key=lambda each: (each / "model.onnx").stat().st_size):
        yield read_case(folder)


def read_case(folder: Path) -> Case:
    """A folder as ONNX's own test data have it: `model.onnx`, `test_data_set_0/input_0.pb` and so on."""
    import onnx
    from onnx import numpy_helper

    raw = (folder / "model.onnx").read_bytes()
    proto = onnx.load_model_from_string(raw)
    weights = {each.name for each in proto.graph.initializer}

    def tensors(kind: str, infos: Any) -> dict[str, Array]:
        found = {}
        for place, info in enumerate(each for each in infos if each.name not in weights):
            tensor = onnx.TensorProto()
            tensor.ParseFromString((folder / "test_data_set_0" / f"{kind}_{place}.pb").read_bytes())
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            found[info.name] = numpy_helper.to_array(tensor).astype(dtype)
        return found

    return Case(folder.name, raw, tensors("input", proto.graph.input), tensors("output", proto.graph.output))


def _weights(model: bytes) -> set[Any]:
    """The types of a model's weights."""
    import onnx

    weights = onnx.load_model_from_string(model).graph.initializer
    return {onnx.helper.tensor_dtype_to_np_dtype(each.data_type) for each in weights}


def networks() -> Iterator[Case]:
    """The networks of Temper's evaluation, with random weights, and a random image for each."""
    from benchmarks.serve_models import NETWORKS, exported

    for name in NETWORKS:
        raw = exported(name).read_bytes()
        info = Stage.load(raw, name="whole").inputs[0]
        shape = [1 if size < 0 else size for size in info.shape]
        yield Case(name, raw, {info.name: np.random.default_rng(0).random(shape, np.float32)}, {})


# Plans.


def even_plan(prepared: Prepared, parts: int, *, batch: int = 1, dims: Mapping[str, int] | None = None) -> Plan:
    """A plan of up to so many stages of about equal weight, without measuring anything.

    Args:
        dims: those that the model was prepared with.
    """
    chain = prepared.chain
    count = len(chain)
    sizes = [chain.weight_bytes(place, place + 1) + 1 for place in range(count)]
    before, whole = [0, *itertools.accumulate(sizes)], sum(sizes)
    ends = {count}
    for part in range(1, parts):
        ends.add(min(range(1, count), key=lambda cut: abs(before[cut] * parts - whole * part), default=count))
    stages = tuple(
        StagePlan(first, last, 0, 1, chain.weight_bytes(first, last), 1 << 20, 1000, chain.frontier_bytes(last))
        for first, last in itertools.pairwise([0, *sorted(ends)])
    )
    return Plan(
        model=chain.model.digest,
        chain=chain_digest(chain),
        units=count,
        change=None,
        splits=prepared.splits,
        batch=batch,
        dims=dict(dims or {}),
        objective="latency",
        enclaves=(Enclaves(1 << 30, None),),
        paging=None,
        stages=stages,
        takes=chain.frontier_bytes(0),
        shared=None,
        latency_ns=1000 * len(stages),
        period_ns=1000,
    )


def apart(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """The largest difference, of the largest absolute output; 0 where nothing is wanted."""
    worst = 0.0
    for name, each in wanted.items():
        if got[name].shape != each.shape or got[name].dtype != each.dtype:
            return float("inf")
        one, other = got[name].astype(np.float64), each.astype(np.float64)
        worst = max(worst, float(np.abs(one - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-30)))
    return worst


# Pipelines.


@contextmanager
def in_process(model: bytes, plan: Plan) -> Iterator[Ask]:
    """Parts in threads of this process, over sockets without TLS."""
    from strongroom.channel import Channel
    from strongroom.serve.pipeline import part
    from strongroom.serve.pipeline.link import Link
    from strongroom.serve.pipeline.model import PipelineModel

    pieces = cut(model, plan)
    count = len(plan.stages)
    policies = tuple(f"bench/part-{number}" for number in range(1, count + 1))
    pipeline = pieces.pipeline("model", front="bench/front", policies=policies)
    stages = [part.load(pipeline, number, each) for number, each in enumerate(pieces.models, 1)]

    def dial(number: int) -> Channel:
        ours, theirs = socket.socketpair()

        def run() -> None:
            channel = Channel(theirs, "front door", seconds=_SECONDS)
            with suppress(StrongroomError):
                part.answer(pipeline, number, stages[number - 1], channel)
            channel.close()

        threading.Thread(target=run, daemon=True).start()
        return Channel(ours, f"part {number}", seconds=_SECONDS)

    def dialler(number: int) -> Callable[[], Channel]:
        return lambda: dial(number)

    links = [Link(pipeline, number, dialler(number), tell=lambda text: None) for number in range(1, count + 1)]
    served = PipelineModel(pipeline, links)
    try:
        yield served.infer
    finally:
        served.close()


@contextmanager
def enclaves() -> Iterator[Through]:
    """As `strongroom serve --plan` does it, under one CAS."""
    from strongroom.channel import bind
    from strongroom.cli.serve_pipeline import start_pipeline
    from strongroom.cli.workspace import Home, SealedVault
    from strongroom.serve import Client

    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        home = Home.open(place / "home")
        numbers = itertools.count()
        with home.cas() as cas:

            @contextmanager
            def through(model: bytes, plan: Plan) -> Iterator[Ask]:
                sealed = SealedVault.at(place / f"{next(numbers)}.vault")
                with sealed.create() as opened:
                    opened.write_bytes("model.onnx", model)
                    opened.commit()
                with ExitStack() as resources:
                    listener = resources.enter_context(bind("127.0.0.1", 0))
                    supervisor = start_pipeline(
                        home, cas, sealed, "model.onnx", plan, listener=listener, resources=resources, quiet=True
                    )
                    try:
                        while supervisor.running and not supervisor.up.wait(0.2):
                            pass
                        url, policy = f"https://127.0.0.1:{listener.getsockname()[1]}", supervisor.policy
                        with Client(url, cas_root=cas.cas_root, policy=policy.name, reference=policy.reference) as ours:
                            yield ours.predict
                    finally:
                        supervisor.stop()
                        supervisor.wait()

            yield through
