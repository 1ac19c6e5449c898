"""A model in parts, each in an enclave: answers over HTTP, enclaves that are killed meanwhile, and how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import numpy as np
import pytest

from strongroom.channel import bind
from strongroom.cli.main import main
from strongroom.cli.serve_part import PartDirectory, start_part
from strongroom.cli.serve_pipeline import start_pipeline
from strongroom.errors import MeasurementError, RevokedError, StrongroomError
from strongroom.serve import Client, Stage
from strongroom.serve.pipeline.place import Place
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

        def reference():
            """What the policy says now: an update gives it a new version."""
            with world.owner() as owner:
                return owner.policy(policy.name).reference

        def client(**wanted):
            return Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=reference, **wanted)

        try:
            supervisor.up.wait()
            assert not failed
            yield supervisor, client, failed, waiter, sealed
        finally:
            supervisor.stop()
            waiter.join()


def only(outputs):
    [value] = outputs.values()
    return value


def ask(client, inputs, *, meanwhile):
    """Answers to inputs, of four users at a time; `meanwhile` is called when some have been answered."""
    some = threading.Barrier(2, timeout=300)

    def user(share):
        answers = []
        with client() as ours:
            for place, x in enumerate(inputs[share::4]):
                if share == 0 and place == 2:
                    some.wait()
                answers.append(only(ours.predict(x)))
        return answers

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(user, share) for share in range(4)]
        some.wait()
        meanwhile()
        shares = [answers.result() for answers in asked]
    return [shares[place % 4][place // 4] for place in range(len(inputs))]


def test_two_parts_answer_as_the_whole_does_whatever_is_killed_until_one_is_revoked(world, bubblewrap):
    """No request is lost: not a killed part's, and not when the front door is killed, or another version takes over."""
    whole = Stage.load(model(), name="m")
    inputs = [np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32) for seed in range(32)]
    wanted = [only(whole.infer({"x": x})) for x in inputs]
    with serving(world, standby=True) as (supervisor, client, failed, waiter, sealed):

        def kill_both():
            for which in (0, 1):
                supervisor.signal("part-1", signal.SIGKILL, which=which)

        for meanwhile in (
            kill_both,
            lambda: supervisor.signal("front", signal.SIGKILL),
            lambda: supervisor.roll(sealed, "m.onnx", plan(1)),
        ):
            got = ask(client, inputs, meanwhile=meanwhile)
            for answer, right in zip(got, wanted, strict=True):
                assert np.abs(answer - right).max() <= 1e-5 * np.abs(right).max()
        assert len(supervisor.policy.reference.measurements) == 2  # of before and after, until the update was done
        with world.owner() as owner:
            [measured] = owner.policy(supervisor.policy.name).reference.measurements
        assert measured == supervisor.policy.reference.measurements[0]
        with client(plan_digest=f"sha256:{plan(1).digest}", model_digest=f"sha256:{plan(1).model}") as ours:
            assert ours.appraise().plan == f"sha256:{plan(1).digest}"
            ours.predict(inputs[0])
        with client(plan_digest=f"sha256:{plan(3).digest}") as ours, pytest.raises(MeasurementError, match="plan: got"):
            ours.predict(inputs[0])
        part = supervisor.present.fleet.roles[1].policy.name
        with world.owner() as owner:
            assert owner.revoke(part, everything=True)
        waiter.join()
        assert [type(error) for error in failed] == [RevokedError]


class Wire:
    """Between the front door and a part on another machine; can be cut."""

    def __init__(self):
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.far = 0
        self.ends: list[socket.socket] = []
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.2", self.far))
                except OSError:
                    near.close()
                    continue
                self.ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self.carry, args=(source, target), daemon=True).start()

    def carry(self, source, target):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        self.shut(source, target)

    def cut(self):
        self.shut(*self.ends)

    def shut(self, *ends):
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.shut(self.listener)
        self.thread.join()
        self.cut()
        for end in (self.listener, *self.ends):
            end.close()


def test_a_part_on_another_machine_answers_over_tcp_though_the_wire_is_cut(world, bubblewrap, tmp_path):
    """It gets a directory without a key, and is asked by address."""
    whole = Stage.load(model(), name="m")
    inputs = [np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32) for seed in range(16)]
    with closing(Wire()) as wire:
        place = Place.parse(f"localhost:{wire.port}", "--at")
        with serving(world, places={2: place}) as (supervisor, client, failed, _waiter, _sealed), ExitStack() as there:
            [made] = (world.home.path / "pipelines").glob("*-2")
            assert sorted(each.name for each in made.iterdir()) == ["model.vault", "part.json"]
            copied = shutil.copytree(made, tmp_path / "copied")
            part, wire.far = start_part(PartDirectory.read(copied), world.home, "127.0.0.2", 0, resources=there)
            ended = threading.Thread(target=part.wait)
            ended.start()
            try:
                got = ask(client, inputs, meanwhile=wire.cut)
                for answer, x in zip(got, inputs, strict=True):
                    right = only(whole.infer({"x": x}))
                    assert np.abs(answer - right).max() <= 1e-5 * np.abs(right).max()
                assert not failed and len(wire.ends) >= 4
            finally:
                supervisor.stop()
                part.stop()
                ended.join()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--standby"], "in parts"),
        (["--plan", "nowhere.json"], "no such file"),
        (["--memory", "lots"], "wanted a size"),
        (["--batch", "8"], "add --memory"),
        (["--memory", "1MiB", "--dim", "T"], "--dim"),
        (["--at", "1=localhost:1"], "in parts"),
        (["--batch-delay", "3"], "in parts"),
        (["--listen", "localhost:1"], "add --part"),
    ],
)
def test_options_that_make_no_sense(world, options, words, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(world.home.path))
    sealed = world.seal("model", **{"m.onnx": model()})
    assert main(["serve", str(sealed.path), "--json", "--port", "0", *options]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]
