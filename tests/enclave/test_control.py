"""The wire between an enclave and its host, when the host answers whatever it likes."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from strongroom.enclave.control import Control, HostSide, _receive, _send, socket_pair
from strongroom.enclave.program import tellable
from strongroom.errors import EnclaveError


def test_a_report_that_is_too_long_is_shortened():
    host, theirs = socket_pair()
    control = Control(theirs.detach())
    names = ["\U0001f600" * 255] * 5000
    control.event("sealed", files=names, count=len(names), lineage=0)
    control.event("notice", text="\U0001f600" * 300_000)
    control.event("notice", text="all of it")
    sealed, long, short = (_receive(host)[0] for _ in range(3))
    assert (sealed["files"], sealed["count"]) == (names[:50], 5000)
    assert (long["text"], short["text"]) == ("\U0001f600" * 4000 + "...", "all of it")
    control.close()
    host.close()


@pytest.mark.parametrize("name", ["目" * 200, "\\" * 400, '"' * 400, "\x01" * 100, "x" * 400, "x" * 401])
def test_a_hint_fits_whatever_names_a_program_makes(name):
    host, theirs = socket_pair()
    for some in tellable([name] * 1000):
        _send(theirs, {"op": "event", "event": "imported", "sources": some})
        assert _receive(host)[0]["sources"] == some
    assert [*tellable(["/a.py"] * 301)] == [["/a.py"] * 300, ["/a.py"]]
    for end in (host, theirs):
        end.close()


def test_sockets_of_a_mesh_wait_for_nothing_else_that_the_host_does():
    ours, theirs = socket_pair()
    dialled, go_on = threading.Event(), threading.Event()

    def dial():
        dialled.set()
        go_on.wait(20)
        return socket.socket()

    host = HostSide(ours, b"", {}, None, {"cas": dial}, None, lambda *_: None, meshed=True)
    host.start()
    control = Control(theirs.detach())
    sockets = control.sockets()
    with ThreadPoolExecutor(1) as threads:
        dialling = threads.submit(control.ask_socket, "dial", peer="cas")
        assert dialled.wait(20)
        for family in (socket.AF_INET, socket.AF_INET6):
            with sockets.ask_socket("socket", family=int(family)) as given:
                assert given.family == family
        go_on.set()
        dialling.result(20).close()
    with pytest.raises(EnclaveError, match="nothing to answer"):
        control.sockets()
    sockets.close()
    control.close()
    host.join()


def no_socket(host):
    nothing = os.open(os.devnull, os.O_RDONLY)
    _send(host, {}, nothing)
    os.close(nothing)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (no_socket, "sent something else than a socket for dial"),
        (lambda host: _send(host, {}), "sent no socket for dial"),
        (lambda host: host.sendmsg([b"[" * 200_000]), "recursion"),
        (lambda host: host.sendmsg([b"{"]), "host: "),
        (lambda host: host.close(), "host: has gone away"),
    ],
)
def test_what_a_host_answers_is_a_message_or_an_error(answer, message):
    host, theirs = socket_pair()
    control = Control(theirs.detach())

    def serve():
        _receive(host)
        answer(host)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(EnclaveError, match=message):
        control.ask_socket("dial", peer="cas")
    thread.join()
    control.close()
    host.close()


def test_a_device_goes_once_to_the_network_that_comes_along_and_to_none_that_is_only_named():
    ours, theirs = socket_pair()
    taken = []

    def give(descriptor):
        taken.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        return "sr0", None

    host = HostSide(ours, b"", {}, None, {}, None, lambda *_: None, device=give)
    host.start()
    control = Control(theirs.detach())
    with pytest.raises(EnclaveError, match="nothing to answer to 'device'"):
        control.ask("device", descriptor=0)
    with Path(os.devnull).open() as namespace:
        assert control.ask_device(namespace.fileno()) == ("sr0", None)
        with pytest.raises(EnclaveError, match="nothing to answer to 'device'"):
            control.ask_device(namespace.fileno())
    assert taken == [os.devnull]
    control.close()
    host.join()
