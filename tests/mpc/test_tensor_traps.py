"""Whatever would show a secret, or steer the program by one, raises, and says what, of what shape, and where."""

import copy
import io
import pickle
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from strongroom import mpc
from strongroom.errors import UsageError

INDEX = torch.zeros(2, 3, dtype=torch.long)


def plain():
    return torch.zeros(2, 3)


def autocast(s):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return s @ s.t()


# By what the message begins with. `s` is a secret of shape 2 x 3.
TRAPS = {
    "bool": [
        lambda s: bool(s),
        lambda s: 1 if s.sum() else 0,
        lambda s: not s[0, 0],
        lambda s: 1 if (s > 0).all() else 0,
        lambda s: s[0, 0] in [1.0],
        lambda s: max(s[0]),
        lambda s: s[0, 0] < s[0, 1] < s[0, 2],
    ],
    "float": [lambda s: float(s[0, 0]), lambda s: torch.tensor([s[0, 0]])],
    "int": [lambda s: int(s[0, 0])],
    "index": [
        lambda s: range(s[0, 0]),
        lambda s: [1, 2][s[0, 0]],
        lambda s: plain()[s.argmax(1)],
        lambda s: nn.functional.embedding(s.argmax(1), plain()),
        lambda s: plain()[s > 0],
        lambda s: s[s > 0],
        lambda s: s.__setitem__(s > 0, 0),
        lambda s: s[s.argmax(1) + 1],
    ],
    "item": [lambda s: s[0, 0].item()],
    "tolist": [lambda s: s.tolist()],
    "numpy": [lambda s: s.numpy()],
    "array": [lambda s: np.asarray(s), lambda s: np.array([s])],
    "dlpack": [lambda s: torch.from_dlpack(s), lambda s: np.from_dlpack(s)],
    "storage": [lambda s: s.storage(), lambda s: s.untyped_storage()],
    "data_ptr": [lambda s: s.data_ptr()],
    "share_memory_": [lambda s: s.share_memory_()],
    "pickle": [pickle.dumps, copy.copy, lambda s: torch.save({"w": s}, io.BytesIO())],
    "apply_": [lambda s: s.apply_(abs)],
    "map_": [lambda s: plain().map_(s, max)],
    # What would depend on a secret
    "in": [lambda s: 1.0 in s],
    "aten.equal": [lambda s: torch.equal(s, s), lambda s: torch.equal(plain(), s)],
    "aten.nonzero": [lambda s: s.nonzero(), lambda s: torch.where(s > 0)],
    "aten.masked_select": [lambda s: s.masked_select(s > 0)],
    "masked scatter": [lambda s: s.masked_scatter(s > 0, plain())],
    "topk": [lambda s: s.topk(2)],
    "aten.sort": [lambda s: s.sort()],
    # Plain tensors that a share would be written into
    "aten.copy_": [
        lambda s: plain().copy_(s),
        lambda s: plain().__setitem__(0, s[0]),
        lambda s: nn.Parameter(plain(), requires_grad=False).copy_(s),
        lambda s: plain()[:, 0].copy_(s[:, 0]),
    ],
    "aten.fill_": [lambda s: plain().fill_(s[0, 0])],
    "aten.masked_fill_": [lambda s: plain().masked_fill_(s > 0, 1.0)],
    "aten.index_copy_": [lambda s: plain().index_copy_(0, torch.tensor([0]), s[:1])],
    "aten.addmm_": [lambda s: torch.zeros(2, 2).addmm_(s, s.t())],
    "aten._foreach_copy_": [lambda s: torch._foreach_copy_([plain()], [s])],
    "aten.add_": [lambda s: plain().add_(s)],
    "aten.mul_": [lambda s: plain().mul_(s)],
    "aten.lerp_": [lambda s: plain().lerp_(s, 0.5)],
    "aten.index_put_": [
        lambda s: plain().index_put_((torch.tensor([0]),), s[:1]),
        lambda s: plain().__setitem__(s.argmax(1), 1.0),
    ],
    "aten.scatter_": [lambda s: plain().scatter_(0, INDEX, s)],
    "aten.masked_scatter_": [lambda s: plain().masked_scatter_(INDEX == 0, s)],
    "aten._foreach_add_": [lambda s: torch._foreach_add_([plain()], [s])],
    "aten.add.out": [lambda s: torch.add(s, s, out=plain())],
    "aten.mm.out": [lambda s: torch.mm(s, s.t(), out=torch.zeros(2, 2))],
    "aten.set_": [lambda s: plain().set_(s), lambda s: s.set_(plain())],
    "assignment": [lambda s: setattr(plain(), "data", s)],
    "data": [lambda s: setattr(s, "data", plain()), lambda s: setattr(s, "data", s[0])],
    # What changes only the outside
    "to": [
        lambda s: s.half(),
        lambda s: s.double(),
        lambda s: s.int(),
        lambda s: s.to("meta"),
        lambda s: nn.ParameterList([nn.Parameter(s, requires_grad=False)]).half(),
        autocast,
    ],
    "aten.view.dtype": [lambda s: s.view(torch.int32)],
    "aten.resize_": [lambda s: s.resize_(1)],
    "write": [
        lambda s: s[0].expand(2, 3).add_(1),
        lambda s: s[0].copy_(s),
        lambda s: s.argmax(1).add_(1),
        lambda s: s.argmax(1).copy_(s[:, 0]),
    ],
    "dtype": [lambda s: (s > 0).copy_(s)],
    "compile": [
        lambda s: torch.compile(lambda x: x + 1, backend="eager")(s),
        lambda s: make_fx(lambda x: x + 1)(s),
    ],
    # Gradients
    "backward": [lambda s: s.sum().backward()],
    "requires_grad": [
        lambda s: s.requires_grad_(),
        lambda s: setattr(s, "requires_grad", True),
        lambda s: nn.Parameter(s),
    ],
    "grad": [lambda s: torch.autograd.grad(s.sum(), [s])],
    # Randomness that the parties would not share, statistics that are not there
    "aten.native_dropout": [lambda s: nn.Dropout()(s)],
    "aten.normal_": [lambda s: s.normal_()],
    "aten.rand_like": [lambda s: torch.rand_like(s)],
    "batch norm": [lambda s: nn.BatchNorm1d(3)(s)],
    "tensor": [lambda s: torch.native_layer_norm(s, [3], None, None, 1e-5)[1] + 1],
    "power": [lambda s: s**2.5, lambda s: s**s],
    # Convolutions and others without a protocol
    "convolution": [lambda s: nn.functional.conv3d(s[None, None, None], torch.ones(1, 1, 1, 1, 1))],
    "aten.linalg_inv_ex": [lambda s: torch.linalg.inv(s[:, :2])],
    "aten._fft_r2c": [lambda s: torch.fft.fft(s)],
}
CASES = [(name, i) for name, traps in TRAPS.items() for i in range(len(traps))]


