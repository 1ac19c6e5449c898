"""One mask hides one value, in one epoch: whatever tries to use a mask again does not get one.

The table in `docs/explanation/mpc.md` says which test is for which rule.
"""

import copy
import gc
import os
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import ChannelError, MpcError, UsageError
from strongroom.mpc.party import Stream
from strongroom.mpc.shared import Masked
from strongroom.mpc.tensor.world import World, current
from strongroom.mpc.threads import Raised, run_each, run_local
from tests.mpc.parties import Recorder

X = torch.tensor([[1.0, -2.0, 3.0, 4.0]])


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).requires_grad_(False).eval()


MODEL = network()


def secret(give="share"):
    return getattr(mpc, give)(lambda: MODEL, source=1, like=network())


def given():
    return mpc.share(lambda: X, source=0, shape=X.shape)


def run(program, observer=None):
    """What each party returned, in a world of its own."""

    def one(party):
        with World(party):
            return program()

    return run_local(one, observer=observer)


def no_draw_twice(recorder):
    """Each party draws each stream from its beginning on, without gap or repetition; returns the draws."""
    streams = {}
    for rank, stream, start, stop in recorder.draws:
        streams.setdefault((rank, stream), []).append((start, stop))
    for draws in streams.values():
        assert draws[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(draws))
    return streams


@pytest.fixture
def masks(monkeypatch):
    """Every mask that was put on a value, at each party: with its opening."""
    kept = {0: [], 1: [], 2: []}
    set_masked = mpc.Shared.set_masked

    def spy(self, masked):
        kept[self.party.rank].append((self, masked))
        set_masked(self, masked)

    monkeypatch.setattr(mpc.Shared, "set_masked", spy)
    return kept


def assert_masks_differ(masks):
    """No two values share a word of mask, at the dealer, who knows masks whole."""
    words = np.concatenate([masked.mask.reshape(-1) for _, masked in masks[2]])
    assert len(words) and len(np.unique(words)) == len(words)


# 1: immutable, and from a position that was never used


def test_a_mask_cannot_be_changed_or_put_on_another_value(masks):
    def program():
        x = given()
        x @ secret().get_submodule("0").weight.t()
        value, masked = masks[current().party.rank][0]
        for name in ("opening", "mask"):
            with pytest.raises(AttributeError):
                setattr(masked, name, np.zeros(4, np.uint64))
        with pytest.raises(UsageError, match="mask: the value has one already"):
            value.set_masked(Masked(masked.opening, masked.mask))

    run(program)


def test_two_tensors_of_one_name_shape_and_value_have_masks_of_their_own(masks):
    """Nothing of a mask's place comes from a name, an id or a version: the same program text draws new ones."""

    def program():
        for _ in range(3):
            x, model = given(), secret()
            model(x)
            del x, model
            gc.collect()

    run(program)
    assert_masks_differ(masks)


# 2: a write drops the mask, through any alias


WRITES = {
    "in place": lambda x: x.add_(1),
    "through data": lambda x: x.data.add_(1),
    "through detach": lambda x: x.detach().add_(1),
    "through a view of a view": lambda x: x[:, 1:][:, :1].mul_(2),
    "by index": lambda x: x.__setitem__((0, 0), 5.0),
    "copied over": lambda x: x.copy_(x * 2),
    "a view's write": lambda x: x.t()[1].add_(1),
}


@pytest.mark.parametrize("name", WRITES)
def test_no_write_keeps_a_mask(name, masks):
    def program():
        x, model = given(), secret()
        first = x @ model[0].weight.t()
        WRITES[name](x)
        return mpc.reveal(first, to=0), mpc.reveal(x @ model[0].weight.t(), to=0)

    plain = X.clone()
    before = plain @ MODEL[0].weight.t()
    WRITES[name](plain)
    results = run(program)[0]
    assert torch.allclose(results[0], before, atol=2e-3)
    assert torch.allclose(results[1], plain @ MODEL[0].weight.t(), atol=2e-3)
    assert_masks_differ(masks)


# 3: what is kept depends on the program alone


def test_garbage_collection_at_one_party_changes_nothing():
    """P1 collects and keeps copies where the others do not: still the same draws, at all three."""
    recorder, kept = Recorder(), []

    def program():
        model = secret()
        for _ in range(3):
            x = given()
            result = model(x)
            if current().party.rank == 1:
                kept.extend((x, result, x[0], id(x)))
                gc.collect()
            y = mpc.reveal(result, to=[0])
        return y

    got = run(program, recorder)[0]
    assert torch.allclose(got, MODEL(X), atol=2e-3)
    streams = no_draw_twice(recorder)
    for (rank, stream), draws in streams.items():
        for (other, same), theirs in streams.items():
            assert stream != same or draws == theirs, (stream, rank, other)


