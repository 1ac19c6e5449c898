"""A party of CrypTen 0.4.1, run by the interpreter of its own environment. Its variant says who makes the triples.

- ``tfp``, as it comes: the first of two parties. ``ttp``: a third party, which is rank 2.
- 16 bits of precision, and everything else as it comes; gloo over TCP; one thread for arithmetic in each process.
- It has no GELU: it is made of its error function.
"""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.mpc_peers import workloads as w
from benchmarks.mpc_peers.serve import Arguments, Talk, arguments


def load() -> Any:
    """CrypTen beside a new torch. Its converter of ONNX models, of which nothing is used here, needs an old one."""
    converter = types.ModuleType("crypten.nn.onnx_converter")
    for name in ("from_onnx", "from_pytorch", "from_tensorflow"):
        setattr(converter, name, None)
    converter.TF_AND_TF2ONNX = False  # type: ignore[attr-defined]
    sys.modules[converter.__name__] = converter
    import crypten

    return crypten


class Server:
    """P0 or P1."""

    def __init__(self, crypten: Any, given: Arguments) -> None:
        self._crypten, self._row = crypten, given.row
        self._layers = self._share(given.row.layers())
        self._result: Any = None
        self._counts: tuple[int, int] | None = None

    def _secret(self, value: w.Floats) -> Any:
        return self._crypten.cryptensor(torch.from_numpy(value), src=0)

    def _share(self, layers: Sequence[w.Layer]) -> list[tuple[w.Layer, Any]]:
        """Each layer with its weights on shares; a block with its two paths."""
        shared: list[tuple[w.Layer, Any]] = []
        for layer in layers:
            if isinstance(layer, w.Residual):
                shared.append((layer, (self._share(layer.body), self._share(layer.shortcut))))
            elif isinstance(layer, w.Convolution):
                bias = layer.bias.reshape(-1, 1, 1)
                shared.append((layer, (self._secret(layer.weight), self._secret(bias))))
            elif isinstance(layer, w.Dense):
                shared.append((layer, (self._secret(layer.weight), self._secret(layer.bias))))
            else:
                shared.append((layer, None))
        return shared

    def run(self) -> w.Turn:
        inputs = [self._secret(value) for value in self._row.inputs()]
        communicator = self._crypten.communicator.get()
        communicator.barrier()
        # Counting costs time, so it is done in the first run, which is to warm up.
        self._crypten.cfg.communicator.verbose = self._counts is None
        communicator.reset_communication_stats()
        began, processor = time.monotonic(), time.process_time()
        with self._crypten.no_grad():
            self._result = self._compute(inputs)
        ended, spent = time.monotonic(), time.process_time() - processor
        if self._counts is None:
            self._counts = int(communicator.comm_bytes), int(communicator.comm_rounds)
        return w.Turn(began, ended, spent, *self._counts)

    def _compute(self, inputs: Sequence[Any]) -> Any:
        x = inputs[0]
        if self._row.network:
            return self._through(self._layers, x)
        if self._row.name == "W1":
            return x.matmul(inputs[1])
        if self._row.name == "GELU":
            return 0.5 * x * (1 + (x * 2**-0.5).erf())  # it has none
        return {"W2": x.relu, "softmax": lambda: x.softmax(-1), "exp": x.exp}[self._row.name]()

    def _through(self, layers: Sequence[tuple[w.Layer, Any]], x: Any) -> Any:
        for layer, weights in layers:
            match layer:
                case w.Residual():
                    body, shortcut = weights
                    x = self._through(body, x) + self._through(shortcut, x)
                case w.Convolution():
                    x = x.conv2d(weights[0], stride=layer.stride, padding=layer.padding) + weights[1]
                case w.Dense():
                    x = x.matmul(weights[0]) + weights[1]
                case w.Relu():
                    x = x.relu()
                case w.MaxPool():
                    x = x.max_pool2d(layer.size, stride=layer.stride, padding=layer.padding)
                case w.Average():
                    x = x.mean((2, 3))
                case w.Flatten():
                    x = x.flatten(start_dim=1)
        return x

    def opened(self) -> w.Floats | None:
        share = self._result._tensor
        words = share.reveal(dst=0)
        if self._crypten.communicator.get().get_rank():
            return None
        # Its own decoding is off by one for some negative numbers.
        opened: w.Floats = words.numpy().astype(np.float64) / float(share.encoder._scale)
        return opened


def main() -> None:
    talk, given = Talk(), arguments()
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(given.rank),
        "RENDEZVOUS": f"file://{given.directory}/meet",
        "DISTRIBUTED_BACKEND": "gloo",
    }
    if not given.host[0].startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = "wan0"  # as `mpc_wan` names it
    crypten = load()
    torch.set_num_threads(1)
    crypten.cfg.mpc.provider = given.variant.upper()
    if given.rank == 2:
        talk.say(ready="serves")
        crypten.mpc.provider.TTPServer()  # until the servers end
        talk.say_peak()
        return
    crypten.init()
    talk.serve(Server(crypten, given), given.directory)
    crypten.uninit()


if __name__ == "__main__":
    main()