@pytest.fixture(scope="module")
def outcomes():
    """How each trap ended at P0; all in one world, which survives them: they raise before anything is sent."""
    tracing = threading.Lock()

    def program():
        found = {}
        for name, i in CASES:
            secret = mpc.share(lambda: torch.tensor([[1.25, 2.5, 3.75], [4, 5, 6]]), source=0, shape=(2, 3))
            try:
                # torch's tracers keep what they do in globals, and the parties here are threads
                with tracing if name == "compile" else nullcontext():
                    found[name, i] = TRAPS[name][i](secret)
            except Exception as error:
                found[name, i] = error
        return found

    with mpc.local_world() as world:
        return world.run(program)[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_it_raises(case, outcomes):
    error = outcomes[case]
    assert isinstance(error, UsageError), error
    assert error.message.startswith(case[0]) and "\n" not in error.message
    assert f"at {__file__}:" in error.message or case[0] in ("pickle", "assignment", "compile")
    assert "1.25" not in error.message + (error.hint or "")


def test_printing_shows_a_shape_and_owners():
    def program():
        secret = mpc.share(lambda: torch.full((2,), 1.25), source=1, shape=(2,))
        return repr(secret), str(secret), f"{secret[0]:.3f}", repr(nn.Parameter(secret, requires_grad=False))

    with mpc.local_world() as world:
        whole, text, part, parameter = world.run(program)[0]
    assert whole == text == parameter == "SharedTensor(shape=(2,), owners={P1})"
    assert part == "SharedTensor(shape=(), owners={P1})"


def test_a_plain_model_does_not_load_a_secret_state():
    def program():
        model = nn.Linear(3, 2)
        state = mpc.share(lambda: nn.Linear(3, 2), source=0, like=nn.Linear(3, 2)).state_dict()
        with pytest.raises(RuntimeError, match="secret"):
            model.load_state_dict(state)
        return bool((model.weight != 0).any())

    with mpc.local_world() as world:
        assert world.run(program)[0]


def test_secret_batch_norm_that_was_changed_is_not_folded():
    def program():
        model = mpc.share(lambda: nn.BatchNorm1d(3), source=0, like=nn.BatchNorm1d(3)).eval()
        model.weight.mul_(2)
        model(mpc.share(lambda: torch.ones(2, 3), source=0, shape=(2, 3)))

    with mpc.local_world() as world, pytest.raises(UsageError, match="batch norm: the root of a secret variance"):
        world.run(program)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": mpc.D, "shape": (1,)}, "source: got 2, wanted 0 or 1"),
        ({"source": "D", "shape": (1,)}, "source: got 'D', wanted 0 or 1"),
        ({"source": 0, "shape": "two"}, "shape: got 'two', wanted sizes"),
        ({"source": 0, "shape": 1.5}, "shape: got 1.5, wanted sizes"),
        ({"source": 0, "shape": (-1,)}, r"shape: got \(-1,\), wanted sizes"),
        ({"source": 0}, "wanted either shape=, of a tensor, or like="),
        ({"source": 0, "shape": (1,), "dtype": torch.float16}, "dtype: got torch.float16"),
        ({"source": 0, "shape": (1,), "owners": "ann"}, "owners: got 'ann', wanted some names"),
        ({"source": 0, "shape": (2,)}, r"values: got shape \(1,\), wanted \(2,\)"),
        ({"source": 0, "like": nn.Linear(1, 1)}, "values: got Tensor, wanted a module or its state"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(arguments, message):
    with mpc.local_world() as world, pytest.raises(UsageError, match=message):
        world.run(lambda: mpc.share(lambda: torch.ones(1), **arguments))


@pytest.mark.parametrize("values", [torch.ones(1), nn.Linear(1, 1), [1.0], None])
@pytest.mark.parametrize("give", [mpc.share, mpc.own])
def test_values_themselves_are_refused_for_a_function_that_gives_them(give, values):
    """A module can be called, too: it would be called as the function."""
    with mpc.local_world() as world, pytest.raises(UsageError, match=r"values: got .*, wanted a function") as refused:
        world.run(lambda: give(values, source=0, like=nn.Linear(1, 1)))
    assert refused.value.hint == "such as lambda: model"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), "values: got complex64 values, wanted real numbers"),
        (np.ones(2, np.complex128), "values: got complex128 values"),
        (["one", "two"], "values: got <U3 values"),
        ([[1.0], [2.0, 3.0]], "values: got list, wanted an array of real numbers"),
    ],
)
def test_what_is_no_real_number_is_refused(values, message):
    with mpc.local_world() as world, pytest.raises(UsageError, match=message):
        world.run(lambda: mpc.share(lambda: values, source=0, shape=2))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 3), torch.nan), "values: 1.weight: got a number that is not finite"),
        (torch.full((2, 3), 1e6), r"values: 1.weight: one is out of range, wanted magnitudes below 2\^15"),
        (torch.ones(3, 2), r"values: 1.weight: got shape \(3, 2\), wanted \(2, 3\)"),
        (torch.ones(2, 3, dtype=torch.complex64), "values: 1.weight: got complex64 values"),
    ],
    ids=["nan", "range", "shape", "complex"],
)
@pytest.mark.parametrize("give", [mpc.share, mpc.own])
def test_a_weight_that_cannot_be_shared_is_named(give, weight, message):
    def model():
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))

    state = model().state_dict() | {"1.weight": weight}
    with mpc.local_world() as world, pytest.raises(UsageError, match=message):
        world.run(lambda: give(lambda: state, source=1, like=model()))


