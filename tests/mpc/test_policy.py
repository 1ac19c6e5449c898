"""A server reveals what the owners of a secret allow, and nothing else."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from strongroom import mpc
from strongroom.errors import MpcError, PolicyError, RefusedError, UsageError
from strongroom.mpc.policy import Allow, Enforcement, Policy, Reveal
from strongroom.mpc.tensor.world import World, current
from strongroom.mpc.threads import Raised, run_each
from tests.mpc.parties import Recorder

DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def allow(owner, *to, **limits):
    return Allow(owner, to, **limits)


def opened(shape=(2,), owners=("clinic",), to=("P0",), file="/srv/predict.py", line=7, program=DIGEST):
    return Reveal(shape, frozenset(owners), to, file, line, program)


ALLOWED = {
    "its recipient": (allow("clinic", "P0"), {}),
    "everybody, so anybody": (allow("clinic", "public"), {}),
    "every owner's": (allow("*", "P0"), {}),
    "any client": (allow("clinic", "clients"), {"to": ("alice",)}),
    "a client by name": (allow("clinic", "alice"), {"to": ("alice",)}),
    "a shape": (allow("clinic", "P0", shapes=((3,), ("*", 2))), {"shape": (9, 2)}),
    "few elements": (allow("clinic", "P0", at_most=2), {}),
    "a line of a program": (allow("clinic", "P0", program="predict.py", lines=(7,)), {}),
    "a program by the end of its path": (allow("clinic", "P0", program="srv/predict.py"), {}),
    "a program by its digest": (allow("clinic", "P0", program=f"sha256:{DIGEST}"), {}),
    "the owner itself": (allow("other", "P1"), {"owners": ("P0",)}),
}
REFUSED = {
    "an owner without an entry": (allow("other", "P0"), {}, "clinic's policy allows nothing"),
    "another recipient": (allow("clinic", "P1"), {}, "of clinic to P0 at /srv/predict.py:7: clinic's policy allows P1"),
    "one recipient of two": (allow("clinic", "P0"), {"to": ("P0", "P1")}, "to P1 at"),
    "one owner of two": (allow("clinic", "P0"), {"owners": ("clinic", "lab")}, "of lab to P0"),
    "everybody": (allow("clinic", "P0", "P1", "clients"), {"to": ("public",)}, "to public"),
    "a server that is no client": (allow("clinic", "clients"), {}, "allows clients"),
    "another client": (allow("clinic", "alice"), {"to": ("bob",)}, "allows alice"),
    "another shape": (allow("clinic", "P0", shapes=((3,), ("*", 2))), {}, r"allows shapes 3, \*x2"),
    "too much at once": (allow("clinic", "P0", at_most=1), {}, "allows 1 elements at once"),
    "too much in all": (allow("clinic", "P0", per_epoch=1), {}, "1 elements an epoch, of which 0 are spent"),
    "another line": (allow("clinic", "P0", lines=(1, 2)), {}, "allows lines 1, 2"),
    "another program": (allow("clinic", "P0", program="edict.py"), {}, "allows the program edict.py"),
    "a program that was changed": (allow("clinic", "P0", program=f"sha256:{'0' * 64}"), {}, "the program sha256:000"),
    "a program nobody can read": (allow("clinic", "P0", program=f"sha256:{'0' * 64}"), {"program": ""}, "the program"),
    "an owner with entries of its own, not everybody's": (
        [allow("*", "P0"), allow("clinic", "P1")],
        {},
        "clinic's policy allows P1",
    ),
    "what nobody owns": (allow("*", "public"), {"owners": ()}, "nobody owns the value"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_policy_allows(case):
    entry, facts = ALLOWED[case]
    Enforcement(Policy((entry,))).permit(opened(**facts))


@pytest.mark.parametrize("case", REFUSED)
def test_a_policy_refuses_the_rest_and_says_why(case):
    entries, facts, message = REFUSED[case]
    policy = Policy(tuple(entries) if isinstance(entries, list) else (entries,))
    with pytest.raises(RefusedError, match=message):
        Enforcement(policy).permit(opened(**facts))


def test_elements_are_counted_for_each_recipient_and_not_for_what_is_refused():
    asked = Enforcement(Policy((allow("clinic", "P0", "P1", per_epoch=10), allow("lab", "P0"))))
    asked.permit(opened((2, 2), to=("P0", "P1")))
    with pytest.raises(RefusedError, match="of which 8 are spent"):
        asked.permit(opened((3,)))
    with pytest.raises(RefusedError, match="of lab to P1"):
        asked.permit(opened((1,), owners=("clinic", "lab"), to=("P1",)))  # clinic's one element does not count
    asked.permit(opened((2,)))
    with pytest.raises(RefusedError, match="of which 10 are spent"):
        asked.permit(opened((1,)))
    asked.permit(opened((0,)))


def test_what_one_entry_has_spent_another_may_allow():
    asked = Enforcement(Policy((allow("*", "P0", per_epoch=2), allow("*", "P0", at_most=1))))
    asked.permit(opened((2,)))
    for _ in range(3):
        asked.permit(opened((1,)))
    with pytest.raises(RefusedError, match="2 elements an epoch, of which 2 are spent; or allows 1 elements at once"):
        asked.permit(opened((2,)))


def test_a_policy_comes_from_a_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        f"""
        version = 1
        [[allow]]
        owner = "clinic"
        to = ["P0", "alice"]
        shapes = [["*", 10], []]
        at_most = 100
        per_epoch = 1000
        program = "sha256:{DIGEST}"
        lines = [3]
        [[allow]]
        owner = "*"
        to = ["public"]
        """
    )
    assert Policy.load(path).allow == (
        allow(
            *("clinic", "P0", "alice"),
            shapes=(("*", 10), ()),
            at_most=100,
            per_epoch=1000,
            program=f"sha256:{DIGEST}",
            lines=(3,),
        ),
        allow("*", "public"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "version: got None, wanted 1"),
        ("version = 2", "version: got 2"),
        ("version = true", "version: got True"),
        ("version = 1\nalow = []", "policy: got alow, wanted version and"),
        ("version = 1\nallow = 3", "policy: got another allow"),
        ("version = ", "policy: Invalid value"),
        ("version = 1\n[[allow]]\nowner = 'a'", "allow 1: to missing"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['b']\nat_least = 1", "allow 1: got at_least, wanted owner, to"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = 'public'", "allow 1: to: got 'public', wanted a list"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = []", "allow 1: to: got"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['*']", "allow 1: to: got"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['D']", "allow 1: to: got"),
        ("version = 1\n[[allow]]\nowner = 'public'\nto = ['P0']", "allow 1: owner: got 'public'"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['P0']\nat_most = -1", "allow 1: at_most: got -1"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['P0']\nper_epoch = true", "allow 1: per_epoch: got True"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['P0']\nshapes = [3]", "allow 1: shapes: got .*a list of lists"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['P0']\nshapes = [['x']]", "allow 1: shapes: got"),
        ("version = 1\n[[allow]]\nowner = 'a'\nto = ['P0']\nlines = [0]", "allow 1: lines: got"),
        (
            "version = 1\n[[allow]]\nowner = 'a'\nto = ['P0']\nprogram = 'sha256:12'",
            "allow 1: program: got 'sha256:12'",
        ),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(PolicyError, match=message):
        Policy.parse(text)


def shared(owners=None):
    return mpc.share(lambda: torch.tensor([1.0, 2.0, 3.0]), source=0, shape=(3,), owners=owners)


def run(policies, program, observer=None):
    """Each party's outcome where P0 and P1 have these policies."""

    def side(policy):
        def one(party):
            with World(party, policy=policy):
                return program()

        return one

    return run_each([side(each) for each in (*policies, None)], [mpc.Settings()] * 3, observer=observer)


