"""stories260K (A. Karpathy's tinyllamas): a Llama of 260,000 parameters in ordinary PyTorch, its file, its tokens.

The file is llama2.c's "version 0": seven int32, then float32 weights in a fixed order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from strongroom.errors import FormatError

BOS = 1
_MOST = 1 << 20  # of any size in a header


@dataclass(frozen=True)
class Shape:
    """A model's sizes, in the order in which the file has them; a negative vocabulary has its own output weights."""

    dim: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    longest: int

    @property
    def head(self) -> int:
        return self.dim // self.heads


class Cache:
    """Keys and values of a layer's earlier positions, (heads, positions, size of a head)."""

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def extended(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With those of the next position; all of them."""
        if self._keys is None or self._values is None:
            self._keys, self._values = key, value
        else:
            self._keys = torch.cat([self._keys, key], 1)
            self._values = torch.cat([self._values, value], 1)
        return self._keys, self._values


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        narrow = shape.key_heads * shape.head
        self.query = nn.Linear(shape.dim, shape.dim, bias=False)
        self.key = nn.Linear(shape.dim, narrow, bias=False)
        self.value = nn.Linear(shape.dim, narrow, bias=False)
        self.output = nn.Linear(shape.dim, shape.dim, bias=False)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], cache: Cache) -> torch.Tensor:
        shape = self.shape
        q = rotated(self.query(x).view(shape.heads, 1, shape.head), turn)
        k = rotated(self.key(x).view(shape.key_heads, 1, shape.head), turn)
        keys, values = cache.extended(k, self.value(x).view(shape.key_heads, 1, shape.head))
        # A group of queries shares a key: they attend together, as if they were positions.
        grouped = q.view(shape.key_heads, shape.heads // shape.key_heads, shape.head)
        seen = scaled_dot_product_attention(grouped, keys, values)
        result: torch.Tensor = self.output(seen.reshape(1, shape.dim))
        return result


def rotated(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions: each pair of neighbours turned by its angle."""
    cos, sin = turn
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.attention = Attention(shape)
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], cache: Cache) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), turn, cache)
        y = self.norm(x)
        result: torch.Tensor = x + self.down(silu(self.gate(y)) * self.up(y))
        return result


class Llama(nn.Module):
    """Logits of the next token, one token at a time.

    Attributes:
        embedding: (vocabulary, dim); the output's weights too.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.dim)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)

    def forward(self, x: torch.Tensor, position: int, caches: list[Cache]) -> torch.Tensor:
        """The logits, (1, vocabulary), after the embedded token `x`, (1, dim), at a position."""
        turn = _turn(self.shape, position, x.dtype)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, turn, cache)
        result: torch.Tensor = self.norm(x) @ self.embedding.weight.t()
        return result

    def caches(self) -> list[Cache]:
        return [Cache() for _ in self.layers]


def _turn(shape: Shape, position: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of a position's angles, (size of a head / 2); they are public."""
    angles = position * 10000.0 ** -(torch.arange(0, shape.head, 2, dtype=torch.float64) / shape.head)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def read_shape(path: Path) -> Shape:
    with path.open("rb") as file:
        header = file.read(28)
    if len(header) < 28:
        raise FormatError(f"{path}: got {len(header)} bytes, wanted a header of 28")
    shape = Shape(*struct.unpack("<7i", header))
    if not all(0 < size <= _MOST for size in header_sizes(shape)) or shape.dim % shape.heads:
        raise FormatError(f"{path}: got sizes {shape}, wanted those of a llama2.c model with tied output weights")
    return shape


def header_sizes(shape: Shape) -> tuple[int, ...]:
    return (
        *(shape.dim, shape.hidden, shape.layers, shape.heads),
        *(shape.key_heads, shape.vocabulary, shape.longest),
    )


def load(path: Path) -> Llama:
    """The model of a file."""
    shape = read_shape(path)
    weights = np.fromfile(path, "<f4", offset=28)
    at = 0

    def take(*size: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(size))
        if at + count > len(weights):
            raise FormatError(f"{path}: ends before its weights do")
        at += count
        return torch.from_numpy(weights[at - count : at].reshape(size))

    dim, hidden, layers = shape.dim, shape.hidden, shape.layers
    narrow = shape.key_heads * shape.head
    state: dict[str, Any] = {"embedding.weight": take(shape.vocabulary, dim)}
    for name, size in (
        ("attention_norm", (dim,)),
        ("attention.query", (dim, dim)),
        ("attention.key", (narrow, dim)),
        ("attention.value", (narrow, dim)),
        ("attention.output", (dim, dim)),
        ("norm", (dim,)),
        ("gate", (hidden, dim)),
        ("down", (dim, hidden)),
        ("up", (hidden, dim)),
    ):
        for i, weight in enumerate(take(layers, *size)):
            state[f"layers.{i}.{name}.weight"] = weight
    state["norm.weight"] = take(dim)
    model = Llama(shape)
    model.load_state_dict(state)
    return model.eval()


def read_tokens(path: Path, count: int) -> list[bytes]:
    """The text of each token."""
    raw = path.read_bytes()
    at, tokens = 4, []
    for _ in range(count):
        _, length = struct.unpack_from("<fi", raw, at)
        if not 0 <= length <= len(raw) - at - 8:
            raise FormatError(f"{path}: got a token of {length} bytes")
        tokens.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return tokens


def text(tokens: list[int], pieces: list[bytes]) -> bytes:
    """What tokens after BOS say: no space at the beginning, "<0xNN>" is a byte."""
    said = b""
    for i, token in enumerate(tokens):
        piece = pieces[token]
        if not i and piece.startswith(b" "):
            piece = piece[1:]
        if len(piece) == 6 and piece.startswith(b"<0x") and piece.endswith(b">"):
            piece = bytes([int(piece[3:5], 16)])
        said += piece
    return said


def greedy(model: Llama, steps: int) -> list[int]:
    """Tokens that a model in the clear says after BOS; it ends where another BOS would begin."""
    caches, token, said = model.caches(), BOS, []
    with torch.inference_mode():
        for position in range(steps):
            token = int(model(model.embedding.weight[token : token + 1], position, caches).argmax())
            if token == BOS:
                break
            said.append(token)
    return said
