"""What crosses a channel, what it costs, and that no mask is used twice."""

from collections import defaultdict

import numpy as np
import pytest

from strongroom.errors import UsageError
from strongroom.mpc.functions.exponential import exp, exp_negative
from strongroom.mpc.protocols.compare import amax, is_negative
from strongroom.mpc.protocols.largest import largest
from strongroom.mpc.protocols.linear import matmul, multiply
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Settings
from strongroom.mpc.threads import run_local
from tests.mpc.parties import Recorder, integers

SIDE = 64
COUNT = SIDE * SIDE
# Of 255 degrees of freedom; exceeded by chance once in 10^10 times.
CHI_SQUARE = 430
HANDSHAKE = 128  # bytes that each party sends each other before there is a key


def histogram(data):
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256).astype(float)


def uniform(data):
    seen, expected = histogram(data), len(data) / 256
    assert expected > 20, "too few bytes to tell"
    return ((seen - expected) ** 2 / expected).sum() < CHI_SQUARE


def alike(left, right):
    """The two-sample statistic of two byte strings of one length."""
    a, b = histogram(left), histogram(right)
    return ((a - b) ** 2 / np.maximum(a + b, 1)).sum() < CHI_SQUARE


def everything(values):
    """Every protocol on a square matrix."""

    def program(party):
        x = share(party, lambda: values, source=0, shape=values.shape)
        y = relu(matmul(x, x))
        z = truncate(multiply(x, y), exact=True)
        return is_negative(z), amax(x, rectify=True), exp(x), exp_negative(x)

    return program


