"""Products, convolutions, normalisation, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from strongroom.mpc.imports.graph import MICROSOFT, OWN, Node, operator
from strongroom.mpc.imports.operators.common import Tensor, is_secret
from strongroom.mpc.imports.operators.rearrange import padded

_CONVOLUTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

# Products


@operator("MatMul")
def _matmul(node: Node, x: Tensor, w: Tensor) -> Tensor:
    return torch.matmul(x, w)


@operator("Gemm")
def _gemm(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = torch.matmul(x.t() if node.get("transA", 0) else x, w.t() if node.get("transB", 0) else w)
    if alpha != 1:
        product = product * alpha
    if bias is None:
        return product
    return product + (bias if beta == 1 else bias * beta)


@operator("Einsum")
def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *values)


# Convolutions


def borders(node: Node, sides: Sequence[int], kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]) -> Any:
    """What is padded before and after, for each axis of an image."""
    count = len(sides)
    how = node.get("auto_pad", "NOTSET")
    if how == "VALID":
        return [(0, 0)] * count
    if how in ("SAME_UPPER", "SAME_LOWER"):
        both = []
        for n, k, step, gap in zip(sides, kernel, steps, gaps, strict=True):
            total = max((-(-n // step) - 1) * step + (k - 1) * gap + 1 - n, 0)
            less, more = total // 2, total - total // 2
            both.append((less, more) if how == "SAME_UPPER" else (more, less))
        return both
    pads = node.get("pads") or [0] * (2 * count)
    return list(zip(pads[:count], pads[count:], strict=True))


@operator("Conv")
def _conv(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    count = w.ndim - 2
    steps, gaps = node.get("strides") or [1] * count, node.get("dilations") or [1] * count
    both = borders(node, x.shape[2:], w.shape[2:], steps, gaps)
    return convolve(node, x, w, bias, steps, gaps, both, node.get("group", 1))


def convolve(
    node: Node,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    steps: Sequence[int],
    gaps: Sequence[int],
    both: Sequence[tuple[int, int]],
    groups: int,
) -> Tensor:
    """A convolution in which the borders of one side may differ from the other's."""
    if len(both) not in _CONVOLUTIONS:
        raise node.refuse(f"a convolution over {len(both)} axes, wanted 1 to 3")
    inner = [min(pair) for pair in both]
    outer = [(before - n, after - n) for (before, after), n in zip(both, inner, strict=True)]
    x = padded(x, [(0, 0), (0, 0), *outer])
    result: Tensor = _CONVOLUTIONS[len(both)](x, w, bias, list(steps), inner, list(gaps), groups)
    return result


