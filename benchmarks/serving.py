"""Serving against plain ONNX Runtime: the same model, inputs, thread settings and cores.

Plain is a loop around ONNX Runtime in a process of its own, with as many runs at once as the service has workers.
Served is the whole road of a request: TLS 1.3 pinned to the appraised key, HTTP, the protocol's encoding, the worker's
queue; the service in its own process, a load generator in this one. All of them share the same two cores, and run in
turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import multiprocessing as mp
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

CORES = 2
POLICY = "benchmark/model"
Image = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Load:
    """What is measured: a model, its input, and how many threads and requests work on it.

    Attributes:
        image: height and width of the input, 3 channels of float32.
        width: channels of the network's first layers; sets how long a run takes.
        strides: of its six convolutions.
        threads: of one run. workers: runs at once, on either side.
        in_flight: requests that the clients keep open.
    """

    image: int
    width: int
    strides: tuple[int, ...]
    threads: int = 1
    workers: int = CORES
    in_flight: int = CORES + 2


# The first sends 588 KiB, the second 12 KiB; `ten_milliseconds` sets their width for the machine.
LARGE = Load(image=224, width=48, strides=(2, 1, 2, 1, 2, 1))
SMALL = Load(image=32, width=176, strides=(1, 1, 2, 1, 2, 1))


def ten_milliseconds(load: Load) -> Load:
    """`sized` for 10 ms."""
    return sized(load, 10)


def sized(load: Load, wanted: float) -> Load:
    """The load with a network of the width at which ONNX Runtime alone takes about so many milliseconds on all cores.

    Machines differ by a factor of three, and one machine from hour to hour; overhead is a share of this time.
    """
    for _ in range(4):
        milliseconds = _run_milliseconds(load)
        if 0.95 * wanted <= milliseconds <= 1.05 * wanted:
            break
        # Time grows with the square of the width; steps of 8 keep the channels a multiple of the vector length.
        load = dataclasses.replace(load, width=max(8, round(load.width * (wanted / milliseconds) ** 0.5 / 8) * 8))
    return load


def _run_milliseconds(load: Load) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(network(load), options, providers=["CPUExecutionProvider"])
    inputs = {"image": image(load)}
    times = []
    for _ in range(25):
        began = time.perf_counter()
        session.run(None, inputs)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[5:])


def network(load: Load) -> bytes:
    """Six 3x3 convolutions with ReLU, a mean over the image, and ten scores; weights from a seeded generator."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    last, channels = "image", 3
    for i, stride in enumerate(load.strides):
        wide = load.width << (i // 2)
        scale = np.sqrt(2 / (9 * channels))
        weight = (rng.standard_normal((wide, channels, 3, 3)) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        conv = helper.make_node("Conv", [last, f"w{i}"], [f"conv{i}"], pads=[1] * 4, strides=[stride] * 2)
        nodes.append(conv)
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"]))
        last, channels = f"relu{i}", wide
    final = (rng.standard_normal((channels, 10)) / np.sqrt(channels)).astype(np.float32)
    weights.append(numpy_helper.from_array(final, "w"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["scores"]))
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, load.image, load.image])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])]
    graph = helper.make_graph(nodes, "benchmark", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def image(load: Load) -> Image:
    """The one input that both sides get."""
    return np.random.default_rng(1).standard_normal((1, 3, load.image, load.image)).astype(np.float32)


class Turn(NamedTuple):
    """What one side did in one turn.

    Attributes:
        rate: runs or answers per second.
        cpu_ms: processor time of one, in all processes of that side. Unlike the rate it hardly depends on what else
            the machine does; on cores that are never idle the ratio of these times is that of the rates.
        ms: the median time of one from call to return.
        runs: how many there were.
    """

    rate: float
    cpu_ms: float
    ms: float
    runs: int


class Rig:
    """Both sides of one load, warm. Made by `rig`."""

    def __init__(self, load: Load, plain: Connection, service: Connection, client: Any, port: int) -> None:
        self._load = load
        self._plain = plain
        self._service = service
        self._client = client
        self._image = image(load)
        self._generator = _LoadGenerator(port, client.appraise().key, self._image)

    def plain(self, seconds: float, at_once: int | None = None) -> Turn:
        """ONNX Runtime alone."""
        self._plain.send((seconds, at_once or self._load.workers))
        turn: Turn = self._plain.recv()
        return turn

    def served(self, seconds: float, at_once: int | None = None) -> Turn:
        """The service, with the load generator on the same cores."""
        before = self._service_cpu()
        turn = _hammer(self._generator.ask, seconds, at_once or self._load.in_flight)
        spent = 1000 * (self._service_cpu() - before)
        return turn._replace(cpu_ms=turn.cpu_ms + spent / turn.runs)

    def predict(self) -> Image:
        """One answer."""
        scores: Image = self._client.predict({"image": self._image})["scores"]
        return scores

    def _service_cpu(self) -> float:
        self._service.send("cpu")
        seconds: float = self._service.recv()
        return seconds


class _LoadGenerator:
    """Asks as cheaply as a load generator does, since it takes its time from the same cores.

    The request is encoded once and the answer read, not decoded; each connection is TLS 1.3, pinned to the key that was
    appraised.
    """

    def __init__(self, port: int, key: str, image: Image) -> None:
        from strongroom.channel import expect_key
        from strongroom.serve.tensors import InferRequest, write_request

        message = write_request(InferRequest({"image": image}, {}, binary=True))
        length = sum(map(len, message.pieces))
        head = [f"POST /v2/models/model/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n"]
        head += [f"{name}: {value}\r\n" for name, value in message.headers.items()]
        self._request = b"".join([*(line.encode() for line in head), b"\r\n", *message.pieces])
        self._expect = expect_key(key)
        self._port = port
        self._local = threading.local()

    def ask(self) -> None:
        """One request and its answer, on this thread's connection."""
        stream = getattr(self._local, "stream", None)
        if stream is None:
            from strongroom.channel import connect

            stream = connect(socket.create_connection(("127.0.0.1", self._port)), expect=self._expect)
            self._local.stream = stream
        stream.send(self._request)
        answer = bytearray()
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += stream.recv() or _hung_up()
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"service: {bytes(answer[:300])!r}")
        length = int(bytes(answer[:end]).lower().partition(b"content-length:")[2].split(b"\r", 1)[0])
        while len(answer) < end + 4 + length:
            answer += stream.recv() or _hung_up()


