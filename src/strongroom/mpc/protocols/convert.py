"""From XOR-shared bits to shares in the ring, and choosing by them."""

from __future__ import annotations

import numpy as np

from strongroom.mpc.bits import Planes, from_plane, plane_words, to_planes
from strongroom.mpc.party import P0, P1, Party
from strongroom.mpc.protocols.opening import chunks
from strongroom.mpc.ring import Words


def hide(party: Party, plane: Planes | None, count: int) -> Planes:
    """One round: open e = b xor rho, where rho is a random bit of which each server knows one half.

    Args:
        plane: XOR shares of b; nothing at the dealer.

    Returns:
        e at the servers, rho at the dealer; a plane in the arena.
    """
    out: Planes = party.arena.take(plane_words(count))
    with party.arena.scope() as arena:
        other = arena.take(len(out))
        if plane is None:
            party.stream(P0).fill(out)
            out ^= party.stream(P1).fill(other)
        else:
            party.dealt.fill(out)
            out ^= plane
            party.exchange([out], [other])
            out ^= other
    return out


def plane_to_ring(party: Party, plane: Planes | None, count: int) -> Words:
    """[b] = [i=0] e + (1 - 2e) [rho] of a plane of XOR shares, one round; nothing of use at the dealer."""
    hidden = hide(party, plane, count)
    out = np.empty(0 if party.is_dealer else count, np.uint64)
    for part in chunks(count):
        with party.arena.scope() as arena:
            size = part.stop - part.start
            bits = bits_of(hidden, part)
            if party.is_dealer:
                bits -= party.stream(P0).fill(arena.take(size))
                party.deal(bits)
                continue
            share = party.fill_dealt(out[part])
            share ^= np.negative(bits)
            share += bits  # minus the share, where e is 1
            if party.first:
                share += bits
    return out


def bits_of(plane: Planes, part: slice) -> Words:
    """The bits of a part of a plane's elements, one a word; the part begins at a multiple of 64."""
    here = plane[part.start // 64 : plane_words(part.stop)]
    return from_plane(here, part.stop - part.start).astype(np.uint64)


def bit_plane(party: Party, words: Words, bit: int) -> Planes:
    """One bit of each word, as a plane in the arena."""
    out: Planes = party.arena.take(plane_words(len(words)))
    for part in chunks(len(words)):
        with party.arena.scope():
            to_planes(
                words[part] >> np.uint64(bit), 1, party.arena, out[part.start // 64 : plane_words(part.stop)][None]
            )
    return out


def share_plane(party: Party, plane: Planes) -> None:
    """At the dealer: XOR-share a plane."""
    with party.arena.scope() as arena:
        out = party.stream(P0).fill(arena.take(len(plane)))
        out ^= plane
        party.deal(out)
