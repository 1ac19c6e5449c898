"""All three parties led from one thread, as a notebook does."""

import copy
import pickle
import queue

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from strongroom import mpc
from strongroom.errors import MpcError, RefusedError, UsageError

PATIENT = torch.tensor([[0.5, -1.0, 2.0, 0.25]])


def architecture():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_code_in_the_block_runs_as_all_three_parties():
    trained = architecture()
    with mpc.local() as world:
        model = mpc.own(lambda: trained, source=1, like=architecture())
        x = mpc.share(lambda: PATIENT, source=0, shape=(1, 4))
        y = model(x)
        assert y.shape == (1, 3)
        line = mpc.reveal(y, to=0)
        twice = mpc.reveal(torch.cat([2 * y - 1, functional.relu(y)[:, :2]], 1), to=[0, 1])
        revealed = world.reveals
    expected = trained(PATIENT)
    assert (line - expected).abs().max() < 1e-3
    assert (twice - torch.cat([2 * expected - 1, expected.relu()[:, :2]], 1)).abs().max() < 1e-3
    assert [(each.to, each.owners) for each in revealed] == [(("P0",), {"P0", "P1"}), (("P0", "P1"), {"P0", "P1"})]
    assert {each.file for each in revealed} == {__file__}


def test_a_function_of_the_notebook_takes_what_the_world_shared():
    def program(pair, scale):
        return mpc.reveal((pair[0] + pair[1]) * scale, to=1)

    with mpc.local() as world:
        x, y = (mpc.share(lambda: PATIENT, source=source, shape=(1, 4)) for source in (0, 1))
        at_p0, at_p1, _ = world.run(program, [x, y], scale=2)
    assert not isinstance(at_p0, torch.Tensor)
    assert (at_p1 - 4 * PATIENT).abs().max() < 1e-3


@pytest.mark.parametrize(
    "leak",
    [
        *(bool, float, int, complex, round, np.asarray, np.array, pickle.dumps, torch.tensor, torch.from_dlpack),
        *(lambda x: 1 if x > 0 else 0, lambda x: 1 if x == 1 else 0, lambda x: [1, 2][x], lambda x: 1 in x, np.exp),
    ],
    ids=[
        *("bool", "float", "int", "complex", "round", "asarray", "array", "pickle", "tensor", "dlpack"),
        *("branch", "equal", "index", "in", "exp"),
    ],
)
def test_a_secret_of_the_world_steers_nothing(leak):
    with mpc.local():
        x = mpc.share(lambda: torch.ones(()), source=0, shape=())
        with pytest.raises(UsageError):
            leak(x)
        assert mpc.reveal(x, to=0) == 1  # the world goes on


def test_an_error_in_a_party_is_the_notebooks_and_ends_the_world():
    with mpc.local():
        x = mpc.share(lambda: PATIENT, source=0, shape=(1, 4))
        with pytest.raises(UsageError, match="det"):
            torch.linalg.det(x @ x.T)
        with pytest.raises(MpcError, match="has ended"):
            x + 1


def test_a_policy_holds_here_too():
    with mpc.local(policy=mpc.Policy(())):
        x = mpc.share(lambda: PATIENT, source=0, shape=(1, 4))
        with pytest.raises(RefusedError, match="to P1"):
            mpc.reveal(x, to=1)


def test_what_is_no_secret_of_the_world_is_not_revealed():
    with mpc.local() as world:
        assert world.run(lambda: 3) == [3, 3, 3]
        with pytest.raises(UsageError, match="reveal: got Tensor, wanted a secret tensor"):
            mpc.reveal(PATIENT, to=0)


def test_a_world_of_several_cells():
    world = mpc.local().begin()
    x = mpc.share(lambda: PATIENT, source=0, shape=(1, 4))
    assert (mpc.reveal(x + x, public=True) - 2 * PATIENT).abs().max() < 1e-3
    world.end()
    with pytest.raises(MpcError, match="has ended"):
        x + x


def test_a_thread_leads_one_world_and_none_once_it_is_over():
    with mpc.local(), pytest.raises(UsageError, match="this thread is in one already"), mpc.local():
        pass
    with pytest.raises(UsageError, match="world: there is none here"):
        mpc.share(lambda: PATIENT, source=0, shape=(1, 4))


VALUES = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
LINEAR = nn.Linear(2, 3).eval()
LSTM = nn.LSTM(2, 3, batch_first=True)
ATTENTION = nn.MultiheadAttention(2, 1, batch_first=True).eval()
ENCODER = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True).eval()


def of_lstm(x):
    y, (h, c) = LSTM(x[None])
    return y, h, c


def unpacked(x):
    (a, b), (values, places) = x.chunk(2), x.max(1)
    return a - b, values, places


def summed(x):
    total = 0
    for number, row in enumerate(x):
        total = total + row * number
    return total


def written_in_place(x):
    x = x.clone()
    alias = x
    x += 1
    x *= 2
    x -= x[0]
    x /= 4
    mask = x > 0
    mask &= x < 1
    return alias, mask


def written_by_row(x):
    x = x.clone()
    x[0] = 9
    x[:, 1] = x[:, 0]
    return x


