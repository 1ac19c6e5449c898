"""Logarithms, roots, erf and what is made of them keep the error that they state over the range that they state."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from strongroom import mpc
from strongroom.errors import UsageError
from strongroom.mpc.functions.division import reciprocal, rsqrt
from strongroom.mpc.functions.error import erf, gelu_tanh
from strongroom.mpc.functions.logarithm import exp_clipped, log, log_softmax, softplus
from strongroom.mpc.functions.roots import inverse_root, signed_reciprocal, sqrt
from strongroom.mpc.protocols.place import one_hot_largest
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.ring import Settings
from strongroom.mpc.tensor.world import current
from strongroom.mpc.threads import run_local

LAST = 2.0**-16
END = 2.0**15 - LAST


def evaluate(function, values, settings=None):
    """The revealed results and the rounds they took."""

    def program(party):
        x = share(party, lambda: values, source=0, shape=values.shape)
        before = party.rounds
        y = function(x)
        rounds = party.rounds - before
        return [reveal(each, to=[0]) for each in (y if isinstance(y, tuple) else (y,))], rounds

    (results, rounds), *_ = run_local(program, settings)
    return (*results, rounds)


def rounded(values):
    return np.rint(np.asarray(values) * 2.0**16) / 2.0**16


def rounds_stated(function):
    return int(re.search(r"(\d+) rounds", function.__doc__)[1])


SIGNED = rounded(np.concatenate([np.linspace(-12, 12, 6001), [-END, END], np.geomspace(12, END, 200)]))


def test_log():
    x = rounded(np.concatenate([np.geomspace(2.0**-12, END, 6000), 2.0 ** np.arange(-12, 15)]))
    y, rounds = evaluate(log, x)
    assert (np.abs(y - np.log(x)) <= LAST + 2e-6).all()
    assert rounds == rounds_stated(log)


def test_log_of_what_is_too_small_is_low():
    x = np.array([0.0, LAST, 3 * LAST, 8 * LAST])
    y, _ = evaluate(log, x)
    assert ((-11 * math.log(2) - 2 <= y) & (y <= -11 * math.log(2))).all()


def test_log_of_a_known_range():
    x = rounded(np.linspace(0.5, 7.99, 1000))
    y, _ = evaluate(lambda v: log(v, low=-1, high=3), x)
    assert (np.abs(y - np.log(x)) <= LAST + 2e-6).all()


def test_sqrt():
    x = rounded(np.concatenate([np.geomspace(2.0**-12, END, 6000), [0.0]]))
    y, rounds = evaluate(sqrt, x)
    assert (np.abs(y - np.sqrt(x)) <= LAST + 2.5e-5 * np.sqrt(x)).all()
    assert rounds == evaluate(rsqrt, x)[-1] + 2


def test_sqrt_below_its_range():
    x = np.arange(0, 16) * LAST
    y, _ = evaluate(sqrt, x)
    assert (np.abs(y - np.sqrt(x)) <= 2.0**-8).all()


def test_inverse_root():
    x = rounded(np.geomspace(2.0**-12, END, 4000))
    y, _ = evaluate(inverse_root, x)
    assert (np.abs(y * np.sqrt(x) - 1) <= 3e-5).all()


def test_inverse_root_of_what_has_more_fractional_bits():
    """As a mean of squares and an epsilon, which many write out, have."""
    scaled = rounded(np.geomspace(2.0**-6, 2.0**14, 4000))
    y, rounds = evaluate(lambda v: inverse_root(v.shifted(0, 30)), scaled)
    x = scaled * 2.0**-14
    assert (np.abs(y * np.sqrt(x) - 1) <= 3e-5 + 2.0**-28 / x + LAST * np.sqrt(x)).all()
    assert rounds == rounds_stated(rsqrt) + 1


@pytest.mark.parametrize("exact", [False, True])
def test_signed_reciprocal(exact):
    size = rounded(np.geomspace(2.0**-8, END, 3000))
    x = np.concatenate([size, -size])
    y, rounds = evaluate(signed_reciprocal, x, Settings(exact=exact))
    assert (np.abs(y - 1 / x) <= 2 * LAST + 1e-6 / np.abs(x)).all()
    assert exact or rounds == evaluate(reciprocal, size)[-1] + 6


def test_erf():
    y, rounds = evaluate(erf, SIGNED)
    wanted = torch.erf(torch.from_numpy(SIGNED)).numpy()
    assert (np.abs(y - wanted) <= LAST + 2e-6).all()
    assert rounds == rounds_stated(erf)


F = torch.nn.functional
IN_MODULES = {  # by what docs/explanation/mpc.md calls them: the function, up to which magnitude, the error
    "tanh": (torch.tanh, END, lambda x: 2.0**-15),
    "ELU": (F.elu, END, lambda x: 2.0**-14 + 6e-8 * x),
    "SELU": (F.selu, END, lambda x: 2.0**-14 + 6e-8 * x),
    "Mish": (F.mish, END, lambda x: 2.0**-14 + 4e-5 * x),
    "softsign": (F.softsign, END - 1, lambda x: 2.0**-15 + 2e-7 * x),
    "hardswish": (F.hardswish, 5461.0, lambda x: 2.0**-15 + 4e-7 * x),
}


def test_functions_of_modules_keep_their_errors_in_as_many_rounds_as_stated():
    documented = Path("docs/explanation/mpc.md").read_text()

    def program():
        found = {}
        for name, (function, most, _) in IN_MODULES.items():
            x = torch.from_numpy(SIGNED[np.abs(SIGNED) <= most])
            secret = mpc.share(lambda x=x: x, source=0, shape=x.shape, dtype=torch.float64)
            before = current().party.rounds
            result = function(secret)
            result.read()
            found[name] = x, current().party.rounds - before, mpc.reveal(result, to=0)
        return found

    with mpc.local_world() as world:
        for name, (x, rounds, got) in world.run(program)[0].items():
            function, _, error = IN_MODULES[name]
            assert ((got - function(x)).abs() <= error(x.abs())).all(), name
            assert re.search(rf"\| [^|]*{name}[^|]* \| {rounds} \|", documented), (name, rounds)


@pytest.mark.parametrize("least", [-(2.0**15), -40000.0, -1e9, torch.finfo(torch.float32).min, -math.inf])
def test_a_public_number_of_minus_the_bound_or_below_is_minus_infinity_and_a_large_one_is_refused(least):
    def program():
        x = mpc.share(lambda: torch.tensor([1.0, 2.0, 3.0]), source=0, shape=3)
        mask = torch.tensor([0.0, least, 0.0])
        masked = [x + mask, x.masked_fill(mask < 0, least), torch.where(mask < 0, least, x)]
        found = [mpc.reveal(each.softmax(-1), to=0) for each in masked]
        with pytest.raises(UsageError, match=r"wanted a number of magnitude below 2\^15"):
            x + 2.0**15
        return found, mpc.reveal(x + least, to=0)

    with mpc.local_world() as world:
        found, low = world.run(program)[0]
    wanted = torch.tensor([1.0, -math.inf, 3.0]).softmax(-1)
    assert all((each - wanted).abs().max() < 1e-4 for each in found)
    assert (low == torch.tensor([1.0, 2.0, 3.0]) - 2.0**13).all()


def test_gelu_tanh():
    y, rounds = evaluate(gelu_tanh, SIGNED)
    wanted = torch.nn.functional.gelu(torch.from_numpy(SIGNED), approximate="tanh").numpy()
    assert np.abs(y - wanted).max() <= 5e-5
    assert rounds == rounds_stated(gelu_tanh)


def test_softplus():
    y, rounds = evaluate(softplus, SIGNED)
    wanted = torch.nn.functional.softplus(torch.from_numpy(SIGNED)).numpy()
    assert np.abs(y - wanted).max() <= 2 * LAST
    assert rounds == rounds_stated(softplus)


def test_log_softmax():
    x = rounded(np.random.default_rng(1).normal(0, 3, (50, 9)))
    x[0], x[1] = -5.0, np.linspace(-200, 0, 9)
    y, _ = evaluate(log_softmax, x)
    wanted = torch.log_softmax(torch.from_numpy(x), -1).numpy()
    assert np.abs(y - wanted).max() <= 2.0**-14


def test_exp_of_what_is_far_below():
    x = rounded(np.concatenate([np.linspace(-25, 10.3, 3001), [-END, -1000.0]]))
    y, _ = evaluate(exp_clipped, x)
    assert (np.abs(y - np.exp(x)) <= LAST + 3e-6 + 4e-6 * np.exp(x)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_the_largest_and_its_row(count):
    x = rounded(np.random.default_rng(count).integers(-3, 3, (40, count)))  # with many that are equal
    largest, row, _ = evaluate(one_hot_largest, x)
    assert (largest == x.max(-1)).all()
    assert (row == np.eye(count)[x.argmax(-1)]).all()