INPUTS = {
    "zeros": np.zeros((SIDE, SIDE)),
    "ones": np.full((SIDE, SIDE), 1.0),
    "largest": np.full((SIDE, SIDE), 2.0**15 - 1) * np.eye(SIDE),
    "smallest": np.full((SIDE, SIDE), -(2.0**-16)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_frame_is_uniform_whatever_the_input(name):
    record = Recorder()
    run_local(everything(INPUTS[name]), observer=record)
    sent = defaultdict(bytes)
    for rank, to, payload in record.frames:
        if len(payload) != HANDSHAKE:
            sent[rank, to] += payload
    assert {pair for pair, payload in sent.items() if payload} == {(0, 1), (1, 0), (2, 1)}
    assert all(uniform(payload) for payload in sent.values() if payload)
    # Frame by frame, where there are enough bytes to see a constant among them.
    large = [payload for _, _, payload in record.frames if len(payload) > 8000]
    assert len(large) > 20
    assert all(uniform(payload) for payload in large)


def test_the_views_of_two_inputs_are_alike():
    views = []
    for name in ("zeros", "largest"):
        record = Recorder()
        run_local(everything(INPUTS[name]), observer=record)
        views.append([(rank, to, payload) for rank, to, payload in record.frames if len(payload) != HANDSHAKE])
    for pair in ((0, 1), (1, 0), (2, 1)):
        left, right = (b"".join(payload for *way, payload in view if tuple(way) == pair) for view in views)
        assert len(left) == len(right)
        assert alike(left, right)


@pytest.mark.parametrize("source", [0, 1])
def test_shares_of_a_fixed_input_are_uniform(source):
    def program(party):
        return share(party, lambda: np.full(8192, 1.5), source=source, shape=(8192,))

    results = run_local(program)
    assert all(uniform(results[rank].words.tobytes()) for rank in (0, 1))


def test_a_reveal_tells_the_receiver_alone():
    record = Recorder()
    values = np.arange(1000.0)

    def program(party):
        x = share(party, lambda: values, source=0, shape=values.shape)
        return reveal(x, to=[1])

    results = run_local(program, observer=record)
    assert results[0] is None
    assert results[2] is None
    assert (results[1] == values).all()
    between = record.bytes_between()
    assert between[0, 1] == HANDSHAKE + values.nbytes
    assert between[1, 0] == HANDSHAKE


def test_no_position_of_a_stream_is_used_twice_and_both_owners_draw_in_step():
    record = Recorder()

    def program(party):
        everything(INPUTS["ones"])(party)
        party.ratchet()
        everything(INPUTS["ones"])(party)

    run_local(program, observer=record)
    drawn = defaultdict(list)
    for rank, stream, start, stop in record.draws:
        drawn[stream, rank].append((start, stop))
    assert {stream.partition(".")[0] for stream, _ in drawn} == {"01", "02", "12"}
    for (stream, rank), draws in drawn.items():
        ends = [0, *(stop for _, stop in draws)]
        assert [start for start, _ in draws] == ends[:-1], (stream, rank)
    for stream in {stream for stream, _ in drawn}:
        first, second = (draws for (name, _), draws in drawn.items() if name == stream)
        assert first == second, stream


def test_two_runs_of_one_program_share_no_frame():
    frames = []
    for _ in range(2):
        record = Recorder()
        run_local(everything(INPUTS["ones"]), observer=record)
        frames.append({payload for _, _, payload in record.frames if len(payload) > 16})
    assert not frames[0] & frames[1]


def test_two_values_are_never_opened_under_one_mask():
    """The difference of two openings is not the difference of the values, as it would be under one mask."""

    def program(party):
        x, y = integers(party, np.full(64, 5)), integers(party, np.full(64, 12))
        multiply(x, y)
        assert x.masked is not None
        assert y.masked is not None
        with pytest.raises(UsageError, match="has one already"):
            x.set_masked(y.masked)
        return None if party.is_dealer else y.masked.opening - x.masked.opening

    # Not reached by an exception inside an operation: set_masked is none.
    difference = run_local(program)[0]
    assert not (difference == 7).any()


# Cost, for each element


def cost(program, count=COUNT, settings=None):
    """Rounds, bytes each server sends the other, bytes that the dealer sends P1; of a program on `count` zeros."""
    record = Recorder()

    def run(party):
        x = integers(party, np.zeros(count), frac=party.settings.frac)
        program(x)
        return party.rounds

    rounds = run_local(run, settings, observer=record)[0]
    between = record.bytes_between()
    assert between[0, 1] == between[1, 0]
    assert between[2, 0] == between[0, 2] == between[1, 2] == HANDSHAKE
    return rounds, (between[0, 1] - HANDSHAKE) / count, (between[2, 1] - HANDSHAKE) / count


def test_truncation_costs_one_round_and_its_opening():
    assert cost(lambda x: truncate(x, 16, width=49)) == (1, 49 / 8, 12)
    assert cost(lambda x: truncate(x, 16, width=64))[1] == 8
    assert cost(lambda x: truncate(x, 16, width=49, exact=True))[0] == 3


def test_truncation_and_relu_together_cost_four_rounds_and_8_2_bytes():
    rounds, online, dealt = cost(lambda x: relu(x, 16, width=49))
    assert rounds == 4
    assert online <= 8.2
    assert dealt < 53


@pytest.mark.parametrize(("width", "online", "dealt"), [(64, 12.1, 42.2), (48, 9.0, 31.3), (33, 6.0, 20)])
def test_a_sign_costs_three_rounds_and_a_conversion(width, online, dealt):
    got = cost(lambda x: is_negative(x, width=width))
    assert got[0] == 3 + 1
    assert got[1] <= online + 0.05 + 1 / 8
    assert got[2] <= dealt + 8


def test_the_largest_of_four_products_and_a_relu_cost_five_rounds():
    rounds, online, dealt = cost(lambda x: largest(x.reshape(4, COUNT // 4), 16, rectify=True, width=49))
    assert rounds == 5
    assert online <= 11.5
    assert dealt < 84


def test_exp_opens_21_bits_and_the_product():
    rounds, online, dealt = cost(lambda x: exp(x))
    assert rounds == 5
    assert online <= 21 / 8 + 8 + 1.7
    assert dealt < 90


def test_exp_of_what_is_not_positive_opens_33_bits_and_the_product():
    rounds, online, dealt = cost(lambda x: exp_negative(x))
    assert rounds == 5
    assert online <= 33 / 8 + 8 + 4.3
    assert dealt < 75


def test_a_product_opens_each_operand_once():
    def program(x):
        y = x.reshape(SIDE, SIDE)
        matmul(y, y.T)
        matmul(y, y)

    assert cost(program) == (1, 8, 16)


def test_a_cheaper_bound_is_cheaper():
    assert cost(relu, settings=Settings(bound=6))[1] < 0.75 * cost(relu)[1]