def assert_no_share(recorder):
    """Nobody sent the 24 bytes of three words: only an epoch's first frame, and empty ones."""
    assert {len(payload) for _, _, payload in recorder.frames} <= {0, 128}


NOTHING, CLINIC = Policy(()), Policy((allow("clinic", "P1"), allow("P0", "P1")))
SOURCE = Policy((allow("P0", "P1", "public"),))  # not its other owner


@pytest.mark.parametrize("to", [0, 1, (0, 1), "public"])
@pytest.mark.parametrize("enforcing", [0, 1])
def test_no_share_leaves_when_one_server_s_policy_refuses(enforcing, to):
    """Whichever has the policy, and whoever is to receive: neither server sends a share, and all end and know why."""
    recorder = Recorder()

    def program():
        x = shared(["clinic"])
        arguments = {"public": True} if to == "public" else {"to": to}
        with pytest.raises(MpcError) as refused:
            mpc.reveal(x, **arguments)
        with pytest.raises(MpcError, match="the epoch has ended"):
            mpc.reveal(x, to=1)
        raise refused.value

    policies = [None, None]
    policies[enforcing] = SOURCE
    outcomes = run(policies, program, recorder)
    assert all(isinstance(each, Raised) for each in outcomes[:2])
    refused, told = outcomes[enforcing].error, outcomes[1 - enforcing].error
    assert isinstance(refused, RefusedError) and refused.exit_code == 82
    assert f"{__file__}:" in refused.message and "clinic's policy allows nothing" in refused.message
    assert f"P{enforcing}: ended: reveal: 3 of clinic to" in told.message
    assert_no_share(recorder)


def test_a_policy_lets_through_what_it_allows_and_owners_add_up():
    def program():
        x, y = shared(["clinic"]), shared()
        return mpc.reveal(x, to=1), mpc.reveal(y, to=0), x + y

    at_p0, at_p1, _ = run([CLINIC, CLINIC], program)
    assert at_p1[0].tolist() == at_p0[1].tolist() == [1, 2, 3]
    assert at_p0[2].owners == {"clinic", "P0"}

    def joined():
        x = mpc.share(lambda: torch.ones(3), source=1, shape=(3,), owners=["lab"])
        return mpc.reveal(shared(["clinic"]) + x, to=1)

    outcomes = run([CLINIC, None], joined)
    assert "of lab to P1" in outcomes[0].error.message


