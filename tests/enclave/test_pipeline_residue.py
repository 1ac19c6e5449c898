"""One user's inputs are in no other's answer, in no log, and in no memory of the enclaves once they are answered."""

from __future__ import annotations

import os
import re
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from stat import S_ISREG

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.pipeline_models import even_plan
from strongroom.channel import bind
from strongroom.cli.serve import start_service
from strongroom.cli.serve_pipeline import start_pipeline
from strongroom.serve import Client
from strongroom.serve.graph import load
from strongroom.serve.pinned import PinnedTransport
from strongroom.serve.plan.make import prepare
from tests.attacks.spying import family

pytest.importorskip("onnxruntime")

WIDTH = 256
ROWS = 4  # of a batch
USERS = 4


def model():
    """Gives what it takes, twice beside itself, as it is and multiplied."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [helper.make_node("Concat", ["x", "x"], ["twice"], axis=1)], [], "twice"
    for layer in range(2):
        matrix = (rng.standard_normal((2 * WIDTH, 2 * WIDTH)) / 16).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"h{layer}"]))
        nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    takes, *gives = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", WIDTH), (last, 2 * WIDTH), ("twice", 2 * WIDTH))
    )
    graph = helper.make_graph(nodes, "twice", [takes], gives, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def found_in(pid, markers):
    """Which markers lie in the memory of a process."""
    found = set()
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \d+\s*(.*)", line)
            if place is None or place[3].startswith(("[vvar", "[vsyscall")):
                continue
            start, end = int(place[1], 16), int(place[2], 16)
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except OSError:  # nothing is there, or no longer
                continue
            found |= {name for name, marker in markers.items() if marker in content}
    return found


def enclaves():
    """The processes in which services run, below this one."""
    for pid in family(os.getpid())[1:]:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"strongroom.serve.inside" in words and not words[0].endswith(b"bwrap"):
            yield pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of an enclave: residue is not looked for")
def test_what_users_ask_is_in_no_answer_of_others_no_log_and_no_memory(world, bubblewrap, capfd):
    raw = model()
    sealed = world.seal("model", **{"m.onnx": raw})
    plan = even_plan(prepare(load(raw), memory=1 << 20), 2, batch=ROWS)
    assert len(plan.stages) == 2
    rng = np.random.default_rng(int.from_bytes(os.urandom(8)))
    asked = [rng.standard_normal((1 + user % 2, WIDTH)).astype(np.float32) for user in range(USERS)]
    long, written = (rng.standard_normal((rows, WIDTH)).astype(np.float32) for rows in (1024, 1))
    known, unknown = secrets.token_hex(24), secrets.token_hex(24)
    with ExitStack() as resources:
        listener = resources.enter_context(bind("127.0.0.1", 0))
        supervisor = start_pipeline(
            world.home, world.cas, sealed, "m.onnx", plan, listener=listener, resources=resources, delay=50_000
        )
        resources.callback(supervisor.wait)
        resources.callback(supervisor.stop)
        while not supervisor.up.wait(0.1):
            assert supervisor.running
        url, policy = f"https://127.0.0.1:{listener.getsockname()[1]}", supervisor.policy
        with Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=policy.reference) as client:
            with ThreadPoolExecutor(USERS) as pool:
                for x, answer in zip(asked, pool.map(client.predict, asked), strict=True):
                    assert np.array_equal(answer["twice"], np.concatenate([x, x], 1))
            assert np.array_equal(client.predict(long)["twice"][:, :WIDTH], long)
            with httpx.Client(transport=PinnedTransport(client)) as other:
                for name, status in (("x", 200), (unknown, 400)):
                    tensor = {"name": name, "shape": [1, WIDTH], "datatype": "FP32", "data": written.ravel().tolist()}
                    answer = other.post(f"{url}/v2/models/m/infer", json={"id": known, "inputs": [tensor]})
                    assert answer.status_code == status
            zeros = np.zeros((1, WIDTH), np.float32)
            assert not client.predict(zeros)["twice"].any()  # whoever comes after them gets nothing of theirs
        markers = {f"user {number}": each.tobytes()[64:96] for number, each in enumerate(asked)}
        markers |= {"the beginning": long[0, :8].tobytes(), "the middle": long[512, 8:16].tobytes()}
        markers |= {"numbers": written[0, :8].tobytes(), "text": str(float(written[0, 9])).encode()}
        markers |= {"doubles": written[0, 9:13].astype(np.float64).tobytes()}
        markers |= {"an id": known.encode(), "a name": unknown.encode()}
        ours = found_in(os.getpid(), markers)
        assert "user 0" in ours  # what is looked for is found where it is
        looked = {pid: found_in(pid, markers) for pid in enclaves()}
    assert len(looked) >= 3
    assert not any(looked.values()), looked
    said = "".join(capfd.readouterr()).encode()
    said += b"".join(path.read_bytes() for path in world.home.path.rglob("*") if S_ISREG(path.lstat().st_mode))
    assert not [name for name, marker in markers.items() if marker in said]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of an enclave: residue is not looked for")
def test_what_users_ask_of_one_stage_at_once_is_in_no_memory(world, bubblewrap):
    """Two run at a time, by threads of two kinds."""
    sealed = world.seal("model", **{"m.onnx": model()})
    rng = np.random.default_rng(int.from_bytes(os.urandom(8)))
    asked = [rng.standard_normal((400, WIDTH)).astype(np.float32) for _ in range(USERS)]
    with bind("127.0.0.1", 0) as listener:
        policy, enclave, serving = start_service(
            world.home, world.cas, sealed, ["m.onnx"], listener=listener, quiet=True
        )
        waiter = threading.Thread(target=enclave.wait)
        waiter.start()
        try:
            assert serving.wait(60)
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            with Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=policy.reference) as client:
                with ThreadPoolExecutor(USERS) as pool:
                    for _ in range(5):
                        for x, answer in zip(asked, pool.map(client.predict, asked), strict=True):
                            assert np.array_equal(answer["twice"], np.concatenate([x, x], 1))
                markers = {f"user {number}": each.tobytes()[64:96] for number, each in enumerate(asked)}
                markers |= {f"the end of {number}": each[-1, -8:].tobytes() for number, each in enumerate(asked)}
                assert "user 0" in found_in(os.getpid(), markers)
                looked = {pid: found_in(pid, markers) for pid in enclaves()}
        finally:
            while waiter.is_alive():
                enclave.signal(15)
                waiter.join(0.1)
    assert looked and not any(looked.values()), looked
