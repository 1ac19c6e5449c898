"""What is computed when it is first read: a pooling with the ReLU after it, a convolution with its normalisation."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from strongroom import mpc
from strongroom.errors import UsageError
from strongroom.mpc.tensor.world import current

BLOCK = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()


def in_a_world(program):
    """What P0 returned."""
    with mpc.local_world() as world, torch.no_grad():
        return world.run(program)[0]


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def secret(values):
    return mpc.share(lambda: values, source=1, shape=values.shape)


def counted(function):
    """A result that was read, and the rounds that it and its reading took."""
    before = current().party.rounds
    result = function()
    result._storage.read(result.place)
    return result, current().party.rounds - before


def normalised(*layers):
    """With statistics that are not those of a fresh one."""
    torch.manual_seed(1)
    model = nn.Sequential(*layers)
    for each in model.modules():
        if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
            each.weight.data.uniform_(0.5, 2)
            each.bias.data.normal_()
    return model.eval()


@pytest.mark.parametrize("relu", [functional.relu, torch.relu_, nn.ReLU(inplace=True)])
def test_a_pooling_and_the_relu_after_it_take_five_rounds(relu):
    x = images(2, 1, 6, 6)
    w = images(3, 1, 3, 3)

    def program():
        pooled = functional.max_pool2d(functional.conv2d(secret(x), secret(w)), 2)
        result, rounds = counted(lambda: relu(pooled))
        return mpc.reveal(result, to=0), rounds

    result, rounds = in_a_world(program)
    assert (result - functional.max_pool2d(functional.conv2d(x, w), 2).relu()).abs().max() < 1e-3
    assert rounds == 5


def test_network_b_of_modules_takes_19_rounds():
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    x = images(1, 1, 28, 28)

    def program():
        shared = mpc.share(lambda: model, source=0, like=model)
        result, rounds = counted(lambda: shared(secret(x)))
        return mpc.reveal(result, to=0), rounds

    result, rounds = in_a_world(program)
    assert (result - model(x)).abs().max() < 1e-3
    assert rounds == 19


def test_every_reading_of_one_pooling():
    """Before and after its ReLU, whole, in parts and in another order."""
    x = images(2, 1, 4, 6)

    def read(tensor):
        pooled = functional.max_pool2d(tensor, 2)
        turned, part = pooled.transpose(2, 3).relu(), pooled[:, :, 0].relu()
        return [pooled.flatten(1).relu(), turned, part, pooled + 1, pooled.relu(), functional.max_pool2d(pooled, 2)]

    results = in_a_world(lambda: [mpc.reveal(each, to=0) for each in read(secret(x))])
    for got, wanted in zip(results, read(x), strict=True):
        assert (got - wanted).abs().max() < 1e-4


def test_a_later_write_to_what_was_pooled_makes_no_difference():
    x = images(1, 1, 4, 4)

    def program():
        source = secret(x)
        pooled = functional.max_pool2d(source, 2)
        source.zero_()
        return mpc.reveal(pooled.relu(), to=0), mpc.reveal(pooled, to=0)

    rectified, plain = in_a_world(program)
    assert (plain - functional.max_pool2d(x, 2)).abs().max() < 1e-4
    assert (rectified - functional.max_pool2d(x, 2).relu()).abs().max() < 1e-4


def test_writing_to_what_is_pending():
    x = images(1, 1, 4, 4)

    def program():
        whole, part = functional.max_pool2d(secret(x), 2), functional.max_pool2d(secret(x), 2)
        _, rounds = counted(lambda: whole.fill_(3))
        part[0, 0, 0, 1] = 7
        return mpc.reveal(whole, to=0), mpc.reveal(part, to=0), rounds

    whole, part, rounds = in_a_world(program)
    wanted = functional.max_pool2d(x, 2)
    wanted[0, 0, 0, 1] = 7
    assert (whole == 3).all()
    assert rounds == 0
    assert (part - wanted).abs().max() < 1e-4


def test_what_nobody_reads_costs_nothing():
    def program():
        x = secret(images(1, 1, 4, 4))
        before = current().party.rounds
        functional.max_pool2d(x, 2)
        return current().party.rounds - before

    assert in_a_world(program) == 0


def test_a_pooling_that_cannot_be_is_refused_at_its_own_line():
    def program():
        x = secret(images(1, 1, 4, 4))
        try:
            functional.max_pool2d(x, 6)  # this line
        except (UsageError, RuntimeError) as error:
            return str(error)
        return functional.relu(x)

    assert re.search("kernel|[Oo]utput size", in_a_world(program))


def test_its_cost_stands_at_its_own_module():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU())
    seen = mpc.cost(model, torch.zeros(1, 1, 6, 6))
    rounds = {row.label.rsplit(" ", 1)[-1]: row.figures.rounds for row in seen.by_module}
    assert rounds["(MaxPool2d)"] == 5
    assert not rounds.get("(ReLU)")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", [mpc.share, mpc.own])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_normalised_convolution_takes_the_rounds_of_a_convolution(how, axes, bias):
    convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv2d, nn.BatchNorm2d)
    model = normalised(convolution(2, 4, 3, bias=bias, groups=2), norm(4), nn.ReLU())
    x = images(2, 2, *[6] * axes)

    def program():
        shared = how(lambda: model, source=0, like=model)
        shared(secret(x))
        result, rounds = counted(lambda: shared(secret(x)))
        return mpc.reveal(result, to=0), rounds

    result, rounds = in_a_world(program)
    assert (result - model(x)).abs().max() < 1e-3
    assert rounds == 5


def test_a_convolution_that_others_read_too():
    model = normalised(*BLOCK)
    x = images(1, 1, 5, 5)

    def program():
        shared = mpc.share(lambda: model, source=0, like=model)
        y = shared[0](secret(x))
        z = shared[1](y)
        return [mpc.reveal(each, to=0) for each in (z, y, y.relu(), shared[1](y))]

    y = model[0](x)
    for got, wanted in zip(in_a_world(program), (model[1](y), y, y.relu(), model[1](y)), strict=True):
        assert (got - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("how", [mpc.share, mpc.own])
@pytest.mark.parametrize("when", ["before", "between"])
def test_weights_that_change_are_scaled_anew(how, when):
    """Before a convolution the new ones count, after it the old ones, whoever reads it."""
    model = normalised(*BLOCK)
    x = images(1, 1, 5, 5)

    def program():
        shared = how(lambda: model, source=0, like=model)
        shared(secret(x))
        if when == "before":
            shared[0].weight.fill_(0.5)
        y = shared[0](secret(x))
        if when == "between":
            shared[0].weight.fill_(0.5)
        return mpc.reveal(shared[1](y), to=0)

    kernel = torch.full_like(model[0].weight, 0.5) if when == "before" else model[0].weight
    wanted = model[1](functional.conv2d(x, kernel, model[0].bias))
    assert (in_a_world(program) - wanted).abs().max() < 1e-3


def test_debug_sees_through_what_is_pending():
    model = normalised(*BLOCK, nn.MaxPool2d(2), nn.ReLU())
    x = images(1, 1, 6, 6)

    def program():
        with mpc.debug() as report:
            shared = mpc.share(lambda: model, source=0, like=model)
            result = mpc.reveal(shared(secret(x)), to=0)
        return result, str(report)

    result, report = in_a_world(program)
    assert (result - model(x)).abs().max() < 1e-3
    assert "relu" in report
