"""A client of two servers: it is no party, and alone sees its input and its result.

For each request it draws a seed that P1 gets, and P0 gets the input minus what the seed expands to: each by itself says
nothing of the input. Each server sends back a fresh share of the result with its transcript's digest. Both answers are
of one computation, or nothing is taken from them.
"""

from __future__ import annotations

import datetime as dt
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strongroom.channel import Channel, TlsChannel, connect
from strongroom.crypto import STREAM_KEY_SIZE, random_bytes
from strongroom.errors import ChannelError, DivergedError, FormatError, MpcError, UsageError
from strongroom.mpc import request as wire
from strongroom.mpc.certificates import Credentials
from strongroom.mpc.party import P0, P1, SERVERS
from strongroom.mpc.peer import NAMES
from strongroom.mpc.policy import checked_name
from strongroom.mpc.ring import decode, encode

if TYPE_CHECKING:
    import torch

_MOST_ANSWER = 1 << 28  # bytes
Address = tuple[str, int]


@dataclass(frozen=True)
class Service:
    """What both servers say that they serve.

    Attributes:
        epoch: of the parties, in hex.
        model: digest of the architecture that answers, in hex.
        shape: of an input; None is any batch of up to `most`.
    """

    epoch: str
    model: str
    shape: tuple[int | None, ...]
    most: int
    frac: int
    bound: int

    @classmethod
    def parse(cls, said: Mapping[str, Any], name: str) -> Service:
        """Raises FormatError."""
        try:
            if said["version"] != wire.VERSION or said["party"] != name:
                raise FormatError(f"{name}: says that it is {said['party']!r} of version {said['version']!r}"[:300])
            shape = tuple(None if each is None else int(each) for each in said["shape"])
            found = cls(
                str(said["epoch"]), str(said["model"]), shape, *(int(said[each]) for each in ("most", "frac", "bound"))
            )
            if len(bytes.fromhex(found.model)) != wire.MODEL_SIZE or not 1 <= found.frac <= 30 or found.bound > 62:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{name}: sent a welcome that says nothing") from None
        return found


