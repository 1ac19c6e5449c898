"""Losses, of secret predictions and public or secret targets."""

from __future__ import annotations

import torch

from strongroom.errors import UsageError
from strongroom.mpc.tensor.operators.registry import aten, handles

_SUM = 2  # of the numbers that torch has for what becomes of each element's loss; 0 for nothing, 1 for the mean


def _reduced(losses: torch.Tensor, reduction: int) -> torch.Tensor:
    return (losses.sum() if reduction == _SUM else losses.mean()) if reduction else losses


@handles(aten.mse_loss.default)
def _mse_loss(x: torch.Tensor, y: torch.Tensor, reduction: int = 1) -> torch.Tensor:
    return _reduced((x - y).square(), reduction)


@handles(aten.nll_loss_forward.default)
def _nll_loss(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: int, ignore_index: int
) -> tuple[torch.Tensor, None]:
    if weight is not None:
        raise UsageError("loss: got weights of classes, wanted none")
    return _reduced(-x.gather(-1, target.unsqueeze(-1)).squeeze(-1), reduction), None


@handles(aten.binary_cross_entropy_with_logits.default)
def _logistic_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
    reduction: int = 1,
) -> torch.Tensor:
    if pos_weight is not None:
        raise UsageError("loss: got a weight of positives, wanted none")
    losses = torch.nn.functional.softplus(x) - x * target
    return _reduced(losses if weight is None else losses * weight, reduction)
