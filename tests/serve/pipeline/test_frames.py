"""Tensors in frames: what goes in comes out, sizes tell nothing of values, and what is no frame is refused."""

from __future__ import annotations

import socket
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from strongroom.channel import Channel
from strongroom.errors import ChannelError, FormatError, ServeError
from strongroom.serve.pipeline import frames
from strongroom.serve.pipeline.frames import Frame, read_tensors, read_text, receive, tensors_frame
from strongroom.serve.tensors import DATATYPES

SIZE = 4096


def joined(pieces):
    return b"".join(bytes(piece) for piece in pieces)


def received(raw: bytes, size: int = SIZE) -> Frame:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        return receive(Channel(ours, "peer", seconds=5), size)


tensors = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda kind: arrays.arrays(DATATYPES[kind], arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(st.lists(tensors, max_size=4), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_what_goes_in_comes_out(given_, number):
    raw = joined(tensors_frame(number, given_, SIZE))
    assert len(raw) % SIZE == 32
    frame = received(raw)
    found = read_tensors(frame, [str(place) for place in range(len(given_))])
    assert frame.number == number
    for got, wanted in zip(found.values(), given_, strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


def test_its_size_is_that_of_the_declaration_whatever_is_in_it():
    """The same for other values, for a smaller batch, for an error; a larger batch takes whole multiples."""
    declared = frames.size_of(1, 4 * 8 * 100)
    values = [np.zeros((8, 100), np.float32), np.full((8, 100), np.nan, np.float32), np.ones((1, 100), np.float32)]
    sizes = {len(joined(tensors_frame(1, [each], declared))) for each in values}
    sizes.add(len(joined(frames.error_frame(1, ServeError("no"), declared))))
    assert sizes == {32 + declared}
    assert len(joined(tensors_frame(1, [np.zeros((80, 100), np.float32)], declared))) % declared == 32


@given(st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_is_refused_or_harmless(place, value):
    """TLS keeps the host from it; a peer could."""
    raw = bytearray(joined(tensors_frame(7, [np.arange(6, dtype=np.int64).reshape(2, 3)], SIZE)))
    raw[place] = value
    with suppress(FormatError, ChannelError):
        read_tensors(received(bytes(raw)), ["x"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.__setitem__(slice(0, 4), b"SRF2"), "is none"),
        (lambda raw: raw.__setitem__(slice(24, 32), (1 << 40).to_bytes(8, "little")), "wanted a multiple"),
        (lambda raw: raw.__setitem__(slice(24, 32), bytes(8)), "wanted a multiple"),
        (lambda raw: raw.__setitem__(slice(16, 24), (SIZE + 1).to_bytes(8, "little")), "wanted a multiple"),
        (lambda raw: raw.__setitem__(slice(6, 8), b"\2\0"), "got 2 tensors"),
        (lambda raw: raw.__setitem__(32, 33), "rank 33"),
        (lambda raw: raw.__setitem__(slice(40, 48), (1 << 62).to_bytes(8, "little")), "does not fit"),
        (lambda raw: raw.__setitem__(slice(40, 48), (1).to_bytes(8, "little")), "wanted"),
        (lambda raw: raw.__setitem__(slice(16, 24), (20).to_bytes(8, "little")), "type"),
    ],
)
def test_what_is_no_frame(change, words):
    raw = bytearray(joined(tensors_frame(1, [np.zeros((3, 40))], SIZE)))
    change(raw)
    with pytest.raises(FormatError, match=words):
        read_tensors(received(bytes(raw)), ["x"])


def test_a_frame_longer_than_the_limit_is_not_made(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME", 2 * SIZE)
    with pytest.raises(FormatError, match="the limit is 8192"):
        tensors_frame(1, [np.zeros(4 * SIZE, np.uint8)], SIZE)


def test_a_text_that_is_none():
    with pytest.raises(FormatError, match="no JSON object"):
        read_text(Frame(frames.ERROR, 1, 0, memoryview(b"[]")))
