"""Replicas of one program, each an enclave, over the mesh: through the launcher, and through `strongroom run`."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, suppress

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import main
from strongroom.cli.run.replicas import check_count, listener_of
from strongroom.cli.workspace import write_policy
from strongroom.errors import RevokedError, StrongroomError, UsageError

PAIR = """
import ctypes, json, os, signal, socket, sys
rank = int(os.environ["RANK"])
seen = {"rank": rank, "name": socket.getfqdn(), "address": socket.gethostbyname(socket.gethostname())}
seen["task"] = json.loads(os.environ["TF_CONFIG"])["task"]
seen["interfaces"] = [name for _, name in socket.if_nameindex()]
caps = next(line for line in open("/proc/self/status") if line.startswith("CapEff"))
seen["capabilities"] = int(caps.split()[1], 16)
rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
rules.bind((0, 0))
def attempt(address):
    try:
        socket.create_connection((address, 80), 20)
    except OSError as error:
        return error.errno
seen["elsewhere"] = attempt("192.0.2.1")
if rank == 0:
    with socket.create_server(("", 7000)) as listener:
        peer, (address, _) = listener.accept()
        seen |= {"from": address, "got": peer.recv(5).decode()}
        print(json.dumps(seen), flush=True)
        try:
            more = peer.recv(1)
        except ConnectionResetError:
            more = b""
        print(json.dumps("more" if more else "cut"), flush=True)  # or ended, as its program was before
else:
    peer = socket.create_connection((os.environ["MASTER_ADDR"], 7000))
    peer.sendall(b"hello")
    print(json.dumps(seen), flush=True)
    try:
        peer.recv(1)
    except ConnectionResetError:
        signal.pause()  # the other side may have heard of it first
"""


def stop(enclave):
    with suppress(StrongroomError):
        enclave.stop()


@pytest.fixture
def ended():
    """What ends with the test, also one that fails: the next one is not told of what it left."""
    with ExitStack() as stack:
        yield stack


def test_two_replicas_talk_until_one_is_revoked(world, bubblewrap, ended):
    job = world.job(PAIR, replicas=2, tasks=("chief", "ps"))
    logs = [world.directory / f"replica-{number}" for number in range(2)]
    enclaves = []
    for number, log in enumerate(logs):
        listener, endpoint = listener_of(None, world.cas)
        with log.open("wb") as stream:
            launched = job.launch(replica=number, listener=listener, endpoint=endpoint, stdout=stream.fileno())
            enclaves.append(launched)
            ended.callback(stop, launched)
    while not logs[0].read_bytes().endswith(b"\n"):
        assert all(each.running for each in enclaves)
    with world.owner() as client:
        leases = client.leases(job.policy.name)["leases"]
        number = next(lease["number"] for lease in leases if lease["replica"] == 1)
        client.revoke(job.policy.name, lease=number)
    with pytest.raises(RevokedError):
        enclaves[1].wait()
    assert enclaves[0].wait() == 0
    first, second = (json.loads(log.read_text().splitlines()[0]) for log in logs)
    namespace, _, name = job.policy.name.partition("/")
    assert [each["name"] for each in (first, second)] == [f"replica-{n}.{name}.{namespace}.mesh" for n in range(2)]
    assert (first["from"], first["got"]) == (second["address"], "hello")
    assert [each["task"]["type"] for each in (first, second)] == ["chief", "ps"]
    for each in (first, second):
        assert (each["interfaces"], each["capabilities"], each["elsewhere"]) == (["lo"], 0, 101)
    assert logs[0].read_text().splitlines()[1:] == ['"cut"']
    told = [detail["refusals"] for event, detail in job.events if event == "mesh-ended"]
    assert all(each["unreachable"] >= 1 for each in told)
    assert any("revoked" in each or "gone" in each or "cut" in each for each in told)


FAILS = """
import os, signal, sys
if os.environ["RANK"] == "1":
    print("one fails", flush=True)
    sys.exit(3)
signal.pause()
"""


def test_one_replica_that_fails_ends_the_others(world, bubblewrap, monkeypatch, capfdbinary):
    monkeypatch.setenv("STRONGROOM_HOME", str(world.home.path))
    monkeypatch.chdir(world.directory)
    (world.directory / "fails.py").write_text(FAILS)
    assert main(["run", "--replicas", "2", "--", "python", "fails.py"]) == 3
    out, err = capfdbinary.readouterr()
    assert b"[1] one fails\n" in out
    assert b"replica 1 ended with exit status 3; ending replica 0" in err


def test_how_many_there_are_is_the_policys_word(world):
    digest = "sha256:" + "0" * 64
    content = {"role": "program", "owner": digest, "measurement": "0" * 96, "vendor_root": digest}
    lone = parse_policy(write_policy(name="a/b", program=None, vaults=(), **content))
    pair = parse_policy(write_policy(name="a/b", program=None, vaults=(), replicas=2, **content))
    check_count(pair, 1, 1)
    for policy, count, first, why in (
        (lone, 2, 0, r"has no table \[mesh\]"),
        (pair, 3, 0, "got 3, from number 0 on, and policy a/b has 2"),
        (pair, 2, 1, "got 2, from number 1 on, and policy a/b has 2"),
    ):
        with pytest.raises(UsageError, match=why):
            check_count(policy, count, first)


def test_a_port_that_is_taken_and_an_address_that_is_not_here(world):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--mesh-address: 127.0.0.1:{port}: address already in use\nhint"):
            listener_of(f"127.0.0.1:{port}", world.cas)
    with pytest.raises(UsageError, match=r"--mesh-address: 192.0.2.1: cannot assign requested address\nhint"):
        listener_of("192.0.2.1", world.cas)
    for wrong in ("127.0.0.1:high", "::1", "[::1", "[::1]7", "[]:7"):
        with pytest.raises(UsageError, match="wanted ADDRESS or ADDRESS:PORT"):
            listener_of(wrong, world.cas)
    listener, endpoint = listener_of("[::1]", world.cas)
    with listener:
        assert endpoint == f"[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--replicas", "0"], "--replicas: got 0"),
        (["--elastic"], "--elastic: is for several replicas"),
        (["--replicas", "2", "--tasks", "worker=1"], "--tasks: 1 of them, and --replicas is 2"),
        (["--replicas", "2", "--tasks", "boss=2"], "--tasks: got 'boss=2'"),
        (["--replicas", "2", "--mesh-address", "127.0.0.1:7"], "one port does not do for several replicas"),
    ],
)
def test_words_that_do_not_go_together(words, why, capsys):
    assert main(["run", *words, "--", "python", "-c", ""]) == 2
    assert why in capsys.readouterr().err
