"""One end of a mesh: a proxy as in an enclave's boot, in a namespace of its own, and a program beside it.

`python -m benchmarks.mesh_end PROGRAM [ARGUMENT ...]`. It is told who it is on one line of standard input, says where
its proxy is reached, is told who the others are, and then runs the program in its namespace, with its own standard
input and output, until that ends.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import Any

from strongroom.channel import Identity
from strongroom.crypto import Certificate, SigningKey
from strongroom.shield.network.identity import Credentials
from strongroom.shield.network.members import Directory, Member
from strongroom.shield.network.namespace import enter_namespace, listen_inside
from strongroom.shield.network.proxy import Proxy
from strongroom.shield.network.rules import Rules


def main() -> int:
    host = ThreadPoolExecutor(1)
    host.submit(int).result()  # its thread stays outside, and gives sockets as the host does
    outside = socket.create_server(("127.0.0.1", 0))
    told = _line()
    print(json.dumps(outside.getsockname()), flush=True)
    others = Directory([Member.from_wire(each) for each in _line()])

    own = IPv4Address(told["address"])
    identity = Identity(
        SigningKey.from_pem(told["key"].encode()),
        tuple(Certificate.from_pem(each.encode()) for each in told["chain"]),
    )
    enter_namespace(own, told["name"])
    inside = listen_inside()
    rules = Rules(own, inside.getsockname()[1])
    proxy = Proxy(
        own,
        inside=inside,
        outside=outside,
        dial=lambda family: host.submit(socket.socket, family, socket.SOCK_STREAM).result(),
        credentials=Credentials(lambda: identity),
        ask=lambda: None,
    )
    proxy.update(others)
    rules.admit(others.by_address)
    proxy.start()
    try:
        return subprocess.run([sys.executable, *sys.argv[1:]], check=False).returncode
    finally:
        proxy.close()
        rules.close()
        host.shutdown()


def _line() -> Any:
    """One, and nothing of what the program is to read."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit("the end of input")
        line += byte
    return json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