def _hung_up() -> NoReturn:
    raise RuntimeError("service: hung up")


@contextlib.contextmanager
def rig(load: Load) -> Iterator[Rig]:
    """Start both sides on the same cores, warm them, and check that they give the same answer."""
    from strongroom.attest.appraise import ReferenceValues
    from strongroom.serve import Client

    before = _pin()
    context = mp.get_context("spawn")
    processes, pipes = [], []
    try:
        for side in (_plain_side, _served_side):
            ours, theirs = context.Pipe()
            process = context.Process(target=side, args=(load, theirs), daemon=True)
            process.start()
            processes.append(process)
            pipes.append(ours)
        scores = pipes[0].recv()
        facts = pipes[1].recv()
        reference = ReferenceValues(("simulated",), (facts["measurement"],), allow_simulated=facts["vendor_root"])
        url = f"https://127.0.0.1:{facts['port']}"
        with Client(url, cas_root=facts["cas_root"], policy=POLICY, reference=reference) as client:
            running = Rig(load, pipes[0], pipes[1], client, facts["port"])
            if not np.array_equal(running.predict(), scores):
                raise RuntimeError("served and plain scores differ")
            running.served(0.3)
            running.plain(0.3)
            yield running
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)
            process.kill()
        if before is not None:
            os.sched_setaffinity(0, before)


def measure_serving(seconds: float, load: Load = LARGE, *, rounds: int = 10) -> dict[str, Any]:
    """Plain and served in turns for about `seconds` in total.

    Returns:
        `plain` and `served`: runs or answers per second of each round; `ratio`: the median of the rounds' served /
        plain; `cpu_ratio`: that of their processor times, plain / served; `plain_cpu_ms` and `served_cpu_ms`: the
        medians of those; `plain_ms` and `served_ms`: the median time of one alone; `load`: what was measured.
    """
    turn = seconds / (2 * rounds + 4)
    pairs = []
    with rig(load) as running:
        for _ in range(rounds):
            pairs.append((running.plain(turn), running.served(turn)))
        alone = running.plain(2 * turn, 1), running.served(2 * turn, 1)
    return {
        "plain": [plain.rate for plain, _ in pairs],
        "served": [served.rate for _, served in pairs],
        "ratio": statistics.median(served.rate / plain.rate for plain, served in pairs),
        "cpu_ratio": statistics.median(plain.cpu_ms / served.cpu_ms for plain, served in pairs),
        "plain_cpu_ms": statistics.median(plain.cpu_ms for plain, _ in pairs),
        "served_cpu_ms": statistics.median(served.cpu_ms for _, served in pairs),
        "plain_ms": alone[0].ms,
        "served_ms": alone[1].ms,
        "load": dataclasses.asdict(load),
    }


