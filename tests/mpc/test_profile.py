"""A profile is what a party did, changes nothing of it, and opens in viewers."""

import json
import stat

import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import FormatError, MissingDependencyError, UsageError

NAMES = ("P0", "P1", "D")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(6, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.rest(self.first(x))


def call(model):
    x = mpc.share(lambda: torch.ones(2, 6), source=0, shape=(2, 6))
    return mpc.reveal(model(x), to=0)


def profiled(inside=call, *, weights=mpc.own):
    """Each party's profile of a model's second call, and its party's counters before and after."""
    net = Net().eval()

    def program():
        party = mpc.tensor.world.current().party
        model = weights(lambda: net, source=1, like=net)
        call(model)
        before = counters(party)
        with mpc.profile() as seen:
            inside(model)
        return seen, before, counters(party)

    with mpc.local_world() as world:
        return world.run(program)


def counters(party):
    return party.rounds, sum(peer.sent for peer in party.peers.values())


@pytest.fixture(scope="module")
def profiles():
    return [seen for seen, _, _ in profiled()]


@pytest.mark.parametrize("weights", [mpc.own, mpc.share])
def test_rounds_and_bytes_are_those_of_the_channels_and_of_the_prediction(weights):
    predicted = mpc.cost(Net().eval(), (2, 6), weights=weights.__name__).figures
    for rank, (seen, before, after) in enumerate(profiled(weights=weights)):
        found = seen.total.figures
        assert (found.rounds, found.sent[rank]) == (after[0] - before[0], after[1] - before[1])
        assert found.sent[rank] == predicted.sent[rank]
        assert found.frames[rank] == predicted.frames[rank]
        assert found.multiplied[rank] == predicted.multiplied[rank]
        assert found.drawn[rank] == predicted.drawn[rank]
        assert found.compared == predicted.compared
        if rank != 2:
            assert found.rounds == predicted.rounds


def test_a_party_that_is_watched_says_the_same_as_one_that_is_not():
    digests = []
    for watch in ((), (0,), (0, 1, 2)):

        def program(watch=watch):
            party = mpc.tensor.world.current().party
            party.transcript.digest = bytes(16)  # as if all three runs were in one epoch
            model = mpc.own(lambda: Net(), source=1, like=Net())
            if party.rank in watch:
                with mpc.profile():
                    call(model)
            else:
                call(model)
            return party.transcript.digest

        with mpc.local_world() as world:
            digests += world.run(program)
    assert len(set(digests)) == 1


def test_time_is_attributed_to_modules_and_lines(profiles):
    labels = {row.label for row in profiles[0].by_module}
    assert {"Net.first (Linear)", "Net.rest.0 (ReLU)", "Net.rest.1 (Linear)", "outside of modules"} <= labels
    assert any(row.label.startswith(f"{__file__}:") for row in profiles[0].by_line)
    for rank, profile in enumerate(profiles):
        assert all(value >= 0 for each in profile.operations for value in each.seconds.values())
        head, _, *rows = str(profile).splitlines()
        assert head.split()[0] == NAMES[rank] and rows[-1].startswith("total")
        # Rows of one kind add up to the whole.
        for kind in ("computing", "waiting"):
            total = sum(row.seconds[kind] for row in profile.by_operation)
            assert total == pytest.approx(profile.total.seconds[kind])


def test_the_trace_has_what_viewers_require(profiles, tmp_path):
    path = tmp_path / "P1.json"
    profiles[1].chrome_trace(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert all({"name", "ph", "pid", "tid", "args"} <= event.keys() for event in events)
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["ts"] > 0 and event["dur"] >= 0 and event["pid"] == 2 for event in spans)
    names = {(event["name"], event["args"].get("name")) for event in events if event["ph"] == "M"}
    assert {("process_name", "P1"), ("thread_name", "modules"), ("thread_name", "operations")} <= names
    # A module's span holds those of its parts and of its operations.
    module = next(event for event in spans if event["name"] == "Net")
    parts = [event for event in spans if event["args"].get("module") or event["name"].startswith("Net.")]
    assert len(parts) > 5
    for each in parts:
        assert module["ts"] - 1 <= each["ts"]
        assert each["ts"] + each["dur"] <= module["ts"] + module["dur"] + 1


def test_three_traces_become_one(profiles, tmp_path):
    for profile in profiles:
        profile.chrome_trace(tmp_path / f"{profile.rank}.json")
    mpc.merge_traces([tmp_path / f"{rank}.json" for rank in range(3)], tmp_path / "all.json")
    events = json.loads((tmp_path / "all.json").read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == dict(enumerate(NAMES, 1))
    with pytest.raises(UsageError, match="of a party that another file is of"):
        mpc.merge_traces([tmp_path / "0.json", tmp_path / "all.json"], tmp_path / "more.json")
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(FormatError, match=r"no\.json is none"):
        mpc.merge_traces([tmp_path / "no.json"], tmp_path / "more.json")


def test_an_error_inside_ends_the_watching_and_is_raised():
    def fails(model):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        profiled(fails)


def test_two_watchers_of_one_party_are_refused():
    def again(model):
        with mpc.profile():
            call(model)

    with pytest.raises(UsageError, match="something watches this party already"):
        profiled(again)
    with pytest.raises(UsageError, match="there is none here"), mpc.profile():
        pass


def test_without_tensorboard_it_says_so(profiles, tmp_path, monkeypatch):
    monkeypatch.setattr("strongroom.mpc.costs.trace.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="tensorboard: is not installed"):
        profiles[0].tensorboard(tmp_path)


def test_tensorboard_reads_what_is_written(profiles, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    profiles[0].tensorboard(tmp_path, step=3)
    found = EventAccumulator(str(tmp_path / "P0")).Reload()
    (sent,) = found.Scalars("bytes sent/Net.first (Linear)")
    row = next(row for row in profiles[0].by_module if row.label == "Net.first (Linear)")
    assert (sent.step, sent.value) == (3, row.figures.sent[0])
