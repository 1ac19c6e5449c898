"""Ways from one program to another on one machine: plain, by the mesh, and by what that is compared with.

Each is a context manager; it gives the client of `enclave_programs/mesh_talk.py`, connected to its server.

- Whatever the machine's TCP does against congestion, all of them have the same plain kind of it (Reno): one that paces
  would cost the peers, on a loopback where there is none.
- stunnel's two processes and both programs share one namespace and its loopback. It is spared the redirection that it
  needs to be transparent, and the namespaces that the mesh's ends have.
- The plain way and WireGuard's are two namespaces and a pair of virtual interfaces, with the largest packets there are.
- Programs are found on PATH, or where STRONGROOM_BENCH_STUNNEL and STRONGROOM_BENCH_WIREGUARD_GO say.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from benchmarks.enclave_runs import PROGRAMS
from benchmarks.peers import UnavailableError
from strongroom.crypto import CertificateAuthority, SigningKey

_TALK = str(PROGRAMS / "mesh_talk.py")
_PORT, _ENTRY, _EXIT = 7000, 7100, 7101
_POLICY = "bench/mesh"
_LARGEST = 65_535
_WIREGUARD_MTU = 65_440  # what is left of it
_SECONDS = 20.0
_AGAIN = 0.02
_NEEDED = ("ip", "unshare", "nsenter")


class Client:
    """The program that asks. A context manager, which ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self._line() != "ready":
            raise RuntimeError("the program is not ready")

    def ask(self, *words: object) -> float:
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the program ended")
        return line.strip()


def stunnel_program() -> str:
    """Raises UnavailableError."""
    return _program("STRONGROOM_BENCH_STUNNEL", "stunnel4", "stunnel")


def wireguard_program() -> str:
    """Raises UnavailableError."""
    return _program("STRONGROOM_BENCH_WIREGUARD_GO", "wireguard-go")


def check() -> None:
    """Raises UnavailableError where no namespaces can be made here."""
    missing = [each for each in _NEEDED if shutil.which(each) is None]
    if os.name != "posix" or os.getuid() or missing:
        raise UnavailableError(f"namespaces: got {', '.join(missing) or 'a user'} missing, wanted root and {_NEEDED}")


@contextlib.contextmanager
def mesh() -> Iterator[Client]:
    """Two proxies, each in a process and a namespace of its own with its program."""
    now = dt.datetime.now(dt.UTC)
    authority = CertificateAuthority.create("CAS", now=now)
    keys = [SigningKey.generate() for _ in range(2)]
    addresses = ["10.0.0.1", "10.0.0.2"]
    with contextlib.ExitStack() as stack:
        ends = []
        for arguments in (["serve", str(_PORT)], ["ask", addresses[0], str(_PORT)]):
            command = [sys.executable, "-m", "benchmarks.mesh_end", _TALK, *arguments]
            ends.append(stack.enter_context(_process(command, talks=True)))
        endpoints = []
        for number, (end, key) in enumerate(zip(ends, keys, strict=True)):
            uri = f"spiffe://strongroom/{_POLICY}"
            leaf = authority.issue(key.public, _POLICY, now=now, lifetime=dt.timedelta(days=1), uris=[uri])
            chain = [each.pem().decode() for each in (leaf, authority.certificate)]
            told = {
                "address": addresses[number],
                "name": f"replica-{number}",
                "key": key.pem().decode(),
                "chain": chain,
            }
            endpoints.append("{}:{}".format(*json.loads(_told(end, told))))
        members = [
            {"policy": _POLICY, "number": n, "address": addresses[n], "key": keys[n].public.fingerprint, "endpoint": at}
            for n, at in enumerate(endpoints)
        ]
        for end, other in zip(ends, reversed(members), strict=True):
            _say(end, [other])
        yield Client(ends[1])


@contextlib.contextmanager
def veth() -> Iterator[Client]:
    """Nothing between them but two virtual interfaces."""
    with _pair() as (one, other), _served(one), _asking(other, "192.0.2.1", _PORT) as client:
        yield client


@contextlib.contextmanager
def stunnel() -> Iterator[Client]:
    """stunnel on both ends, TLS 1.3, each of which verifies the other's certificate."""
    program = stunnel_program()
    now = dt.datetime.now(dt.UTC)
    authority, key = CertificateAuthority.create("CAS", now=now), SigningKey.generate()
    leaf = authority.issue(key.public, "stunnel", now=now, lifetime=dt.timedelta(days=1), hosts=["localhost"])
    with _namespace() as place, tempfile.TemporaryDirectory(prefix="strongroom-stunnel-") as name:
        directory = Path(name)
        (directory / "key.pem").touch(0o600)
        (directory / "key.pem").write_bytes(key.pem())
        (directory / "own.pem").write_bytes(leaf.pem())
        (directory / "root.pem").write_bytes(authority.certificate.pem())
        _configure(directory / "server.conf", _EXIT, _PORT, client=False)
        _configure(directory / "client.conf", _ENTRY, _EXIT, client=True)
        with contextlib.ExitStack() as stack:
            for role in ("server", "client"):
                stack.enter_context(_process([*place, program, str(directory / f"{role}.conf")]))
            stack.enter_context(_served(place))
            yield stack.enter_context(_asking(place, "127.0.0.1", _ENTRY))


