"""A party of SecretFlow SPU, run by the interpreter of its own environment. Its variant is the protocol.

- ``semi2k``: two parties; the first makes the correlated randomness (its default, `TrustedFirstParty`), so that there
  is no dealer to pay for. ``aby3``: three parties.
- A ring of 64 bits with 18 fractional ones, and everything else as it comes; links of brpc over TCP.
- A program is traced by JAX and compiled by SPU before the first run. The first run counts bytes and messages.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spu
from jax import lax
from spu import libspu
from spu.utils import frontend

from benchmarks.mpc_peers import workloads as w
from benchmarks.mpc_peers.serve import Arguments, Talk, arguments

_PROTOCOLS = {"semi2k": (libspu.ProtocolKind.SEMI2K, 2), "aby3": (libspu.ProtocolKind.ABY3, 3)}
_SENT = re.compile(r"total send bytes (\d+), recv bytes \d+, send actions (\d+)")


class Member:
    """One party."""

    def __init__(self, given: Arguments) -> None:
        protocol, self._parties = _PROTOCOLS[given.variant]
        self._rank, self._row = given.rank, given.row
        self._log = given.directory / f"{given.rank}.log"
        self._link = _link(given, self._parties)
        self._config = libspu.RuntimeConfig(protocol=protocol, field=libspu.FieldType.FM64, fxp_fraction_bits=18)
        self._io = spu.Io(self._parties, self._config)
        self._runtime = spu.Runtime(self._link, self._config)
        self._first = True
        self._sent: int | None = None
        self._rounds: int | None = None
        layers = given.row.layers()
        weights = [np.asarray(value, np.float32) for value in _weights(layers)]
        inputs = [np.asarray(value, np.float32) for value in given.row.inputs()]
        self._inputs = inputs
        names = [f"x{i}" for i in range(len(inputs))] + [f"w{i}" for i in range(len(weights))]

        def program(*values: Any) -> Any:
            return _compute(given.row, layers, values[: len(inputs)], iter(values[len(inputs) :]))

        self._executable, self._output = frontend.compile(
            frontend.Kind.JAX,
            program,
            [*inputs, *weights],
            {},
            names,
            [libspu.Visibility.VIS_SECRET] * len(names),
            lambda outputs: [f"y{i}" for i in range(len(outputs))],
        )
        for name, value in zip(names[len(inputs) :], weights, strict=True):
            self._set(self._runtime, name, value)
        self._weights = dict(zip(names[len(inputs) :], weights, strict=True))

    def _set(self, runtime: Any, name: str, value: Any) -> None:
        """Give each party its share, which the first makes."""
        if self._rank == 0:
            own, *others = self._io.make_shares(value, libspu.Visibility.VIS_SECRET)
            for rank, share in enumerate(others, 1):
                self._send(rank, share)
        else:
            own = self._receive(0)
        runtime.set_var(name, own)

    def _send(self, rank: int, share: Any) -> None:
        for part in (share.meta, struct.pack("<I", len(share.share_chunks)), *share.share_chunks):
            self._link.send(rank, part)

    def _receive(self, rank: int) -> Any:
        share = libspu.Share()
        share.meta = self._link.recv(rank)
        (count,) = struct.unpack("<I", self._link.recv(rank))
        share.share_chunks = [self._link.recv(rank) for _ in range(count)]
        return share

    def run(self) -> w.Turn:
        runtime = self._profiling() if self._first else self._runtime
        for i, value in enumerate(self._inputs):
            self._set(runtime, f"x{i}", value)
        self._link.barrier()
        began, processor = time.monotonic(), time.process_time()
        runtime.run(self._executable)
        ended, spent = time.monotonic(), time.process_time() - processor
        self._result = runtime.get_var("y0")
        if self._first:
            self._first = False
            found = _SENT.findall(self._log.read_text(errors="replace"))
            if found:
                self._sent, self._rounds = map(int, found[-1])
        return w.Turn(began, ended, spent, self._sent, self._rounds)

    def _profiling(self) -> Any:
        """A runtime that says what it sent."""
        config = libspu.RuntimeConfig(self._config)
        config.enable_pphlo_profile = True
        runtime = spu.Runtime(self._link, config)
        for name, value in self._weights.items():
            self._set(runtime, name, value)
        return runtime

    def opened(self) -> w.Floats | None:
        if self._rank:
            self._send(0, self._result)
            return None
        shares = [self._result, *(self._receive(rank) for rank in range(1, self._parties))]
        opened: w.Floats = np.asarray(self._io.reconstruct(shares), np.float64)
        return opened


def _link(given: Arguments, parties: int) -> Any:
    description = libspu.link.Desc()
    for rank in range(parties):
        description.add_party(f"party {rank}", f"{given.host[rank]}:{given.port[rank]}")
    description.recv_timeout_ms = 600_000
    description.http_timeout_ms = 600_000
    return libspu.link.create_brpc(description, given.rank)


def _weights(layers: Sequence[w.Layer]) -> list[w.Floats]:
    """In the order in which `_through` takes them."""
    found: list[w.Floats] = []
    for layer in layers:
        if isinstance(layer, w.Convolution | w.Dense):
            found += [layer.weight, layer.bias]
        elif isinstance(layer, w.Residual):
            found += _weights(layer.body) + _weights(layer.shortcut)
    return found


def _compute(row: w.Row, layers: Sequence[w.Layer], inputs: Sequence[Any], weights: Iterator[Any]) -> Any:
    x = inputs[0]
    match row.name:
        case "W1":
            return x @ inputs[1]
        case "W2":
            return jax.nn.relu(x)
        case "softmax":
            return jax.nn.softmax(x, -1)
        case "exp":
            return jnp.exp(x)
        case "GELU":
            return jax.nn.gelu(x, approximate=False)
    return _through(layers, x, weights)


def _through(layers: Sequence[w.Layer], x: Any, weights: Iterator[Any]) -> Any:
    for layer in layers:
        match layer:
            case w.Residual():
                body = _through(layer.body, x, weights)
                x = body + _through(layer.shortcut, x, weights)
            case w.Convolution():
                padding = [(layer.padding, layer.padding)] * 2
                x = lax.conv_general_dilated(x, next(weights), (layer.stride,) * 2, padding)
                x = x + next(weights).reshape(-1, 1, 1)
            case w.Dense():
                x = x @ next(weights) + next(weights)
            case w.Relu():
                x = jax.nn.relu(x)
            case w.MaxPool():
                window, strides = (1, 1, layer.size, layer.size), (1, 1, layer.stride, layer.stride)
                padding = [(0, 0), (0, 0), *[(layer.padding, layer.padding)] * 2]
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
            case w.Average():
                x = x.mean((2, 3))
            case w.Flatten():
                x = x.reshape(x.shape[0], -1)
    return x


def main() -> None:
    talk, given = Talk(), arguments()
    talk.serve(Member(given), given.directory)


if __name__ == "__main__":
    main()
