"""Answering clients that are no party, one request after another.

All three parties take the same requests in the same order. Before each:

1. P0 says to P1 which of its own requests may be next, or that there is none, or that it stops. Clients take turns.
2. P1 says which it has first, and whether it is the same: client, number, shape and model. If it is another, it is
   refused at both, and nothing was computed. What P1 does not have waits for it while others are served, so that who
   asks P0 alone keeps nobody waiting, and is refused after a while.
3. Both tell the dealer, which does not work ahead of a request.

After each the keys are ratcheted. Nothing here is secret: who asks, when, and for what shape, all three know.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from strongroom.crypto import digest
from strongroom.errors import MpcError, StrongroomError, UsageError
from strongroom.mpc import request as wire
from strongroom.mpc.party import P0, P1, SERVERS, Party
from strongroom.mpc.protocols.compare import is_negative
from strongroom.mpc.protocols.linear import multiply
from strongroom.mpc.reception import Arrival, Reception, describe
from strongroom.mpc.ring import WIDTH, Words
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.shared_tensor import SharedTensor
from strongroom.mpc.tensor.sharing import reveal
from strongroom.mpc.tensor.storage import Storage
from strongroom.mpc.tensor.world import current
from strongroom.mpc.transcript import shapes

_MATCH = 2.0  # seconds that a request waits at P0 for P1 to have it too: clients send to P1 first
_MOST = 8  # requests that are proposed at once
_NONE, _SOME, _STOP = 0, 1, 2
_AGREED, _MISSING, _OTHER = 1, 2, 3
_NAME = 64
_PROPOSAL = struct.Struct(f"<B{_NAME}s{wire.ID_SIZE}s{wire.MODEL_SIZE}s{len(wire.pack_shape(()))}s")
_NOTHING = bytes(_PROPOSAL.size)


@dataclass
class Served:
    """A client's request, to be answered by `reveal(result, to=request.client)`.

    Attributes:
        client: its name.
        x: the input, secret, which the client owns.
    """

    client: str
    x: SharedTensor
    _party: Party
    _arrival: Arrival | None
    answered: bool = False

    def answer(self, words: Words | None, shape: tuple[int, ...]) -> None:
        """Send this server's share of the result; the dealer sends nothing."""
        if self.answered:
            raise UsageError("reveal: the request was answered before", hint="a client gets one tensor for a request")
        self.answered = True
        if self._arrival is not None and words is not None:
            number, transcript = self._arrival.request.id, self._party.transcript.digest
            self._arrival.finish(wire.Answer(number, transcript, shape, words))


def serve(
    model: nn.Module,
    reception: Reception,
    *,
    shape: Sequence[int | None],
    most: int = 256,
    count: int | None = None,
    clamped: bool = True,
) -> int:
    """Answer each client's request with the model's result, which that client alone gets.

    Args:
        model: any module, of secret weights or public ones.
        reception: where clients arrive.
        shape: of an input; None is any size of 1 to `most`.
        count: how many requests to answer; without, until `reception.stop()` at P0.
        clamped: bring inputs into the settings' range, whatever a client sends: about ten rounds. Without, a client
            that lies about its input's range gets results that are wrong.

    Returns:
        how many requests were answered.
    """
    served = 0
    for request in requests(model, reception, shape=shape, most=most, count=count, clamped=clamped):
        with torch.inference_mode():
            result = model(request.x)
        reveal(result, to=request.client)
        served += 1
    return served


def requests(
    model: nn.Module | bytes,
    reception: Reception,
    *,
    shape: Sequence[int | None],
    most: int = 256,
    count: int | None = None,
    clamped: bool = True,
) -> Iterator[Served]:
    """Clients' requests, at each party alike; as `serve`, for what needs more than one call of a model.

    Args:
        model: what clients are told that they ask: a module, or 32 bytes that stand for what is computed.
    """
    world = current()
    party, settings = world.party, world.party.settings
    number = model if isinstance(model, bytes) else model_digest(model)
    if reception.rank != party.rank or len(number) != wire.MODEL_SIZE or most < 1:
        raise UsageError("serve: wanted this party's own reception, a model's 32 bytes, and room for one")
    party.enter("serve", number.hex(), list(shape), most, count, clamped)
    welcome = describe(party.rank, party.epoch, number, shape, most, settings.frac, settings.bound)
    reception.begin(welcome, shape, most, patience=settings.seconds)
    served = 0
    while count is None or served < count:
        kind, client, head, arrival = _next(party, reception, number)
        if kind == _STOP:
            return
        if kind != _SOME:
            continue
        try:
            x = _input(party, client, head, arrival, clamped)
            request = Served(
                client, SharedTensor.of(Storage(world, x, frozenset({client})), x.shape, torch.float32), party, arrival
            )
            world.serving = request
            yield request
            if not request.answered:
                raise UsageError(
                    f"serve: the program gave {client} no answer", hint="reveal(result, to=request.client)"
                )
        except GeneratorExit:
            raise  # the program ended, or failed: the reception says so when it closes
        except BaseException as error:
            if arrival is not None and not arrival.done.is_set():
                why = error.message if isinstance(error, StrongroomError) else type(error).__name__
                arrival.finish(MpcError(f"service: ended: {why}"))
            party.abort(error)
            raise
        finally:
            world.serving = None
        party.ratchet()
        served += 1


