"""Replicas whose mesh is carried by WireGuard: the same program, rules and revocation as behind proxies.

They need root and a device: of the kernel's, or of wireguard-go where the kernel has none.
"""

from __future__ import annotations

import json
import os

import pytest

from strongroom.cas.policy.version import Program
from strongroom.cli.main import main
from strongroom.cli.run.replicas import listener_of
from strongroom.cli.workspace import write_policy
from strongroom.enclave.devices import Devices
from strongroom.errors import RevokedError, UnsupportedPlatformError
from tests.enclave.test_mesh import ended, stop  # noqa: F401

PAIR = """
import json, os, signal, socket, time
rank = int(os.environ["RANK"])
def attempt(address, port=80, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as made:
        try:
            made.connect((address, port))
            made.send(b"x")
        except OSError as error:
            return error.errno
caps = next(line for line in open("/proc/self/status") if line.startswith("CapEff"))
seen = {"own": os.environ["STRONGROOM_MESH_ADDRESS"], "capabilities": int(caps.split()[1], 16)}
seen["interfaces"] = len(socket.if_nameindex())
seen |= {"elsewhere": attempt("192.0.2.1"), "nobody": attempt("10.9.9.9")}
def cut(peer):
    try:
        return peer.recv(1)
    except OSError as error:
        return error.errno
if rank == 0:
    with socket.create_server(("", 7000)) as listener:
        peer, (address, _) = listener.accept()
        seen |= {"from": address, "got": peer.recv(5).decode(), "udp": attempt(address, 9, socket.SOCK_DGRAM)}
        print(json.dumps(seen), flush=True)
        print(json.dumps(cut(peer)), flush=True)
else:
    while (peer := socket.socket()).connect_ex((os.environ["MASTER_ADDR"], 7000)):
        peer.close()
        time.sleep(0.1)  # the other one is no member yet, or does not listen
    peer.sendall(b"hello")
    seen["closed"] = attempt(os.environ["MASTER_ADDR"], 7001)
    print(json.dumps(seen), flush=True)
    cut(peer)
    signal.pause()
"""


@pytest.fixture
def devices() -> Devices:
    try:
        return Devices.here(simulated=True)
    except UnsupportedPlatformError as error:
        pytest.skip(f"no WireGuard: {error.message}")


def test_two_replicas_talk_until_one_is_revoked(devices, world, bubblewrap, ended):  # noqa: F811
    job = world.job(PAIR, replicas=2, transport="wireguard")
    enclaves, said = [], []
    for number in range(2):
        kept, endpoint = listener_of(None, world.cas, wired=True)
        read, write = os.pipe()
        said.append(ended.enter_context(os.fdopen(read)))
        with os.fdopen(write) as stdout:
            launched = job.launch(
                replica=number, listener=kept, endpoint=endpoint, devices=devices, stdout=stdout.fileno()
            )
        enclaves.append(launched)
        ended.callback(stop, launched)
    first, second = (json.loads(each.readline()) for each in said)
    with world.owner() as client:
        leases = client.leases(job.policy.name)["leases"]
        number = next(lease["number"] for lease in leases if lease["replica"] == 1)
        client.revoke(job.policy.name, lease=number)
    with pytest.raises(RevokedError):
        enclaves[1].wait()
    assert enclaves[0].wait() == 0
    addresses = {detail["address"] for event, detail in job.events if event == "mesh"}
    assert (first["got"], {first["from"], first["own"]}) == ("hello", addresses)
    assert (first["udp"], second["closed"]) == (1, 111)
    for each in (first, second):
        assert (each["interfaces"], each["capabilities"]) == (2, 0)
        assert (each["elsewhere"], each["nobody"]) == (101, 111)
    assert said[0].readline() == "103\n"  # ECONNABORTED: reset from here
    told = [detail["refusals"] for event, detail in job.events if event == "mesh-ended"]
    assert all(each["tcp"] and each["unreachable"] for each in told) and any(each["other"] for each in told)


def test_without_a_way_to_make_one_it_is_said_what_is_missing(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(world.home.path))
    monkeypatch.setattr("shutil.which", lambda name: None)  # as where there is no wireguard-go
    try:
        Devices.here(simulated=True)
    except UnsupportedPlatformError:
        pass
    else:
        pytest.skip("this kernel has WireGuard")
    digest = "sha256:" + "0" * 64
    text = write_policy(
        name="a/b",
        role="program",
        owner=digest,
        measurement="0" * 96,
        vendor_root=digest,
        program=Program(("python", "-c", ""), (), {}),
        vaults=(),
        replicas=2,
        transport="wireguard",
    )
    (tmp_path / "policy.toml").write_text(text)
    assert main(["run", "--policy", str(tmp_path / "policy.toml"), "--replicas", "2"]) == 61
    assert "mesh.transport: wireguard: " in capsys.readouterr().err


def test_a_program_stands_in_for_simulated_enclaves_alone(devices, monkeypatch):
    if devices.program is not None:
        with pytest.raises(UnsupportedPlatformError, match="the kernel makes no such device"):
            Devices.here(simulated=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnsupportedPlatformError, match="making a device takes root"):
        Devices.here(simulated=True)
