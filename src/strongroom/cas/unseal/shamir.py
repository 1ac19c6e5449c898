"""Shamir's secret sharing over GF(2^8): any `threshold` shares give the secret, fewer say nothing of it.

Source: A. Shamir, "How to share a secret", Communications of the ACM 22 (1979); the field is that of AES (FIPS 197,
section 4.2: x^8 + x^4 + x^3 + x + 1). Each byte of the secret is shared by a polynomial of its own,

    f(x) = secret + r_1 x + ... + r_(threshold-1) x^(threshold-1),    share of index i = f(i), i from 1 to 255.

All bytes are computed at once, as the bytes of one integer. What is secret is only ever added (exclusive or) and
multiplied by public numbers, the indices and what follows from them: no table is looked up and nothing branches on a
secret.

Pure: randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from strongroom.errors import UsageError

MAX_SHARES = 255
_REDUCED = 0x1B  # x^8 in that field


def split(secret: bytes, *, threshold: int, count: int, random: Callable[[int], bytes]) -> dict[int, bytes]:
    """Shares by index, 1 to `count`, each as long as the secret.

    Args:
        threshold: how many of them give the secret.
        random: gives that many bytes that nobody can guess.

    Raises:
        UsageError: not 1 <= threshold <= count <= 255, or the secret is empty.
    """
    if not 1 <= threshold <= count <= MAX_SHARES or not secret:
        raise UsageError(
            f"shares: got {threshold} of {count}, wanted at least one, and at most all of at most {MAX_SHARES}"
        )
    size = len(secret)
    coefficients = [int.from_bytes(random(size), "big") for _ in range(threshold - 1)]
    shares = {}
    for index in range(1, count + 1):
        value = 0
        for coefficient in reversed(coefficients):  # Horner's rule
            value = times(value ^ coefficient, index, size)
        shares[index] = (value ^ int.from_bytes(secret, "big")).to_bytes(size, "big")
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, if these are at least as many true shares of it as the threshold says; else something else.

    Raises:
        UsageError: there are none, they differ in length, or an index is not from 1 to 255.
    """
    sizes = {len(share) for share in shares.values()}
    if len(sizes) != 1 or not all(1 <= index <= MAX_SHARES for index in shares):
        raise UsageError("shares: wanted at least one, of one length, with indices from 1 to 255")
    (size,) = sizes
    secret = 0
    for index, share in shares.items():
        # Lagrange's basis polynomial at 0: the product over the others of x_j / (x_j - x_i).
        weight = 1
        for other in shares:
            if other != index:
                weight = times(weight, times(other, _inverse(other ^ index), 1), 1)
        secret ^= times(int.from_bytes(share, "big"), weight, size)
    return secret.to_bytes(size, "big")


def times(vector: int, scalar: int, size: int) -> int:
    """Each of the `size` bytes of `vector` times a public number of the field."""
    ones = int.from_bytes(bytes([1]) * size, "big")
    product = 0
    for bit in range(8):
        if scalar >> bit & 1:
            product ^= vector
        carries = vector >> 7 & ones
        vector = (vector & 0x7F * ones) << 1 ^ carries * _REDUCED
    return product


def _inverse(scalar: int) -> int:
    """scalar^254, as the 255 numbers other than 0 are a group."""
    result, power = 1, scalar
    for _ in range(7):
        power = times(power, power, 1)
        result = times(result, power, 1)
    return result
