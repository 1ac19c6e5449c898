"""Recurrent networks: one product for the input of all steps, then one product and one call for all gates a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from strongroom.errors import UsageError
from strongroom.mpc.tensor.operators.registry import aten, handles

State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, State, Sequence[torch.Tensor | None]], State]


def _gates(inputs: torch.Tensor, hidden: torch.Tensor, weights: Sequence[torch.Tensor | None]) -> torch.Tensor:
    assert weights[0] is not None  # noqa: S101  # biases alone may be missing
    return inputs + linear(hidden, weights[0], weights[1])


def _lstm_step(inputs: torch.Tensor, state: State, weights: Sequence[torch.Tensor | None]) -> State:
    hidden, cell = state
    enters, forgets, new, leaves = _gates(inputs, hidden, weights).chunk(4, -1)
    # tanh x = 2 sigmoid(2 x) - 1: one call for all four.
    enters, forgets, new, leaves = torch.cat([enters, forgets, new * 2, leaves], -1).sigmoid().chunk(4, -1)
    cell = forgets * cell + enters * (new * 2 - 1)
    return leaves * cell.tanh(), cell


def _gru_step(inputs: torch.Tensor, state: State, weights: Sequence[torch.Tensor | None]) -> State:
    (hidden,) = state
    assert weights[0] is not None  # noqa: S101  # biases alone may be missing
    recurrent = linear(hidden, weights[0], weights[1])
    (reset_in, update_in, new_in), (reset, update, new) = inputs.chunk(3, -1), recurrent.chunk(3, -1)
    reset, update = torch.cat([reset_in + reset, update_in + update], -1).sigmoid().chunk(2, -1)
    new = (new_in + reset * new).tanh()
    return (new + update * (hidden - new),)


def _plain_step(function: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    return lambda inputs, state, weights: (function(_gates(inputs, state[0], weights)),)


def _layers(
    x: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    step: Step,
) -> State:
    """The last layer's outputs, and the last states of all."""
    if dropout and train:
        raise UsageError(f"recurrent network: got a dropout of {dropout}, wanted none", hint="call model.eval()")
    directions = 2 if bidirectional else 1
    count = len(weights) // (layers * directions)
    if count != (4 if has_biases else 2):
        raise UsageError("recurrent network: got a projection, wanted none", hint="proj_size=0")
    x = x.transpose(0, 1) if batch_first else x
    last: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            part: list[torch.Tensor | None] = [*weights[at * count : (at + 1) * count], *[None] * (4 - count)]
            w_in, w_state, b_in, b_state = part
            assert w_in is not None  # noqa: S101  # biases alone may be missing
            inputs = linear(x, w_in, b_in)
            state: State = tuple(each[at] for each in states)
            steps = range(len(x))
            seen = []
            for i in reversed(steps) if direction else steps:
                state = step(inputs[i], state, (w_state, b_state))
                seen.append(state[0])
            outputs.append(torch.stack(seen[::-1] if direction else seen))
            last.append(state)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    states = [torch.stack([state[i] for state in last]) for i in range(len(states))]
    return (x.transpose(0, 1) if batch_first else x, *states)


@handles(aten.lstm.input)
def _lstm(
    x: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> State:
    return _layers(x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first, _lstm_step)


def _of_one_state(overload: object, step: Step) -> None:
    def run(x: torch.Tensor, state: torch.Tensor, *more: Any) -> State:
        how: tuple[Any, ...] = (*more, step)
        return _layers(x, [state], *how)

    handles(overload)(run)


_of_one_state(aten.gru.input, _gru_step)
_of_one_state(aten.rnn_tanh.input, _plain_step(torch.tanh))
_of_one_state(aten.rnn_relu.input, _plain_step(torch.relu))


def _cell(overload: object, step: Step) -> None:
    def run(
        x: torch.Tensor,
        state: torch.Tensor,
        w_in: torch.Tensor,
        w_state: torch.Tensor,
        b_in: torch.Tensor | None = None,
        b_state: torch.Tensor | None = None,
    ) -> State | torch.Tensor:
        states = (state,) if isinstance(state, torch.Tensor) else tuple(state)
        result = step(linear(x, w_in, b_in), states, (w_state, b_state))
        return result if len(result) > 1 else result[0]

    handles(overload)(run)


_cell(aten.lstm_cell.default, _lstm_step)
_cell(aten.gru_cell.default, _gru_step)
_cell(aten.rnn_tanh_cell.default, _plain_step(torch.tanh))
_cell(aten.rnn_relu_cell.default, _plain_step(torch.relu))