# What is typed into cells: of a matrix, an index, a model.
CELLS = {
    "equal": lambda x, i, m: (i == 3, i != 3, torch.ones(3) == i, x == x.clone(), torch.where(i == 3, 1.0, 0.0)),
    "logical": lambda x, i, m: ((x > 0) & (x < 1), (x > 1) | (x < 0), (x > 0) ^ (x < 1), ~(x > 0)),
    "parts": lambda x, i, m: (*x, *x.split(1), x.max(1).values, torch.stack([2 * row for row in x])),
    "zip": lambda x, i, m: [a * b for a, b in zip(x, x, strict=True)],
    "loop": lambda x, i, m: summed(x),
    "unpack": lambda x, i, m: unpacked(x),
    "lstm": lambda x, i, m: of_lstm(x),
    "attention": lambda x, i, m: ATTENTION(x[None], x[None], x[None])[0],
    "encoder": lambda x, i, m: ENCODER(x[None]),
    "in place": lambda x, i, m: written_in_place(x),
    "rows": lambda x, i, m: written_by_row(x),
    "reversed": lambda x, i, m: (reversed(x), 1 - x, 1 / x, 2**x, torch.ones(2, 2) @ x, sum([x, x]), abs(-x)),
    "lookup": lambda x, i, m: (torch.eye(5)[i], functional.embedding(i, torch.eye(5))),
    "arrange": lambda x, i, m: (x.T, x.view(-1), x[..., None], torch.cat([x, torch.ones(1, 2)]), x[torch.tensor([1])]),
    "model": lambda x, i, m: (m(x), m.weight, LINEAR(x), nn.Sequential(LINEAR, nn.ReLU())(x), copy.deepcopy(m)(x)),
    "state": lambda x, i, m: [*m.state_dict().values(), *m.parameters(), copy.deepcopy(x)],
    "public": lambda x, i, m: (len(x), x.shape, x.dtype, x.requires_grad, m.training, hasattr(x, "note")),
    "names": lambda x, i, m: [x.owners, *(name for name, _ in m.named_parameters())],
    "format": lambda x, i, m: "SharedTensor" in f"{x.sum():.3f}",
}


def opened(value):
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [opened(each) for each in value]
    return mpc.reveal(value, public=True) if hasattr(value, "owners") else value


def cells(chosen):
    x = mpc.share(lambda: VALUES, source=0, shape=(2, 2))
    i = mpc.share(lambda: torch.tensor([1, 3, 3]), source=0, shape=(3,), dtype=torch.int64, classes=5)
    m = mpc.own(lambda: LINEAR, source=1, like=nn.Linear(2, 3))
    return {name: opened(CELLS[name](x, i, m)) for name in chosen}


def close(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and (a.double() - b.double()).abs().max() < 2e-3
    return type(a) is type(b) and a == b


def test_a_cell_gives_what_a_program_of_three_gives():
    with mpc.local_world() as world:
        expected = world.run(lambda: cells(CELLS))[0]
    with mpc.local():
        assert [name for name, value in cells(CELLS).items() if not close(value, expected[name])] == []


def assigned(x):
    x.data = x[0]


def trained(x):
    x.requires_grad = True


REFUSED = {
    "data": assigned,
    "gradient": trained,
    "length": lambda x: len(x.sum()),
    "elements": lambda x: list(x.sum()),
    "missing": lambda x: x.nothing,
    "copy": copy.copy,
    "numpy": lambda x: x.numpy(),
    "array": lambda x: x @ np.ones((2, 2), np.float32),
    "item": lambda x: x.sum().item(),
    "plain": lambda x: torch.zeros(2, 2).copy_(x),
    "shift": lambda x: (x > 0) << 1,
    "all equal": lambda x: torch.equal(x, x),
    "mask": lambda x: x[x > 0],
    "several": lambda x: mpc.reveal(x.max(1), to=0),
}


@pytest.mark.parametrize("cell", REFUSED.values(), ids=REFUSED)
def test_a_cell_is_refused_as_a_program_of_three_is(cell):
    def program():
        return cell(mpc.share(lambda: VALUES, source=0, shape=(2, 2)))

    with pytest.raises(Exception) as expected, mpc.local_world() as world:
        world.run(program)
    with pytest.raises(type(expected.value)) as found, mpc.local():
        program()
    assert str(found.value) == str(expected.value)


def test_what_is_compiled_is_refused_here_too():
    with mpc.local():
        x = mpc.share(lambda: VALUES, source=0, shape=(2, 2))
        with pytest.raises(UsageError, match="compile: secrets are not traced or compiled"):
            torch.compile(lambda x: 2 * x + 1, backend="eager")(x)
        assert (mpc.reveal(2 * x, to=0) - 2 * VALUES).abs().max() < 1e-3


def test_how_a_notebook_shows_a_value_ends_no_world():
    with mpc.local():
        x = mpc.share(lambda: VALUES, source=0, shape=(2, 2))
        assert not any(hasattr(x, name) for name in ("_repr_html_", "_ipython_display_", "note"))
        assert "softmax" in dir(x)
        assert (mpc.reveal(x, to=0) - VALUES).abs().max() < 1e-3


def test_what_an_interrupted_cell_comes_to_is_not_the_next_ones():
    class Interrupted(queue.Queue):
        interrupts = 1

        def get(self):
            if self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt
            return super().get()

    world = mpc.local()
    world._results = Interrupted()
    with world:
        with pytest.raises(KeyboardInterrupt):
            world.run(lambda: "interrupted")
        assert world.run(lambda: "next") == ["next"] * 3
        world._results.interrupts = 1
        with pytest.raises(KeyboardInterrupt):
            world.run(lambda: "last")
