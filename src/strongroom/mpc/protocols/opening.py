"""What truncation and comparison begin with: x + r, open to the servers, where only the dealer knows r."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from strongroom.mpc.bits import pack, packed_size, unpack
from strongroom.mpc.party import P0, P1, Party
from strongroom.mpc.ring import WIDTH, Words

CHUNK = 1 << 16  # elements worked on at once: their tables stay in the processor's cache; a multiple of 64


def chunks(count: int) -> Iterator[slice]:
    """Slices of at most CHUNK elements, in the order in which every party draws and sends."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def keep(words: Words, width: int) -> None:
    """Reduce mod 2^width, in place."""
    if width < WIDTH:
        words &= np.uint64((1 << width) - 1)


def open_sum(party: Party, x: Words, width: int, offset: int = 0) -> Words:
    """One round: c = (x + offset + r) mod 2^width at the servers, r at the dealer; flat, in the arena.

    Each server reduces its sum before it sends, and sends `width` bits of each element.
    """
    count = x.size
    words = party.arena.take(count)
    if party.is_dealer:
        with party.arena.scope():
            other = party.arena.take(min(count, CHUNK))
            for part in chunks(count):
                r = party.stream(P0).fill(words[part])
                r += party.stream(P1).fill(other[: len(r)])
                keep(r, width)
        return words
    x = x.reshape(-1)
    if party.meter is not None:
        party.meter.opening(x, width, offset)
    sizes = [packed_size(part.stop - part.start, width) for part in chunks(count)]
    places = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    with party.arena.scope():
        ours = party.arena.take(int(places[-1]), np.uint8)
        theirs = party.arena.take(int(places[-1]), np.uint8)
        for i, part in enumerate(chunks(count)):
            c = party.dealt.fill(words[part])
            c += x[part]
            if offset and party.first:
                c += np.uint64(offset)
            keep(c, width)
            pack(c, width, ours[places[i] : places[i + 1]])
        party.exchange([ours], [theirs])
        other = party.arena.take(min(count, CHUNK))
        for i, part in enumerate(chunks(count)):
            c = words[part]
            unpack(theirs[places[i] : places[i + 1]], width, other[: len(c)])
            c += other[: len(c)]
            keep(c, width)
    return words