# 4 and 6: an epoch's keys are its own; what is restored begins a new one


def test_a_restored_world_is_a_new_epoch(masks):
    """The same program on the same values, begun anew: other epochs, keys, masks and shares."""
    recorder, epochs = Recorder(), []

    def program():
        epochs.append(current().party.epoch)
        return mpc.reveal(secret()(given()), to=0)

    first = run(program, recorder)[0]
    frames = {payload for _, _, payload in recorder.frames if len(payload) >= 8}
    recorder.frames.clear()
    recorder.draws.clear()
    second = run(program, recorder)[0]
    assert torch.allclose(first, second, atol=2e-3)
    assert len(set(epochs)) == 2 and len(epochs) == 6
    assert not frames & {payload for _, _, payload in recorder.frames if len(payload) >= 8}
    assert_masks_differ(masks)


def test_a_secret_does_not_outlive_its_epoch():
    """A tensor kept from an earlier world is of no use in the next, neither opened nor computed with."""
    kept = {}

    def first():
        kept[current().party.rank] = given(), secret()

    run(first)

    def second():
        x, model = kept[current().party.rank]
        with pytest.raises(UsageError, match="the secret is of another world"):
            mpc.reveal(x, to=0)
        with pytest.raises(UsageError, match="two worlds"):
            x + given()
        with pytest.raises(MpcError, match="the epoch has ended: it was finished"):
            model(x)

    run(second)


# 5: whatever goes wrong ends the epoch


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError, MemoryError, SystemExit])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupt_inside_an_operation_ends_the_epoch_for_all(rank, error, monkeypatch):
    """The same products again, as a program that caught it would: refused, so no second draw at a rewound place."""
    recorder, armed = Recorder(), threading.Event()
    fill = Stream.fill

    def interrupted(self, out):
        if armed.is_set() and self._rank == rank:
            armed.clear()
            raise error
        return fill(self, out)

    monkeypatch.setattr(Stream, "fill", interrupted)

    def program():
        x, model = given(), secret()
        mpc.reveal(model(x), to=0)
        if current().party.rank == rank:
            armed.set()
        with pytest.raises((error, MpcError)):
            mpc.reveal(model(x + 1), to=0)
        with pytest.raises(MpcError, match="the epoch has ended"):
            mpc.reveal(model(x + 1), to=0)

    def one(party):
        with World(party):
            if not party.is_dealer:
                program()
                return
            with pytest.raises(MpcError):
                program_of_the_dealer()

    def program_of_the_dealer():
        x, model = given(), secret()
        for shift in (0, 1):
            mpc.reveal(model(x + shift), to=0)
        current().party.finish()

    outcomes = run_each([one] * 3, [mpc.Settings()] * 3, observer=recorder)
    assert all(isinstance(each, Raised) and isinstance(each.error, MpcError) for each in outcomes), outcomes
    no_draw_twice(recorder)


def test_a_server_that_says_nothing_ends_the_epoch_for_the_other():
    waiting = threading.Event()

    def one(party):
        with World(party):
            x = given()
            if party.rank == 1:
                waiting.wait(30)
                return
            with pytest.raises((ChannelError, MpcError)):
                mpc.reveal(x, to=1)
            waiting.set()
            with pytest.raises(MpcError, match="the epoch has ended"):
                mpc.reveal(x, to=1)

    outcomes = run_each([one] * 3, [mpc.Settings(seconds=0.5)] * 3)
    assert isinstance(outcomes[0], Raised)


def test_a_forked_process_and_another_thread_draw_nothing(monkeypatch):
    recorder = Recorder()

    def program():
        x, model = given(), secret()
        refused = []

        def elsewhere():
            for use in (lambda: x + 1, lambda: model(x), lambda: mpc.reveal(x, to=0)):
                try:
                    use()
                except UsageError as error:
                    refused.append(error.message)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(refused) == 3 and "a party belongs to the thread" in refused[0] and "there is none" in refused[2]
        before = len(recorder.draws)
        real = os.getpid()
        current().party._owner = (real + 1, threading.get_ident())  # as a fork finds it
        with pytest.raises(UsageError, match=r"no fork|belongs to the thread"):
            model(x)
        current().party._owner = (real, threading.get_ident())
        return len(recorder.draws) - before

    # Each party's own draws: the others' go on meanwhile.
    run(program, recorder)
    no_draw_twice(recorder)


