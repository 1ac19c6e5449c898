"""Each protocol against exact integer arithmetic, over random and extreme values, at the edges of its range."""

import numpy as np
import pytest
import torch

from strongroom.errors import UsageError
from strongroom.mpc.protocols import compare, linear, truncate
from strongroom.mpc.protocols.largest import largest
from strongroom.mpc.protocols.owned import conv2d_owned, matmul_owned, own
from strongroom.mpc.protocols.pool import absolute, clamp, max_pool2d
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.ring import Convolution, Settings, Transposed
from strongroom.mpc.shared import concatenate
from strongroom.mpc.threads import run_local
from tests.mpc.parties import integers, opened, random_integers

COUNT = 3000
# (bits dropped, opening): narrow, odd, the settings' default, the whole ring.
WIDTHS = [(0, 4), (1, 7), (5, 13), (8, 24), (0, 33), (16, 49), (13, 50), (20, 64), (0, 64), (40, 64)]


def ring_words(rng, *shape):
    return rng.integers(-(2**63), 2**63 - 1, shape, dtype=np.int64)


def as_object(values):
    return values.view(np.uint64).astype(object)


@pytest.mark.parametrize(
    "shapes",
    [((5, 7), (7, 3)), ((1, 9), (9, 4)), ((2, 3, 4), (2, 4, 5)), ((3, 4, 2), (2, 6)), ((1, 1), (1, 1))],
    ids=str,
)
def test_matmul_is_exact_in_the_ring(shapes):
    rng = np.random.default_rng(1)
    a, b = (ring_words(rng, *shape) for shape in shapes)
    got = opened(run_local(lambda p: linear.matmul(integers(p, a), integers(p, b))))
    assert (as_object(got) == np.matmul(as_object(a), as_object(b)) % (1 << 64)).all()


def test_products_by_element_and_with_public_numbers_are_exact():
    rng = np.random.default_rng(2)
    a, b, public = ring_words(rng, 4, 5), ring_words(rng, 5), rng.uniform(-9, 9, (4, 1))
    results = run_local(
        lambda p: (linear.multiply(integers(p, a), integers(p, b)), integers(p, a).times_public(public))
    )
    product, scaled = (opened([each[i] for each in results]) for i in (0, 1))
    assert (as_object(product) == as_object(a) * as_object(b) % (1 << 64)).all()
    factor = np.rint(public * 2**16).astype(np.int64)
    assert (as_object(scaled) == as_object(a) * as_object(factor) % (1 << 64)).all()


