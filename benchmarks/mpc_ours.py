"""A party of ours, for `benchmarks.mpc_systems`. Its variant says how the parties meet, and whose the weights are.

- ``unix``: Unix sockets; ``tls``: TCP with mutual TLS 1.3.
- Weights are secret from both servers; with ``-owned`` behind it P1 has them in the clear.

One thread for arithmetic in each process. The dealer works while the servers do; nothing is dealt in advance. Weights
are opened behind their masks by the first run; inputs are shared anew for every run.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.mpc_modules import compute, module
from benchmarks.mpc_peers.serve import Arguments, Talk, arguments
from benchmarks.mpc_peers.workloads import Floats, Turn
from strongroom import mpc
from strongroom.mpc import certificates

_NAMES = ("P0", "P1", "D")


class Member:
    """One of P0, P1 and the dealer."""

    def __init__(self, party: mpc.Party, given: Arguments) -> None:
        self._party, self._row = party, given.row
        give = mpc.own if given.variant.endswith("-owned") else mpc.share
        plain = module(given.row.layers(), torch.float32)
        self._model = give(lambda: module(given.row.layers()), source=1, like=plain) if len(plain) else plain
        self._result: torch.Tensor | None = None

    def run(self) -> Turn:
        inputs = [
            mpc.share(lambda value=value: value, source=i, shape=value.shape)  # type: ignore[misc]
            for i, value in enumerate(self._row.inputs())
        ]
        meet(self._party)
        party = self._party
        rounds, sent = party.rounds, sum(peer.sent for peer in party.peers.values())
        began, processor = time.monotonic(), time.process_time()
        with torch.inference_mode():
            self._result = compute(self._row.name, self._model, inputs)
            assert isinstance(self._result, mpc.SharedTensor)
            self._result.read()  # what is left to be truncated is
        ended, spent = time.monotonic(), time.process_time() - processor
        sent = sum(peer.sent for peer in party.peers.values()) - sent
        return Turn(began, ended, spent, sent, party.rounds - rounds)

    def opened(self) -> Floats | None:
        assert isinstance(self._result, mpc.SharedTensor)
        value = mpc.reveal(self._result, to=0)
        return value.to(torch.float64).numpy() if isinstance(value, torch.Tensor) else None


def meet(party: mpc.Party) -> None:
    """Wait for all three, so that a run does not begin while somebody still ends the one before."""
    with party.operation("meet"):
        nothing = np.empty(0, np.uint8)
        for peer in party.peers.values():
            peer.exchange([nothing], [nothing])


def join(given: Arguments) -> mpc.Party:
    if given.variant.startswith("unix"):
        return mpc.join_unix(given.rank, given.directory)
    ready, made = given.directory / "ready", given.directory / "certificates"
    if given.rank == 0:
        certificates.create(made, now=dt.datetime.now(dt.UTC), days=1)
        ready.touch()
    _await(ready)
    addresses = {rank: (given.host[rank], given.port[rank]) for rank in range(2)}
    return mpc.join_tcp(given.rank, addresses, made / _NAMES[given.rank])


def _await(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def main() -> None:
    talk, given = Talk(), arguments()
    torch.set_num_threads(1)
    with join(given) as party, mpc.World(party):
        talk.serve(Member(party, given), given.directory)


if __name__ == "__main__":
    main()