class Client:
    """One connection to each server; for one thread. A server that refuses a request hangs up: make another one then.

    Args:
        channels: by rank.
        model: the digest that the service must have, in hex; else any that both servers agree on.

    Attributes:
        service: what is served.

    Raises:
        DivergedError: the servers are of different epochs or serve different models.
    """

    def __init__(self, channels: Mapping[int, Channel], *, model: str | None = None) -> None:
        self._channels = dict(channels)
        try:
            said = [self._welcome(rank) for rank in SERVERS]
            if said[0] != said[1]:
                raise DivergedError(
                    "servers: P0 and P1 do not serve the same", hint="are both of one run? ask who runs them"
                )
            if model is not None and said[0].model != model:
                raise MpcError(f"model: got {said[0].model[:16]}..., wanted {model[:16]}...")
        except BaseException:
            self.close()
            raise
        self.service = said[0]

    @classmethod
    def unix(cls, directory: Path, name: str, *, seconds: float = 60.0, model: str | None = None) -> Self:
        """Reach servers on this machine, in the directory that they serve in. Whoever can, may say any name."""
        checked_name(name)

        def dial(rank: int) -> Channel:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(seconds)
                sock.connect(str(socket_path(directory, rank)))
            except BaseException:
                sock.close()
                raise
            channel = Channel(sock, NAMES[rank], seconds=seconds)
            wire.send(channel, wire.NAME, name.encode())
            return channel

        return cls(_reach(dial), model=model)

    @classmethod
    def tcp(
        cls,
        addresses: Mapping[int, Address],
        certificates: Path,
        *,
        seconds: float = 60.0,
        model: str | None = None,
    ) -> Self:
        """Reach servers by mutual TLS 1.3, where they listen for clients, with a client's directory of certificates."""
        if sorted(addresses) != list(SERVERS):
            raise UsageError(
                f"addresses: got those of {sorted(addresses)}, wanted those of 0 and 1",
                hint='{0: ("p0.example", 7100), 1: ("p1.example", 7100)}: a client needs both servers',
            )
        credentials = Credentials.load(certificates)

        def dial(rank: int) -> Channel:
            sock = socket.create_connection(addresses[rank], seconds)
            expect = credentials.expect([rank], lambda: dt.datetime.now(dt.UTC))
            return TlsChannel(connect(sock, expect=expect, identity=credentials.identity), NAMES[rank], seconds=seconds)

        return cls(_reach(dial), model=model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @overload
    def predict(self, x: torch.Tensor) -> torch.Tensor: ...

    @overload
    def predict(self, x: ArrayLike) -> NDArray[np.float64]: ...

    def predict(self, x: torch.Tensor | ArrayLike) -> torch.Tensor | NDArray[np.float64]:
        """The model's result for `x`, which nobody else learns, nor the result: a tensor for a tensor, else an array.

        Raises:
            UsageError: `x` is no numbers, has another shape than the service takes, is not finite, or beyond its bound.
            DivergedError: the servers' answers are not of one computation.
            ChannelError: a server is gone.
            StrongroomError: a server refused, and why.
        """
        service = self.service
        words = encode(_numbers(x), service.frac, service.bound)
        if not wire.fits(words.shape, service.shape, service.most):
            wanted = ", ".join(f"1 to {service.most}" if each is None else str(each) for each in service.shape)
            raise UsageError(f"input: got shape {words.shape}, wanted ({wanted})")
        number, model = random_bytes(wire.ID_SIZE), bytes.fromhex(service.model)
        seed = random_bytes(STREAM_KEY_SIZE)
        share = words.reshape(-1) - wire.expand(seed, words.size)
        # P1 first: it is asked by P0 whether it has the request too.
        for rank, data in ((P1, seed), (P0, share.astype("<u8").tobytes())):
            self._ask(rank, wire.Request(number, model, words.shape, data))
        left, right = (self._answer(rank) for rank in SERVERS)
        if left.id != number or right.id != number:
            raise DivergedError("answer: is of another request")
        if left.digest != right.digest or left.shape != right.shape:
            raise DivergedError(
                "answer: P0 and P1 did not compute the same", hint="nothing was taken from it; ask who runs them"
            )
        result = decode(left.words + right.words, service.frac).reshape(left.shape)
        if _is_tensor(x):
            tensor: torch.Tensor = sys.modules["torch"].from_numpy(result)
            return tensor.to(x.dtype) if x.is_floating_point() else tensor.float()
        return result

    def close(self) -> None:
        """Leave. Never raises."""
        for channel in self._channels.values():
            channel.close()

    def _welcome(self, rank: int) -> Service:
        payload = wire.receive(self._channels[rank], NAMES[rank], wire.WELCOME, wire.MOST_TEXT)
        return Service.parse(wire.text(payload, NAMES[rank]), NAMES[rank])

    def _ask(self, rank: int, request: wire.Request) -> None:
        try:
            wire.send(self._channels[rank], wire.REQUEST, request.pack())
        except ChannelError:
            self._answer(rank)  # it may have said why it left
            raise

    def _answer(self, rank: int) -> wire.Answer:
        return wire.Answer.parse(wire.receive(self._channels[rank], NAMES[rank], wire.ANSWER, _MOST_ANSWER))


def _is_tensor(x: object) -> TypeGuard[torch.Tensor]:
    """Without PyTorch, which a client need not have."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(x, module.Tensor)


def _numbers(x: torch.Tensor | ArrayLike) -> NDArray[Any]:
    """Raises UsageError."""
    try:
        if _is_tensor(x):
            x = x.detach().cpu() if x.is_complex() else x.detach().cpu().double()
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise UsageError(f"input: {error}"[:200], hint="an array or a tensor of numbers") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"input: got {array.dtype}, wanted numbers", hint="an array or a tensor of numbers")
    return array


def socket_path(directory: Path, rank: int) -> Path:
    """Where a server listens for clients on its own machine."""
    return directory / f"{NAMES[rank]}.clients.sock"


def _reach(dial: Any) -> dict[int, Channel]:
    """A channel to each server."""
    channels: dict[int, Channel] = {}
    try:
        for rank in SERVERS:
            channels[rank] = dial(rank)
    except BaseException as error:
        for channel in channels.values():
            channel.close()
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
            raise ChannelError(
                f"{NAMES[len(channels)]}: not reached: {reason}", hint="a client needs both servers; do they serve yet?"
            ) from None
        raise
    return channels
