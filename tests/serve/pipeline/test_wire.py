"""What a host counts on the wire between the enclaves of a pipeline: the same bytes for every request."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from contextlib import closing, suppress

import numpy as np
import pytest

from strongroom.channel import Identity, TlsChannel, accept, connect, expect_key
from strongroom.errors import StrongroomError
from strongroom.serve.pipeline import part
from strongroom.serve.pipeline.link import Link
from strongroom.serve.pipeline.model import PipelineModel
from tests.serve.pipeline.world import pieces, pipeline

pytest.importorskip("onnxruntime")

ROWS = 4


class Wire:
    """A pipeline of two parts over TLS, and a host between that carries and counts."""

    def __init__(self):
        ours, now = pipeline(batch=ROWS, delay=0), dt.datetime.now(dt.UTC)
        self.stages = [part.load(ours, number, each) for number, each in enumerate(pieces(batch=ROWS).models, 1)]
        self.front, self.back = Identity.fresh("front", now=now), Identity.fresh("part", now=now)
        self.counted = [[0, 0], [0, 0]]  # for each link, to the part and back
        self.threads: list[threading.Thread] = []
        self.pipeline = ours
        links = [Link(ours, number, self.dialler(number), tell=print) for number in (1, 2)]
        self.served = PipelineModel(ours, links)

    def dialler(self, number):
        def dial():
            (a, b), (c, d) = socket.socketpair(), socket.socketpair()
            counted = self.counted[number - 1]
            for work in (
                lambda: self.answer(number, d),
                lambda: self.carry(b, c, counted, 0),
                lambda: self.carry(c, b, counted, 1),
            ):
                self.threads.append(threading.Thread(target=work))
                self.threads[-1].start()
            stream = connect(a, expect=expect_key(self.back.key.public.fingerprint), identity=self.front)
            return TlsChannel(stream, f"part {number}", seconds=60)

        return dial

    def answer(self, number, sock):
        with suppress(StrongroomError):
            stream = accept(sock, expect=expect_key(self.front.key.public.fingerprint), identity=self.back)
            with closing(TlsChannel(stream, "front", seconds=60)) as channel:
                part.answer(self.pipeline, number, self.stages[number - 1], channel)

    @staticmethod
    def carry(source, target, counted, way):
        with source, target, suppress(OSError):
            while data := source.recv(1 << 16):
                counted[way] += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def bytes_of(self, x):
        """How many bytes a request puts on each link, each way."""
        before = [list(each) for each in self.counted]
        self.served.infer({"x": x})
        return [
            [now - then for now, then in zip(*both, strict=True)] for both in zip(self.counted, before, strict=True)
        ]

    def close(self):
        self.served.close()
        for thread in self.threads:
            thread.join()


def test_what_is_on_the_wire_does_not_depend_on_values_or_on_how_full_a_batch_is():
    wire = Wire()
    try:
        wire.bytes_of(np.zeros((1, 64), np.float32))  # with handshakes, and what the parts are
        rng = np.random.default_rng(5)
        requests = {
            "zeros": np.zeros((ROWS, 64), np.float32),
            "noise": rng.standard_normal((ROWS, 64)).astype(np.float32),
            "huge": np.full((ROWS, 64), 1e30, np.float32),
            "nothing that is a number": np.full((ROWS, 64), np.nan, np.float32),
            "one row": rng.standard_normal((1, 64)).astype(np.float32),
        }
        counted = {name: wire.bytes_of(x) for name, x in requests.items()}
    finally:
        wire.close()
    assert all(each == counted["zeros"] for each in counted.values()), counted
    for place, each in enumerate(wire.pipeline.parts):
        to, back = counted["zeros"][place]
        assert to > each.asks and back > each.answers  # whole frames, and what TLS adds
