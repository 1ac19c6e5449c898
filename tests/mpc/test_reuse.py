"""No mask is drawn twice, shared by two elements or left out: every operation runs twice on one value in one epoch.

What the servers open of a value that stays the same tells nothing if every mask is fresh: each frame, each frame beside
the one of the second run, and both directions put together, as words and as bits, are uniform, and no word of 64 bits
is there twice.
"""

import numpy as np
import pytest

from strongroom.mpc.bits import packed_size, unpack
from strongroom.mpc.functions.activation import softmax
from strongroom.mpc.functions.division import reciprocal, rsqrt
from strongroom.mpc.functions.exponential import exp, exp_negative
from strongroom.mpc.functions.normalisation import rms_norm
from strongroom.mpc.protocols.compare import amax, argmax, is_negative, maximum
from strongroom.mpc.protocols.linear import conv2d, conv_transpose2d, matmul, multiply
from strongroom.mpc.protocols.owned import conv2d_owned, matmul_owned, own
from strongroom.mpc.protocols.place import one_hot_largest
from strongroom.mpc.protocols.public import matmul_public
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal_outside, share
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Settings
from strongroom.mpc.shared import Shared
from strongroom.mpc.threads import run_local
from tests.mpc.parties import Recorder
from tests.mpc.test_privacy import uniform

SIDE = 224  # a plane of as many bits as a matrix has elements is large enough to tell
LEAST, MOST = 6000, 1 << 18  # bytes to look at, of a frame and of what the dealer deals in a run


def zeros(*shape):
    return lambda: np.zeros(shape)


def weights(owner):
    return lambda party: own(party, zeros(SIDE, SIDE), owner=owner, shape=(SIDE, SIDE))


def kernel(owner):
    return lambda party: own(party, zeros(2, 1, 3, 3), owner=owner, shape=(2, 1, 3, 3))


def secret(*shape):
    return lambda party: share(party, zeros(*shape), source=0, shape=shape)


def nothing(party):
    return None


def images(x):
    return x.reshape(1, 1, SIDE, SIDE)


