"""Layers of PyTorch on secrets: recurrent, attending, normalising; their weights public, secret or one server's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from strongroom import mpc
from tests.mpc.tensors import shared

IDS = torch.tensor([[2, 0, 4, 1]])


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        mask = torch.ones(3, 3).triu(1).bool()
        padded = torch.tensor([[False, False, True]]).expand(len(x), 3)
        return self.attention(x, x, x, attn_mask=mask, key_padding_mask=padded, need_weights=True)[0]


class Decodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), tgt_is_causal=True)


def rotated(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Llama(nn.Module):
    """A decoder's layer as Llama has it: RMS norms by hand, rotary positions, grouped queries, a gate of SiLU."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def norm(self, x):
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def forward(self, x):
        n, length, _ = x.shape
        angles = torch.outer(torch.arange(length).float(), 1 / 10000 ** (torch.arange(0, 2, 2).float() / 2))
        cos, sin = (torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))
        h = self.norm(x)
        q, k, v = (each(h).view(n, length, -1, 2).transpose(1, 2) for each in (self.q, self.k, self.v))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, length, -1))
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Cached(nn.Module):
    """Attention that goes on step by step: keys and values are kept, by `cat` and by `index_copy_`."""

    def forward(self, x):
        kept, outputs = x[:, :0], []
        buffer = torch.zeros_like(x)
        for i in range(x.shape[1]):
            kept = torch.cat([kept, x[:, i : i + 1]], 1)
            buffer.index_copy_(1, torch.tensor([i]), x[:, i : i + 1])
            mask = torch.where(torch.arange(x.shape[1]) <= i, 0.0, -torch.inf)
            one = F.scaled_dot_product_attention(x[:, i : i + 1], kept, kept)
            outputs.append(one + F.scaled_dot_product_attention(x[:, i : i + 1], buffer, buffer, attn_mask=mask[None]))
        return torch.cat(outputs, 1)


class First(nn.Module):
    """The outputs of what also returns its state, and the state."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        outputs, state = self.module(x)
        return torch.cat([each.flatten() for each in (outputs, *(state if isinstance(state, tuple) else (state,)))])


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(3, 2), nn.GRUCell(3, 2), nn.RNNCell(3, 2)

    def forward(self, x):
        return self.lstm(x)[0] + self.gru(x) + self.rnn(x, x[:, :2])


def squeezes():
    """A block of a network for telephones: depthwise, squeezed and excited."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)),
        *(nn.BatchNorm2d(6), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Hardsigmoid()),
    )


LAYERS = {
    "lstm": (lambda: First(nn.LSTM(3, 2, num_layers=2, batch_first=True)), (2, 3, 3)),
    "lstm of both directions": (lambda: First(nn.LSTM(3, 2, bidirectional=True, bias=False)), (2, 1, 3)),
    "gru": (lambda: First(nn.GRU(3, 2, batch_first=True, bidirectional=True)), (1, 3, 3)),
    "rnn": (lambda: First(nn.RNN(3, 2, nonlinearity="relu")), (2, 1, 3)),
    "rnn of tanh": (lambda: First(nn.RNN(3, 2)), (2, 3)),
    "cells": (Cells, (2, 3)),
    "attention": (Attends, (2, 3, 8)),
    "decoder": (Decodes, (1, 3, 8)),
    "encoder of tanh gelu": (
        lambda: nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, norm_first=True, activation=nn.GELU(approximate="tanh")
        ),
        (1, 3, 8),
    ),
    "llama": (Llama, (1, 4, 8)),
    "kept keys": (Cached, (1, 3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "instance norm": (lambda: nn.InstanceNorm2d(2, affine=True), (1, 2, 3, 3)),
    "prelu": (lambda: nn.PReLU(3), (2, 3, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (1, 2, 3, 3)),
    "transposed sequence": (lambda: nn.ConvTranspose1d(2, 2, 3, stride=2), (1, 2, 3)),
    "mobile": (squeezes, (1, 3, 4, 4)),
    "bilinear": (lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 1, 3)), (1, 1, 3, 3)),
    "unflattened": (lambda: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (2, 3)), nn.Linear(3, 2)), (2, 3)),
}


def prepared(model, how):
    if how == "public":
        return model
    return (mpc.share if how == "secret" else mpc.own)(lambda: model, source=1, like=model)


@pytest.fixture(scope="module")
def outcomes():
    torch.manual_seed(2)
    models = {name: (make().eval().requires_grad_(False), torch.randn(shape)) for name, (make, shape) in LAYERS.items()}

    def program():
        found = {}
        for name, (model, x) in models.items():
            for how in ("public", "secret", "owned") if list(model.parameters()) else ("public",):
                try:
                    found[name, how] = mpc.reveal(prepared(model, how)(shared(x)), to=0)
                except Exception as error:
                    found[name, how] = error
        return found

    with mpc.local_world() as world:
        return models, world.run(program)[0]


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, outcomes):
    models, found = outcomes
    model, x = models[name]
    wanted = model(x.clone())
    for how in ("public", "secret", "owned"):
        got = found.get((name, how))
        if isinstance(got, Exception):
            raise got
        assert got is None or (got.shape == wanted.shape and (got - wanted).abs().max() < 1e-3), how


@pytest.mark.parametrize("how", ["public", "secret", "owned"])
def test_a_public_index_looks_up_secret_rows(how):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)).requires_grad_(False)

    def program():
        ids = shared(IDS, classes=5) if how == "public" else IDS
        return mpc.reveal(prepared(model, how)(ids), to=0)

    with mpc.local_world() as world:
        assert (world.run(program)[0] - model(IDS)).abs().max() < 1e-3


def test_a_layer_whose_parameters_are_written_to_computes_with_the_new_ones():
    layer, x = nn.Linear(3, 2), torch.tensor([[1.0, -2.0, 3.0]])

    def program():
        secret = mpc.share(lambda: layer, source=0, like=layer)
        before = mpc.reveal(secret(shared(x)), to=0)
        secret.bias.copy_(shared(torch.tensor([5.0, -5.0])))
        secret.weight.mul_(2)
        return before, mpc.reveal(secret(shared(x)), to=0)

    with mpc.local_world() as world:
        before, after = world.run(program)[0]
    with torch.no_grad():
        torch.testing.assert_close(before, layer(x), atol=1e-3, rtol=0)
        torch.testing.assert_close(after, x @ layer.weight.T * 2 + torch.tensor([5.0, -5.0]), atol=1e-3, rtol=0)