@pytest.mark.parametrize("to", [0, "public"])
@pytest.mark.parametrize("owners", [["P0"], ["clinic"], ["P0", "P1"]])
def test_a_program_cannot_give_a_source_s_values_to_other_owners(owners, to):
    """P1's values, as somebody else's who allows everything: P1's own policy is asked all the same."""
    recorder = Recorder()
    policy = Policy((allow("P0", "P1", "public"), allow("clinic", "P0", "public")))

    def program():
        x = mpc.share(lambda: torch.ones(3), source=1, shape=(3,), owners=owners)
        return mpc.reveal(x, **({"public": True} if to == "public" else {"to": to}))

    outcomes = run([policy, policy], program, recorder)
    errors = [each.error for each in outcomes[:2]]
    assert any("of P1 to" in error.message and "P1's policy allows nothing" in error.message for error in errors)
    assert_no_share(recorder)


@pytest.mark.parametrize("owners", [["public"], ["clients"], ["*"], ["D"], [""], [3], [], "clinic"])
def test_what_is_no_owner_s_name_is_refused(owners):
    def program():
        with pytest.raises(UsageError, match="owners: got"):
            shared(owners)

    with mpc.local_world() as world:
        world.run(program)


def test_a_budget_lasts_over_the_reveals_of_an_epoch():
    policy = Policy((allow("P0", "P1", per_epoch=7),))
    revealed = []

    def program():
        x = shared()
        for _ in range(3):
            revealed.append((current().party.rank, mpc.reveal(x, to=1)))

    with mpc.local_world(policy=policy) as world, pytest.raises(RefusedError, match="of which 6 are spent"):
        world.run(program)
    assert [value.tolist() for rank, value in revealed if rank == 1] == [[1, 2, 3]] * 2


def test_a_budget_lasts_over_the_worlds_of_an_epoch_and_so_does_a_policy():
    policy = Policy((allow("P0", "P1", per_epoch=5),))

    def one(party):
        with World(party, policy=policy):
            mpc.reveal(shared(), to=1)
        if not party.is_dealer:
            for other in (None, NOTHING):
                with pytest.raises(UsageError, match="policy: got another one than before"):
                    World(party, policy=other)
        with World(party, policy=Policy(policy.allow)):
            mpc.reveal(shared(), to=1)

    with pytest.raises(RefusedError, match="of which 3 are spent"):
        mpc.run_local(one)


def test_servers_that_disagree_on_the_owners_reveal_nothing():
    recorder = Recorder()

    def program():
        return mpc.reveal(shared(["clinic"] if current().party.rank else ["P0"]), to=1)

    outcomes = run([None, None], program, recorder)
    assert any("programs differ" in each.error.message for each in outcomes[:2])
    assert_no_share(recorder)


def test_a_value_for_everybody_may_steer_the_program_and_the_dealer_waits_for_it():
    def program():
        x = mpc.share(lambda: torch.arange(4.0), source=0, shape=(4,))
        rounds = 0
        while mpc.reveal(x.sum(), public=True) > 2:
            x, rounds = x * x * 0.25, rounds + 1
        return rounds, mpc.reveal(x, public=True)

    with mpc.local_world() as world:
        results = world.run(program)
        assert [entry.to for entry in world.reveals] == [("public",)] * len(world.reveals)
    plain, steps = np.arange(4.0), 0
    while plain.sum() > 2:
        plain, steps = plain * plain * 0.25, steps + 1
    for rounds, value in results:
        assert rounds == steps and np.abs(value.numpy() - plain).max() < 1e-3
        assert (value == results[0][1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "wanted either to="),
        ({"to": 0, "public": True}, "wanted either to="),
        ({"to": []}, "to: got nobody"),
        ({"to": 2}, "to: got 2, wanted 0, 1 or several"),
        ({"to": "D"}, "to: got 'D'"),
        ({"to": ["P0", "alice"]}, "to: got 'alice', wanted 0, 1 or"),
        ({"to": "public"}, "to: got 'public'"),
    ],
)
def test_a_recipient_is_named_and_is_there(arguments, message):
    def program():
        with pytest.raises(UsageError, match=message):
            mpc.reveal(shared(), **arguments)

    with mpc.local_world() as world:
        world.run(program)


def test_servers_can_be_named():
    with mpc.local_world() as world:
        at_p0, at_p1, _ = world.run(lambda: mpc.reveal(shared(), to=["P1", 0]))
        assert at_p0.tolist() == at_p1.tolist() == [1, 2, 3]
        assert world.reveals[0].to == ("P0", "P1")
        assert world.reveals[0].program == DIGEST


def test_the_guide_s_policy_is_one():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "mpc.md"
    policy = Policy.parse(re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[0])
    assert policy.allow[0].lines == (31,) and policy.allow[0].shapes == (("*", 10),)
