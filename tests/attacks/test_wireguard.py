"""Attacks on a mesh that WireGuard carries: from the machine in between, and from a member on another."""

from __future__ import annotations

import socket

import pytest

from strongroom.shield.network.netlink import add_address
from tests.shield.network.test_wireguard import World, world  # noqa: F401

MARKER = b"marker-2b90d1ce-of-the-program"
_EVERY_PROTOCOL = 3  # linux/if_ether.h


def test_the_wire_shows_no_byte_of_the_program(world: World) -> None:  # noqa: F811
    seen = bytearray()
    with world.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL)) as wire:
        wire.bind(("lo", 0))
        one, other = world.members(2)
        listener = other.serve()
        connection = one.reach(other.address)
        accepted, _ = world.accept(listener)
        connection.sendall(MARKER)
        assert accepted.recv(len(MARKER), socket.MSG_WAITALL) == MARKER
        wire.setblocking(False)
        port = other.member.endpoint[1].to_bytes(2, "big")
        while True:
            try:
                frame = wire.recv(1 << 16)
            except BlockingIOError:
                break
            if frame[36:38] == port:  # Ethernet, IPv4, and the destination of UDP
                seen += frame
    assert len(seen) > 2 * len(MARKER)
    assert MARKER not in seen and MARKER[:8] not in seen


def test_a_member_cannot_speak_as_another(world: World) -> None:  # noqa: F811
    one, other, liar = world.members(3)
    listener = other.serve()
    liar.reach(other.address)
    assert world.accept(listener)[1] == str(liar.address)

    def claim() -> None:
        add_address(one.address)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            made.settimeout(1.0)
            made.bind((str(one.address), 0))
            made.connect((str(other.address), 7000))

    with pytest.raises(OSError, match="timed out"):
        liar.run(claim)
    one.reach(other.address)
    assert world.accept(listener)[1] == str(one.address)  # it was no third one before


def test_who_is_told_of_nowhere_reaches_nobody(world: World) -> None:  # noqa: F811
    one, other, stranger = world.members(3)
    for each in (one, other):
        each.knows(one if each is other else other)
    other.serve()
    with pytest.raises(OSError, match="timed out"):
        stranger.reach(other.address, seconds=1.0)
