"""The whole way: a program makes a model in an enclave, `verify model` walks it back, `serve` insists on it."""

import json
import threading
from contextlib import ExitStack

import numpy as np
import pytest

from strongroom.channel import bind
from strongroom.cli import main as cli
from strongroom.cli.serve import start_service
from strongroom.cli.serve_pipeline import start_pipeline
from strongroom.errors import StrongroomError, VerificationError
from strongroom.lineage.requirement import Requirement
from strongroom.serve import Client
from tests.enclave.conftest import DATA, OUT, World
from tests.serve.pipeline.world import model, plan
from tests.serve.test_weights import branches, made_of, outside
from tests.serve.world import double

MAKE = "import shutil, sys; shutil.copyfile(sys.argv[1] + '/graph', sys.argv[2] + '/model.onnx')"


@pytest.fixture(scope="module")
def made(home_and_cas, tmp_path_factory):
    """A job that wrote a model, and the vault with it."""
    world = World(tmp_path_factory.mktemp("made"), *home_and_cas)
    vaults = {"data": world.seal("data", graph=double()), "out": world.seal("out")}
    job = world.job(MAKE, "{vault:data}", "{vault:out}", rules=(DATA, OUT), vaults=vaults)
    assert job.run()[0] == 0
    out = vaults["out"]
    with world.owner() as client:
        out.anchor.advance(out.anchor.read(), client.anchor(job.policy.name, "out").read())
    return job, out


def verify(job, *arguments, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(job.world.home.path))
    return cli.main(["verify", "model", "--json", *map(str, arguments)])


def test_verify_model_walks_it_back(made, monkeypatch, capsys):
    job, out = made
    data = job.world.directory / "data.vault"
    monkeypatch.chdir(job.world.directory)
    command = ("--program", *job.config.command)
    assert verify(job, "--data", data, "--policy", job.policy.name, out.path, *command, monkeypatch=monkeypatch) == 0
    shown = json.loads(capsys.readouterr().out)
    checked = {link["link"] for link in shown["links"] if link["checked"]}
    assert checked == {"model", "signature", "policy", "program", "data"}
    assert shown["measurement"] == job.policy.reference.measurements[0]
    assert (shown["tee"], shown["data"][0]["name"]) == ("simulated", "data")


