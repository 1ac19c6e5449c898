"""What is predicted is what the channels count, and seconds follow from it as the docstring says."""

import json

import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import UsageError
from strongroom.mpc import Settings
from strongroom.mpc.costs.dry import multiplications
from strongroom.mpc.costs.network import Network, Step, simulate
from strongroom.mpc.ring import Convolution, Transposed
from strongroom.mpc.ring import matmul as ring_matmul


def network_a():
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def network_b():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)) + x)
        return self.head(y.mean((2, 3))).softmax(-1)


def transformer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


class Observer:
    """Counts what each party sends and draws, in whatever stretch that party is."""

    def __init__(self):
        self.stretch = [0, 0, 0]
        self.counts = {}

    def _add(self, kind, rank, value):
        key = kind, self.stretch[rank], rank
        self.counts[key] = self.counts.get(key, 0) + value

    def sent(self, rank, to, payload):
        self._add("sent", rank, sum(part.nbytes for part in payload))
        self._add("frames", rank, 1)

    def drew(self, rank, stream, start, stop):
        self._add("drawn", rank, stop - start)

    def of(self, kind, stretch):
        return tuple(self.counts.get((kind, stretch, rank), 0) for rank in range(3))


def counted(model, shape, weights, calls, settings=None):
    """What the channels and streams count for each call: sent, frames, drawn, and P0's rounds."""
    observer, rounds = Observer(), []
    make = {"own": mpc.own, "share": mpc.share}.get(weights)

    def program(party):
        with mpc.World(party):
            prepared = model if make is None else make(lambda: model, source=1, like=model)
            for call in range(1, calls + 1):
                observer.stretch[party.rank] = call
                before = party.rounds
                x = mpc.share(lambda: torch.rand(shape), source=0, shape=shape)
                mpc.reveal(prepared(x), to=0)
                if party.rank == 0:
                    rounds.append(party.rounds - before)
            observer.stretch[party.rank] = -1

    mpc.run_local(program, settings, observer=observer)
    return [
        (rounds[call - 1], *(observer.of(kind, call) for kind in ("sent", "frames", "drawn")))
        for call in range(1, calls + 1)
    ]


def predicted(cost):
    figures = cost.figures
    return figures.rounds, figures.sent, figures.frames, figures.drawn


@pytest.mark.parametrize(
    ("network", "shape", "weights"),
    [
        (network_a, (2, 784), "own"),
        (network_a, (2, 784), "share"),
        (network_b, (1, 1, 28, 28), "own"),
        (network_b, (1, 1, 28, 28), "share"),
        (network_b, (1, 1, 28, 28), "public"),
        (Residual, (1, 3, 6, 6), "share"),
        (transformer, (1, 4, 8), "own"),
    ],
)
def test_the_prediction_is_what_the_channels_count(network, shape, weights):
    torch.manual_seed(1)
    model = network().eval()
    cost = mpc.cost(model, shape, weights=weights)
    assert [predicted(cost.first), predicted(cost)] == counted(model, shape, weights, 2)


def test_other_settings_other_costs():
    narrow, wide = (mpc.cost(network_a(), (1, 784), settings=Settings(bound=bound)) for bound in (7, 15))
    assert narrow.figures.rounds <= wide.figures.rounds
    assert narrow.figures.online < wide.figures.online
    exact = Settings(exact=True)
    cost = mpc.cost(network_a(), (1, 784), settings=exact)
    assert [predicted(cost)] == counted(network_a(), (1, 784), "own", 2, exact)[1:]


def test_a_program_is_counted_as_it_is_and_no_source_is_asked():
    def unknown():
        raise AssertionError("nobody may ask")

    def program():
        x = mpc.share(unknown, source=0, shape=(4, 3))
        model = mpc.own(unknown, source=1, like=nn.Linear(3, 2))
        return mpc.reveal(torch.relu(model(x)), to=[0, 1])

    cost = mpc.cost(program)
    assert cost.first is None
    assert cost.figures.rounds == 8  # own, product, four of ReLU, two of the reveal
    assert cost.figures.compared == 8
    assert cost.figures.multiplied == (24, 24, 24)


def test_sums_by_module_line_and_operation_are_the_whole():
    cost = mpc.cost(Residual().eval(), (1, 3, 6, 6), weights="share")
    labels = [row.label for row in cost.by_module]
    assert "Residual.conv (Conv2d)" in labels and "Residual (Residual)" in labels and "outside of modules" in labels
    for rows in (cost.by_module, cost.by_line, cost.by_operation):
        assert sum(row.figures.rounds for row in rows) == cost.figures.rounds
        assert sum(row.figures.dealt for row in rows) == cost.figures.dealt
        for name, seconds in cost.seconds.items():
            assert sum(row.seconds[name] for row in rows) == pytest.approx(seconds)
    # The lines are those of this file's forward.
    assert sum(f"{__file__}:" in row.label for row in cost.by_line) >= 3


