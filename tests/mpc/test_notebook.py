"""All three parties led from one thread, as a notebook does."""

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
    [bool, float, int, len, list, lambda x: 1 if x > 0 else 0, lambda x: [1, 2][x], lambda x: 1 in x],
    ids=["bool", "float", "int", "len", "iter", "branch", "index", "in"],
)
def test_a_secret_of_the_world_steers_nothing(leak):
    with mpc.local():
        x = mpc.share(lambda: torch.ones(()), source=0, shape=())
        with pytest.raises(UsageError):
            leak(x)


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
