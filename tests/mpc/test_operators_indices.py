"""A secret index: a row that is 1 at it, so that looking something up is a product."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from strongroom import mpc
from strongroom.errors import UsageError
from strongroom.mpc.tensor.world import current
from tests.mpc.tensors import shared

IDS = torch.tensor([[3, 0, 2], [1, 1, 4]])
ROWS = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
MORE = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))

# Of secret indices below 5, and secrets of what they look up.
TABLE = {
    "revealed": lambda i, w, m: i,
    "embedding": lambda i, w, m: F.embedding(i, w),
    "embedding of public rows": lambda i, w, m: F.embedding(i, ROWS),
    "indexed": lambda i, w, m: w[i] + ROWS[i],
    "indexed at an axis": lambda i, w, m: m[:, i[0]],
    "selected": lambda i, w, m: w.index_select(0, i[1]),
    "gathered": lambda i, w, m: m.gather(1, i[:, None, :]),
    "gathered of public": lambda i, w, m: MORE.gather(1, i[:, None, :].expand(2, 2, 3)),
    "one hot": lambda i, w, m: F.one_hot(i).float() @ w,
    "one hot with more": lambda i, w, m: F.one_hot(i, 7),
    "views": lambda i, w, m: i.t()[1:, 0].unsqueeze(0),
    "together": lambda i, w, m: torch.cat([i, IDS, i[:1]]),
    "stacked": lambda i, w, m: torch.stack([i[0], i[1]], 1).flatten(),
    "moved": lambda i, w, m: i.flip(1).roll(1, 0).repeat(1, 2)[:, torch.tensor([0, 4])],
    "chosen": lambda i, w, m: torch.where(IDS > 1, i, 0) + i.masked_fill(IDS == 1, 4),
    "chosen secretly": lambda i, w, m: torch.where(i == 1, 4, i),
    "compared": lambda i, w, m: torch.stack([i == 3, i < 2, i >= 2, i != IDS, i == i.flip(0), i > i.flip(1)]),
    "as numbers": lambda i, w, m: i + 1,
    "as a fraction": lambda i, w, m: i.float() * 0.5 + i / 2,
    "counted": lambda i, w, m: (i == 1).sum(1) + i.sum(),
    "copied": lambda i, w, m: F.embedding(i.clone().contiguous(), w),
    "largest": lambda i, w, m: torch.stack([m.argmax(1), m.argmin(1), m.max(1).indices, m.topk(1, 1).indices[:, 0]]),
    "largest of all": lambda i, w, m: m.argmax(),
    "kept": lambda i, w, m: m.argmax(-1, keepdim=True),
    "looked up again": lambda i, w, m: F.embedding(m.argmax(1), w),
    "gathered again": lambda i, w, m: m.gather(1, m.argmax(1, keepdim=True)),
}


@pytest.fixture(scope="module")
def outcomes():
    def program():
        found = {}
        for name, function in TABLE.items():
            try:
                result = function(shared(IDS, classes=5), shared(ROWS), shared(MORE))
                found[name] = mpc.reveal(result, to=0)
            except Exception as error:
                found[name] = error
        return found

    with mpc.local_world() as world:
        return world.run(program)[0]


@pytest.mark.parametrize("name", TABLE)
def test_it_looks_up_what_it_looks_up_in_the_clear(name, outcomes):
    got, wanted = outcomes[name], TABLE[name](IDS, ROWS, MORE)
    if isinstance(got, Exception):
        raise got
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert (got.double() - wanted.double()).abs().max() < 5e-4


def test_greedy_text_stays_secret_from_token_to_token():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))

    def generate(model, ids):
        for _ in range(3):
            ids = torch.cat([ids, model(ids[:, -1:]).argmax(-1)], 1)
        return ids

    start = torch.tensor([[2], [5]])

    def program():
        secret = mpc.own(lambda: model, source=1, like=model)
        ids = generate(secret, shared(start, classes=6))
        assert not current().reveals
        return mpc.reveal(ids, to=0)

    with mpc.local_world() as world:
        assert torch.equal(world.run(program)[0], generate(model, start))


def test_indices_are_written_through_views():
    def program():
        ids = shared(IDS, classes=5)
        ids[:, 1] = shared(torch.tensor([4, 2]), classes=5)
        ids[0, 0] = 1
        ids.t()[2].copy_(torch.tensor([0, 3]))
        return mpc.reveal(ids, to=0)

    with mpc.local_world() as world:
        assert world.run(program)[0].tolist() == [[1, 4, 0], [1, 2, 3]]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda i, w: w[i + 1], "index: got a secret torch.int64 that is a number, wanted an index"),
        (lambda i, w: w[:3][i], "index: got one below 5, wanted one below 3"),
        (lambda i, w: w[i == 1], "index: got a secret mask, wanted a public one"),
        (lambda i, w: torch.cat([i, w.argmax(1)[None, :3]]), r"indices: got classes \[5, 2\], wanted the same"),
        (lambda i, w: F.one_hot(i, 3), "one_hot: got an index below 5 for 3 classes"),
        (lambda i, w: torch.cat([i, IDS + 1]), "index: got 5, wanted one of 0 to 4"),
        (lambda i, w: i.copy_(w.argmax(1)[:3]), "write: got an index below 2, wanted an index below 5"),
        (lambda i, w: w.index_put_((i[0],), w[:3]), "index: got a secret, wanted a public one"),
        (lambda i, w: w.scatter(0, i.t(), w), "index: got a secret, wanted a public one"),
        (lambda i, w: w[i[0], i[1] * 0], "index: got a secret among several, wanted it alone"),
    ],
)
def test_what_cannot_be_looked_up_is_named(use, message):
    with mpc.local_world() as world, pytest.raises(UsageError, match=message):
        world.run(lambda: use(shared(IDS, classes=5), shared(ROWS)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 4}, r"values: the one at \[1, 2\] is no integer of 0 to 3"),
        ({"classes": 0}, "classes: got 0 of torch.int64, wanted at least one"),
        ({"dtype": torch.bool}, r"values: the one at \[0, 0\] is no integer of 0 to 1"),
        ({"dtype": torch.float32, "classes": 5}, "classes: got 5 of torch.float32"),
    ],
)
def test_indices_are_checked_where_they_come_from(arguments, message):
    how = {"source": 0, "shape": (2, 3), "dtype": torch.int64} | arguments
    with mpc.local_world() as world, pytest.raises(UsageError, match=message):
        world.run(lambda: mpc.share(lambda: IDS, **how))
