"""Unmodified modules compute on secrets what they compute in the clear; views are views."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import MpcError, UsageError
from strongroom.mpc import Settings
from strongroom.mpc.tensor.world import current

HOW = ("public", "secret", "owned")


def prepared(model, how):
    """P1's model as the program uses it."""
    if how == "public":
        return model
    return (mpc.share if how == "secret" else mpc.own)(lambda: model, source=1, like=model)


def at_p0(program, settings=None):
    with mpc.local_world(settings) as world:
        return world.run(program)[0]


def answer(model, x, how):
    def program():
        secret = mpc.share(lambda: x, source=0, shape=x.shape)
        return mpc.reveal(prepared(model, how)(secret), to=0)

    return at_p0(program)


def network_a():
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def network_b():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("network", "shape"), [(network_a, (3, 784)), (network_b, (3, 1, 28, 28))])
def test_networks_of_the_paper(network, shape, how):
    torch.manual_seed(1)
    model, x = network().eval(), torch.rand(shape)
    wanted = model(x).detach()
    got = answer(model, x, how)
    assert got.dtype == torch.float32 and got.shape == wanted.shape
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def batch_norm():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(1e-3, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


class Causal(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


LAYERS = {
    "convolution": (lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False), (1, 4, 6, 6)),
    "sequence": (lambda: nn.Conv1d(3, 4, 3, padding=2, dilation=2), (2, 3, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 2, stride=2), (1, 3, 3, 3)),
    "linear of a stack": (lambda: nn.Linear(4, 3), (2, 3, 4)),
    "linear of a row": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), (1, 2, 5, 5)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, padding=1), (1, 2, 7, 7)),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), (1, 2, 4, 4)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d(2), (1, 2, 4, 4)),
    "batch norm": (batch_norm, (2, 3, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm((2, 4)), (3, 2, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), (3, 4)),
    "softmax": (lambda: nn.Softmax(1), (3, 5, 2)),
    "dropout": (lambda: nn.Dropout(), (3, 4)),
    "causal attention": (Causal, (2, 4, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), (2, 3, 8)),
    **{
        function.__name__: (function, (3, 4))
        for function in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh)
    },
    "in place": (lambda: nn.ReLU(inplace=True), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    torch.manual_seed(1)
    make, shape = LAYERS[name]
    model, x = make().eval(), torch.randn(shape) * 2
    wanted = model(x.clone()).detach()
    ways = HOW if list(model.parameters()) else HOW[:1]

    def program():
        secret = [mpc.share(lambda: x, source=0, shape=shape) for _ in ways]
        return [mpc.reveal(prepared(model, how)(each), to=0) for how, each in zip(ways, secret, strict=True)]

    for how, got in zip(ways, at_p0(program), strict=True):
        assert got.shape == wanted.shape and (got - wanted).abs().max() < 5e-4, how


EXPRESSIONS = {
    "sums": lambda x, y: 1 - x + y - 2.5 + torch.add(x, y, alpha=0.5),
    "products": lambda x, y: -(x * y) * 0.3 + x / 7 + 3 * y + x**2 - y / torch.tensor([2.0, 4.0, 8.0]),
    "matrices": lambda x, y: x @ y.T @ torch.ones(2, 3) + torch.ones(2, 2) @ x,
    "vectors": lambda x, y: x @ y[0] + x[0] @ y[1],
    "sums along axes": lambda x, y: x.sum(0) + y.mean(0, keepdim=True) + x.sum() - y.mean(),
    "rearranged": lambda x, y: torch.cat([x.T, y.reshape(3, 2)], 1)[1:, ::2],
    "stacked": lambda x, y: torch.stack([x, y, torch.ones(2, 3)]).permute(2, 0, 1).flatten(1).unsqueeze(0).squeeze(),
    "split": lambda x, y: sum(x.split([1, 2], 1)[1].chunk(2, 1)) + y.unbind(1)[0][:, None].expand(2, 1),
    "picked": lambda x, y: x[:, torch.tensor([2, 0])] + y[torch.tensor([1, 1]), :2],
    "padded": lambda x, y: nn.functional.pad(x, (1, 2, 0, 1), value=0.5),
    "bounds": lambda x, y: x.clamp(-1, 1) + y.clamp(min=0) + y.clamp(max=0.5) + x.abs() + torch.minimum(x, y),
    "largest": lambda x, y: torch.maximum(x, y).amax(1) + x.max(),
    "reciprocals": lambda x, y: 1 / (x.abs() + 1) + (y.abs() + 1).rsqrt() + x.exp(),
    "like": lambda x, y: torch.ones_like(x) + torch.zeros_like(y) + x.clone(),
}


def test_expressions():
    torch.manual_seed(1)
    x, y = torch.randn(2, 3), torch.randn(2, 3)

    def program():
        secrets = [mpc.share(lambda v=v: v, source=0, shape=(2, 3)) for v in (x, y)]
        return [mpc.reveal(function(*secrets), to=0) for function in EXPRESSIONS.values()]

    for (name, function), got in zip(EXPRESSIONS.items(), at_p0(program), strict=True):
        wanted = function(x, y)
        assert got.shape == wanted.shape and (got - wanted).abs().max() < 5e-4, name


def test_everything_runs_in_inference_mode_too():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3), nn.Softmax(-1)
    )
    x = torch.rand(2, 1, 8, 8)

    def program():
        with torch.inference_mode():
            return mpc.reveal(prepared(model, "owned")(mpc.share(lambda: x, source=0, shape=x.shape)), to=0)

    assert (at_p0(program) - model(x).detach()).abs().max() < 1e-3


