"""Fixed-point numbers in the ring Z_2^64, and the ring's products.

- A value v is the word round(v * 2^f) mod 2^64; f is a setting.
- Words are `uint64`: they wrap by themselves, and NumPy shifts them logically. torch's int64 wraps likewise, but
  shifts arithmetically, so torch only multiplies here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from strongroom.errors import UsageError

Words = NDArray[np.uint64]

WIDTH = 64
_THIN = 3  # rows up to which NumPy is faster than torch, which multiplies one row as fast as 16
_DIVIDED = 1024  # rows and columns from which on Strassen's product is faster (1.6 times at 1024: Zen 4, torch 2.13)


@dataclass(frozen=True)
class Settings:
    """What all parties agree on before they start; part of the epoch.

    Attributes:
        frac: fractional bits of a value, f.
        bound: every value v keeps |v| < 2^bound. A smaller bound makes comparisons cheaper; a value beyond it is
            silently wrong, but for inputs, which are checked.
        exact: truncate to the floor, so that results do not depend on the masks; else round stochastically.
        seconds: how long a party waits for another's next bytes.
    """

    frac: int = 16
    bound: int = 15
    exact: bool = False
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.frac <= 30:
            raise UsageError(f"fractional bits: got {self.frac}, wanted 1 to 30")
        most = WIDTH - 2 - 2 * self.frac
        if not 1 <= self.bound <= most:
            raise UsageError(
                f"bound: got 2^{self.bound}, wanted 2^1 to 2^{most} with {self.frac} fractional bits",
                hint="a product holds twice the fractional bits, and 2 bits are for the opening",
            )

    def opening(self, frac: int) -> int:
        """The bits that an opened, masked value of `frac` fractional bits takes: it, its sign, and room for a wrap."""
        return frac + self.bound + 2

    def describe(self) -> str:
        """What the parties compare."""
        return f"frac={self.frac} bound={self.bound} exact={int(self.exact)}"


def encode(values: ArrayLike, frac: int, bound: int) -> Words:
    """`values` as words, rounded to the nearest multiple of 2^-frac.

    Raises:
        UsageError: a value is not a number, infinite, or not below 2^bound in magnitude.
    """
    floats = np.asarray(values, np.float64)
    finite = np.isfinite(floats)
    if not finite.all():
        raise UsageError(f"values: got {floats[~finite][0]} at {_first(~finite)}, wanted finite numbers")
    scaled = np.rint(np.ldexp(floats, frac))
    beyond = np.abs(scaled) >= 2.0 ** (bound + frac)
    if beyond.any():
        # The value itself may be a secret, and messages end in logs.
        raise UsageError(
            f"values: the one at {_first(beyond)} is out of range, wanted magnitudes below 2^{bound}",
            hint="scale the values, or raise the bound in the settings",
        )
    return scaled.astype(np.int64).view(np.uint64)


def decode(words: Words, frac: int) -> NDArray[np.float64]:
    """The values of words, as float64."""
    return np.ldexp(words.view(np.int64).astype(np.float64), -frac)


def _first(found: NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.unravel_index(int(np.argmax(found)), found.shape)]


def sign_extend(words: Words, width: int) -> Words:
    """Words of `width` bits as signed numbers in the whole ring."""
    shift = np.uint64(WIDTH - width)
    return ((words << shift).view(np.int64) >> np.int64(WIDTH - width)).view(np.uint64)


def matmul(a: Words, b: Words) -> Words:
    """The matrix product in the ring; stacks of matrices multiply as in `numpy.matmul`."""
    if a.ndim == 2 and b.ndim == 2 and len(a) <= _THIN:
        out = np.empty((len(a), b.shape[1]), np.uint64)
        for row, result in zip(a, out, strict=True):
            np.einsum("k,kn->n", row, b, out=result)
        return out
    left, right = _torch(a), _torch(b)
    if left.ndim == 2 and right.ndim == 2:
        return _numpy(_divide(left, right))
    return _numpy(torch.matmul(left, right))


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Strassen's product of large matrices in Winograd's form: 7 products of quarters and 15 sums, exact in any ring.

    V. Strassen, "Gaussian elimination is not optimal", Numer. Math. 13 (1969); B. Boyer, J.-G. Dumas, C. Pernet and
    W. Zhou, "Memory efficient scheduling of Strassen-Winograd's matrix multiplication algorithm", ISSAC '09, section 2.
    """
    m, k, n = *a.shape, b.shape[1]
    if min(m, k, n) < _DIVIDED or m % 2 or k % 2 or n % 2:
        return a @ b
    m, k, n = m // 2, k // 2, n // 2
    a11, a12, a21, a22 = a[:m, :k], a[:m, k:], a[m:, :k], a[m:, k:]
    b11, b12, b21, b22 = b[:k, :n], b[:k, n:], b[k:, :n], b[k:, n:]
    s1, t1 = a21 + a22, b12 - b11
    s2, t2 = s1 - a11, b22 - t1
    p1 = _divide(a11, b11)
    u2 = p1 + _divide(s2, t2)
    u3 = u2 + _divide(a11 - a21, b22 - b12)
    p5 = _divide(s1, t1)
    out = torch.empty(2 * m, 2 * n, dtype=a.dtype)
    torch.add(p1, _divide(a12, b21), out=out[:m, :n])
    torch.add(u2 + p5, _divide(a12 - s2, b22), out=out[:m, n:])
    torch.sub(u3, _divide(a22, t2 - b21), out=out[m:, :n])
    torch.add(u3, p5, out=out[m:, n:])
    return out


