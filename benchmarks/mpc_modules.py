"""The layers of `mpc_peers.workloads` as PyTorch modules, and in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.mpc_peers import workloads as w


class Block(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x) + self.shortcut(x)
        return result


def module(layers: Sequence[w.Layer], dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A module as anybody would write it, with the layers' weights."""
    return nn.Sequential(*map(_one, layers)).to(dtype).eval().requires_grad_(False)


def _one(layer: w.Layer) -> nn.Module:
    match layer:
        case w.Convolution():
            outputs, inputs, size, _ = layer.weight.shape
            convolution = nn.Conv2d(inputs, outputs, size, layer.stride, layer.padding, dtype=torch.float64)
            _fill(convolution, layer.weight, layer.bias)
            return convolution
        case w.Dense():
            linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1], dtype=torch.float64)
            _fill(linear, layer.weight.T, layer.bias)
            return linear
        case w.Relu():
            return nn.ReLU()
        case w.MaxPool():
            return nn.MaxPool2d(layer.size, layer.stride, layer.padding)
        case w.Average():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case w.Flatten():
            return nn.Flatten()
        case w.Residual():
            return Block(module(layer.body), module(layer.shortcut) if layer.shortcut else nn.Identity())


def _fill(made: nn.Conv2d | nn.Linear, weight: w.Floats, bias: w.Floats) -> None:
    made.weight.data.copy_(torch.from_numpy(weight))
    assert made.bias is not None  # the default
    made.bias.data.copy_(torch.from_numpy(bias))


def in_float(row: w.Row) -> torch.Tensor:
    """A row's result in float64, without shares."""
    inputs = [torch.from_numpy(value) for value in row.inputs()]
    with torch.no_grad():
        result: torch.Tensor = compute(row.name, module(row.layers()), inputs)
    return result


def compute(name: str, model: nn.Sequential, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a row computes; the same line for plain tensors and for secret ones."""
    if len(model):
        result: torch.Tensor = model(inputs[0])
        return result
    match name:
        case "W1":
            return inputs[0] @ inputs[1]
        case "W2":
            return torch.relu(inputs[0])
        case "softmax":
            return torch.softmax(inputs[0], -1)
        case "exp":
            return torch.exp(inputs[0])
        case "GELU":
            return nn.functional.gelu(inputs[0])
    raise ValueError(f"row: got {name}, wanted a network or a function")


def error_of(row: w.Row, wanted: torch.Tensor, result: w.Floats) -> float:
    """The largest from float64; of a network, relative to its largest output."""
    difference = (torch.from_numpy(result).reshape(wanted.shape) - wanted).abs().max()
    return float(difference / wanted.abs().max() if row.network else difference)