def model_digest(model: nn.Module) -> bytes:
    """What stands for a model's architecture, which is public: its text, and the names and shapes of its state."""
    state = (
        (name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict(keep_vars=True).items()
    )
    return digest(b"strongroom mpc model\0", str(model).encode(), b"\0", repr(sorted(state)).encode())


def _next(party: Party, reception: Reception, model: bytes) -> tuple[int, str, wire.Request, Arrival | None]:
    """One turn of the module's three steps: what comes next, and at a server the request."""
    nothing = np.empty(0, np.uint8)
    said = np.zeros(_PROPOSAL.size + 1, np.uint8)
    proposal, verdict = said[:-1], said[-1:]
    arrivals: list[Arrival] = []
    arrival: Arrival | None = None
    with party.operation("next request"):
        if not party.is_dealer:
            proposed = np.zeros(_MOST * _PROPOSAL.size, np.uint8)
            chosen = np.zeros(2, np.uint8)
            if party.rank == P0:
                arrivals = reception.waiting(party.settings.seconds / 4, _MOST)
                proposed[:] = np.frombuffer(_propose(reception, arrivals), np.uint8)
                party.exchange([proposed], [nothing])
                party.exchange([nothing], [chosen])
                arrival = _chosen(reception, arrivals, *map(int, chosen))
            else:
                party.exchange([nothing], [proposed])
                chosen[0], chosen[1], arrival = _judge(bytes(proposed), reception, model)
                party.exchange([chosen], [nothing])
            verdict[0], which = chosen
            proposal[:] = proposed.reshape(_MOST, -1)[which]
            party.peers[2].exchange([said], [nothing])
        else:
            _hear(party, said)
    kind, client, request = _read(bytes(proposal))
    for each in arrivals:
        if each is arrival:
            break
        _put_off(each)
    if kind == _SOME and verdict[0] != _AGREED:
        if arrival is not None:
            arrival.finish(
                MpcError(
                    "request: P0 and P1 got different ones",
                    hint="a client sends the same request to both servers, for the model that they serve",
                )
            )
        kind = _NONE
    if kind == _SOME:
        party.enter("request", client, request.id.hex(), shapes(request.shape))
    return kind, client, request, arrival


def _chosen(reception: Reception, arrivals: Sequence[Arrival], verdict: int, which: int) -> Arrival | None:
    """At P0, the request that P1 has too."""
    if verdict not in (_AGREED, _MISSING, _OTHER) or which >= max(len(arrivals), 1):
        raise MpcError(f"request: P1 says {verdict} of the one at {which}, of {len(arrivals)}")
    if not arrivals or verdict == _MISSING:
        return None
    reception.take(arrivals[which])
    return arrivals[which]


def _put_off(arrival: Arrival) -> None:
    """At P0, a request that P1 did not have yet; it is refused once it has waited for long enough."""
    arrival.tries += 1
    if time.monotonic() - arrival.came > _MATCH:
        arrival.taken = True
        arrival.finish(
            MpcError("request: P1 does not have it", hint="a client sends the same request to both servers, P1 first")
        )


def _hear(party: Party, said: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """At the dealer, what both servers agreed on."""
    other = np.zeros_like(said)
    for server, into in ((P1, said), (P0, other)):
        party.peers[server].exchange([np.empty(0, np.uint8)], [into])
    if not (said == other).all():
        raise MpcError("request: P0 and P1 tell the dealer different things")


def _propose(reception: Reception, arrivals: Sequence[Arrival]) -> bytes:
    if not arrivals:
        kind = _STOP if reception.stopped else _NONE
        return _PROPOSAL.pack(kind, b"", b"", b"", b"") + _NOTHING * (_MOST - 1)
    packed = [
        _PROPOSAL.pack(
            _SOME, each.client.encode(), each.request.id, each.request.model, wire.pack_shape(each.request.shape)
        )
        for each in arrivals
    ]
    return b"".join(packed) + _NOTHING * (_MOST - len(packed))


def _read(proposal: bytes) -> tuple[int, str, wire.Request]:
    kind, name, number, model, shape = _PROPOSAL.unpack(proposal)
    if kind not in (_NONE, _SOME, _STOP):
        raise MpcError(f"request: got the kind {kind}")
    return (
        kind,
        name.rstrip(b"\0").decode("ascii", "replace"),
        wire.Request(number, model, wire.parse_shape(shape), b""),
    )


def _judge(proposed: bytes, reception: Reception, model: bytes) -> tuple[int, int, Arrival | None]:
    """At P1, which of P0's requests it has first, and whether that is the same."""
    asked = [_read(proposed[i : i + _PROPOSAL.size]) for i in range(0, len(proposed), _PROPOSAL.size)]
    if asked[0][0] != _SOME:
        return _AGREED, 0, None
    found = reception.find((client, request.id) for _, client, request in asked)
    if found is None:
        return _MISSING, 0, None
    which, arrival = found
    own, wanted = arrival.request, asked[which][2]
    same = own.shape == wanted.shape and own.model == wanted.model == model
    return (_AGREED if same else _OTHER), which, arrival


def _input(party: Party, client: str, head: wire.Request, arrival: Arrival | None, clamped: bool) -> Shared:
    """A client's input as a value, within the settings' range if it is clamped."""
    shape, frac = head.shape, party.settings.frac
    with party.operation("client's input", client, head.id.hex(), shapes(shape)):
        if party.rank not in SERVERS:
            x = Shared.of_shape(party, shape, frac)
        else:
            assert arrival is not None  # noqa: S101  # both have it
            data, size = arrival.request.data, int(np.prod(shape, dtype=np.int64))
            words = np.frombuffer(data, "<u8").astype(np.uint64) if party.first else wire.expand(data, size)
            x = Shared(party, words.reshape(shape), frac)
    if not clamped:
        return x
    high = float(2**party.settings.bound) - 2.0**-frac
    # Comparisons of all 64 bits: a client may send any word.
    below = x - high
    x = multiply(is_negative(below, width=WIDTH), below) + high
    above = -x - high
    return -(multiply(is_negative(above, width=WIDTH), above) + high)
