"""What system calls do on a mount, each held against the same call on an ordinary directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix import cases
from tests.posix.server import ROOT, served

_NOBODY = 65534
_USERS = {"root": 0, "nobody": _NOBODY}


@pytest.fixture(scope="module")
def logs(fuse: None) -> Iterator[dict[tuple[str, str], dict[str, list[str]]]]:
    """The log of every script, by user and place."""
    found = {}
    users = _USERS if os.getuid() == 0 else {"user": os.getuid()}
    # Not below pytest's directory, which lets nobody else through.
    with tempfile.TemporaryDirectory(prefix="strongroom-posix-") as name:
        base = Path(name)
        base.chmod(0o711)
        for each in ("vault", "mount", "native"):
            (base / each).mkdir()
        with served(base / "vault", base / "mount", *(["allow-other"] if os.getuid() == 0 else [])):
            for user, uid in users.items():
                for place in ("mount", "native"):
                    own = base / place / user
                    own.mkdir()
                    if os.getuid() == 0:
                        os.chown(own, uid, uid)
                    become = str(0 if uid == os.getuid() else uid)
                    program = [sys.executable, "-m", "tests.posix.cases", str(own), become]
                    run = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
                    found[user, place] = json.loads(run.stdout)
        yield found


@pytest.mark.parametrize("user", list(_USERS) if os.getuid() == 0 else ["user"])
@pytest.mark.parametrize("name", list(cases.CASES))
def test_as_on_an_ordinary_directory(logs, name: str, user: str) -> None:
    assert logs[user, "mount"][name] == logs[user, "native"][name]
