"""A home's development CAS outlasts the verb that started it, for as long as another uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from strongroom.cas import running_cas
from strongroom.cli.workspace import Home
from strongroom.errors import CasUnreachableError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no such lock on Windows")

_HOLDER = """
import sys
from pathlib import Path
from strongroom.cli.workspace import Home
with Home.open(Path(sys.argv[1])).cas() as address:
    print(address.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path):
    return Home.open(tmp_path / "home")


def answers(home, address):
    with home.owner_client(address) as client:
        return client.describe()


def test_who_still_uses_it_has_it_when_the_first_ends(home):
    first, second, third = home.cas(), home.cas(), home.cas()
    address = first.__enter__()
    assert second.__enter__() == third.__enter__() == address
    with home.owner_client(address) as connected:
        connected.describe()
        first.__exit__(None, None, None)
        assert connected.describe()  # on a new connection, to the one that has been started in its place
    second.__exit__(None, None, None)
    assert answers(home, address)
    with home.cas() as fourth:
        assert fourth == address
    third.__exit__(None, None, None)
    with pytest.raises(CasUnreachableError):
        answers(home, address)


def test_it_is_taken_over_from_a_process_that_is_killed(home):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        url = holder.stdout.readline().strip()
        with home.cas() as address:
            assert address.url == url
            holder.kill()
            holder.wait()
            assert answers(home, address)


def test_one_that_somebody_else_looks_after_is_not_taken_over(home):
    with running_cas(home.path / "cas") as started:
        user = home.cas()
        assert user.__enter__() == started
    with pytest.raises(CasUnreachableError):
        answers(home, started)
    user.__exit__(None, None, None)