def test_verify_model_stops_at_the_first_link_that_does_not_hold(made, monkeypatch, capsys, tmp_path):
    job, out = made
    with out.open() as opened:
        for name in ("model.onnx", "model.onnx.lineage.json"):
            (tmp_path / name).write_bytes(opened.read_bytes(name))
    model = tmp_path / "model.onnx"
    other = World(tmp_path, job.world.home, job.world.cas).seal("other", graph=b"another data set")

    def fails(status, text, *arguments):
        assert verify(job, model, *arguments, monkeypatch=monkeypatch) == status
        assert text in json.loads(capsys.readouterr().out)["error"]

    assert verify(job, model, monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    fails(23, "other.vault holds", "--data", other.path)
    fails(34, "wanted acme/other", "--policy", "acme/other")
    fails(35, "measurement", "--measurement", "00" * 48)
    fails(31, "CAS root", "--cas-root", "sha256:" + "00" * 32)
    fails(33, "simulated enclave", "--cas-root", job.world.cas.cas_root)
    model.write_bytes(model.read_bytes() + b"\0")
    fails(23, "its lineage says")
    (tmp_path / "model.onnx.lineage.json").unlink()
    fails(31, "has no lineage")
    assert cli.main(["verify", "model", str(tmp_path / "nothing")]) == 2


def test_verify_model_says_what_the_run_called_it(made, monkeypatch, capsys, tmp_path):
    job, out = made
    with out.open() as opened:
        for suffix in ("", ".lineage.json"):
            (tmp_path / f"best.onnx{suffix}").write_bytes(opened.read_bytes(f"model.onnx{suffix}"))
    assert verify(job, tmp_path / "best.onnx", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert "best.onnx as model.onnx: take care that it is the output that you mean" in shown.err
    assert json.loads(shown.out)["written_as"] == "model.onnx"
    assert "best.onnx, written as model.onnx" in json.loads(shown.out)["links"][0]["text"]


def test_an_empty_vault_is_not_the_data_of_a_run_whose_output_vault_was_empty(made, monkeypatch, capsys, tmp_path):
    job, out = made
    empty = World(tmp_path, job.world.home, job.world.cas).seal("empty")
    assert verify(job, "--data", empty.path, out.path, monkeypatch=monkeypatch) == 23
    assert "empty.vault holds" in json.loads(capsys.readouterr().out)["error"]
    assert verify(job, "--data", f"out={empty.path}", out.path, monkeypatch=monkeypatch) == 0
    links = json.loads(capsys.readouterr().out)["links"]
    assert [link["checked"] for link in links if link["link"] == "data"] == [False, True]


def test_verify_model_looks_at_weights_wherever_the_model_keeps_them(home_and_cas, monkeypatch, capsys, tmp_path):
    """In the branches of an If, here: a file beside the model without a lineage does not pass."""
    world = World(tmp_path, *home_and_cas)
    out = world.seal("out")
    weights = outside("w", location="branch.bin")
    graph = made_of(nodes=[branches(weights, weights)])
    vaults = {"data": world.seal("data", graph=graph), "out": out}
    job = world.job(
        MAKE + "; open(sys.argv[2] + '/branch.bin', 'wb').write(bytes(16))",
        "{vault:data}",
        "{vault:out}",
        rules=(DATA, OUT),
        vaults=vaults,
    )
    assert job.run()[0] == 0
    with world.owner() as client:
        out.anchor.advance(out.anchor.read(), client.anchor(job.policy.name, "out").read())
    assert verify(job, out.path, monkeypatch=monkeypatch) == 0
    links = json.loads(capsys.readouterr().out)["links"]
    assert [link["text"] for link in links if link["link"] == "weights"] == ["branch.bin, of the same run"]
    with out.open("r+") as opened:
        opened.remove("branch.bin.lineage.json")
    assert verify(job, out.path, monkeypatch=monkeypatch) == 31
    assert "branch.bin has no lineage" in json.loads(capsys.readouterr().out)["error"]


def served(job, sealed, models, requirement):
    """Start a service; None once it serves, or what it failed with."""
    with bind("127.0.0.1", 0) as listener:
        policy, enclave, serving = start_service(
            job.world.home, job.world.cas, sealed, models, listener=listener, quiet=True, lineage=requirement
        )
        ended = threading.Event()
        failure = []

        def wait():
            try:
                enclave.wait()
            except StrongroomError as error:
                failure.append(error)
            finally:
                ended.set()
                serving.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        serving.wait()
        while not ended.wait(0.1):
            enclave.signal(15)  # process 1 of a namespace does not hear it before it listens for it
        waiter.join()
        return policy, failure[0] if failure else None


def test_a_service_that_requires_lineage_serves_what_has_it_and_nothing_else(made):
    job, out = made
    ours = Requirement(job.world.cas.cas_root, (job.policy.name,), job.world.home.vendor().root_digest)
    policy, failure = served(job, out, ["model.onnx"], ours)
    assert failure is None
    assert ours.to_word() in policy.program.command  # clients who read the policy see it, and it is measured
    with out.open() as opened:
        bare = job.world.seal("bare", **{"model.onnx": opened.read_bytes("model.onnx")})
    _, failure = served(job, bare, ["model.onnx"], ours)
    assert isinstance(failure, VerificationError)
    assert "model.onnx has no lineage" in failure.message


@pytest.fixture
def in_parts(home_and_cas, tmp_path):
    """The world, the vault of a run that wrote a model that can be cut, and what the run's lineage satisfies."""
    world = World(tmp_path, *home_and_cas)
    vaults = {"data": world.seal("data", graph=model()), "out": world.seal("out")}
    job = world.job(MAKE, "{vault:data}", "{vault:out}", rules=(DATA, OUT), vaults=vaults)
    assert job.run()[0] == 0
    out = vaults["out"]
    with world.owner() as client:
        out.anchor.advance(out.anchor.read(), client.anchor(job.policy.name, "out").read())
    return world, out, Requirement(world.cas.cas_root, (job.policy.name,), world.home.vendor().root_digest)


def serve_in_parts(world, sealed, requirement, ask):
    """What the pipeline failed with, None if it was told to stop once `ask` had its answer."""
    with ExitStack() as resources:
        listener = resources.enter_context(bind("127.0.0.1", 0))
        supervisor = start_pipeline(
            world.home,
            world.cas,
            sealed,
            "model.onnx",
            plan(2),
            listener=listener,
            resources=resources,
            quiet=True,
            lineage=requirement,
        )
        supervisor.up.wait()
        try:
            if supervisor.running:
                ask(f"https://127.0.0.1:{listener.getsockname()[1]}", supervisor.policy)
            supervisor.stop()
            supervisor.wait()
        except StrongroomError as error:
            return error
    return None


@pytest.mark.slow
def test_a_model_in_parts_is_served_if_its_lineage_is_as_required(in_parts, bubblewrap):
    """The front door cuts the model itself, so whoever appraises it knows of what the parts are."""
    world, out, required = in_parts
    answers = []

    def ask(url, policy):
        assert policy.program.command[0] == required.to_word()
        with Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=policy.reference) as client:
            answers.append(client.predict(np.ones((1, 64), np.float32)))

    assert serve_in_parts(world, out, required, ask) is None and len(answers) == 1
    with out.open() as opened:
        bare = world.seal("bare", **{"model.onnx": opened.read_bytes("model.onnx")})
    failure = serve_in_parts(world, bare, required, ask)
    assert isinstance(failure, VerificationError) and "model.onnx has no lineage" in failure.message
    assert len(answers) == 1
