"""The roll of a cluster's nodes: who is taken in, what is refused, and that nothing waits without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from strongroom.cluster.roll import Head, Member, receive, send
from strongroom.errors import ChannelError, EnclaveError, PortInUseError

HERE, TOKEN = "127.0.0.1", "t" * 64


def free_port() -> int:
    with socket.create_server((HERE, 0)) as taken:
        return int(taken.getsockname()[1])


class Aside:
    """A call on another thread, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: Any = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome = call()
        except Exception as error:
            self._outcome = error

    def outcome(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._outcome


@pytest.fixture
def pair() -> Iterator[tuple[Head, Member]]:
    """A head with one other node, which has the token."""
    port = free_port()
    with Head(HERE, port, 2) as head:
        answer = Aside(lambda: Member.answer(HERE, port, 1, patience=20))
        head.call(TOKEN, patience=20)
        with answer.outcome() as member:
            yield head, member


def test_a_node_gets_the_token_and_the_end(pair: tuple[Head, Member]) -> None:
    head, member = pair
    assert member.token == TOKEN
    head.check()
    assert member.ended(0.01) is None
    head.end(7)
    assert member.ended(10) == 7


def test_a_node_whose_ray_fails_ends_the_cluster_with_its_reason(pair: tuple[Head, Member]) -> None:
    head, member = pair
    member.fail("ray: ended with status 1")
    member.__exit__()
    with pytest.raises(EnclaveError, match="node 1: ray: ended with status 1"):
        head.check()


def test_a_node_that_leaves_is_told_of_once(pair: tuple[Head, Member]) -> None:
    head, member = pair
    member.__exit__()
    told: list[str] = []
    head.check(told.append)
    head.check(told.append)
    head.end(0)
    assert told == ["ray: node 1 is gone"]


def test_a_head_that_is_gone_is_an_error(pair: tuple[Head, Member]) -> None:
    head, member = pair
    head.__exit__()
    with pytest.raises(EnclaveError, match="the head is gone"):
        member.ended(10)


def test_no_head_and_no_nodes_are_errors_in_time() -> None:
    port = free_port()
    with pytest.raises(EnclaveError, match=f"no head at {HERE}:{port} within 0.3 s: connection refused") as refused:
        Member.answer(HERE, port, 1, patience=0.3)
    assert "mesh status" in str(refused.value.hint)
    with Head(HERE, port, 4) as head, pytest.raises(EnclaveError, match=r"no word of node 1, 2, 3 within 0\.1 s"):
        head.call(TOKEN, patience=0.1)


def test_a_head_that_takes_connections_and_says_nothing_is_an_error_in_time() -> None:
    with (
        socket.create_server((HERE, 0)) as silent,
        pytest.raises(EnclaveError, match=r"within 0\.3 s: timed out"),
    ):
        Member.answer(HERE, silent.getsockname()[1], 1, patience=0.3)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server((HERE, 0)) as taken, pytest.raises(PortInUseError, match="in use"):
        Head(HERE, taken.getsockname()[1], 2)


@pytest.mark.parametrize("number", [0, 2, -1, True, "1", None])
def test_numbers_that_no_node_has_are_refused(number: object) -> None:
    port = free_port()
    with Head(HERE, port, 2) as head, socket.create_connection((HERE, port)) as stranger:
        send(stranger, {"node": number})
        with pytest.raises(EnclaveError, match="no word of node 1"):
            head.call(TOKEN, patience=0.2)
        assert "refused" in receive(stranger)


def test_a_second_node_of_one_number_is_refused() -> None:
    port = free_port()
    with Head(HERE, port, 3) as head:
        call = Aside(lambda: head.call(TOKEN, patience=20))
        with Member.answer(HERE, port, 1, patience=20):
            with pytest.raises(EnclaveError, match="refused node 1"):
                Member.answer(HERE, port, 1, patience=20)
            with Member.answer(HERE, port, 2, patience=20):
                assert call.outcome() is None


@pytest.mark.parametrize("line", [b"", b"no json\n", b"[]\n", b"[" * 4000 + b"\n", b"x" * 5000, b"\xff\n"])
def test_what_is_no_line_of_the_roll_is_refused(line: bytes) -> None:
    one, other = socket.socketpair()
    with one, other:
        other.sendall(line)
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(ChannelError):
            receive(one)
