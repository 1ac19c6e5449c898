"""Arithmetic, functions and comparisons of each element."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

from strongroom.mpc.imports.graph import MICROSOFT, ONNX, OWN, Node, operator
from strongroom.mpc.imports.operators.common import Tensor, is_secret, number


@operator("Add")
def _add(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x + y


@operator("Sub")
def _sub(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x - y


@operator("Mul")
def _mul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x * y


@operator("Div")
def _div(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point() and not y.is_floating_point():
        return torch.div(x, y, rounding_mode="trunc")
    if is_secret(y):
        return x * torch.reciprocal(y)
    return x / y


@operator("Pow")
def _pow(node: Node, x: Tensor, exponent: Tensor) -> Tensor:
    if not is_secret(x):
        return torch.pow(x, exponent).to(x.dtype)
    n = number(node, exponent, "exponent")
    if n == int(n) and 1 <= n <= 64:
        return _whole_power(x, int(n))
    if n in _ROOTS:
        return _ROOTS[n](x)
    return torch.pow(x, n)


_ROOTS: dict[float, Callable[[Tensor], Tensor]] = {0.5: torch.sqrt, -0.5: torch.rsqrt, -1.0: torch.reciprocal}


def _whole_power(x: Tensor, n: int) -> Tensor:
    if n == 1:
        return x
    half = _whole_power(x, n // 2)
    return half * half * x if n % 2 else half * half


@operator("Sum")
def _sum(node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.add, values)


@operator("Mean")
def _mean(node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.add, values) / len(values)


@operator("Max")
def _max(node: Node, *values: Tensor) -> Tensor:
    return reduce(lambda x, y: _bounded(x, y, low=True), values)


@operator("Min")
def _min(node: Node, *values: Tensor) -> Tensor:
    return reduce(lambda x, y: _bounded(x, y, low=False), values)


def _bounded(x: Tensor, y: Tensor, *, low: bool) -> Tensor:
    """The larger or smaller of two; where one is a single public number, a clamp."""
    for value, bound in ((x, y), (y, x)):
        if is_secret(value) and not is_secret(bound) and bound.numel() == 1 and bound.ndim <= value.ndim:
            limit = float(bound)
            if math.isinf(limit) and (limit < 0) == low:
                return value
            return torch.clamp(value, min=limit) if low else torch.clamp(value, max=limit)
    return torch.maximum(x, y) if low else torch.minimum(x, y)


@operator("Clip")
def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = node.get("min") if low is None else number(node, low, "bound")
    most = node.get("max") if high is None else number(node, high, "bound")
    bounds = [None if each is None or abs(each) > 1e30 else each for each in (least, most)]
    if bounds == [None, None]:
        return x
    if bounds == [0, None]:
        return torch.relu(x)
    return torch.clamp(x, *bounds)


def _functions(domain: str = ONNX, **functions: Callable[[Tensor], Tensor]) -> None:
    for name, function in functions.items():
        operator(name, domain=domain)(lambda node, x, *more, function=function: function(x))


_functions(
    Abs=torch.abs,
    Acos=torch.acos,
    Acosh=torch.acosh,
    Asin=torch.asin,
    Asinh=torch.asinh,
    Atan=torch.atan,
    Atanh=torch.atanh,
    Ceil=torch.ceil,
    Cos=torch.cos,
    Cosh=torch.cosh,
    Erf=torch.erf,
    Exp=torch.exp,
    Floor=torch.floor,
    HardSwish=functional.hardswish,
    Identity=lambda x: x,
    IsNaN=torch.isnan,
    Log=torch.log,
    Mish=functional.mish,
    Neg=torch.neg,
    Not=torch.logical_not,
    Reciprocal=torch.reciprocal,
    Relu=torch.relu,
    Round=torch.round,
    Sigmoid=torch.sigmoid,
    Sign=torch.sign,
    Sin=torch.sin,
    Sinh=torch.sinh,
    Softplus=functional.softplus,
    Softsign=functional.softsign,
    Sqrt=torch.sqrt,
    Tan=torch.tan,
    Tanh=torch.tanh,
)
_functions(OWN, Erfc=lambda x: 1 - torch.erf(x), Rsqrt=torch.rsqrt, Silu=functional.silu, Gelu=functional.gelu)
_functions(MICROSOFT, Gelu=functional.gelu)


@operator("Gelu")
@operator("FastGelu", domain=MICROSOFT)
def _gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    approximate = "tanh" if node.op == "FastGelu" else node.get("approximate", "none")
    return functional.gelu(x if bias is None else x + bias, approximate=approximate)


@operator("TanhGelu", domain=OWN)
def _tanh_gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


@operator("BiasGelu", domain=MICROSOFT)
def _bias_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(x + bias)


@operator("QuickGelu", domain=MICROSOFT)
def _quick_gelu(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x * node.get("alpha", 1.702))


@operator("Swish")
def _swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


@operator("LeakyRelu")
def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    positive = torch.relu(x)
    return positive + slope * (x - positive)


@operator("Elu")
def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def _celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    return torch.mul(functional.elu(x, alpha), gamma)


@operator("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, 0.0)


@operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(x * node.get("alpha", 0.2) + node.get("beta", 0.5), 0, 1)


@operator("Shrink")
def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, 0.0))


@operator("Dropout")
def _dropout(node: Node, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    if training is not None and bool(training):
        raise node.refuse("training_mode, wanted none", hint="export the model in eval mode")
    return x


@operator("IsInf")
def _is_inf(node: Node, x: Tensor) -> Tensor:
    found = torch.isinf(x)
    signs = ((-1, "detect_negative"), (1, "detect_positive"))
    ignored = [sign for sign, name in signs if not node.get(name, 1)]
    return found & ~torch.isin(torch.sign(x), torch.tensor(ignored or [0], dtype=x.dtype))


@operator("Mod")
def _mod(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


def _pairs(**functions: Callable[[Any, Any], Tensor]) -> None:
    for name, function in functions.items():
        operator(name)(lambda node, x, y, function=function: function(x, y))


_pairs(
    And=torch.logical_and,
    BitwiseAnd=torch.bitwise_and,
    BitwiseOr=torch.bitwise_or,
    Equal=torch.eq,
    Greater=torch.gt,
    GreaterOrEqual=torch.ge,
    Less=torch.lt,
    LessOrEqual=torch.le,
    Or=torch.logical_or,
    Xor=torch.logical_xor,
)


@operator("Where")
def _where(node: Node, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # A mask of what softmax is to make nothing of goes past what a secret holds.
    x, y = (_within(each) if any(map(is_secret, (condition, x, y))) else each for each in (x, y))
    return torch.where(condition, x, y)


def _within(value: Tensor) -> Tensor:
    return value if is_secret(value) or not value.is_floating_point() else value.clamp(-(2.0**12), 2.0**12)


_DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
_DTYPES |= {9: torch.bool, 10: torch.float32, 11: torch.float32, 16: torch.float32, 12: torch.int64, 13: torch.int64}


@operator("Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    kind = _DTYPES.get(node.get("to"))
    if kind is None:
        raise node.refuse(f"a cast to type {node.get('to')}, wanted numbers")
    return cast(x, kind)


def cast(x: Tensor, kind: torch.dtype) -> Tensor:
    """As another dtype. All floating-point numbers are of one kind here."""
    if x.is_floating_point() and kind.is_floating_point:
        return x
    if is_secret(x) and not x.is_floating_point() and not kind.is_floating_point and kind != torch.bool:
        return x
    if not is_secret(x) and x.is_floating_point() and not kind.is_floating_point and kind != torch.bool:
        x = x.trunc()
    return x.to(kind)


@operator("CastLike")
def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    return cast(x, like.dtype)
