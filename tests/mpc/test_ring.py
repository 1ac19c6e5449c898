"""Fixed point, bits and the ring's products, against Python's integers."""

import numpy as np
import pytest

from strongroom.errors import UsageError
from strongroom.mpc import ring
from strongroom.mpc.arena import Arena
from strongroom.mpc.bits import from_plane, pack, packed_size, plane_words, to_planes, unpack
from strongroom.mpc.ring import Convolution, Settings, decode, encode, matmul

MOD = 1 << 64


def random_words(rng, *shape):
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def test_encoding_rounds_to_the_nearest_and_comes_back():
    rng = np.random.default_rng(1)
    values = rng.uniform(-(2.0**15) + 1, 2.0**15 - 1, 1000)
    words = encode(values, 16, 15)
    assert np.abs(decode(words, 16) - values).max() <= 2.0**-17
    assert decode(encode([-1.0, 0.0, 2.0**15 - 2.0**-16], 16, 15), 16).tolist() == [-1.0, 0.0, 2.0**15 - 2.0**-16]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_and_located(bad):
    values = np.zeros((2, 3))
    values[1, 2] = bad
    with pytest.raises(UsageError, match=r"values: got -?(nan|inf) at \[1, 2\], wanted finite numbers"):
        encode(values, 16, 15)


@pytest.mark.parametrize("bad", [2.0**15, -(2.0**15), 1e300])
def test_values_out_of_range_are_refused_without_being_shown(bad):
    with pytest.raises(UsageError, match=r"the one at \[1\] is out of range, wanted magnitudes below 2\^15") as error:
        encode([0.5, bad], 16, 15)
    assert str(bad) not in error.value.message


@pytest.mark.parametrize(("frac", "bound"), [(0, 15), (31, 1), (16, 31), (20, 0)])
def test_settings_that_leave_no_room_for_a_product_are_refused(frac, bound):
    with pytest.raises(UsageError, match="wanted"):
        Settings(frac=frac, bound=bound)


@pytest.mark.parametrize("shape", [((1, 7), (7, 5)), ((4, 7), (7, 5)), ((3, 1, 2, 6), (2, 6, 4)), ((1, 1), (1, 1))])
def test_matmul_wraps_like_integers(shape):
    rng = np.random.default_rng(2)
    a, b = random_words(rng, *shape[0]), random_words(rng, *shape[1])
    want = np.matmul(a.astype(object), b.astype(object)) % MOD
    assert (matmul(a, b).astype(object) == want).all()
    assert (matmul(a[..., ::-1, :], b).astype(object) == want[..., ::-1, :]).all()


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 12, 8), (24, 10, 20), (9, 16, 16)])
def test_the_product_of_large_matrices_is_the_same(shape, monkeypatch):
    monkeypatch.setattr(ring, "_DIVIDED", 4)
    rng = np.random.default_rng(6)
    a, b = random_words(rng, *shape[:2]), random_words(rng, *shape[1:])
    assert (matmul(a, b).astype(object) == a.astype(object) @ b.astype(object) % MOD).all()
    assert (matmul(b.T, a.T) == matmul(a, b).T).all()


@pytest.mark.parametrize(
    "how",
    [
        Convolution(),
        Convolution(stride=(2, 1), padding=(1, 2)),
        Convolution(dilation=(2, 2), padding=(2, 0)),
        Convolution(groups=2, padding=(1, 1)),
    ],
)
def test_convolution_is_the_definition(how):
    rng = np.random.default_rng(3)
    x, w = random_words(rng, 2, 4, 6, 7), random_words(rng, 6, 4 // how.groups, 3, 2)
    padded = np.pad(x.astype(object), [(0, 0), (0, 0), *((p, p) for p in how.padding)])
    got = how(x, w)
    assert got.shape == how.shape(x.shape, w.shape)
    for n, o, i, j in np.ndindex(*got.shape):
        first = (o * how.groups // 6) * w.shape[1]
        want = sum(
            int(padded[n, first + c, i * how.stride[0] + a * how.dilation[0], j * how.stride[1] + b * how.dilation[1]])
            * int(w[o, c, a, b])
            for c, a, b in np.ndindex(*w.shape[1:])
        )
        assert int(got[n, o, i, j]) == want % MOD


def test_a_kernel_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match="kernel"):
        Convolution().shape((1, 1, 2, 2), (1, 1, 3, 3))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_words_of_every_width_survive_the_wire_and_take_exactly_their_bits(count):
    rng = np.random.default_rng(4)
    for width in range(1, 65):
        words = random_words(rng, count) >> np.uint64(64 - width)
        data, back = np.empty(packed_size(count, width), np.uint8), np.empty(count, np.uint64)
        pack(words, width, data)
        unpack(data, width, back)
        assert (back == words).all(), width
        if count % 8 == 0:
            assert len(data) * 8 == count * width


@pytest.mark.parametrize("count", [1, 64, 100])
def test_planes_hold_each_bit(count):
    rng, arena = np.random.default_rng(5), Arena()
    words = random_words(rng, count)
    for bits in (1, 8, 13, 64):
        planes = np.full((bits, plane_words(count)), np.uint64(2**64 - 1))
        to_planes(words, bits, arena, planes)
        for bit in range(bits):
            assert (from_plane(planes[bit], count) == (words >> np.uint64(bit)) & np.uint64(1)).all()
            assert int(np.unpackbits(planes[bit].view(np.uint8)).sum()) == int(
                ((words >> np.uint64(bit)) & np.uint64(1)).sum()
            )


def test_an_arena_hands_out_the_same_memory_again_and_never_the_same_twice_at_once():
    arena = Arena()
    for _ in range(3):
        with arena.scope():
            first, second = arena.take((3, 1000)), arena.take(1 << 20, np.uint8)
            first[:], second[:] = 1, 2
            with arena.scope():
                arena.take(5000)[:] = 3
            third = arena.take(10)
            third[:] = 4
            assert (first == 1).all() and (second == 2).all()
            assert not np.shares_memory(first, second) and not np.shares_memory(third, second)
        held = arena.size
    assert arena.size == held


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_few_rows_are_multiplied_exactly_in_any_layout(rows):
    rng = np.random.default_rng(rows)
    a = rng.integers(0, 1 << 63, (rows, 50), dtype=np.uint64)
    b = rng.integers(0, 1 << 63, (50, 7), dtype=np.uint64)
    wanted = a.astype(object) @ b.astype(object) % (1 << 64)
    fortran = np.asfortranarray(b)
    fortran.flags.writeable = False
    for right in (b, fortran, b[::-1][::-1]):
        assert (matmul(a, right) == wanted).all()
    assert (matmul(a[:, ::-1], b[::-1]) == wanted).all()