@operator("ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    count = w.ndim - 2
    if count not in _TRANSPOSED:
        raise node.refuse(f"a convolution over {count} axes, wanted 1 to 3")
    steps, gaps = node.get("strides") or [1] * count, node.get("dilations") or [1] * count
    more = list(node.get("output_padding") or [0] * count)
    spans = [(k - 1) * gap + 1 for k, gap in zip(w.shape[2:], gaps, strict=True)]
    wanted, how = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    if wanted or how in ("SAME_UPPER", "SAME_LOWER"):
        sides = wanted[-count:] if wanted else [n * step for n, step in zip(x.shape[2:], steps, strict=True)]
        both = []
        for i, (n, step, span, side) in enumerate(zip(x.shape[2:], steps, spans, sides, strict=True)):
            total = step * (n - 1) + more[i] + span - side
            if total < 0:
                more[i], total = more[i] - total, 0
            less, rest = total // 2, total - total // 2
            both.append((less, rest) if how != "SAME_LOWER" else (rest, less))
    else:
        pads = node.get("pads") or [0] * (2 * count)
        both = list(zip(pads[:count], pads[count:], strict=True))
    inner = [min(pair) for pair in both]
    result: Tensor = _TRANSPOSED[count](x, w, bias, steps, inner, more, node.get("group", 1), gaps)
    return padded(
        result, [(0, 0), (0, 0), *[(n - before, n - after) for (before, after), n in zip(both, inner, strict=True)]]
    )


# Softmax


@operator("Softmax", "LogSoftmax")
@operator("Softmax", domain=OWN)
def _softmax(node: Node, x: Tensor) -> Tensor:
    function = torch.softmax if node.op == "Softmax" else torch.log_softmax
    if node.version >= 13 or node.domain:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % x.ndim
    if axis == x.ndim - 1:
        return function(x, axis)
    return function(x.reshape(torch.Size(x.shape[:axis]).numel(), -1), -1).reshape(x.shape)


# Normalisation


@operator("BatchNormalization")
def _batch_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.get("training_mode", 0):
        raise node.refuse("training_mode, wanted the running statistics", hint="export the model in eval mode")
    scale, shift = folded(weight, bias, mean, variance, node.get("epsilon", 1e-5))
    shape = (-1, *[1] * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def folded(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A batch normalisation as a factor and a summand for each channel."""
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


@operator("ChannelAffine", domain=OWN)
def _channel_affine(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


@operator("InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    flat = functional.layer_norm(x.reshape(*x.shape[:2], -1), [math.prod(x.shape[2:])], eps=node.get("epsilon", 1e-5))
    return flat.reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)


@operator("GroupNormalization")
def _group_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups, shape = node.get("num_groups"), (-1, *[1] * (x.ndim - 2))
    parts = x.reshape(x.shape[0], groups, -1)
    flat = functional.layer_norm(parts, [parts.shape[-1]], eps=node.get("epsilon", 1e-5)).reshape(x.shape)
    if weight.shape[0] == groups != x.shape[1]:
        weight, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (weight, bias))
    return flat * weight.reshape(shape) + bias.reshape(shape)


@operator("LayerNormalization")
@operator("LayerNorm", domain=OWN)
def _layer_norm(node: Node, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1) % x.ndim
    shape = list(x.shape[axis:])
    eps = node.get("epsilon", 1e-5)
    whole = all(each is None or list(each.shape) == shape for each in (weight, bias))
    if whole and (is_secret(x) or x.dtype == torch.float32):
        return functional.layer_norm(x, shape, weight, bias, eps)
    normal = functional.layer_norm(x, shape, eps=eps)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


@operator("MomentNorm", domain=OWN)
def _moment_norm(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    axis, n = node.get("axis"), x.shape[node.get("axis")]
    if abs(node.get("scale") * n - 1) > 1e-3:
        raise node.refuse(f"a mean of {n} elements by a factor of {node.get('scale')}, wanted 1/{n}")
    normal = functional.layer_norm(x.movedim(axis, -1), [n], eps=node.get("epsilon")).movedim(-1, axis)
    return normal * weight


@operator("RMSNormalization", "SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
@operator("RmsNorm", domain=OWN)
def _rms_norm(node: Node, x: Tensor, weight: Tensor | None = None, *more: Tensor | None) -> Tensor:
    axis = node.get("axis", -1) % x.ndim
    normal = functional.rms_norm(x, list(x.shape[axis:]), eps=node.get("epsilon", 1e-5))
    return normal if weight is None else normal * weight


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_layer_norm(node: Node, x: Tensor, skip: Tensor, weight: Tensor, *more: Tensor | None) -> tuple[Any, ...]:
    simple = node.op == "SkipSimplifiedLayerNormalization"
    beta, bias = (*([None] if simple else []), *more, None, None)[:2]
    total = x + skip if bias is None else x + skip + bias
    eps = node.get("epsilon", 1e-5)
    shape = [total.shape[-1]]
    if simple:
        return functional.rms_norm(total, shape, eps=eps) * weight, None, None, total
    return functional.layer_norm(total, shape, weight, beta, eps), None, None, total


@operator("LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", -1)
    if node.get("p", 2) == 1:
        total = torch.sum(torch.abs(x), axis, keepdim=True)
        return x * torch.reciprocal(total)
    return x * torch.rsqrt(torch.sum(x * x, axis, keepdim=True))


@operator("MeanVarianceNormalization")
def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = node.get("axes") or [0, 2, 3]
    centred = x - torch.mean(x, axes, keepdim=True)
    return centred * torch.rsqrt(torch.mean(centred * centred, axes, keepdim=True) + 1e-9)


@operator("LRN")
def _local_response(node: Node, x: Tensor) -> Tensor:
    size, alpha, beta = node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75)
    squares = padded(x * x, [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)])
    channels = x.shape[1]
    total = squares[:, :channels]
    for i in range(1, size):
        total = total + squares[:, i : i + channels]
    base = total * (alpha / size) + node.get("bias", 1.0)
    if beta == 0.75:
        root = torch.rsqrt(base)  # base^-3/4 = r sqrt(r), of r = base^-1/2
        return x * root * torch.sqrt(root)
    if beta in (0.5, 1.0):
        return x * (torch.rsqrt(base) if beta == 0.5 else torch.reciprocal(base))
    return x * torch.pow(base, -beta)


# Quantised weights


@operator("DequantizeLinear")
def _dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = node.get("axis", 1)
    shape = [1] * x.ndim
    if scale.numel() > 1:
        shape[axis] = -1
    values = x.to(torch.float64 if scale.dtype == torch.float64 else torch.float32)
    if zero is not None:
        values = values - zero.to(values.dtype).reshape(shape)
    return values * scale.reshape(shape)


# Attention


_ATTENTION = {"is_causal", "kv_num_heads", "q_num_heads", "scale", "softmax_precision"}


@operator("Attention")
def _attention(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *past: Any) -> Tensor:
    if any(each is not None for each in past) or len([name for name in node.outputs if name]) > 1:
        raise node.refuse("a cache of keys and values, wanted none")
    if strange := sorted(name for name in node.attributes.keys() - _ATTENTION if node.get(name)):
        raise node.refuse(f"{', '.join(strange)}, wanted none of them")
    flat = q.ndim == 3
    if flat:
        heads, groups = node.get("q_num_heads"), node.get("kv_num_heads")
        q, k, v = (
            each.reshape(*each.shape[:2], n, -1).transpose(1, 2) for each, n in ((q, heads), (k, groups), (v, groups))
        )
    if k.shape[1] != q.shape[1]:
        picked = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
        k, v = (each.index_select(1, picked) for each in (k, v))
    scale = node.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = torch.matmul(q, k.transpose(-2, -1)) * scale
    if node.get("is_causal", 0):
        rows, columns = scores.shape[-2:]
        scores = scores + torch.full((rows, columns), -(2.0**11)).triu(1)
    if mask is not None:
        hidden = torch.where(mask, 0.0, -(2.0**11)) if mask.dtype == torch.bool else mask.clamp(min=-(2.0**11))
        scores = scores + hidden
    result = torch.matmul(torch.softmax(scores, -1), v)
    return result.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1) if flat else result


@operator("FusedMatMul", domain=MICROSOFT)
def _fused_matmul(node: Node, x: Tensor, w: Tensor) -> Tensor:
    if node.get("transA", 0):
        x = x.transpose(-2, -1)
    product = torch.matmul(x, w.transpose(-2, -1) if node.get("transB", 0) else w)
    return product if node.get("alpha", 1.0) == 1 else product * node.get("alpha")
