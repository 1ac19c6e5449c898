"""Functions keep the error that they state over the range that they state, in the rounds that they state."""

import itertools
import re

import numpy as np
import pytest
import torch

from strongroom.errors import UsageError
from strongroom.mpc.functions.activation import gelu, sigmoid, silu, softmax
from strongroom.mpc.functions.division import reciprocal, rsqrt
from strongroom.mpc.functions.exponential import exp, exp_negative
from strongroom.mpc.functions.normalisation import layer_norm, rms_norm
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.ring import Settings
from strongroom.mpc.threads import run_local

LAST = 2.0**-16
END = 2.0**15 - LAST


def evaluate(function, values, settings=None):
    """The revealed result and the rounds it took; `values` are first rounded as shares are."""

    def program(party):
        x = share(party, lambda: values, source=0, shape=values.shape)
        before = party.rounds
        y = function(x)
        return reveal(y, to=[0]), party.rounds - before - 2

    return run_local(program, settings)[0]


def rounded(values, frac=16):
    return np.rint(np.asarray(values) * 2.0**frac) / 2.0**frac


def stated_rounds(function):
    return int(re.search(r"(\d+) rounds", function.__doc__)[1])


def test_exp():
    x = rounded(np.linspace(-20, 10.3, 20_001))
    y, rounds = evaluate(exp, x)
    assert (np.abs(y - np.exp(x)) <= LAST + 3e-6 + 4e-6 * np.exp(x)).all()
    assert np.abs(y - np.exp(x))[(x >= -5) & (x <= 2)].max() < 2e-4
    assert rounds == stated_rounds(exp)


def test_exp_with_exact_settings():
    x = rounded(np.linspace(-16, 10.3, 5001))
    y, rounds = evaluate(exp, x, Settings(exact=True))
    assert (np.abs(y - np.exp(x)) <= LAST + 2e-5 * np.exp(x)).all()
    assert rounds == int(re.findall(r"(\d+) rounds", exp.__doc__)[1])


@pytest.mark.parametrize("exact", [False, True])
def test_exp_of_what_is_far_too_low_is_next_to_nothing(exact):
    x = rounded(np.concatenate([-np.geomspace(16, END, 2000), np.linspace(-16, 10.3, 2001)]))
    y, rounds = evaluate(lambda v: exp(v, clip=True), x, Settings(exact=exact))
    assert (np.abs(y - np.exp(x)) <= LAST + 3e-6 + (2e-5 if exact else 4e-6) * np.exp(x)).all()
    assert exact or rounds == stated_rounds(exp)


@pytest.mark.parametrize("exact", [False, True])
def test_exp_of_all_that_is_not_positive(exact):
    """Differences of two values, so twice as low as a value can be."""
    half = -rounded(np.concatenate([np.linspace(0, 9, 10_001), np.geomspace(9, END, 1000)]))
    y, rounds = evaluate(lambda v: exp_negative(v + v, frac=23), half, Settings(exact=exact))
    wanted = np.exp(2 * half)
    assert (np.abs(y - wanted) <= 2.0**-23 + 1.2e-6 + (2e-5 if exact else 2e-6) * wanted).all()
    if not exact:
        assert (y[2 * half <= -16] == 0).all()
        assert rounds == stated_rounds(exp_negative)


def test_reciprocal():
    x = rounded(
        np.concatenate([np.geomspace(2.0**-8, END, 10_000), 2.0 ** np.arange(-8, 15), 2.0 ** np.arange(1, 15) - LAST])
    )
    y, rounds = evaluate(reciprocal, x)
    assert (np.abs(y - 1 / x) <= LAST + 1e-6 / x).all()
    assert rounds == stated_rounds(reciprocal)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 3), (-2, 15), (-15, -13)])
def test_reciprocal_of_a_known_range(low, high):
    x = rounded(np.linspace(2.0**low, 2.0**high - LAST, 1000))
    wide = evaluate(lambda v: reciprocal(v, low=low, high=high), x)[0]
    assert (np.abs(wide - 1 / x) <= LAST + 1e-6 / x).all()


@pytest.mark.parametrize(("low", "high"), [(3, 3), (-20, 1), (0, 16)])
def test_a_range_that_cannot_be_is_refused(low, high):
    with pytest.raises(UsageError, match=r"range: got 2.*, wanted one within"):
        evaluate(lambda v: reciprocal(v, low=low, high=high), np.ones(3))


