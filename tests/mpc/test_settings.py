"""Under all settings a function keeps its error, or it is refused by the name of a setting."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import gelu, sigmoid, silu, softmax
from strongroom.mpc.functions.division import reciprocal, rsqrt
from strongroom.mpc.functions.error import erf, gelu_tanh
from strongroom.mpc.functions.exponential import exp, exp_negative
from strongroom.mpc.functions.logarithm import log, log_softmax, softplus
from strongroom.mpc.functions.normalisation import layer_norm, rms_norm
from strongroom.mpc.functions.roots import signed_reciprocal, sqrt
from strongroom.mpc.protocols.compare import amax, argmax
from strongroom.mpc.protocols.pool import absolute, clamp
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.ring import Settings
from strongroom.mpc.threads import run_local

SETTINGS = [(4, 1), (4, 54), (12, 3), (16, 2), (16, 4), (16, 15), (16, 30), (24, 5), (30, 2)]
EXACT = [(4, 1), (16, 4), (20, 8)]


def values(settings, low=-1e9, high=1e9):
    """Over a range and over all magnitudes, as shares have them."""
    last = 2.0**-settings.frac
    end = 2.0 ** min(settings.bound, 48) - last
    low, high = max(low, -end), min(high, end)
    sizes = np.geomspace(last, end, 60)
    x = np.concatenate([np.linspace(max(low, -30), min(high, 30), 200), sizes, -sizes, [0, low, high]])
    x = np.rint(x / last) * last
    return x[(x >= low) & (x <= high)]


def rows(settings, length=7):
    end = 2.0 ** min(settings.bound, 48) - 2.0**-settings.frac
    x = np.clip(np.random.default_rng(1).normal(0, 2, (20, length)), -end / 2, end / 2)
    x[0], x[1] = end / 2, -end / 2
    return np.rint(x * 2.0**settings.frac) / 2.0**settings.frac


def below(settings, high):
    return values(settings, -16, min(high, np.log(2) * settings.bound - 0.01))


def of_torch(function):
    return lambda x: function(torch.from_numpy(x)).numpy()


def small(settings):
    """Rows whose squares keep below the bound."""
    return np.clip(rows(settings, 8), -1.25, 1.25)


# By name: the function, the same in float64, the arguments, and what the error may be besides a unit of the result.
TABLE = {
    "exp": (exp, np.exp, lambda s: below(s, 10.3), lambda x: 3e-6 + 4e-6 * np.exp(x)),
    "exp clipped": (
        lambda x: exp(x, clip=True),
        np.exp,
        lambda s: values(s, -1e9, min(10.3, np.log(2) * s.bound - 0.01)),
        lambda x: 3e-6 + 2e-5 * np.exp(x),
    ),
    "exp negative": (exp_negative, np.exp, lambda s: values(s, -1e9, 0), lambda x: 2e-5),
    "sigmoid": (sigmoid, of_torch(torch.sigmoid), values, lambda x: 2e-6),
    "silu": (silu, of_torch(functional.silu), values, lambda x: 2e-6 * np.maximum(1, np.abs(x))),
    "gelu": (gelu, of_torch(functional.gelu), values, lambda x: 5e-5),
    "gelu tanh": (
        gelu_tanh,
        of_torch(lambda x: functional.gelu(x, approximate="tanh")),
        values,
        lambda x: 5e-5,
    ),
    "erf": (erf, of_torch(torch.erf), values, lambda x: 2e-6),
    "softplus": (softplus, of_torch(functional.softplus), lambda s: values(s, -1e9, 2.0**s.bound - 1), lambda x: 2e-6),
    "log": (lambda x: log(x, low=-1), np.log, lambda s: values(s, 0.5), lambda x: 2e-6),
    "reciprocal": (lambda x: reciprocal(x, low=-1), lambda x: 1 / x, lambda s: values(s, 0.5), lambda x: 1e-6 / x),
    "rsqrt": (lambda x: rsqrt(x, low=-1), lambda x: x**-0.5, lambda s: values(s, 0.5), lambda x: 2e-6 * x**-0.5),
    "sqrt": (lambda x: sqrt(x, low=-1), np.sqrt, lambda s: values(s, 0.5), lambda x: 2.5e-5 * np.sqrt(x)),
    "quotient": (signed_reciprocal, lambda x: 1 / x, lambda s: values(s, 0.5), lambda x: 1e-6 / x),
    "softmax": (softmax, of_torch(lambda x: x.softmax(-1)), rows, lambda x: 2e-6),
    "long softmax": (softmax, of_torch(lambda x: x.softmax(-1)), lambda s: rows(s, 40), lambda x: 2e-6),
    "log softmax": (log_softmax, of_torch(lambda x: x.log_softmax(-1)), lambda s: rows(s) / 2, lambda x: 2.0**-14),
    "layer norm": (layer_norm, of_torch(lambda x: functional.layer_norm(x, x.shape[1:])), small, lambda x: 1e-3),
    "rms norm": (
        rms_norm,
        of_torch(lambda x: functional.rms_norm(x, x.shape[1:], eps=1e-5)),
        small,
        lambda x: 1e-3,
    ),
    "max": (amax, lambda x: x.max(-1), rows, lambda x: 0),
    "argmax": (argmax, lambda x: x.argmax(-1), rows, lambda x: 0),
    "abs": (absolute, np.abs, values, lambda x: 0),
    "clamp": (lambda x: clamp(x, -1, 1), lambda x: x.clip(-1, 1), values, lambda x: 0),
}


@pytest.mark.parametrize("name", TABLE)
def test_an_error_is_kept_or_a_setting_is_named(name):
    function, reference, arguments, error = TABLE[name]
    for exact, pairs in ((False, SETTINGS), (True, EXACT)):
        for frac, bound in pairs:
            settings = Settings(frac=frac, bound=bound, exact=exact)
            x = arguments(settings)

            def program(party, x=x):
                return reveal(function(share(party, lambda: x, source=0, shape=x.shape)), to=[0])

            try:
                got = run_local(program, settings)[0]
            except UsageError as refused:
                assert "bound" in refused.message or "fractional bits" in refused.message
                assert (frac, bound) != (16, 15)  # the default
                continue
            # Each two bits of the bound beyond 2^15 halve what is precise inside.
            inner = 2.0 ** max(0, (bound - 15) / 2)
            allowed = 2 * 2.0**-frac + inner * error(x) + 2.0 ** (4 - min(28, (62 - bound) // 2))
            assert (np.abs(got - reference(x)) <= allowed).all(), (settings, name)