def pairs(x):
    return x.reshape(SIDE * SIDE // 2, 2)


def looked_up(x):
    """By the place of the largest of each pair."""
    return multiply(one_hot_largest(pairs(x))[1], pairs(x))


# What is made once, and what is then done twice, with a new value that has the same shares.
OPERATIONS = {
    "truncation": (nothing, lambda x, w: truncate(x, 16, width=49)),
    "exact truncation": (nothing, lambda x, w: truncate(x, 16, width=49, exact=True)),
    "relu": (nothing, lambda x, w: relu(x, 0)),
    "truncation and relu": (nothing, lambda x, w: relu(x, 16, width=49)),
    "sign": (nothing, lambda x, w: is_negative(x)),
    "maximum": (nothing, lambda x, w: maximum(x, x)),
    "largest": (nothing, lambda x, w: amax(x.reshape(SIDE * SIDE // 4, 4), rectify=True)),
    "tournament": (nothing, lambda x, w: amax(x[:, :96].reshape(1792, 12))),
    "place": (nothing, lambda x, w: argmax(pairs(x))),
    "indices": (nothing, lambda x, w: looked_up(x)),
    "exp": (nothing, lambda x, w: exp(x)),
    "polynomial exp": (nothing, lambda x, w: exp(x[:32])),
    "exp negative": (nothing, lambda x, w: exp_negative(x)),
    "softmax": (nothing, lambda x, w: softmax(pairs(x))),
    "reciprocal": (nothing, lambda x, w: reciprocal(x[:32] + 1.0)),
    "root": (nothing, lambda x, w: rsqrt(x[:32] + 1.0)),
    "norm": (nothing, lambda x, w: rms_norm(x)),
    "product": (nothing, lambda x, w: multiply(x, x + 0.0)),
    "matrices": (secret(SIDE, SIDE), lambda x, w: matmul(x, w)),
    "convolution": (secret(2, 1, 3, 3), lambda x, w: conv2d(images(x), w)),
    "transposed convolution": (secret(1, 2, 3, 3), lambda x, w: conv_transpose2d(images(x), w)),
    "weights of P0": (nothing, lambda x, w: weights(0)(x.party)),
    "weights of P1": (nothing, lambda x, w: weights(1)(x.party)),
    "matrix of P0": (weights(0), matmul_owned),
    "matrix of P1": (weights(1), matmul_owned),
    "convolution of P0": (kernel(0), lambda x, w: conv2d_owned(images(x), w)),
    "convolution of P1": (kernel(1), lambda x, w: conv2d_owned(images(x), w)),
}
SETTINGS = {"polynomial exp": Settings(exact=True)}


def twice(name):
    """What each party sent in the first run and in the second one, frame by frame."""
    make, operation = OPERATIONS[name]
    record = Recorder()

    def program(party):
        x = secret(SIDE, SIDE)(party)
        made = make(party)
        runs = []
        for _ in range(2):
            before = sum(rank == party.rank for rank, *_ in record.frames)
            operation(x + 0.0, made + 0.0 if isinstance(made, Shared) else made)
            sent = [payload for rank, _, payload in record.frames if rank == party.rank]
            runs.append(sent[before:])
        return runs

    return run_local(program, SETTINGS.get(name), observer=record)


def words(payload):
    return np.frombuffer(payload[: len(payload) // 8 * 8], np.uint64)


def together(left, right):
    """What two servers' frames open: as bits, as words, and as numbers of fewer bits, one for each of a matrix."""
    yield words(left) ^ words(right)
    yield words(left) + words(right)
    count = SIDE * SIDE
    for width in range(33, 64):
        if len(left) == packed_size(count, width):
            parts = []
            for payload in (left, right):
                parts.append(np.empty(count, np.uint64))
                unpack(np.frombuffer(payload, np.uint8), width, parts[-1])
            found = (parts[0] + parts[1]) & np.uint64((1 << width) - 1)
            assert len(np.unique(found)) > count - 8, "two elements under one mask"
            yield found << np.uint64(64 - width)


def check(found, what):
    """Words whose bytes are uniform, but for the lowest ones, that numbers of fewer bits do not have whole."""
    octets = found.view(np.uint8).reshape(-1, 8)
    whole = octets if octets[:, 0].any() else octets[:, 4:]
    assert uniform(np.ascontiguousarray(whole).tobytes()), what


def check_frames(once, again):
    """What one server sent."""
    both = np.concatenate([words(once), words(again)])
    assert len(np.unique(both)) == len(both), "a word was sent twice"
    if len(once) >= LEAST:
        assert uniform(once), "a frame"
        assert uniform((words(once) ^ words(again)).tobytes()), "the bits of two frames"
        assert uniform((words(once) - words(again)).tobytes()), "the words of two frames"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_mask_is_fresh(name):
    of_p0, of_p1, of_dealer = twice(name)
    frames = [[*zip(*runs, strict=True)] for runs in (of_p0, of_p1)]
    assert any(len(once) >= LEAST for once, _ in (*frames[0], *frames[1])), "nothing to see"
    for once, again in (*frames[0], *frames[1]):
        check_frames(once, again)
    assert all(uniform(payload) for payload in of_dealer[0] if len(payload) >= LEAST), "what was dealt"
    dealt = words(b"".join(b"".join(frames)[:MOST] for frames in of_dealer))
    assert len(np.unique(dealt)) == len(dealt), "a word was dealt twice"
    for ours, theirs in zip(*frames, strict=True):
        if min(len(ours[0]), len(theirs[0])) < LEAST:
            continue  # with weights that one server has, only one of the two sends
        for once, again in zip(*(together(a, b) for a, b in zip(ours, theirs, strict=True)), strict=True):
            check(once, "what was opened")
            check(once ^ again, "the bits of what was opened twice")
            check(once - again, "the words of what was opened twice")


@pytest.mark.parametrize("source", [0, 1])
def test_shares_of_one_secret_and_of_the_next_are_unrelated(source):
    def program(party):
        values = np.zeros(8192)
        return [share(party, lambda: values, source=source, shape=values.shape).words for _ in range(2)]

    for once, again in run_local(program)[:2]:
        assert uniform(once.tobytes())
        assert uniform((once - again).tobytes())


def test_a_stored_secret_goes_outside_in_fresh_shares_each_time():
    """Whoever sees a server's share of it twice, and one of the server's own, learns nothing of the other's."""
    values = np.arange(8192.0)

    def program(party):
        x = share(party, lambda: values, source=0, shape=values.shape)
        return [reveal_outside(x) for _ in range(2)], x.words

    (ours, own_share), (theirs, _) = run_local(program)[:2]
    for mine, yours in zip(ours, theirs, strict=True):
        assert ((mine + yours).view(np.int64) == values * 2**16).all()
        assert uniform((mine - own_share).tobytes())
    assert uniform((ours[0] - ours[1]).tobytes())


def test_a_product_with_a_public_matrix_sends_nothing():
    record = Recorder()

    def program(party):
        before = party.rounds
        matmul_public(secret(4, 4)(party), np.ones((4, 4)))
        return party.rounds - before

    assert run_local(program, observer=record)[0] == 0
