"""Modules of secrets under what PyTorch's programs do with modules: copies, moves, states, and its inference mode."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import UsageError
from strongroom.mpc.tensor.world import current
from tests.mpc.tensors import shared

X = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)


def network(seed=None):
    """Batch normalisations that fold into a convolution, and one that does not; a seed for other values."""
    layers = [nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(72, 3)).eval()
    if seed is not None:
        torch.manual_seed(seed)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.5)
    return model


MODEL, OTHER = network(1), network(2)


def loaded(assign=False):
    def load(model):
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
        return model

    return load


def from_another(model):
    """All parts, of another module of secrets."""
    other = mpc.share(lambda: MODEL, source=0, like=network())
    model.load_state_dict(other.state_dict())
    return model


CHANGES = {
    "deepcopy": copy.deepcopy,
    "to": lambda model: model.to("cpu").float().requires_grad_(False),
    "moved": lambda model: model._apply(lambda t: t.on(torch.device("cuda", 0)) if t.is_floating_point() else t),
    "clone": lambda model: model._apply(torch.clone),
    "its own state": loaded(),
    "its own state assigned": loaded(assign=True),
    "data": lambda model: [setattr(each, "data", each.data.clone()) for each in model.parameters()] and model,
}


@pytest.fixture(scope="module")
def changed():
    """By change and by how the module was made: what came of it, in how many rounds, and what MODEL gives."""

    def program():
        found = {}
        for name, give in itertools.product([*CHANGES, "unchanged", "another's state"], (mpc.share, mpc.own)):
            values = OTHER if name == "another's state" else MODEL
            model = give(lambda values=values: values, source=1, like=network())
            model = {**CHANGES, "another's state": from_another}.get(name, lambda model: model)(model)
            x = shared(X)
            before = current().party.rounds
            found[name, give.__name__] = mpc.reveal(model(x), to=0), current().party.rounds - before
        return found

    with mpc.local_world() as world:
        return world.run(program)[0]


@pytest.mark.parametrize("give", ["share", "own"])
@pytest.mark.parametrize("change", [*CHANGES, "another's state"])
def test_a_module_of_secrets_computes_the_same_after(change, give, changed):
    got, rounds = changed[change, give]
    assert (got - MODEL(X)).abs().max() < 1e-3
    # What is opened once may be open already.
    assert rounds <= changed["unchanged", "share"][1]


CHANGED_PARTS = {
    "written to": lambda norm: norm.weight.mul_(2),
    "a copy written to": lambda norm: copy.deepcopy(norm).running_mean.add_(1) is None or norm.bias.zero_(),
    "a part of it": lambda norm: setattr(norm, "running_var", norm.running_var[:1].expand(3)),
    "another epsilon": lambda norm: setattr(norm, "eps", 0.5),
    "another's bias": lambda norm: norm.bias.copy_(mpc.share(lambda: torch.ones(3), source=0, shape=3)),
}


@pytest.mark.parametrize("change", CHANGED_PARTS)
def test_a_batch_norm_whose_parts_are_no_longer_its_source_s_is_refused(change):
    def program():
        norm = mpc.share(lambda: nn.BatchNorm1d(3), source=0, like=nn.BatchNorm1d(3)).eval()
        CHANGED_PARTS[change](norm)
        with pytest.raises(UsageError, match="batch norm: the root of a secret variance"):
            norm(shared(torch.ones(2, 3)))

    with mpc.local_world() as world:
        world.run(program)


def test_a_copy_written_to_leaves_the_module_as_it_was():
    def program():
        norm = mpc.share(lambda: nn.BatchNorm1d(3), source=0, like=nn.BatchNorm1d(3)).eval()
        copy.deepcopy(norm).weight.mul_(2)
        return mpc.reveal(norm(shared(torch.ones(2, 3))), to=0)

    with mpc.local_world() as world:
        assert (world.run(program)[0] - 1).abs().max() < 1e-3


# torch.inference_mode(): its border is none for a secret

Y = torch.linspace(-1, 1, 32).reshape(2, 4, 4)
ACROSS = {
    "view": lambda s: s.view(2, 16),
    "reshaped": lambda s: s.reshape(2, 16),
    "turned": lambda s: s.transpose(1, 2).contiguous(),
    "part": lambda s: s[0, 1:],
    "unbound": lambda s: s.unbind(0)[1],
    "expanded": lambda s: s[:1].expand(3, 4, 4),
    "joined": lambda s: torch.cat([s, s]),
    "written": lambda s: s.clone().add_(1),
    "row written": lambda s: (t := s.clone(), t[0].mul_(2))[0],
    "set": lambda s: (t := s.clone(), t.__setitem__((0, 1), 3.0))[0],
    "linear": nn.Linear(4, 3),
    "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1).eval(),
    "recurrent": nn.GRU(4, 3, batch_first=True),
    "softmax": lambda s: s.softmax(-1),
}


@pytest.fixture(scope="module")
def across():
    """By what is computed, and whether in that mode: of a secret that was shared outside of it, and inside."""

    def program():
        with torch.inference_mode():
            inside = shared(Y)
        outside, found = shared(Y), {}
        for name, function in ACROSS.items():
            for mode in (torch.inference_mode, torch.enable_grad):
                for made, secret in (("inside", inside), ("outside", outside)):
                    with mode():
                        result = function(secret)
                    result = result[0] if isinstance(result, tuple) else result
                    # What was computed there is used here, and written to.
                    found[name, mode.__name__, made] = mpc.reveal(result[:1].add_(0), to=0)
        return found

    with mpc.local_world() as world:
        return world.run(program)[0]


@pytest.mark.parametrize("name", ACROSS)
def test_a_secret_crosses_the_border_of_inference_mode(name, across):
    with torch.no_grad():
        wanted = ACROSS[name](Y)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    for mode in ("inference_mode", "enable_grad"):
        for made in ("inside", "outside"):
            assert (across[name, mode, made] - wanted[:1]).abs().max() < 2e-3, (mode, made)


def test_a_module_made_in_inference_mode_is_used_and_copied_outside():
    def program():
        with torch.inference_mode():
            model = mpc.own(lambda: MODEL, source=1, like=network())
        return [mpc.reveal(each(shared(X)), to=0) for each in (model, copy.deepcopy(model))]

    with mpc.local_world() as world:
        for got in world.run(program)[0]:
            assert (got - MODEL(X)).abs().max() < 1e-3


# What is no module, and whose line an error names


def test_an_exported_program_is_no_architecture_until_it_is_loaded_as_one():
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(1, 3),))

    def refused():
        with pytest.raises(UsageError, match="like: got ExportedProgram, wanted a module") as error:
            mpc.own(lambda: program, source=1, like=program)
        assert "load_architecture" in error.value.hint

    with mpc.local_world() as world:
        world.run(refused)


def test_an_error_inside_of_a_library_names_the_line_that_called_it():
    def program():
        with pytest.raises(UsageError, match=r"array: .*; at .*test_modules\.py:\d+"):
            np.stack([shared(torch.ones(2))])

    with mpc.local_world() as world:
        world.run(program)


def test_a_local_world_says_that_it_is_one_trust_domain():
    for world in (mpc.local(), mpc.local_world()):
        with world as entered:
            assert "one trust domain" in repr(entered)
