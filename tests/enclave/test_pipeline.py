"""A model in parts, each in an enclave: answers over HTTP, and one that is killed meanwhile."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from strongroom.attest.reference import ReferenceValues
from strongroom.channel import bind
from strongroom.cli.serve_pipeline import start_pipeline
from strongroom.serve import Client, Stage
from tests.serve.pipeline.world import model, plan

pytest.importorskip("onnxruntime")


@contextmanager
def serving(world, **options):
    """A pipeline of two parts, and what makes clients of it."""
    sealed = world.seal("model", **{"m.onnx": model()})
    with ExitStack() as resources:
        listener = resources.enter_context(bind("127.0.0.1", 0))
        supervisor = start_pipeline(
            world.home,
            world.cas,
            sealed,
            "m.onnx",
            plan(2),
            listener=listener,
            resources=resources,
            quiet=True,
            **options,
        )
        failed = []

        def wait():
            try:
                supervisor.wait()
            except Exception as error:
                failed.append(error)
            finally:
                supervisor.up.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        policy = supervisor.policy
        vendor = world.home.vendor().root_digest
        reference = ReferenceValues(("simulated",), policy.reference.measurements, allow_simulated=vendor)

        def client():
            return Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=reference)

        try:
            supervisor.up.wait()
            assert not failed
            yield supervisor, client
        finally:
            supervisor.stop()
            waiter.join()
        assert not failed


def only(outputs):
    [value] = outputs.values()
    return value


def test_two_parts_answer_as_the_whole_does_and_one_that_is_killed_is_replaced(world, bubblewrap):
    whole = Stage.load(model(), name="m")
    inputs = [np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32) for seed in range(40)]
    wanted = [only(whole.infer({"x": x})) for x in inputs]
    with serving(world) as (supervisor, client):
        with client() as ours:
            got = only(ours.predict(inputs[0]))
        assert np.abs(got - wanted[0]).max() <= 1e-5 * np.abs(wanted[0]).max()
        begun = threading.Barrier(2)

        def ask(share):
            with client() as ours:
                answers = []
                for place, x in enumerate(inputs[share::4]):
                    if share == 0 and place == 2:
                        begun.wait()
                    answers.append(only(ours.predict(x)))
                return answers

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, share) for share in range(4)]
            begun.wait()
            supervisor.signal("part-1", signal.SIGKILL)
            for share, answers in enumerate(asked):
                for right, answer in zip(wanted[share::4], answers.result(), strict=True):
                    assert np.abs(answer - right).max() <= 1e-5 * np.abs(right).max()
