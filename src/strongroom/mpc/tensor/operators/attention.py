"""Scaled dot-product attention."""

from __future__ import annotations

import math

import numpy as np
import torch

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import softmax
from strongroom.mpc.protocols.linear import matmul
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.operators.choice import select
from strongroom.mpc.tensor.operators.registry import aten, bounded, found, handles, secret
from strongroom.mpc.tensor.shared_tensor import SharedTensor


@handles(
    aten.scaled_dot_product_attention.default,
    aten._scaled_dot_product_attention_math.default,
)
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Shared:
    if dropout:
        raise UsageError(f"attention: got a dropout of {dropout}, wanted none", hint="call model.eval()")
    like = found(q, k, v)
    if enable_gqa and k.shape[-3] != q.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    queries, keys, values = (secret(each, like) for each in (q, k, v))
    factor = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    count = len(keys.shape)
    scores = matmul(truncate(queries.times_public(factor)), keys.transpose(*range(count - 2), count - 1, count - 2))
    scores = truncate(scores)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if isinstance(mask, SharedTensor) and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -math.inf)
    if isinstance(mask, SharedTensor):
        scores = scores + mask.read()
    elif mask is not None and mask.dtype == torch.bool:
        settings = scores.party.settings
        unseen = Shared.public(scores.party, -(2.0 ** (settings.bound - 2)), scores.frac).broadcast(scores.shape)
        scores = select(np.broadcast_to(mask.numpy(), scores.shape), scores, unseen)
    elif mask is not None:
        scores = scores + bounded(mask, scores.party.settings)
    return matmul(softmax(scores), values)