def test_servers_and_shapes_go_by_their_short_names():
    def program():
        x = mpc.share(lambda: torch.ones(3), source="P1", shape=3)
        y = mpc.own(lambda: torch.ones(3), source=mpc.P0, shape=np.int64(3))
        return x.owners, mpc.reveal(x + y, to="P0")

    with mpc.local_world() as world:
        owners, revealed = world.run(program)[0]
    assert owners == {"P1"} and revealed.tolist() == [2, 2, 2]
    assert (mpc.P0, mpc.P1, mpc.D) == (0, 1, mpc.DEALER)


def test_another_architecture_is_refused_by_its_names():
    with mpc.local_world() as world, pytest.raises(UsageError, match=r"got \['0.bias', '0.weight'\] and not"):
        world.run(lambda: mpc.share(lambda: nn.Sequential(nn.Linear(1, 1)), source=0, like=nn.Linear(1, 1)))


def test_reveal_has_no_default_recipient_and_no_plain_argument():
    def program():
        secret = mpc.share(lambda: torch.ones(1), source=0, shape=(1,))
        with pytest.raises(UsageError, match="reveal: wanted either to="):
            mpc.reveal(secret)
        with pytest.raises(UsageError, match="reveal: got Tensor, wanted a secret tensor"):
            mpc.reveal(torch.ones(1), to=0)

    with mpc.local_world() as world:
        world.run(program)


def test_outside_of_a_world_nothing_is_shared():
    with pytest.raises(UsageError, match="world: there is none here"):
        mpc.share(lambda: torch.ones(1), source=0, shape=(1,))
