"""A model in parts, each in an enclave: answers over HTTP, enclaves that are killed meanwhile, and how it ends."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from strongroom.attest.reference import ReferenceValues
from strongroom.channel import bind
from strongroom.cli.main import main
from strongroom.cli.serve_pipeline import start_pipeline
from strongroom.errors import ChannelError, MeasurementError, RevokedError, StrongroomError
from strongroom.serve import Client, Stage
from tests.serve.pipeline.world import model, plan

pytest.importorskip("onnxruntime")


@contextmanager
def serving(world, **options):
    """A pipeline of two parts, what makes clients of it, and what it ends with."""
    sealed = world.seal("model", **{"m.onnx": model()})
    failed: list[StrongroomError] = []
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

        def wait():
            try:
                supervisor.wait()
            except StrongroomError as error:
                failed.append(error)
            finally:
                supervisor.up.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        policy = supervisor.policy
        vendor = world.home.vendor().root_digest
        reference = ReferenceValues(("simulated",), policy.reference.measurements, allow_simulated=vendor)

        def client(**wanted):
            return Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=reference, **wanted)

        try:
            supervisor.up.wait()
            assert not failed
            yield supervisor, client, failed, waiter
        finally:
            supervisor.stop()
            waiter.join()


def only(outputs):
    [value] = outputs.values()
    return value


def ask(client, inputs, *, again, meanwhile):
    """Answers to inputs, of four users at a time, who ask so often again if the connection breaks; `meanwhile` is
    called when some have been answered."""
    some = threading.Barrier(2, timeout=60)

    def one(ours, x):
        for left in range(again, -1, -1):
            try:
                return only(ours.predict(x))
            except ChannelError:
                if not left:
                    raise
        raise AssertionError

    def user(share):
        answers = []
        with client() as ours:
            for place, x in enumerate(inputs[share::4]):
                if share == 0 and place == 2:
                    some.wait()
                answers.append(one(ours, x))
        return answers

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(user, share) for share in range(4)]
        some.wait()
        meanwhile()
        shares = [answers.result() for answers in asked]
    return [shares[place % 4][place // 4] for place in range(len(inputs))]


def test_two_parts_answer_as_the_whole_does_whatever_is_killed_until_one_is_revoked(world, bubblewrap):
    """No request of a killed part's is lost; after the front door is killed, a client that asks again is answered."""
    whole = Stage.load(model(), name="m")
    inputs = [np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32) for seed in range(32)]
    wanted = [only(whole.infer({"x": x})) for x in inputs]
    with serving(world, standby=True) as (supervisor, client, failed, waiter):

        def kill_both():
            for which in (0, 1):
                supervisor.signal("part-1", signal.SIGKILL, which=which)

        for again, meanwhile in ((0, kill_both), (1, lambda: supervisor.signal("front", signal.SIGKILL))):
            got = ask(client, inputs, again=again, meanwhile=meanwhile)
            for answer, right in zip(got, wanted, strict=True):
                assert np.abs(answer - right).max() <= 1e-5 * np.abs(right).max()
        with client(plan_digest=f"sha256:{plan(2).digest}", model_digest=f"sha256:{plan(2).model}") as ours:
            assert ours.appraise().plan == f"sha256:{plan(2).digest}"
            ours.predict(inputs[0])
        with client(plan_digest=f"sha256:{plan(3).digest}") as ours, pytest.raises(MeasurementError, match="plan: got"):
            ours.predict(inputs[0])
        part = supervisor.policy.name.replace("-front", "-part-2")
        with world.owner() as owner:
            assert owner.revoke(part, everything=True)
        waiter.join()
        assert [type(error) for error in failed] == [RevokedError]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--standby"], "in parts"),
        (["--plan", "nowhere.json"], "no such file"),
        (["--memory", "lots"], "wanted a size"),
        (["--memory", "1MiB", "--require-lineage"], "on a whole model"),
    ],
)
def test_options_that_make_no_sense(world, options, words, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(world.home.path))
    sealed = world.seal("model", **{"m.onnx": model()})
    assert main(["serve", str(sealed.path), "--json", "--port", "0", *options]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]