def test_what_is_written_through_a_view_is_seen_by_all():
    def writes(x):
        row, column, turned = x[0], x[:, 1], x.t()
        row.add_(1)
        column.mul_(2)
        turned[2] = 7
        x[1, 0] -= 3
        x[:, :2].relu_()
        turned.copy_(turned + 1)
        return torch.cat([x.flatten(), row, column, turned.flatten()])

    x = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -6.0]])
    got = at_p0(lambda: mpc.reveal(writes(mpc.share(lambda: x.clone(), source=0, shape=(2, 3))), to=0))
    assert (got - writes(x.clone())).abs().max() < 1e-4


@pytest.mark.parametrize("give", ["share", "own"])
def test_an_opening_does_not_outlive_the_value_it_opened(give):
    """The second product would come out as the first if a write kept a mask, or half a view's."""

    def program():
        x = mpc.share(lambda: torch.eye(2), source=0, shape=(2, 2))
        w = getattr(mpc, give)(lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]]), source=1, shape=(2, 2))
        turned = w.t()
        first = [x @ w, x @ turned, x[:1] @ w[:, :1]]
        w[0].add_(10)
        return [mpc.reveal(each, to=0) for each in (*first, x @ w, x @ turned, x[:1] @ w[:, :1])]

    before, turned, part, *after = at_p0(program)
    assert torch.allclose(before, turned.T, atol=1e-3) and torch.allclose(part, before[:1, :1], atol=1e-3)
    assert torch.allclose(after[0], before + torch.tensor([[10.0, 10.0], [0, 0]]), atol=1e-3)
    assert torch.allclose(after[1], after[0].T, atol=1e-3) and torch.allclose(after[2], after[0][:1, :1], atol=1e-3)


def test_weights_are_opened_once_and_truncation_joins_relu():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def program():
        secret, party, rounds = prepared(model, "secret"), current().party, []
        for _ in range(2):
            x = mpc.share(lambda: torch.ones(1, 4), source=0, shape=(1, 4))
            before = party.rounds
            secret(x)
            rounds.append(party.rounds - before)
        return rounds

    # Two products and a ReLU that truncates: the openings of both weights go along with those of the inputs.
    assert at_p0(program) == [6, 6]


def test_a_secret_goes_to_whom_it_is_revealed_and_is_recorded():
    def program():
        x = mpc.share(lambda: torch.ones(2), source=0, shape=(2,))
        y = mpc.share(lambda: torch.ones(2), source=1, shape=(2,), owners=["clinic"])
        x[0].add_(y[0])
        return x.owners, mpc.reveal(x + y, to=[1])

    with mpc.local_world() as world:
        (owners, at_p0), (_, at_p1), (_, at_dealer) = world.run(program)
        assert owners == {"P0", "P1", "clinic"}
        assert torch.allclose(at_p1, torch.tensor([3.0, 2.0]))
        for withheld in (at_p0, at_dealer):
            assert withheld.shape == (2,) and "revealed to P1" in repr(withheld)
            for use in (
                bool,
                float,
                len,
                lambda v: v + 1,
                lambda v: v[0],
                lambda v: v == v,
                torch.sum,
                lambda v: v.sum(),
            ):
                with pytest.raises(UsageError, match="was revealed to P1, not to this party"):
                    use(withheld)
        (entry,) = world.reveals
    assert (entry.shape, entry.owners, entry.to) == ((2,), {"P0", "P1", "clinic"}, ("P1",))
    assert entry.file == __file__ and entry.line == program.__code__.co_firstlineno + 4


def test_secrets_live_from_one_run_of_a_world_to_the_next():
    kept = {}

    def first():
        kept[current().party.rank] = mpc.share(lambda: torch.ones(2), source=0, shape=(2,))

    with mpc.local_world() as world:
        world.run(first)
        got = world.run(lambda: mpc.reveal(kept[current().party.rank] * 2, to=[0, 1]))
    assert got[0].tolist() == got[1].tolist() == [2, 2]


