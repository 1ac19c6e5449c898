"""Which file a reveal's policy and log name: that of the program that runs, wherever it goes meanwhile."""

import hashlib
import os
import sys

import pytest

from strongroom.mpc.party import Party
from strongroom.mpc.script import Script, run_program
from strongroom.mpc.tensor.world import World

PROGRAM = """
import os, sys
from strongroom.mpc.tensor.world import current
import beside
world = current()
world.reveals.append(beside.planned(world))
os.chdir("elsewhere")
world.reveals.append(world.planned((1,), frozenset({"P0"}), ("P0",)))
world.reveals.append(beside.planned(world))
assert sys.argv == ["predict.py", "an argument"] and os.path.isabs(__file__)
"""
BESIDE = """
def planned(world):
    return world.planned((1,), frozenset({"P0"}), ("P0",))
"""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for place in (tmp_path, tmp_path / "elsewhere"):
        (place / "predict.py").write_text(f"# in {place.name}\n{PROGRAM}")
        (place / "beside.py").write_text(f"# in {place.name}\n{BESIDE}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "predict.py"
    sys.modules.pop("beside", None)


def test_a_program_that_changes_the_directory_is_named_for_what_it_is(program):
    script = Script.find(["predict.py", "an argument"], module=False)
    agreed = sha256(program)
    program.write_text("# changed after it was read\n")
    party = Party(0, {}, program=script.digest)
    world = World(party)
    assert run_program(party, world, script) == 0
    beside = str(program.parent / "beside.py")
    assert [(each.file, each.program) for each in world.reveals] == [
        (beside, sha256(program.parent / "beside.py")),
        (str(program), agreed),
        (beside, sha256(program.parent / "beside.py")),
    ]


def test_a_relative_path_is_of_where_the_world_began(program):
    """As `python predict.py` gives a program's path, without the launcher."""
    world = World(Party(0, {}))
    os.chdir("elsewhere")
    found = {"world": world}
    code = "planned = world.planned((1,), frozenset({'P0'}), ('P0',))"
    exec(compile(code, "predict.py", "exec"), found)  # noqa: S102
    assert (found["planned"].file, found["planned"].program) == (str(program), sha256(program))