def test_a_line_of_the_program_says_what_it_costs():
    def program():
        x = mpc.share(lambda: None, source=0, shape=(8,))
        y = x * x
        return (y + y).sum()

    costs = {row.label.rpartition(":")[2]: row.figures for row in mpc.cost(program).by_line}
    square = str(program.__code__.co_firstlineno + 2)
    assert costs[square].rounds == 1 and costs[square].sent[:2] == (64, 64)


def test_the_report_is_a_table_and_json():
    cost = mpc.cost(nn.Linear(2, 2), (1, 2), networks=[Network("mine", 1.0, 1e6)])
    head, rule, *rows = str(cost).splitlines()
    assert head.split() == ["rounds", "P0", "sends", "P1", "sends", "dealt", "products", "compared", "mine"]
    assert set(rule) == {"-", " "}
    assert rows[-2].startswith("total") and rows[-1].startswith("first call")
    found = json.loads(cost.to_json())
    assert found["total"]["rounds"] == cost.figures.rounds
    assert found["first"]["total"]["sent"] == list(cost.first.figures.sent)
    # Four exchanges one after the other, half a second each, besides what is computed.
    assert cost.figures.rounds == 4 and 2 < cost.seconds["mine"] < 2.2


def test_several_inputs_and_results():
    class Two(nn.Module):
        def forward(self, a, b):
            return a @ b, {"sum": a.sum(-1)}

    by_shape = mpc.cost(Two(), [(2, 3), (3, 2)], weights="public")
    by_tensor = mpc.cost(Two(), (torch.rand(2, 3), torch.rand(3, 2)), weights="public")
    assert predicted(by_shape) == predicted(by_tensor)
    assert by_shape.figures.rounds == 6  # a product, its truncation, and two reveals of two


def send(peer, size, compute=0.0, operation=0):
    return Step(operation, compute, peer, True, size)


def wait(peer, compute=0.0, operation=0):
    return Step(operation, compute, peer, False, 0)


def test_seconds_are_those_of_messages_under_way():
    network = Network("test", rtt=0.2, rate=8 * 1000)  # a kilobyte a second
    frame = 1000 - 32
    # A round: half a round trip and a second for the payload, in both directions at once.
    both = [[send(1, frame), wait(1)], [send(0, frame), wait(0)], []]
    assert simulate(both, [0, 0, 0], 1, network) == pytest.approx([1.1, 1.1])
    # The slower server's computing counts, and what is computed after the last message.
    slow = [[send(1, frame, 3.0), wait(1)], [send(0, frame), wait(0)], []]
    assert simulate(slow, [0.5, 0, 0], 1, network) == pytest.approx([4.1, 4.1])
    # What the dealer sends travels beside it: of two kilobytes the second is there a second later.
    dealt = [[send(1, frame), wait(1)], [send(0, frame), wait(0), wait(2), wait(2)], [send(1, frame), send(1, frame)]]
    assert simulate(dealt, [0, 0, 0], 1, network) == pytest.approx([2.1, 2.1])


def test_parties_on_one_machine_share_its_processors(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    one = Network("one", rtt=0.0, rate=1e12, one_machine=True)
    parties = [[send(1, 0, 1.0), wait(1)], [send(0, 0, 1.0), wait(0)], [send(1, 0, 1.0)]]
    assert simulate(parties, [0, 0, 0], 1, one)[-1] == pytest.approx(3.0, abs=1e-3)


def test_multiplications_are_those_of_the_definition():
    assert multiplications(ring_matmul, (5, 2, 3), (3, 4)) == 5 * 2 * 3 * 4
    assert multiplications(Convolution((2, 2), (1, 1), groups=2), (1, 4, 6, 6), (6, 2, 3, 3)) == 6 * 3 * 3 * 2 * 9
    assert multiplications(Transposed((2, 2)), (1, 3, 4, 4), (3, 5, 2, 2)) == 3 * 16 * 5 * 4


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mpc.cost(nn.Linear(2, 2)), "example: got none"),
        (lambda: mpc.cost(lambda: None, (1, 2)), "example: got one for a function"),
        (lambda: mpc.cost(nn.Linear(2, 2), (1, 2), weights="mine"), "weights: got 'mine'"),
        (lambda: Network("none", 0.0, 0.0), "network: got a round trip of 0 s and 0 bit/s"),
    ],
)
def test_errors_say_what_was_wanted(call, text):
    with pytest.raises(UsageError, match=text.replace("(", r"\(")):
        call()


def test_an_input_that_is_an_index():
    table = nn.Embedding(10, 4)
    cost = mpc.cost(table, torch.tensor([[1, 2, 3]]), weights="share", classes=10)
    assert cost.figures.multiplied == (2 * 3 * 10 * 4, 2 * 3 * 10 * 4, 3 * 10 * 4)
    with pytest.raises(UsageError, match="index"):
        mpc.cost(table, torch.tensor([[1, 2, 3]]), weights="share")