def test_a_world_that_failed_is_over():
    def fails():
        raise RuntimeError("in the program")

    with mpc.local_world() as world:
        with pytest.raises(RuntimeError, match="in the program"):
            world.run(fails)
        with pytest.raises(MpcError, match="world: has ended"):
            world.run(lambda: None)


def test_one_party_s_failure_ends_the_world_for_all():
    def program():
        if current().party.rank == 0:
            raise RuntimeError("at P0 alone")

    with mpc.local_world() as world, pytest.raises(RuntimeError, match="at P0 alone"):
        world.run(program)


def test_a_copy_of_a_secret_module_goes_its_own_way():
    def program():
        model = prepared(nn.Linear(2, 1, bias=False).requires_grad_(False), "secret")
        other = copy.deepcopy(model)
        other.weight.zero_()
        x = mpc.share(lambda: torch.ones(1, 2), source=0, shape=(1, 2))
        return mpc.reveal(other(x), to=0), mpc.reveal(model(x), to=0)

    zero, other = at_p0(program)
    assert zero.abs().max() < 1e-3 < other.abs().max()


def test_only_the_source_computes_what_it_shares():
    called = []

    def program():
        mpc.share(lambda: called.append(current().party.rank) or torch.ones(1), source=1, shape=(1,))
        mpc.own(lambda: called.append(current().party.rank) or nn.Linear(1, 1), source=0, like=nn.Linear(1, 1))

    at_p0(program)
    assert sorted(called) == [0, 1]


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight

    def program():
        secret = prepared(model, "owned")
        return secret[0].weight is secret[1].weight

    assert at_p0(program)


def test_the_index_of_the_largest():
    x = torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 3.0]])
    got = at_p0(lambda: mpc.reveal(mpc.share(lambda: x, source=0, shape=(2, 3)).argmax(1), to=0), Settings(exact=True))
    assert got.dtype == torch.int64 and got.tolist() == [1, 0]


def test_the_package_imports_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from strongroom import mpc\n"
        "from strongroom.errors import MissingDependencyError\n"
        "try: mpc.share\n"
        "except MissingDependencyError as error: print(error.message, '|', error.hint)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "torch: is not installed | pip install 'strongroom[mpc]'\n"


def test_the_guide_s_example_runs(capsys):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "mpc.md"
    block = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[0]
    exec(compile(block, str(page), "exec"), {})  # noqa: S102
    assert "owners=frozenset" in (out := capsys.readouterr().out) and "to=('P0',)" in out


def test_a_number_without_a_shape_is_revealed_as_one():
    def program():
        x = mpc.share(lambda: torch.tensor([1.5, -2.0]), source=0, shape=(2,))
        single = mpc.share(lambda: torch.tensor(0.25), source=1, shape=())
        return [mpc.reveal(each, to=0) for each in (single, x.sum(), x.relu().sum() * single, x.max())]

    with mpc.local_world() as world:
        values = world.run(program)[0]
    assert [each.shape for each in values] == [torch.Size([])] * 4
    assert [each.item() for each in values] == pytest.approx([0.25, -0.5, 0.375, 1.5], abs=1e-4)


def test_a_program_may_move_its_model_and_its_inputs_to_a_device():
    model, x = nn.Linear(3, 2), torch.arange(6.0).reshape(2, 3)
    wanted = torch.relu(model(x) * 2).detach()
    # As torch asks an accelerator's tensors; `.to("cuda")` itself looks for the driver before it asks anything.
    device = torch.device("cuda", 0)

    def moved(secret):
        return torch.ops.aten._to_copy(secret, device=device)

    def program():
        secret = mpc.share(lambda: x, source=0, shape=x.shape)
        module = mpc.share(lambda: model, source=1, like=nn.Linear(3, 2))._apply(moved)
        assert {each.device for each in module.parameters()} == {device}
        y = torch.relu(module(moved(secret)) * 2)
        assert (secret.device.type, y.device, y.t()[0].device, y.clone().device) == ("cpu", device, device, device)
        assert y.to("cpu").device.type == y.cpu().device.type == "cpu"
        assert secret.to(secret.device) is secret
        moved(secret).zero_()  # another storage, as on an accelerator
        secret.data = secret.data + 1 - 1  # as modules do when they are moved
        return mpc.reveal(y, to=0), mpc.reveal(secret, to=0)

    got, still = at_p0(program)
    assert got.device.type == "cpu" and (got - wanted).abs().max() < 1e-3 and torch.equal(still.round(), x)
    with pytest.raises(UsageError, match="the device meta, which keeps no values"):
        at_p0(lambda: mpc.share(lambda: x, source=0, shape=x.shape).to("meta"))
