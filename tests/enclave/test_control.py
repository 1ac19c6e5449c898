"""The wire between an enclave and its host, when the host answers whatever it likes."""

from __future__ import annotations

import os
import threading

import pytest

from strongroom.enclave.control import Control, _receive, _send, socket_pair
from strongroom.errors import EnclaveError


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
