"""What is written through any view of a secret is seen through every other, as of a plain tensor."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom import mpc
from strongroom.errors import UsageError

# One step takes a tensor and two numbers, and gives a view of it.
VIEWS = [
    lambda x, a, b: x[a % len(x)] if x.ndim > 1 else x,
    lambda x, a, b: x[a % len(x) :],
    lambda x, a, b: x[::2],
    lambda x, a, b: x.t() if x.ndim == 2 else x.transpose(0, -1),
    lambda x, a, b: x.unsqueeze(a % (x.ndim + 1)),
    lambda x, a, b: x.chunk(2, a % x.ndim)[-1],
    lambda x, a, b: x.select(a % x.ndim, b % x.shape[a % x.ndim]) if x.ndim > 1 else x,
    lambda x, a, b: x.narrow(a % x.ndim, 0, max(1, x.shape[a % x.ndim] - 1)),
    lambda x, a, b: x.squeeze() if x.numel() > 1 else x,  # what has no dimension has no length
    lambda x, a, b: x.view(-1) if x.is_contiguous() else x.movedim(0, -1),
    lambda x, a, b: x.diagonal() if x.ndim > 1 else x,
    lambda x, a, b: x.unbind(0)[a % len(x)] if x.ndim > 1 else x,
    lambda x, a, b: x.detach().view_as(x),
    lambda x, a, b: x[..., None, :],
    lambda x, a, b: x.unfold(0, min(2, len(x)), 2),
    lambda x, a, b: x.flatten() if x.is_contiguous() else x,
]


def _indexed(x, a):
    x[torch.tensor([a % len(x)])] = 0.5


def _masked(x, a):
    x[torch.arange(x.numel()).reshape(x.shape) % 3 == a % 3] = -1.0


def _scattered(x, a):
    where = torch.full((1, *x.shape[1:]), a % len(x))
    x.scatter_(0, where, torch.full(where.shape, 0.25, dtype=x.dtype))


def _put(x, a):
    x.index_put_((torch.tensor([0, a % len(x)]),), x[:1] * 0 + 0.5, accumulate=True)


def _copied(x, a):
    x.index_copy_(0, torch.tensor([a % len(x)]), x[:1] * 0 + 2)


# One write takes a tensor and a number.
WRITES = [
    lambda x, a: x.add_(a),
    lambda x, a: x.mul_(-2 if a % 2 else 0.5),
    lambda x, a: x.copy_(x * 0.5 + 1),
    lambda x, a: x.zero_(),
    lambda x, a: x.fill_(a),
    lambda x, a: x.neg_(),
    lambda x, a: x.relu_(),
    lambda x, a: x.clamp_(-1, 2),
    lambda x, a: x.masked_fill_(torch.arange(x.shape[-1]) == a % x.shape[-1], 3.0),
    lambda x, a: x.__setitem__(slice(0, 1), x[:1] + a),
    lambda x, a: x.__setitem__(..., 0.75),
    lambda x, a: x.add_(x, alpha=0.5),
    lambda x, a: x.index_fill_(0, torch.tensor([a % len(x)]), 1.5),
    lambda x, a: x.index_add_(0, torch.tensor([a % len(x)]), x[:1] * 0 + 1),
    lambda x, a: x.lerp_(x * 0, 0.5),
    lambda x, a: x.addcmul_(x, x * 0 + 2),
    lambda x, a: x.cumsum_(0),
    lambda x, a: x.sub_(torch.full(x.shape, 0.25, dtype=x.dtype)),
    lambda x, a: x.abs_(),
    _indexed,
    _masked,
    _scattered,
    _put,
    _copied,
]
SMALL = st.integers(0, 6)
STEPS = st.lists(
    st.tuples(st.lists(st.tuples(st.sampled_from(VIEWS), SMALL, SMALL), max_size=3), st.sampled_from(WRITES), SMALL),
    min_size=1,
    max_size=5,
)


def _run(x, steps):
    """Views of the whole and of each other, written to one after the other; then all that anyone sees."""
    views = [x]
    for path, write, a in steps:
        view = views[a % len(views)]
        for step, b, c in path:
            view = step(view, b, c)
        if not view.numel() or not view.ndim:
            continue
        views.append(view)
        write(view, a)
    return torch.cat([each.reshape(-1) for each in views])


@pytest.fixture(scope="module")
def world():
    with mpc.local_world() as world:
        yield world


@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_views_alias_as_plain_ones_do(world, steps):
    values = torch.from_numpy(np.linspace(-2, 2, 12).reshape(3, 4))
    wanted = _run(values.clone(), steps)

    def program():
        x = mpc.share(lambda: values, source=0, shape=(3, 4), dtype=torch.float64)
        try:
            return mpc.reveal(_run(x, steps), to=0)
        except UsageError as error:  # which would end the world, and every example after this one
            return error

    got = world.run(program)[0]
    assert isinstance(got, torch.Tensor), got
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 2e-3 * max(1, wanted.abs().max())


def test_a_view_of_bits_and_of_numbers_is_written_through():
    def writes(x):
        bits, counted = x > 0, (x > 0).long()
        bits[0] = False
        bits.t()[1].logical_not_()
        counted[:, 0] += 3
        counted[1].mul_(2)
        return bits, counted

    x = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -6.0]])

    def program():
        return [mpc.reveal(each, to=0) for each in writes(mpc.share(lambda: x, source=0, shape=(2, 3)))]

    with mpc.local_world() as world:
        for got, wanted in zip(world.run(program)[0], writes(x), strict=True):
            assert got.dtype == wanted.dtype and torch.equal(got, wanted)


def test_no_opening_outlives_a_write_through_a_view():
    """A mask that hid one value and went on to hide another would give away their difference."""

    def program():
        x = mpc.share(lambda: torch.arange(6.0).reshape(2, 3), source=0, shape=(2, 3))
        row, turned = x[0], x.t()
        before = [x * x, row * row, turned @ x, (x > 2) * x]
        turned[1].fill_(5)
        after = [x * x, row * row, turned @ x, (x > 2) * x]
        return [mpc.reveal(each, to=0) for each in (*before, *after)]

    x = torch.arange(6.0).reshape(2, 3)
    y = x.clone()
    y[:, 1] = 5
    wanted = [*(x * x, x[0] * x[0], x.T @ x, (x > 2) * x), *(y * y, y[0] * y[0], y.T @ y, (y > 2) * y)]
    with mpc.local_world() as world:
        for got, each in zip(world.run(program)[0], wanted, strict=True):
            assert (got - each).abs().max() < 1e-3
