"""The debugger sees what is wrong with numbers, in one process and nowhere else."""

import threading

import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import MpcError, UsageError
from strongroom.mpc import Settings

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def report_of(model, x=X, settings=None, *, weights=mpc.share, strict=False):
    def program():
        with mpc.debug(strict=strict) as report:
            prepared = weights(lambda: model, source=1, like=model) if isinstance(model, nn.Module) else model
            mpc.reveal(prepared(mpc.share(lambda: x, source=0, shape=x.shape)), to=0)
        return report

    with mpc.local_world(settings) as world:
        reports = world.run(program)
    assert reports[0] is reports[1] is reports[2]
    return reports[0]


def layer(report, operator):
    return next(row for row in report.layers if row.operator == operator)


@pytest.mark.parametrize("weights", [mpc.share, mpc.own])
def test_ranges_and_errors_are_those_of_floats(weights):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.Softmax(-1)).eval()
    report = report_of(model, weights=weights)
    assert report.wraps == 0 and report.first_wrap is None
    hidden = model[0](X).detach()
    first = layer(report, "linear")
    assert first.label == "Sequential.0 (Linear)" and first.elements == hidden.numel()
    assert (first.low, first.high) == pytest.approx((float(hidden.min()), float(hidden.max())), abs=1e-5)
    assert 0 < report.max_error < 1e-3
    assert all(row.mean_error <= row.error for row in report.layers)


def test_the_error_counts_the_rounding_of_what_was_shared():
    # A weight of 2^-18 is no multiple of 2^-16: it is shared as zero.
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 2.0**-18)
    report = report_of(model, torch.full((1, 4), 100.0))
    assert layer(report, "linear").high == pytest.approx(400 * 2.0**-18)
    assert report.max_error == pytest.approx(400 * 2.0**-18, rel=0.1)


def test_what_wraps_is_found_where_it_does():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1), nn.ReLU())
    nn.init.eye_(model[0].weight)
    report = report_of(model, X * 30, Settings(bound=5))
    assert report.wraps == 0
    nn.init.constant_(model[0].weight, 0.9)
    report = report_of(model, X * 30, Settings(bound=5))
    first = report.first_wrap
    assert (first.name, first.place.label) == ("relu", "Sequential.1 (ReLU)")
    assert first.place.where.startswith(f"{__file__}:")
    assert first.wraps and report.wraps >= first.wraps
    assert "first wrap: relu in Sequential.1 (ReLU)" in str(report)
    with pytest.raises(MpcError, match=r"relu: \d+ of 12 values wrap: the largest is .* in Sequential.1 \(ReLU\)"):
        report_of(model, X * 30, Settings(bound=5), strict=True)


def test_the_proposed_bound_has_room_for_what_was_seen_and_saves_what_it_says():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2), nn.ReLU())
    report = report_of(model)
    proposed = report.proposed_settings(margin=2)
    assert proposed.bound < report.settings.bound
    again = report_of(model, settings=proposed)
    assert again.wraps == 0
    assert report.saving(proposed) == pytest.approx(1 - again.sent / report.sent)
    # What wraps at a bound that is too small asks for a larger one.
    wide = report_of(model, X * 7, Settings(bound=3))
    if wide.wraps:
        assert wide.proposed_settings().bound > 3
    assert report.proposed_settings(margin=2**20).bound > proposed.bound
    finer = report.proposed_settings(error=report.max_error / 4)
    assert finer.frac == report.settings.frac + 2


def test_views_and_writes_go_to_the_shadow_too():
    def program(x):
        y = x * 2.0
        y[1:, ::2] = 5.0
        part = y[:, 1]
        part += 1.0
        return (y.T @ x).relu()

    y = X * 2.0
    y[1:, ::2] = 5.0
    y[:, 1] += 1.0
    report = report_of(program)
    assert report.max_error < 1e-3
    assert layer(report, "relu").high == pytest.approx(float((y.T @ X).max()), rel=1e-4)


def test_a_local_world_that_debugs_has_a_report():
    with mpc.local_world(debug=True) as world:
        for _ in range(2):
            world.run(lambda: mpc.share(lambda: X, source=0, shape=X.shape).relu())
        assert layer(world.report, "relu").elements == 2 * X.numel()
    with mpc.local_world() as world, pytest.raises(UsageError, match="wanted a world that debugs"):
        print(world.report)


def test_it_refuses_parties_that_meet_over_a_socket(tmp_path):
    tmp_path.chmod(0o700)
    errors = []

    def party(rank):
        with mpc.join_unix(rank, tmp_path) as joined, mpc.World(joined):
            try:
                with mpc.debug():
                    pass
            except UsageError as error:
                errors.append(error.message)

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == ["debug: this party meets the others over a network, and would show them its shares"] * 3


def test_an_error_of_either_server_is_the_error_that_is_raised():
    for rank in (0, 1):

        def program(rank=rank):
            with mpc.debug():
                x = mpc.share(lambda: X, source=0, shape=X.shape)
                if mpc.tensor.world.current().party.rank == rank:
                    raise ValueError("mine")
                return x.relu()

        with pytest.raises(ValueError, match="mine"), mpc.local_world() as world:
            world.run(program)


def test_functions_keep_the_range_that_they_need():
    model = nn.Sequential(nn.LayerNorm(4), nn.Softmax(-1))
    report = report_of(model)
    again = report_of(model, settings=report.proposed_settings())
    assert again.wraps == 0 and again.max_error < 1e-3