@dataclass(frozen=True)
class Convolution:
    """The numbers of a two-dimensional convolution, as `torch.nn.functional.conv2d` takes them."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def shape(self, x: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """The shape of the result; UsageError unless both shapes fit."""
        if len(x) != 4 or len(w) != 4 or x[1] != w[1] * self.groups or w[0] % self.groups:
            raise UsageError(
                f"conv2d: got shapes {tuple(x)} and {tuple(w)} in {self.groups} groups, "
                "wanted (batch, channels, height, width) and (channels out, channels / groups, height, width)"
            )
        sides = [
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(
                x[2:], w[2:], self.stride, self.padding, self.dilation, strict=True
            )
        ]
        if min(sides) < 1:
            raise UsageError(f"conv2d: the kernel {tuple(w[2:])} is larger than the padded image {tuple(x[2:])}")
        return (x[0], w[0], *sides)

    def __call__(self, x: Words, w: Words) -> Words:
        """The convolution in the ring."""
        return _numpy(
            torch.nn.functional.conv2d(
                _torch(x),
                _torch(w),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        )


@dataclass(frozen=True)
class Transposed:
    """The numbers of a transposed convolution, as `torch.nn.functional.conv_transpose2d` takes them."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def shape(self, x: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """The shape of the result; UsageError unless both shapes fit."""
        if len(x) != 4 or len(w) != 4 or x[1] != w[0] or w[0] % self.groups:
            raise UsageError(
                f"transposed conv2d: got shapes {tuple(x)} and {tuple(w)} in {self.groups} groups, "
                "wanted (batch, channels, height, width) and (channels, channels out / groups, height, width)"
            )
        sides = [
            (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
            for side, kernel, stride, padding, dilation, more in zip(
                x[2:], w[2:], self.stride, self.padding, self.dilation, self.output_padding, strict=True
            )
        ]
        if min(sides) < 1:
            raise UsageError(f"transposed conv2d: got padding {self.padding}, wanted some of the image to be left")
        return (x[0], w[1] * self.groups, *sides)

    def __call__(self, x: Words, w: Words) -> Words:
        """The transposed convolution in the ring."""
        return _numpy(
            torch.nn.functional.conv_transpose2d(
                _torch(x),
                _torch(w),
                stride=self.stride,
                padding=self.padding,
                output_padding=self.output_padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        )


def _torch(words: Words) -> torch.Tensor:
    if not words.flags.writeable or any(stride < 0 for stride in words.strides):
        words = words.copy()  # torch has no negative strides, and warns of what it may not write to
    return torch.from_numpy(words.view(np.int64))


def _numpy(tensor: torch.Tensor) -> Words:
    words: Words = tensor.contiguous().numpy().view(np.uint64)
    return words