# Copies


def test_a_copy_has_the_mask_of_its_value_until_either_is_written_to(masks):
    """A deep copy is the same value under the same mask, and opens nothing anew; written to, each has its own."""
    recorder = Recorder()

    def program():
        x, model = given(), secret()
        copied = copy.deepcopy(model)
        first = model(x)
        party = current().party
        before = party.rounds
        second = copied(x)
        rounds = party.rounds - before
        copied[0].weight.mul_(0.5)
        model[0].weight.add_(0.25)
        third, fourth = copied(x), model(x)
        return rounds, [mpc.reveal(each, to=0) for each in (first, second, third, fourth)]

    _, results = run(program, recorder)[0]
    half, more = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    half[0].weight.mul_(0.5)
    more[0].weight.add_(0.25)
    for got, model in zip(results, (MODEL, MODEL, half, more), strict=True):
        assert torch.allclose(got, model(X), atol=3e-3)
    assert_masks_differ(masks)
    no_draw_twice(recorder)


# 8: ratchets


@pytest.mark.parametrize("give", ["share", "own"])
def test_keys_are_ratcheted_after_every_outermost_call(give):
    """At the same place at all three; what was open before stays open, and results stay right."""
    recorder = Recorder()

    def program():
        model, x = secret(give), given()
        party, found = current().party, []
        for call in (model, model[0], nn.Sequential(model, nn.Identity())):
            streams = [party.coins, *(party.stream(other) for other in range(3) if other != party.rank)]
            before, rounds = [each._generation for each in streams], party.rounds
            y = call(x)
            found.append([each._generation - was for each, was in zip(streams, before, strict=True)])
            found[-1].append(party.rounds - rounds)
        return found, mpc.reveal(y, to=[0, 1])

    results = run(program, recorder)
    for found, _ in results:
        assert [each[:3] for each in found] == [[1, 1, 1]] * 3
    # The whole takes fewer rounds the second time, by what is open already.
    for found, value in results[:2]:
        assert found[2][3] < found[0][3] and torch.allclose(value, MODEL(X), atol=2e-3)
    no_draw_twice(recorder)


def test_a_key_of_now_opens_nothing_of_before():
    """What a server holds after a call derives no earlier key: the key is another, and the old one is nowhere on it."""

    def program():
        model, x = secret(), given()
        stream = current().party.coins
        before = stream._key
        model(x)
        held = [value for value in vars(stream).values() if isinstance(value, bytes)]
        return before not in held and stream._key != before

    assert run(program) == [True] * 3


def test_a_call_that_raises_does_not_put_off_the_next_ratchet():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x, fail):
            y = self.inner(x)
            if fail:
                raise StoppedError
            return y

    def program():
        model = mpc.share(lambda: Fails(), source=1, like=Fails())
        x, coins = given(), current().party.coins
        before = coins._generation
        with pytest.raises(StoppedError):
            model(x, True)
        between = coins._generation
        model(x, False)
        return between - before, coins._generation - between

    assert run(program) == [(1, 1)] * 3


@pytest.mark.parametrize("prepend", [False, True])
def test_a_hook_that_raises_does_not_put_off_the_next_ratchet(prepend):
    """A user's own hook raises before the module runs, once: every later call ratchets all the same."""
    failing = threading.local()

    def check(module, args):
        if getattr(failing, "now", False):
            raise StoppedError

    def program():
        layer = nn.Linear(4, 3)
        layer.register_forward_pre_hook(check)
        model = mpc.share(lambda: nn.Sequential(nn.Linear(4, 3)), source=1, like=nn.Sequential(layer))
        if prepend:
            model[0].register_forward_pre_hook(check, prepend=True)
            model.register_forward_pre_hook(check, prepend=True)
        x, coins = given(), current().party.coins
        failing.now = True
        for called in (model, model[0]):
            with pytest.raises(StoppedError):
                called(x)
        failing.now = False
        before = coins._generation
        for _ in range(3):
            model(x)
        return coins._generation - before

    assert run(program) == [3] * 3


def test_a_copy_of_a_module_is_ratcheted_too():
    def program():
        model, x = copy.deepcopy(secret()), given()
        before = current().party.coins._generation
        model(x)
        return current().party.coins._generation - before

    assert run(program) == [1, 1, 1]