def _hammer(once: Callable[[], object], seconds: float, at_once: int) -> Turn:
    """Call `once` from `at_once` threads until `seconds` are over."""
    durations: list[list[float]] = [[] for _ in range(at_once)]
    began, cpu = time.perf_counter(), time.process_time()
    until = began + seconds

    def work(mine: list[float]) -> None:
        now = time.perf_counter()
        while now < until:
            once()
            after = time.perf_counter()
            mine.append(after - now)
            now = after

    threads = [threading.Thread(target=work, args=(mine,)) for mine in durations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed, spent = time.perf_counter() - began, time.process_time() - cpu
    every = [duration for mine in durations for duration in mine]
    return Turn(len(every) / elapsed, 1000 * spent / len(every), 1000 * statistics.median(every), len(every))


def _plain_side(load: Load, pipe: Connection) -> None:
    """ONNX Runtime alone: for each (seconds, threads) that comes, what `_hammer` gives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = load.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(network(load), options, providers=["CPUExecutionProvider"])
    inputs = {"image": image(load)}
    pipe.send(session.run(None, inputs)[0])
    with contextlib.suppress(EOFError):
        while True:
            seconds, at_once = pipe.recv()
            pipe.send(_hammer(lambda: session.run(None, inputs), seconds, at_once))


def _served_side(load: Load, pipe: Connection) -> None:
    """An attested service in a simulated enclave of its own CAS; says where it is, and serves until the pipe closes."""
    from strongroom.attest.binding import NO_BINDER, Kind, canonical, report_data
    from strongroom.attest.claims import REGISTERS, registers_measurement
    from strongroom.attest.result import ResultStatement, sign_result
    from strongroom.attest.tee.simulated import SimulatedVendor
    from strongroom.cas.start.authority import Authority
    from strongroom.cas.wire import RESULT_LIFETIME
    from strongroom.channel import Identity, Server, bind
    from strongroom.crypto import digest, random_key
    from strongroom.serve import ServiceApp, ServiceAttestation, Stage

    moment = dt.datetime.now(dt.UTC)
    now = int(moment.timestamp())
    stage = Stage.load(network(load), name="model", threads=load.threads)
    identity = Identity.fresh("service", now=moment)
    registers = {name: bytes(48) for name in REGISTERS}
    with tempfile.TemporaryDirectory() as directory:
        authority = Authority(Path(directory) / "cas", random_key(), now=moment, hosts=["localhost"])
        vendor = SimulatedVendor.open(Path(directory) / "vendor", now=now)
    told = {"policy": POLICY, "policy_digest": "sha256:" + 64 * "0"}
    claims = canonical(
        {
            **told,
            "role": "service",
            "spki": identity.key.public.fingerprint,
            "hpke": 64 * "0",
            "cas_root": authority.cas_root,
            "models": {"model": "sha256:" + stage.digest},
        }
    )
    token = authority.time_token(now=now)
    bound = report_data(Kind.SERVICE, fresh=digest(token.encode()), binder=NO_BINDER, claims=claims)
    facts = {"vendor_root": vendor.root_digest, "measurement": registers_measurement(registers)}
    statement = ResultStatement(
        issuer=authority.cas_root,
        issued_at=now,
        expires=now + RESULT_LIFETIME,
        fresh=digest(token.encode()),
        claims=digest(claims).hex(),
        tee="simulated",
        policy=POLICY,
        policy_digest=told["policy_digest"],
        measurement=facts["measurement"],
        vendor_root=facts["vendor_root"],
    )
    result = sign_result(statement, authority.identity.key)
    leaf, root = authority.chain
    document = ServiceAttestation(vendor.quote(registers, bound), claims, token, result, (leaf, root))
    app = ServiceApp({"model": stage}, document.to_wire, workers=load.workers)
    with Server(app, bind("127.0.0.1", 0), identity) as server:
        pipe.send({**facts, "cas_root": authority.cas_root, "port": server.port})
        with contextlib.suppress(EOFError):
            while pipe.recv():
                pipe.send(time.process_time())


def _pin() -> set[int] | None:
    """Keep this process and its children on the first cores that it may use; the cores before, where that can be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:CORES]))
    return before


def main() -> int:
    """`python -m benchmarks.serving large|small SECONDS [THREADS WORKERS IN_FLIGHT]`: print what was measured."""
    load = {"large": LARGE, "small": SMALL}[sys.argv[1]]
    if sys.argv[3:]:
        threads, workers, in_flight = map(int, sys.argv[3:])
        load = dataclasses.replace(load, threads=threads, workers=workers, in_flight=in_flight)
    print(json.dumps(measure_serving(float(sys.argv[2]), load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
