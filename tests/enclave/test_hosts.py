"""Replicas on several machines, as docs/how-to/mesh.md starts them: they know each other by the CAS's address alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from strongroom.enclave.devices import Devices
from strongroom.errors import UnsupportedPlatformError
from tests.enclave.hosts import Host, Hosts, needs_namespaces

MARKER = "marker-51d2c07e-of-the-program"
PROGRAM = """
import os, pathlib, socket
rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
marker = pathlib.Path("/data/marker").read_text()
if rank == 0:
    got = []
    with socket.create_server(("", 7000)) as listener:
        listener.settimeout(300)
        for _ in range(1, count):
            peer, (address, _) = listener.accept()
            with peer, peer.makefile() as stream:
                got.append([address, stream.read()])
    pathlib.Path("/out/got").write_text(repr(sorted(got)))
else:
    with socket.create_connection((os.environ["MASTER_ADDR"], 7000)) as peer:
        peer.sendall(f"{marker} of {rank}".encode())
"""


class Machine:
    """A host with a home and a directory of its own."""

    def __init__(self, host: Host, directory: Path, home: Path) -> None:
        self.host, self.home, self.directory = host, home, directory
        directory.mkdir()

    def start(self, *words: str | Path, **options: object) -> subprocess.Popen[str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
        return subprocess.Popen(
            self.host.command(sys.executable, "-m", "strongroom", *words),
            cwd=self.directory,
            env=variables | {"STRONGROOM_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,  # type: ignore[call-overload]
        )

    def run(self, *words: str | Path) -> str:
        process = self.start(*words)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said


@contextmanager
def cas(machine: Machine) -> Iterator[list[str]]:
    """A CAS at the machine's address; the words that name it."""
    process = machine.start("cas", "start", "--host", machine.host.address, "--port", "8700")
    try:
        assert process.stdout is not None
        root = next(line.split()[1] for line in process.stdout if line.startswith("root "))
        yield ["--cas", f"https://{machine.host.address}:8700", "--cas-root", root]
    finally:
        process.terminate()
        process.communicate()


def write_policy(machine: Machine, words: list[str], more: str) -> None:
    """One of three replicas, measured and applied; replica 0 writes."""
    (machine.directory / "words").mkdir()
    (machine.directory / "words" / "marker").write_text(MARKER)
    (machine.directory / "job.py").write_text(PROGRAM)
    machine.run("seal", "words")
    machine.run("policy", "init", "--data", "words.vault", "--results", "out.vault", "--", "python", "job.py")
    policy = machine.directory / "policy.toml"
    text = policy.read_text().replace("# instances = 1", "instances = 3")
    text = text.replace('"read-write"', '"read-write"\nwriters = [0]')
    policy.write_text(f"{text}\n[mesh]\n{more}")
    machine.run("measure", "--policy", "policy.toml", "--write", *words[2:])
    machine.run("policy", "apply", "policy.toml", *words)
    for name, vault in (("data", "words.vault"), ("out", "out.vault")):
        machine.run("cas", "entrust", "my/job", name, vault, *words)


def clone(world_home: Path, home: Path) -> Path:
    """A home with the same simulated vendor, and what is known of this disk's files; without a key or a CAS."""
    shutil.copytree(world_home, home, ignore=shutil.ignore_patterns("cas", "heads", "owner.key", "mesh", "measured"))
    return home


def until(process: subprocess.Popen[str], what: str) -> str:
    """Wait for a line that says this; what was said before."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if what in line:
            break
    return said


def needs_wireguard() -> None:
    try:
        Devices.here(simulated=True)
    except UnsupportedPlatformError as error:
        pytest.skip(f"no WireGuard: {error.message}")


def result(said: str) -> dict[str, Any]:
    """The JSON object after what was said to a person."""
    found: dict[str, Any] = json.JSONDecoder().raw_decode(said[said.index("{\n") :])[0]
    return found


RUN = ["run", "--policy", "policy.toml", "--vault", "data=words.vault", "--vault", "out=out.vault"]


@pytest.mark.slow  # eleven verbs, and each machine looks at every file that it measures
@pytest.mark.parametrize("transport", ["tls", "wireguard"])
def test_three_hosts_join_by_the_address_of_the_cas(world, bubblewrap, tmp_path, transport):
    needs_namespaces()
    if transport == "wireguard":
        needs_wireguard()
    world.home.vendor()  # there is one by now, which they share
    seen = bytearray()
    with Hosts(3) as hosts:
        first, *others = (
            Machine(host, tmp_path / f"host-{n}", clone(world.home.path, tmp_path / f"home-{n}"))
            for n, host in enumerate(hosts.all)
        )
        hosts.listen(seen)
        with cas(first) as words:
            write_policy(first, words, f'transport = "{transport}"\n')
            for each in others:
                for name in ("policy.toml", "job.py"):
                    shutil.copy(first.directory / name, each.directory)
                for name in ("words.vault", "out.vault"):
                    shutil.copytree(first.directory / name, each.directory / name)
            runs = [first.start(*RUN, "--replica", "0", "--json", *words)]
            began = until(runs[0], "mesh: replica-0")  # who is no member yet refuses connections
            runs += [each.start(*RUN, "--replica", str(n), "--json", *words) for n, each in enumerate(others, 1)]
            said = [each.communicate()[0] for each in runs]
        assert [each.returncode for each in runs] == [0, 0, 0], [began, *said]
        first.run("vault", "cp", "out.vault:got", "got")
    ended = [next(e for e in result(text)["events"] if e["event"] == "mesh-ended") for text in said]
    got = [[each["address"], f"{MARKER} of {number}"] for number, each in enumerate(ended) if number]
    assert (first.directory / "got").read_text() == repr(got)
    # Of those that had not ended yet, each has told where it was reached.
    reached = {(member["name"], member["endpoint"].rpartition(":")[0]) for each in ended for member in each["members"]}
    assert reached <= {(each["name"], host.address) for each, host in zip(ended, hosts.all, strict=True)}
    assert reached
    assert seen and MARKER.encode() not in seen
    assert not (others[0].home / "owner.key").exists()  # only who writes a policy needs one