def _configure(path: Path, accept: int, connect: int, *, client: bool) -> None:
    directory = path.parent
    path.write_text(
        f"foreground = yes\npid =\ndebug = 3\nclient = {'yes' if client else 'no'}\n[bench]\n"
        f"accept = 127.0.0.1:{accept}\nconnect = 127.0.0.1:{connect}\nsslVersion = TLSv1.3\n"
        f"key = {directory}/key.pem\ncert = {directory}/own.pem\nCAfile = {directory}/root.pem\nverifyChain = yes\n"
        "socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
    )


@contextlib.contextmanager
def wireguard() -> Iterator[Client]:
    """wireguard-go on both ends."""
    program = wireguard_program()
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(_pair())
        for number, place in enumerate(places):
            name, own, other = f"strongroom{os.getpid()}{number}"[-15:], keys[number], keys[1 - number]
            stack.enter_context(_process([*place, program, "-f", name]))
            _tell_wireguard(
                name,
                private_key=own.private_bytes_raw().hex(),
                listen_port=str(_PORT),
                public_key=other.public_key().public_bytes_raw().hex(),
                endpoint=f"192.0.2.{2 - number}:{_PORT}",
                allowed_ip="198.51.100.0/24",
            )
            _run(*place, "ip", "address", "add", f"198.51.100.{number + 1}/24", "dev", name)
            _run(*place, "ip", "link", "set", name, "mtu", str(_WIREGUARD_MTU), "up")
        stack.enter_context(_served(places[0]))
        yield stack.enter_context(_asking(places[1], "198.51.100.1", _PORT))


def _tell_wireguard(name: str, **settings: str) -> None:
    """By the protocol of its socket: https://www.wireguard.com/xplatform/."""
    path = Path(f"/var/run/wireguard/{name}.sock")
    ends = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > ends:
            raise RuntimeError("wireguard-go does not answer")
        time.sleep(_AGAIN)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_SECONDS)
        sock.connect(str(path))
        sock.sendall("\n".join(["set=1", *[f"{key}={value}" for key, value in settings.items()], "", ""]).encode())
        if (said := sock.recv(1 << 10)) != b"errno=0\n\n":
            raise RuntimeError(f"wireguard-go: {said.decode().strip()}")


# Processes and namespaces.

_Place = Sequence[str]
"""What a command begins with that runs in a namespace."""


@contextlib.contextmanager
def _process(command: Sequence[str], *, talks: bool = False) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE if talks else None
    quiet = None if talks else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe or quiet, stderr=quiet, text=True) as process:
        try:
            yield process
        finally:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()  # the end of its input is the end of the program, and of what carries it
            else:
                process.terminate()
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def _namespace() -> Iterator[_Place]:
    with _process(["unshare", "--net", "sh", "-c", "echo made; exec cat"], talks=True) as holder:
        assert holder.stdout is not None  # a pipe
        holder.stdout.readline()
        place = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
        _run(*place, "sh", "-c", "ip link set lo up; echo reno > /proc/sys/net/ipv4/tcp_congestion_control")
        yield place


@contextlib.contextmanager
def _pair() -> Iterator[tuple[_Place, _Place]]:
    """Two namespaces that reach each other: 192.0.2.1 and 192.0.2.2 (RFC 5737)."""
    with _namespace() as one, _namespace() as other:
        processes = [place[1].split("/")[2] for place in (one, other)]
        ends = [["netns", process] for process in processes]
        _run(*one, "ip", "link", "add", "bench", *ends[0], "type", "veth", "peer", "name", "bench", *ends[1])
        for number, place in enumerate((one, other)):
            _run(*place, "ip", "address", "add", f"192.0.2.{number + 1}/24", "dev", "bench")
            _run(*place, "ip", "link", "set", "bench", "mtu", str(_LARGEST), "up")
        yield one, other


def _served(place: _Place) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return _process([*place, sys.executable, _TALK, "serve", str(_PORT)], talks=True)


@contextlib.contextmanager
def _asking(place: _Place, host: str, port: int) -> Iterator[Client]:
    with _process([*place, sys.executable, _TALK, "ask", host, str(port)], talks=True) as process:
        yield Client(process)


def _told(process: subprocess.Popen[str], what: object) -> str:
    _say(process, what)
    assert process.stdout is not None  # a pipe
    return process.stdout.readline()


def _say(process: subprocess.Popen[str], what: object) -> None:
    assert process.stdin is not None  # a pipe
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _program(variable: str, *names: str) -> str:
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if found is None or not os.access(found, os.X_OK):
        raise UnavailableError(f"{names[0]}: not found on PATH, nor by {variable}")
    return found
