"""The roll: how a cluster's head and its other nodes find each other, agree on a token, and end together.

Each node holds one connection to the head, of lines of JSON:

1. node: ``{"node": 1}``, its number. Two of one number, or one that does not exist, are refused.
2. head: ``{"token": "..."}``, Ray's, which the head has drawn; the mesh has shown to either who the other is.
3. node: ``{"failed": "why"}``, if Ray does not start there; the head ends the cluster.
4. head: ``{"end": 0}``, the job's exit status, with which every node ends.

All of it is bounded in time but the wait for the end, during which a connection that closes says that its end is gone.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from strongroom.errors import ChannelError, EnclaveError, PortInUseError

_LONGEST = 4096
_BETWEEN_TRIES = 0.2
_STILL = "it does not run, or the mesh lets neither reach the other: `strongroom mesh status` tells of refusals"


class Head:
    """The head's end. Listens from the start; a context."""

    def __init__(self, address: str, port: int, nodes: int) -> None:
        """
        Args:
            nodes: how many there are, with the head.

        Raises:
            PortInUseError: somebody else listens there.
        """
        self._wanted = nodes - 1
        self._nodes: dict[int, socket.socket] = {}
        self._left: dict[int, str] = {}
        try:
            self._listener = socket.create_server((address, port), backlog=nodes)
        except OSError as error:
            raise PortInUseError(f"ray: port {port} of {address}: {(error.strerror or str(error)).lower()}") from None

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for connection in self._nodes.values():
            connection.close()

    def call(self, token: str, *, patience: float) -> None:
        """Wait until every node has answered, and tell each the token.

        Raises:
            EnclaveError: not all have in time.
        """
        end = time.monotonic() + patience
        while len(self._nodes) < self._wanted:
            left = end - time.monotonic()
            missing = sorted(set(range(1, self._wanted + 1)) - set(self._nodes))
            if left <= 0:
                listed = ", ".join(map(str, missing))
                raise EnclaveError(f"ray: no word of node {listed} within {patience:g} s", hint=_STILL)
            self._listener.settimeout(left)
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._enrol(connection, token, min(left, 10))

    def _enrol(self, connection: socket.socket, token: str, patience: float) -> None:
        """Take one in, or close the connection: what speaks otherwise is no node of this cluster."""
        connection.settimeout(patience)
        try:
            number = receive(connection).get("node")
            if type(number) is not int or not 1 <= number <= self._wanted or number in self._nodes:
                send(connection, {"refused": f"there is no node {number} to come"})
                raise ChannelError("ray: node: out of range, or there already")
            send(connection, {"token": token})
        except (ChannelError, OSError):
            connection.close()
            return
        self._nodes[number] = connection

    def check(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """See who has left since. Raises EnclaveError if Ray did not start at one of them."""
        with selectors.DefaultSelector() as ready:
            for number, connection in self._nodes.items():
                if number not in self._left:
                    ready.register(connection, selectors.EVENT_READ, number)
            for key, _ in ready.select(0) if ready.get_map() else ():
                number = int(key.data)
                try:
                    said = receive(self._nodes[number])
                except (ChannelError, OSError):
                    self._left[number] = "its connection ended"
                    tell(f"ray: node {number} is gone")
                    continue
                raise EnclaveError(f"ray: node {number}: {str(said.get('failed', 'failed'))[:300]}")

    def end(self, status: int) -> None:
        """Tell those that are still there that the job has ended."""
        for number, connection in self._nodes.items():
            if number not in self._left:
                try:
                    send(connection, {"end": status})
                except OSError:
                    continue


class Member:
    """Another node's end of its connection to the head; a context."""

    def __init__(self, connection: socket.socket, token: str) -> None:
        self._connection = connection
        self.token = token

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @classmethod
    def answer(cls, address: str, port: int, number: int, *, patience: float) -> Member:
        """Reach the head, however often it takes.

        Raises:
            EnclaveError: it could not be reached in time, or refused this node.
        """
        end = time.monotonic() + patience
        why = "no answer"
        while (left := end - time.monotonic()) > 0:
            try:
                connection = socket.create_connection((address, port), timeout=left)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
            else:
                try:
                    connection.settimeout(max(0.1, end - time.monotonic()))
                    send(connection, {"node": number})
                    said = receive(connection)
                except (ChannelError, OSError) as error:
                    why = str(error).lower()
                    connection.close()
                else:
                    token = said.get("token")
                    if isinstance(token, str):
                        return cls(connection, token)
                    connection.close()
                    raise EnclaveError(f"ray: the head refused node {number}: {str(said.get('refused'))[:200]}")
            time.sleep(min(_BETWEEN_TRIES, max(0.0, end - time.monotonic())))
        raise EnclaveError(f"ray: no head at {address}:{port} within {patience:g} s: {why}", hint=_STILL)

    def fail(self, why: str) -> None:
        """Tell the head that Ray did not start here."""
        send(self._connection, {"failed": why})

    def ended(self, patience: float) -> int | None:
        """The job's exit status, None while it runs.

        Raises:
            EnclaveError: the head is gone.
        """
        self._connection.settimeout(patience)
        try:
            said = receive(self._connection)
        except TimeoutError:
            return None
        except (ChannelError, OSError):
            raise EnclaveError("ray: the head is gone") from None
        status = said.get("end")
        if type(status) is not int:
            raise EnclaveError("ray: the head said nothing that a node knows")
        return status


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, Any]:
    """One line of the other end's.

    Raises:
        ChannelError: it is none, or there is no other end any more.
        TimeoutError: there was none in time.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) > _LONGEST:
            raise ChannelError(f"ray: a line of more than {_LONGEST} bytes")
        byte = connection.recv(1)
        if not byte:
            raise ChannelError("ray: the connection has ended")
        line += byte
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ChannelError("ray: a line that is no JSON") from None
    if not isinstance(message, dict):
        raise ChannelError("ray: a line that is no object")
    return message