@pytest.mark.parametrize(
    "how", [Convolution(), Convolution((2, 1), (1, 2)), Convolution(dilation=(2, 1)), Convolution(groups=2)], ids=str
)
def test_convolution_is_exact_in_the_ring(how):
    rng = np.random.default_rng(3)
    x, w = ring_words(rng, 2, 4, 6, 5), ring_words(rng, 4, 4 // how.groups, 3, 2)
    got = opened(run_local(lambda p: linear.conv2d(integers(p, x), integers(p, w), how)))
    assert (got.view(np.uint64) == how(x.view(np.uint64), w.view(np.uint64))).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_sequences_and_transposed_ones(groups):
    """Integers small enough for float64, which torch convolves by other code."""
    rng = np.random.default_rng(groups)
    x, w = rng.integers(-99, 99, (2, 4, 9)), rng.integers(-99, 99, (6, 4 // groups, 3))
    image, kernel = rng.integers(-99, 99, (2, 4, 5, 4)), rng.integers(-99, 99, (4, 6 // groups, 3, 2))
    how = Transposed((2, 1), (1, 0), (1, 0), groups=groups)
    results = run_local(
        lambda p: (
            linear.conv1d(integers(p, x), integers(p, w), stride=2, padding=1, groups=groups),
            linear.conv_transpose2d(integers(p, image), integers(p, kernel), how),
        )
    )
    floats = [torch.from_numpy(each.astype(float)) for each in (x, w, image, kernel)]
    plain = torch.nn.functional
    wanted = [
        plain.conv1d(*floats[:2], stride=2, padding=1, groups=groups),
        plain.conv_transpose2d(*floats[2:], stride=(2, 1), padding=(1, 0), output_padding=(1, 0), groups=groups),
    ]
    for i, each in enumerate(wanted):
        assert (opened([result[i] for result in results]) == each.numpy()).all()


@pytest.mark.parametrize(("bits", "width"), WIDTHS)
def test_truncation_is_off_by_less_than_one_and_never_by_more(bits, width):
    rng = np.random.default_rng(width + bits)
    x = random_integers(rng, COUNT, -(1 << (width - 2)), (1 << (width - 2)) - 1)
    got = opened(run_local(lambda p: truncate.truncate(integers(p, x), bits, width=width, exact=False)))
    above = got - (x >> bits)
    assert set(np.unique(above)) <= {0, 1}
    assert (above[x & ((1 << bits) - 1) == 0] == 0).all()


def test_stochastic_truncation_is_unbiased():
    x = np.full(20_000, 3 * 2**14 + 2**20)  # 16.75 in units of 2^16
    got = opened(run_local(lambda p: truncate.truncate(integers(p, x), 16, width=49, exact=False)))
    # Five standard deviations of the mean of 20,000 coins.
    assert abs(got.mean() - 16.75) < 5 * np.sqrt(0.75 * 0.25 / len(x))


@pytest.mark.parametrize(("bits", "width"), WIDTHS)
def test_exact_truncation_is_the_floor(bits, width):
    rng = np.random.default_rng(width + bits)
    x = random_integers(rng, COUNT, -(1 << (width - 2)), (1 << (width - 2)) - 1)
    got = opened(run_local(lambda p: truncate.truncate(integers(p, x), bits, width=width, exact=True)))
    assert (got == x >> bits).all()


@pytest.mark.parametrize(("bits", "width"), WIDTHS)
def test_relu_drops_what_is_negative_and_truncates_the_rest(bits, width):
    rng = np.random.default_rng(width - bits)
    x = random_integers(rng, COUNT, -(1 << (width - 2)), (1 << (width - 2)) - (1 << bits))
    got = opened(run_local(lambda p: relu(integers(p, x), bits, width=width)))
    floor = x >> bits
    assert ((got == np.maximum(floor, 0)) | (got == np.maximum(floor + 1, 0))).all()
    if bits == 0:
        assert (got == np.maximum(x, 0)).all()
    whole = x & ((1 << bits) - 1) == 0
    assert (got[whole] == np.maximum(floor, 0)[whole]).all()


@pytest.mark.parametrize("width", [3, 4, 5, 6, 12, 21, 33, 34, 48, 63, 64])
def test_the_sign_is_right_over_the_whole_width(width):
    rng = np.random.default_rng(width)
    x = random_integers(rng, COUNT, -(1 << (width - 1)), (1 << (width - 1)) - 1)
    got = opened(run_local(lambda p: compare.is_negative(integers(p, x), width=width)))
    assert (got == (x < 0)).all()


def test_no_value_of_a_small_ring_is_decided_wrongly():
    """Every value of an 8-bit opening, each 64 times under fresh masks."""
    x = np.tile(np.arange(-64, 64), 64)
    results = run_local(
        lambda p: (
            compare.is_negative(integers(p, x), width=8),
            relu(integers(p, x), 0, width=8),
            truncate.truncate(integers(p, x), 3, width=8, exact=True),
        )
    )
    negative, positive, floor = (opened([each[i] for each in results]) for i in range(3))
    assert (negative == (x < 0)).all()
    assert (positive == np.maximum(x, 0)).all()
    assert (floor == x >> 3).all()


@pytest.mark.parametrize("count", [1, 63, 65, (1 << 16) + 1])
def test_sizes_around_planes_and_chunks(count):
    rng = np.random.default_rng(count)
    x = random_integers(rng, count, -(1 << 30), (1 << 30) - 1)
    results = run_local(
        lambda p: (relu(integers(p, x), 0, width=33), truncate.truncate(integers(p, x), 4, width=33, exact=True))
    )
    assert (opened([each[0] for each in results]) == np.maximum(x, 0)).all()
    assert (opened([each[1] for each in results]) == x >> 4).all()


def test_single_numbers_and_no_numbers_at_all():
    def program(party):
        x, y = (share(party, lambda v=v: v, source=0, shape=()) for v in (-2.5, 3.0))
        product = truncate.truncate(linear.multiply(x, y)) + 1.0
        row = share(party, lambda: [4.0, 5.0], source=1, shape=(2,))
        nothing = share(party, lambda: np.zeros((0, 3)), source=0, shape=(0, 3))
        values = [product, relu(product), compare.maximum(row[0], row[1]), -row[1] - row[0]]
        empty = [relu(nothing), truncate.truncate(linear.matmul(nothing, nothing.T), exact=True)]
        return [reveal(v, to=[0]) for v in values], [each.shape for each in empty]

    numbers, shapes = run_local(program)[0]
    assert numbers == [-6.5, 0, 5, -9]
    assert shapes == [(0, 3), (0, 0)]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 11])
def test_maximum_and_argmax_along_the_last_axis(length):
    rng = np.random.default_rng(length)
    x = rng.uniform(-100, 100, (40, length))
    x[::4] = np.round(x[::4] / 100)  # ties

    def program(party):
        secret = share(party, lambda: x, source=0, shape=x.shape)
        return reveal(compare.amax(secret), to=[0]), reveal(compare.argmax(secret), to=[1])

    results = run_local(program)
    assert np.abs(results[0][0] - x.max(-1)).max() <= 2.0**-17
    assert (results[1][1] == np.rint(x * 2**16).argmax(-1)).all()


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("values", [2, 3, 4])
@pytest.mark.parametrize(("bits", "width"), WIDTHS)
def test_the_largest_of_a_few_is_truncated_and_rectified_as_one(bits, width, values, rectify):
    rng = np.random.default_rng(width + values)
    low, high = -(1 << (width - 2)), (1 << (width - 2)) - (1 << bits)
    x = random_integers(rng, values * 500, low, high).reshape(values, 500)
    x[1, ::3] = x[0, ::3]  # ties
    got = opened(run_local(lambda p: largest(integers(p, x), bits, rectify=rectify, width=width)))
    floor = (x >> bits).max(0)
    least = 0 if rectify else low
    whole = (x & ((1 << bits) - 1) == 0).all(0)
    assert ((got == np.maximum(floor, least)) | (got == np.maximum(floor + 1, least))).all()
    assert (got[whole] == np.maximum(floor, least)[whole]).all()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_a_maximum_of_products_with_and_without_a_relu(length):
    rng = np.random.default_rng(length)
    x = rng.integers(-(1 << 40), 1 << 40, (20, length))

    def program(party):
        secret = integers(party, x, frac=32)
        return [compare.amax(secret, 16, rectify=rectify) for rectify in (False, True)]

    results = run_local(program)
    floor = (x >> 16).max(-1)
    for i, wanted in enumerate((floor, np.maximum(floor, 0))):
        above = opened([each[i] for each in results]) - wanted
        assert set(np.unique(above)) <= {0, 1}


def test_many_values_take_a_tournament_with_the_same_result(monkeypatch):
    x = np.random.default_rng(1).integers(-(1 << 30), 1 << 30, (10, 9))
    monkeypatch.setattr(compare, "_FEW", 40)
    assert (opened(run_local(lambda p: compare.amax(integers(p, x, frac=16)))) == x.max(-1)).all()


@pytest.mark.parametrize("owner", [0, 1])
def test_products_with_weights_that_a_server_knows(owner):
    rng = np.random.default_rng(owner)
    x, w, kernel = rng.uniform(-2, 2, (3, 5)), rng.uniform(-2, 2, (5, 4)), rng.uniform(-2, 2, (2, 1, 2, 2))
    images = rng.uniform(-2, 2, (2, 1, 4, 4))
    how = Convolution(padding=(1, 0))

    def program(party):
        weights = own(party, lambda: w, owner=owner, shape=w.shape)
        filters = own(party, lambda: kernel, owner=owner, shape=kernel.shape)
        query = share(party, lambda: x, source=1 - owner, shape=x.shape)
        image = share(party, lambda: images, source=1 - owner, shape=images.shape)
        before = [peer.sent for peer in party.peers.values()]
        product = matmul_owned(query, weights)
        sent = [peer.sent - old for peer, old in zip(party.peers.values(), before, strict=True)]
        return product, conv2d_owned(image, filters, how), sent

    results = run_local(program)
    products, convolved = (opened([each[i] for each in results]) for i in (0, 1))
    fixed = [np.rint(each * 2**16).astype(np.int64) for each in (x, w, images, kernel)]
    assert (products == fixed[0] @ fixed[1]).all()
    assert (convolved.view(np.uint64) == how(fixed[2].view(np.uint64), fixed[3].view(np.uint64))).all()
    # One way: the other server's masked input to the owner; and the dealer's share of the result.
    assert results[1 - owner][2][0] == x.size * 8
    assert results[owner][2] == [0, 0]
    assert results[2][2] == [0, products.size * 8]


def test_absolute_value_and_clamping():
    end = 2.0**15 - 2.0**-16
    x = np.array([-end, -3.5, -(2.0**-16), 0, 2.0**-16, 1.25, end])

    def program(party):
        secret = share(party, lambda: x, source=0, shape=x.shape)
        return [reveal(y, to=[0]) for y in (absolute(secret), clamp(secret, -2.5, 1), clamp(secret, -end, end))]

    size, some, all_of_it = run_local(program)[0]
    assert (size == np.abs(x)).all()
    assert (some == np.clip(x, -2.5, 1)).all()
    assert (all_of_it == x).all()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((2, 2), None, (0, 0)), ((3, 2), (2, 1), (1, 1)), ((3, 3), (2, 2), (0, 1))]
)
def test_pooling_takes_the_largest_of_each_window(kernel, stride, padding):
    rng = np.random.default_rng(11)
    x = np.rint(rng.uniform(-1, 1, (2, 3, 7, 6)) * 2**16) / 2**16 - 1  # nothing positive: zero padding would show

    def program(party):
        secret = share(party, lambda: x, source=0, shape=x.shape)
        return reveal(max_pool2d(secret, kernel, stride, padding), to=[0])

    want = torch.nn.functional.max_pool2d(torch.from_numpy(x), kernel, stride, padding).numpy()
    assert (run_local(program)[0] == want).all()


def test_a_comparison_at_the_ends_of_the_range():
    end = 2.0**15 - 2.0**-16
    x, y = np.array([-end, end, 0, 0, -end]), np.array([end, -end, 0, 2.0**-16, -end])

    def program(party):
        left, right = (share(party, lambda v=v: v, source=0, shape=v.shape) for v in (x, y))
        return reveal(compare.less(left, right), to=[0]), reveal(compare.maximum(left, right), to=[0])

    smaller, larger = run_local(program)[0]
    assert smaller.tolist() == [1, 0, 0, 1, 0]
    assert larger.tolist() == np.maximum(x, y).tolist()


def test_a_layer_matches_the_float():
    rng = np.random.default_rng(7)
    x, w, b = rng.uniform(-3, 3, (20, 30)), rng.uniform(-1, 1, (30, 8)), rng.uniform(-1, 1, 8)

    def program(party):
        x_secret = share(party, lambda: x, source=0, shape=x.shape)
        w_secret = share(party, lambda: w, source=1, shape=w.shape)
        y = truncate.truncate(linear.matmul(x_secret, w_secret)) + b
        return reveal(relu(y), to=[0])

    assert np.abs(run_local(program)[0] - np.maximum(x @ w + b, 0)).max() < 1e-3


def test_exact_settings_give_the_same_bits_twice():
    rng = np.random.default_rng(8)
    x = rng.uniform(-3, 3, (30, 30))

    def program(party):
        secret = share(party, lambda: x, source=0, shape=x.shape)
        return reveal(relu(linear.matmul(secret, secret.T)), to=[0])

    first, second = (run_local(program, Settings(exact=True))[0] for _ in range(2))
    assert (first == second).all()
    words = np.rint(x * 2**16).astype(np.int64)
    assert (first * 2**16 == np.maximum((words @ words.T) >> 16, 0)).all()


def test_an_opening_serves_every_rearrangement_of_its_value():
    rng = np.random.default_rng(9)
    w, x = ring_words(rng, 4, 6), ring_words(rng, 3, 4)

    def program(party):
        weights, query = integers(party, w), integers(party, x)
        linear.matmul(query, weights)
        before = party.peers[0].sent if party.rank == 1 else 0
        results = [
            linear.matmul(query, weights),
            linear.matmul(weights.T, query.T),
            linear.matmul(query, weights[:, 1:4]),
            linear.matmul(query, weights.reshape(4, 2, 3).transpose(1, 0, 2).reshape(4, 6)),
            linear.matmul(query, concatenate([weights, weights[:, :1]])),
        ]
        return results, (party.peers[0].sent if party.rank == 1 else 0) - before

    results = run_local(program)
    got = [opened([each[0][i] for each in results]) for i in range(5)]
    a, b = as_object(x), as_object(w)
    want = [a @ b, b.T @ a.T, a @ b[:, 1:4], a @ b.reshape(4, 2, 3).transpose(1, 0, 2).reshape(4, 6)]
    want.append(a @ np.concatenate([b, b[:, :1]], 1))
    assert all((as_object(each) == right % (1 << 64)).all() for each, right in zip(got, want, strict=True))
    assert results[1][1] == 0  # nothing was opened again


def test_opening_a_part_does_not_open_the_whole():
    values = np.arange(100).reshape(10, 10)

    def program(party):
        table = integers(party, values)
        linear.multiply(table[2], table[3])
        return party.peers[1].sent if party.first else 0, table.masked is None

    sent, hidden = run_local(program)[0]
    assert hidden
    assert sent < 100 * 8


@pytest.mark.parametrize(
    "program",
    [
        lambda p: linear.matmul(integers(p, np.zeros((2, 3))), integers(p, np.zeros((2, 3)))),
        lambda p: linear.conv2d(integers(p, np.zeros((1, 2, 3, 3))), integers(p, np.zeros((1, 1, 3, 3)))),
        lambda p: linear.multiply(integers(p, np.zeros(3)), integers(p, np.zeros(4))),
        lambda p: integers(p, np.zeros(3)) + np.zeros(4),
        lambda p: linear.conv1d(integers(p, np.zeros((1, 3))), integers(p, np.zeros((1, 1, 3)))),
        lambda p: linear.conv_transpose2d(integers(p, np.zeros((1, 2, 3, 3))), integers(p, np.zeros((1, 1, 3, 3)))),
        lambda p: truncate.truncate(integers(p, np.zeros(3)), 30, width=32),
        lambda p: integers(p, np.zeros(3)) + integers(p, np.zeros(3), frac=16),
        lambda p: compare.is_negative(integers(p, np.zeros(3)), width=65),
        lambda p: compare.amax(integers(p, np.zeros((3, 0)))),
        lambda p: share(p, lambda: np.zeros(3), source=2, shape=(3,)),
        lambda p: share(p, lambda: np.zeros(3), source=p.rank if p.first else 0, shape=(4,)),
        lambda p: own(p, lambda: np.zeros(3), owner=2, shape=(3,)),
        lambda p: integers(p, np.zeros(3))[np.array([0, 1])],
        lambda p: clamp(integers(p, np.zeros(3)), 1, 0),
        lambda p: max_pool2d(integers(p, np.zeros((1, 1, 2, 2))), (3, 3)),
        lambda p: max_pool2d(integers(p, np.zeros((1, 1, 9, 9))), (3, 3), padding=(2, 2)),
        lambda p: reveal(integers(p, np.zeros(3)), to=[]),
        lambda p: reveal(integers(p, np.zeros(3)), to=[2]),
    ],
)
def test_what_makes_no_sense_says_what_it_got_and_wanted(program):
    with pytest.raises(UsageError, match=r"got .*, wanted"):
        run_local(program)


@pytest.mark.slow
def test_ten_million_truncations_and_comparisons_have_no_large_error():
    rng = np.random.default_rng(10)
    x = random_integers(rng, 10_000_000, -(1 << 47), (1 << 47) - (1 << 16))
    results = run_local(lambda p: (truncate.truncate(integers(p, x), 16, width=49), relu(integers(p, x), 16, width=49)))
    above = opened([each[0] for each in results]) - (x >> 16)
    assert above.min() == 0
    assert above.max() == 1
    positive = opened([each[1] for each in results])
    assert ((positive == np.maximum(x >> 16, 0)) | (positive == np.maximum((x >> 16) + 1, 0))).all()
