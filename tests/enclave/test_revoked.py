"""Revocation reaches what runs: a program is ended, a service answers nobody any more."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from strongroom.attest.reference import ReferenceValues
from strongroom.channel import bind
from strongroom.cli.main import main
from strongroom.cli.serve import start_service
from strongroom.errors import ChannelError, RevokedError, StrongroomError
from strongroom.serve.client import Client
from tests.enclave.conftest import OUT
from tests.serve.world import double

WRITES_AND_WAITS = """
import pathlib, signal, sys
pathlib.Path(sys.argv[1], "result").write_bytes(b"half done")
print("up", flush=True)
signal.pause()
"""


def test_a_revoked_program_is_ended_and_what_it_wrote_is_not_committed(world, bubblewrap):
    vaults = {"out": world.seal("out")}
    job = world.job(WRITES_AND_WAITS, "{vault:out}", rules=(OUT,), vaults=vaults)
    with world.owner() as client, (world.directory / "stdout").open("wb") as stream:
        before = client.anchor(job.policy.name, "out").read()
        enclave = job.launch(stdout=stream.fileno())
        while (world.directory / "stdout").read_bytes() != b"up\n":
            assert enclave.running
        [lease] = client.leases(job.policy.name)["leases"]
        assert client.revoke(job.policy.name, lease=lease["number"]) == [lease["number"]]
        with pytest.raises(RevokedError, match=r"its lease under policy .* is revoked"):
            enclave.wait()
        assert client.anchor(job.policy.name, "out").read() == before
    assert "notice" in [name for name, _ in job.events]


def test_a_program_that_has_ended_has_no_lease(world, bubblewrap):
    job = world.job("")
    assert job.run()[0] == 0
    with world.owner() as client:
        assert client.leases(job.policy.name)["leases"] == []


def test_clients_see_a_revoked_service_end(world, bubblewrap, monkeypatch, capsys):
    pinned = pytest.importorskip("strongroom.serve.pinned")
    sealed = world.seal("model", **{"m.onnx": double()})
    listener = bind("127.0.0.1", 0)
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    policy, enclave, serving = start_service(world.home, world.cas, sealed, ["m.onnx"], listener=listener, quiet=True)
    vendor = world.home.vendor().root_digest
    reference = ReferenceValues(("simulated",), policy.reference.measurements, allow_simulated=vendor)
    ended: list[StrongroomError] = []

    def wait():
        try:
            enclave.wait()
        except StrongroomError as error:
            ended.append(error)
        finally:
            serving.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    serving.wait()
    assert ended == []
    listener.close()  # the enclave has it
    monkeypatch.setenv("STRONGROOM_HOME", str(world.home.path))
    with Client(url, cas_root=world.cas.cas_root, policy=policy.name, reference=reference) as ours:
        ours.predict(np.ones((1, 3), np.float32))
        with pinned.httpx.Client(transport=pinned.PinnedTransport(ours)) as theirs:
            assert theirs.get(f"{url}/v2/health/ready").json() == {"ready": True}
            assert main(["cas", "enclaves", policy.name]) == 0
            table = capsys.readouterr().out.splitlines()
            assert table[0].split() == ["lease", "replica", "tee", "measurement", "lives", "left", "key"]
            assert policy.reference.measurements[0][:12] in table[1]
            assert max(map(len, table)) <= 80
            assert main(["cas", "revoke", policy.name]) == 2
            assert main(["cas", "revoke", policy.name, "--all"]) == 0
            assert "ended 1 lease: " in capsys.readouterr().out
            waiter.join()
            with pytest.raises((ChannelError, pinned.httpx.HTTPError)):
                theirs.get(f"{url}/v2/health/ready")
        with pytest.raises(ChannelError):
            ours.predict(np.ones((1, 3), np.float32))
    [error] = ended
    assert isinstance(error, RevokedError)
    assert main(["cas", "enclaves", policy.name]) == 0
    assert "no enclave lives under" in capsys.readouterr().err
