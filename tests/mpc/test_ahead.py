"""What the dealer is ahead by waits in front of its channel."""

import socket
import threading

import numpy as np
import pytest

from strongroom.channel import Channel
from strongroom.errors import StrongroomError, UsageError
from strongroom.mpc import peer
from strongroom.mpc.ahead import Ahead
from strongroom.mpc.threads import run_local


def test_what_the_peer_said_is_heard_until_it_was_read_and_no_longer():
    """Or the dealer would wait for a second frame, which a peer that waits for the dealer never sends."""
    left, right = socket.socketpair()
    ahead = Ahead(channel := Channel(left, "P1", seconds=20), 20, "P1")
    data = np.arange(1 << 20, dtype=np.uint8)
    got = bytearray(len(data))

    def peer():
        view = memoryview(got)
        while view:
            view = view[right.recv_into(view) :]

    right.sendall(b"x")
    reader = threading.Thread(target=peer)
    reader.start()
    ahead.put([data])  # more than a socket takes at once, so that the thread sends, and hears
    ahead.drain()
    said = bytearray(1)
    channel.recv_into(said)
    assert not ahead.heard()
    ahead.put([np.empty(0, np.uint8)])
    assert not ahead.heard()
    right.sendall(b"y")
    assert ahead.heard()
    reader.join()
    assert said == b"x"
    assert bytes(got) == data.tobytes()
    ahead.end()
    channel.close()
    right.close()


def test_why_the_dealer_ends_comes_behind_all_that_it_dealt(monkeypatch):
    """It ends while what it dealt still waits; P1 takes that, and then reads why there is no more.

    However late P1 comes to it: there is no time after which the dealer would leave with a part of it.
    """
    monkeypatch.setattr(peer, "_LINGER", 0.0)
    ended, said = threading.Event(), []

    def program(party):
        with party.operation("deal"):
            words = np.zeros(1 << 20, np.uint64)
            if party.is_dealer:
                party.deal(words)
                party.peers[0].tell = lambda reason: ended.set()  # as the first thing of its end
                raise UsageError("dealer: it is enough")
            if not party.first:
                assert ended.wait(60)
                party.take(words)
                try:
                    party.take(words)
                except StrongroomError as error:
                    said.append(error.message)
                    raise

    with pytest.raises(UsageError, match="it is enough"):
        run_local(program)
    assert said == ["D: ended: dealer: it is enough"]
