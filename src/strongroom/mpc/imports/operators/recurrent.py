"""Recurrent layers, step by step: their gates are products, sigmoids and tangents of secrets like any others."""

from __future__ import annotations

import torch

from strongroom.mpc.imports.graph import Node, operator
from strongroom.mpc.imports.operators.common import Tensor

_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@operator("LSTM", "GRU", "RNN")
def _recurrent(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """X is (time, batch, input), or (batch, time, input) with layout 1. Y is (time, directions, batch, hidden)."""
    ways, usual = w.shape[0], _USUAL[node.op]
    named = [each.title() for each in node.get("activations") or usual * ways]
    if named != [each.title() for each in usual * ways] or node.get("clip") or node.get("input_forget", 0):
        raise node.refuse("activations, clip or input_forget of its own, wanted the usual")
    batch_first = bool(node.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        hidden, cell = (None if each is None else each.transpose(0, 1) for each in (hidden, cell))
    if peepholes is not None or (lengths is not None and not bool((lengths == x.shape[0]).all())):
        raise node.refuse("peepholes or sequences of several lengths, wanted neither")
    direction, size = node.get("direction", "forward"), r.shape[-1]
    outputs, states, cells = [], [], []
    for way in range(ways):
        backward = direction == "reverse" or way == 1
        h = torch.zeros(x.shape[1], size) if hidden is None else hidden[way]
        c = torch.zeros(x.shape[1], size) if cell is None else cell[way]
        steps = range(x.shape[0])[::-1] if backward else range(x.shape[0])
        # All steps' inputs are multiplied at once.
        inner = torch.matmul(x, w[way].t())
        b_w, b_r = (None, None) if bias is None else torch.split(bias[way], bias.shape[-1] // 2)
        if b_w is not None:
            inner = inner + b_w
        made: dict[int, Tensor] = {}
        for i in steps:
            h, c = _step(node, inner[i], h, c, r[way], b_r)
            made[i] = h
        outputs.append(torch.stack([made[i] for i in range(x.shape[0])]))
        states.append(h)
        cells.append(c)
    y, last, last_cell = torch.stack(outputs, 1), torch.stack(states), torch.stack(cells)
    if batch_first:
        y, last, last_cell = y.permute(2, 0, 1, 3), last.transpose(0, 1), last_cell.transpose(0, 1)
    return (y, last, last_cell) if node.op == "LSTM" else (y, last)


def _step(node: Node, inner: Tensor, h: Tensor, c: Tensor, r: Tensor, b_r: Tensor | None) -> tuple[Tensor, Tensor]:
    if node.op == "GRU":
        return _gru_step(node, inner, h, r, b_r), c
    gates = inner + torch.matmul(h, r.t())
    if b_r is not None:
        gates = gates + b_r
    if node.op == "RNN":
        return torch.tanh(gates), c
    size = h.shape[-1]
    bounded = torch.sigmoid(gates[..., : 3 * size])  # input, output, forget
    i, o, f = torch.split(bounded, size, -1)
    c = f * c + i * torch.tanh(gates[..., 3 * size :])
    return o * torch.tanh(c), c


def _gru_step(node: Node, inner: Tensor, h: Tensor, r: Tensor, b_r: Tensor | None) -> Tensor:
    size = h.shape[-1]
    if node.get("linear_before_reset", 0):
        outer = torch.matmul(h, r.t())
        outer = outer if b_r is None else outer + b_r
        z, reset = torch.split(torch.sigmoid(inner[..., : 2 * size] + outer[..., : 2 * size]), size, -1)
        new = torch.tanh(inner[..., 2 * size :] + reset * outer[..., 2 * size :])
    else:
        outer = torch.matmul(h, r[: 2 * size].t())
        outer = outer if b_r is None else outer + b_r[: 2 * size]
        z, reset = torch.split(torch.sigmoid(inner[..., : 2 * size] + outer), size, -1)
        last = torch.matmul(reset * h, r[2 * size :].t())
        last = last if b_r is None else last + b_r[2 * size :]
        new = torch.tanh(inner[..., 2 * size :] + last)
    return torch.add(new, z * (h - new))