@pytest.mark.parametrize(
    ("function", "reference", "error"),
    [
        (sigmoid, torch.sigmoid, lambda x: 2.0**-15),
        (silu, torch.nn.functional.silu, lambda x: 2.0**-15 + 2e-6 * np.abs(x)),
        (gelu, torch.nn.functional.gelu, lambda x: 5e-5),
    ],
)
def test_activations_over_all_values(function, reference, error):
    x = rounded(np.concatenate([np.linspace(-30, 30, 10_001), [-END, END, -1000, 1000, 0, LAST, -LAST]]))
    y, rounds = evaluate(function, x)
    assert (np.abs(y - reference(torch.from_numpy(x)).numpy()) <= error(x)).all()
    assert rounds == stated_rounds(function)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_softmax(length):
    rng = np.random.default_rng(length)
    x = rounded(rng.normal(0, 2, (200, length)))
    x[0], x[1], x[2, 0] = END, -END, END
    y, rounds = evaluate(softmax, x)
    assert np.abs(y - torch.softmax(torch.from_numpy(x), -1).numpy()).max() <= 2.0**-15
    halvings = {1: 0, 2: 1, 7: 3, 100: 7}[length]
    assert rounds <= int(re.search(r"Rounds: (\d+)", softmax.__doc__)[1]) + 4 * halvings


def test_settings_without_room_for_inner_bits_are_refused_by_name():
    with pytest.raises(UsageError, match=r"fractional bits: got 20 .*, wanted fewer"):
        evaluate(exp, np.ones(3), Settings(frac=20, bound=15, exact=True))


def test_other_settings_with_room_work_too():
    for frac, bound in ((14, 12), (20, 15)):
        x = rounded(np.linspace(-8, 5, 1000), frac)
        y, _ = evaluate(exp, x, Settings(frac=frac, bound=bound))
        assert np.abs(y - np.exp(x)).max() <= 2.0**-frac + 1e-5 * np.exp(5)


def test_reciprocal_square_root():
    x = rounded(np.concatenate([np.geomspace(2.0**-8, END, 10_000), 2.0 ** np.arange(-8, 15)]))
    y, rounds = evaluate(rsqrt, x)
    assert (np.abs(y - x**-0.5) <= LAST + 2e-6 * x**-0.5).all()
    assert rounds == stated_rounds(rsqrt)


@pytest.mark.parametrize("size", [0.05, 1, 20])
def test_norms(size):
    rng = np.random.default_rng(1)
    x, w, b = (rounded(v) for v in (rng.normal(size, size, (50, 96)), rng.uniform(0.5, 2, 96), rng.normal(0, 1, 96)))

    def program(party):
        secrets = [share(party, lambda v=v: v, source=0, shape=v.shape) for v in (x, w, b)]
        rounds = [party.rounds]
        results = []
        for function, more in ((layer_norm, ()), (layer_norm, secrets[1:]), (rms_norm, ()), (rms_norm, secrets[1:2])):
            results.append(reveal(function(secrets[0], *more), to=[0]))
            rounds.append(party.rounds)
        return results, [after - before - 2 for before, after in itertools.pairwise(rounds)]

    got, rounds = run_local(program)[0]
    plain, x, w, b = torch.nn.functional, *map(torch.from_numpy, (x, w, b))
    wanted = [plain.layer_norm(x, (96,)), plain.layer_norm(x, (96,), w, b)]
    wanted += [plain.rms_norm(x, (96,), eps=1e-5), plain.rms_norm(x, (96,), w, eps=1e-5)]
    for result, each in zip(got, wanted, strict=True):
        reference = each.numpy()
        # Weights are at most 2.
        assert (np.abs(result - reference) / np.maximum(np.abs(reference), 2)).max() < 2.0**-14 + 2.0**-15 / size
    # The last one finds its operand open: it takes 25 instead of 26.
    assert rounds == [25, 27, 24, 25]


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1.2e-7, 1e-6, 1e-5, 1e-3, 0.5])
def test_norms_keep_their_error_down_to_where_epsilon_is_all_there_is(eps):
    """As what a network looks up has a standard deviation of 0.01, and less."""
    rng = np.random.default_rng(2)
    x = rounded(rng.normal(0, 1, (60, 48)) * np.geomspace(2.0**-11, 64, 60)[:, None])
    x = np.concatenate([x, np.full((1, 48), LAST), np.zeros((1, 48))]) if eps >= 2.0**-24 else x

    def program(party):
        secret = share(party, lambda: x, source=0, shape=x.shape)
        return [reveal(function(secret, eps=eps), to=[0]) for function in (rms_norm, layer_norm)]

    for got, centre in zip(run_local(program)[0], (0, x.mean(-1, keepdims=True)), strict=True):
        root = np.sqrt(np.square(x - centre).mean(-1, keepdims=True) + eps)
        wanted = (x - centre) / np.maximum(root, 1e-30)
        assert (np.abs(got - wanted) <= (2.0**-14 + 2.0**-15 / root) * np.maximum(np.abs(wanted), 1)).all()
